//! The command line: what comes through dvs-run, and what it says when something is wrong.

use crate::{LAB, Test};
use legacy_tests::{Lab, World, lab::NODES, program, running::code};
use rustix::process::{Signal, kill_process};
use std::process::{Output, Stdio};

pub(crate) const TESTS: &[Test] = &[
    ("what_does_not_exist_is_one_sentence_and_a_code_of_its_own", LAB, unknown),
    ("exit_codes_and_both_outputs_come_through", LAB, through),
    ("standard_input_comes_through_whole", LAB, input),
    ("a_program_on_a_terminal_has_a_terminal", LAB, terminal),
    ("a_signal_to_dvs_run_reaches_the_program", LAB, forwarded),
    ("a_mapped_path_is_the_shared_tree", LAB, mapped),
    ("arguments_environment_and_folder_come_through", LAB, surroundings),
    ("verbose_says_that_a_static_program_has_no_shim", LAB, static_program),
    ("a_second_lab_up_changes_nothing", LAB, up_again),
    ("nodes_and_containers_are_listed", LAB, listed),
];

fn lab(world: &World) -> &Lab {
    world.as_lab().expect("this test is for labs")
}

fn run(lab: &Lab, arguments: &[&str]) -> Output {
    lab.dvs(&[&["run"], arguments].concat()).expect("dvs runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn unknown(world: &World) {
    let lab = lab(world);
    let folder = world.folder();
    let cases: &[(&[&str], i32, &str)] = &[
        (&["--node", "n9", "--", "true"], 121, "n9"),
        (&["--dc", "nowhere", "--", "true"], 122, "nowhere"),
        (&["--", "no-such-command"], 127, "no-such-command"),
        (&["--", "/no/such/command"], 127, "/no/such/command"),
        (&["--", &folder], 126, &folder),
        (&["--", "/etc/passwd"], 126, "/etc/passwd"),
    ];
    for (arguments, wanted, named) in cases {
        let output = run(lab, arguments);
        let errors = text(&output.stderr);
        assert_eq!(code(output.status), *wanted, "{arguments:?}: {errors}");
        assert_eq!(errors.trim().lines().count(), 1, "{arguments:?}: {errors}");
        assert!(errors.contains(named), "{arguments:?} is not named: {errors}");
        assert_eq!(text(&output.stdout), "");
    }
    for command in ["ps", "ipcs"] {
        assert_eq!(code(lab.dvs(&[command, "--node", "n9"]).expect("dvs runs").status), 121);
        assert_eq!(code(lab.dvs(&[command, "--dc", "nowhere"]).expect("dvs runs").status), 122);
    }
    assert_eq!(code(lab.dvs(&["nonsense"]).expect("dvs runs").status), 2);
}

fn through(world: &World) {
    for (node, name) in NODES.iter().enumerate() {
        for wanted in [0, 1, 77, 120, 255] {
            let outcome = world
                .outcome(node, &["sh", "-c", &format!("echo out; echo err >&2; exit {wanted}")]);
            assert_eq!(
                (outcome.code, &*outcome.output, &*outcome.errors),
                (wanted, "out\n", "err\n"),
                "{name}"
            );
        }
    }
    // Much output, and a reader that has had enough.
    let output = world.run(2, &["seq", "1", "300000"]);
    assert_eq!(output.lines().count(), 300_000);
    assert!(output.ends_with("\n300000\n"));
    assert_eq!(world.run(1, &["sh", "-c", "yes | head -3"]), "y\ny\ny\n");
}

fn input(world: &World) {
    let path = world.scratch().join("input");
    let bytes: Vec<u8> = (0..3_000_000u32).map(|index| (index % 251) as u8).collect();
    std::fs::write(&path, &bytes).expect("the scratch folder is ours");
    let sum = world.start_with(2, &["cksum"], Some(&path)).succeed();
    let wanted = world.reference().start_with(0, &["cksum"], Some(&path)).succeed();
    assert_eq!(sum, wanted);
    // A program that does not read all of it.
    assert_eq!(world.start_with(1, &["head", "-c", "3"], Some(&path)).succeed().len(), 3);
}

fn terminal(world: &World) {
    // script(1) gives dvs-run a terminal; the program then has one of its own.
    let program = world.scratch().parent().expect("it is in the run's folder").join("dvs");
    let line = format!("{} run --node n2 -- sh -c 'tty; stty size; exit 5'", program.display());
    let mut command = std::process::Command::new("script");
    command.args(["-qec", &line, "/dev/null"]).env("DVS_LAB_DIR", world.scratch().join("lab"));
    // The end of its input would be typed into the program's terminal: it stays open.
    let mut script =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("script(1) runs");
    let input = script.stdin.take();
    let output = script.wait_with_output().expect("script(1) ends");
    drop(input);
    let shown = text(&output.stdout);
    assert_eq!(code(output.status), 5, "{shown}");
    assert!(shown.starts_with("/dev/pts/"), "{shown:?}");
    assert_eq!(world.outcome(1, &["tty"]).output, "not a tty\n");
}

fn forwarded(world: &World) {
    let script = r#"$| = 1; $SIG{TERM} = sub { print "caught\n"; exit 3 }; print "ready\n"; select undef, undef, undef, 1 while 1"#;
    let mut running = world.start(2, &["perl", "-e", script]);
    running.says("ready");
    kill_process(running.host_pid(), Signal::TERM).expect("it runs");
    let outcome = running.wait();
    assert!(outcome.code == 3 && outcome.output.ends_with("caught\n"), "{outcome:?}");
}

fn mapped(world: &World) {
    let lab = lab(world);
    let folder = world.folder();
    let path = "/srv/dvs-legacy-mapped";
    let write = format!("echo mapped >{path}{}/file", folder.trim_start_matches("/dvs"));
    let output = run(lab, &["--node", "n3", "--map", path, "--", "sh", "-c", &write]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(world.run(0, &["cat", &format!("{folder}/file")]), "mapped\n");
    assert!(!std::path::Path::new(path).exists(), "the map is in the container only");
}

fn surroundings(world: &World) {
    let words = ["", "two words", "quo'te", "$HOME", "-v", "--", "new\nline", "\u{e4}"];
    let script = "import json, sys; print(json.dumps(sys.argv[1:]))";
    let output = world.run(1, &[&[program::PYTHON, "-c", script], &words[..]].concat());
    let found: Vec<String> = serde_json::from_str(&output).expect("Python prints JSON");
    assert_eq!(found, words);
    let mut command = lab(world).command();
    command.args(["run", "--node", "n2", "--", "sh", "-c", "echo \"$LEGACY\"; pwd; umask"]);
    let output =
        command.env("LEGACY", "from outside").current_dir("/usr").output().expect("dvs runs");
    let shown = text(&output.stdout);
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(lines[..2], ["from outside", "/usr"], "{shown}");
}

fn static_program(world: &World) {
    let folder = world.scratch().join("static");
    std::fs::create_dir_all(&folder).expect("the scratch folder is ours");
    let compiled =
        program::compile("posix_sem", &folder, &["-static"]).expect("gcc links statically");
    let output = run(lab(world), &["-v", "--", &compiled.to_string_lossy()]);
    let errors = text(&output.stderr);
    assert!(errors.contains("static"), "{errors}");
    let output = run(lab(world), &["-v", "--", "true"]);
    let errors = text(&output.stderr);
    assert!(errors.contains("shim is loaded"), "{errors}");
}

fn up_again(world: &World) {
    let lab = lab(world);
    let before = lab.server("vfs-server").expect("it is there");
    let output =
        lab.dvs(&["lab", "up", "--nodes", "3", "--dc", legacy_tests::lab::DC]).expect("dvs runs");
    assert!(output.status.success() && text(&output.stdout).contains("already"), "{output:?}");
    let output = lab.dvs(&["lab", "up", "--nodes", "2"]).expect("dvs runs");
    assert!(!output.status.success(), "a lab of another size was accepted");
    assert_eq!(lab.server("vfs-server").expect("it is there"), before);
}

fn listed(world: &World) {
    let lab = lab(world);
    let rows = lab.rows(&["node", "ls"]).expect("node ls lists");
    for node in NODES {
        assert!(
            rows.iter().any(|row| row.to_string().contains(&format!("\"{node}\""))),
            "no {node}: {rows:?}"
        );
    }
    let rows = lab.rows(&["dc", "ls"]).expect("dc ls lists");
    assert!(rows.iter().any(|row| row.to_string().contains(legacy_tests::lab::DC)), "{rows:?}");
    let text = text(&lab.dvs(&["lab", "status"]).expect("dvs runs").stdout);
    assert!(NODES.iter().all(|node| text.contains(node)), "{text}");
}
