//! How tests bound what a connection or a request costs: a future keeps room for all that it may ever wait for.

/// Bytes of the future that `make` gives, which nobody calls.
pub(crate) fn size<A, F: Future>(_make: impl FnOnce(A) -> F) -> usize {
    size_of::<F>()
}

/// Each has a name, its bytes, and the most that they may be; far below it, the bound would let it grow.
pub(crate) fn assert_bounded(sizes: &[(&str, usize, usize)]) {
    let wrong = sizes
        .iter()
        .filter(|(_, size, most)| !(most * 3 / 4..=*most).contains(size));
    let wrong: Vec<_> = wrong
        .map(|(what, size, most)| format!("{what} takes {size} bytes, and {most} are written here"))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}
