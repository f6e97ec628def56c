//! What a sidecar tells about its work: trace contexts and spans, metrics, the access log, and its own log.
//!
//! Architecture Invariant: the request path only ever hands over plain values here. Nothing below blocks it, waits for a
//! collector, or grows without a limit: what cannot be kept is dropped and counted.

mod access;
mod access_log;
pub mod context;
mod export;
mod external_auth;
mod fallback;
mod fault;
mod ids;
mod limit;
pub mod logging;
pub mod metrics;
mod request;
mod span;
mod tracer;
mod tunnel;

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue};
use outrigger_proxy_transport::error::Reason;
use tokio::time::Instant;

pub use access::{AccessDecision, AccessNote};
pub use context::TraceContext;
pub use external_auth::AuthDecision;
pub use fallback::{FallbackCause, FallbackNote};
pub use fault::{FaultKind, FaultNote};
pub use limit::{LimitDecision, LimitNote};
pub use metrics::{Metrics, ServiceMetrics};
pub use request::{AttemptEnd, Direction, Peer, Protocol, RequestEnd, RequestInfo, SpanStart, Status, request_id};
pub use span::{SpanEvent, SpanKind, SpanRecord};
pub use tunnel::{Tunnel, TunnelEnds};

use crate::dns::Resolver;

use access_log::AccessLog;
use context::Sampling;
use export::Exporter;
use ids::Ids;
use tracer::Tracer;
use tunnel::TunnelEnd;

/// Where spans go.
#[derive(Clone, Debug, PartialEq)]
pub struct TracingConfig {
    /// `http://jaeger.shop.svc:4317`; with `https`, in TLS.
    pub endpoint: http::Uri,
    /// Who may have signed the certificate of an `https` endpoint, in DER. None: public authorities.
    pub ca_certificates: Vec<Vec<u8>>,
    pub protocol: TracingProtocol,
    /// Share of the traces that begin here which are recorded, 0 to 1.
    pub sample_ratio: f64,
    pub not_sampled: NotSampled,
}

/// What becomes of the context of a trace that begins here and is not recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NotSampled {
    /// It is not written: an app with a tracing SDK decides by itself.
    #[default]
    Omit,
    /// It is written, and says so: an app with a tracing SDK that decides as its parent does records nothing either.
    Pass,
}

/// How OTLP is spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TracingProtocol {
    #[default]
    Grpc,
    Http,
}

/// Who the spans are from: OpenTelemetry's resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resource {
    /// `service.name`: the workload's name.
    pub name: Arc<str>,
    pub namespace: Arc<str>,
    pub pod: Arc<str>,
    /// Empty outside Kubernetes.
    pub node: Arc<str>,
}

/// What [`Telemetry::start`] needs.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    pub resource: Resource,
    /// `None`: no spans are made; contexts that come in are still passed on.
    pub tracing: Option<TracingConfig>,
    pub access_log: bool,
    /// Makes the IDs repeatable, for tests.
    pub seed: Option<u64>,
}

/// Tracer, metrics and access log of one process. A cheap handle.
#[derive(Clone)]
pub struct Telemetry(Arc<Observers>);

/// Who hears of requests. Each is named in [`Telemetry::attempt_ended`] and [`Telemetry::request_ended`].
struct Observers {
    tracer: Tracer,
    metrics: Arc<Metrics>,
    access_log: AccessLog,
}

impl Telemetry {
    /// Starts the export task on the tokio runtime of the caller: the control runtime, never a worker's. `resolver` finds
    /// the collector.
    ///
    /// # Errors
    /// When the collector's endpoint is not a URL that can be used.
    pub fn start(settings: &Settings, resolver: &Resolver) -> Result<Self, String> {
        let metrics = Arc::new(Metrics::new());
        let tracing = settings.tracing.as_ref();
        let sampling = Sampling {
            exports: tracing.is_some(),
            ratio: tracing.map_or(0.0, |tracing| tracing.sample_ratio),
            not_sampled: tracing.map_or(NotSampled::Omit, |tracing| tracing.not_sampled),
        };
        let exporter = match &settings.tracing {
            Some(tracing) => {
                let metrics = Arc::clone(&metrics);
                Some(Exporter::start(tracing, &settings.resource, resolver.clone(), metrics)?)
            }
            None => None,
        };
        Ok(Self(Arc::new(Observers {
            tracer: Tracer {
                ids: Ids::new(settings.seed),
                exporter,
                sampling,
            },
            access_log: AccessLog::new(settings.access_log, Arc::clone(&metrics)),
            metrics,
        })))
    }

    /// The context in a request's headers, or a new one, whose trace ID is made from the request's. Of a new one, and of one that
    /// leaves the decision to the next hop (B3), the configured ratio decides by the trace ID.
    pub fn context(&self, headers: &HeaderMap, request_id: &HeaderValue) -> TraceContext {
        self.0.tracer.context(headers, request_id)
    }

    /// A span that begins now.
    pub fn start_span(&self) -> SpanStart {
        self.0.tracer.start_span()
    }

    /// A span that began at an earlier moment.
    pub fn span_since(&self, began: Instant) -> SpanStart {
        self.0.tracer.span_since(began)
    }

    /// An attempt ended: exactly once for each.
    pub fn attempt_ended(&self, attempt: &AttemptEnd<'_>) {
        let Observers {
            tracer,
            metrics,
            access_log: _,
        } = &*self.0;
        tracer.attempt_ended(attempt);
        metrics.attempt_ended(attempt);
    }

    /// A request ended that this sidecar has answered itself, and something happened to it. That is no attempt, and has a span.
    pub fn answered_here(&self, attempt: &AttemptEnd<'_>) {
        self.0.tracer.attempt_ended(attempt);
    }

    /// Somebody was asked whether a request is let through.
    pub fn asked(&self, question: &AttemptEnd<'_>, decision: AuthDecision) {
        self.0.tracer.asked(question, decision);
    }

    /// A request ended: exactly once for each, and each side.
    pub fn request_ended(&self, request: &RequestEnd<'_>) {
        let Observers {
            tracer: _,
            metrics,
            access_log,
        } = &*self.0;
        metrics.request_ended(request);
        access_log.request_ended(request);
    }

    /// Counts a connection that is carried as bytes, until it is dropped.
    pub fn tunnel(&self, ends: Box<TunnelEnds>) -> Box<Tunnel> {
        // On the heap, as its ends are: connections keep room for it from their beginning.
        Box::new(Tunnel::new(self.clone(), ends))
    }

    /// A connection of bytes was refused before anything of it was carried.
    pub fn connection_refused(
        &self,
        ends: &TunnelEnds,
        reason: Reason,
        access: Option<&AccessNote>,
        limit: Option<&LimitNote>,
    ) {
        self.0.metrics.error(reason);
        self.0.access_log.tunnel_ended(&TunnelEnd {
            ends,
            duration: Duration::ZERO,
            sent: 0,
            received: 0,
            reason: Some(reason),
            access,
            limit,
        });
    }

    fn tunnel_ended(&self, tunnel: &TunnelEnd<'_>) {
        self.0.access_log.tunnel_ended(tunnel);
    }

    /// The counters, for what is not a request that ended.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.0.metrics
    }

    /// Whether the access log is on.
    pub fn access_log(&self) -> bool {
        self.0.access_log.is_on()
    }

    /// Switches the access log.
    pub fn set_access_log(&self, on: bool) {
        self.0.access_log.switch(on);
    }

    /// Sends what is queued, at the end of the process. Takes at most `limit`.
    pub async fn flush(&self, limit: Duration) {
        self.0.tracer.flush(limit).await;
        self.0.access_log.flush();
    }
}
