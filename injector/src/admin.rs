//! The admin port: `/livez`, `/readyz`, `/metrics`. Plain HTTP, and nothing that changes anything.

use std::convert::Infallible;
use std::sync::Arc;

use http::{Response, StatusCode};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use outrigger_gate::{Gate, Limits, Times, Work};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::metrics::Metrics;
use crate::webhook::response;

const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Serves until `shutdown`. `readiness` says why the injector is not ready, if it is not.
pub(crate) async fn serve(
    listener: TcpListener,
    metrics: Arc<Metrics>,
    readiness: impl Fn() -> Result<(), &'static str> + Clone + Send + 'static,
    shutdown: CancellationToken,
) {
    let gate = Gate::new(Limits::ADMIN);
    let begin = |stream, _, work: Work| {
        let (metrics, readiness) = (Arc::clone(&metrics), readiness.clone());
        tokio::spawn(async move {
            let stream = work.guard(stream);
            let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let _working = work.complete();
                let (status, body) = match request.uri().path() {
                    "/livez" => (StatusCode::OK, "ok\n".to_owned()),
                    "/readyz" => match readiness() {
                        Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
                        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
                    },
                    "/metrics" => (StatusCode::OK, metrics.text(clock::now())),
                    _ => (
                        StatusCode::NOT_FOUND,
                        "there is /livez, /readyz and /metrics\n".to_owned(),
                    ),
                };
                let response: Response<_> = response(status, TEXT, body);
                async move { Ok::<_, Infallible>(response) }
            });
            // A caller that goes away in the middle is its own business.
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = outrigger_gate::accept(&listener, &gate, Times::ADMIN, begin) => {}
    }
}
