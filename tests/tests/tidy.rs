//! Taste made executable: crate edges, file sizes, module headers, and the code map of ARCHITECTURE.md.

#![allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use cargo_metadata::MetadataCommand;

/// Lines of code that a file may have; tables of facts may have more.
const CODE_LINES_MAX: usize = 600;
/// Files that are tables, and why each may be long.
const TABLES: &[(&str, &str)] = &[];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace's root").to_path_buf()
}

fn rust_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            if !path.ends_with("target") && !path.ends_with(".git") {
                rust_files(&path, found);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn sources() -> Vec<(String, String)> {
    let root = root();
    let mut files = Vec::new();
    rust_files(&root, &mut files);
    assert!(files.len() > 20, "only {} source files found", files.len());
    files
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(&path).expect("a readable source file");
            (path.strip_prefix(&root).expect("below the root").display().to_string(), text)
        })
        .collect()
}

/// The table "Crates and the edges between them" of ARCHITECTURE.md, crate to what it may use.
fn allowed_edges() -> BTreeMap<String, BTreeSet<String>> {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    let section = text.split("## Crates and the edges").nth(1).expect("the section on crates");
    let section = section.split("\n## ").next().expect("its end");
    let rows: Vec<Vec<&str>> = section
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    let names: BTreeSet<String> =
        rows.iter().map(|row| row[0].trim_matches('`').to_owned()).collect();
    rows.iter()
        .map(|row| {
            let uses = match row[3] {
                "every crate" => names.clone(),
                "all of the above" => {
                    ["store", "apimachinery", "apiserver", "scheduler", "controllers"]
                        .iter()
                        .map(|name| (*name).to_owned())
                        .collect()
                }
                text if text.starts_with("nothing") => BTreeSet::new(),
                text => text.split(',').map(|name| name.trim().to_owned()).collect(),
            };
            (row[0].trim_matches('`').to_owned(), uses)
        })
        .collect()
}

#[test]
fn crates_use_only_what_the_architecture_allows() {
    let metadata = MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .no_deps()
        .exec()
        .expect("cargo metadata");
    let allowed = allowed_edges();
    let members: BTreeSet<String> =
        metadata.packages.iter().map(|package| package.name.to_string()).collect();
    assert_eq!(members, allowed.keys().cloned().collect(), "crates of ARCHITECTURE.md");
    for package in &metadata.packages {
        for dependency in package.dependencies.iter().filter(|one| members.contains(&one.name)) {
            let from = package.name.to_string();
            assert!(
                allowed[&from].contains(&dependency.name),
                "{from} uses {}, which ARCHITECTURE.md does not allow",
                dependency.name
            );
        }
    }
}

#[test]
fn files_open_with_what_they_own() {
    let missing: Vec<String> = sources()
        .into_iter()
        .filter(|(_, text)| !text.starts_with("//!"))
        .map(|(path, _)| path)
        .collect();
    assert!(missing.is_empty(), "no `//!` header: {missing:#?}");
}

#[test]
fn files_are_rooms_not_halls() {
    let long: Vec<String> = sources()
        .into_iter()
        .filter(|(path, _)| !TABLES.iter().any(|(table, _)| path == table))
        .filter_map(|(path, text)| {
            let code = text.split("#[cfg(test)]\nmod").next().unwrap_or_default();
            let lines = code
                .lines()
                .filter(|line| !line.trim().is_empty() && !line.trim_start().starts_with("//"))
                .count();
            (lines > CODE_LINES_MAX).then(|| format!("{path}: {lines}"))
        })
        .collect();
    assert!(long.is_empty(), "over {CODE_LINES_MAX} lines of code: {long:#?}");
}

#[test]
fn no_module_has_a_name_that_says_nothing() {
    let banned = ["manager", "helper", "helpers", "util", "utils", "common", "misc", "types"];
    let bad: Vec<String> = sources()
        .into_iter()
        .map(|(path, _)| path)
        .filter(|path| {
            let stem = Path::new(path).file_stem().and_then(|stem| stem.to_str());
            stem.is_some_and(|stem| banned.contains(&stem))
        })
        .collect();
    assert!(bad.is_empty(), "{bad:#?}");
}

#[test]
fn the_code_map_is_true() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    let map = text.split("## Code map").nth(1).expect("the section `Code map`");
    let map = map.split("\n## ").next().expect("its end");
    for (krate, _) in allowed_edges() {
        let folder = match krate.as_str() {
            "agent" | "controlplane" | "netd" | "tests" => krate.clone(),
            "monitor" => "agent/monitor".to_owned(),
            other => format!("controlplane/{other}"),
        };
        let line = map
            .lines()
            .find(|line| line.starts_with(&format!("- `{krate}`")))
            .unwrap_or_else(|| panic!("no line for {krate} in the code map"));
        let named: BTreeSet<String> =
            line.split('`').skip(3).step_by(2).map(str::to_owned).collect();
        let mut real = BTreeSet::new();
        for entry in fs::read_dir(root().join(folder).join("src")).expect("src").flatten() {
            let name = entry.file_name().into_string().expect("a UTF-8 name");
            let module = name.trim_end_matches(".rs").to_owned();
            if !["lib", "main", "bin"].contains(&module.as_str()) && !module.ends_with("_tests") {
                real.insert(module);
            }
        }
        assert_eq!(named, real, "modules of {krate} in the code map and on disk");
    }
}
