//! `cargo bench -p outrigger-micro [-- PART OF A NAME]`: the time of each piece, and what it allocates.

use divan::{AllocProfiler, Bencher};
use outrigger_micro::{PIECES, Piece};

#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

fn main() {
    divan::main();
}

#[divan::bench(args = PIECES, sample_count = 1000, sample_size = 64)]
fn of_a_request(bencher: Bencher<'_, '_>, piece: &Piece) {
    (piece.prepare)()(); // what is made once
    bencher
        .with_inputs(|| (piece.prepare)())
        .bench_local_refs(|call| call());
}
