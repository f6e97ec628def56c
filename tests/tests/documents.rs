//! docs/compatibility.md and THREATS.md name tests; each of them exists.

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
        "controller" => root().join("controller/src"),
        "issuer" => root().join("issuer/src"),
        "webhook" => root().join("injector/src/webhook/tests"),
        "inject" => root().join("injector/src/inject"),
        "gate" => root().join("gate/src"),
        "sidecar" => root().join("proxy/src"),
        "transport" => root().join("transport/src"),
        "cli" => root().join("cli/src"),
        _ => tests.join(program),
    };
    read_all(&folder)
}

/// All files of a folder and of those in it.
fn read_all(folder: &Path) -> String {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let paths = entries.map(|entry| entry.unwrap().path());
    let read = |path: PathBuf| match path.is_dir() {
        true => read_all(&path),
        false => fs::read_to_string(path).unwrap(),
    };
    paths.map(read).collect()
}

#[test]
fn every_test_that_is_named_exists() {
    let text = fs::read_to_string(root().join("docs/compatibility.md")).unwrap();
    assert!(named_tests(&text) > 100);
}

#[test]
fn every_threat_has_a_test_that_exists() {
    let text = fs::read_to_string(root().join("THREATS.md")).unwrap();
    let (_, threats) = text.split_once("## The control plane").unwrap();
    assert!(named_tests(threats) > 20);
}

/// How many tests the second columns of the tables name, all of which exist.
fn named_tests(text: &str) -> usize {
    let rows = text
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| |") && !line.starts_with("| attack |"));
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
    named
}
