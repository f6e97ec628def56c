//! What the heads of requests take that wait for their answers on HTTP/2 connections: a client may have a thousand of them on
//! each, and needs few bytes for a large one (HPACK's tables).
//!
//! A connection has [`OWN`] for itself. More comes out of [`SHARED`], which all connections of the process have together, up to
//! [`MOST`]. So no client takes all of the memory, and a few that take what is shared leave each other their own.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::{HeaderMap, Uri};

/// Bytes of memory that each connection has for itself. The largest head that is passed on needs no more.
pub(super) const OWN: usize = 256 * 1024;
/// Bytes of memory of one connection: a thousand heads of 8 KiB.
pub(super) const MOST: usize = 8 * 1024 * 1024;
/// Bytes of memory of all connections of this process, beyond what each has for itself.
pub(super) const SHARED: usize = 32 * 1024 * 1024;

/// Of a field beside its name and value: its places in a `HeaderMap`, which grows by doubling.
const FIELD: usize = 128;

/// Of [`SHARED`].
static TAKEN: AtomicUsize = AtomicUsize::new(0);

/// The heads that wait on one connection.
pub(super) struct Waiting {
    held: Cell<usize>,
    taken: &'static AtomicUsize,
}

/// What one head takes, until it is dropped.
pub(super) struct Share {
    waiting: Rc<Waiting>,
    size: usize,
}

impl Waiting {
    /// Of a new connection.
    pub(super) fn new() -> Rc<Self> {
        Self::out_of(&TAKEN)
    }

    fn out_of(taken: &'static AtomicUsize) -> Rc<Self> {
        let held = Cell::new(0);
        Rc::new(Self { held, taken })
    }

    /// The share of a request's head. `None`: there is none left.
    pub(super) fn share_for(self: &Rc<Self>, uri: &Uri, headers: &HeaderMap) -> Option<Share> {
        let path = uri.path_and_query().map_or(0, |path| path.as_str().len());
        let fields: usize = headers
            .iter()
            .map(|(name, value)| name.as_str().len() + value.len() + FIELD)
            .sum();
        self.share(path + fields)
    }

    fn share(self: &Rc<Self>, size: usize) -> Option<Share> {
        let held = self.held.get() + size;
        let shared = beyond_own(held) - beyond_own(self.held.get());
        if held > MOST {
            return None;
        }
        if shared > 0 && self.taken.fetch_add(shared, Ordering::Relaxed) + shared > SHARED {
            self.taken.fetch_sub(shared, Ordering::Relaxed);
            return None;
        }
        self.held.set(held);
        let waiting = Rc::clone(self);
        Some(Share { waiting, size })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let before = self.waiting.held.get();
        let held = before - self.size;
        let shared = beyond_own(before) - beyond_own(held);
        if shared > 0 {
            self.waiting.taken.fetch_sub(shared, Ordering::Relaxed);
        }
        self.waiting.held.set(held);
    }
}

fn beyond_own(held: usize) -> usize {
    held.saturating_sub(OWN)
}

#[cfg(test)]
mod tests {
    use super::{MOST, OWN, SHARED, Share, Waiting};
    use crate::limits::MAX_HEADER_BYTES;
    use crate::server::check;
    use http::{HeaderName, HeaderValue, Request};
    use std::rc::Rc;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    fn as_many(of: &Rc<Waiting>, size: usize) -> Vec<Share> {
        std::iter::from_fn(|| of.share(size)).collect()
    }

    #[test]
    fn a_connection_has_its_own_and_a_part_of_what_is_shared() {
        static TAKEN: AtomicUsize = AtomicUsize::new(0);
        const HEAD: usize = 64 * 1024;
        let greedy: Vec<_> = (0..5).map(|_| Waiting::out_of(&TAKEN)).collect();
        let shares: Vec<_> = greedy.iter().map(|one| as_many(one, HEAD)).collect();
        assert_eq!(shares[0].len(), MOST / HEAD);
        assert_eq!(shares.iter().flatten().count(), (SHARED + 5 * OWN) / HEAD);
        // Others have their own.
        let modest = Waiting::out_of(&TAKEN);
        assert_eq!(as_many(&modest, HEAD).len(), OWN / HEAD);
        // In whatever order they end.
        for shares in shares {
            let (first, second): (Vec<_>, Vec<_>) = shares.into_iter().enumerate().partition(|(n, _)| n % 3 == 0);
            drop((first, second));
        }
        assert_eq!(TAKEN.load(Relaxed), 0);
        assert!(greedy.iter().all(|one| one.held.get() == 0));
    }

    #[test]
    fn the_largest_head_fits_into_what_a_connection_has_for_itself() {
        // A name of one letter, and nothing in it.
        let mut request = Request::new(());
        for _ in 0..MAX_HEADER_BYTES / 33 {
            let name = HeaderName::from_static("x");
            request.headers_mut().append(name, HeaderValue::from_static(""));
        }
        let (head, ()) = request.into_parts();
        assert!(check(&head).is_ok());
        assert!(
            Waiting::new()
                .share_for(&head.uri, &head.headers)
                .is_some_and(|share| share.size <= OWN)
        );
    }
}
