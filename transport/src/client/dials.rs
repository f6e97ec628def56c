//! New HTTP/1 connections to a peer; to a sidecar, a few at a time.
//!
//! A handshake costs as much as several requests. When a thousand requests come at once, a thousand handshakes would keep
//! both sidecars from answering any of them, though the first few connections could serve them all. So a request for which
//! there is no idle connection waits for its turn: to use one that another request gives back, or to make one. It does not
//! wait where that does not help: see [`LOOK`] and [`PATIENCE`]. To other peers a handshake costs little, and nobody waits.
//!
//! A connection that is being made is finished when its request has gone: clients that wait for less than a handshake takes
//! would never get one. Only of a few such ([`MOST_LEFT`]), or clients that come and go would dial without a bound.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::pending;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

/// Connections that are made at once, where few requests wait or they wait for a short time,
const AT_ONCE: usize = 8;
/// and where some have been waiting for two looks: then it is not connections that there are too few of.
const AT_ONCE_THEN: usize = 1;
/// How often those who wait are looked at. When from look to look to look no connection was given back and none was made,
/// they all make their own: the peer is far away, or its answers take long.
const LOOK: Duration = Duration::from_millis(50);
/// Nobody waits for longer.
const PATIENCE: Duration = Duration::from_secs(1);
/// With so many that are kept out, those are looked for that have gone.
const LOOK_AT: usize = 16;
/// Connections that are made on although their requests have gone.
const MOST_LEFT: usize = AT_ONCE;

/// The requests that wait for a connection `C` to one peer.
pub(super) struct Dials<C>(Rc<Inner<C>>);

struct Inner<C> {
    under_way: Cell<usize>,
    /// Those of them whose requests have gone.
    left: Cell<usize>,
    at_once: Cell<usize>,
    /// Who came first is first.
    waiting: RefCell<VecDeque<Waiting<C>>>,
    /// Those that may not make one, behind all others: there are as many connections as there may be.
    kept_out: RefCell<VecDeque<oneshot::Sender<C>>>,
    /// How many of these have not gone.
    there: Cell<usize>,
    /// Whether a connection was given back or made since the last look.
    progress: Cell<bool>,
    /// Whether there is a task that looks at those who wait.
    watched: Cell<bool>,
}

struct Waiting<C> {
    since: Instant,
    turn: oneshot::Sender<Turn<C>>,
}

/// What a request has waited for.
pub(super) enum Turn<C> {
    /// A connection that another request gave back.
    Reuse(C),
    Connect(Dial<C>),
}

/// The right to make one connection, until it is dropped.
pub(super) struct Dial<C> {
    dials: Rc<Inner<C>>,
    left: Cell<bool>,
}

impl<C: 'static> Dials<C> {
    /// To a peer sidecar (`mesh`), or another.
    pub(super) fn new(mesh: bool) -> Self {
        Self(Rc::new(Inner {
            under_way: Cell::new(0),
            left: Cell::new(0),
            at_once: Cell::new(if mesh { AT_ONCE } else { usize::MAX }),
            waiting: RefCell::default(),
            kept_out: RefCell::default(),
            there: Cell::new(0),
            progress: Cell::new(false),
            watched: Cell::new(false),
        }))
    }

    /// Waits for a connection, or for the right to make one.
    pub(super) async fn turn(&self) -> Turn<C> {
        if self.0.under_way.get() < self.0.at_once.get() {
            return Turn::Connect(Dial::new(&self.0));
        }
        let (turn, mine) = oneshot::channel();
        let since = Instant::now();
        self.0.waiting.borrow_mut().push_back(Waiting { since, turn });
        if !self.0.watched.replace(true) {
            tokio::task::spawn_local(Rc::clone(&self.0).watch());
        }
        // Who is forgotten, which does not happen, need not wait.
        mine.await.unwrap_or_else(|_| Turn::Connect(Dial::new(&self.0)))
    }

    /// Waits for a connection that another request gives back.
    pub(super) async fn given(&self) -> C {
        let (turn, mine) = oneshot::channel();
        let _there = self.0.keep_out(turn);
        match mine.await {
            Ok(connection) => connection,
            // Who is forgotten, which does not happen.
            Err(_) => pending().await,
        }
    }

    /// How many are kept, with those that have gone.
    #[cfg(test)]
    pub(super) fn kept_out_in_all(&self) -> usize {
        self.0.kept_out.borrow().len()
    }

    /// How many wait for one that is given back, and may not make one.
    pub(super) fn kept_out(&self) -> usize {
        self.0.there.get()
    }

    /// Hands a connection to the request that has waited longest.
    ///
    /// # Errors
    /// The connection: no request waits.
    pub(super) fn give(&self, connection: C) -> Result<(), C> {
        self.0.progress.set(true);
        if let Some(first) = self.0.first() {
            first.tell(Turn::Reuse(connection));
            return Ok(());
        }
        let mut kept_out = self.0.kept_out.borrow_mut();
        let mut mine = connection;
        while let Some(first) = kept_out.pop_front() {
            match first.send(mine) {
                Ok(()) => return Ok(()),
                Err(back) => mine = back,
            }
        }
        Err(mine)
    }
}

impl<C> Inner<C> {
    /// It counts as there until what is returned is dropped.
    fn keep_out(&self, turn: oneshot::Sender<C>) -> There<'_> {
        let mut kept_out = self.kept_out.borrow_mut();
        // Who has gone is not kept. Not at each: a queue is looked through when half of it has gone.
        if kept_out.len() >= 2 * self.there.get() + LOOK_AT {
            kept_out.retain(|first| !first.is_closed());
        }
        kept_out.push_back(turn);
        self.there.set(self.there.get() + 1);
        There(&self.there)
    }

    fn first(&self) -> Option<Waiting<C>> {
        let mut waiting = self.waiting.borrow_mut();
        while let Some(first) = waiting.pop_front() {
            if !first.turn.is_closed() {
                return Some(first);
            }
        }
        None
    }

    /// Lets as many dial as may.
    fn admit(self: &Rc<Self>) {
        while self.under_way.get() < self.at_once.get()
            && let Some(first) = self.first()
        {
            first.tell(Turn::Connect(Dial::new(self)));
        }
    }
}

impl<C: 'static> Inner<C> {
    /// Lets those who have waited in vain make their own connections, as long as anyone waits.
    async fn watch(self: Rc<Self>) {
        let (mut looks, mut still) = (0, 0);
        while !self.waiting.borrow().is_empty() {
            tokio::time::sleep(LOOK).await;
            looks += 1;
            // Two looks, because one may be late: then nobody had the processor.
            still = if self.progress.replace(false) { 0 } else { still + 1 };
            if looks == 2 {
                self.at_once.set(AT_ONCE_THEN);
            }
            let now = Instant::now();
            let in_vain = |w: &Waiting<C>| still >= 2 || now.saturating_duration_since(w.since) >= PATIENCE;
            while self.waiting.borrow().front().is_some_and(in_vain) {
                if let Some(first) = self.first() {
                    first.tell(Turn::Connect(Dial::new(&self)));
                }
            }
        }
        self.at_once.set(AT_ONCE);
        self.watched.set(false);
    }
}

/// One that is kept out.
struct There<'a>(&'a Cell<usize>);

impl Drop for There<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl<C> Waiting<C> {
    /// To the first that has not gone; it does not go meanwhile, for there is no other thread.
    fn tell(self, turn: Turn<C>) {
        let _ = self.turn.send(turn);
    }
}

impl<C> Dial<C> {
    fn new(dials: &Rc<Inner<C>>) -> Self {
        dials.under_way.set(dials.under_way.get() + 1);
        Self {
            dials: Rc::clone(dials),
            left: Cell::new(false),
        }
    }

    /// Returns when the connection is not to be made any more: its request has gone, as `gone` says, and so have those of others.
    pub(super) async fn given_up(&self, gone: impl Future<Output = ()>) {
        gone.await;
        let left = self.dials.left.get();
        if left < MOST_LEFT {
            self.dials.left.set(left + 1);
            self.left.set(true);
            pending::<()>().await;
        }
    }
}

impl<C> Drop for Dial<C> {
    fn drop(&mut self) {
        let dials = &self.dials;
        dials.under_way.set(dials.under_way.get() - 1);
        dials.left.set(dials.left.get() - usize::from(self.left.get()));
        dials.progress.set(true);
        dials.admit();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{AT_ONCE, Dial, Dials, LOOK, PATIENCE, Turn};
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};
    use std::time::Duration;
    use tokio::time::{Instant, sleep};

    /// On paused time, with tasks of one thread.
    fn run(test: impl Future<Output = ()> + 'static) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build_local(tokio::runtime::LocalOptions::default());
        runtime.unwrap().block_on(test);
    }

    fn now<F: Future>(future: F) -> Option<F::Output> {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }

    /// All the dials that may be made at once, so that who comes next waits.
    fn busy(dials: &Dials<u32>) -> Vec<Dial<u32>> {
        let right = |_| match now(dials.turn()) {
            Some(Turn::Connect(dial)) => dial,
            _ => panic!("it has to wait"),
        };
        (0..AT_ONCE).map(right).collect()
    }

    /// What `n` requests got in the order in which they came, and after what time.
    fn waiters(dials: &std::rc::Rc<Dials<u32>>, n: usize) -> Vec<tokio::task::JoinHandle<(Option<u32>, Duration)>> {
        let wait = |_| {
            let (dials, began) = (std::rc::Rc::clone(dials), Instant::now());
            tokio::task::spawn_local(async move {
                let turn = dials.turn().await;
                // The dial is dropped here: it has been made.
                let got = match turn {
                    Turn::Reuse(connection) => Some(connection),
                    Turn::Connect(_dial) => None,
                };
                (got, began.elapsed())
            })
        };
        (0..n).map(wait).collect()
    }

    #[test]
    fn what_is_given_back_goes_to_who_came_first() {
        run(async {
            let dials = std::rc::Rc::new(Dials::new(true));
            assert_eq!(dials.give(1), Err(1), "nobody waits");
            let _busy = busy(&dials);
            let mut waiters = waiters(&dials, 3).into_iter();
            tokio::task::yield_now().await;
            let (first, second, third) = (
                waiters.next().unwrap(),
                waiters.next().unwrap(),
                waiters.next().unwrap(),
            );
            first.abort();
            assert!(first.await.is_err());
            dials.give(2).unwrap();
            dials.give(3).unwrap();
            assert_eq!(second.await.unwrap().0, Some(2));
            assert_eq!(third.await.unwrap().0, Some(3));
            assert_eq!(dials.give(4), Err(4));
        });
    }

    #[test]
    fn a_dial_that_ends_lets_the_next_begin() {
        run(async {
            let dials = std::rc::Rc::new(Dials::new(true));
            let mut busy = busy(&dials);
            let waiters = waiters(&dials, 10);
            tokio::task::yield_now().await;
            assert!(waiters.iter().all(|w| !w.is_finished()));
            busy.pop();
            // Each of them makes its own at once, so the first's place goes from one to the next.
            for waiter in waiters {
                assert_eq!(waiter.await.unwrap(), (None, Duration::ZERO));
            }
        });
    }

    #[test]
    fn who_waits_for_long_makes_no_more_than_one_at_a_time() {
        run(async {
            let dials = std::rc::Rc::new(Dials::new(true));
            let mut busy = busy(&dials);
            let waiters = waiters(&dials, 10);
            for _ in 0..3 {
                sleep(LOOK).await;
                assert_eq!(dials.give(1), Ok(()), "the first have a connection");
            }
            busy.truncate(1);
            sleep(LOOK / 2).await;
            assert_eq!(
                waiters.iter().filter(|w| w.is_finished()).count(),
                3,
                "one is under way"
            );
            drop(busy);
            sleep(LOOK / 2).await;
            assert!(waiters.iter().all(|w| w.is_finished()), "one after the other");
            // Nobody waits: as many as before.
            sleep(LOOK).await;
            self::busy(&dials);
        });
    }

    #[test]
    fn where_nothing_moves_all_make_their_own() {
        run(async {
            let dials = std::rc::Rc::new(Dials::new(true));
            let _busy = busy(&dials);
            for waiter in waiters(&dials, 50) {
                let (got, after) = waiter.await.unwrap();
                assert!(
                    got.is_none() && after >= 2 * LOOK && after <= 3 * LOOK,
                    "{got:?} after {after:?}"
                );
            }
        });
    }

    #[test]
    fn nobody_waits_for_longer_than_the_patience() {
        run(async {
            let dials = std::rc::Rc::new(Dials::new(true));
            let _busy = busy(&dials);
            let waiters = waiters(&dials, 100);
            // Connections come back, but too few of them for so many.
            for connection in 0..50 {
                sleep(Duration::from_millis(40)).await;
                let _ = dials.give(connection);
            }
            let mut reused = 0;
            for waiter in waiters {
                let (got, after) = waiter.await.unwrap();
                reused += usize::from(got.is_some());
                assert!(after <= PATIENCE + LOOK, "{after:?}");
            }
            assert!((20..30).contains(&reused), "{reused}");
        });
    }
}
