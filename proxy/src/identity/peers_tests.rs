//! In simulated time: both clocks are arguments.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use tokio::time::Instant;

use super::super::testing::TestCa;
use super::super::{Clock, Credentials, Identity, MeshProtocol, Trust, TrustBundle};
use super::{CHECKS, Peers, Rules, end_of};
use crate::telemetry::{Direction, Metrics};
use outrigger_proxy_transport::net::{Standing, Term};

const US: &str = "spiffe://cluster.local/ns/shop/sa/orders";
const PEER: &str = "spiffe://cluster.local/ns/shop/sa/web";
const HOUR: Duration = Duration::from_secs(3600);
const LIMIT: Duration = Duration::from_secs(30);
const BOTH: [Direction; 2] = [Direction::Inbound, Direction::Outbound];

fn peers(direction: Direction, close_expired: bool) -> (Peers, Arc<Metrics>) {
    let metrics = Arc::new(Metrics::new());
    let limit = LIMIT;
    (
        Peers::new(direction, Rules { limit, close_expired }, Arc::clone(&metrics)),
        metrics,
    )
}

/// Our credentials, with these CAs as roots.
fn credentials(roots: &[&TestCa], generation: u64) -> Credentials {
    let bundle = TrustBundle::from_der(roots.iter().map(|ca| ca.certificate.clone())).unwrap();
    let trust = Arc::new(Trust::new(&bundle, "cluster.local", generation).unwrap());
    Credentials::new(&roots[0].svid(US), &trust, generation, &Clock::system()).unwrap()
}

/// A peer's chain that lives for an hour.
fn chain(ca: &TestCa) -> Vec<CertificateDer<'static>> {
    let now = SystemTime::now();
    ca.leaf_and_key(&[PEER], now - HOUR, now + HOUR).0
}

fn metric(metrics: &Arc<Metrics>, series: &str) -> Option<u64> {
    let text = metrics.text();
    let line = text.lines().find(|line| line.starts_with(series))?;
    line.rsplit(' ').next()?.parse().ok()
}

#[test]
fn what_becomes_of_connections_when_the_certificate_of_their_peer_ends() {
    use Standing::{Cut, Ending, Good, Over};
    let ca = TestCa::new("root");
    let ours = credentials(&[&ca], 1);
    // Before the end, in the sweep after it, just before the limit, and after it.
    let (goes_on, closes) = ([Good, Ending, Ending, Over], [Good, Ending, Ending, Cut]);
    let table = [
        (MeshProtocol::Http1, false, goes_on),
        (MeshProtocol::Http2, false, goes_on),
        (MeshProtocol::Opaque, false, [Good; 4]),
        (MeshProtocol::Http1, true, closes),
        (MeshProtocol::Http2, true, closes),
        (MeshProtocol::Opaque, true, [Good, Cut, Cut, Cut]),
    ];
    for direction in BOTH {
        for (protocol, close_expired, expected) in table {
            let what = format!("{direction:?} {protocol:?} {close_expired}");
            let (peers, metrics) = peers(direction, close_expired);
            let term = peers.enter(protocol, &chain(&ca), &ours);
            let (began, clock) = (Instant::now(), SystemTime::now());
            let at = |since: Duration, hours: f64| {
                peers.look(began + since, clock + HOUR.mul_f64(hours), Some(&ours.trust));
                term.standing()
            };
            let second = Duration::from_secs(1);
            let seen = [
                at(second, 0.99),
                at(2 * second, 1.01),
                at(LIMIT + second, 1.01),
                at(LIMIT + 2 * second, 1.01),
            ];
            assert_eq!(seen, expected, "{what}");
            let label = format!("{{direction=\"{}\"", direction.as_str());
            let expired = metric(&metrics, &format!("outrigger_connections_expired{label}"));
            assert_eq!(expired, Some(1), "{what}");
            let ended = metric(
                &metrics,
                &format!("outrigger_connections_ended_total{label},reason=\"expired\""),
            );
            assert_eq!(ended, Some(u64::from(expected[3] > Good)), "{what}: it is counted once");
            // It has closed: nothing is held of it.
            drop(term);
            peers.look(began + HOUR, clock, Some(&ours.trust));
            assert!(peers.known.borrow().is_empty(), "{what}");
            assert_eq!(
                metric(&metrics, &format!("outrigger_connections_expired{label}")),
                Some(0),
                "{what}"
            );
        }
    }
}

#[test]
fn what_becomes_of_connections_when_the_root_of_their_peer_is_removed() {
    use Standing::{Cut, Ending, Good};
    let (old, new, other) = (TestCa::new("old"), TestCa::new("new"), TestCa::new("other"));
    for direction in BOTH {
        for (protocol, close_expired) in MeshProtocol::ALL.into_iter().flat_map(|p| [(p, false), (p, true)]) {
            let what = format!("{direction:?} {protocol:?} {close_expired}");
            let (peers, metrics) = peers(direction, close_expired);
            let first = credentials(&[&new, &old], 1);
            let of_old = peers.enter(protocol, &chain(&old), &first);
            let of_new = peers.enter(protocol, &chain(&new), &first);
            let (began, clock) = (Instant::now(), SystemTime::now());
            let standing = |seconds: u64, credentials: &Credentials| {
                peers.look(began + Duration::from_secs(seconds), clock, Some(&credentials.trust));
                (of_old.standing(), of_new.standing())
            };
            assert_eq!(standing(1, &first), (Good, Good), "{what}");
            let more = credentials(&[&new, &old, &other], 2);
            assert_eq!(standing(2, &more), (Good, Good), "{what}: another root");
            let without = credentials(&[&new, &other], 3);
            let first = if protocol == MeshProtocol::Opaque { Cut } else { Ending };
            assert_eq!(standing(4, &without), (first, Good), "{what}");
            assert_eq!(standing(4 + LIMIT.as_secs(), &without), (Cut, Good), "{what}");
            let series = format!(
                "outrigger_connections_ended_total{{direction=\"{}\",reason=\"untrusted\"",
                direction.as_str()
            );
            assert_eq!(metric(&metrics, &series), Some(1), "{what}");
        }
    }
}

#[test]
fn an_expired_tunnel_is_closed_with_its_root_and_a_valid_chain_is_not_judged_by_its_age() {
    let (old, new) = (TestCa::new("old"), TestCa::new("new"));
    let (peers, _) = peers(Direction::Inbound, false);
    let both = credentials(&[&new, &old], 1);
    let of_old = peers.enter(MeshProtocol::Opaque, &chain(&old), &both);
    let of_new = peers.enter(MeshProtocol::Opaque, &chain(&new), &both);
    let (now, later) = (Instant::now(), SystemTime::now() + 2 * HOUR);
    // Both certificates have ended; both roots are trusted.
    peers.look(now, later, Some(&credentials(&[&new, &old], 2).trust));
    assert_eq!((of_old.standing(), of_new.standing()), (Standing::Good, Standing::Good));
    peers.look(now, later, Some(&credentials(&[&new], 3).trust));
    assert_eq!((of_old.standing(), of_new.standing()), (Standing::Cut, Standing::Good));
}

#[test]
fn a_root_that_comes_back_is_trusted_for_new_connections() {
    let (old, new) = (TestCa::new("old"), TestCa::new("new"));
    let (peers, _) = peers(Direction::Inbound, false);
    let (now, clock) = (Instant::now(), SystemTime::now());
    let both = credentials(&[&new, &old], 1);
    let shown = chain(&old);
    let enter = |credentials: &Credentials| peers.enter(MeshProtocol::Http2, &shown, credentials);
    let before = enter(&both);
    peers.look(now, clock, Some(&credentials(&[&new], 2).trust));
    assert_eq!(before.standing(), Standing::Ending);
    let again = credentials(&[&new, &old], 3);
    let after = enter(&again);
    peers.look(now + LIMIT, clock, Some(&again.trust));
    assert_eq!(after.standing(), Standing::Good);
    assert_eq!(
        before.standing(),
        Standing::Ending,
        "what was told once is not taken back"
    );
}

/// Its SVID has ended, and it may still hear of roots.
#[test]
fn roots_that_are_removed_while_there_is_no_svid_end_connections_too() {
    let (old, new) = (TestCa::new("old"), TestCa::new("new"));
    for direction in BOTH {
        let (peers, _) = peers(direction, false);
        let both = credentials(&[&new, &old], 1);
        let terms = [&old, &new].map(|ca| peers.enter(MeshProtocol::Opaque, &chain(ca), &both));
        let (identity, current) = Identity::changing(both);
        let standing = || {
            peers.sweep(Instant::now(), &identity);
            [terms[0].standing(), terms[1].standing()]
        };
        current.send_replace(None);
        assert_eq!(standing(), [Standing::Good; 2], "{direction:?}");
        identity
            .0
            .state
            .trusted
            .send_replace(Some(credentials(&[&new], 2).trust));
        assert_eq!(standing(), [Standing::Cut, Standing::Good], "{direction:?}");
    }
}

#[test]
fn many_chains_are_verified_a_few_at_a_time_and_all_of_them() {
    let (old, new) = (TestCa::new("old"), TestCa::new("new"));
    let (peers, _) = peers(Direction::Inbound, false);
    let both = credentials(&[&new, &old], 1);
    let enter = |_| peers.enter(MeshProtocol::Opaque, &chain(&old), &both);
    let terms: Vec<Term> = (0..CHECKS + 10).map(enter).collect();
    // Connections of one peer are verified together.
    let shown = chain(&old);
    let of_one: Vec<Term> = (0..1000)
        .map(|_| peers.enter(MeshProtocol::Opaque, &shown, &both))
        .collect();
    let cut = |terms: &[Term]| terms.iter().filter(|term| term.standing() == Standing::Cut).count();
    let (now, clock, without) = (Instant::now(), SystemTime::now(), credentials(&[&new], 2));
    peers.look(now, clock, Some(&without.trust));
    assert!([CHECKS, CHECKS - 1].contains(&cut(&terms)), "{}", cut(&terms));
    peers.look(now, clock, Some(&without.trust));
    assert_eq!((cut(&terms), cut(&of_one)), (CHECKS + 10, 1000));
}

#[test]
fn a_chain_ends_with_the_first_of_its_certificates_that_was_valid() {
    let (ca, now) = (TestCa::new("root"), SystemTime::now());
    let with_end = |end: SystemTime| ca.leaf_and_key(&[PEER], now - 3 * HOUR, end).0.remove(0);
    let seconds = |end: SystemTime| end.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let leaf = with_end(now + HOUR);
    for (others, expected) in [
        (vec![], now + HOUR),
        (vec![with_end(now + 2 * HOUR)], now + HOUR),
        (vec![with_end(now + HOUR / 2)], now + HOUR / 2),
        // It was of no use when the chain was verified.
        (vec![with_end(now - HOUR)], now + HOUR),
        (vec![CertificateDer::from(vec![1, 2, 3])], now + HOUR),
    ] {
        let chain = [vec![leaf.clone()], others].concat();
        assert_eq!(seconds(end_of(&chain, now)), seconds(expected));
    }
    assert_eq!(end_of(&[], now), SystemTime::UNIX_EPOCH);
}
