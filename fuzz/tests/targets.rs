//! Each target on each file of its corpus.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

macro_rules! targets {
    ($($name:ident),* $(,)?) => {
        const NAMES: &[&str] = &[$(stringify!($name)),*];

        $(#[test]
        fn $name() {
            run(stringify!($name), outrigger_fuzz::targets::$name::run);
        })*
    };
}

targets!(
    access,
    admission,
    authority,
    certificate,
    config,
    detect,
    discovery,
    framing,
    grpc_timeout,
    headers,
    hello,
    limits,
    notation,
    request_path,
    retry,
    route,
    spiffe,
    token,
    trace,
);

#[test]
fn every_corpus_and_every_program_is_of_a_target() {
    let names: BTreeSet<String> = NAMES.iter().map(|name| (*name).to_owned()).collect();
    let stems = |folder| -> BTreeSet<String> {
        let stem = |path: &PathBuf| path.file_stem().unwrap().to_str().unwrap().to_owned();
        files(folder).iter().map(stem).collect()
    };
    assert_eq!(stems("corpus"), names);
    assert_eq!(stems("fuzz_targets"), names);
}

fn run(name: &str, target: fn(&[u8])) {
    let corpus = files(&format!("corpus/{name}"));
    assert!(!corpus.is_empty(), "corpus/{name} is empty");
    let fails = |file: &PathBuf| {
        let bytes = std::fs::read(file).unwrap();
        catch_unwind(|| target(&bytes)).is_err()
    };
    let failed: Vec<PathBuf> = corpus.into_iter().filter(fails).collect();
    assert!(failed.is_empty(), "{name} fails with {failed:#?}");
}

fn files(folder: &str) -> BTreeSet<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let files = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    files.map(|file| file.unwrap().path()).collect()
}
