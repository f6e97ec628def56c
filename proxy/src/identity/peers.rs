//! The peers of the connections that one worker holds in one direction: how long their certificates are good for, and what becomes of the
//! connections then.
//!
//! A handshake proves who a peer is at that moment, and a connection may live on for days. Two things end what was proven: the
//! time of a certificate is over (**expired**), or its root is not trusted any more (**untrusted**). Where all is well neither
//! is seen: sidecars renew their SVIDs long before their end, and then use new connections. What is left are tunnels, streams
//! that go on for long, sidecars that cannot renew, and whoever holds a connection because its SVID would not be accepted again.
//!
//! | | expired | untrusted |
//! |---|---|---|
//! | HTTP | GOAWAY, `Connection: close`, and out of the pool; what is in flight goes on, or has [`Rules::limit`] with [`Rules::close_expired`] | the same, and what is in flight has [`Rules::limit`] |
//! | opaque | goes on and is counted; closed with [`Rules::close_expired`] | closed |
//!
//! There is no timer for a connection: the worker's sweep looks, once a second. When the roots are others, each chain is verified
//! again, [`CHECKS`] in a sweep, because a verification takes as long as a request. That this sidecar has another SVID, or none,
//! changes nothing.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use outrigger_proxy_transport::net::{Notice, Standing, Term};
use rustls_pki_types::CertificateDer;
use tokio::time::Instant;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::clock::from_timestamp;
use super::{Credentials, Identity, MeshProtocol, Trust};
use crate::telemetry::metrics::Ended;
use crate::telemetry::{Direction, Metrics};

/// Chains that are verified again in one sweep: 64 take 10 ms in a debug build.
const CHECKS: usize = 64;

type Chain = Vec<CertificateDer<'static>>;

/// What becomes of connections.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// How long what is in flight may take where it may not go on; and how long a peer's HTTP connection is left idle, so that
    /// it does not close under a request that is on its way.
    pub limit: Duration,
    /// Whether connections do not outlive the certificate of their peer.
    pub close_expired: bool,
}

/// See the module.
pub struct Peers {
    direction: Direction,
    rules: Rules,
    metrics: Arc<Metrics>,
    known: RefCell<HashMap<Chain, Peer>>,
    /// Connections that have outlived a certificate, as they were counted last.
    expired: Cell<i64>,
}

/// A chain that a peer has shown, and the connections that rest on it. There are as many as one peer likes to have.
struct Peer {
    /// When the first of its certificates ends.
    ends: SystemTime,
    /// Of the roots that it was verified with last.
    generation: u64,
    expired: Option<Instant>,
    untrusted: Option<Instant>,
    connections: Vec<(MeshProtocol, Notice)>,
}

impl Peers {
    /// Those that call (inbound) or are called. Nobody is there yet.
    pub fn new(direction: Direction, rules: Rules, metrics: Arc<Metrics>) -> Self {
        Self {
            direction,
            rules,
            metrics,
            known: RefCell::default(),
            expired: Cell::default(),
        }
    }

    /// A connection whose handshake was just done with `credentials`, and the chain that the peer has shown in it or in the one
    /// that it resumes. Gives how long it may be used.
    pub fn enter(&self, protocol: MeshProtocol, chain: &[CertificateDer<'static>], credentials: &Credentials) -> Term {
        let (term, notice) = Term::begin();
        let mut known = self.known.borrow_mut();
        if !known.contains_key(chain) {
            known.insert(chain.to_vec(), Peer::new(chain, credentials));
        }
        if let Some(peer) = known.get_mut(chain) {
            peer.connections.push((protocol, notice));
            // The handshake has just shown that these roots lead to it.
            if peer.generation < credentials.trust.generation {
                peer.generation = credentials.trust.generation;
                peer.untrusted = None;
            }
        }
        term
    }

    /// Tells connections what has become of their peers' certificates by `now`. Called by the worker's one timer.
    pub fn sweep(&self, now: Instant, identity: &Identity) {
        self.look(now, identity.clock().now(), identity.trusted().as_deref());
    }

    fn look(&self, now: Instant, clock: SystemTime, trust: Option<&Trust>) {
        let (mut checks, mut expired, mut ended) = (CHECKS, 0, [0_usize; 2]);
        self.known.borrow_mut().retain(|chain, peer| {
            peer.connections.retain(|(_, notice)| notice.is_heard());
            if peer.connections.is_empty() {
                return false;
            }
            if let Some(trust) = trust
                && peer.generation < trust.generation
                && checks > 0
            {
                checks -= 1;
                peer.generation = trust.generation;
                // At a moment in which all of them were valid: this is about roots alone.
                let trusted = trust.reaches(self.direction, chain, peer.ends);
                peer.untrusted = (!trusted).then(|| peer.untrusted.unwrap_or(now));
            }
            peer.expired = (peer.ends < clock).then(|| peer.expired.unwrap_or(now));
            if peer.expired.is_some() {
                expired += i64::try_from(peer.connections.len()).unwrap_or(i64::MAX);
            }
            for (protocol, notice) in &peer.connections {
                let (why, standing) = peer.standing(*protocol, now, self.rules);
                if standing > Standing::Good && notice.give(standing) == Some(Standing::Good) {
                    ended[why as usize] += 1;
                    self.metrics.connection_ended(self.direction, why);
                }
            }
            true
        });
        self.metrics
            .connections_expired(self.direction, expired - self.expired.replace(expired));
        let direction = self.direction.as_str();
        let [expired, untrusted] = ended;
        if untrusted > 0 {
            tracing::warn!(
                direction,
                "{untrusted} connections end: the roots of their peers' certificates are not trusted any more"
            );
        }
        if expired > 0 {
            tracing::info!(
                direction,
                "{expired} connections end: their peers' certificates have ended"
            );
        }
    }
}

impl Peer {
    fn new(chain: &[CertificateDer<'_>], credentials: &Credentials) -> Self {
        Self {
            ends: end_of(chain, credentials.clock().now()),
            generation: credentials.trust.generation,
            expired: None,
            untrusted: None,
            connections: Vec::new(),
        }
    }

    /// How a connection stands, and why.
    fn standing(&self, protocol: MeshProtocol, now: Instant, rules: Rules) -> (Ended, Standing) {
        let (why, since, goes_on) = match (self.untrusted, self.expired) {
            (Some(since), _) => (Ended::Untrusted, since, false),
            (None, Some(since)) => (Ended::Expired, since, !rules.close_expired),
            (None, None) => return (Ended::Expired, Standing::Good),
        };
        let standing = match (protocol, goes_on) {
            (MeshProtocol::Opaque, true) => Standing::Good,
            (MeshProtocol::Opaque, false) => Standing::Cut,
            _ if now.saturating_duration_since(since) < rules.limit => Standing::Ending,
            (_, true) => Standing::Over,
            (_, false) => Standing::Cut,
        };
        (why, standing)
    }
}

/// When the first certificate of a chain that was valid at `now` ends. One that had ended before was of no use to it.
fn end_of(chain: &[CertificateDer<'_>], now: SystemTime) -> SystemTime {
    let ends = chain.iter().filter_map(|der| {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        Some(from_timestamp(certificate.validity().not_after.timestamp()))
    });
    // A chain without a certificate has ended; it is not reached, because a handshake needs one.
    let of_leaf = ends.clone().next().unwrap_or(SystemTime::UNIX_EPOCH);
    ends.filter(|end| *end >= now).fold(of_leaf, SystemTime::min)
}

#[cfg(test)]
#[path = "peers_tests.rs"]
mod tests;
