//! The shim as a file: it needs nothing, exports what it should and nothing else, and can be installed.

use object::read::elf::{ElfFile64, FileHeader as _, SectionHeader as _};
use object::{Object as _, ObjectSymbol as _, elf};
use std::collections::BTreeSet;

#[path = "../src/shim.rs"]
mod shim;

/// What the shim puts in the place of libc's functions.
const INTERPOSED: [&str; 31] = [
    "__mq_open_2",
    "kill",
    "killpg",
    "mq_close",
    "mq_getattr",
    "mq_notify",
    "mq_open",
    "mq_receive",
    "mq_send",
    "mq_setattr",
    "mq_timedreceive",
    "mq_timedsend",
    "mq_unlink",
    "msgctl",
    "msgget",
    "msgrcv",
    "msgsnd",
    "sem_clockwait",
    "sem_close",
    "sem_getvalue",
    "sem_open",
    "sem_post",
    "sem_timedwait",
    "sem_trywait",
    "sem_unlink",
    "sem_wait",
    "semctl",
    "semget",
    "semop",
    "semtimedop",
    "syscall",
];

/// The C API, as its header declares it.
const HEADER: &str = include_str!("../../libdvsposix/include/dvsposix.h");

fn shim() -> ElfFile64<'static> {
    ElfFile64::parse(shim::SHIM).expect("an ELF file")
}

/// The names of the dynamic symbols for which `choose` holds.
fn names(choose: impl Fn(&object::read::elf::ElfSymbol64<'_, '_>) -> bool) -> BTreeSet<String> {
    let shim = shim();
    let chosen = shim.dynamic_symbols().filter(|symbol| choose(symbol));
    chosen.map(|symbol| symbol.name().expect("a name").to_owned()).collect()
}

/// The names that `dvsposix.h` declares as functions.
fn declared() -> BTreeSet<String> {
    let words = HEADER.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '(');
    let functions = words.filter_map(|word| word.split_once('('));
    functions
        .map(|(name, _)| name)
        .filter(|name| name.starts_with("dvs_"))
        .map(String::from)
        .collect()
}

#[test]
fn the_shim_needs_no_other_library() {
    let shim = shim();
    let endian = shim.endian();
    let sections = shim.elf_header().sections(endian, shim::SHIM).expect("sections");
    let (entries, strings) = sections
        .iter()
        .find_map(|section| section.dynamic(endian, shim::SHIM).expect("well-formed"))
        .expect("a dynamic section");
    let strings = sections.strings(endian, shim::SHIM, strings).expect("strings");
    let of_tag = |tag: i64| entries.iter().filter(move |entry| entry.d_tag.get(endian) == tag);
    assert_eq!(of_tag(elf::DT_NEEDED).count(), 0);
    assert_eq!(of_tag(elf::DT_TEXTREL).count(), 0);
    let soname = of_tag(elf::DT_SONAME).next().expect("a name to be linked to");
    let offset = u32::try_from(soname.d_val.get(endian)).expect("small");
    assert_eq!(strings.get(offset), Ok(&b"libdvs_preload.so"[..]));
}

#[test]
fn the_shim_leaves_nothing_undefined_that_must_be_there() {
    assert_eq!(names(|symbol| symbol.is_undefined() && !symbol.is_weak()), BTreeSet::new());
    let weak = names(|symbol| symbol.is_undefined() && symbol.is_weak());
    let expected = [
        "__errno_location",
        "environ",
        "gnu_get_libc_version",
        "pthread_setcanceltype",
        "pthread_testcancel",
    ];
    assert_eq!(weak, expected.map(String::from).into());
}

#[test]
fn the_shim_has_no_thread_local_storage() {
    let shim = shim();
    let endian = shim.endian();
    let segments = shim.elf_header().program_headers(endian, shim::SHIM).expect("segments");
    assert!(segments.iter().all(|segment| segment.p_type.get(endian) != elf::PT_TLS));
}

#[test]
fn the_shim_exports_what_it_interposes_and_its_c_api_only() {
    let mut expected: BTreeSet<String> = INTERPOSED.map(String::from).into();
    expected.extend(declared());
    expected.insert("dvs_preload_version".to_owned());
    assert_eq!(names(|symbol| symbol.is_definition()), expected);
}
