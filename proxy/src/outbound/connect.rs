//! A new connection to an endpoint: mutual TLS where it is in the mesh, plaintext where it is not.

use std::sync::Arc;
use std::time::Duration;

use crate::identity::{Credentials, MeshProtocol};
use crate::model::Endpoint;
use crate::telemetry::{Direction, metrics::Handshake};
use crate::worker::Worker;

use std::rc::Rc;

use outrigger_proxy_transport::error::{ProxyError, Reason};
use outrigger_proxy_transport::net::{Io, Prefixed, ReadAhead, Stream, listen};

/// What an in-memory connection to this very pod may hold on its way.
const PIPE_BUFFER: usize = 64 * 1024;

/// The credentials for an endpoint, and the generation that a pooled connection must have. An endpoint of the mesh is
/// never called without: there is no falling back to plaintext.
///
/// # Errors
/// [`Reason::IdentityUnavailable`].
pub fn credentials(worker: &Worker, endpoint: &Endpoint) -> Result<(u64, Option<Arc<Credentials>>), ProxyError> {
    if endpoint.identity.is_none() {
        return Ok((0, None));
    }
    match worker.process.identity.current() {
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
    worker: &Rc<Worker>,
    endpoint: &Endpoint,
    credentials: Option<&Credentials>,
    protocol: MeshProtocol,
    limit: Duration,
) -> Result<Stream, ProxyError> {
    let connecting = async {
        let io = open(worker, endpoint).await?;
        // A tunnel's reader may pause for as long as it likes. A request's hop must not wait for a node that died.
        if let (Io::Tcp(tcp), MeshProtocol::Http1 | MeshProtocol::Http2) = (&io, protocol) {
            listen::give_up_unacknowledged(tcp);
        }
        match (credentials, &endpoint.identity) {
            (Some(credentials), Some(identity)) => {
                let io = ReadAhead::new(io);
                let shaken = credentials.connect(io, endpoint.address.ip(), identity, protocol).await;
                let result = shaken.as_ref().map_or_else(|failed| failed.cause, |_| Handshake::Ok);
                worker
                    .process
                    .telemetry
                    .metrics()
                    .handshake(Direction::Outbound, result);
                Ok(Stream::Connected(Box::new(shaken?)))
            }
            _ => Ok(Stream::Plain(Prefixed::new(bytes::Bytes::new(), io))),
        }
    };
    // Boxed: few requests connect, and each connection of a client keeps room for all that one of its requests may wait for.
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
    worker: &Rc<Worker>,
    endpoint: &Arc<Endpoint>,
    credentials: Option<&Arc<Credentials>>,
    limit: Duration,
) -> impl Future<Output = Result<Stream, ProxyError>> + 'static {
    let (worker, endpoint, credentials) = (Rc::clone(worker), Arc::clone(endpoint), credentials.cloned());
    async move { connect(&worker, &endpoint, credentials.as_deref(), MeshProtocol::Http2, limit).await }
}

/// The endpoint that is this pod itself is reached in memory: a sidecar's own connections are not captured, so a dialled
/// one would come to the app in ciphertext.
async fn open(worker: &Rc<Worker>, endpoint: &Endpoint) -> Result<Io, ProxyError> {
    if let Some(why) = worker.why_no_backend(endpoint.address) {
        return Err(ProxyError::new(
            Reason::ConnectFailed,
            format!(
                "{} is {why}, which no backend may have: check the EndpointSlices of the Service, and what its externalName resolves to",
                endpoint.address
            ),
        ));
    }
    if worker.is_own_pod(endpoint.address) {
        let (near, far) = tokio::io::duplex(PIPE_BUFFER);
        let seat = worker.room.enter_own(endpoint.address.ip());
        crate::inbound::spawn(Rc::clone(worker), Io::Pipe(far), endpoint.address, None, seat);
        return Ok(Io::Pipe(near));
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
