//! Places for connections.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::book::{Book, Decision, Id, Limits, State};

/// Where a server's connections come in.
#[derive(Debug)]
pub struct Gate {
    inner: Mutex<Inner>,
    /// Somebody left, or may be closed now.
    room: Notify,
}

#[derive(Debug)]
struct Inner {
    book: Book,
    /// Cancelled where a connection is closed for another.
    closers: HashMap<Id, CancellationToken>,
    /// How many were closed for others.
    displaced: u64,
}

impl Gate {
    /// A gate with no connections.
    pub fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::new(Inner {
                book: Book::new(limits),
                closers: HashMap::new(),
                displaced: 0,
            }),
            room: Notify::new(),
        })
    }

    /// A place for a connection that was accepted. While it waits, nobody else should be accepted: they wait in the
    /// listener's backlog. Only one task may call it at a time.
    pub async fn enter(self: &Arc<Self>, address: IpAddr) -> Place {
        let address = address.to_canonical();
        loop {
            let now = Instant::now();
            let decision = {
                let mut inner = self.inner.lock();
                match inner.book.decide(address, now) {
                    Decision::Admit => return self.place(&mut inner, address, now),
                    Decision::Close(id) => {
                        inner.close(id);
                        continue;
                    }
                    wait @ Decision::Wait(_) => wait,
                }
            };
            match decision {
                Decision::Wait(Some(until)) => drop(timeout_at(until, self.room.notified()).await),
                _ => self.room.notified().await,
            }
        }
    }

    /// How many connections were closed to make room for others.
    pub fn displaced(&self) -> u64 {
        self.inner.lock().displaced
    }

    /// How many connections there are.
    pub fn connections(&self) -> usize {
        self.inner.lock().book.len()
    }

    fn place(self: &Arc<Self>, inner: &mut Inner, address: IpAddr, now: Instant) -> Place {
        let id = inner.book.enter(address, now);
        let closed = CancellationToken::new();
        inner.closers.insert(id, closed.clone());
        Place {
            gate: Arc::clone(self),
            id,
            closed,
        }
    }
}

impl Inner {
    fn close(&mut self, id: Id) {
        self.book.leave(id);
        self.displaced += 1;
        if let Some(closer) = self.closers.remove(&id) {
            closer.cancel();
        }
    }
}

/// A connection's place, which it leaves when this is dropped.
#[derive(Debug)]
pub struct Place {
    gate: Arc<Gate>,
    id: Id,
    closed: CancellationToken,
}

impl Place {
    /// Says how far the connection is.
    pub fn set(&self, state: State) {
        self.gate.inner.lock().book.set(self.id, state, Instant::now());
        if state != State::Busy {
            self.gate.room.notify_one();
        }
    }

    /// Ends when the connection must be closed for another.
    pub fn closed(&self) -> WaitForCancellationFutureOwned {
        self.closed.clone().cancelled_owned()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inner = self.gate.inner.lock();
        inner.book.leave(self.id);
        inner.closers.remove(&self.id);
        drop(inner);
        self.gate.room.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const LIMITS: Limits = Limits {
        incomplete: 2,
        total: 3,
        grace: Duration::from_secs(1),
    };

    fn ip(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_is_closed_for_a_new_one() {
        let gate = Gate::new(LIMITS);
        let first = gate.enter(ip(1)).await;
        let second = gate.enter(ip(1)).await;
        let third = gate.enter(ip(2)).await;
        first.closed().await;
        assert_eq!((gate.connections(), gate.displaced()), (2, 1));
        // Its place was taken from it before: its end frees none.
        drop(first);
        assert_eq!(gate.connections(), 2);
        drop((second, third));
        assert_eq!(gate.connections(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_address_in_both_notations_is_one() {
        let gate = Gate::new(LIMITS);
        let first = gate.enter(ip(1)).await;
        let _second = gate.enter("::ffff:10.0.0.1".parse().unwrap()).await;
        let start = Instant::now();
        let _third = gate.enter(ip(1)).await;
        first.closed().await;
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn where_all_have_one_the_new_one_waits_for_the_grace_or_for_an_end() {
        let gate = Gate::new(LIMITS);
        let first = gate.enter(ip(1)).await;
        let second = gate.enter(ip(2)).await;
        let start = Instant::now();
        let _third = gate.enter(ip(3)).await;
        assert_eq!(start.elapsed(), LIMITS.grace);
        first.closed().await;
        let start = Instant::now();
        let (_fourth, ()) = tokio::join!(gate.enter(ip(4)), async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            second.set(State::Busy);
            drop(second);
        });
        assert!(start.elapsed() < LIMITS.grace);
    }

    #[tokio::test(start_paused = true)]
    async fn where_all_work_the_new_one_waits_for_an_end() {
        let gate = Gate::new(LIMITS);
        let mut places = Vec::new();
        for _ in 0..LIMITS.total {
            let place = gate.enter(ip(1)).await;
            place.set(State::Busy);
            places.push(place);
        }
        let start = Instant::now();
        let (_new, ()) = tokio::join!(gate.enter(ip(2)), async {
            tokio::time::sleep(Duration::from_secs(60)).await;
            places.pop();
        });
        assert_eq!(start.elapsed(), Duration::from_secs(60));
    }
}
