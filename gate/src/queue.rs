//! Whose turn it is, where many wait for little.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// How much may be done and wait at the same time.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Pieces of work that are done at the same time.
    pub working: usize,
    /// Pieces of work that wait.
    pub waiting: usize,
}

/// What becomes of a new piece of work.
#[derive(Debug, PartialEq, Eq)]
pub enum Arrival<T> {
    /// It may begin.
    Begins(T),
    /// It waits until [`Queue::done`] names it.
    Waits,
    /// It waits in the place of this one, the newest of the caller that had most.
    WaitsInsteadOf(T),
    /// Its own caller has most of all: it is sent away.
    SentAway(T),
}

/// Work in turns: one piece of each caller after the other, however many each has brought.
#[derive(Debug)]
pub struct Queue<K, T> {
    room: Room,
    working: usize,
    /// Never an empty list.
    waiting: HashMap<K, VecDeque<T>>,
    /// Everybody who waits, next first.
    callers: VecDeque<K>,
    length: usize,
}

impl<K: Clone + Eq + Hash, T> Queue<K, T> {
    /// Nobody waits.
    pub fn new(room: Room) -> Self {
        Self {
            room,
            working: 0,
            waiting: HashMap::new(),
            callers: VecDeque::new(),
            length: 0,
        }
    }

    /// One more piece of work.
    pub fn arrive(&mut self, caller: K, work: T) -> Arrival<T> {
        if self.working < self.room.working {
            self.working += 1;
            return Arrival::Begins(work);
        }
        if self.length < self.room.waiting {
            self.push(caller, work);
            return Arrival::Waits;
        }
        let own = self.waiting.get(&caller).map_or(0, VecDeque::len);
        // The first in turn of those that have most, so that the choice does not depend on a map's order.
        let most = self
            .callers
            .iter()
            .rev()
            .max_by_key(|&caller| self.waiting.get(caller).map_or(0, VecDeque::len))
            .cloned();
        match most.and_then(|most| self.take_newest(&most, own)) {
            Some(other) => {
                self.push(caller, work);
                Arrival::WaitsInsteadOf(other)
            }
            None => Arrival::SentAway(work),
        }
    }

    /// A piece of work has ended: the next one begins.
    pub fn done(&mut self) -> Option<T> {
        let Some(caller) = self.callers.pop_front() else {
            self.working -= 1;
            return None;
        };
        // Who is among the callers has something that waits.
        let waiting = self.waiting.get_mut(&caller)?;
        let work = waiting.pop_front();
        if waiting.is_empty() {
            self.waiting.remove(&caller);
        } else {
            self.callers.push_back(caller);
        }
        self.length -= 1;
        work
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.length
    }

    fn push(&mut self, caller: K, work: T) {
        self.length += 1;
        if let Some(waiting) = self.waiting.get_mut(&caller) {
            waiting.push_back(work);
        } else {
            self.callers.push_back(caller.clone());
            self.waiting.insert(caller, VecDeque::from([work]));
        }
    }

    /// The newest of a caller that has more than `own` and the newcomer together would have.
    fn take_newest(&mut self, caller: &K, own: usize) -> Option<T> {
        let waiting = self.waiting.get_mut(caller).filter(|waiting| waiting.len() > own + 1)?;
        self.length -= 1;
        // It has more than one.
        waiting.pop_back()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: Room = Room { working: 1, waiting: 4 };

    #[test]
    fn callers_take_turns() {
        let mut queue = Queue::new(ROOM);
        assert_eq!(queue.arrive('a', 0), Arrival::Begins(0));
        for work in 1..=3 {
            assert_eq!(queue.arrive('a', work), Arrival::Waits);
        }
        assert_eq!(queue.arrive('b', 9), Arrival::Waits);
        let order: Vec<_> = std::iter::from_fn(|| queue.done()).collect();
        assert_eq!(order, [1, 9, 2, 3]);
        assert_eq!(queue.arrive('b', 10), Arrival::Begins(10));
    }

    #[test]
    fn who_has_most_is_sent_away_and_not_who_comes_last() {
        let mut queue = Queue::new(ROOM);
        for work in 0..=4 {
            queue.arrive('a', work);
        }
        assert_eq!(queue.arrive('a', 5), Arrival::SentAway(5));
        assert_eq!(queue.arrive('b', 8), Arrival::WaitsInsteadOf(4));
        // Two of each would be left if one of them gave way: the newcomer of equals goes.
        assert_eq!(queue.arrive('b', 9), Arrival::WaitsInsteadOf(3));
        assert_eq!(queue.arrive('b', 10), Arrival::SentAway(10));
        assert_eq!(queue.waiting(), 4);
        let order: Vec<_> = std::iter::from_fn(|| queue.done()).collect();
        assert_eq!(order, [1, 8, 2, 9]);
    }

    #[test]
    fn where_everybody_has_one_the_newcomer_is_sent_away() {
        let mut queue = Queue::new(ROOM);
        for (work, caller) in "abcde".chars().enumerate() {
            queue.arrive(caller, work);
        }
        assert_eq!(queue.arrive('f', 5), Arrival::SentAway(5));
    }
}
