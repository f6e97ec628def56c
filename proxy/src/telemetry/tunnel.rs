//! A connection that is carried as bytes: counted while it lasts, and a line of the access log when it ends.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use outrigger_api::spiffe::SpiffeId;
use outrigger_proxy_transport::error::Reason;
use outrigger_proxy_transport::net::Meter;
use tokio::time::Instant;

use super::metrics::ServiceMetrics;
use super::{AccessDecision, AccessNote, Direction, LimitNote, Telemetry};
use crate::model::ServiceName;

/// What a tunnel joins.
#[derive(Clone, Debug)]
pub struct TunnelEnds {
    pub direction: Direction,
    /// Outbound: what was called. `None`: something outside the cluster.
    pub service: Option<ServiceName>,
    /// Inbound: the app's port. Outbound: the port that was called.
    pub port: u16,
    /// The other side's identity, if it is proven.
    pub peer: Option<SpiffeId>,
    /// Where it leads (outbound), or came from (inbound).
    pub endpoint: Option<SocketAddr>,
}

/// It ends when this is dropped.
pub struct Tunnel {
    telemetry: Telemetry,
    counted: Arc<ServiceMetrics>,
    ends: Box<TunnelEnds>,
    began: Instant,
    sent: Cell<u64>,
    received: Cell<u64>,
    access: RefCell<Option<AccessNote>>,
    idle: Cell<bool>,
}

/// A tunnel that has ended.
pub(super) struct TunnelEnd<'a> {
    pub(super) ends: &'a TunnelEnds,
    pub(super) duration: Duration,
    /// Bytes from who connected to who was connected to, and back.
    pub(super) sent: u64,
    pub(super) received: u64,
    /// Why it did not go on, where a policy or a limit ended it, or did not begin.
    pub(super) reason: Option<Reason>,
    pub(super) access: Option<&'a AccessNote>,
    pub(super) limit: Option<&'a LimitNote>,
}

impl Tunnel {
    pub(super) fn new(telemetry: Telemetry, ends: Box<TunnelEnds>) -> Self {
        let counted = telemetry.metrics().tunnel(&ends);
        counted.tunnel_began();
        Self {
            telemetry,
            counted,
            ends,
            began: Instant::now(),
            sent: Cell::new(0),
            received: Cell::new(0),
            access: RefCell::new(None),
            idle: Cell::new(false),
        }
    }

    /// What policies say of it, in the place of what they said before. Who hears that it is denied ends it.
    pub fn note(&self, access: AccessNote) {
        self.access.replace(Some(access));
    }

    /// It ends because nothing has moved for too long.
    pub fn idle(&self) {
        self.idle.set(true);
        self.telemetry.metrics().error(Reason::IdleTimeout);
    }
}

impl Meter for Tunnel {
    fn moved(&self, sent: u64, received: u64) {
        self.counted.tunnel_moved(sent, received);
        self.sent.set(self.sent.get() + sent);
        self.received.set(self.received.get() + received);
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        let access = self.access.borrow();
        let access = access.as_ref();
        let denied = access.is_some_and(|access| access.decision == AccessDecision::Denied);
        self.telemetry.tunnel_ended(&TunnelEnd {
            ends: &self.ends,
            duration: self.began.elapsed(),
            sent: self.sent.get(),
            received: self.received.get(),
            reason: match self.idle.get() {
                true => Some(Reason::IdleTimeout),
                false => denied.then_some(Reason::AccessDenied),
            },
            access,
            limit: None,
        });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use outrigger_proxy_transport::net::Meter;

    use super::TunnelEnds;
    use crate::dns::Resolver;
    use crate::telemetry::{Direction, Settings, Telemetry};

    #[tokio::test]
    async fn sent_is_from_who_connected() {
        let resolver = Resolver::start(Some(&[])).unwrap();
        let telemetry = Telemetry::start(&Settings::default(), &resolver).unwrap();
        let tunnel = telemetry.tunnel(Box::new(TunnelEnds {
            direction: Direction::Inbound,
            service: None,
            port: 5432,
            peer: None,
            endpoint: None,
        }));
        tunnel.moved(3, 40);
        tunnel.moved(2, 10);
        assert_eq!((tunnel.sent.get(), tunnel.received.get()), (5, 50));
        let text = telemetry.metrics().text();
        for (what, expected) in [("sent", 5), ("received", 50)] {
            let line =
                format!("outrigger_tcp_{what}_bytes_total{{direction=\"inbound\",server_port=\"5432\"}} {expected}\n");
            assert!(text.contains(&line), "{line}{text}");
        }
    }
}
