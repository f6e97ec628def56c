//! Who is at the other end of a connection, as services of the server see it.

use std::net::SocketAddr;

use outrigger_api::spiffe::SpiffeId;
use outrigger_gate::Work;

use crate::share::Share;

/// Who sent a request. In the extensions of every request.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The connection's other end.
    pub address: SocketAddr,
    /// The peer's verified SPIFFE ID, if it presented an SVID.
    pub identity: Option<SpiffeId>,
    /// How it is bounded.
    pub bound: Bound,
}

/// How a peer is bounded.
#[derive(Clone, Debug)]
pub enum Bound {
    /// By the times of its connection, which has no SVID.
    Times(Work),
    /// By the budget.
    Share(Share),
}
