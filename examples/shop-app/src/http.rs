//! The little HTTP that the services share: a server that ends well, a client, JSON, and the headers to forward.

use std::convert::Infallible;
use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// Headers that belong to a trace (W3C, baggage, B3, Jaeger) and to a request. A request to another service that is made
/// because of this one carries them along; that, and nothing else, makes one trace of all of them.
const FORWARDED: [&str; 11] = [
    "traceparent",
    "tracestate",
    "baggage",
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
    "uber-trace-id",
    "x-request-id",
];

/// Requests in flight at SIGTERM are given this long.
const DRAIN: Duration = Duration::from_secs(20);
const MAX_BODY: usize = 64 * 1024;

/// The headers of `request` that go along with every request made because of it.
pub(crate) fn forwarded(request: &HeaderMap) -> HeaderMap {
    FORWARDED
        .into_iter()
        .flat_map(|name| {
            let values = request.get_all(name).into_iter();
            values.map(move |value| (hyper::header::HeaderName::from_static(name), value.clone()))
        })
        .collect()
}

/// Serves HTTP/1.1 and HTTP/2 until SIGTERM or SIGINT, and then to the end of the requests in flight.
pub(crate) async fn serve<H, F, B>(name: &str, listen: SocketAddr, handle: H) -> anyhow::Result<()>
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("{name} cannot listen on {listen}"))?;
    tracing::info!("{name} listens on {}", listener.local_addr()?);
    let connections = GracefulShutdown::new();
    let mut terminated = std::pin::pin!(terminated());
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!("{name} cannot accept a connection: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            () = &mut terminated => break,
        };
        let _ = stream.set_nodelay(true); // a slower connection is still a connection
        let (watcher, handle) = (connections.watcher(), handle.clone());
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let response = handle(request);
                async { Ok::<_, Infallible>(response.await) }
            });
            let builder = auto::Builder::new(TokioExecutor::new());
            let connection = builder.serve_connection(TokioIo::new(stream), service);
            if let Err(error) = watcher.watch(connection).await {
                tracing::debug!("a connection ended: {error}");
            }
        });
    }
    tracing::info!("{name} finishes what is in flight");
    drop(listener);
    let _ = tokio::time::timeout(DRAIN, connections.shutdown()).await;
    Ok(())
}

/// Waits for SIGTERM or SIGINT.
pub(crate) async fn terminated() {
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        // Without handlers the signals end the process at once, which is the next best thing.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}

/// A JSON response.
pub(crate) fn json(status: StatusCode, value: &impl serde::Serialize) -> Response<Full<Bytes>> {
    match serde_json::to_vec(value) {
        Ok(body) => respond(status, "application/json", body),
        Err(error) => respond(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", error.to_string()),
    }
}

/// An error, as JSON with its message.
pub(crate) fn failure(status: StatusCode, message: &str) -> Response<Full<Bytes>> {
    json(status, &serde_json::json!({ "error": message }))
}

/// A response with a body of this content type.
pub(crate) fn respond(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Reads a body of at most 64 KiB.
pub(crate) async fn read<B>(body: B) -> anyhow::Result<Bytes>
where
    B: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>>,
{
    let body = Limited::new(body, MAX_BODY).collect().await;
    Ok(body
        .map_err(|error| anyhow::anyhow!("the body cannot be read: {error}"))?
        .to_bytes())
}

/// Another service, by its URL.
#[derive(Clone)]
pub(crate) struct Upstream {
    client: Client<HttpConnector, Full<Bytes>>,
    url: String,
}

impl Upstream {
    /// `url` is "http://orders:8080".
    pub(crate) fn new(url: &str) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .build(connector);
        Self {
            client,
            url: url.trim_end_matches('/').to_owned(),
        }
    }

    /// Sends a request, and reads the whole response.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: impl Into<Bytes>,
    ) -> anyhow::Result<(StatusCode, Bytes)> {
        let mut request = Request::new(Full::new(body.into()));
        *request.method_mut() = method;
        *request.uri_mut() = format!("{}{path}", self.url).parse()?;
        *request.headers_mut() = headers;
        let (head, body) = self.client.request(request).await?.into_parts();
        Ok((head.status, read(body).await?))
    }
}

#[cfg(test)]
mod tests {
    use super::forwarded;
    use hyper::header::{HeaderMap, HeaderValue};

    #[test]
    fn trace_headers_are_forwarded_and_no_others() {
        let mut request = HeaderMap::new();
        for name in ["traceparent", "b3", "x-request-id", "authorization", "host"] {
            request.insert(name, HeaderValue::from_static("x"));
        }
        request.append("tracestate", HeaderValue::from_static("a=1"));
        request.append("tracestate", HeaderValue::from_static("b=2"));
        let forwarded = forwarded(&request);
        assert_eq!(forwarded.len(), 5);
        assert_eq!(forwarded.get_all("tracestate").iter().count(), 2);
        assert!(!forwarded.contains_key("authorization"));
    }
}
