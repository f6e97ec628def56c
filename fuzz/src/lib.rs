//! Fuzzing: each [target](targets) takes any bytes and holds what a part of Outrigger makes of them to properties: it does
//! not panic, its answer is bounded, and it is the one that a simpler description of the same gives.
//!
//! libFuzzer looks for inputs (`fuzz_targets/`), and the ones worth keeping are a plain test (`tests/targets.rs`).

mod input;
pub mod targets;

pub use input::Input;
