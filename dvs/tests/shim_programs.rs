//! C programs with the shim where there is no DVS: they find what libc and the kernel would have given them.
//! (Where there is one, the lab's tests run them again.)

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

const SHIM: &str = env!("DVS_SHIM");

/// C compilers: of glibc, and of musl where it is installed.
const COMPILERS: [&str; 2] = ["cc", "musl-gcc"];

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../preload/tests").join(name)
}

/// A program of `preload/tests`, compiled by `compiler`; `None` if that is musl's and not there.
fn compile(compiler: &str, name: &str, directory: &TempDir, more: &[&str]) -> Option<PathBuf> {
    let program = directory.path().join(name);
    let mut command = Command::new(compiler);
    command
        .args(["-O1", "-Wall", "-Werror", "-pthread", "-o"])
        .arg(&program)
        .arg(source(&format!("{name}.c")));
    // Only glibc's algorithm is the same in all its releases of today.
    command.arg(if compiler == "cc" { "-DMIXED=1" } else { "-DMIXED=0" }).args(more);
    match command.output() {
        Err(_) if compiler != "cc" => None,
        output => {
            succeeds(&output.expect("a C compiler is installed"));
            Some(program)
        }
    }
}

/// Compiles and runs `name` under each libc, with the shim and nothing else in the environment.
fn check(name: &str) {
    for compiler in COMPILERS {
        let directory = TempDir::new().expect("a directory");
        let Some(program) = compile(compiler, name, &directory, &[]) else {
            eprintln!("{compiler} is not installed: {name} was not tested with it");
            continue;
        };
        let with_shim = Command::new(&program).env_clear().env("LD_PRELOAD", SHIM).output();
        succeeds(&with_shim.expect("the program starts"));
    }
}

/// A program that found what it expected says nothing. A loader that could not load the shim says so.
fn succeeds(output: &Output) {
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn unnamed_semaphores_lose_no_post_between_threads() {
    check("unnamed_threads");
}

#[test]
fn unnamed_semaphores_are_shared_with_processes_that_have_no_shim() {
    check("unnamed_processes");
}

#[test]
fn a_thread_that_waits_for_a_semaphore_can_be_cancelled() {
    check("cancel");
}

#[test]
fn signal_handlers_interrupt_waits_as_libc_has_it() {
    check("interrupted");
}

#[test]
fn named_semaphores_keep_their_promises() {
    check("named");
}

#[test]
fn named_semaphores_are_libcs_where_there_is_no_dvs() {
    check("named_local");
}

#[test]
fn sysv_objects_are_the_kernels_where_there_is_no_dvs() {
    check("sysv");
}

#[test]
fn message_queues_are_the_kernels_where_there_is_no_dvs() {
    check("mqueue");
}

#[test]
fn kill_and_syscall_reach_the_kernel() {
    check("kill_and_syscall");
}

#[test]
fn ordinary_programs_run_with_the_shim_and_without_an_environment() {
    let script = "(exit 3); [ $? = 3 ] && echo $(echo a | /bin/cat) && env -i /bin/true";
    let output =
        Command::new("/bin/sh").args(["-c", script]).env_clear().env("LD_PRELOAD", SHIM).output();
    let output = output.expect("sh starts");
    succeeds(&output);
    assert_eq!(output.stdout, b"a\n");
}

#[test]
fn a_c_program_can_be_linked_to_the_shim() {
    let directory = TempDir::new().expect("a directory");
    let include = Path::new(env!("CARGO_MANIFEST_DIR")).join("../libdvsposix/include");
    let include = include.to_str().expect("UTF-8");
    let program = compile("cc", "linked", &directory, &["-I", include, SHIM]).expect("cc is there");
    let libraries = Path::new(SHIM).parent().expect("it is in a directory");
    let run = Command::new(program).env_clear().env("LD_LIBRARY_PATH", libraries).output();
    succeeds(&run.expect("the program starts"));
}
