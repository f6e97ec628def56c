//! From everyone to the app: who calls, in mutual TLS or not, and then HTTP requests or plain bytes.

mod access;
mod admit;
mod apps;
mod introduction;
mod limits;
mod opaque;
mod request;
#[cfg(test)]
mod sizes;
mod tokens;

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use http::{Request, Response};
use outrigger_api::spiffe::SpiffeId;
use outrigger_proxy_transport::body::ClientBody;
use outrigger_proxy_transport::drain::OpenConnection;
use outrigger_proxy_transport::error::Reason;
use outrigger_proxy_transport::net::detect::{Detected, Peeked, Verdict, peek, protocol, resolve};
use outrigger_proxy_transport::net::{HttpVersion, Io, Prefixed, Stream, Term, Termed};
use outrigger_proxy_transport::room::Seat;
use outrigger_proxy_transport::server::{ResponseBody, serve};
use tokio::time::Instant;

use crate::context::{Context, Process};
use crate::identity::{Hello, MeshProtocol, Peers, inspect_hello};
use crate::model::Protocol;
use crate::telemetry::metrics::{Handshake, OpenConnection as Counted};
use crate::telemetry::{Direction, TunnelEnds};
use access::{Refused, Subject};
use admit::{Admission, Carries, Refusal, Server, admit_connection};
use apps::Apps;
use introduction::Introduction;
use request::RequestRules;

/// A peer's handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// A connection to the app, on the same pod.
const APP_CONNECT: Duration = Duration::from_secs(5);

/// What the inbound direction of one worker knows.
pub struct State {
    pub context: Rc<Context>,
    rules: RequestRules,
    apps: Apps,
    peers: Peers,
}

impl State {
    /// Nothing is known yet.
    pub fn new(context: Rc<Context>) -> Rc<Self> {
        Rc::new(Self {
            rules: RequestRules::new(&context),
            apps: Apps::default(),
            peers: context.peers(Direction::Inbound),
            context,
        })
    }

    /// Closes connections to the app that were idle for too long, those of peers whose certificate has ended, and those that new
    /// policies do not let in.
    pub fn sweep(&self, now: Instant) {
        self.peers.sweep(now, &self.context.process.identity);
        self.apps.sweep(now);
        self.rules.access.take_update();
        self.rules.limits.sweep();
    }

    fn admit(&self, caller: &Caller, carries: Carries) -> Admission {
        let access = self.rules.access.current();
        admit_connection(&Server::new(self.context.config(), access.as_deref()), caller, carries)
    }

    /// Resets a connection, and tells why.
    fn refuse(&self, stream: &Stream, caller: &Caller, refusal: &Refusal) {
        let (client, port) = (caller.address, caller.app.port());
        match refusal {
            Refusal::Plaintext => {
                tracing::info!(
                    ?client,
                    port,
                    "a plaintext connection is refused: mutual TLS is required"
                );
            }
            Refusal::Access(Refused::Unknown) => {
                tracing::info!(
                    ?client,
                    port,
                    "a connection is refused: the controller has not said yet who may call this pod"
                );
            }
            Refusal::Access(Refused::Denied(note)) => {
                self.rules.access.tell(caller, Subject::Bytes, note);
            }
        }
        self.reset(stream, caller, refusal);
    }

    /// The same, where the log has it already.
    fn reset(&self, stream: &Stream, caller: &Caller, refusal: &Refusal) {
        let telemetry = &self.context.process.telemetry;
        telemetry.connection_refused(&caller.ends(), refusal.reason(), refusal.note());
        stream.reset_on_close();
    }
}

/// What every request of one connection shares.
struct Caller {
    /// Where the app is.
    app: SocketAddr,
    /// Proven by mutual TLS.
    peer: Option<SpiffeId>,
    /// `None`: this very pod.
    address: Option<SocketAddr>,
    /// Of the connection.
    term: Term,
    /// Of one that carries HTTP.
    introduction: Introduction,
}

impl Caller {
    /// Of a connection of bytes.
    fn ends(&self) -> TunnelEnds {
        TunnelEnds {
            direction: Direction::Inbound,
            service: None,
            port: self.app.port(),
            peer: self.peer.clone(),
            endpoint: self.address,
        }
    }
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
        term: Term::default(),
        introduction: Introduction::default(),
    };
    tokio::select! {
        biased;
        () = serve_connection(state, io, caller, &open, counted) => {}
        () = open.seat().closed() => tracing::debug!(?client, "an idle connection is closed for another"),
    }
}

/// Hello, admission, and then what the connection carries.
async fn serve_connection(state: Rc<State>, io: Io, caller: Caller, open: &OpenConnection, mut counted: Counted) {
    let (app, process) = (caller.app, &state.context.process);
    if state.rules.access.current().is_none() {
        Box::pin(state.rules.access.first_word()).await;
    }
    let declared = declared_protocol(process, app.port());
    // Who says nothing comes to the app only where bytes in plaintext do.
    let silence = state.admit(&caller, Carries::Bytes) == Admission::Allow;
    let server_first = match declared {
        Protocol::Opaque => silence,
        Protocol::Detect => silence && process.app_first.contains(&app.port(), Instant::now()),
        Protocol::Http1 | Protocol::Http2 | Protocol::Tls => false,
    };
    let io = match server_first {
        false => io,
        true => match Box::pin(opaque::server_first(&state, io, &caller, open)).await {
            Some(io) => io,
            None => return,
        },
    };
    let hello = match read_hello(&state, io, declared).await {
        Ok(hello) => hello,
        Err(error) => return tracing::debug!(%error, "a client closed a connection before its first bytes"),
    };
    if hello.timed_out && declared != Protocol::Opaque {
        state.context.metrics().detect_timeout();
    }
    let is_silent = hello.verdict.is_none() && hello.timed_out && hello.io.prefix().is_empty();
    if is_silent && silence && declared == Protocol::Detect {
        return Box::pin(opaque::silent(&state, hello.io, &caller, open)).await;
    }
    let Some((stream, peer, carries)) = identify(&state, hello, declared, caller.address).await else {
        return;
    };
    if peer.is_some() {
        counted.set_tls();
    }
    let caller = Caller {
        peer,
        term: stream.term(),
        ..caller
    };
    let admission = state.admit(&caller, carries);
    // Boxed: a connection that only comes and goes has no room for it (`sizes`).
    let serving = serve_admitted(state, admission, carries, stream, caller, open);
    Box::pin(serving).await;
}

/// What the first bytes of a client are.
async fn read_hello(state: &State, io: Io, declared: Protocol) -> std::io::Result<Peeked<Io, First>> {
    let inspect = |bytes: &[u8]| match inspect_hello(bytes) {
        Hello::NeedMore => Verdict::NeedMore,
        Hello::Mesh => Verdict::Is(First::Mesh),
        Hello::OtherTls => Verdict::Is(First::Plain(Detected::Tls)),
        Hello::NotTls if matches!(declared, Protocol::Opaque | Protocol::Tls) => {
            Verdict::Is(First::Plain(Detected::Opaque))
        }
        Hello::NotTls => match protocol(bytes) {
            Verdict::NeedMore => Verdict::NeedMore,
            Verdict::Is(detected) => Verdict::Is(First::Plain(detected)),
        },
    };
    if matches!(declared, Protocol::Http1 | Protocol::Http2) {
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

/// Who calls, and what is in the connection. `None`: a peer's handshake failed, which was told.
async fn identify(
    state: &State,
    hello: Peeked<Io, First>,
    declared: Protocol,
    client: Option<SocketAddr>,
) -> Option<(Stream, Option<SpiffeId>, Carries)> {
    let http_declared = matches!(declared, Protocol::Http1 | Protocol::Http2);
    let detected = match hello.verdict {
        Some(First::Mesh) => {
            // Boxed: it is large, and not for long (`sizes`).
            let (stream, peer, protocol) = Box::pin(shake_hands(state, hello.io, client, http_declared)).await?;
            let (stream, carries) = match protocol {
                MeshProtocol::Opaque if http_declared => Box::pin(look_inside(stream)).await?,
                _ => (stream, protocol.into()),
            };
            return Some((stream, Some(peer), carries));
        }
        Some(First::Plain(detected)) => Some(detected),
        // Half a word, or gone.
        None => None,
    };
    let detected = resolve(detected, hello.io.prefix(), http_declared);
    Some((Stream::Plain(hello.io), None, detected.into()))
}

/// A handshake, and who calls. `None`: it failed, which was told.
async fn shake_hands(
    state: &State,
    io: Prefixed<Io>,
    client: Option<SocketAddr>,
    http_declared: bool,
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
            let ends_as = match protocol {
                // It may be HTTP after all.
                MeshProtocol::Opaque if http_declared => MeshProtocol::Http1,
                protocol => protocol,
            };
            let term = state.peers.enter(ends_as, chain, &credentials);
            return Some((Stream::Accepted(Box::new(Termed::new(tls, term))), peer, protocol));
        }
        Ok(Err(refused)) => (refused.cause, refused.to_string()),
        Err(_) => (Handshake::Timeout, format!("it took longer than {HANDSHAKE:?}")),
    };
    metrics.handshake(Direction::Inbound, cause);
    tracing::info!(?client, error, "a peer's TLS handshake failed");
    None
}

/// What a peer calls bytes, on a port of HTTP, is looked at as plaintext is there: HTTP would come to the app unread, with any word of
/// its sender about who calls. It may come when it likes, since the connection is idle until then.
async fn look_inside(stream: Stream) -> Option<(Stream, Carries)> {
    let peeked = peek(stream, Duration::MAX, protocol).await;
    let peeked =
        peeked.inspect_err(|error| tracing::debug!(%error, "a peer closed a connection before its first bytes"));
    let Peeked { verdict, io, .. } = peeked.ok()?;
    let detected = resolve(verdict, io.prefix(), true);
    Some((Stream::Peeked(Box::new(io)), detected.into()))
}

async fn serve_admitted(
    state: Rc<State>,
    admission: Admission,
    carries: Carries,
    stream: Stream,
    caller: Caller,
    open: &OpenConnection,
) {
    match (admission, carries) {
        (Admission::Allow, Carries::Http(version)) => serve_http(state, version, stream, caller, open).await,
        (Admission::Allow, Carries::Bytes) => opaque::forward(&state, stream, &caller, open).await,
        (Admission::PerRequest { held }, Carries::Http(version)) => {
            open.seat().hold_at_most(held);
            serve_http(state, version, stream, caller, open).await;
        }
        (Admission::Hold, _) => opaque::hold(stream).await,
        (Admission::PerRequest { .. }, Carries::Bytes) => state.refuse(&stream, &caller, &Refusal::Plaintext),
        (Admission::Deny(refusal), _) => state.refuse(&stream, &caller, &refusal),
    }
}

async fn serve_http(state: Rc<State>, version: HttpVersion, stream: Stream, caller: Caller, open: &OpenConnection) {
    let pool = match version {
        HttpVersion::Http1 => state.apps.shared(caller.app),
        // What one peer does to its connection (streams that it resets or does not read) stays its own trouble.
        HttpVersion::Http2 => state.apps.for_one(),
    };
    let introduction = Introduction::new(&caller, state.context.config().forwarded_for);
    let caller = Rc::new(Caller { introduction, ..caller });
    let handle = Rc::new(async move |request: Request<ClientBody>| -> Response<ResponseBody> {
        request::handle(&state, &caller, &pool, version, request).await
    });
    if let Err(error) = serve(version, stream, open, handle).await {
        tracing::debug!(%error, "a connection to the app broke");
    }
}

/// What is declared of the app's port.
fn declared_protocol(process: &Process, port: u16) -> Protocol {
    let info = process.discovery.workload();
    let info = info.borrow();
    match info.protocols.get(&port) {
        Some(protocol) if *protocol != Protocol::Detect => *protocol,
        _ if info.opaque_ports.contains(&port) || process.is_opaque_port(port) => Protocol::Opaque,
        _ => Protocol::Detect,
    }
}
