//! From the app to everything it calls: the target, the protocol, and then HTTP requests or plain bytes.

pub mod affinity;
pub mod attempts;
pub mod auth;
pub mod balance;
pub mod beside;
pub mod breaker;
pub mod budget;
pub mod connect;
pub mod earlier;
pub mod ejection;
pub mod fallback;
pub mod faults;
pub mod group;
pub mod hash;
pub mod health;
pub mod member;
pub mod methods;
pub mod mirror;
pub mod opaque;
pub mod penalty;
pub mod request;
pub mod retry;
pub mod route;
pub mod self_call;
pub mod sessions;
#[cfg(test)]
mod sizes;
#[cfg(test)]
mod skew_tests;
pub mod target;
pub mod targets;
#[cfg(test)]
mod testing;
pub mod tls;
pub mod waits;
pub mod window;
pub mod zones;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use outrigger_proxy_transport::drain::OpenConnection;
use outrigger_proxy_transport::error::ProxyError;
use outrigger_proxy_transport::net::detect::{Detected, peek, protocol, resolve};
use outrigger_proxy_transport::net::{Io, Prefixed, Stream};
use outrigger_proxy_transport::room::Seat;
use outrigger_proxy_transport::server::{HttpVersion, serve};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::context::Context;
use crate::discovery::TargetKey;
use crate::identity::{Peers, server_name};
use crate::model::{ByteRoute, Protocol, Target};
use crate::telemetry::Direction;
use affinity::Caller;
use auth::Asking;
use mirror::Mirrors;
use request::{handle, refuse};
use self_call::{SelfCall, SelfCalls};
use target::{Snapshot, WorkerTarget};
use targets::Targets;

/// How long the first bytes of a connection are waited for that cannot be carried anywhere. A client of HTTP has sent them
/// by then, and is answered why; every other is reset.
const NOWHERE: Duration = Duration::from_millis(100);

/// How long a connection waits for discovery's first answer.
const DISCOVERY_TIMEOUT: Duration = Duration::from_secs(5);

/// What the outbound direction of one worker knows.
pub struct State {
    pub context: Rc<Context>,
    /// This pod, for choices that stay the same.
    caller: Caller,
    targets: Targets,
    peers: Peers,
    mirrors: Rc<Mirrors>,
    asking: Asking,
    self_calls: SelfCalls,
}

impl State {
    /// Nothing is known yet. The second is where connections of this pod to itself come out.
    pub fn new(context: Rc<Context>) -> (Rc<Self>, mpsc::Receiver<SelfCall>) {
        let (self_calls, taken) = SelfCalls::new();
        let config = &context.process.config;
        let state = Self {
            caller: Caller::new(&config.workload),
            targets: Targets::new(config.workers),
            peers: context.peers(Direction::Outbound),
            mirrors: Mirrors::new(),
            asking: Asking::default(),
            self_calls,
            context,
        };
        (Rc::new(state), taken)
    }

    /// What is behind `key`, asked of discovery if this worker does not know it yet. `None`: it is not in the cluster.
    ///
    /// # Errors
    /// [`Reason::DiscoveryUnavailable`](outrigger_proxy_transport::error::Reason::DiscoveryUnavailable).
    pub async fn target(&self, key: &TargetKey) -> Result<Option<Rc<WorkerTarget>>, ProxyError> {
        let known = self.targets.get(key);
        let process = &self.context.process;
        if known.is_some() || process.discovery.is_outside(key) {
            return Ok(known);
        }
        let updates = process.discovery.watch(key.clone(), DISCOVERY_TIMEOUT).await?;
        if matches!(**updates.borrow(), Target::External) {
            return Ok(None);
        }
        // Another connection may have asked for the same meanwhile.
        if let Some(target) = self.targets.get(key) {
            return Ok(Some(target));
        }
        let now = Instant::now();
        let target = Rc::new(WorkerTarget::new(
            updates,
            self.caller,
            process.resolver.clone(),
            process.telemetry.clone(),
            Arc::clone(&process.counts),
            now,
        ));
        self.targets.insert(key.clone(), Rc::clone(&target), now);
        Ok(Some(target))
    }

    /// Closes connections that were idle for too long or whose peer's certificate has ended, and forgets targets that were idle.
    pub fn sweep(&self, now: Instant) {
        self.peers.sweep(now, &self.context.process.identity);
        self.targets.sweep(now);
    }
}

/// Carries a connection of the app on a task of its own.
pub fn spawn(state: Rc<State>, stream: TcpStream, key: TargetKey, seat: Seat) {
    tokio::task::spawn_local(carry(state, stream, key, seat));
}

async fn carry(state: Rc<State>, stream: TcpStream, key: TargetKey, seat: Seat) {
    let open = state.context.activity.open(true, seat);
    let _counted = state.context.metrics().connection(Direction::Outbound, false);
    tokio::select! {
        biased;
        () = serve_connection(state, stream, key, &open) => {}
        () = open.seat().closed() => tracing::debug!("an idle connection of the app is closed for another"),
    }
}

async fn serve_connection(state: Rc<State>, stream: TcpStream, key: TargetKey, open: &OpenConnection) {
    let target = match state.target(&key).await {
        Ok(Some(target)) => target,
        Ok(None) => return pass_through(state, stream, key, open).await,
        Err(error) => return without_target(state, stream, error, open).await,
    };
    let now = Instant::now();
    let Some(snapshot) = target.current(now) else {
        return pass_through(state, stream, key, open).await;
    };
    let first = first(&state, &snapshot, now);
    // A connection may live for long, and this state of the Service not.
    drop(snapshot);
    let stream = Io::Tcp(stream);
    let (limit, http_declared) = match first {
        First::Dial => {
            let io = Prefixed::new(Bytes::new(), stream);
            return serve_detected(state, Detected::Opaque, io, target, open).await;
        }
        First::Hello => return by_server_name(state, stream, target, open).await,
        First::Either => return silent(state, Prefixed::new(Bytes::new(), stream), target, open).await,
        First::Client { limit, http_declared } => (limit, http_declared),
    };
    if http_declared {
        stream.readable().await;
    }
    match peek(stream, limit, protocol).await {
        Ok(peeked) => {
            if peeked.timed_out {
                state.context.metrics().detect_timeout();
                tracing::debug!(?key, ?limit, "the first bytes do not come in time");
                if peeked.io.prefix().is_empty() {
                    return silent(state, peeked.io, target, open).await;
                }
            }
            let detected = resolve(peeked.verdict, peeked.io.prefix(), http_declared);
            serve_detected(state, detected, peeked.io, target, open).await;
        }
        Err(error) => tracing::debug!(%error, "the app closed a connection before its first bytes"),
    }
}

/// Outside the cluster nothing is looked into: it works as it would without a sidecar.
async fn pass_through(state: Rc<State>, stream: TcpStream, key: TargetKey, open: &OpenConnection) {
    if let TargetKey::Address(original) = key {
        let _busy = open.seat().busy();
        opaque::pass_through(&state, stream, original).await;
    }
}

/// Who speaks first on a connection of the app.
enum First {
    /// Nobody is waited for: an endpoint is connected to, and without one the app is reset before a byte of it is read.
    Dial,
    /// The client, with a ClientHello, whenever it comes: it says where the connection goes.
    Hello,
    /// The server, as before, or the client all the same.
    Either,
    /// The client, within `limit`. Where HTTP is declared, it has time: it speaks when it has something to say.
    Client { limit: Duration, http_declared: bool },
}

fn first(state: &State, snapshot: &Snapshot, now: Instant) -> First {
    let name = &snapshot.service.name;
    let limit = state.context.config().detect_timeout;
    match snapshot.service.protocol {
        _ if snapshot.service.byte_routes.iter().any(ByteRoute::asks_for_name) => First::Hello,
        Protocol::Opaque | Protocol::Tls => First::Dial,
        Protocol::Http1 | Protocol::Http2 => First::Client {
            limit,
            http_declared: true,
        },
        Protocol::Detect if state.context.process.is_opaque_port(name.port) => First::Dial,
        Protocol::Detect if state.context.process.servers_first.contains(name, now) => First::Either,
        Protocol::Detect => First::Client {
            limit: if snapshot.leads_nowhere() {
                limit.min(NOWHERE)
            } else {
                limit
            },
            http_declared: false,
        },
    }
}

/// A connection of TLS whose routes are chosen by the server that it asks for. One that asks for none, and what is no TLS, has no route.
async fn by_server_name(state: Rc<State>, stream: Io, target: Rc<WorkerTarget>, open: &OpenConnection) {
    stream.readable().await;
    match peek(stream, state.context.config().detect_timeout, server_name).await {
        Ok(peeked) => {
            let _busy = open.seat().busy();
            let server = peeked.verdict.flatten();
            opaque::forward(&state, peeked.io, &target, server.as_deref()).await;
        }
        Err(error) => tracing::debug!(%error, "the app closed a connection before its first bytes"),
    }
}

/// Either the server is to speak first, or the app has a connection for later: of HTTP, perhaps. So there is an endpoint
/// that may speak; and if the app does so before it, nothing is lost in looking at that.
async fn silent(state: Rc<State>, io: Prefixed<Io>, target: Rc<WorkerTarget>, open: &OpenConnection) {
    let busy = open.seat().busy();
    let Some(io) = opaque::server_first(&state, io, &target).await else {
        return;
    };
    drop(busy);
    let limit = state.context.config().detect_timeout;
    match peek(io, limit, protocol).await {
        Ok(peeked) => {
            let io = peeked.io.flatten();
            let detected = resolve(peeked.verdict, io.prefix(), false);
            let now = Instant::now();
            if let (Detected::Http1 | Detected::Http2, Some(snapshot)) = (detected, target.current(now)) {
                state.context.process.servers_first.forget(&snapshot.service.name, now);
            }
            serve_detected(state, detected, io, target, open).await;
        }
        Err(error) => tracing::debug!(%error, "the app closed a connection before its first bytes"),
    }
}

async fn serve_detected(
    state: Rc<State>,
    detected: Detected,
    io: Prefixed<Io>,
    target: Rc<WorkerTarget>,
    open: &OpenConnection,
) {
    match detected {
        Detected::Http1 => serve_http(state, HttpVersion::Http1, io, target, open).await,
        Detected::Http2 => serve_http(state, HttpVersion::Http2, io, target, open).await,
        Detected::Tls | Detected::Opaque => {
            let _busy = open.seat().busy();
            opaque::forward(&state, io, &target, None).await;
        }
    }
}

async fn serve_http(
    state: Rc<State>,
    version: HttpVersion,
    io: Prefixed<Io>,
    target: Rc<WorkerTarget>,
    open: &OpenConnection,
) {
    let handle = async move |request| handle(&state, &target, version, request).await;
    if let Err(error) = serve(version, Stream::Plain(io), open, Rc::new(handle)).await {
        tracing::debug!(%error, "a connection of the app broke");
    }
}

/// There is nothing to go on with: HTTP clients are told why.
async fn without_target(state: Rc<State>, stream: TcpStream, error: ProxyError, open: &OpenConnection) {
    tracing::warn!(error = %error, "a connection of the app has no target");
    let limit = state.context.config().detect_timeout;
    let Ok(peeked) = peek(Io::Tcp(stream), limit, protocol).await else {
        return;
    };
    let version = match peeked.verdict {
        Some(Detected::Http1) => HttpVersion::Http1,
        Some(Detected::Http2) => HttpVersion::Http2,
        _ => {
            state.context.metrics().error(error.reason);
            return Stream::Plain(peeked.io).reset_on_close();
        }
    };
    let error = Rc::new(error);
    let refuse = async move |request| refuse(&state, request, &error);
    if let Err(error) = serve(version, Stream::Plain(peeked.io), open, Rc::new(refuse)).await {
        tracing::debug!(%error, "a connection of the app broke");
    }
}
