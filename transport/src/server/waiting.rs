//! What requests take that wait for their answers. To have one wait costs its client nothing: a body that it does not send is enough.
//!
//! Each is counted with what it takes ([`of_http1`], [`of_http2`]), in what the connections of its address may have of a quarter of the memory
//! ([`Heads`]): an address alone three quarters of that, and less while others have something.
//!
//! Of HTTP/2 a client may have a thousand of them on each connection, and needs few bytes for a large one (HPACK's tables). So the heads are
//! bounded by themselves as well: a connection has [`OWN`] for itself, and more comes out of [`SHARED`], which all connections of the process have
//! together, up to [`MOST`].

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::{HeaderMap, Uri};

use crate::room::{Heads, Held};

/// Bytes of memory that each connection has for itself. The largest head that is passed on needs no more.
pub(super) const OWN: usize = 256 * 1024;
/// Bytes of memory of one connection: a thousand heads of 8 KiB.
pub(super) const MOST: usize = 8 * 1024 * 1024;
/// Bytes of memory of all connections of this process, beyond what each has for itself.
pub(super) const SHARED: usize = 32 * 1024 * 1024;

/// Of a field beside its name and value: its places in a `HeaderMap`, which grows by doubling.
const FIELD: usize = 128;

/// What an HTTP/1 request takes with the connection to the server, beside its head, and what an HTTP/2 connection takes with its own to the app. By
/// measurement, as what follows.
const CONNECTION: usize = 16 * 1024;
/// What an HTTP/2 stream takes on both sides.
const STREAM: usize = 10 * 1024;
/// How often the bytes of a head are held: as they were read, as they were written, and for another attempt. Buffers grow by doubling.
const COPIES: usize = 3;

/// Of [`SHARED`].
static TAKEN: AtomicUsize = AtomicUsize::new(0);

/// The heads that wait on one connection.
pub(super) struct Waiting {
    held: Cell<usize>,
    taken: &'static AtomicUsize,
    /// The same with all that its requests take, in what its address may have.
    all: Cell<usize>,
    counted: RefCell<Held>,
}

/// What one head takes, until it is dropped.
pub(super) struct Share {
    waiting: Rc<Waiting>,
    size: usize,
}

impl Waiting {
    /// Of a new connection.
    pub(super) fn new(requests: Heads) -> Rc<Self> {
        Self::out_of(&TAKEN, requests)
    }

    fn out_of(taken: &'static AtomicUsize, requests: Heads) -> Rc<Self> {
        Rc::new(Self {
            held: Cell::new(0),
            taken,
            all: Cell::new(0),
            counted: RefCell::new(Held::new(requests)),
        })
    }

    /// The share of a request's head. `None`: there is none left.
    pub(super) fn share_for(self: &Rc<Self>, uri: &Uri, headers: &HeaderMap) -> Option<Share> {
        self.share(size(uri, headers))
    }

    /// Counts what all of them take now. False: there is no room for more.
    fn count(&self, all: usize) -> bool {
        // The connection to the app is there as long as one waits.
        let connection = if all > 0 { CONNECTION } else { 0 };
        let is_counted = self.counted.borrow_mut().set(all + connection);
        if is_counted {
            self.all.set(all);
        }
        is_counted
    }

    fn share(self: &Rc<Self>, size: usize) -> Option<Share> {
        let held = self.held.get() + size;
        let shared = beyond_own(held) - beyond_own(self.held.get());
        if held > MOST || !self.count(self.all.get() + of_http2(size)) {
            return None;
        }
        if shared > 0 && self.taken.fetch_add(shared, Ordering::Relaxed) + shared > SHARED {
            self.taken.fetch_sub(shared, Ordering::Relaxed);
            self.count(self.all.get() - of_http2(size));
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
        self.waiting.count(self.waiting.all.get() - of_http2(self.size));
    }
}

/// Bytes of a head, in memory.
fn size(uri: &Uri, headers: &HeaderMap) -> usize {
    let path = uri.path_and_query().map_or(0, |path| path.as_str().len());
    let fields = headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + FIELD);
    path + fields.sum::<usize>()
}

/// What a request of HTTP/1 takes while it waits.
pub(super) fn of_http1(uri: &Uri, headers: &HeaderMap) -> usize {
    CONNECTION + COPIES * size(uri, headers)
}

/// What one of HTTP/2 takes, whose head has so many bytes, beside its connection.
fn of_http2(size: usize) -> usize {
    STREAM + COPIES * size
}

fn beyond_own(held: usize) -> usize {
    held.saturating_sub(OWN)
}

#[cfg(test)]
mod tests {
    use super::{CONNECTION, MOST, OWN, SHARED, Share, Waiting, of_http2};
    use crate::limits::MAX_HEADER_BYTES;
    use crate::room::Heads;
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
        let greedy: Vec<_> = (0..5)
            .map(|_| Waiting::out_of(&TAKEN, Heads::for_test(usize::MAX / 8)))
            .collect();
        let shares: Vec<_> = greedy.iter().map(|one| as_many(one, HEAD)).collect();
        assert_eq!(shares[0].len(), MOST / HEAD);
        assert_eq!(shares.iter().flatten().count(), (SHARED + 5 * OWN) / HEAD);
        // Others have their own.
        let modest = Waiting::out_of(&TAKEN, Heads::for_test(usize::MAX / 8));
        assert_eq!(as_many(&modest, HEAD).len(), OWN / HEAD);
        // In whatever order they end.
        for shares in shares {
            let (first, second): (Vec<_>, Vec<_>) = shares.into_iter().enumerate().partition(|(n, _)| n % 3 == 0);
            drop((first, second));
        }
        assert_eq!(TAKEN.load(Relaxed), 0);
        assert!(greedy.iter().all(|one| one.held.get() == 0));
    }

    /// Whatever is said of heads alone: so many wait as there is memory for, and those of others as well.
    #[test]
    fn requests_are_counted_with_all_that_they_take() {
        static TAKEN: AtomicUsize = AtomicUsize::new(0);
        const ROOM: usize = 4 << 20;
        let requests = Heads::for_test(ROOM);
        let connections: Vec<_> = (0..400).map(|_| Waiting::out_of(&TAKEN, requests.clone())).collect();
        let shares: Vec<_> = connections.iter().filter_map(|one| one.share(500)).collect();
        let each = CONNECTION + of_http2(500);
        assert_eq!(shares.len(), ROOM * 3 / 4 / each);
        // Another address has some of what is left.
        let other = Waiting::out_of(&TAKEN, requests.of_another());
        assert!(!as_many(&other, 500).is_empty());
        drop(shares);
        let one = as_many(&connections[0], 500);
        assert_eq!(one.len(), (ROOM * 3 / 4 - CONNECTION) / of_http2(500));
        drop(one);
        assert!(connections.iter().all(|one| one.all.get() == 0));
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
            Waiting::new(Heads::for_test(64 << 20))
                .share_for(&head.uri, &head.headers)
                .is_some_and(|share| share.size <= OWN)
        );
    }
}
