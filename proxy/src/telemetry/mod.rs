//! What a sidecar tells about its work: trace contexts and spans, metrics, the access log, and its own log.
//!
//! Architecture Invariant: the request path only ever hands over plain values here. Nothing below blocks it, waits for a
//! collector, or grows without a limit: what cannot be kept is dropped and counted.

mod access_log;
pub mod context;
mod export;
mod ids;
pub mod logging;
pub mod metrics;
mod request;
mod span;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::HeaderMap;

pub use context::TraceContext;
pub use metrics::{Metrics, Outcome, ServiceMetrics};
pub use request::{Direction, Protocol, RequestEnd};
pub use span::{SpanKind, SpanRecord};

use crate::dns::Resolver;

use access_log::AccessLog;
use export::Exporter;
use ids::Ids;

/// Where spans go.
#[derive(Clone, Debug, PartialEq)]
pub struct TracingConfig {
    /// `http://jaeger.shop.svc:4317`.
    pub endpoint: http::Uri,
    pub protocol: TracingProtocol,
    /// Share of the traces that begin here which are recorded, 0 to 1.
    pub sample_ratio: f64,
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
pub struct Telemetry(Arc<Inner>);

struct Inner {
    ids: Ids,
    /// `None`: no exporter.
    exporter: Option<Exporter>,
    sample_ratio: f64,
    metrics: Arc<Metrics>,
    access_log: AccessLog,
    access_log_on: AtomicBool,
}

impl Telemetry {
    /// Starts the export task on the tokio runtime of the caller: the control runtime, never a worker's. `resolver` finds
    /// the collector.
    ///
    /// # Errors
    /// When the collector's endpoint is not a URL that can be used.
    pub fn start(settings: &Settings, resolver: &Resolver) -> Result<Self, String> {
        let metrics = Arc::new(Metrics::new());
        let sample_ratio = settings.tracing.as_ref().map_or(0.0, |tracing| tracing.sample_ratio);
        let exporter = match &settings.tracing {
            Some(tracing) => {
                let metrics = Arc::clone(&metrics);
                Some(Exporter::start(tracing, &settings.resource, resolver.clone(), metrics)?)
            }
            None => None,
        };
        Ok(Self(Arc::new(Inner {
            ids: Ids::new(settings.seed),
            exporter,
            sample_ratio,
            access_log: AccessLog::new(Arc::clone(&metrics)),
            metrics,
            access_log_on: AtomicBool::new(settings.access_log),
        })))
    }

    /// The request's trace context, or a new one, sampled by the configured ratio. Of a context that leaves the decision
    /// to the next hop (B3), the ratio decides too.
    pub fn context(&self, headers: &HeaderMap) -> TraceContext {
        let tracer = self.0.exporter.is_some();
        context::continue_or_start(headers, tracer, self.0.sample_ratio, &self.0.ids)
    }

    /// A new span's ID, never all zeros.
    pub fn span_id(&self) -> [u8; 8] {
        self.0.ids.span_id()
    }

    /// Whether a span of this context would be exported; when not, none needs to be built.
    pub fn records(&self, context: &TraceContext) -> bool {
        context.sampled && self.0.exporter.is_some()
    }

    /// Hands a span to the exporter. A full queue drops it and counts it. The caller has asked [`Telemetry::records`].
    pub fn record(&self, span: SpanRecord) {
        if let Some(exporter) = &self.0.exporter {
            exporter.record(span);
        }
    }

    /// Counts a request that ended, and logs it where the access log is on. Exactly once for each request and side.
    pub fn request_ended(&self, request: &RequestEnd<'_>) {
        self.0.metrics.request_ended(request);
        if self.access_log() {
            self.0.access_log.write(request);
        }
    }

    /// The counters, for what is not a request that ended.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.0.metrics
    }

    /// Whether the access log is on.
    pub fn access_log(&self) -> bool {
        self.0.access_log_on.load(Ordering::Relaxed)
    }

    /// Switches the access log.
    pub fn set_access_log(&self, on: bool) {
        self.0.access_log_on.store(on, Ordering::Relaxed);
    }

    /// Sends what is queued, at the end of the process. Takes at most `limit`.
    pub async fn flush(&self, limit: Duration) {
        if let Some(exporter) = &self.0.exporter {
            exporter.flush(limit).await;
        }
        self.0.access_log.flush();
    }
}
