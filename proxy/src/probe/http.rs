//! `httpGet`, as kubelet does it: one connection for each request, headers as declared, redirects that stay at the pod.

use std::net::SocketAddr;

use bytes::Bytes;
use http::header::{
    ACCEPT, AUTHORIZATION, CONNECTION, CONTENT_LENGTH, HOST, LOCATION, REFERER, TRAILER, TRANSFER_ENCODING, USER_AGENT,
};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use outrigger_api::probes::HttpGet;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::task::AbortOnDropHandle;

use super::location::{Location, Next, is_absolute};
use super::tls::{HTTP2, NoTls, handshake};
use super::{Failure, Verdict, connect};

/// Requests of one probe: kubelet gives up after so many.
const MAX_REQUESTS: usize = 10;
/// What is read of a body.
const MAX_BODY: usize = 10 * 1024;
const MAX_HEAD: usize = 64 * 1024;
const MAX_HEADERS: usize = 1000;

/// The last answer. `handler`: of a lifecycle handler, to which kubelet is kinder ([`first`], [`read`]).
pub(super) async fn ask(get: &HttpGet, app: SocketAddr, agent: &str, handler: bool) -> Verdict {
    let mut headers = headers(get, agent).map_err(failed)?;
    let mut host = headers.remove(HOST);
    let refers = !headers.contains_key(REFERER);
    let mut location = Location {
        tls: get.tls,
        host: app.ip().to_string(),
        port: app.port(),
        target: get.target.clone(),
    };
    for number in 1..=MAX_REQUESTS {
        let asked = match number {
            1 if handler => first(&mut location, app, &mut headers, host.as_ref()).await,
            _ => send(&location, app, &headers, host.as_ref(), handler).await,
        };
        let (status, reference) = asked.map_err(Unanswered::into_failure)?;
        let Some(reference) = reference.filter(|_| is_followed(status)) else {
            return Ok(status);
        };
        match location.redirected(&reference).map_err(failed)? {
            Next::Leave => return Ok(status),
            Next::Follow(next) => {
                if is_absolute(&reference) {
                    host = None;
                }
                if refers {
                    refer(&mut headers, &location, &next);
                }
                location = next;
            }
        }
    }
    Err(failed(format!(
        "the app redirects more than {} times",
        MAX_REQUESTS - 1
    )))
}

/// Why there is no answer.
enum Unanswered {
    /// The app does not speak TLS.
    Plaintext(String),
    Failed(Failure),
}

impl Unanswered {
    fn into_failure(self) -> Failure {
        match self {
            Unanswered::Plaintext(why) => failed(why),
            Unanswered::Failed(failure) => failure,
        }
    }
}

/// The status, and where it redirects to.
type Answered = Result<(StatusCode, Option<String>), Unanswered>;

/// A handler of HTTPS whose app has no TLS is asked in plaintext, without credentials (kubelet's `runHTTPHandler`).
async fn first(
    location: &mut Location,
    app: SocketAddr,
    headers: &mut HeaderMap,
    host: Option<&HeaderValue>,
) -> Answered {
    match send(location, app, headers, host, true).await {
        Err(Unanswered::Plaintext(_)) => {
            location.tls = false;
            headers.remove(AUTHORIZATION);
            send(location, app, headers, host, true).await
        }
        answered => answered,
    }
}

async fn send(
    to: &Location,
    app: SocketAddr,
    headers: &HeaderMap,
    host: Option<&HeaderValue>,
    handler: bool,
) -> Answered {
    let failed = |why: String| Unanswered::Failed(failed(why));
    let broken = |why: &dyn std::fmt::Display| failed(format!("{to}: no answer: {why}"));
    let address = SocketAddr::new(app.ip(), to.port);
    let tcp = connect(address).await.map_err(Unanswered::Failed)?;
    let request = |http2| request(to, headers, host, http2).map_err(failed);
    let response = if to.tls {
        let tls = handshake(tcp, app.ip()).await.map_err(|no| match no {
            NoTls::Plaintext => Unanswered::Plaintext(format!("{to}: the app answers in plaintext")),
            NoTls::Failed(why) => failed(format!("{to}: the TLS handshake failed: {why}")),
        })?;
        match tls.get_ref().1.alpn_protocol() == Some(HTTP2) {
            true => over_http2(tls, request(true)?).await,
            false => over_http1(tls, request(false)?).await,
        }
    } else {
        over_http1(tcp, request(false)?).await
    };
    let (response, _connection) = response.map_err(|error| broken(&error))?;
    let status = response.status();
    let reference = response
        .headers()
        .get(LOCATION)
        .map(|l| String::from_utf8_lossy(l.as_bytes()).into_owned());
    let read = read(response.into_body()).await;
    if !handler {
        read.map_err(|error| broken(&error))?;
    }
    Ok((status, reference.filter(|reference| !reference.is_empty())))
}

/// A response, and what drives its connection.
type Received = hyper::Result<(Response<Incoming>, AbortOnDropHandle<hyper::Result<()>>)>;

async fn over_http1(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Empty<Bytes>>,
) -> Received {
    let mut builder = http1::Builder::new();
    builder
        .title_case_headers(true)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS);
    let (mut sender, connection) = builder.handshake(TokioIo::new(io)).await?;
    let connection = AbortOnDropHandle::new(tokio::spawn(connection));
    Ok((sender.send_request(request).await?, connection))
}

async fn over_http2(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Empty<Bytes>>,
) -> Received {
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await?;
    let connection = AbortOnDropHandle::new(tokio::spawn(connection));
    Ok((sender.send_request(request).await?, connection))
}

/// Reads as much as kubelet does. A body that breaks off is a failed probe; to a handler's nobody listens.
async fn read(mut body: Incoming) -> hyper::Result<()> {
    let mut read = 0;
    while read < MAX_BODY
        && let Some(frame) = body.frame().await
    {
        read += frame?.data_ref().map_or(0, Bytes::len);
    }
    Ok(())
}

fn request(
    to: &Location,
    headers: &HeaderMap,
    host: Option<&HeaderValue>,
    http2: bool,
) -> Result<Request<Empty<Bytes>>, String> {
    let wrong = |error: &dyn std::fmt::Display| format!("{to} cannot be asked for: {error}");
    let authority = to.authority();
    let uri = match http2 {
        false => to.target.parse::<Uri>().map_err(|error| wrong(&error))?,
        true => {
            let authority = host.map_or(authority.as_bytes(), HeaderValue::as_bytes);
            let uri = Uri::builder()
                .scheme("https")
                .authority(authority)
                .path_and_query(&*to.target);
            uri.build().map_err(|error| wrong(&error))?
        }
    };
    let mut request = Request::new(Empty::new());
    *request.uri_mut() = uri;
    *request.headers_mut() = headers.clone();
    if !http2 {
        let own = || HeaderValue::from_str(&authority).map_err(|error| wrong(&error));
        let host = host.cloned().map_or_else(own, Ok)?;
        request.headers_mut().insert(HOST, host);
        request
            .headers_mut()
            .insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(request)
}

/// The declared headers, and kubelet's own where these say nothing: `User-Agent` and `Accept`. Go's HTTP client frames
/// messages itself, and an empty name of who asks or what is accepted is none.
fn headers(get: &HttpGet, agent: &str) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (name, value) in &get.headers {
        let wrong = || format!("the header {name:?}: {value:?} of the probe cannot be sent");
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong())?;
        let value = HeaderValue::from_bytes(value.trim().as_bytes()).map_err(|_| wrong())?;
        headers.append(name, value);
    }
    for framing in [CONTENT_LENGTH, TRANSFER_ENCODING, TRAILER, CONNECTION] {
        headers.remove(framing);
    }
    let agent = HeaderValue::from_str(agent).map_err(|error| error.to_string())?;
    for (name, default) in [(USER_AGENT, agent), (ACCEPT, HeaderValue::from_static("*/*"))] {
        match headers.get(&name) {
            None => drop(headers.insert(name, default)),
            Some(value) if value.is_empty() => drop(headers.remove(name)),
            Some(_) => {}
        }
    }
    // An empty one is none.
    if headers.get(HOST).is_some_and(HeaderValue::is_empty) {
        headers.remove(HOST);
    }
    Ok(headers)
}

/// Go's HTTP client says where it comes from, but nothing of HTTPS to HTTP.
fn refer(headers: &mut HeaderMap, from: &Location, to: &Location) {
    headers.remove(REFERER);
    if let Ok(referer) = HeaderValue::from_str(&from.to_string())
        && (to.tls || !from.tls)
    {
        headers.insert(REFERER, referer);
    }
}

fn is_followed(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

fn failed(why: String) -> Failure {
    Failure {
        status: StatusCode::BAD_GATEWAY,
        why,
    }
}
