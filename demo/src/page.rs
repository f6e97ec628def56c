//! The page: the newest traces as waterfalls. It is served on loopback only, and loads nothing from anywhere else.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Context;
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HOST};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::Observed;
use super::traces::{Span, Trace};

/// Easy to remember; another one if it is taken.
const PREFERRED_PORT: u16 = 8480;
const LISTED: usize = 60;
/// The spans of a trace are all there after this long.
const ARRIVING_NS: u64 = 5_000_000_000;

/// Binds the page's port on 127.0.0.1; 0 means the preferred one, or else any.
pub(super) async fn bind(port: u16) -> anyhow::Result<TcpListener> {
    let at = |port| TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    if port != 0 {
        return at(port)
            .await
            .with_context(|| format!("--page-port {port}: cannot listen there"));
    }
    match at(PREFERRED_PORT).await {
        Ok(listener) => Ok(listener),
        Err(_) => at(0).await.context("cannot listen on 127.0.0.1"),
    }
}

/// Serves the page until the runtime ends. `shop` is the URL that it links to.
pub(super) fn serve(listener: TcpListener, observed: Observed, shop: String) {
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            };
            let (observed, shop) = (observed.clone(), shop.clone());
            tokio::spawn(async move {
                let service = service_fn(|request| {
                    let response = answer(&request, &observed, &shop);
                    async { Ok::<_, Infallible>(response) }
                });
                let mut builder = http1::Builder::new();
                // A browser that goes away is no matter.
                let _ = builder
                    .timer(TokioTimer::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
}

fn answer(request: &Request<Incoming>, observed: &Observed, shop: &str) -> Response<Full<Bytes>> {
    // A page from elsewhere must not read this one by a name that it made to mean 127.0.0.1 (DNS rebinding).
    let host = request
        .headers()
        .get(HOST)
        .and_then(|host| host.to_str().ok())
        .unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    if !matches!(name, "127.0.0.1" | "localhost") {
        return respond(
            StatusCode::FORBIDDEN,
            "text/plain",
            "ask for http://127.0.0.1 or http://localhost\n",
        );
    }
    if request.method() != Method::GET {
        return respond(
            StatusCode::METHOD_NOT_ALLOWED,
            "text/plain",
            "GET is all that is here\n",
        );
    }
    match request.uri().path() {
        "/" => respond(StatusCode::OK, "text/html; charset=utf-8", include_str!("page.html")),
        "/page.css" => respond(StatusCode::OK, "text/css", include_str!("page.css")),
        "/page.js" => respond(StatusCode::OK, "text/javascript", include_str!("page.js")),
        "/api/state" => respond(StatusCode::OK, "application/json", state(observed, shop).to_string()),
        path => match path.strip_prefix("/api/traces/").and_then(|id| trace(observed, id)) {
            Some(trace) => respond(StatusCode::OK, "application/json", trace.to_string()),
            None => respond(
                StatusCode::NOT_FOUND,
                "text/plain",
                "there is nothing here, or it is not kept any more\n",
            ),
        },
    }
}

fn respond(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
        .headers_mut()
        .insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn state(observed: &Observed, shop: &str) -> Value {
    let store = observed.store.lock();
    let stats = observed.stats.lock();
    let newest = store.newest().next().map_or(0, Trace::start_ns);
    let traces: Vec<Value> = store
        .newest()
        .map(|trace| (trace, store.check(trace).is_ok()))
        // Spans arrive in batches; a trace is listed when it is whole, or when nothing more will come.
        .filter(|(trace, whole)| *whole || newest.saturating_sub(trace.start_ns()) > ARRIVING_NS)
        .take(LISTED)
        .map(|(trace, whole)| summary(trace, whole))
        .collect();
    let longest = store.longest().map(|trace| trace.id.clone());
    json!({
        "shop": shop,
        "now": stats.now(),
        "history": stats.history().collect::<Vec<_>>(),
        "identities": store.peers(),
        "trace_count": store.count(),
        "span_count": store.spans(),
        "longest": longest,
        "traces": traces,
    })
}

fn summary(trace: &Trace, whole: bool) -> Value {
    let root = trace.spans.iter().find(|span| span.parent.is_none());
    json!({
        "id": trace.id,
        "name": root.map(Span::title),
        "start_ms": trace.start_ns() / 1_000_000,
        "duration_ms": trace.duration_ms(),
        "spans": trace.spans.len(),
        "retries": trace.retries(),
        "failed": root.is_some_and(|root| root.error),
        "whole": whole,
    })
}

fn trace(observed: &Observed, id: &str) -> Option<Value> {
    let store = observed.store.lock();
    let trace = store
        .trace(id)
        .or_else(|| store.longest().filter(|longest| longest.id == id))?;
    let start = trace.start_ns();
    let span = |(depth, span): (usize, &Span)| {
        json!({
            "id": span.id,
            "parent": span.parent,
            "depth": depth,
            "name": span.title(),
            "service": span.service,
            "kind": span.kind,
            "offset_ms": span.start_ns.saturating_sub(start) as f64 / 1e6,
            "duration_ms": span.duration_ms(),
            "error": span.error,
            "retry": span.resend_count(),
            "attributes": span.attributes,
        })
    };
    Some(json!({
        "id": trace.id,
        "start_ms": start / 1_000_000,
        "duration_ms": trace.duration_ms(),
        "services": trace.services(),
        "retries": trace.retries(),
        "whole": store.check(trace).is_ok(),
        "spans": trace.in_order().into_iter().map(span).collect::<Vec<_>>(),
    }))
}
