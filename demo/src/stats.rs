//! What the load and the sidecars count, second by second.

use std::collections::VecDeque;
use std::time::Duration;

use outrigger_shop::load::{Latencies, Outcome};
use serde::Serialize;
use tokio::time::Instant;

use super::metrics::{SidecarCounts, UpstreamCounts};

/// Rates and percentiles are over this many seconds.
const WINDOW: usize = 10;
/// Seconds that the page draws.
const HISTORY: usize = 120;

/// A call of one service by another's sidecar.
#[derive(Clone, Debug)]
pub(super) struct Edge {
    pub(super) from: &'static str,
    pub(super) to: &'static str,
}

/// All that is counted since the load began.
#[derive(Debug)]
pub(super) struct Stats {
    edges: Vec<Edge>,
    start: Instant,
    requests: u64,
    failed: u64,
    last_failure: Option<String>,
    latencies: Latencies,
    /// Of the second that runs, and of those before it; the newest last.
    seconds: VecDeque<Latencies>,
    /// At the end of each second; the newest last.
    samples: VecDeque<Sample>,
    history: VecDeque<Point>,
    /// What the sidecars counted before the load began, by edge, and their handshakes' sum.
    baseline: Vec<UpstreamCounts>,
}

#[derive(Clone, Debug)]
struct Sample {
    at: Instant,
    requests: u64,
    failed: u64,
    edges: Vec<UpstreamCounts>,
    handshakes: u64,
}

/// The last seconds.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Now {
    pub(super) elapsed_s: f64,
    pub(super) requests: u64,
    pub(super) failed: u64,
    pub(super) requests_per_s: f64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    /// Share of the requests that would have succeeded with one attempt everywhere, 0 to 1.
    pub(super) success_before: f64,
    /// Share of the requests that succeeded, 0 to 1.
    pub(super) success_after: f64,
    pub(super) retries: u64,
    pub(super) retries_per_s: f64,
    pub(super) mtls_connections: u64,
    pub(super) edges: Vec<EdgeNow>,
}

/// One call of the shop, over the last seconds.
#[derive(Clone, Debug, Serialize)]
pub(super) struct EdgeNow {
    pub(super) from: &'static str,
    pub(super) to: &'static str,
    pub(super) attempts_per_s: f64,
    pub(super) retries_per_s: f64,
    /// Share of the attempts, 0 to 1.
    pub(super) success: f64,
}

/// One second of the page's chart.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Point {
    requests_per_s: f64,
    success_before: f64,
    success_after: f64,
    p50_ms: f64,
    p99_ms: f64,
}

/// The whole run.
#[derive(Clone, Debug)]
pub(super) struct Totals {
    pub(super) requests: u64,
    pub(super) failed: u64,
    pub(super) retries: u64,
    pub(super) success_before: f64,
    pub(super) p50: Duration,
    pub(super) p99: Duration,
    pub(super) mtls_connections: u64,
    pub(super) last_failure: Option<String>,
}

impl Stats {
    pub(super) fn new(edges: Vec<Edge>) -> Self {
        Self {
            baseline: vec![UpstreamCounts::default(); edges.len()],
            edges,
            start: Instant::now(),
            requests: 0,
            failed: 0,
            last_failure: None,
            latencies: Latencies::default(),
            seconds: VecDeque::from([Latencies::default()]),
            samples: VecDeque::new(),
            history: VecDeque::new(),
        }
    }

    /// The load begins now; what the sidecars counted until here is not its doing. Handshakes are: the connections
    /// are used further.
    pub(super) fn begin(&mut self, sidecars: &[(&str, SidecarCounts)]) {
        self.start = Instant::now();
        self.baseline = self.by_edge(sidecars);
        self.sample(sidecars);
    }

    /// A purchase ended.
    pub(super) fn record(&mut self, outcome: Outcome) {
        self.requests += 1;
        self.latencies.record(outcome.latency);
        if let Some(second) = self.seconds.back_mut() {
            second.record(outcome.latency);
        }
        if let Err(reason) = outcome.result {
            self.failed += 1;
            // The sidecars' bodies say on further lines where to read more.
            self.last_failure = reason.lines().next().map(str::to_owned);
        }
    }

    /// A second is over: takes what the sidecars (by name) count now.
    pub(super) fn sample(&mut self, sidecars: &[(&str, SidecarCounts)]) {
        let mut edges = self.by_edge(sidecars);
        for (edge, baseline) in edges.iter_mut().zip(&self.baseline) {
            *edge = difference(*edge, *baseline);
        }
        self.samples.push_back(Sample {
            at: Instant::now(),
            requests: self.requests,
            failed: self.failed,
            edges,
            handshakes: sidecars.iter().map(|(_, counts)| counts.handshakes).sum(),
        });
        self.seconds.push_back(Latencies::default());
        while self.samples.len() > WINDOW + 1 {
            self.samples.pop_front();
        }
        while self.seconds.len() > WINDOW {
            self.seconds.pop_front();
        }
        if self.samples.len() > 1 {
            let now = self.now();
            self.history.push_back(Point {
                requests_per_s: now.requests_per_s,
                success_before: now.success_before,
                success_after: now.success_after,
                p50_ms: now.p50_ms,
                p99_ms: now.p99_ms,
            });
        }
        while self.history.len() > HISTORY {
            self.history.pop_front();
        }
    }

    /// The last seconds' rates.
    pub(super) fn now(&self) -> Now {
        let empty = Sample {
            at: self.start,
            requests: 0,
            failed: 0,
            edges: vec![UpstreamCounts::default(); self.edges.len()],
            handshakes: 0,
        };
        let (first, last) = (
            self.samples.front().unwrap_or(&empty),
            self.samples.back().unwrap_or(&empty),
        );
        let seconds = (last.at - first.at).as_secs_f64().max(1e-3);
        let changes = last
            .edges
            .iter()
            .zip(&first.edges)
            .map(|(last, first)| difference(*last, *first));
        let edges: Vec<EdgeNow> = self
            .edges
            .iter()
            .zip(changes)
            .map(|(edge, change)| EdgeNow {
                from: edge.from,
                to: edge.to,
                attempts_per_s: change.attempts as f64 / seconds,
                retries_per_s: change.retries as f64 / seconds,
                success: share(change.attempts - change.failed_attempts, change.attempts),
            })
            .collect();
        let mut latencies = Latencies::default();
        self.seconds.iter().for_each(|second| latencies.add(second));
        let (requests, failed) = (last.requests - first.requests, last.failed - first.failed);
        Now {
            elapsed_s: self.start.elapsed().as_secs_f64(),
            requests: self.requests,
            failed: self.failed,
            requests_per_s: requests as f64 / seconds,
            p50_ms: millis(latencies.percentile(50.0)),
            p99_ms: millis(latencies.percentile(99.0)),
            success_before: edges.iter().map(|edge| edge.success).product(),
            success_after: share(requests - failed, requests),
            retries: last.edges.iter().map(|edge| edge.retries).sum(),
            retries_per_s: edges.iter().map(|edge| edge.retries_per_s).sum(),
            mtls_connections: last.handshakes,
            edges,
        }
    }

    /// The newest second last.
    pub(super) fn history(&self) -> impl Iterator<Item = &Point> {
        self.history.iter()
    }

    /// The whole run, to the last sample of the sidecars.
    pub(super) fn totals(&self) -> Totals {
        let last = self.samples.back();
        let edges = last.map_or(&[][..], |last| &last.edges);
        Totals {
            requests: self.requests,
            failed: self.failed,
            retries: edges.iter().map(|edge| edge.retries).sum(),
            success_before: edges
                .iter()
                .map(|e| share(e.attempts - e.failed_attempts, e.attempts))
                .product(),
            p50: self.latencies.percentile(50.0),
            p99: self.latencies.percentile(99.0),
            mtls_connections: last.map_or(0, |last| last.handshakes),
            last_failure: self.last_failure.clone(),
        }
    }

    fn by_edge(&self, sidecars: &[(&str, SidecarCounts)]) -> Vec<UpstreamCounts> {
        let count = |edge: &Edge| {
            let (_, counts) = sidecars.iter().find(|(name, _)| *name == edge.from)?;
            counts.upstreams.get(edge.to).copied()
        };
        self.edges.iter().map(|edge| count(edge).unwrap_or_default()).collect()
    }
}

impl Totals {
    /// Share of the requests that succeeded, 0 to 1.
    pub(super) fn success_after(&self) -> f64 {
        share(self.requests - self.failed, self.requests)
    }
}

/// Milliseconds, with their fraction.
pub(super) fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn difference(last: UpstreamCounts, first: UpstreamCounts) -> UpstreamCounts {
    let attempts = last.attempts.saturating_sub(first.attempts);
    UpstreamCounts {
        attempts,
        failed_attempts: last.failed_attempts.saturating_sub(first.failed_attempts).min(attempts),
        retries: last.retries.saturating_sub(first.retries),
    }
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 1.0 } else { part as f64 / whole as f64 }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use outrigger_shop::load::Outcome;

    use super::super::metrics::{SidecarCounts, UpstreamCounts};
    use super::{Edge, HISTORY, Stats};

    fn counts(attempts: u64, failed_attempts: u64, retries: u64) -> SidecarCounts {
        let counts = UpstreamCounts {
            attempts,
            failed_attempts,
            retries,
        };
        SidecarCounts {
            upstreams: [("inventory".to_owned(), counts)].into(),
            handshakes: 2,
        }
    }

    fn purchase(ms: u64, result: Result<(), String>) -> Outcome {
        Outcome {
            latency: Duration::from_millis(ms),
            result,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn rates_are_of_the_last_seconds_and_totals_of_the_run() {
        let mut stats = Stats::new(vec![Edge {
            from: "orders",
            to: "inventory",
        }]);
        // What was before the load does not count, but for the connections.
        stats.begin(&[("orders", counts(100, 100, 100))]);
        for second in 1..=HISTORY as u64 + 20 {
            for request in 0..10 {
                stats.record(purchase(if request == 0 { 50 } else { 5 }, Ok(())));
            }
            tokio::time::advance(Duration::from_secs(1)).await;
            stats.sample(&[("orders", counts(100 + 12 * second, 100 + 2 * second, 100 + 2 * second))]);
        }
        let now = stats.now();
        assert!((now.requests_per_s - 10.0).abs() < 1e-6, "{now:?}");
        assert!((now.retries_per_s - 2.0).abs() < 1e-6, "{now:?}");
        assert!(
            (now.success_before - 10.0 / 12.0).abs() < 1e-6 && now.success_after == 1.0,
            "{now:?}"
        );
        assert!(
            (now.p50_ms - 5.0).abs() < 0.1 && (now.p99_ms - 50.0).abs() < 1.0,
            "{now:?}"
        );
        assert_eq!((now.mtls_connections, stats.history().count()), (2, HISTORY));

        stats.record(purchase(1, Err("503".to_owned())));
        let totals = stats.totals();
        assert_eq!((totals.requests, totals.failed, totals.retries), (1401, 1, 280));
        assert_eq!(totals.last_failure.as_deref(), Some("503"));
    }

    #[tokio::test(start_paused = true)]
    async fn before_the_first_sample_there_is_nothing_wrong() {
        let stats = Stats::new(vec![Edge {
            from: "orders",
            to: "inventory",
        }]);
        let now = stats.now();
        assert_eq!(
            (now.requests, now.success_before, now.success_after, now.p99_ms),
            (0, 1.0, 1.0, 0.0)
        );
    }
}
