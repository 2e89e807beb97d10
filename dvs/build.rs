//! Builds the shim (`preload/`, which is no member of the workspace) so that `dvs` can carry it along.
//!
//! It is always built optimised, with nothing of this build's flags: neither coverage, sanitizers nor a std
//! feature may reach it. `DVS_SHIM` is the path of the library for `include_bytes!`.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the shim is made of, from the workspace's root.
const SOURCES: [&str; 11] = [
    "preload/src",
    "preload/build.rs",
    "preload/Cargo.toml",
    "libdvsposix/src",
    "libdvsposix/Cargo.toml",
    "calls/src",
    "calls/Cargo.toml",
    "m3ipc/src",
    "m3ipc/Cargo.toml",
    "Cargo.toml",
    "dvs/build.rs",
];

/// What cargo and its wrappers tell their children about the build that runs this script.
const NOT_FOR_THE_SHIM: [&str; 9] = [
    "RUSTFLAGS",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_BUILD_RUSTFLAGS",
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
    "CLIPPY_ARGS",
    "CARGO_TARGET_DIR",
    "CARGO_BUILD_TARGET_DIR",
    "CARGO_BUILD_TARGET",
];

fn main() {
    let root = Path::new(&variable("CARGO_MANIFEST_DIR")).join("..");
    for source in SOURCES {
        println!("cargo:rerun-if-changed={}", root.join(source).display());
    }
    let shim = build(&root, Path::new(&variable("OUT_DIR")), &variable("TARGET"));
    println!("cargo:rustc-env=DVS_SHIM={}", shim.display());
}

fn build(root: &Path, out: &Path, target: &str) -> PathBuf {
    let directory = out.join("shim");
    let mut cargo = Command::new(variable("CARGO"));
    cargo.args(["build", "--release", "--target", target, "--manifest-path"]);
    cargo.arg(root.join("preload/Cargo.toml")).arg("--target-dir").arg(&directory);
    for name in NOT_FOR_THE_SHIM {
        cargo.env_remove(name);
    }
    let status = cargo.status().expect("cargo runs this script, so cargo can be run");
    assert!(status.success(), "the shim does not build: see above");
    directory.join(target).join("release/libdvs_preload.so")
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo sets {name} for build scripts"))
}
