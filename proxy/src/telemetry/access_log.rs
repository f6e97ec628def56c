//! The access log: one line of JSON a request, and one a connection that is carried as bytes, on standard output.
//!
//! The request path makes the line and hands it to a thread of its own, which is started with the first line; a reader
//! that is too slow costs lines, which are counted, and never time.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use outrigger_proxy_transport::error::Reason;
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::tunnel::TunnelEnd;
use super::{AccessNote, LimitNote, Metrics, RequestEnd};
use crate::model::ServiceName;

/// Lines that wait at most.
const QUEUE: usize = 1024;
/// Longest text of one field, in bytes.
const MAX_TEXT: usize = 1024;
/// How many bytes are gathered before they are written, when lines come fast.
const BUFFER: usize = 64 * 1024;
const FLUSH: Duration = Duration::from_secs(1);

pub(super) struct AccessLog {
    on: AtomicBool,
    lines: OnceLock<SyncSender<Item>>,
    metrics: Arc<Metrics>,
}

enum Item {
    Line(String),
    /// Answered when all that came before is written.
    Flush(SyncSender<()>),
}

impl AccessLog {
    pub(super) fn new(on: bool, metrics: Arc<Metrics>) -> Self {
        Self {
            on: AtomicBool::new(on),
            lines: OnceLock::new(),
            metrics,
        }
    }

    #[cfg(test)]
    fn writing_to(output: impl Write + Send + 'static, metrics: Arc<Metrics>) -> Self {
        Self {
            on: AtomicBool::new(true),
            lines: OnceLock::from(start(output)),
            metrics,
        }
    }

    pub(super) fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    pub(super) fn switch(&self, on: bool) {
        self.on.store(on, Ordering::Relaxed);
    }

    pub(super) fn request_ended(&self, request: &RequestEnd<'_>) {
        if self.is_on() {
            self.write(&Line::of(request));
        }
    }

    pub(super) fn tunnel_ended(&self, tunnel: &TunnelEnd<'_>) {
        if self.is_on() {
            self.write(&TunnelLine::of(tunnel));
        }
    }

    fn write(&self, line: &impl Serialize) {
        let lines = self.lines.get_or_init(|| start(io::stdout()));
        let written = serde_json::to_string(line).is_ok_and(|mut line| {
            line.push('\n');
            lines.try_send(Item::Line(line)).is_ok()
        });
        if !written {
            self.metrics.access_log_dropped();
        }
    }

    /// Waits until the lines so far are written, at most a second.
    pub(super) fn flush(&self) {
        let Some(lines) = self.lines.get() else { return };
        let (done, flushed) = sync_channel(1);
        if lines.try_send(Item::Flush(done)).is_ok() {
            // A reader that does not read has had its second.
            _ = flushed.recv_timeout(FLUSH);
        }
    }
}

fn start(output: impl Write + Send + 'static) -> SyncSender<Item> {
    let (lines, queue) = sync_channel(QUEUE);
    let spawned = thread::Builder::new()
        .name("access-log".into())
        .spawn(move || run(output, &queue));
    if let Err(error) = spawned {
        // The queue's other end is gone now, so that each line counts as dropped.
        tracing::error!(%error, "no thread for the access log");
    }
    lines
}

/// Writes until the sender is gone.
fn run(mut output: impl Write, queue: &Receiver<Item>) {
    let mut buffer = Vec::new();
    let mut waiting = Vec::new();
    while let Ok(first) = queue.recv() {
        let mut next = Some(first);
        while let Some(item) = next {
            match item {
                Item::Line(line) => buffer.extend_from_slice(line.as_bytes()),
                Item::Flush(done) => waiting.push(done),
            }
            next = if buffer.len() < BUFFER {
                queue.try_recv().ok()
            } else {
                None
            };
        }
        if let Err(error) = output.write_all(&buffer).and_then(|()| output.flush()) {
            tracing::warn!(%error, "the access log cannot be written");
        }
        buffer.clear();
        for done in waiting.drain(..) {
            // Whoever asked may have given up.
            _ = done.send(());
        }
    }
}

/// The line's fields, in their order.
#[derive(Serialize)]
struct Line<'a> {
    time: String,
    direction: &'static str,
    method: &'a str,
    path: &'a str,
    authority: &'a str,
    protocol: &'static str,
    status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    grpc_status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'static str>,
    duration_ms: f64,
    retries: u32,
    request_bytes: u64,
    response_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<SocketAddr>,
    mtls: bool,
    trace_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
    #[serde(flatten)]
    access: AccessFields<'a>,
    #[serde(flatten)]
    limit: LimitFields<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fault: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fault_delay_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fallback: Option<String>,
}

impl<'a> Line<'a> {
    fn of(end: &RequestEnd<'a>) -> Self {
        let (request, status, peer) = (end.request, end.status, end.peer);
        Self {
            time: now(),
            direction: request.direction.as_str(),
            method: bounded(request.method.as_str()),
            path: bounded(request.path()),
            authority: bounded(request.authority()),
            protocol: request.protocol.as_str(),
            status: status.http,
            grpc_status: status.grpc,
            error: status.reason.map(Reason::code),
            duration_ms: milliseconds(end.duration),
            retries: end.retries,
            request_bytes: end.request_bytes,
            response_bytes: end.response_bytes,
            service: request.service.as_ref().map(ServiceName::label),
            peer: peer.identity.map(|identity| bounded(identity.as_str())),
            endpoint: peer.address,
            mtls: peer.identity.is_some(),
            trace_id: format!("{:032x}", u128::from_be_bytes(request.context.trace_id)),
            request_id: request.request_id().map(bounded),
            access: AccessFields::of(request.access.as_deref()),
            limit: LimitFields::of(request.limit.as_deref()),
            fault: request.fault.as_ref().map(|fault| fault.as_str()),
            fault_delay_ms: request.fault.as_ref().and_then(|fault| fault.delay).map(milliseconds),
            fallback: request.fallback.as_ref().map(|fallback| fallback.cause.text()),
        }
    }
}

/// Where a policy refuses a request or a connection, or would.
#[derive(Default, Serialize)]
struct AccessFields<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    access_decision: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    access_policy: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    access_rule: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    access_reason: Option<&'static str>,
}

impl<'a> AccessFields<'a> {
    fn of(access: Option<&'a AccessNote>) -> Self {
        let Some(access) = access else { return Self::default() };
        Self {
            access_decision: Some(access.decision.as_str()),
            access_policy: Some(bounded(&access.policy)),
            access_rule: Some(bounded(&access.rule)).filter(|rule| !rule.is_empty()),
            access_reason: Some(access.reason).filter(|reason| !reason.is_empty()),
        }
    }
}

/// Where a limit refuses a request or a connection, or would.
#[derive(Default, Serialize)]
struct LimitFields<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    limit_decision: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit_policy: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<&'a str>,
}

impl<'a> LimitFields<'a> {
    fn of(note: Option<&'a LimitNote>) -> Self {
        let Some(note) = note else { return Self::default() };
        Self {
            limit_decision: Some(note.decision.as_str()),
            limit_policy: Some(bounded(&note.policy)),
            limit: Some(bounded(&note.limit)),
        }
    }
}

/// The fields of a connection's line, in their order.
#[derive(Serialize)]
struct TunnelLine<'a> {
    time: String,
    direction: &'static str,
    protocol: &'static str,
    port: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'static str>,
    duration_ms: f64,
    sent_bytes: u64,
    received_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<SocketAddr>,
    mtls: bool,
    #[serde(flatten)]
    access: AccessFields<'a>,
    #[serde(flatten)]
    limit: LimitFields<'a>,
}

impl<'a> TunnelLine<'a> {
    fn of(tunnel: &TunnelEnd<'a>) -> Self {
        let ends = tunnel.ends;
        Self {
            time: now(),
            direction: ends.direction.as_str(),
            protocol: "TCP",
            port: ends.port,
            error: tunnel.reason.map(Reason::code),
            duration_ms: milliseconds(tunnel.duration),
            sent_bytes: tunnel.sent,
            received_bytes: tunnel.received,
            service: ends.service.as_ref().map(ServiceName::label),
            peer: ends.peer.as_ref().map(|peer| bounded(peer.as_str())),
            endpoint: ends.endpoint,
            mtls: ends.peer.is_some(),
            access: AccessFields::of(tunnel.access),
            limit: LimitFields::of(tunnel.limit),
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a line says when it was written by the machine's clock"
)]
fn now() -> String {
    let now = OffsetDateTime::from(std::time::SystemTime::now());
    let now = now
        .replace_nanosecond(now.nanosecond() / 1_000_000 * 1_000_000)
        .unwrap_or(now);
    now.format(&Rfc3339).unwrap_or_default()
}

/// Microseconds are enough, and shorter to read.
fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

fn bounded(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_TEXT)]
}

#[cfg(test)]
#[path = "access_log_tests.rs"]
mod tests;
