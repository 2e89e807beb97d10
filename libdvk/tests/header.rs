//! The headers say what the libraries do: each function with its types, each record with its size; and C programs run.
#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it should be")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

fn read(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// Functions and their types, as C writes them.
type Signatures = BTreeMap<String, String>;

fn rust_signatures(file: &str) -> Signatures {
    let text = read(file);
    let functions = text.split("pub unsafe extern \"C\" fn ").skip(1);
    functions
        .map(|function| {
            let head = function.split('{').next().unwrap();
            let (name, rest) = head.split_once('(').unwrap();
            let nothing = (rest.trim_end().trim_end_matches(')'), "()");
            let (arguments, result) = rest.rsplit_once(") -> ").unwrap_or(nothing);
            let types: Vec<String> = arguments
                .split(',')
                .filter_map(|argument| argument.split_once(':'))
                .map(|(_, kind)| c_type(kind.trim()))
                .collect();
            (name.to_owned(), format!("{}({})", c_type(result.trim()), types.join(",")))
        })
        .collect()
}

fn c_type(rust: &str) -> String {
    if let Some(inner) = rust.strip_prefix("*const ") {
        return format!("const {}*", c_type(inner));
    }
    if let Some(inner) = rust.strip_prefix("*mut ") {
        return format!("{}*", c_type(inner));
    }
    match rust {
        "c_int" => "int",
        "c_long" => "long",
        "c_char" => "char",
        "c_void" => "void",
        "()" => "void",
        "u32" => "uint32_t",
        "u64" => "uint64_t",
        "usize" => "size_t",
        "Services" => "dvk_group",
        "KvEntry" => "dvk_kv_entry",
        "KvList" => "dvk_kv_list",
        "GroupItem" => "dvk_group_item",
        "Message" => "dvk_message",
        "DvsInfo" => "dvk_dvs_info",
        "DcInfo" => "dvk_dc_info",
        "EndpointInfo" => "dvk_proc_info",
        "NodeInfo" => "dvk_node_info",
        "NodeLoad" => "dvk_node_load",
        "DcLoad" => "dvk_dc_load",
        "Rights" => "dvk_priv",
        other => panic!("{other}?"),
    }
    .to_owned()
}

fn header_signatures(file: &str) -> Signatures {
    let text = read(file);
    let lines = text.lines().filter(|line| line.ends_with(");") && line.contains(" dvk_"));
    lines
        .map(|line| {
            let (head, arguments) = line.trim_end_matches(");").split_once('(').unwrap();
            let (result, name) = head.rsplit_once(' ').unwrap();
            let result = result.replace("dvk_ep_t", "uint64_t");
            let types: Vec<String> = arguments
                .split(',')
                .map(str::trim)
                .filter(|argument| *argument != "void")
                .map(|argument| {
                    // All but the name.
                    let end = argument.rfind([' ', '*']).unwrap() + 1;
                    argument[..end].trim().replace(" *", "*").replace("dvk_ep_t", "uint64_t")
                })
                .collect();
            (name.to_owned(), format!("{result}({})", types.join(",")))
        })
        .collect()
}

#[test]
fn every_function_is_declared_with_its_types_and_no_other() {
    for (rust, header) in
        [("src/capi.rs", "include/dvk.h"), ("src/group_capi.rs", "include/dvk_group.h")]
    {
        let (rust, header) = (rust_signatures(rust), header_signatures(header));
        assert!(rust.len() > 20, "{rust:?}");
        assert_eq!(rust, header);
    }
}

#[test]
fn a_c_program_sees_records_of_the_same_size_and_links() {
    use dvk_client::group_capi::{GroupItem, KvEntry, KvList};
    use dvk_client::{DcInfo, DcLoad, DvsInfo, EndpointInfo, Message, NodeInfo, NodeLoad, Rights};
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("sizes.c");
    let sizes = [
        ("dvk_message", size_of::<Message>()),
        ("dvk_dvs_info", size_of::<DvsInfo>()),
        ("dvk_dc_info", size_of::<DcInfo>()),
        ("dvk_proc_info", size_of::<EndpointInfo>()),
        ("dvk_node_info", size_of::<NodeInfo>()),
        ("dvk_node_load", size_of::<NodeLoad>()),
        ("dvk_dc_load", size_of::<DcLoad>()),
        ("dvk_priv", size_of::<Rights>()),
        ("dvk_kv_entry", size_of::<KvEntry>()),
        ("dvk_kv_list", size_of::<KvList>()),
        ("dvk_group_item", size_of::<GroupItem>()),
    ];
    let mut text = String::from("#include <dvk_group.h>\n#include <stddef.h>\n");
    for (name, size) in sizes {
        text += &format!("_Static_assert(sizeof({name}) == {size}, \"{name}\");\n");
    }
    text += "_Static_assert(offsetof(dvk_message, m) == 24, \"arguments\");\n";
    for (field, offset) in [
        ("dvk_kv_entry, deleted", std::mem::offset_of!(KvEntry, deleted)),
        ("dvk_kv_list, more", std::mem::offset_of!(KvList, more)),
        ("dvk_group_item, kind", std::mem::offset_of!(GroupItem, kind)),
    ] {
        text += &format!("_Static_assert(offsetof({field}) == {offset}, \"{field}\");\n");
    }
    text += "int main(void) { return dvk_getself(0) == -EDVSNOTBIND ? 0 : 1; }\n";
    std::fs::write(&source, text).unwrap();
    let program = folder.path().join("sizes");
    compile(&source, &program);
    assert!(run(&program, &[]).status().unwrap().success());
}

/// The folder with the library that belongs to this test.
fn library() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    own.parent().unwrap().to_path_buf()
}

fn compile(source: &Path, program: &Path) {
    let output = Command::new("cc")
        .args(["-std=gnu17", "-Wall", "-Wextra", "-Werror", "-pthread", "-I"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("include"))
        .arg("-o")
        .arg(program)
        .arg(source)
        .arg("-L")
        .arg(library())
        .arg("-ldvk_client")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn run(program: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).env("LD_LIBRARY_PATH", library()).stdin(Stdio::null());
    command
}
