//! A new connection to an endpoint: mutual TLS where it is in the mesh, plaintext where it is not.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use outrigger_api::address;
use outrigger_proxy_transport::error::{ProxyError, Reason};
use outrigger_proxy_transport::net::{Io, Prefixed, ReadAhead, Stream, Termed, listen};

use super::State;
use crate::context::Process;
use crate::identity::{Credentials, MeshProtocol};
use crate::model::Endpoint;
use crate::telemetry::{Direction, metrics::Handshake};

/// The credentials for an endpoint, and the generation that a pooled connection must have. An endpoint of the mesh is
/// never called without: there is no falling back to plaintext.
///
/// # Errors
/// [`Reason::IdentityUnavailable`].
pub fn credentials(state: &State, endpoint: &Endpoint) -> Result<(u64, Option<Arc<Credentials>>), ProxyError> {
    if endpoint.identity.is_none() {
        return Ok((0, None));
    }
    match state.context.process.identity.current() {
        Some(credentials) => Ok((credentials.generation, Some(credentials))),
        None => Err(ProxyError::new(
            Reason::IdentityUnavailable,
            "this sidecar has no certificate yet; check that it reaches the controller, and the controller's log",
        )),
    }
}

/// Connects within `limit`, the handshake included.
///
/// # Errors
/// [`Reason::ConnectFailed`], [`Reason::ConnectTimeout`], [`Reason::TlsFailed`], [`Reason::IdentityMismatch`].
pub async fn connect(
    state: &Rc<State>,
    endpoint: &Endpoint,
    credentials: Option<&Credentials>,
    protocol: MeshProtocol,
    limit: Duration,
) -> Result<Stream, ProxyError> {
    let connecting = async {
        let io = open(state, endpoint).await?;
        // A tunnel's reader may pause for as long as it likes. A request's hop must not wait for a node that died.
        if let (Io::Tcp(tcp), MeshProtocol::Http1 | MeshProtocol::Http2) = (&io, protocol) {
            listen::give_up_unacknowledged(tcp);
        }
        match (credentials, &endpoint.identity) {
            (Some(credentials), Some(identity)) => {
                let io = ReadAhead::new(io);
                let shaken = credentials.connect(io, endpoint.address.ip(), identity, protocol).await;
                let result = shaken.as_ref().map_or_else(|failed| failed.cause, |_| Handshake::Ok);
                state.context.metrics().handshake(Direction::Outbound, result);
                let tls = shaken?;
                let chain = tls.get_ref().1.peer_certificates().unwrap_or_default();
                let term = state.peers.enter(protocol, chain, credentials);
                Ok(Stream::Connected(Box::new(Termed::new(tls, term))))
            }
            _ => Ok(Stream::Plain(Prefixed::new(bytes::Bytes::new(), io))),
        }
    };
    // Boxed: few requests connect (`outbound::sizes`).
    tokio::time::timeout(limit, Box::pin(connecting)).await.unwrap_or_else(|_| {
        Err(ProxyError::new(
            Reason::ConnectTimeout,
            format!(
                "no connection to {} within {limit:?}; check that the pod is alive and that no NetworkPolicy drops packets",
                endpoint.address
            ),
        ))
    })
}

/// The same for HTTP/2, where the connection is made for all requests that wait for it, and not for one of them.
pub fn connect_shared(
    state: &Rc<State>,
    endpoint: &Arc<Endpoint>,
    credentials: Option<&Arc<Credentials>>,
    limit: Duration,
) -> impl Future<Output = Result<Stream, ProxyError>> + 'static {
    let (state, endpoint, credentials) = (Rc::clone(state), Arc::clone(endpoint), credentials.cloned());
    async move { connect(&state, &endpoint, credentials.as_deref(), MeshProtocol::Http2, limit).await }
}

/// The endpoint that is this pod itself is reached in memory.
async fn open(state: &State, endpoint: &Endpoint) -> Result<Io, ProxyError> {
    if let Some(why) = why_no_backend(&state.context.process, endpoint.address) {
        return Err(ProxyError::new(
            Reason::ConnectFailed,
            format!(
                "{} is {why}, which no backend may have: check the EndpointSlices of the Service, and what its externalName resolves to",
                endpoint.address
            ),
        ));
    }
    if state.context.process.is_own_pod(endpoint.address) {
        return state.self_calls.connect(endpoint.address);
    }
    listen::connect(endpoint.address).await.map(Io::Tcp).map_err(|e| {
        ProxyError::new(
            Reason::ConnectFailed,
            format!(
                "cannot connect to {}: {e}; check that the pod is ready",
                endpoint.address
            ),
        )
    })
}

/// Why a backend may not have this address: what is the pod's own (its loopback, its node's metadata service, this sidecar's
/// ports) is not for whoever writes routes and Services in other namespaces. A standalone sidecar is told by its own file.
fn why_no_backend(process: &Process, address: SocketAddr) -> Option<&'static str> {
    if !process.config.captures() {
        None
    } else if process.is_own_listener(address) {
        Some("one of this sidecar's own ports")
    } else {
        address::why_no_backend(address.ip())
    }
}
