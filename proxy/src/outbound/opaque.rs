//! Connections that are carried as bytes.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::BytesMut;
use outrigger_proxy_transport::error::{ProxyError, Reason};
use outrigger_proxy_transport::net::count::Held;
use outrigger_proxy_transport::net::detect::{Detected, peek, protocol};
use outrigger_proxy_transport::net::{Io, Meter, Prefixed, Stream, listen, tunnel};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::balance::Pick;
use super::connect::EndpointDialer;
use super::hash;
use super::health::Answer;
use super::member::{EndpointLimit, InHand};
use super::target::WorkerTarget;
use super::{State, route};
use crate::identity::MeshProtocol;
use crate::telemetry::metrics::AtLimit;
use crate::telemetry::{Direction, Tunnel, TunnelEnds};

/// How long a connection to outside the cluster may take: the app's own limit is usually shorter.
const EXTERNAL_CONNECT: Duration = Duration::from_secs(30);
/// A greeting is shorter, or comes in more than one piece.
const GREETING: usize = 2048;
/// An endpoint that ends a connection sooner than this without a word may mean it.
const EARLY: Duration = Duration::from_secs(1);
/// So often in a row another one is asked.
const MAX_EARLY_ENDS: u32 = 2;

/// To an endpoint of the target; another one is tried when there is no connection, as long as no byte was passed on. `server`: the name that
/// the client asks for, where it was looked for.
pub async fn forward(state: &Rc<State>, mut client: Prefixed<Io>, target: &WorkerTarget, server: Option<&str>) {
    let mut own_tls = false;
    if target.begins_tls(Instant::now()) {
        // Boxed: few Services have such endpoints (`outbound::sizes`).
        match Box::pin(speaks_tls(state, client)).await {
            Ok(known) => (client, own_tls) = known,
            Err(error) => return tracing::debug!(%error, "the app closed a connection before its first bytes"),
        }
    }
    let mut client = Stream::Plain(client);
    match connect_to_any(state, target, server, own_tls).await {
        Ok(Connected {
            mut server,
            in_hand: _in_hand,
            idle,
            ends,
        }) => {
            let meter = state.context.process.telemetry.tunnel(ends);
            carry(state, &mut client, &mut server, &meter, idle).await;
        }
        Err(error) => failed(state, &client, &error),
    }
}

/// Whether the app speaks TLS by itself, around which no other is put. An app that waits for a greeting is waited for as long as for its first bytes
/// elsewhere.
///
/// # Errors
/// Those of the connection.
async fn speaks_tls(state: &State, client: Prefixed<Io>) -> io::Result<(Prefixed<Io>, bool)> {
    let peeked = peek(client, state.context.config().detect_timeout, protocol).await?;
    Ok((peeked.io.flatten(), peeked.verdict == Some(Detected::Tls)))
}

fn failed(state: &State, client: &Stream, error: &ProxyError) {
    state.context.metrics().error(error.reason);
    tracing::info!(error = %error, reason = error.reason.code(), "a TCP connection of the app failed");
    client.reset_on_close();
}

/// To an endpoint that may greet the app, which is silent. `Some`: the app speaks first after all, and nothing was passed on.
///
/// An endpoint that goes away without a word is replaced: the app may have this connection for later, and would lose what it
/// says in the moment in which it is closed.
pub async fn server_first(state: &Rc<State>, client: Prefixed<Io>, target: &WorkerTarget) -> Option<Prefixed<Io>> {
    let mut early_ends = 0;
    loop {
        let connected = tokio::select! {
            biased;
            // What it says may be HTTP, which is told why there is no endpoint.
            () = client.get_ref().readable() => return Some(client),
            connected = connect_to_any(state, target, None, false) => connected,
        };
        let Connected {
            mut server,
            in_hand: _in_hand,
            idle,
            ends,
        } = match connected {
            Ok(connected) => connected,
            Err(error) => {
                failed(state, &Stream::Plain(client), &error);
                return None;
            }
        };
        let connected = Instant::now();
        let mut greeting = BytesMut::with_capacity(GREETING);
        let read = tokio::select! {
            read = server.read_buf(&mut greeting) => read,
            () = client.get_ref().readable() => return Some(client),
            () = quiet_for(idle) => {
                let telemetry = &state.context.process.telemetry;
                telemetry.connection_refused(&ends, Reason::IdleTimeout, None, None);
                Stream::Plain(client).reset_on_close();
                return None;
            }
        };
        early_ends = if connected.elapsed() < EARLY { early_ends + 1 } else { 0 };
        match read {
            Ok(0) | Err(_) if early_ends <= MAX_EARLY_ENDS => {}
            Ok(_) => {
                let now = Instant::now();
                if let Some(snapshot) = target.current(now) {
                    let name = &snapshot.service.name;
                    let servers_first = &state.context.process.servers_first;
                    servers_first.observe(name, &greeting, now.saturating_duration_since(connected), now);
                }
                let mut client = Stream::Plain(client);
                if client.write_all(&greeting).await.is_ok() {
                    let meter = state.context.process.telemetry.tunnel(ends);
                    meter.moved(0, greeting.len() as u64);
                    drop(greeting);
                    carry(state, &mut client, &mut server, &meter, idle).await;
                }
                return None;
            }
            Err(error) => {
                tracing::debug!(%error, "an endpoint breaks off without a word");
                Stream::Plain(client).reset_on_close();
                return None;
            }
        }
    }
}

/// Until a connection on which nobody says anything has been idle for too long.
async fn quiet_for(limit: Option<Duration>) {
    match limit {
        // Boxed: most have no limit (`outbound::sizes`).
        Some(limit) => Box::pin(tokio::time::sleep(limit)).await,
        None => std::future::pending().await,
    }
}

/// To where the app wanted to go, outside the cluster.
pub async fn pass_through(state: &State, client: TcpStream, to: SocketAddr) {
    let mut client = Stream::from(Io::Tcp(client));
    match tokio::time::timeout(EXTERNAL_CONNECT, listen::connect(to)).await {
        Ok(Ok(server)) => {
            let mut server = Stream::from(Io::Tcp(server));
            let meter = state.context.process.telemetry.tunnel(Box::new(TunnelEnds {
                direction: Direction::Outbound,
                service: None,
                port: to.port(),
                peer: None,
                endpoint: Some(to),
            }));
            tunnel(&mut client, &mut server, state.context.activity.begin(), &*meter, None).await;
        }
        failed => {
            tracing::debug!(%to, ?failed, "no connection to outside the cluster");
            client.reset_on_close();
        }
    }
}

/// A connection to an endpoint.
struct Connected {
    server: Stream,
    /// Until this is dropped, it counts as the endpoint's load: the next connection goes to an endpoint with fewer.
    in_hand: InHand,
    /// How long nothing may move.
    idle: Option<Duration>,
    ends: Box<TunnelEnds>,
}

/// Joins both ends.
async fn carry(state: &State, client: &mut Stream, server: &mut Stream, meter: &Tunnel, idle: Option<Duration>) {
    if tunnel(client, server, state.context.activity.begin(), meter, idle).await {
        meter.idle();
    }
}

/// `own_tls`: what is carried is TLS of the app.
async fn connect_to_any(
    state: &Rc<State>,
    target: &WorkerTarget,
    server: Option<&str>,
    own_tls: bool,
) -> Result<Connected, ProxyError> {
    let now = Instant::now();
    let none = || ProxyError::new(Reason::NoEndpoints, "the Service is gone");
    let snapshot = target.current(now).ok_or_else(none)?;
    let service = &snapshot.service;
    let backend = route::backend_of_bytes(service, server, &mut *state.context.rng.borrow_mut())?;
    let backend = snapshot.backend(backend).ok_or_else(none)?;
    let rules = &service.rules.attempt;
    let breaker = backend.breaker(rules, &snapshot.metrics);
    let mut tried = Vec::new();
    loop {
        let pick = Pick {
            tried: &tried,
            now: Instant::now(),
            rng: &state.context.rng,
            rules: &rules.balancing,
            key: rules
                .balancing
                .hash_keys()
                .and_then(|on| hash::key(on, None, state.caller)),
            session: None,
            limit: { rules.limits.as_ref() }
                .and_then(|limits| limits.endpoint_connections)
                .map(EndpointLimit::Connections),
        };
        let member = backend.pick(pick, breaker.as_ref(), rules.connect_timeout).await?;
        let held = match &breaker {
            None => Held::default(),
            // Boxed: few Services have limits (`outbound::sizes`).
            Some(breaker) => match Box::pin(breaker.connection(&member)).await {
                Ok(held) => held,
                // Another worker was faster.
                Err(AtLimit::EndpointConnections) => continue,
                Err(full) => return Err(breaker.refuse(full)),
            },
        };
        let connecting = {
            let dialer = EndpointDialer::new(state, &member, rules.connect_timeout)?;
            let dialer = if own_tls { dialer.as_it_is() } else { dialer };
            dialer.connect_for(MeshProtocol::Opaque)
        };
        let mut in_hand = member.take(&rules.balancing, Instant::now());
        match connecting.await {
            Ok(server) => {
                in_hand.end(Answer::Connected, Instant::now());
                let ends = Box::new(TunnelEnds {
                    direction: Direction::Outbound,
                    service: Some(service.name.clone()),
                    port: service.name.port,
                    peer: member.endpoint.identity.clone(),
                    endpoint: Some(member.endpoint.address),
                });
                return Ok(Connected {
                    server: server.counted(held),
                    in_hand,
                    idle: service.rules.request.idle,
                    ends,
                });
            }
            Err(error) => {
                in_hand.end(Answer::Unreachable, Instant::now());
                tried.push(member);
                if tried.len() > rules.retry.attempts as usize {
                    return Err(error);
                }
            }
        }
    }
}
