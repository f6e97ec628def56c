//! What bytes pass through. A worker has a few buffers for all of its connections: one that is idle holds none, and one that
//! moves much does not ask for memory, and have it cleared, again and again.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

/// Bytes: four records of TLS, and the size from which on larger ones gain nothing.
pub(super) const SIZE: usize = 64 * 1024;
/// Free buffers that a thread keeps.
const KEPT: usize = 8;

thread_local! {
    static FREE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer of [`SIZE`], or a copy of a few bytes; what is in it is whatever was there. Goes back when it is dropped.
#[derive(Debug)]
pub(super) struct Buffer(Box<[u8]>);

impl Buffer {
    /// One of [`SIZE`].
    pub(super) fn take() -> Self {
        let free = FREE.with_borrow_mut(Vec::pop);
        Self(free.unwrap_or_else(|| vec![0; SIZE].into()))
    }

    /// As much as `bytes`, for a long wait.
    pub(super) fn of(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.0.len() != SIZE {
            return;
        }
        // While a thread ends there may be no place left to keep it.
        let _ = FREE.try_with(|free| {
            let mut free = free.borrow_mut();
            if free.len() < KEPT {
                free.push(std::mem::take(&mut self.0));
            }
        });
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

#[cfg(test)]
mod tests {
    use super::{Buffer, FREE, KEPT, SIZE};

    #[test]
    fn a_few_are_kept() {
        let many: Vec<Buffer> = (0..KEPT + 2).map(|_| Buffer::take()).collect();
        drop((many, Buffer::of(b"few")));
        assert_eq!(FREE.with_borrow(Vec::len), KEPT);
        let buffer = Buffer::take();
        assert_eq!((buffer.len(), FREE.with_borrow(Vec::len)), (SIZE, KEPT - 1));
    }
}
