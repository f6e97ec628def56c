//! docs/compatibility.md names tests; each of them exists.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// All Rust of a test program, `NAME.rs` or the files of the folder `NAME`.
fn source(program: &str) -> String {
    if program == "fuzz" {
        // Made by a macro from names.
        let targets = fs::read_to_string(root().join("fuzz/tests/targets.rs")).unwrap();
        return targets.replace("    ", "fn ").replace(',', "()");
    }
    let tests = root().join("tests/tests");
    let file = match program {
        "topology" => root().join("controller/src/topology_tests.rs"),
        _ => tests.join(format!("{program}.rs")),
    };
    if file.is_file() {
        return fs::read_to_string(file).unwrap();
    }
    let folder = match program {
        // What is decided in the controller, from objects alone and over its own server.
        "index" => root().join("controller/src/index/tests"),
        "serve" => root().join("controller/tests/serve"),
        _ => tests.join(program),
    };
    let files = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    files
        .map(|file| fs::read_to_string(file.unwrap().path()).unwrap())
        .collect()
}

#[test]
fn every_test_that_is_named_exists() {
    let text = fs::read_to_string(root().join("docs/compatibility.md")).unwrap();
    let rows = text
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| |"));
    let mut named = 0;
    for row in rows {
        let held_by = row.split(" | ").nth(1).unwrap_or_else(|| panic!("no test: {row}"));
        for part in held_by.split("; ") {
            let (program, names) = part.split_once(": ").unwrap_or_else(|| panic!("no program: {row}"));
            let source = source(program);
            for name in names.split(", ").filter(|name| *name != "a test of its name") {
                assert!(source.contains(&format!("fn {name}()")), "{program} has no test {name}");
                named += 1;
            }
        }
    }
    assert!(named > 100, "only {named} tests are named");
}
