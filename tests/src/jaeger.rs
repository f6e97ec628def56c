//! What Jaeger's query API answers.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::cluster::{Cluster, SHOP};
use crate::kube::eventually;

/// A span, as far as the tests look at it.
#[derive(Clone, Debug)]
pub struct Span {
    /// Hexadecimal.
    pub id: String,
    /// The parent's ID, which need not be a span that Jaeger has.
    pub parent: Option<String>,
    /// `service.name`
    pub service: String,
    /// "client" or "server".
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Microseconds.
    pub start: u64,
    /// Microseconds.
    pub duration: u64,
    /// Its attributes, as text.
    pub tags: BTreeMap<String, String>,
}

/// The trace of this ID, once it satisfies `complete`: spans arrive in batches.
///
/// # Errors
/// When it does not within 20 s; the text has the trace as it is.
pub async fn trace(cluster: &Cluster, id: &str, complete: impl Fn(&[Span]) -> Result<()>) -> Result<Vec<Span>> {
    eventually("the trace is complete", Duration::from_secs(20), async || {
        let answer = query(cluster, &format!("/api/traces/{id}")).await?;
        let traces = answer["data"].as_array().context("no data")?;
        ensure!(traces.len() == 1, "{} traces with one ID", traces.len());
        let spans = spans(&traces[0])?;
        complete(&spans).with_context(|| waterfall(&spans))?;
        Ok(spans)
    })
    .await
}

/// The newest traces that begin in or pass through a service, at most `limit`.
///
/// # Errors
/// When Jaeger does not answer.
pub async fn newest(cluster: &Cluster, service: &str, limit: u32) -> Result<Vec<Vec<Span>>> {
    let answer = query(
        cluster,
        &format!("/api/traces?service={service}&limit={limit}&lookback=1h"),
    )
    .await?;
    answer["data"]
        .as_array()
        .context("no data")?
        .iter()
        .map(spans)
        .collect()
}

/// A trace as text, for people.
pub fn waterfall(spans: &[Span]) -> String {
    let mut text = String::new();
    let known = |id: &Option<String>| id.as_ref().is_some_and(|id| spans.iter().any(|span| &span.id == id));
    let mut open: Vec<(&Span, usize)> = spans
        .iter()
        .filter(|span| !known(&span.parent))
        .map(|s| (s, 0))
        .collect();
    let zero = spans.iter().map(|span| span.start).min().unwrap_or_default();
    while let Some((span, depth)) = open.pop() {
        let notes = [
            "http.response.status_code",
            "rpc.grpc.status_code",
            "http.request.resend_count",
            "error.type",
        ]
        .iter()
        .filter_map(|key| Some(format!(" {}={}", key.rsplit('.').next()?, span.tags.get(*key)?)))
        .collect::<String>();
        text += &format!(
            "{:>8.1} ms {:>7.1} ms  {:indent$}{} {} {}{notes}\n",
            (span.start - zero) as f64 / 1e3,
            span.duration as f64 / 1e3,
            "",
            span.service,
            span.kind,
            span.name,
            indent = depth * 2,
        );
        let mut children: Vec<_> = spans.iter().filter(|s| s.parent.as_ref() == Some(&span.id)).collect();
        children.sort_by_key(|span| std::cmp::Reverse(span.start));
        open.extend(children.into_iter().map(|span| (span, depth + 1)));
    }
    text
}

async fn query(cluster: &Cluster, path: &str) -> Result<Value> {
    let answer = cluster.proxied(SHOP, "services", "jaeger:16686", path).await?;
    serde_json::from_str(&answer).with_context(|| answer)
}

fn spans(trace: &Value) -> Result<Vec<Span>> {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let spans = trace["spans"].as_array().context("no spans")?;
    let span = |span: &Value| {
        let tags: BTreeMap<_, _> = span["tags"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|tag| (text(&tag["key"]), text(&tag["value"])))
            .collect();
        let process = &trace["processes"][text(&span["processID"])];
        Ok(Span {
            id: text(&span["spanID"]),
            parent: span["references"]
                .as_array()
                .into_iter()
                .flatten()
                .find(|reference| reference["refType"] == "CHILD_OF")
                .map(|reference| text(&reference["spanID"])),
            service: text(&process["serviceName"]),
            kind: tags.get("span.kind").cloned().unwrap_or_default(),
            name: text(&span["operationName"]),
            start: span["startTime"].as_u64().context("startTime")?,
            duration: span["duration"].as_u64().context("duration")?,
            tags,
        })
    };
    spans.iter().map(span).collect()
}
