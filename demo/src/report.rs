//! What the demo says at its end: whether all is well, as JSON for a program and as text for a person.

use std::fmt::Write;

use serde::Serialize;

use super::stats::{Totals, millis};
use super::traces::{Kind, Store, Trace};

/// The JSON object of `--json`.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    requests: u64,
    succeeded: u64,
    failed: u64,
    retries: u64,
    p50_ms: f64,
    p99_ms: f64,
    mtls_connections: u64,
    traces: u64,
    longest_trace: Option<LongestTrace>,
}

#[derive(Debug, Serialize)]
struct LongestTrace {
    trace_id: String,
    services: Vec<String>,
    spans: Vec<ReportedSpan>,
}

#[derive(Debug, Serialize)]
struct ReportedSpan {
    span_id: String,
    parent_span_id: Option<String>,
    name: String,
    service: String,
    kind: Kind,
    duration_ms: f64,
    status: &'static str,
}

impl Report {
    pub(super) fn new(totals: &Totals, store: &Store) -> Self {
        Self {
            requests: totals.requests,
            succeeded: totals.requests - totals.failed,
            failed: totals.failed,
            retries: totals.retries,
            p50_ms: rounded(millis(totals.p50)),
            p99_ms: rounded(millis(totals.p99)),
            mtls_connections: totals.mtls_connections,
            traces: store.count(),
            longest_trace: store.longest().map(LongestTrace::new),
        }
    }
}

impl LongestTrace {
    fn new(trace: &Trace) -> Self {
        let span = |span: &super::traces::Span| ReportedSpan {
            span_id: span.id.clone(),
            parent_span_id: span.parent.clone(),
            name: span.name.clone(),
            service: span.service.clone(),
            kind: span.kind,
            duration_ms: rounded(span.duration_ms()),
            status: span.status(),
        };
        Self {
            trace_id: trace.id.clone(),
            services: trace.services().into_iter().map(str::to_owned).collect(),
            spans: trace.in_order().into_iter().map(|(_, s)| span(s)).collect(),
        }
    }
}

/// Everything that is not well; nothing if all is.
pub(super) fn problems(totals: &Totals, store: &Store) -> Vec<String> {
    let mut problems = Vec::new();
    if totals.requests == 0 {
        problems.push("no request was made".to_owned());
    }
    if totals.failed > 0 {
        let last = totals.last_failure.as_deref().unwrap_or_default();
        problems.push(format!(
            "{} of {} requests failed, the last with: {last}",
            totals.failed, totals.requests
        ));
    }
    if totals.mtls_connections == 0 {
        problems.push("no mutual TLS connection was made between the sidecars".to_owned());
    }
    match store.longest() {
        None => problems.push("no trace arrived".to_owned()),
        Some(trace) => {
            if let Err(missing) = store.check(trace) {
                problems.push(format!("no trace is whole; of the longest, {}: {missing}", trace.id));
            }
        }
    }
    problems
}

/// A trace as text: who did what when.
pub(super) fn waterfall(trace: &Trace) -> String {
    const WIDTH: usize = 30;
    let (start, total) = (trace.start_ns(), trace.duration_ms().max(1e-6));
    let label = |depth: usize, span: &super::traces::Span| format!("{}{}", "  ".repeat(depth), span.service);
    let ordered = trace.in_order();
    let widest = ordered
        .iter()
        .map(|(depth, span)| label(*depth, span).len())
        .max()
        .unwrap_or(0);
    let longest_name = ordered
        .iter()
        .map(|(_, span)| span.name.chars().count())
        .max()
        .unwrap_or(0)
        .min(32);
    let mut text = String::new();
    for (depth, span) in ordered {
        let offset = span.start_ns.saturating_sub(start) as f64 / 1e6 / total;
        let from = ((offset * WIDTH as f64) as usize).min(WIDTH - 1);
        let length = ((span.duration_ms() / total * WIDTH as f64).round() as usize).clamp(1, WIDTH - from);
        let bar = format!(
            "{}{}{}",
            "·".repeat(from),
            "█".repeat(length),
            "·".repeat(WIDTH - from - length)
        );
        let kind = match span.kind {
            Kind::Client => "client",
            Kind::Server => "server",
            Kind::Other => "",
        };
        let name: String = span.title().chars().take(longest_name).collect();
        let error = span
            .attributes
            .get("error.type")
            .and_then(|value| value.as_str())
            .unwrap_or("error");
        let note = match (span.error, span.resend_count()) {
            (true, 0) => format!("  ✗ {error}"),
            (true, retry) => format!("  ✗ {error}, retry {retry}"),
            (false, 0) => String::new(),
            (false, retry) => format!("  ✓ retry {retry}"),
        };
        let label = label(depth, span);
        // Writing to a String does not fail.
        let _ = writeln!(
            text,
            "  {label:widest$}  {kind:6}  {name:longest_name$}  {bar} {:8.2} ms{note}",
            span.duration_ms()
        );
    }
    text
}

fn rounded(ms: f64) -> f64 {
    (ms * 1e3).round() / 1e3
}
