//! Trace contexts and spans of the request path.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderValue};
use tokio::time::Instant;

use super::context::{self, Sampling};
use super::export::Exporter;
use super::ids::Ids;
use super::request::{AttemptEnd, SpanStart};
use super::{AuthDecision, SpanRecord, TraceContext};

pub(super) struct Tracer {
    pub(super) ids: Ids,
    /// `None`: no span is recorded.
    pub(super) exporter: Option<Exporter>,
    pub(super) sampling: Sampling,
}

impl Tracer {
    pub(super) fn context(&self, headers: &HeaderMap, request_id: &HeaderValue) -> TraceContext {
        context::continue_or_start(headers, request_id.as_bytes(), &self.sampling, &self.ids)
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "a span says when it began by the machine's clock"
    )]
    pub(super) fn start_span(&self) -> SpanStart {
        SpanStart {
            id: self.ids.span_id(),
            at: SystemTime::now(),
            instant: Instant::now(),
        }
    }

    /// A span that began at an earlier moment.
    pub(super) fn span_since(&self, began: Instant) -> SpanStart {
        let now = self.start_span();
        let at = now.at.checked_sub(now.instant.saturating_duration_since(began));
        SpanStart {
            id: now.id,
            at: at.unwrap_or(now.at),
            instant: began,
        }
    }

    /// Hands the span to the exporter, if its trace is recorded. A full queue drops it and counts it.
    pub(super) fn attempt_ended(&self, attempt: &AttemptEnd<'_>) {
        if let Some(exporter) = &self.exporter
            && attempt.request.context.sampled
        {
            exporter.record(SpanRecord::of(attempt));
        }
    }

    /// The same of a question about a request, with what it has come to.
    pub(super) fn asked(&self, question: &AttemptEnd<'_>, decision: AuthDecision) {
        if let Some(exporter) = &self.exporter
            && question.request.context.sampled
        {
            let mut record = SpanRecord::of(question);
            record.events.push(decision.event(self.start_span().at));
            exporter.record(record);
        }
    }

    pub(super) async fn flush(&self, limit: Duration) {
        if let Some(exporter) = &self.exporter {
            exporter.flush(limit).await;
        }
    }
}
