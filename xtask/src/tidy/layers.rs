//! Which crate may import which: the table is ARCHITECTURE.md's picture.

use super::Finding;
use super::text::code_of;
use super::tree::File;
use std::collections::BTreeSet;

/// Every crate, and the crates of this project that it may import. A crate that is not here may not
/// exist. Dev-dependencies are free: a test may look at everything.
const LAYERS: &[(&str, &[&str])] = &[
    ("m3ipc", &[]),
    ("calls", &["m3ipc"]),
    ("libdvsposix", &["calls", "m3ipc"]),
    ("services", &[]),
    ("libdvk", &["m3ipc", "services"]),
    ("preload", &["libdvsposix", "calls", "m3ipc"]),
    ("group", &[]),
    ("dvk", &["group", "services", "m3ipc"]),
    ("vfs-server", &["calls", "dvk", "m3ipc"]),
    ("pm-server", &["calls", "dvk", "m3ipc"]),
    ("ipc-server", &["calls", "dvk", "m3ipc"]),
    ("mount", &["libdvsposix", "calls", "m3ipc"]),
    ("muk2", &["vfs-server", "pm-server", "ipc-server", "dvk", "libdvsposix", "calls", "m3ipc"]),
    (
        "dvs",
        &[
            "muk2",
            "mount",
            "vfs-server",
            "pm-server",
            "ipc-server",
            "dvk",
            "libdvsposix",
            "calls",
            "m3ipc",
        ],
    ),
    ("legacy-tests", &[]),
    ("bench", &["legacy-tests", "calls", "dvk", "libdvk", "m3ipc", "vfs-server"]),
    ("xtask", &[]),
    (
        "fuzz",
        &[
            "muk2",
            "mount",
            "vfs-server",
            "pm-server",
            "ipc-server",
            "dvk",
            "group",
            "services",
            "libdvsposix",
            "calls",
            "m3ipc",
        ],
    ),
];

/// Names that only `calls` and those above it know. The kernel moves messages; it cannot name one.
const CALL_NAMES: &[&str] =
    &["calls::", "VfsCall", "PmCall", "IpcCall", "libdvsposix", "vfs_server", "ipc_server"];

/// What only the daemon in `dvk` knows: the kernel and the hosts do without the system group and its runtime.
const DAEMON_NAMES: &[&str] = &["group::", "tokio::"];

pub(crate) fn check(files: &[File]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in files {
        if let Some(folder) = file.path.strip_suffix("/Cargo.toml") {
            findings.extend(manifest(folder, file));
        }
        if file.path.starts_with("dvk/src/") {
            let message = "dvk cannot name a call, or whoever knows calls";
            findings.extend(names_none_of(file, CALL_NAMES, message));
            if !file.path.starts_with("dvk/src/dvkd") {
                let message = "of dvk only dvkd may know the system group";
                findings.extend(names_none_of(file, DAEMON_NAMES, message));
            }
        }
    }
    findings
}

fn manifest(folder: &str, file: &File) -> Vec<Finding> {
    let finding = |message: String| {
        vec![Finding { rule: "layers", path: file.path.clone(), line: 0, message }]
    };
    let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == folder) else {
        return finding(format!(
            "crate {folder} is not in the LAYERS table of xtask/src/tidy/layers.rs"
        ));
    };
    let table: toml::Table = match file.text.parse() {
        Ok(table) => table,
        Err(error) => return finding(format!("not a manifest: {}", error.message())),
    };
    let ours: BTreeSet<&str> = LAYERS.iter().map(|(name, _)| *name).collect();
    imports(&table)
        .into_iter()
        .filter(|name| ours.contains(name.as_str()) && !allowed.contains(&name.as_str()))
        .flat_map(|name| {
            finding(format!("{folder} may not import {name} (ARCHITECTURE.md, Layout and imports)"))
        })
        .collect()
}

/// The packages in the manifest's dependencies, build-dependencies, and those of each target.
fn imports(manifest: &toml::Table) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for key in ["dependencies", "build-dependencies"] {
        let Some(table) = manifest.get(key).and_then(toml::Value::as_table) else { continue };
        for (name, value) in table {
            let renamed = value.get("package").and_then(toml::Value::as_str);
            names.insert(renamed.unwrap_or(name).to_owned());
        }
    }
    for target in manifest
        .get("target")
        .and_then(toml::Value::as_table)
        .into_iter()
        .flat_map(toml::Table::values)
    {
        names.extend(target.as_table().map(imports).unwrap_or_default());
    }
    names
}

fn names_none_of(file: &File, names: &[&str], why: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (line, code) in code_of(&file.text) {
        for name in names.iter().filter(|name| names_crate_item(code, name)) {
            let message = format!("{why}: {name}");
            findings.push(Finding { rule: "layers", path: file.path.clone(), line, message });
        }
    }
    findings
}

/// Does `name` stand in `code`, not as a module of dvk's own (`super::calls::…`)?
fn names_crate_item(code: &str, name: &str) -> bool {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    let inside = |c: char| word(c) || c == ':';
    let is_root = |before: &str| {
        // `::name` is the crate, `module::name` is not.
        let rooted = before.strip_suffix("::").filter(|rest| !rest.ends_with(word));
        !rooted.unwrap_or(before).ends_with(inside)
    };
    code.match_indices(name).any(|(at, _)| is_root(&code[..at]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks one file and compares the number of violations.
    fn violations(path: &str, text: &str, expected: usize) {
        let file = File { path: path.to_owned(), size: 0, text: text.to_owned() };
        let findings = check(&[file]);
        assert_eq!(findings.len(), expected, "{path}: {findings:#?}");
    }

    #[test]
    fn a_server_may_not_import_another_server() {
        violations(
            "vfs-server/Cargo.toml",
            "[dependencies]\ncalls.workspace = true\ndvk.workspace = true",
            0,
        );
        violations("vfs-server/Cargo.toml", "[dependencies]\npm-server.workspace = true", 1);
    }

    #[test]
    fn the_kernel_may_not_import_the_calls_under_any_name_or_for_any_target() {
        violations("dvk/Cargo.toml", "[dependencies]\ncalls = { path = \"../calls\" }", 1);
        violations(
            "dvk/Cargo.toml",
            "[dependencies]\nrows = { package = \"calls\", path = \"../calls\" }",
            1,
        );
        violations(
            "dvk/Cargo.toml",
            "[target.'cfg(unix)'.dependencies]\ncalls.workspace = true",
            1,
        );
        violations("dvk/Cargo.toml", "[build-dependencies]\ncalls.workspace = true", 1);
    }

    #[test]
    fn tests_may_import_everything() {
        violations("dvk/Cargo.toml", "[dev-dependencies]\ncalls.workspace = true", 0);
    }

    #[test]
    fn a_crate_that_is_not_in_the_table_is_refused() {
        violations("utilities/Cargo.toml", "[dependencies]", 1);
        violations("dvk/Cargo.toml", "[dependencies", 1);
    }

    #[test]
    fn the_kernel_may_not_name_a_call_but_in_a_comment() {
        violations("dvk/src/kernel.rs", "//! k\nfn f(c: VfsCall) {}", 1);
        violations("dvk/src/host.rs", "//! h\nuse calls::Retry;", 1);
        violations("dvk/src/host.rs", "//! h\n/// See calls::Retry.\nfn f() {} // VfsCall", 0);
        violations("dvk/src/kernel.rs", "//! k\nuse super::calls::Open;", 0);
        violations("vfs-server/src/lib.rs", "//! v\nuse calls::Retry;", 0);
    }

    #[test]
    fn of_the_kernels_crate_only_the_daemon_may_know_the_group() {
        violations("dvk/src/kernel.rs", "//! k\nuse group::Group;\nfn f() { tokio::spawn(g) }", 2);
        violations("dvk/src/kernel.rs", "//! k\nuse ::group::Group;", 1);
        violations("dvk/src/dvkd/system.rs", "//! s\nuse ::group::Group;\nuse tokio::time;", 0);
        violations("dvk/src/kernel/calls.rs", "//! c\nuse super::group::Line;", 0);
    }

    #[test]
    fn the_table_has_no_cycle() {
        // Each crate stands after all that it may import, or before them all in a chain: follow it.
        for (start, _) in LAYERS {
            let mut reached = BTreeSet::new();
            let mut open = vec![*start];
            while let Some(name) = open.pop() {
                let (_, imports) =
                    LAYERS.iter().find(|(row, _)| *row == name).expect("imports are rows");
                assert!(!imports.contains(start), "{start} imports itself by way of {name}");
                open.extend(imports.iter().filter(|import| reached.insert(**import)));
            }
        }
    }
}
