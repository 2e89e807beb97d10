//! How the shim is linked: with nothing else, and under a name that programs can be linked to.

fn main() {
    for argument in [
        // No start files, no libc, no libgcc: what is missing must fail here, not in a program.
        "-nostdlib",
        "-nostartfiles",
        "-Wl,-z,defs",
        // The name in the NEEDED entry of a C program linked to it; LD_PRELOAD then finds the same object.
        "-Wl,-soname,libdvs_preload.so",
        // Its own calls of what it exports are its own.
        "-Wl,-Bsymbolic",
        "-Wl,-z,now",
        "-Wl,--hash-style=both",
    ] {
        println!("cargo:rustc-cdylib-link-arg={argument}");
    }
    println!("cargo:rerun-if-changed=build.rs");
}
