//! The admin port: `/livez`, `/readyz` and `/metrics`.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use outrigger_gate::{Gate, Limits, Times, Work};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// Serves until `shutdown` is cancelled. Ready is what `ready` says: the CA is loaded and the index complete.
pub async fn serve(
    listener: TcpListener,
    metrics: Arc<Metrics>,
    ready: watch::Receiver<bool>,
    shutdown: CancellationToken,
) {
    let gate = Gate::new(Limits::ADMIN);
    let begin = |stream, _, work: Work| {
        let (metrics, ready) = (metrics.clone(), ready.clone());
        let stream = work.guard(stream);
        let service = service_fn(move |request| {
            let _working = work.complete();
            let response = answer(&request, &metrics, *ready.borrow());
            async { Ok::<_, Infallible>(response) }
        });
        let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        // A client that goes away is no news.
        tokio::spawn(
            shutdown
                .clone()
                .run_until_cancelled_owned(async { drop(connection.await) }),
        );
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = outrigger_gate::accept(&listener, &gate, Times::ADMIN, begin) => {}
    }
}

fn answer<B>(request: &Request<B>, metrics: &Metrics, ready: bool) -> Response<Full<Bytes>> {
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    let (status, body) = match request.uri().path() {
        _ if !is_read => (StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned()),
        "/livez" => (StatusCode::OK, "ok\n".to_owned()),
        "/readyz" if ready => (StatusCode::OK, "ok\n".to_owned()),
        "/readyz" => (
            StatusCode::SERVICE_UNAVAILABLE,
            "not ready: the CA is not loaded, or the index is not complete; see the log\n".to_owned(),
        ),
        "/metrics" => (StatusCode::OK, metrics.encode()),
        _ => (StatusCode::NOT_FOUND, "/livez, /readyz, /metrics\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let content_type = if request.uri().path() == "/metrics" {
        content_type
    } else {
        "text/plain"
    };
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::answer;
    use crate::metrics::Metrics;
    use http::{Method, Request, StatusCode};

    #[test]
    fn paths() {
        let metrics = Metrics::default();
        let status = |path: &str, ready| answer(&Request::get(path).body(()).unwrap(), &metrics, ready).status();
        assert_eq!(status("/livez", false), StatusCode::OK);
        assert_eq!(status("/readyz", false), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(status("/readyz", true), StatusCode::OK);
        assert_eq!(status("/metrics", true), StatusCode::OK);
        assert_eq!(status("/", true), StatusCode::NOT_FOUND);
        let post = Request::builder().method(Method::POST).uri("/livez").body(()).unwrap();
        assert_eq!(answer(&post, &metrics, true).status(), StatusCode::METHOD_NOT_ALLOWED);
    }
}
