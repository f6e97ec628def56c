//! Which connections there are, and what becomes of a new one. No I/O; the time is an argument.
//!
//! An address may have [`SHARE`] times as many connections as there are places free. So one alone leaves a quarter of them to
//! others; the more addresses come, the less each of them may have; and who has few gets a place whatever others do.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::net::IpAddr;
use std::rc::Rc;

use tokio::time::Instant;

use super::heads::{Heads, SHARE};
use super::{Address, Budget, GRACE, Place};

/// To look for those that may be closed means to look at all connections; then so many of them are noted at once, one of
/// this many, for the next ones that come.
const NOTED: usize = 16;

/// What becomes of a new connection.
pub(super) enum Decision {
    Admit,
    /// It is admitted when this one is closed.
    Close(Rc<Place>),
    /// There is no place for its address before something changes.
    Wait,
}

/// The connections of one worker.
pub(super) struct Book {
    limit: usize,
    places: BTreeMap<u64, Rc<Place>>,
    addresses: HashMap<IpAddr, Rc<Address>>,
    heads: Heads,
    requests: Heads,
    /// What may be closed, the next one last, with its `since` when it was noted.
    noted: Vec<(Rc<Place>, u64)>,
    /// When they were noted, by the room's clock.
    noted_at: u64,
    /// When nothing was found that may be closed, by the room's clock; and the time from which on that may be otherwise.
    nothing: Option<(u64, Option<Instant>)>,
    last: u64,
}

impl Book {
    pub(super) fn new(budget: Budget) -> Self {
        Self {
            limit: budget.connections,
            places: BTreeMap::new(),
            addresses: HashMap::new(),
            heads: Heads::new(budget.head_bytes),
            requests: Heads::new(budget.request_bytes),
            noted: Vec::new(),
            noted_at: 0,
            nothing: None,
            last: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    pub(super) fn head_bytes(&self) -> usize {
        self.heads.all()
    }

    /// What becomes of a connection from the address. One is closed for it only if it is the address's own, or one of an address
    /// that has as many: whoever has most never takes a place from those that have less.
    pub(super) fn decide(&mut self, address: IpAddr, clock: u64, now: Instant) -> Decision {
        let free = self.limit.saturating_sub(self.places.len());
        let own = self.connections(address);
        if own < free.saturating_mul(SHARE) {
            return Decision::Admit;
        }
        self.find(clock, now);
        // What was noted may be older than what the address has idle by now.
        if !self.gives_way(address, own) && self.has_idle(address) && self.noted_at != clock {
            self.note(clock, now);
        }
        match self.gives_way(address, own).then(|| self.noted.pop()).flatten() {
            Some((place, _)) => Decision::Close(place),
            None => Decision::Wait,
        }
    }

    /// Whether a connection of some address would be admitted.
    pub(super) fn has_place(&mut self, clock: u64, now: Instant) -> bool {
        if self.places.len() < self.limit {
            return true;
        }
        self.find(clock, now);
        !self.noted.is_empty()
    }

    pub(super) fn enter(&mut self, address: IpAddr, clock: u64, now: Instant) -> Rc<Place> {
        self.last += 1;
        let of_address = self.addresses.entry(address).or_insert_with(|| {
            Rc::new(Address {
                ip: address,
                connections: Cell::new(0),
                busy: Cell::new(0),
                heads: self.heads.of_another(),
                requests: self.requests.of_another(),
            })
        });
        of_address.connections.set(of_address.connections.get() + 1);
        let place = Rc::new(Place {
            id: self.last,
            address: Rc::clone(of_address),
            entered: now,
            busy: Cell::new(0),
            since: Cell::new(clock),
            closed: Cell::new(false),
            waker: RefCell::new(None),
            most_held: Cell::new(usize::MAX),
        });
        self.places.insert(place.id, Rc::clone(&place));
        place
    }

    pub(super) fn leave(&mut self, place: &Place) {
        if self.places.remove(&place.id).is_none() {
            return;
        }
        let address = &place.address;
        address.connections.set(address.connections.get() - 1);
        if address.connections.get() == 0 {
            self.addresses.remove(&address.ip);
        }
    }

    fn connections(&self, address: IpAddr) -> usize {
        self.addresses
            .get(&address)
            .map_or(0, |address| address.connections.get())
    }

    fn has_idle(&self, address: IpAddr) -> bool {
        self.addresses
            .get(&address)
            .is_some_and(|address| address.busy.get() < address.connections.get())
    }

    /// Whether the next one that may be closed may be closed for the address, which has so many.
    fn gives_way(&self, address: IpAddr, own: usize) -> bool {
        self.noted.last().is_some_and(|(place, _)| {
            let other = &place.address;
            other.ip == address || other.connections.get() >= own
        })
    }

    /// Sees to it that the next one that may be closed is noted last, if there is one.
    fn find(&mut self, clock: u64, now: Instant) {
        self.forget_changed();
        if self.noted.is_empty() && !self.is_known_to_have_nothing(clock, now) {
            self.note(clock, now);
        }
    }

    /// Takes out what has something to do by now, had something since, or has left.
    fn forget_changed(&mut self) {
        while let Some((place, since)) = self.noted.last() {
            if is_idle(place) && place.since.get() == *since && self.places.contains_key(&place.id) {
                return;
            }
            self.noted.pop();
        }
    }

    fn is_known_to_have_nothing(&self, clock: u64, now: Instant) -> bool {
        self.nothing
            .is_some_and(|(then, until)| then == clock && until.is_none_or(|until| now < until))
    }

    /// Notes the oldest idle one of the address that has most connections, then the next such one, and so on.
    fn note(&mut self, clock: u64, now: Instant) {
        let mut idle: HashMap<IpAddr, Vec<&Rc<Place>>> = HashMap::new();
        for place in self.places.values().filter(|place| is_idle(place)) {
            idle.entry(place.address.ip).or_default().push(place);
        }
        let all_have_one = idle
            .values()
            .flatten()
            .all(|place| place.address.connections.get() == 1);
        let first_end = idle.values().flatten().map(|place| place.entered + GRACE).min();
        let mut idle: Vec<_> = idle
            .into_values()
            .filter(|places| !all_have_one || places.iter().all(|place| place.entered + GRACE <= now))
            .collect();
        let mut most = BinaryHeap::new();
        for (i, places) in idle.iter_mut().enumerate() {
            places.sort_unstable_by_key(|place| Reverse(place.since.get()));
            if let Some(place) = places.last() {
                most.push((place.address.connections.get(), Reverse(place.since.get()), i));
            }
        }
        let wanted = self.limit.div_ceil(NOTED);
        let mut noted = Vec::with_capacity(wanted);
        while noted.len() < wanted
            && let Some((connections, _, i)) = most.pop()
        {
            noted.extend(idle[i].pop().map(|place| (Rc::clone(place), place.since.get())));
            if let Some(next) = idle[i].last() {
                most.push((connections - 1, Reverse(next.since.get()), i));
            }
        }
        noted.reverse();
        self.nothing = noted.is_empty().then_some((clock, first_end));
        self.noted = noted;
        self.noted_at = clock;
    }
}

fn is_idle(place: &Place) -> bool {
    place.busy.get() == 0
}
