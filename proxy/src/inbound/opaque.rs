//! Connections of clients that are carried to the app as bytes.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use outrigger_limits::Place;
use outrigger_proxy_transport::drain::OpenConnection;
use outrigger_proxy_transport::error::Reason;
use outrigger_proxy_transport::net::{Io, Prefixed, Stream, listen, tunnel};
use tokio::io::AsyncReadExt;
use tokio::time::Instant;

use super::access::Subject;
use super::admit::Refusal;
use super::{APP_CONNECT, Caller, State};

/// After a silence of this long on an opaque port, the app may speak first. A sidecar speaks at once; if its first packet
/// is lost, the next one comes after 200 ms (RFC 6298's timer, as Linux has it).
pub(super) const SERVER_FIRST: Duration = Duration::from_millis(300);
/// How long a TCP probe's connection is held for.
const PROBE_HELD: Duration = Duration::from_secs(10);

/// To the app.
pub(super) async fn forward(state: &State, mut client: Stream, caller: &Caller, open: &OpenConnection) {
    let _busy = open.seat().busy();
    let Some(_place) = place(state, &client, caller) else {
        return;
    };
    if let Some(server) = connect(state, &client, caller.app).await {
        carry_bytes(state, caller, &mut client, &mut server.into()).await;
    }
}

/// Where the app may speak first: waits until the client speaks (`Some`: nothing was read of it), or else until its silence can
/// only mean that it waits for the app. Then this is a connection to the app.
pub(super) async fn server_first(state: &State, client: Io, caller: &Caller, open: &OpenConnection) -> Option<Io> {
    let limit = state.context.config().detect_timeout;
    let silence = async {
        tokio::time::sleep(SERVER_FIRST.min(limit)).await;
        let place = match state.rules.limits.connect(caller) {
            Ok(place) => place,
            Err(note) => return Some(Err(Refusal::Limited(note))),
        };
        let server = tokio::time::timeout(APP_CONNECT, listen::connect(caller.app))
            .await
            .ok()?;
        let server = Io::Tcp(server.ok()?);
        let _ = tokio::time::timeout(limit.saturating_sub(SERVER_FIRST), server.readable()).await;
        Some(Ok((server, place)))
    };
    let server = tokio::select! {
        biased;
        () = client.readable() => None,
        server = silence => server,
    };
    let Some(server) = server else {
        return Some(client);
    };
    let mut client = Stream::from(client);
    let (server, _place) = match server {
        Ok(server) => server,
        Err(refusal) => {
            state.refuse(&client, caller, &refusal);
            return None;
        }
    };
    let _busy = open.seat().busy();
    carry_bytes(state, caller, &mut client, &mut server.into()).await;
    None
}

/// A client that says nothing, on a port of which nothing is declared: perhaps the app speaks first, which is remembered.
pub(super) async fn silent(state: &Rc<State>, client: Prefixed<Io>, caller: &Caller, open: &OpenConnection) {
    let app = caller.app;
    let _busy = open.seat().busy();
    let mut client = Stream::Plain(client);
    let Some(_place) = place(state, &client, caller) else {
        return;
    };
    let Some(server) = connect(state, &client, app).await else {
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
        Stream::Accepted(_) | Stream::Connected(_) | Stream::Secured(_) | Stream::Peeked(_) | Stream::Counted(_) => 0,
    };
    let now = Instant::now();
    let after = now.saturating_duration_since(connected);
    let app_first = &state.context.process.app_first;
    app_first.observe(&app.port(), &greeting[..length], after, now);
    carry_bytes(state, caller, &mut client, &mut server.into()).await;
}

/// As long as the policies let the caller in: they are asked once more now, since they may have changed while the connection was
/// looked at, and at each change.
pub(super) async fn carry_bytes(state: &State, caller: &Caller, client: &mut Stream, server: &mut Stream) {
    let access = &state.rules.access;
    let note = match access.ask(caller, Subject::Bytes) {
        Ok(note) => note,
        Err(refused) => {
            server.reset_on_close();
            return state.reset(client, caller, &Refusal::Access(refused));
        }
    };
    // There is a connection to the app.
    access.count(caller, None);
    let meter = state.context.process.telemetry.tunnel(Box::new(caller.ends()));
    if let Some(note) = note {
        meter.note(*note);
    }
    let denied = tokio::select! {
        biased;
        note = access.until_denied(caller, Subject::Bytes) => note,
        _ = tunnel(client, server, state.context.activity.begin(), &*meter, None) => return,
    };
    meter.note(denied);
    client.reset_on_close();
    server.reset_on_close();
}

/// A TCP probe wants to see that its connection is taken; not a byte is passed on.
pub(super) async fn hold(mut client: Stream) {
    let mut nothing = [0; 256];
    let until_closed = async { while matches!(client.read(&mut nothing).await, Ok(1..)) {} };
    let _ = tokio::time::timeout(PROBE_HELD, until_closed).await;
}

/// A place among the connections that limits admit. `None`: there is none, and the client is reset.
pub(super) fn place(state: &State, client: &Stream, caller: &Caller) -> Option<Place> {
    let place = state.rules.limits.connect(caller);
    place
        .map_err(|note| state.refuse(client, caller, &Refusal::Limited(note)))
        .ok()
}

/// A connection to the app. `None`: there is none, and the client is reset.
pub(super) async fn connect(state: &State, client: &Stream, app: SocketAddr) -> Option<Io> {
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
