//! Turns for work whose input is complete.

use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::queue::{Arrival, Queue, Room};

/// Shares a bounded number of turns among callers; those who wait are bounded too.
pub struct Turns<K: Clone + Eq + Hash> {
    queue: Shared<K>,
}

type Shared<K> = Arc<Mutex<Queue<K, oneshot::Sender<Turn<K>>>>>;

/// The right to work, until it is dropped.
pub struct Turn<K: Clone + Eq + Hash> {
    queue: Shared<K>,
}

/// Too many wait already, and this caller has most of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crowded;

impl<K: Clone + Eq + Hash> Turns<K> {
    /// All turns are free.
    pub fn new(room: Room) -> Self {
        Self {
            queue: Arc::new(Mutex::new(Queue::new(room))),
        }
    }

    /// Waits for the caller's turn.
    ///
    /// # Errors
    /// When the caller is sent away: at once, or later for another one that has less.
    pub async fn turn(&self, caller: K) -> Result<Turn<K>, Crowded> {
        let (sender, receiver) = oneshot::channel();
        let arrival = self.queue.lock().arrive(caller, sender);
        match arrival {
            Arrival::Begins(_) => {
                return Ok(Turn {
                    queue: Arc::clone(&self.queue),
                });
            }
            Arrival::SentAway(_) => return Err(Crowded),
            // Its receiver learns it from the drop, which must not wait for the turn below.
            Arrival::WaitsInsteadOf(other) => drop(other),
            Arrival::Waits => {}
        }
        receiver.await.map_err(|_| Crowded)
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.queue.lock().waiting()
    }
}

impl<K: Clone + Eq + Hash> Drop for Turn<K> {
    fn drop(&mut self) {
        loop {
            let next = self.queue.lock().done();
            let Some(next) = next else { return };
            if next.is_closed() {
                // Whoever waited has gone away: the turn passes on to the next.
                continue;
            }
            let turn = Turn {
                queue: Arc::clone(&self.queue),
            };
            // If the receiver goes away right now, the turn comes back here, is dropped, and so passes on.
            drop(next.send(turn));
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

    /// What the future has now, if it has something.
    fn futures_poll<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        match std::pin::Pin::new(future).poll(&mut cx) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        }
    }
}
