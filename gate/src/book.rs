//! Which connections there are, and which one is closed when there is no room for another.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

/// How many connections there may be.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections in [`State::Incomplete`].
    pub incomplete: usize,
    /// Connections in whatever state.
    pub total: usize,
    /// Where every address has only one connection, none is closed for another before it has had this long: in a storm of
    /// honest clients each of them needs a moment to finish.
    pub grace: Duration,
}

impl Limits {
    /// Of an admin port that has kubelet, Prometheus and a person; and whoever else can reach it, who must not keep them out.
    pub const ADMIN: Self = Self {
        incomplete: 32,
        total: 64,
        grace: Duration::from_secs(1),
    };
}

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It has not brought one whole request yet. It may be a handshake that never ends.
    Incomplete,
    /// It has brought whole requests before, and is in the middle of the next.
    Reading,
    /// Its request is whole and is being worked on. It is never closed for another.
    Busy,
    /// Its request is whole, and waits for something that may take long, or for its client to take the answer. It is closed for
    /// another where nothing else can be.
    Waiting,
    /// It has brought whole requests, and has nothing to do now.
    Idle,
}

/// Names a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(u64);

/// What becomes of a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// There is room.
    Admit,
    /// There is room when this one is closed.
    Close(Id),
    /// There is no room before somebody leaves, or before this moment, when the answer is another.
    Wait(Option<Instant>),
}

/// The connections of one server.
#[derive(Debug)]
pub struct Book {
    limits: Limits,
    connections: BTreeMap<Id, Connection>,
    incomplete: usize,
    last: u64,
}

#[derive(Debug)]
struct Connection {
    address: IpAddr,
    state: State,
    /// Of the state.
    since: Instant,
}

impl Book {
    /// No connections yet.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            connections: BTreeMap::new(),
            incomplete: 0,
            last: 0,
        }
    }

    /// What becomes of one more connection from `address`.
    ///
    /// At a bound the oldest connection goes of the address that has most: incomplete ones at the bound of those; at the
    /// bound of all, whatever does not work, of an address first what is incomplete or idle. What others do decides first,
    /// or somebody whose connections all wait would have the new ones of everybody else closed.
    pub fn decide(&self, address: IpAddr, now: Instant) -> Decision {
        use State::{Idle, Incomplete, Reading, Waiting};
        let closable: &[&[State]] = if self.incomplete >= self.limits.incomplete {
            &[&[Incomplete]]
        } else if self.connections.len() >= self.limits.total {
            &[&[Incomplete, Idle], &[Reading, Waiting]]
        } else {
            return Decision::Admit;
        };
        self.oldest_of_most(closable, address, now)
            .unwrap_or(Decision::Wait(None))
    }

    /// Enters a connection, which is incomplete.
    pub fn enter(&mut self, address: IpAddr, now: Instant) -> Id {
        self.last += 1;
        let id = Id(self.last);
        let connection = Connection {
            address,
            state: State::Incomplete,
            since: now,
        };
        self.connections.insert(id, connection);
        self.incomplete += 1;
        id
    }

    /// Says how far the connection is now. Nothing happens where it has left.
    pub fn set(&mut self, id: Id, state: State, now: Instant) {
        if let Some(connection) = self.connections.get_mut(&id)
            && connection.state != state
        {
            self.incomplete -= usize::from(connection.state == State::Incomplete);
            self.incomplete += usize::from(state == State::Incomplete);
            connection.state = state;
            connection.since = now;
        }
    }

    /// Takes a connection out. Nothing happens where it has left before.
    pub fn leave(&mut self, id: Id) {
        if let Some(connection) = self.connections.remove(&id) {
            self.incomplete -= usize::from(connection.state == State::Incomplete);
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.connections.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }

    /// How many are incomplete.
    pub fn incomplete(&self) -> usize {
        self.incomplete
    }

    /// None where no connection is in one of the states. Of an address those in the first list of them go first.
    fn oldest_of_most(&self, closable: &[&[State]], newcomer: IpAddr, now: Instant) -> Option<Decision> {
        let mut by_address: HashMap<IpAddr, (usize, Next)> = HashMap::new();
        for (&id, c) in &self.connections {
            let Some(rank) = closable.iter().position(|states| states.contains(&c.state)) else {
                continue;
            };
            let candidate = (rank, c.since, id);
            let (count, next) = by_address.entry(c.address).or_insert((0, candidate));
            *count += 1;
            *next = candidate.min(*next);
        }
        // The newcomer's own address counts with the newcomer. Among equals the oldest connection goes.
        let own = by_address.get(&newcomer).map_or(0, |(count, _)| *count);
        let weight = |address: &IpAddr, count: usize| count + usize::from(*address == newcomer);
        let (count, (_, since, id)) = by_address
            .iter()
            .max_by(|(a, (n, next)), (b, (m, other))| weight(a, *n).cmp(&weight(b, *m)).then_with(|| other.cmp(next)))
            .map(|(_, found)| *found)?;
        let all_have_one = count == 1 && own == 0;
        let end_of_grace = since + self.limits.grace;
        Some(if all_have_one && now < end_of_grace {
            Decision::Wait(Some(end_of_grace))
        } else {
            Decision::Close(id)
        })
    }
}

/// The next one of an address that may be closed: how gladly, since when it is as it is, and its name.
type Next = (usize, Instant, Id);

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const LIMITS: Limits = Limits {
        incomplete: 4,
        total: 6,
        grace: SECOND,
    };

    fn ip(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    /// A book with one connection from each address, a millisecond apart, and the time of the last.
    fn book(addresses: &[u8]) -> (Book, Vec<Id>, Instant) {
        let mut now = Instant::now();
        let mut book = Book::new(LIMITS);
        let ids = addresses
            .iter()
            .map(|&last| {
                now += Duration::from_millis(1);
                book.enter(ip(last), now)
            })
            .collect();
        (book, ids, now)
    }

    #[test]
    fn below_the_bounds_all_come_in() {
        let (book, _, now) = book(&[1, 1, 1]);
        assert_eq!(book.decide(ip(1), now), Decision::Admit);
    }

    #[test]
    fn the_oldest_incomplete_of_the_address_that_has_most_is_closed_at_once() {
        let (mut book, ids, now) = book(&[2, 1, 1, 1]);
        assert_eq!(book.decide(ip(3), now), Decision::Close(ids[1]));
        assert_eq!(book.decide(ip(1), now), Decision::Close(ids[1]));
        book.leave(ids[1]);
        assert_eq!(book.decide(ip(3), now), Decision::Admit);
        book.leave(ids[1]);
        assert_eq!((book.len(), book.incomplete()), (3, 3));
    }

    #[test]
    fn among_equals_the_address_of_the_newcomer_gives_way() {
        let (book, ids, now) = book(&[1, 1, 2, 2]);
        assert_eq!(book.decide(ip(2), now), Decision::Close(ids[2]));
        assert_eq!(book.decide(ip(3), now), Decision::Close(ids[0]));
    }

    #[test]
    fn in_a_storm_of_many_addresses_each_has_its_grace() {
        let (book, ids, now) = book(&[1, 2, 3, 4]);
        let end = now + SECOND - Duration::from_millis(3);
        assert_eq!(book.decide(ip(5), now), Decision::Wait(Some(end)));
        assert_eq!(book.decide(ip(5), end), Decision::Close(ids[0]));
        // Who comes twice makes nobody wait.
        assert_eq!(book.decide(ip(4), now), Decision::Close(ids[3]));
    }

    #[test]
    fn a_connection_that_has_brought_a_request_is_not_counted_as_incomplete() {
        let (mut book, ids, now) = book(&[1, 1, 1, 1]);
        for &id in &ids {
            book.set(id, State::Busy, now);
            book.set(id, State::Idle, now);
        }
        assert_eq!(book.incomplete(), 0);
        // One address has all of them, and another is not refused for it: there is no limit for an address.
        assert_eq!(book.decide(ip(1), now), Decision::Admit);
    }

    #[test]
    fn at_the_bound_of_all_what_is_idle_goes_then_what_reads_and_never_what_works() {
        let (mut book, ids, now) = book(&[1, 1, 1]);
        let more: Vec<Id> = ids
            .iter()
            .map(|&id| {
                book.set(id, State::Busy, now);
                book.enter(ip(2), now)
            })
            .collect();
        more.iter().for_each(|&id| book.set(id, State::Busy, now));
        assert_eq!(book.decide(ip(3), now), Decision::Wait(None));
        book.set(ids[1], State::Reading, now);
        assert_eq!(book.decide(ip(3), now + SECOND), Decision::Close(ids[1]));
        book.set(more[2], State::Idle, now);
        assert_eq!(book.decide(ip(3), now + SECOND), Decision::Close(more[2]));
    }

    #[test]
    fn what_waits_is_closed_for_others_and_of_an_address_it_goes_last() {
        let (mut book, ids, now) = book(&[2, 2, 2]);
        ids.iter().for_each(|&id| book.set(id, State::Waiting, now));
        let own = book.enter(ip(2), now);
        let others: Vec<Id> = (0..2).map(|_| book.enter(ip(3), now)).collect();
        // Not the new ones of those who have less, although they are incomplete.
        assert_eq!(book.decide(ip(3), now), Decision::Close(own));
        book.leave(own);
        book.enter(ip(4), now);
        assert_eq!(book.decide(ip(4), now), Decision::Close(ids[0]));
        // Among equals what is incomplete goes, and the newcomer's own.
        assert_eq!(book.decide(ip(3), now), Decision::Close(others[0]));
        others.iter().for_each(|&id| book.set(id, State::Busy, now));
        assert_eq!(book.decide(ip(3), now), Decision::Close(ids[0]));
    }

    #[test]
    fn a_state_that_does_not_change_does_not_make_a_connection_younger() {
        let (mut book, ids, now) = book(&[1, 1, 1, 1]);
        book.set(ids[0], State::Incomplete, now + SECOND);
        assert_eq!(book.decide(ip(1), now + SECOND), Decision::Close(ids[0]));
    }
}
