//! What holds of limits of connections, whoever comes and goes, and while policies change.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use outrigger_api::access::Ports;
use outrigger_api::limits::{Connections, Limits, Policy};
use outrigger_api::spiffe::SpiffeId;
use outrigger_limits::{Limiter, Place};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const SECOND: Duration = Duration::from_secs(1);

fn policy(name: &str, ports: &[u32], max: u32, per_identity: u32, new_per_second: u32) -> Policy {
    Policy {
        name: name.to_owned(),
        ports: (!ports.is_empty()).then(|| Ports {
            numbers: ports.to_vec(),
        }),
        connections: Some(Connections {
            max,
            per_identity,
            new_per_second,
        }),
        ..Policy::default()
    }
}

fn limiter(policies: Vec<Policy>) -> Arc<Limiter> {
    let limiter = Arc::new(Limiter::default());
    limiter.update(&Limits { policies }, Duration::ZERO);
    limiter
}

fn open(limiter: &Limiter) -> Vec<Option<u32>> {
    let of = |policy: &outrigger_limits::view::PolicyView| policy.connections.as_ref().map(|c| c.open);
    limiter.view().iter().map(of).collect()
}

/// `Err`: policy and number.
fn connect(limiter: &Arc<Limiter>, port: u16, who: Option<&SpiffeId>, now: Duration) -> Result<Place, String> {
    match limiter.connect(port, who, now) {
        Ok(connection) => Ok(connection.place),
        Err(denied) => Err(format!("{} {}", denied.by().policy, denied.by().limit)),
    }
}

#[test]
fn never_more_are_open_than_a_policy_admits_and_each_that_ends_makes_room() {
    let ids: Vec<SpiffeId> = (0..4)
        .map(|n| SpiffeId::new("mesh.test", "shop", &format!("a{n}")).unwrap())
        .collect();
    let (mut admitted, mut refused) = (0, 0);
    for seed in 0..200 {
        let random = &mut SmallRng::seed_from_u64(seed);
        let (max, per) = (random.random_range(1..8), random.random_range(1..5));
        let limiter = limiter(vec![
            policy("shop/all", &[], max, 0, 0),
            policy("shop/each", &[80], 0, per, 0),
        ]);
        let mut places: Vec<(u16, usize, Place)> = Vec::new();
        for _ in 0..300 {
            if random.random_range(0..3) == 0 && !places.is_empty() {
                places.swap_remove(random.random_range(0..places.len()));
            }
            let (port, who) = (random.random_range(80..82), random.random_range(0..5));
            let of_one = places.iter().filter(|(p, w, _)| (*p, *w) == (80, who)).count();
            let expected = if places.len() >= max as usize {
                Some("shop/all max")
            } else if port == 80 && of_one >= per as usize {
                Some("shop/each perIdentity")
            } else {
                None
            };
            match connect(&limiter, port, ids.get(who), SECOND) {
                Ok(place) => {
                    assert_eq!(expected, None, "seed {seed}");
                    places.push((port, who, place));
                    admitted += 1;
                }
                Err(by) => {
                    assert_eq!(Some(&*by), expected, "seed {seed}");
                    refused += 1;
                }
            }
            let at_80 = places.iter().filter(|(port, ..)| *port == 80).count();
            assert_eq!(open(&limiter), [Some(places.len() as u32), Some(at_80 as u32)]);
        }
        drop(places);
        assert_eq!(open(&limiter), [Some(0), Some(0)]);
    }
    assert!(admitted > 10_000 && refused > 10_000, "{admitted} {refused}");
}

#[test]
fn new_ones_have_a_rate_that_refused_ones_and_changes_leave_alone() {
    let told = |max, new| Limits {
        policies: vec![policy("shop/p", &[], max, 0, new)],
    };
    let limiter = limiter(told(0, 5).policies);
    let mut places = Vec::new();
    for _ in 0..5 {
        places.push(connect(&limiter, 80, None, SECOND).unwrap());
    }
    assert_eq!(connect(&limiter, 80, None, SECOND).unwrap_err(), "shop/p newPerSecond");
    // A policy that is told again gives nothing back, and closing does not either.
    limiter.update(&told(100, 5), SECOND);
    places.clear();
    assert_eq!(connect(&limiter, 80, None, SECOND).unwrap_err(), "shop/p newPerSecond");
    let later = SECOND + Duration::from_millis(200);
    let _one = connect(&limiter, 80, None, later).unwrap();
    assert!(connect(&limiter, 80, None, later).is_err());
}

/// A policy that comes knows of those that are open, refuses none of them, and none beside them.
#[test]
fn what_was_open_before_a_policy_counts() {
    let limiter = limiter(Vec::new());
    let mut places: Vec<Place> = (0..10).map(|_| connect(&limiter, 80, None, SECOND).unwrap()).collect();
    let _other = connect(&limiter, 81, None, SECOND).unwrap();
    let policies = vec![policy("shop/p", &[80], 10, 0, 0)];
    limiter.update(&Limits { policies }, SECOND);
    assert_eq!(open(&limiter), [Some(10)]);
    assert_eq!(connect(&limiter, 80, None, SECOND).unwrap_err(), "shop/p max");
    places.pop();
    places.push(connect(&limiter, 80, None, SECOND).unwrap());
    assert!(connect(&limiter, 80, None, SECOND).is_err());
    limiter.update(&Limits::default(), SECOND);
    drop(places);
    let policies = vec![policy("shop/p", &[80], 10, 0, 0)];
    limiter.update(&Limits { policies }, SECOND);
    assert_eq!(open(&limiter), [Some(0)]);
}

#[test]
fn a_shadow_refuses_none_and_what_is_faulty_is_none() {
    let shadow = Policy {
        shadow: true,
        ..policy("shop/s", &[], 2, 0, 0)
    };
    let limiter = limiter(vec![
        shadow,
        policy("shop/faulty", &[], 0, 2_000_000, 0),
        policy("shop/none", &[], 0, 0, 0),
    ]);
    let mut shadows = 0;
    let places: Vec<Place> = (0..5)
        .map(|_| {
            let connection = limiter.connect(80, None, SECOND).unwrap();
            shadows += connection
                .shadows()
                .filter(|by| (by.policy, by.limit) == ("shop/s", "max"))
                .count();
            assert_eq!(connection.enforced().count(), 0);
            connection.place
        })
        .collect();
    assert_eq!(shadows, 3);
    // In the order of names.
    assert_eq!(open(&limiter), [None, None, Some(5)]);
    drop(places);
}

/// Whoever comes and goes, nothing stays of it.
#[test]
fn ten_thousand_callers_leave_nothing_behind() {
    let limiter = limiter(vec![policy("shop/p", &[], 50, 1, 0)]);
    let mut counted: HashMap<String, usize> = HashMap::new();
    for n in 0..10_000 {
        let id = SpiffeId::new("mesh.test", "shop", &format!("a{n}")).unwrap();
        let result = connect(&limiter, (n % 60_000) as u16, Some(&id), SECOND);
        *counted.entry(result.err().unwrap_or_default()).or_default() += 1;
    }
    assert_eq!(counted, HashMap::from([(String::new(), 10_000)]));
    assert_eq!(open(&limiter), [Some(0)]);
    assert!(!format!("{limiter:?}").contains("): 1"), "an entry stays");
}
