//! A new connection to an endpoint: mutual TLS where it is in the mesh; where it is not, TLS as a BackendTLSPolicy says, or plaintext.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use outrigger_api::address;
use outrigger_proxy_transport::client::{Checkout, Dialer, Failure};
use outrigger_proxy_transport::error::{ProxyError, Reason};
use outrigger_proxy_transport::net::count::{Bound, Place};
use outrigger_proxy_transport::net::{HttpVersion, Io, ReadAhead, Stream, Termed, listen};

use super::breaker::Bounds;
use super::member::Member;
use super::{State, tls};
use crate::context::Process;
use crate::identity::{Credentials, MeshProtocol};
use crate::model::{BackendTls, Endpoint};
use crate::telemetry::{Direction, metrics::Handshake};

/// Makes connections to one endpoint.
pub struct EndpointDialer<'a> {
    state: &'a Rc<State>,
    endpoint: &'a Arc<Endpoint>,
    /// Of an endpoint that is not in the mesh. `None`: plaintext.
    tls: Option<&'a Arc<BackendTls>>,
    /// `None`: it is not in the mesh.
    credentials: Option<Arc<Credentials>>,
    limit: Duration,
    /// What limits its connections.
    // Boxed: few Services have limits (`outbound::sizes`).
    bounds: Option<Box<Bounds<'a>>>,
}

/// A connection for one request, whether it is there or made within `limit`; as soon as `bounds` allow another one.
///
/// # Errors
/// Those of [`EndpointDialer::new`] and [`EndpointDialer::connect_for`]; in HTTP/2 [`Reason::ConnectTimeout`] and others when
/// the endpoint sends no SETTINGS; [`Reason::Overloaded`] where too many wait.
pub async fn checkout(
    state: &Rc<State>,
    member: &Member,
    bounds: Option<Bounds<'_>>,
    version: HttpVersion,
    limit: Duration,
) -> Result<Checkout, Failure> {
    let mut dialer = EndpointDialer::new(state, member, limit).map_err(Failure::before_sending)?;
    dialer.bounds = bounds.map(Box::new);
    let checkout = member.pool.checkout(version, &dialer).await;
    if let Some(bounds) = &dialer.bounds {
        bounds.go_on();
    }
    checkout.map_err(Failure::before_sending)
}

impl<'a> EndpointDialer<'a> {
    /// With this sidecar's credentials as they are now. An endpoint of the mesh is never called without: there is no falling
    /// back to plaintext.
    ///
    /// # Errors
    /// [`Reason::IdentityUnavailable`].
    pub fn new(state: &'a Rc<State>, member: &'a Member, limit: Duration) -> Result<Self, ProxyError> {
        let endpoint = &member.endpoint;
        let credentials = match &endpoint.identity {
            None => None,
            Some(_) => Some(state.context.process.identity.current().ok_or_else(no_certificate)?),
        };
        Ok(Self {
            state,
            endpoint,
            tls: member.tls(),
            credentials,
            limit,
            bounds: None,
        })
    }

    /// The same for bytes that are TLS already, of the app itself: none is put around it.
    pub fn as_it_is(self) -> Self {
        Self { tls: None, ..self }
    }

    /// A new connection for what `protocol` says, the handshake included.
    ///
    /// # Errors
    /// [`Reason::ConnectFailed`], [`Reason::ConnectTimeout`], [`Reason::TlsFailed`], [`Reason::IdentityMismatch`].
    pub fn connect_for(
        &self,
        protocol: MeshProtocol,
    ) -> impl Future<Output = Result<Stream, ProxyError>> + 'static + use<> {
        let (state, endpoint) = (Rc::clone(self.state), Arc::clone(self.endpoint));
        let (credentials, tls, limit) = (self.credentials.clone(), self.tls.cloned(), self.limit);
        // Boxed: few requests connect (`outbound::sizes`).
        let connecting = Box::pin(async move {
            let secured = (credentials.as_deref(), tls.as_deref());
            connect(&state, &endpoint, secured, protocol).await
        });
        let address = self.endpoint.address;
        async move {
            let connected = tokio::time::timeout(limit, connecting).await;
            connected.unwrap_or_else(|_| Err(out_of_time(address, limit)))
        }
    }
}

impl Dialer for EndpointDialer<'_> {
    fn address(&self) -> SocketAddr {
        self.endpoint.address
    }

    fn generation(&self) -> u64 {
        self.credentials
            .as_ref()
            .map_or(0, |credentials| credentials.generation)
    }

    fn limit(&self) -> Duration {
        self.limit
    }

    fn connections(&self) -> &[Bound] {
        self.bounds.as_ref().map_or(&[], |bounds| bounds.connections())
    }

    fn wait(&self) -> Result<Option<Place>, ProxyError> {
        self.bounds.as_ref().map_or(Ok(None), |bounds| bounds.wait())
    }

    fn make_room(&self) {
        if let Some(bounds) = &self.bounds {
            bounds.make_room();
            bounds.hold_back();
        }
    }

    fn connect(&self, version: HttpVersion) -> impl Future<Output = Result<Stream, ProxyError>> + 'static {
        if let Some(bounds) = &self.bounds {
            bounds.go_on();
        }
        self.connect_for(match version {
            HttpVersion::Http1 => MeshProtocol::Http1,
            HttpVersion::Http2 => MeshProtocol::Http2,
        })
    }
}

async fn connect(
    state: &State,
    endpoint: &Endpoint,
    (credentials, tls): (Option<&Credentials>, Option<&BackendTls>),
    protocol: MeshProtocol,
) -> Result<Stream, ProxyError> {
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
        _ => match tls {
            Some(tls) => {
                let (result, connected) = tls::connect(tls, io, endpoint.address, protocol).await;
                state.context.metrics().handshake(Direction::Outbound, result);
                connected
            }
            None => Ok(io.into()),
        },
    }
}

fn no_certificate() -> ProxyError {
    ProxyError::new(
        Reason::IdentityUnavailable,
        "this sidecar has no certificate yet; check that it reaches the controller, and the controller's log",
    )
}

fn out_of_time(endpoint: SocketAddr, limit: Duration) -> ProxyError {
    ProxyError::new(
        Reason::ConnectTimeout,
        format!(
            "no connection to {endpoint} within {limit:?}; check that the pod is alive and that no NetworkPolicy drops packets"
        ),
    )
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
        let check = match endpoint.pod {
            Some(_) => "check that the pod is ready",
            None => "check that a server listens there; no pod is known at this address",
        };
        ProxyError::new(
            Reason::ConnectFailed,
            format!("cannot connect to {}: {e}; {check}", endpoint.address),
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
