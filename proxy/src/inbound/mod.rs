//! From everyone to the app: who calls, in mutual TLS or not, and then HTTP requests or plain bytes.

mod apps;
mod request;
#[cfg(test)]
mod sizes;

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use outrigger_api::spiffe::SpiffeId;
use outrigger_proxy_transport::body::ClientBody;
use outrigger_proxy_transport::drain::OpenConnection;
use outrigger_proxy_transport::error::Reason;
use outrigger_proxy_transport::net::detect::{Detected, Peeked, Verdict, peek, protocol, settle};
use outrigger_proxy_transport::net::{Io, Prefixed, Stream, Termed, listen, tunnel};
use outrigger_proxy_transport::room::Seat;
use outrigger_proxy_transport::server::{HttpVersion, ResponseBody, serve};
use tokio::io::AsyncReadExt;
use tokio::time::Instant;

use crate::config::{Mtls, Plaintext};
use crate::context::{Context, Process};
use crate::identity::{Hello, MeshProtocol, Peers, inspect_hello};
use crate::model::Protocol;
use crate::telemetry::Direction;
use crate::telemetry::metrics::{Handshake, OpenConnection as Counted};
use apps::Apps;

/// A peer's handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// After a silence of this long on an opaque port, the app may speak first. A sidecar speaks at once; if its first packet
/// is lost, the next one comes after 200 ms (RFC 6298's timer, as Linux has it).
const SERVER_FIRST: Duration = Duration::from_millis(300);
/// A connection to the app, on the same pod.
const APP_CONNECT: Duration = Duration::from_secs(5);
/// Bytes of an unfinished head that are held of a client that is refused unless it is kubelet.
const PROBE_HEAD: usize = 4096;
/// How long a TCP probe's connection is held for.
const PROBE_HELD: Duration = Duration::from_secs(10);

/// What the inbound direction of one worker knows.
pub struct State {
    pub context: Rc<Context>,
    apps: Apps,
    peers: Peers,
}

impl State {
    /// Nothing is known yet.
    pub fn new(context: Rc<Context>) -> Rc<Self> {
        Rc::new(Self {
            apps: Apps::default(),
            peers: context.peers(Direction::Inbound),
            context,
        })
    }

    /// Closes connections to the app that were idle for too long, and those of peers whose certificate has ended.
    pub fn sweep(&self, now: Instant) {
        self.peers.sweep(now, &self.context.process.identity);
        self.apps.sweep(now);
    }
}

/// What every request of one connection shares.
struct Caller {
    /// Where the app is.
    app: SocketAddr,
    /// Proven by mutual TLS.
    peer: Option<SpiffeId>,
    address: Option<SocketAddr>,
}

/// What the first bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum First {
    Mesh,
    Plain(Detected),
}

/// Carries a connection to the app on a task of its own.
pub fn spawn(state: Rc<State>, io: Io, app: SocketAddr, client: Option<SocketAddr>, seat: Seat) {
    tokio::task::spawn_local(carry(state, io, app, client, seat));
}

async fn carry(state: Rc<State>, io: Io, app: SocketAddr, client: Option<SocketAddr>, seat: Seat) {
    let open = state.context.activity.open(false, seat);
    let counted = state.context.metrics().connection(Direction::Inbound, false);
    let caller = Caller {
        app,
        peer: None,
        address: client,
    };
    tokio::select! {
        biased;
        () = serve_connection(state, io, caller, &open, counted) => {}
        () = open.seat().closed() => tracing::debug!(?client, "an idle connection is closed for another"),
    }
}

async fn serve_connection(state: Rc<State>, io: Io, caller: Caller, open: &OpenConnection, counted: Counted) {
    let told = told_protocol(&state.context.process, caller.app.port());
    let app_first = told == Protocol::Detect
        && state
            .context
            .process
            .app_first
            .contains(&caller.app.port(), Instant::now());
    let permissive = state.context.config().mtls == Mtls::Permissive;
    if (told == Protocol::Opaque || app_first)
        && permissive
        && let Some(server) = app_speaks_first(&state, &io, caller.app).await
    {
        let _busy = open.seat().busy();
        let mut client = Stream::Plain(Prefixed::new(Bytes::new(), io));
        return tunnel(&mut client, &mut Stream::Plain(server), state.context.activity.begin()).await;
    }
    let peeked = match first_bytes(&state, io, told).await {
        Ok(peeked) => peeked,
        Err(error) => return tracing::debug!(%error, "a client closed a connection before its first bytes"),
    };
    if peeked.timed_out && told != Protocol::Opaque {
        state.context.metrics().detect_timeout();
    }
    let detected = match peeked.verdict {
        Some(First::Mesh) => return Box::pin(terminate(state, peeked.io, caller, open, counted)).await,
        Some(First::Plain(detected)) => Some(detected),
        None if peeked.timed_out && peeked.io.prefix().is_empty() && told == Protocol::Detect && permissive => {
            return Box::pin(silent(&state, peeked.io, caller.app, open)).await;
        }
        // Half a word, or gone.
        None => None,
    };
    let told_http = matches!(told, Protocol::Http1 | Protocol::Http2);
    let detected = settle(detected, peeked.io.prefix(), told_http);
    Box::pin(plaintext(state, peeked.io, detected, caller, open)).await
}

/// What the first bytes of a client are.
async fn first_bytes(state: &State, io: Io, told: Protocol) -> std::io::Result<Peeked<Io, First>> {
    let inspect = |bytes: &[u8]| match inspect_hello(bytes) {
        Hello::NeedMore => Verdict::NeedMore,
        Hello::Mesh => Verdict::Is(First::Mesh),
        Hello::OtherTls => Verdict::Is(First::Plain(Detected::Tls)),
        Hello::NotTls if matches!(told, Protocol::Opaque | Protocol::Tls) => {
            Verdict::Is(First::Plain(Detected::Opaque))
        }
        Hello::NotTls => match protocol(bytes) {
            Verdict::NeedMore => Verdict::NeedMore,
            Verdict::Is(detected) => Verdict::Is(First::Plain(detected)),
        },
    };
    if matches!(told, Protocol::Http1 | Protocol::Http2) {
        // Who calls an app of HTTP speaks first, when there is something to say.
        io.readable().await;
    }
    let peeked = peek(io, state.context.config().detect_timeout, &inspect).await?;
    // Half of a ClientHello: a packet was lost. It must not come to the app as plaintext.
    if peeked.timed_out && !peeked.io.prefix().is_empty() && inspect_hello(peeked.io.prefix()) == Hello::NeedMore {
        let whole = peek(peeked.io, HANDSHAKE, &inspect).await?;
        return Ok(Peeked {
            verdict: whole.verdict,
            timed_out: whole.timed_out,
            io: whole.io.flatten(),
        });
    }
    Ok(peeked)
}

/// Waits until the client speaks (`None`), or else until its silence can only mean that it waits for the app: then this
/// is a connection to the app.
async fn app_speaks_first(state: &State, client: &Io, app: SocketAddr) -> Option<Prefixed<Io>> {
    let limit = state.context.config().detect_timeout;
    let app_speaks = async {
        tokio::time::sleep(SERVER_FIRST.min(limit)).await;
        let server = tokio::time::timeout(APP_CONNECT, listen::connect(app)).await.ok()?;
        let server = Io::Tcp(server.ok()?);
        let _ = tokio::time::timeout(limit.saturating_sub(SERVER_FIRST), server.readable()).await;
        Some(Prefixed::new(Bytes::new(), server))
    };
    tokio::select! {
        biased;
        () = client.readable() => None,
        server = app_speaks => server,
    }
}

/// Ends the mutual TLS of a peer sidecar; ALPN says what is in it.
async fn terminate(state: Rc<State>, io: Prefixed<Io>, caller: Caller, open: &OpenConnection, mut counted: Counted) {
    // Boxed, as what else is large and not for long, or not for every connection (`sizes`).
    let Some((stream, peer, protocol)) = Box::pin(shake_hands(&state, io, caller.address)).await else {
        return;
    };
    counted.set_tls();
    let caller = Caller {
        peer: Some(peer),
        ..caller
    };
    match protocol {
        MeshProtocol::Http1 => serve_http(state, HttpVersion::Http1, stream, caller, open).await,
        MeshProtocol::Http2 => serve_http(state, HttpVersion::Http2, stream, caller, open).await,
        MeshProtocol::Opaque => forward(&state, stream, caller.app, open).await,
    }
}

/// A handshake, and who calls. `None`: it failed, which was told.
async fn shake_hands(
    state: &State,
    io: Prefixed<Io>,
    client: Option<SocketAddr>,
) -> Option<(Stream, SpiffeId, MeshProtocol)> {
    let metrics = state.context.metrics();
    let Some(credentials) = state.context.process.identity.current() else {
        metrics.error(Reason::IdentityUnavailable);
        tracing::warn!(?client, "a peer called before this sidecar has a certificate");
        return None;
    };
    let accepted = tokio::time::timeout(HANDSHAKE, credentials.accept(io)).await;
    let (cause, error) = match accepted {
        Ok(Ok((tls, peer, protocol))) => {
            metrics.handshake(Direction::Inbound, Handshake::Ok);
            let chain = tls.get_ref().1.peer_certificates().unwrap_or_default();
            let term = state.peers.enter(protocol, chain, &credentials);
            return Some((Stream::Accepted(Box::new(Termed::new(tls, term))), peer, protocol));
        }
        Ok(Err(refused)) => (refused.cause, refused.to_string()),
        Err(_) => (Handshake::Timeout, format!("it took longer than {HANDSHAKE:?}")),
    };
    metrics.handshake(Direction::Inbound, cause);
    tracing::info!(?client, error, "a peer's TLS handshake failed");
    None
}

/// What is not from a sidecar: passed on, or refused where mutual TLS is required.
async fn plaintext(state: Rc<State>, io: Prefixed<Io>, detected: Detected, caller: Caller, open: &OpenConnection) {
    let stream = Stream::Plain(io);
    if state.context.config().mtls == Mtls::Strict {
        // All requests will be refused, but for those of kubelet that are let in.
        let let_in = &state.context.config().let_in;
        let probed = let_in.iter().any(|e| e.port == caller.app.port());
        open.seat().hold_at_most(if probed { PROBE_HEAD } else { 0 });
    }
    match (detected, state.context.config().mtls) {
        // Each request is looked at: some probes are let in.
        (Detected::Http1, _) => serve_http(state, HttpVersion::Http1, stream, caller, open).await,
        (Detected::Http2, _) => serve_http(state, HttpVersion::Http2, stream, caller, open).await,
        (_, Mtls::Permissive) => forward(&state, stream, caller.app, open).await,
        (_, Mtls::Strict) => {
            let port = caller.app.port();
            let let_in = &state.context.config().let_in;
            if let_in.iter().any(|e| e.port == port && e.what == Plaintext::Connection) {
                return hold(stream).await;
            }
            state.context.metrics().error(Reason::PlaintextRefused);
            tracing::info!(client = ?caller.address, port, "a plaintext connection is refused: mutual TLS is required");
            stream.reset_on_close();
        }
    }
}

async fn serve_http(state: Rc<State>, version: HttpVersion, stream: Stream, caller: Caller, open: &OpenConnection) {
    let pool = match version {
        HttpVersion::Http1 => state.apps.shared(caller.app),
        // What one peer does to its connection (streams that it resets or does not read) stays its own trouble.
        HttpVersion::Http2 => state.apps.for_one(),
    };
    let handle = Rc::new(async move |request: Request<ClientBody>| -> Response<ResponseBody> {
        request::handle(&state, &caller, &pool, version, request).await
    });
    if let Err(error) = serve(version, stream, open, handle).await {
        tracing::debug!(%error, "a connection to the app broke");
    }
}

/// A plaintext client that says nothing, on a port that nobody declared: perhaps the app speaks first, which is remembered.
async fn silent(state: &Rc<State>, client: Prefixed<Io>, app: SocketAddr, open: &OpenConnection) {
    let _busy = open.seat().busy();
    let mut client = Stream::Plain(client);
    let Some(server) = dial(state, &client, app).await else {
        return;
    };
    let connected = Instant::now();
    let mut greeting = [0; 8];
    let length = match &client {
        Stream::Plain(io) => tokio::select! {
            biased;
            () = io.get_ref().readable() => 0,
            length = server.first_word(&mut greeting) => length,
        },
        Stream::Accepted(_) | Stream::Connected(_) => 0,
    };
    let now = Instant::now();
    let after = now.saturating_duration_since(connected);
    let app_first = &state.context.process.app_first;
    app_first.greeted(&app.port(), &greeting[..length], after, now);
    let mut server = Stream::Plain(Prefixed::new(Bytes::new(), server));
    tunnel(&mut client, &mut server, state.context.activity.begin()).await;
}

async fn forward(state: &Rc<State>, mut client: Stream, app: SocketAddr, open: &OpenConnection) {
    let _busy = open.seat().busy();
    if let Some(server) = dial(state, &client, app).await {
        let mut server = Stream::Plain(Prefixed::new(Bytes::new(), server));
        tunnel(&mut client, &mut server, state.context.activity.begin()).await;
    }
}

/// A connection to the app. `None`: there is none, and the client is reset.
async fn dial(state: &State, client: &Stream, app: SocketAddr) -> Option<Io> {
    match tokio::time::timeout(APP_CONNECT, listen::connect(app)).await {
        Ok(Ok(server)) => Some(Io::Tcp(server)),
        failed => {
            state.context.metrics().error(Reason::AppUnavailable);
            tracing::info!(%app, ?failed, "the app does not accept connections");
            client.reset_on_close();
            None
        }
    }
}

/// A TCP probe wants to see that its connection is taken; not a byte is passed on.
async fn hold(mut stream: Stream) {
    let mut nothing = [0; 256];
    let until_closed = async { while matches!(stream.read(&mut nothing).await, Ok(1..)) {} };
    let _ = tokio::time::timeout(PROBE_HELD, until_closed).await;
}

/// What is known of the app's port without looking.
fn told_protocol(process: &Process, port: u16) -> Protocol {
    let info = process.discovery.workload();
    let info = info.borrow();
    match info.protocols.get(&port) {
        Some(protocol) if *protocol != Protocol::Detect => *protocol,
        _ if info.opaque_ports.contains(&port) || process.is_opaque_port(port) => Protocol::Opaque,
        _ => Protocol::Detect,
    }
}
