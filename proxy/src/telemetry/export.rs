//! Spans on their way to the collector: a bounded queue, and one small task on the control runtime that sends batches.
//!
//! The request path only puts a span into the queue; it wakes the task once a batch, not once a span. A collector that is
//! away costs the spans that do not fit, which are counted, and one attempt now and then.
//!
//! opentelemetry_sdk's batch processor is not used: with tonic it can deadlock on a runtime with one thread, which is a
//! sidecar's normal state.

mod dial;
mod otlp;
mod sink;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::backoff::Backoff;
use crate::dns::Resolver;
use crate::telemetry::TracingConfig;

use super::{Metrics, Resource, SpanRecord};
use otlp::Batch;
use sink::{Sink, SinkError};

/// Spans that wait at most.
const QUEUE: usize = 4096;
/// Spans in one request.
const BATCH: usize = 512;
/// How long a span waits for its batch at most.
const INTERVAL: Duration = Duration::from_secs(1);
/// Attempts to send one batch.
const ATTEMPTS: u32 = 4;
/// Between two attempts, at first and at most.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// The request path's end of the queue.
pub(super) struct Exporter {
    queue: mpsc::Sender<SpanRecord>,
    /// A batch is complete.
    full: Arc<Notify>,
    flushes: mpsc::Sender<oneshot::Sender<()>>,
    metrics: Arc<Metrics>,
}

impl Exporter {
    /// Starts the task on the current runtime. It ends when the exporter is dropped.
    pub(super) fn start(
        config: &TracingConfig,
        resource: &Resource,
        resolver: Resolver,
        metrics: Arc<Metrics>,
    ) -> Result<Self, String> {
        let sink = Sink::new(config, resolver)?;
        let (queue, spans) = mpsc::channel(QUEUE);
        let (flushes, flush_requests) = mpsc::channel(1);
        let full = Arc::new(Notify::new());
        let task = Task {
            spans,
            full: Arc::clone(&full),
            flushes: flush_requests,
            flushing: None,
            sink,
            batch: Batch::new(resource),
            metrics: Arc::clone(&metrics),
            backoff: Backoff::new(BACKOFF.0, BACKOFF.1, SmallRng::from_os_rng()),
            away: false,
        };
        tokio::spawn(task.run());
        Ok(Self {
            queue,
            full,
            flushes,
            metrics,
        })
    }

    pub(super) fn record(&self, span: SpanRecord) {
        if self.queue.try_send(span).is_err() {
            self.metrics.spans_dropped(1);
        } else if QUEUE - self.queue.capacity() == BATCH {
            self.full.notify_one();
        }
    }

    /// Sends what is queued; whatever is not sent within `limit` is given up.
    pub(super) async fn flush(&self, limit: Duration) {
        let (done, flushed) = oneshot::channel();
        let flush = async {
            if self.flushes.send(done).await.is_ok() {
                _ = flushed.await;
            }
        };
        if timeout(limit, flush).await.is_err() {
            tracing::warn!("the collector did not take the last spans in time");
        }
    }
}

struct Task {
    spans: mpsc::Receiver<SpanRecord>,
    full: Arc<Notify>,
    flushes: mpsc::Receiver<oneshot::Sender<()>>,
    /// Somebody waits for the queue to be empty: no more second attempts.
    flushing: Option<oneshot::Sender<()>>,
    sink: Sink,
    batch: Batch,
    metrics: Arc<Metrics>,
    backoff: Backoff,
    /// The last attempt failed.
    away: bool,
}

impl Task {
    async fn run(mut self) {
        let mut tick = interval(INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // The queue itself is not awaited: its sender would wake this task for each span.
            tokio::select! {
                _ = tick.tick() => {}
                () = self.full.notified() => {}
                flush = self.flushes.recv() => match flush {
                    Some(done) => self.flushing = Some(done),
                    None => return,
                },
            }
            while let Some((request, spans)) = self.next_batch() {
                self.send(request, spans).await;
            }
            if let Some(done) = self.flushing.take() {
                // Whoever asked may have given up.
                _ = done.send(());
            }
        }
    }

    fn next_batch(&mut self) -> Option<(ExportTraceServiceRequest, usize)> {
        let mut spans = Vec::new();
        while spans.len() < BATCH {
            match self.spans.try_recv() {
                Ok(span) => spans.push(otlp::span(span)),
                Err(_) => break,
            }
        }
        let count = spans.len();
        (count > 0).then(|| (self.batch.request(spans), count))
    }

    async fn send(&mut self, request: ExportTraceServiceRequest, spans: usize) {
        for attempt in 1..=ATTEMPTS {
            let error = match self.sink.send(&request).await {
                Ok(rejected) => {
                    self.backoff.succeeded();
                    self.away = false;
                    self.metrics.spans_exported(spans.saturating_sub(rejected));
                    self.metrics.spans_dropped(rejected);
                    return;
                }
                Err(error) => error,
            };
            let last = attempt == ATTEMPTS || self.flushing.is_some() || matches!(error, SinkError::Refused(_));
            // The first failure is worth a line; the rest is in the metric.
            if !std::mem::replace(&mut self.away, true) {
                tracing::warn!(%error, "the collector took no spans; check that it runs, and the tracing endpoint");
            }
            if last {
                break;
            }
            self.pause().await;
        }
        self.metrics.spans_dropped(spans);
    }

    /// Waits before the next attempt; not when somebody wants to flush.
    async fn pause(&mut self) {
        tokio::select! {
            () = sleep(self.backoff.failed()) => {}
            Some(done) = self.flushes.recv() => self.flushing = Some(done),
        }
    }
}
