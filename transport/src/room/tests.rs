#![allow(clippy::unwrap_used)]

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use super::{Budget, Busy, GRACE, Room, Seat};

const LIMIT: usize = 64;

fn room() -> Rc<Room> {
    let budget = Budget {
        connections: LIMIT,
        head_bytes: 1 << 20,
        request_bytes: 1 << 20,
    };
    Room::new(budget, Arc::new(()))
}

fn ip(last: u16) -> IpAddr {
    let [high, low] = last.to_be_bytes();
    [10, 0, high, low].into()
}

/// So many from one address; those that get no place are left out.
fn many(room: &Rc<Room>, address: u16, count: usize) -> Vec<Seat> {
    (0..count).filter_map(|_| room.enter(ip(address))).collect()
}

fn open(seats: &[Seat]) -> usize {
    seats.iter().filter(|seat| !seat.is_closed()).count()
}

#[test]
fn the_budget_follows_the_limit_of_memory() {
    let mib = |mib: u64| Budget::of(Some(mib << 20));
    assert_eq!((mib(256).connections, mib(256).head_bytes), (4096, 32 << 20));
    assert_eq!((mib(256).request_bytes, mib(1).request_bytes), (64 << 20, 1 << 20));
    assert_eq!(mib(256).share(4).request_bytes, 16 << 20);
    assert_eq!(mib(640).connections, 10_240);
    assert_eq!((mib(1).connections, mib(1).head_bytes), (64, 1 << 20));
    assert_eq!(Budget::of(None).connections, 32_768);
    assert_eq!(mib(256).share(4).connections, 1024);
    assert_eq!(mib(1).share(64).connections, 1);
    assert!(Budget::of(Some(u64::MAX)).connections > 1 << 40);
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_idle_ones_of_one_address_leave_room_and_go_for_newer_ones() {
    let room = room();
    let attack = many(&room, 1, 10_000);
    assert_eq!(attack.len(), 10_000, "each closes one of its own");
    assert_eq!((open(&attack), room.connections()), (LIMIT * 3 / 4, LIMIT * 3 / 4));
    assert!(attack[..9_000].iter().all(Seat::is_closed), "not the oldest went first");
    // Who comes now needs nobody's place, up to three quarters of what is left; and beyond, those of the attack go.
    let others: Vec<Seat> = (2..62).flat_map(|address| many(&room, address, 1)).collect();
    assert_eq!((others.len(), open(&others), open(&attack)), (60, 60, LIMIT - 60));
    assert_eq!(room.connections(), LIMIT);
}

#[tokio::test(start_paused = true)]
async fn what_is_busy_is_never_closed_and_one_address_cannot_take_all() {
    let room = room();
    let seats = many(&room, 1, LIMIT * 3 / 4);
    let busy: Vec<Busy> = seats.iter().map(Seat::busy).collect();
    assert!(many(&room, 1, 10_000).is_empty());
    let other = many(&room, 2, 10_000);
    assert_eq!(open(&other), LIMIT / 4 * 3 / 4);
    // The one that has most takes nothing from those that have less.
    assert!(room.enter(ip(1)).is_none());
    assert_eq!((open(&seats), open(&other)), (seats.len(), LIMIT / 4 * 3 / 4));
    drop(busy);
    let newer = room.enter(ip(1)).unwrap();
    assert!(seats[0].is_closed() && !newer.is_closed());
}

#[tokio::test(start_paused = true)]
async fn the_oldest_is_the_one_that_had_nothing_to_do_for_longest() {
    let room = room();
    let seats = many(&room, 1, LIMIT * 3 / 4);
    drop(seats[0].busy());
    let _newer = room.enter(ip(1)).unwrap();
    assert!(!seats[0].is_closed() && seats[1].is_closed());
    // It was noted as one to go, and has something to do now.
    let busy = seats[2].busy();
    let _newest = room.enter(ip(1)).unwrap();
    assert!(!seats[2].is_closed() && seats[3].is_closed());
    drop(busy);
}

#[tokio::test(start_paused = true)]
async fn in_a_storm_of_many_addresses_each_has_a_moment() {
    let room = room();
    let storm: Vec<Seat> = (0..LIMIT as u16).flat_map(|address| many(&room, address, 1)).collect();
    assert_eq!((storm.len(), room.connections()), (LIMIT, LIMIT));
    assert!(room.enter(ip(1000)).is_none() && !room.has_place());
    tokio::time::advance(GRACE).await;
    assert!(room.has_place());
    let _late = room.enter(ip(1000)).unwrap();
    assert!(storm[0].is_closed());
    // Who has more than others takes nobody's place.
    let _second = room.enter(ip(5)).unwrap();
    assert!(room.enter(ip(5)).is_none() || storm[5].is_closed());
}

#[tokio::test(start_paused = true)]
async fn a_place_is_free_when_its_connection_ends_and_no_sooner() {
    let room = room();
    let mut seats = many(&room, 1, LIMIT * 3 / 4);
    let busy: Vec<Busy> = seats.iter().map(Seat::busy).collect();
    assert!(room.enter(ip(1)).is_none());
    drop(busy);
    let closed = seats.remove(0);
    let newer = room.enter(ip(1)).unwrap();
    assert!(closed.is_closed());
    closed.closed().await;
    let before = room.connections();
    drop(closed);
    assert_eq!(room.connections(), before, "its place was taken from it");
    drop((seats, newer));
    assert_eq!(room.connections(), 0);
}

#[tokio::test(start_paused = true)]
async fn both_notations_of_an_address_are_one() {
    let room = room();
    let seats = many(&room, 1, LIMIT * 3 / 4);
    let _newer = room.enter("::ffff:10.0.0.1".parse().unwrap()).unwrap();
    assert!(seats[0].is_closed());
}

#[tokio::test(start_paused = true)]
async fn connections_to_itself_are_counted_and_never_wait() {
    let room = room();
    let seats: Vec<Seat> = (0..LIMIT * 2).map(|_| room.enter_own(ip(1))).collect();
    assert_eq!((open(&seats), room.connections()), (LIMIT * 2, LIMIT * 2));
    let _other = room.enter(ip(2)).unwrap();
    assert!(seats[0].is_closed());
}

#[tokio::test(start_paused = true)]
async fn whoever_is_closed_is_woken() {
    let room = room();
    let seats = many(&room, 1, LIMIT * 3 / 4);
    let newer = async {
        tokio::task::yield_now().await;
        room.enter(ip(1)).unwrap()
    };
    let (_newer, ()) = tokio::join!(newer, seats[0].closed());
}
