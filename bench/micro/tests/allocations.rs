//! The only test of its program: everything that the process allocates is counted.

use std::alloc::System;

use outrigger_micro::{PIECES, Piece};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const WARM_UP: usize = 10;
const CALLS: usize = 20;

fn allocations(piece: &Piece) -> usize {
    let mut call = (piece.prepare)();
    let region = Region::new(ALLOCATOR);
    call();
    let change = region.change();
    change.allocations + change.reallocations
}

#[test]
fn each_piece_allocates_what_is_written_beside_it() {
    for piece in PIECES {
        (0..WARM_UP).for_each(|_| (piece.prepare)()());
        // The least, because the thread that waits for this test allocates now and then.
        let least = (0..CALLS).map(|_| allocations(piece)).min();
        assert_eq!(least, Some(piece.allocations), "{piece}");
    }
}
