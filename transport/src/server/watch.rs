//! What a connection's guard and those who answer its requests tell each other.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};

use http::Method;
use tokio::sync::Notify;

use super::fault::Fault;
use crate::body::Progress;

/// In place of a head that is refused.
pub(super) const STAND_IN: &[u8] = b"REFUSED / HTTP/1.1\r\nhost:\r\n\r\n";
const STAND_IN_METHOD: &str = "REFUSED";

/// What the service has to know of the connection.
#[derive(Default)]
pub(super) struct Watch {
    fault: OnceLock<Fault>,
    /// It is in a body, and so there is no stand-in for it.
    in_body: AtomicBool,
    tunnel: AtomicU8,
    /// Of the request that is in hand.
    pub progress: Arc<Progress>,
    gone: Notify,
}

// The states of `Watch::tunnel`.
const NONE: u8 = 0;
/// The client asked for another protocol.
const ASKED: u8 = 1;
/// It has sent more, without waiting for the answer.
const HASTY: u8 = 2;
/// The answer was no.
const REFUSED: u8 = 3;

impl Watch {
    /// Why this request, a stand-in, is refused.
    pub(super) fn fault(&self, method: &Method) -> Option<Fault> {
        self.fault.get().copied().filter(|_| method.as_str() == STAND_IN_METHOD)
    }

    /// Whether a body turned out to be malformed: there is no next request.
    pub(super) fn ended_in_body(&self) -> bool {
        self.in_body.load(Ordering::Relaxed)
    }

    /// Whether the client asked for another protocol.
    pub(super) fn in_tunnel(&self) -> bool {
        self.tunnel.load(Ordering::Relaxed) != NONE
    }

    /// The other protocol was refused. Whether the connection has to be closed: HTTP cannot go on after bytes that may be
    /// of the other protocol.
    pub(super) fn refuse_tunnel(&self) -> bool {
        let asked = self
            .tunnel
            .compare_exchange(ASKED, REFUSED, Ordering::Relaxed, Ordering::Relaxed);
        asked == Err(HASTY)
    }

    /// Why nothing more is read.
    pub(super) fn refused(&self) -> Option<Fault> {
        self.fault.get().copied()
    }

    /// Nothing more is read. There is one fault: after it nothing is scanned.
    pub(super) fn refuse(&self, fault: Fault) {
        let _ = self.fault.set(fault);
    }

    /// A fault in a body follows.
    pub(super) fn end_in_body(&self) {
        self.in_body.store(true, Ordering::Relaxed);
    }

    /// The client asks for another protocol; `hasty`: it has sent more, without waiting for the answer.
    pub(super) fn ask_for_tunnel(&self, hasty: bool) {
        self.tunnel.store(if hasty { HASTY } else { ASKED }, Ordering::Relaxed);
    }

    /// Whether the bytes may be those of another protocol.
    pub(super) fn may_be_tunnel(&self) -> bool {
        matches!(self.tunnel.load(Ordering::Relaxed), ASKED | HASTY)
    }

    /// Whether HTTP goes on after the other protocol was refused. Says so once.
    pub(super) fn resumes(&self) -> bool {
        let refused = self.tunnel.load(Ordering::Relaxed) == REFUSED;
        if refused {
            self.tunnel.store(NONE, Ordering::Relaxed);
        }
        refused
    }

    /// The connection is closed.
    pub(super) fn close(&self) {
        self.gone.notify_one();
    }

    /// Waits until the connection is closed: it may go on as something else than HTTP.
    pub(super) async fn gone(&self) {
        self.gone.notified().await;
    }
}
