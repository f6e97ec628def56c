//! Fuzzing: each [target](targets) takes any bytes and holds what a part of Outrigger makes of them to properties: it does
//! not panic, its answer is bounded, and it is the one that a simpler description of the same gives.
//!
//! A target also says, as a number, what kind of behaviour it saw. Inputs that showed a new kind are kept and changed
//! further, which leads deeper than changes to the stored corpus alone would.

#![allow(clippy::unwrap_used)]

mod input;
mod mutate;
pub mod targets;

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::SmallRng;

pub use input::Input;
use mutate::mutate;

/// What a target is: bytes in, the kind of behaviour out; a panic is a bug.
pub type Target = fn(&[u8]) -> u64;

/// Inputs that a plain `cargo test` makes for each target, besides the corpus.
const ITERATIONS: u64 = 3_000;
/// Inputs that are kept, at most.
const MAX_POOL: usize = 2_000;
/// Runs that the search for a shorter crashing input may take.
const MAX_SHRINK: usize = 2_000;

/// How long a target runs.
enum Limit {
    Iterations(u64),
    Until(Instant),
}

/// Runs a target on its corpus, and on what is made from it: `OUTRIGGER_FUZZ_SECONDS` long, or a fixed number of inputs.
/// `OUTRIGGER_FUZZ_SEED` repeats a run.
///
/// # Panics
/// When the target does. The input is then stored in `crashes/`.
pub fn fuzz(name: &str, target: Target) {
    let mut pool = corpus(name);
    assert!(!pool.is_empty(), "corpus/{name} is empty");
    let mut kinds = HashSet::new();
    for input in &pool {
        kinds.insert(attempt(name, target, input));
    }
    let limit = match number("OUTRIGGER_FUZZ_SECONDS") {
        Some(seconds) => Limit::Until(Instant::now() + Duration::from_secs(seconds)),
        None => Limit::Iterations(ITERATIONS),
    };
    let seed = number("OUTRIGGER_FUZZ_SEED").unwrap_or(match limit {
        Limit::Iterations(_) => 1,
        Limit::Until(_) => rand::random(),
    });
    println!("{name}: OUTRIGGER_FUZZ_SEED={seed}");
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut runs = 0;
    while match limit {
        Limit::Iterations(number) => runs < number,
        Limit::Until(end) => Instant::now() < end,
    } {
        let input = mutate(&pool, &mut rng);
        let kind = attempt(name, target, &input);
        if kinds.insert(kind) && pool.len() < MAX_POOL {
            pool.push(input);
        }
        runs += 1;
    }
    println!("{name}: {runs} inputs, {} kinds of behaviour", kinds.len());
}

/// A kind of behaviour, from what it is known by.
pub fn kind(of: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

/// How many bits a number has: a kind that grows with it, and does not grow much.
pub fn magnitude(number: usize) -> u32 {
    usize::BITS - number.leading_zeros()
}

fn attempt(name: &str, target: Target, input: &[u8]) -> u64 {
    match catch_unwind(|| target(input)) {
        Ok(kind) => kind,
        Err(_) => {
            let short = shrink(target, input);
            let path = folder("crashes").join(format!("{name}-{:016x}", kind(&short)));
            std::fs::create_dir_all(folder("crashes")).unwrap();
            std::fs::write(&path, &short).unwrap();
            panic!(
                "{name} fails with {} ({} bytes: {:?}); repair it, and move that file to corpus/{name}",
                path.display(),
                short.len(),
                String::from_utf8_lossy(&short[..short.len().min(500)])
            );
        }
    }
}

/// A shorter input that fails too: larger and then smaller parts are left out.
fn shrink(target: Target, input: &[u8]) -> Vec<u8> {
    let mut best = input.to_vec();
    let mut runs = 0;
    let mut size = best.len() / 2;
    while size > 0 {
        let mut at = 0;
        while at < best.len() && runs < MAX_SHRINK {
            let mut less = best.clone();
            less.drain(at..(at + size).min(best.len()));
            runs += 1;
            if catch_unwind(AssertUnwindSafe(|| target(&less))).is_err() {
                best = less;
            } else {
                at += size;
            }
        }
        size /= 2;
    }
    best
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = folder("corpus").join(name);
    let files = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut files: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| std::fs::read(file).unwrap()).collect()
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|e| panic!("{variable}: {e}")))
}
