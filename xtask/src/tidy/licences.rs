//! Every package of the dependency graph has a licence from deny.toml's list.

use super::Finding;
use anyhow::{Context, Result, ensure};
use spdx::{Expression, LicenseReq, ParseMode};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

/// The workspaces: the shim is resolved on its own.
const MANIFESTS: &[&str] = &["Cargo.toml", "preload/Cargo.toml"];

pub(crate) fn check(root: &Path) -> Result<Vec<Finding>> {
    let deny = std::fs::read_to_string(root.join("deny.toml")).context("cannot read deny.toml")?;
    let allowed = allowed(&deny)?;
    let mut findings = Vec::new();
    for manifest in MANIFESTS.iter().filter(|manifest| root.join(manifest).is_file()) {
        findings.extend(violations(manifest, &metadata(root, manifest)?, &allowed));
    }
    Ok(findings)
}

/// `licenses.allow` of deny.toml, each with its exception if it has one ("Apache-2.0 WITH …").
fn allowed(deny: &str) -> Result<BTreeSet<String>> {
    let table: toml::Table = deny.parse().context("deny.toml")?;
    let list = table
        .get("licenses")
        .and_then(|licenses| licenses.get("allow"))
        .and_then(toml::Value::as_array);
    let list = list.context("deny.toml: licenses.allow is missing")?;
    Ok(list.iter().filter_map(toml::Value::as_str).map(str::to_owned).collect())
}

fn metadata(root: &Path, manifest: &str) -> Result<serde_json::Value> {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--locked",
            "--filter-platform",
            "x86_64-unknown-linux-gnu",
        ])
        .args(["--manifest-path", manifest])
        .current_dir(root)
        .output()
        .context("cannot run cargo metadata")?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn violations(
    manifest: &str,
    metadata: &serde_json::Value,
    allowed: &BTreeSet<String>,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let (name, licence) =
            (package["name"].as_str().unwrap_or("?"), package["license"].as_str());
        if let Err(message) = acceptable(licence, allowed) {
            let message = format!("package {name}: {message} (deny.toml)");
            findings.push(Finding {
                rule: "licences",
                path: manifest.to_owned(),
                line: 0,
                message,
            });
        }
    }
    findings
}

/// Can this licence expression be satisfied with the allowed ones alone?
fn acceptable(licence: Option<&str>, allowed: &BTreeSet<String>) -> Result<(), String> {
    let licence = licence.ok_or("states no licence")?;
    let expression = Expression::parse_mode(licence, ParseMode::LAX)
        .map_err(|error| format!("{licence}: {error}"))?;
    let in_list = |requirement: &LicenseReq| allowed.contains(&requirement.to_string());
    if expression.evaluate(in_list) {
        Ok(())
    } else {
        Err(format!("licence {licence} is not in the list"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(licence: Option<&str>, accepted: bool) {
        let list =
            allowed("[licenses]\nallow = [\"MIT\", \"Apache-2.0\", \"Unicode-3.0\"]").unwrap();
        assert_eq!(acceptable(licence, &list).is_ok(), accepted, "{licence:?}");
    }

    #[test]
    fn one_side_of_an_or_is_enough_and_both_sides_of_an_and_are_needed() {
        check(Some("MIT"), true);
        check(Some("MIT/GPL-3.0"), true);
        check(Some("(MIT OR Apache-2.0) AND Unicode-3.0"), true);
        check(Some("(MIT OR Apache-2.0) AND GPL-2.0-only"), false);
    }

    #[test]
    fn what_is_not_listed_not_stated_or_not_understood_is_refused() {
        check(Some("GPL-3.0-only"), false);
        check(Some("Apache-2.0 WITH LLVM-exception"), false);
        check(Some("do what you want"), false);
        check(None, false);
    }

    #[test]
    fn a_forbidden_package_in_the_graph_is_found_by_name() {
        let list = BTreeSet::from(["MIT".to_owned()]);
        let graph = serde_json::json!({"packages": [
            {"name": "good", "license": "MIT"}, {"name": "bad", "license": "SSPL-1.0"}, {"name": "mute", "license": null},
        ]});
        let found = violations("Cargo.toml", &graph, &list);
        assert_eq!(found.len(), 2, "{found:#?}");
        assert!(
            found[0].message.contains("bad") && found[1].message.contains("mute"),
            "{found:#?}"
        );
    }

    #[test]
    fn a_deny_file_without_a_list_is_an_error() {
        assert!(allowed("[licenses]").is_err());
        assert!(allowed("licenses = ").is_err());
    }
}
