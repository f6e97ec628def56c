//! How many connections a worker holds, whoever makes them, and which one is closed where there is no room for another.
//!
//! Any pod may open connections to a sidecar, and each takes memory before anything is known of its client. So there is a
//! budget, from the limit of the container's memory ([`Budget`]). Where it is used up, an idle connection is closed for a
//! new one: the oldest of the address that has most of them. Where none is idle, new connections wait in the kernel's queue.
//! One address never takes all of the budget, so what others need is there when they come ([`book`]).
//!
//! Each worker has a share of its own, so that no connection and no request takes a lock that another worker takes.

mod accept;
mod book;
mod heads;

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use book::{Book, Decision};

pub use accept::Arrivals;
pub use heads::{Heads, Held};

/// Memory that a connection is counted with. An idle one takes 11 to 26 KiB (docs/compatibility.md), and one in its
/// handshake as much, since that is bounded too.
const CONNECTION: u64 = 32 * 1024;
/// Where the container has no limit, the budget is that of one with this.
const UNLIMITED: u64 = 2 << 30;
/// At least so many connections, however small the limit is.
const FEWEST: usize = 64;
/// At least so many bytes of unfinished heads, and of requests that wait.
const FEWEST_BYTES: usize = 1 << 20;
/// Where every address has only one idle connection, none is closed before it has had this long: in a storm of honest clients
/// each of them needs a moment for its first request.
const GRACE: Duration = Duration::from_secs(1);

/// What a process may hold for its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Connections that were accepted, at least 1.
    pub connections: usize,
    /// Bytes of HTTP/1 heads of which the end is not here.
    pub head_bytes: usize,
    /// Bytes of memory of requests that wait for their answers.
    pub request_bytes: usize,
}

impl Budget {
    /// The budget in a container with so many bytes of memory; `None` where there is no limit. Half of it is for connections
    /// that are idle, a quarter for requests that wait for their answers, and an eighth for unfinished heads: the rest is for the process itself and
    /// for what is in flight.
    pub fn of(memory_limit: Option<u64>) -> Self {
        let memory = memory_limit.unwrap_or(UNLIMITED);
        let size = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        Self {
            connections: size(memory / 2 / CONNECTION).max(FEWEST),
            head_bytes: size(memory / 8).max(FEWEST_BYTES),
            request_bytes: size(memory / 4).max(FEWEST_BYTES),
        }
    }

    /// What one of several workers may hold.
    #[must_use]
    pub fn share(self, workers: usize) -> Self {
        Self {
            connections: (self.connections / workers.max(1)).max(1),
            head_bytes: self.head_bytes / workers.max(1),
            request_bytes: self.request_bytes / workers.max(1),
        }
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self::of(None)
    }
}

/// Hears which connections had to go because there is no room.
pub trait Observer {
    /// An idle connection was closed to make room for another.
    fn connection_shed(&self);

    /// A connection was reset before anything of it was read, because its address has too many.
    fn connection_crowded_out(&self);
}

/// The connections of one worker.
pub struct Room {
    book: RefCell<Book>,
    /// Counts on: orders what happens to connections.
    clock: Cell<u64>,
    /// Somebody waits for a place, or for one more.
    waited_for: Cell<bool>,
    changed: Notify,
    observer: Arc<dyn Observer>,
}

/// A connection's place. It leaves when this is dropped.
pub struct Seat {
    room: Rc<Room>,
    place: Rc<Place>,
}

/// Something that the connection carries: it is not closed for another one. Dropped at its end.
pub struct Busy {
    room: Rc<Room>,
    place: Rc<Place>,
}

/// What the book knows of a connection.
struct Place {
    id: u64,
    address: Rc<Address>,
    entered: Instant,
    /// Requests and tunnels that it carries.
    busy: Cell<u32>,
    /// When it had something to do last, by the room's clock.
    since: Cell<u64>,
    closed: Cell<bool>,
    waker: RefCell<Option<Waker>>,
    /// Bytes of an unfinished head that it may hold, where that is less than for others.
    most_held: Cell<usize>,
}

/// What the connections of one address are counted in.
struct Address {
    ip: IpAddr,
    connections: Cell<usize>,
    /// Those that carry something.
    busy: Cell<usize>,
    heads: Heads,
    requests: Heads,
}

impl Room {
    /// Nobody is there yet.
    pub fn new(budget: Budget, observer: Arc<dyn Observer>) -> Rc<Self> {
        Rc::new(Self {
            book: RefCell::new(Book::new(budget)),
            clock: Cell::new(0),
            waited_for: Cell::new(false),
            changed: Notify::new(),
            observer,
        })
    }

    /// With places for all.
    #[cfg(test)]
    pub(crate) fn for_test() -> Rc<Self> {
        Self::new(Budget::default(), Arc::new(()))
    }

    /// A place for a connection from the address, if there is one. Another connection may be closed for it.
    pub fn enter(self: &Rc<Self>, address: IpAddr) -> Option<Seat> {
        let (address, now) = (address.to_canonical(), Instant::now());
        let decision = self.book.borrow_mut().decide(address, self.clock.get(), now);
        match decision {
            Decision::Admit => {}
            Decision::Close(place) => self.close(&place),
            Decision::Wait => return None,
        }
        Some(self.seat(address, now))
    }

    /// A place for a connection that the pod makes to itself in memory: it is counted, and waits for nobody, since whoever made
    /// it has a place already.
    pub fn enter_own(self: &Rc<Self>, address: IpAddr) -> Seat {
        self.seat(address.to_canonical(), Instant::now())
    }

    /// Connections that have a place.
    pub fn connections(&self) -> usize {
        self.book.borrow().len()
    }

    /// Bytes of unfinished heads.
    pub fn head_bytes(&self) -> usize {
        self.book.borrow().head_bytes()
    }

    fn seat(self: &Rc<Self>, address: IpAddr, now: Instant) -> Seat {
        let place = self.book.borrow_mut().enter(address, self.tick(), now);
        Seat {
            room: Rc::clone(self),
            place,
        }
    }

    /// Whether a connection of some address would get a place.
    fn has_place(&self) -> bool {
        self.book.borrow_mut().has_place(self.clock.get(), Instant::now())
    }

    fn close(&self, place: &Place) {
        self.observer.connection_shed();
        place.closed.set(true);
        self.leave(place);
        // Taken out first: a waker may run code that comes back here.
        let waker = place.waker.borrow_mut().take();
        waker.into_iter().for_each(Waker::wake);
    }

    fn leave(&self, place: &Place) {
        self.book.borrow_mut().leave(place);
        self.tell();
    }

    /// Whoever waits for a place looks again.
    fn tell(&self) {
        if self.waited_for.replace(false) {
            self.changed.notify_waiters();
        }
    }

    fn tick(&self) -> u64 {
        let now = self.clock.get() + 1;
        self.clock.set(now);
        now
    }
}

impl Seat {
    /// Until this is dropped, the connection is not closed for another.
    pub fn busy(&self) -> Busy {
        let busy = self.place.busy.get();
        self.place.busy.set(busy + 1);
        if busy == 0 {
            let of_address = &self.place.address.busy;
            of_address.set(of_address.get() + 1);
        }
        Busy {
            room: Rc::clone(&self.room),
            place: Rc::clone(&self.place),
        }
    }

    /// Whether the connection carries something.
    pub fn is_busy(&self) -> bool {
        self.place.busy.get() > 0
    }

    /// Whether the connection has to end, because its place went to another.
    pub fn is_closed(&self) -> bool {
        self.place.closed.get()
    }

    /// Waits until the connection has to end.
    pub async fn closed(&self) {
        std::future::poll_fn(|cx| self.poll_closed(cx)).await;
    }

    fn poll_closed(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_closed() {
            return Poll::Ready(());
        }
        let mut waker = self.place.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// What its unfinished heads are counted in.
    pub fn heads(&self) -> Heads {
        self.place.address.heads.clone()
    }

    /// What its requests that wait for their answers are counted in.
    pub fn requests(&self) -> Heads {
        self.place.address.requests.clone()
    }

    /// Its requests will be refused, so no more than this is held of a head.
    pub fn hold_at_most(&self, bytes: usize) {
        self.place.most_held.set(bytes);
    }

    /// Bytes that are held at most of a head; `None`: what the budget allows.
    pub fn most_held(&self) -> Option<usize> {
        let most = self.place.most_held.get();
        (most < usize::MAX).then_some(most)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if !self.place.closed.get() {
            self.room.leave(&self.place);
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let busy = self.place.busy.get() - 1;
        self.place.busy.set(busy);
        if busy == 0 {
            let of_address = &self.place.address.busy;
            of_address.set(of_address.get() - 1);
            self.place.since.set(self.room.tick());
            self.room.tell();
        }
    }
}

#[cfg(test)]
impl Observer for () {
    fn connection_shed(&self) {}

    fn connection_crowded_out(&self) {}
}

#[cfg(test)]
mod tests;
