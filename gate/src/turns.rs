//! Turns for work whose input is complete.

use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

use crate::queue::{Arrival, Queue, Room};

/// Shares a bounded number of turns among callers; those who wait are bounded too.
pub struct Turns<K: Clone + Eq + Hash> {
    shared: Arc<Shared<K>>,
}

struct Shared<K: Clone + Eq + Hash> {
    state: Mutex<State<K>>,
    /// How many wait.
    waiting: watch::Sender<usize>,
}

struct State<K: Clone + Eq + Hash> {
    queue: Queue<K, oneshot::Sender<Turn<K>>>,
    /// Turns whose holders know that they are waited for.
    leaving: usize,
}

/// The right to work, until it is dropped.
pub struct Turn<K: Clone + Eq + Hash> {
    shared: Arc<Shared<K>>,
    leaving: bool,
}

/// Too many wait already, and this caller has most of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crowded;

impl<K: Clone + Eq + Hash> Turns<K> {
    /// All turns are free.
    pub fn new(room: Room) -> Self {
        let state = Mutex::new(State {
            queue: Queue::new(room),
            leaving: 0,
        });
        let waiting = watch::Sender::new(0);
        Self {
            shared: Arc::new(Shared { state, waiting }),
        }
    }

    /// Waits for the caller's turn.
    ///
    /// # Errors
    /// When the caller is sent away: at once, or later for another one that has less.
    pub async fn turn(&self, caller: K) -> Result<Turn<K>, Crowded> {
        let (sender, receiver) = oneshot::channel();
        let arrival = self.shared.change(|state| state.queue.arrive(caller, sender));
        match arrival {
            Arrival::Begins(_) => return Ok(Turn::new(&self.shared)),
            Arrival::SentAway(_) => return Err(Crowded),
            // Its receiver learns it from the drop, which must not wait for the turn below.
            Arrival::WaitsInsteadOf(other) => drop(other),
            Arrival::Waits => {}
        }
        receiver.await.map_err(|_| Crowded)
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.shared.state.lock().queue.waiting()
    }
}

impl<K: Clone + Eq + Hash> Shared<K> {
    fn change<T>(&self, change: impl FnOnce(&mut State<K>) -> T) -> T {
        let mut state = self.state.lock();
        let result = change(&mut state);
        self.waiting.send_replace(state.queue.waiting());
        result
    }

    /// Whether one more is to leave.
    fn leave(&self) -> bool {
        let mut state = self.state.lock();
        let more = state.queue.waiting() > state.leaving;
        state.leaving += usize::from(more);
        more
    }
}

impl<K: Clone + Eq + Hash> Turn<K> {
    fn new(shared: &Arc<Shared<K>>) -> Self {
        Self {
            shared: Arc::clone(shared),
            leaving: false,
        }
    }

    /// Is done when somebody waits for whom no other holder has been asked to leave: who hears it should drop the turn. Holders
    /// that do not listen keep theirs.
    pub async fn wanted(&mut self) {
        let mut waiting = self.shared.waiting.subscribe();
        while !self.leaving {
            // The sender is among what this turn holds.
            let _ = waiting.wait_for(|waiting| *waiting > 0).await;
            self.leaving = self.shared.leave();
            if !self.leaving {
                let _ = waiting.changed().await;
            }
        }
    }
}

impl<K: Clone + Eq + Hash> Drop for Turn<K> {
    fn drop(&mut self) {
        loop {
            let leaving = std::mem::take(&mut self.leaving);
            let next = self.shared.change(|state| {
                state.leaving -= usize::from(leaving);
                state.queue.done()
            });
            let Some(next) = next else { return };
            if next.is_closed() {
                // Whoever waited has gone away: the turn passes on to the next.
                continue;
            }
            // If the receiver goes away right now, the turn comes back here, is dropped, and so passes on.
            drop(next.send(Turn::new(&self.shared)));
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_turn_passes_on_and_skips_who_has_gone_away() {
        let turns = Turns::new(Room { working: 1, waiting: 8 });
        let first = turns.turn(1).await.ok().unwrap();
        let mut gone = Box::pin(turns.turn(2));
        let mut stays = Box::pin(turns.turn(3));
        assert!(futures_poll(&mut gone).is_none() && futures_poll(&mut stays).is_none());
        drop(gone);
        drop(first);
        let second = futures_poll(&mut stays).unwrap().ok().unwrap();
        assert_eq!(turns.waiting(), 0);
        drop(second);
        assert!(turns.turn(4).await.is_ok());
    }

    #[tokio::test]
    async fn who_has_most_is_sent_away_while_it_waits() {
        let turns = Turns::new(Room { working: 1, waiting: 2 });
        let first = turns.turn('a').await.ok().unwrap();
        let mut waiting = [Box::pin(turns.turn('a')), Box::pin(turns.turn('a'))];
        assert!(waiting.iter_mut().all(|w| futures_poll(w).is_none()));
        assert_eq!(turns.turn('a').await.err(), Some(Crowded));
        let mut other = Box::pin(turns.turn('b'));
        assert!(futures_poll(&mut other).is_none());
        assert_eq!(futures_poll(&mut waiting[1]).unwrap().err(), Some(Crowded));
        drop(first);
        drop(futures_poll(&mut waiting[0]).unwrap().ok().unwrap());
        assert!(futures_poll(&mut other).unwrap().is_ok());
    }

    #[tokio::test]
    async fn a_turn_that_was_given_and_not_taken_is_not_lost() {
        let turns = Turns::new(Room { working: 1, waiting: 2 });
        let first = turns.turn(1).await.ok().unwrap();
        let mut given = Box::pin(turns.turn(2));
        assert!(futures_poll(&mut given).is_none());
        drop(first);
        drop(given);
        assert!(futures_poll(&mut Box::pin(turns.turn(3))).unwrap().is_ok());
    }

    #[tokio::test]
    async fn as_many_are_asked_to_leave_as_wait() {
        let turns = Turns::new(Room { working: 3, waiting: 8 });
        let mut holders = Vec::new();
        for n in 0..3 {
            holders.push(turns.turn(n).await.ok().unwrap());
        }
        let [first, second, third] = &mut holders[..] else {
            panic!()
        };
        let mut wanted = [
            Box::pin(first.wanted()),
            Box::pin(second.wanted()),
            Box::pin(third.wanted()),
        ];
        let mut asked = || wanted.iter_mut().filter_map(futures_poll).count();
        assert_eq!(asked(), 0);
        let mut one = Box::pin(turns.turn(8));
        assert!(futures_poll(&mut one).is_none());
        let mut other = Box::pin(turns.turn(9));
        assert!(futures_poll(&mut other).is_none());
        assert_eq!(asked(), 2);
        drop(wanted);
        holders.retain(|turn| !turn.leaving);
        assert_eq!(holders.len(), 1);
        let one = futures_poll(&mut one).unwrap().ok().unwrap();
        assert!(futures_poll(&mut other).unwrap().is_ok());
        assert_eq!(one.shared.state.lock().leaving, 0);
        // Nobody waits any more.
        assert!(futures_poll(&mut Box::pin(holders[0].wanted())).is_none());
    }

    /// What the future has now, if it has something.
    fn futures_poll<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        match std::pin::Pin::new(future).poll(&mut cx) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        }
    }
}
