//! Every fuzz target for some seconds, from the corpus that is kept in the repository.

use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::process::Command;

/// Runs each target whose name contains `filter` for as long as the text `seconds` says. What they find of new
/// inputs stays in `fuzz/corpus`, which git ignores; `fuzz/seeds` is what is kept: a folder of inputs, or what earlier runs
/// have found, as few as cover the same (`-set_cover_merge=1`), in an archive.
pub(crate) fn run(seconds: &str, filter: &str) -> Result<()> {
    let seconds: u64 =
        seconds.parse().with_context(|| format!("{seconds} is not a number of seconds"))?;
    let folder = crate::root().join("fuzz");
    for target in targets(&folder)?.iter().filter(|target| target.contains(filter)) {
        let corpus = folder.join("corpus").join(target);
        std::fs::create_dir_all(&corpus)?;
        let archive = folder.join("seeds").join(format!("{target}.tar.xz"));
        if archive.exists() {
            let (from, to) = (archive.as_os_str(), folder.join("corpus"));
            let mut unpack = Command::new("tar");
            let unpacked = unpack.arg("-xJf").arg(from).arg("-C").arg(to).status()?;
            ensure!(unpacked.success(), "cannot unpack {}", archive.display());
        }
        eprintln!("+ cargo +nightly fuzz run {target}, {seconds} s");
        let status = Command::new("cargo")
            .args(["+nightly", "fuzz", "run", target])
            .args([corpus, folder.join("seeds").join(target)].iter().filter(|path| path.is_dir()))
            .args(["--", "-timeout=10", &format!("-max_total_time={seconds}")])
            // The `cargo` that runs xtask would choose its own toolchain for this one too.
            .env_remove("CARGO")
            .env_remove("RUSTUP_TOOLCHAIN")
            .current_dir(crate::root())
            .status()
            .context("it needs a nightly toolchain and `cargo install cargo-fuzz`")?;
        ensure!(status.success(), "{target} failed; the input is in fuzz/artifacts/{target}");
    }
    Ok(())
}

/// The targets that `fuzz/Cargo.toml` names.
fn targets(folder: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(folder.join("Cargo.toml"))?;
    let manifest: toml::Table = text.parse()?;
    let bins = manifest.get("bin").and_then(toml::Value::as_array).context("no [[bin]]")?;
    Ok(bins.iter().filter_map(|bin| Some(bin.get("name")?.as_str()?.to_owned())).collect())
}
