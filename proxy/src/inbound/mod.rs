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
mod undecided;

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use http::{Request, Response};
use outrigger_api::spiffe::SpiffeId;
use outrigger_proxy_transport::body::ClientBody;
use outrigger_proxy_transport::drain::OpenConnection;
use outrigger_proxy_transport::error::Reason;
use outrigger_proxy_transport::net::detect::{Detected, Peeked, Verdict, peek, protocol, resolve};
use outrigger_proxy_transport::net::wary::{wary_protocol, wary_resolve};
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
            // Which was told.
            Refusal::Limited(_) => {}
            Refusal::LateRequest => {
                tracing::info!(
                    ?client,
                    port,
                    "a connection is refused: its first line was slow, and turned out to be a request, at a port with limits of requests"
                );
            }
        }
        self.reset(stream, caller, refusal);
    }

    /// The same, where the log has it already.
    fn reset(&self, stream: &Stream, caller: &Caller, refusal: &Refusal) {
        let telemetry = &self.context.process.telemetry;
        telemetry.connection_refused(&caller.ends(), refusal.reason(), refusal.note(), refusal.limit());
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

/// What is known of the app's port before a byte is read.
#[derive(Clone, Copy)]
struct Expected {
    declared: Protocol,
    /// Nothing is declared, and no request must be missed, because a limit counts them.
    wary: bool,
    /// How long the first bytes may take.
    limit: Duration,
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
    let wary = declared == Protocol::Detect && state.rules.limits.counts_requests(app.port());
    // Who says nothing comes to the app only where bytes in plaintext do.
    let silence = state.admit(&caller, Carries::Bytes) == Admission::Allow;
    let server_first = match declared {
        Protocol::Opaque => silence,
        Protocol::Detect => silence && process.app_first.contains(&app.port(), Instant::now()),
        Protocol::Http1 | Protocol::Http2 | Protocol::Tls => false,
    };
    let io = match server_first && !wary {
        false => io,
        true => match Box::pin(opaque::server_first(&state, io, &caller, open)).await {
            Some(io) => io,
            None => return,
        },
    };
    let limit = process.config.detect_timeout;
    // Who speaks first is found out later, and the client is not waited for.
    let waits_for_app = server_first && wary;
    let expected = Expected {
        declared,
        wary,
        limit: match waits_for_app {
            true => limit.min(opaque::SERVER_FIRST),
            false => limit,
        },
    };
    let hello = match read_hello(io, &expected).await {
        Ok(hello) => hello,
        Err(error) => return tracing::debug!(%error, "a client closed a connection before its first bytes"),
    };
    if hello.timed_out && !waits_for_app && declared != Protocol::Opaque {
        state.context.metrics().detect_timeout();
    }
    let is_silent = hello.verdict.is_none() && hello.timed_out && hello.io.prefix().is_empty();
    if is_silent && silence && declared == Protocol::Detect && !wary {
        return Box::pin(opaque::silent(&state, hello.io, &caller, open)).await;
    }
    let Some(known) = identify(&state, hello, &expected, caller.address).await else {
        return;
    };
    if known.peer.is_some() {
        counted.set_tls();
    }
    // Boxed: a connection that only comes and goes has no room for it (`sizes`).
    Box::pin(serve_known(state, known, caller, open)).await;
}

/// Admission, and then what the connection carries.
async fn serve_known(state: Rc<State>, known: Known, caller: Caller, open: &OpenConnection) {
    let Known {
        mut stream,
        peer,
        mut carries,
        undecided,
    } = known;
    let caller = Caller {
        peer,
        term: stream.term(),
        ..caller
    };
    let mut admission = state.admit(&caller, carries);
    if undecided && admission == Admission::Allow {
        let decided = Box::pin(undecided::decide(&state, stream, &caller, open)).await;
        let Some(decided) = decided else { return };
        (stream, carries) = decided;
        admission = state.admit(&caller, carries);
    }
    serve_admitted(state, admission, carries, stream, caller, open).await;
}

/// What the first bytes of a client are.
async fn read_hello(io: Io, expected: &Expected) -> std::io::Result<Peeked<Io, First>> {
    let Expected { declared, wary, limit } = *expected;
    let protocol = if wary { wary_protocol } else { protocol };
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
    let peeked = peek(io, limit, &inspect).await?;
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

/// A connection, who calls, and what it carries.
struct Known {
    stream: Stream,
    peer: Option<SpiffeId>,
    carries: Carries,
    /// It may come to be HTTP, which must not be missed.
    undecided: bool,
}

/// Who calls, and what is in the connection. `None`: a peer's handshake failed, which was told.
async fn identify(
    state: &State,
    hello: Peeked<Io, First>,
    expected: &Expected,
    client: Option<SocketAddr>,
) -> Option<Known> {
    let http_declared = matches!(expected.declared, Protocol::Http1 | Protocol::Http2);
    let may_be_http = http_declared || expected.wary;
    let detected = match hello.verdict {
        Some(First::Mesh) => {
            // Boxed: it is large, and not for long (`sizes`).
            let (stream, peer, protocol) = Box::pin(shake_hands(state, hello.io, client, may_be_http)).await?;
            let (stream, carries) = match protocol {
                MeshProtocol::Opaque if http_declared => Box::pin(look_inside(stream)).await?,
                _ => (stream, protocol.into()),
            };
            return Some(Known {
                stream,
                peer: Some(peer),
                carries,
                undecided: expected.wary && carries == Carries::Bytes,
            });
        }
        Some(First::Plain(detected)) => Some(detected),
        // Half a word, or gone.
        None => None,
    };
    let so_far = hello.io.prefix();
    let (undecided, detected) = match expected.wary {
        true => (detected.is_none() && hello.timed_out, wary_resolve(detected, so_far)),
        false => (false, resolve(detected, so_far, http_declared)),
    };
    let carries = Carries::from(detected);
    Some(Known {
        stream: Stream::Plain(hello.io),
        peer: None,
        carries,
        undecided: undecided && carries == Carries::Bytes,
    })
}

/// A handshake, and who calls. `None`: it failed, which was told.
async fn shake_hands(
    state: &State,
    io: Prefixed<Io>,
    client: Option<SocketAddr>,
    may_be_http: bool,
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
                MeshProtocol::Opaque if may_be_http => MeshProtocol::Http1,
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
