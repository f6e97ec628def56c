//! ARCHITECTURE.md says which crate may use which, and which module of a crate may know which: it is so.

mod fixtures;
mod modules;
mod order;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use outrigger_tests::cluster::repository;
use serde_json::Value;

use self::order::{Layers, lists};

/// A crate of the workspace.
struct Crate {
    /// As Rust code writes it.
    name: String,
    /// Its first file, in the repository.
    root: PathBuf,
    /// The folders of the workspace's crates that it uses.
    uses: BTreeSet<String>,
}

/// By the folder that each is in.
fn crates() -> BTreeMap<String, Crate> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut metadata = Command::new(cargo);
    metadata.args(["metadata", "--no-deps", "--offline", "--format-version", "1"]);
    let output = metadata.current_dir(repository()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let workspace = PathBuf::from(metadata["workspace_root"].as_str().unwrap());
    let folder = |path: &Path| path.strip_prefix(&workspace).unwrap().display().to_string();
    let packages = metadata["packages"].as_array().unwrap().iter();
    packages
        .map(|package| {
            let manifest = Path::new(package["manifest_path"].as_str().unwrap());
            let own = manifest.parent().unwrap();
            let uses = package["dependencies"].as_array().unwrap().iter();
            let uses = uses
                .filter_map(|used| used["path"].as_str())
                .map(|path| folder(Path::new(path)));
            let mut roots = ["src/lib.rs", "src/main.rs"].into_iter().map(|file| own.join(file));
            let root = roots.find(|file| file.exists()).unwrap();
            let one = Crate {
                name: package["name"].as_str().unwrap().replace('-', "_"),
                root: root.strip_prefix(&workspace).unwrap().to_owned(),
                uses: uses.collect(),
            };
            (folder(own), one)
        })
        .collect()
}

fn document() -> String {
    fs::read_to_string(repository().join("ARCHITECTURE.md")).unwrap()
}

#[test]
fn crates_use_each_other_as_is_written() {
    let written = lists(&document(), "### Crates").unwrap();
    let written: BTreeMap<&str, BTreeSet<&str>> = written
        .iter()
        .map(|(name, list)| (name.as_str(), list.split_whitespace().collect()))
        .collect();
    let crates = crates();
    let real: BTreeMap<&str, BTreeSet<&str>> = crates
        .iter()
        .map(|(folder, one)| (folder.as_str(), one.uses.iter().map(String::as_str).collect()))
        .collect();
    let problems: Vec<String> = (real.keys().chain(written.keys()).collect::<BTreeSet<_>>().into_iter())
        .filter(|name| real.get(*name) != written.get(*name))
        .map(|name| {
            format!(
                "{name} uses {:?}, and is to use {:?}",
                real.get(name),
                written.get(name)
            )
        })
        .collect();
    assert!(problems.is_empty(), "{problems:#?}");
}

/// What `cargo tree` says, a crate in each line, as it would for a user, whatever this machine's own configuration says.
fn tree(arguments: &[&str]) -> String {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut tree = Command::new(cargo);
    tree.args(["tree", "--offline", "--edges", "normal,build", "--prefix", "none"]);
    tree.args(arguments)
        .env("CARGO_RESOLVER_FEATURE_UNIFICATION", "selected");
    let output = tree.current_dir(repository()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A sidecar refused `\p{L}`, which the controller had accepted: a crate of the controller's turns on more features of the one
/// that reads patterns, and the image of the sidecar is built by itself. What a pattern costs depends on features as well.
#[test]
fn a_pattern_is_the_same_in_each_program() {
    let features = |packages: &[&str]| {
        let text = tree(&[packages, &["--no-dedupe", "--format", "{p} {f}"]].concat());
        let about = |line: &&str| line.starts_with("regex-syntax ") || line.starts_with("regex-automata ");
        text.lines().filter(about).map(str::to_owned).collect::<BTreeSet<_>>()
    };
    let all = features(&["--workspace"]);
    assert_eq!(all.len(), 2, "{all:?}");
    for program in ["outrigger-proxy", "outrigger-controller", "outrigger-demo", "outrigger"] {
        assert_eq!(features(&["--package", program]), all, "{program}");
    }
}

/// A first look at Outrigger is `cargo run`, and compiles neither a Kubernetes client nor a protobuf compiler.
#[test]
fn what_cargo_run_builds_is_without_kubernetes() {
    // Of the default member only.
    let text = tree(&["--format", "{lib}"]);
    let crates: BTreeSet<&str> = text.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(
        crates.contains("outrigger_proxy") && !crates.contains("outrigger_controller"),
        "{crates:?}"
    );
    for heavy in [
        "kube",
        "kube_client",
        "k8s_openapi",
        "outrigger_injector",
        "prost_build",
        "protox",
    ] {
        assert!(
            !crates.contains(heavy),
            "{heavy}: cargo tree --invert says what brings it"
        );
    }
}

#[test]
fn modules_know_each_other_as_is_written() {
    let written = lists(&document(), "### Modules").unwrap();
    let crates = crates();
    let read = |file: &Path| fs::read_to_string(repository().join(file)).ok();
    let mut problems = Vec::new();
    for (folder, one) in &crates {
        let modules = modules::read(&one.name, &one.root, &read).unwrap();
        let found = match written.get(folder) {
            Some(layers) => Layers::parse(layers).problems(&modules),
            None if modules.arrows.is_empty() => Vec::new(),
            None => vec!["its modules know each other, and ARCHITECTURE.md does not say how".to_owned()],
        };
        problems.extend(found.into_iter().map(|problem| format!("{folder}: {problem}")));
    }
    let unknown = written.keys().filter(|name| !crates.contains_key(*name));
    problems.extend(unknown.map(|name| format!("{name} is no crate")));
    assert!(problems.is_empty(), "{problems:#?}");
}
