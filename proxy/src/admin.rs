//! The admin port. Every pod can reach it at the pod's address, and gets what kubelet and Prometheus get there: the sidecar's
//! probes, the app's ([`crate::probe`]) and metrics. What the sidecar believes, and the switches, are for the pod itself, over
//! loopback; a call that changes something has a header that no request has which somebody made a sidecar forward.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use outrigger_api::ports::ADMIN_HEADER;
use outrigger_gate::{Budget, Charge, Gate, Holder, Limits, Times, Work, accept};
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::probe::{Answer, AppProbes, Time};
use crate::telemetry::Telemetry;
use crate::telemetry::logging::LogFilter;

/// kubelet, Prometheus and a person; and whoever else can reach it, who must not keep them out: at the bound the oldest
/// connection goes that has not brought its request, of the address that has most.
const CONNECTIONS: Limits = Limits {
    incomplete: 32,
    total: 128,
    grace: Duration::from_secs(1),
};
/// A connection carries one request, so `idle` is the time for its end.
const TIMES: Times = Times {
    input: Duration::from_secs(3),
    work: Duration::from_secs(10),
    idle: Duration::from_secs(1),
};
/// Long answers at a time: who asks for one and does not read it holds a connection for a while, and must leave room for
/// probes, whose answers are short. One address has at most as many as are left ([`Budget`]), so eight of these: a pod that
/// reads none of them does not keep Prometheus out.
const LONG_ANSWERS: u64 = 16;
/// What is read of a body: a filter or a word.
const MAX_BODY: usize = 4096;

/// Before container and kind ([`outrigger_api::probes::path`]).
const PROBES: &str = "/probe/";

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const OPEN_METRICS: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");

/// What the admin port shows and switches.
#[derive(Clone)]
pub struct AdminState {
    pub telemetry: Telemetry,
    /// `Err` says what the sidecar is waiting for.
    pub ready: Arc<dyn Fn() -> Result<(), String> + Send + Sync>,
    /// What it asks the app for kubelet.
    pub probes: Arc<AppProbes>,
    /// What it believes: configuration, targets, identity. Never a key or a token.
    pub config: Arc<dyn Fn() -> serde_json::Value + Send + Sync>,
    /// `None` where the process's log is not this sidecar's own.
    pub log: Option<LogFilter>,
    /// Cancelled by `POST /shutdown`.
    pub shutdown: CancellationToken,
}

/// Serves the admin port until the future is dropped, and its connections with it.
pub async fn serve(listener: TcpListener, state: AdminState) {
    let state = Arc::new(state);
    let gate = Gate::new(CONNECTIONS);
    let long_answers = Budget::new(LONG_ANSWERS);
    let mut connections = JoinSet::new();
    let begin = |stream, peer: SocketAddr, work| {
        while connections.try_join_next().is_some() {}
        let client = Client {
            address: peer.ip().to_canonical(),
            work,
            long_answers: Arc::clone(&long_answers),
            long_answer: Mutex::default(),
        };
        connections.spawn(connection(stream, client, Arc::clone(&state)));
    };
    accept(&listener, &gate, TIMES, begin).await;
}

/// Who has a connection.
struct Client {
    address: IpAddr,
    work: Work,
    long_answers: Arc<Budget<IpAddr>>,
    /// Kept until the connection ends: then the answer is written, or nobody wants it.
    long_answer: Mutex<Option<Charge<IpAddr>>>,
}

async fn connection(stream: TcpStream, client: Client, state: Arc<AdminState>) {
    let client = Arc::new(client);
    let address = client.address;
    let stream = client.work.guard(stream);
    let service = service_fn(move |request: Request<Incoming>| {
        let (state, client) = (Arc::clone(&state), Arc::clone(&client));
        async move {
            let path = request.uri().path();
            let _working = match state.probes.time(path) {
                // kubelet's alone.
                Some(Time::Handler(time)) => client.work.complete_within(time + TIMES.work),
                Some(Time::Probe(time)) => client.work.wait_within(time + TIMES.work),
                None => client.work.complete(),
            };
            respond(request, &client, &state).await
        }
    });
    let served = http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = served.await {
        tracing::debug!(%error, %address, "a connection to the admin port ended");
    }
}

/// An error closes the connection without an answer.
async fn respond(request: Request<Incoming>, client: &Client, state: &AdminState) -> io::Result<Response<Full<Bytes>>> {
    let path = request.uri().path().to_owned();
    let from = client.address;
    let Some((allowed, reach)) = page(&path) else {
        return Ok(text(StatusCode::NOT_FOUND, "not found\n"));
    };
    let method = request.method().clone();
    if reach == Reach::Pod && !from.is_loopback() {
        return Ok(text(StatusCode::FORBIDDEN, "only from inside the pod, over loopback\n"));
    }
    if !allowed.contains(&method) {
        return Ok(not_allowed(allowed));
    }
    if path.starts_with(PROBES) {
        return probe(state.probes.ask(&path, from, request.headers()).await);
    }
    if matches!(method, Method::GET | Method::HEAD) {
        if matches!(path.as_str(), "/metrics" | "/config" | "/callers") && !client.takes_long_answer() {
            let words = "too many read what is here, from this address or in all; ask again\n";
            return Ok(text(StatusCode::SERVICE_UNAVAILABLE, words));
        }
        return Ok(show(&path, state));
    }
    // The app's own pages must not do it either: a browser's request names where it comes from.
    let meant = request.headers().get(ADMIN_HEADER).is_some_and(|value| value == "1");
    if !meant || request.headers().contains_key(header::ORIGIN) {
        let words = format!("a call that changes something has the header {ADMIN_HEADER}: 1, and no Origin\n");
        return Ok(text(StatusCode::FORBIDDEN, words));
    }
    Ok(change(&path, request, state).await)
}

impl Client {
    fn takes_long_answer(&self) -> bool {
        let holder = Holder {
            key: self.address,
            divisor: 1,
        };
        let charge = self.long_answers.charge(&[holder].into(), 1).ok();
        let taken = charge.is_some();
        *self.long_answer.lock() = charge;
        taken
    }
}

/// From where a page is seen.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reach {
    Everywhere,
    /// Over the pod's loopback.
    Pod,
}

/// The methods that a path takes, and from where. `None`: there is no such path.
fn page(path: &str) -> Option<(&'static [Method], Reach)> {
    let reads: &[Method] = &[Method::GET, Method::HEAD];
    Some(match path {
        "/livez" | "/readyz" | "/metrics" => (reads, Reach::Everywhere),
        "/config" | "/callers" => (reads, Reach::Pod),
        "/loglevel" | "/accesslog" => (&[Method::GET, Method::HEAD, Method::PUT], Reach::Pod),
        "/shutdown" => (&[Method::POST], Reach::Pod),
        path if path.starts_with(PROBES) => (&[Method::GET], Reach::Everywhere),
        _ => return None,
    })
}

fn not_allowed(allowed: &[Method]) -> Response<Full<Bytes>> {
    let names: Vec<&str> = allowed.iter().map(Method::as_str).collect();
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n");
    if let Ok(names) = HeaderValue::from_str(&names.join(", ")) {
        response.headers_mut().insert(header::ALLOW, names);
    }
    response
}

fn probe(answer: Answer) -> io::Result<Response<Full<Bytes>>> {
    Ok(match answer {
        Answer::Status(StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::NOT_MODIFIED, _) => {
            Response::new(Full::default())
        }
        Answer::Status(status, why) => text(status, format!("{why}\n")),
        Answer::Broken(why) => return Err(io::Error::other(why)),
    })
}

fn show(path: &str, state: &AdminState) -> Response<Full<Bytes>> {
    match path {
        "/livez" => text(StatusCode::OK, "live\n"),
        "/readyz" => match (state.ready)() {
            Ok(()) => text(StatusCode::OK, "ready\n"),
            Err(waits) => text(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {waits}\n")),
        },
        "/metrics" => answer(StatusCode::OK, OPEN_METRICS, state.telemetry.metrics().text()),
        "/config" => answer(StatusCode::OK, JSON, format!("{:#}\n", (state.config)())),
        "/callers" => {
            let page = state.telemetry.metrics().callers().page();
            answer(StatusCode::OK, JSON, format!("{page:#}\n"))
        }
        "/loglevel" => match &state.log {
            Some(log) => text(StatusCode::OK, format!("{}\n", log.current())),
            None => no_log(),
        },
        _ => text(StatusCode::OK, format!("{}\n", state.telemetry.access_log())),
    }
}

async fn change(path: &str, request: Request<Incoming>, state: &AdminState) -> Response<Full<Bytes>> {
    let body = match Limited::new(request.into_body(), MAX_BODY).collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => return text(StatusCode::PAYLOAD_TOO_LARGE, "a word is enough\n"),
    };
    let word = String::from_utf8_lossy(body.trim_ascii()).into_owned();
    match path {
        "/shutdown" => {
            tracing::info!("asked to shut down through the admin port");
            state.shutdown.cancel();
            text(StatusCode::OK, "shutting down\n")
        }
        "/loglevel" => match &state.log {
            Some(log) => match log.set(&word) {
                Ok(()) => text(StatusCode::OK, format!("{}\n", log.current())),
                Err(error) => text(StatusCode::BAD_REQUEST, format!("{error}\n")),
            },
            None => no_log(),
        },
        _ => match word.parse() {
            Ok(on) => {
                state.telemetry.set_access_log(on);
                text(StatusCode::OK, format!("{on}\n"))
            }
            Err(_) => text(StatusCode::BAD_REQUEST, "the body is true or false\n"),
        },
    }
}

fn no_log() -> Response<Full<Bytes>> {
    text(
        StatusCode::NOT_FOUND,
        "this process's log is not the sidecar's to change\n",
    )
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    answer(status, TEXT, body)
}

fn answer(status: StatusCode, content_type: HeaderValue, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response
}

#[cfg(test)]
#[path = "admin_tests.rs"]
mod tests;
