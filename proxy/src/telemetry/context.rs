//! Trace contexts in the headers of a request: W3C `traceparent`/`tracestate`, B3 in one header and in several, and
//! Jaeger's `uber-trace-id`. Baggage is not touched.
//!
//! The first of W3C, B3, Jaeger that is valid gives the context. It goes out as W3C always, and in the formats that came
//! in, all of them saying the same. A header that came in and is not valid is replaced, never passed on; none is sent empty.
//!
//! Where nobody has decided whether a trace is recorded, this sidecar does, by the trace ID; and the ID of a trace that begins is made from
//! the request ID. So all sidecars decide the same, if the apps between them pass on no more than that. Its own decision
//! against recording is by default not written: an app with a tracing SDK that decides as its parent does would record
//! nothing. What came in goes on as it came then, without what is not valid.

mod formats;
#[cfg(test)]
mod tests;

use http::HeaderMap;

use super::NotSampled;
use super::ids::Ids;
use formats::{B3_MULTI, B3_SINGLE, Formats, JAEGER, Parsed};

/// Which trace a request belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext {
    pub trace_id: [u8; 16],
    /// The span that the request came from; `None` when the trace begins here.
    pub parent: Option<[u8; 8]>,
    pub sampled: bool,
    /// What came in, and goes out besides W3C.
    formats: Formats,
    /// B3's and Jaeger's debug flag: sampled whatever a sampler says.
    debug: bool,
    /// The bits of `trace-flags` besides sampled, as they came.
    other_flags: u8,
    /// `tracestate` belongs to a `traceparent`, so it goes on only if that was the one that counted.
    keep_state: bool,
    written: Written,
}

/// Whether a context is written into what goes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Written {
    Always,
    /// A context that is not sampled would switch off the tracing of an app that samples as its parent does.
    IfSampled,
    /// Who exports no spans begins no traces: all below would hang from a span that nobody has seen.
    Never,
}

/// How traces begin here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sampling {
    /// Whether there is an exporter in this process.
    pub(super) exports: bool,
    /// The share that is recorded, 0 to 1.
    pub(super) ratio: f64,
    pub(super) not_sampled: NotSampled,
}

impl TraceContext {
    /// The context in these headers, if a valid one is there. A decision that B3 leaves open counts as sampled.
    pub fn extract(headers: &HeaderMap) -> Option<TraceContext> {
        let parsed = formats::parse(headers);
        parsed.ids?;
        Some(Self::from_parsed(&parsed, Written::Always, || (true, [0; 16])))
    }

    /// Writes the context with `span_id` as the parent for whoever comes next. W3C always, and the formats that came in.
    /// `tracestate` is left as it came. Of a context that is not to be written, what is not valid is removed, and nothing else.
    pub fn inject(&self, span_id: [u8; 8], headers: &mut HeaderMap) {
        let written = match self.written {
            Written::Always => true,
            Written::IfSampled => self.sampled,
            Written::Never => false,
        };
        if !written {
            return formats::remove_invalid(self.formats, headers);
        }
        formats::write_w3c(self, span_id, headers);
        if self.formats.has(B3_SINGLE) {
            formats::write_b3_single(self, span_id, headers);
        }
        if self.formats.has(B3_MULTI) {
            formats::write_b3_multi(self, span_id, headers);
        }
        if self.formats.has(JAEGER) {
            formats::write_jaeger(self, span_id, headers);
        }
    }

    /// `decide` gives what is missing: the decision, and the trace ID where no context was valid.
    fn from_parsed(parsed: &Parsed, written: Written, decide: impl FnOnce() -> (bool, [u8; 16])) -> Self {
        let mut context = Self {
            trace_id: [0; 16],
            parent: None,
            sampled: false,
            formats: parsed.formats,
            debug: parsed.debug,
            other_flags: parsed.other_flags,
            keep_state: parsed.w3c,
            written,
        };
        match (parsed.ids, parsed.sampled) {
            (Some((trace_id, span_id)), Some(sampled)) => {
                (context.trace_id, context.parent, context.sampled) = (trace_id, Some(span_id), sampled);
            }
            (Some((trace_id, span_id)), None) => {
                (context.trace_id, context.parent, context.sampled) = (trace_id, Some(span_id), decide().0);
            }
            (None, decision) => {
                let (sampled, trace_id) = decide();
                (context.trace_id, context.sampled) = (trace_id, decision.unwrap_or(sampled));
            }
        }
        context
    }
}

/// The context in the headers, or a new one, of a request with this ID.
pub(super) fn continue_or_start(
    headers: &HeaderMap,
    request_id: &[u8],
    sampling: &Sampling,
    ids: &Ids,
) -> TraceContext {
    let parsed = formats::parse(headers);
    let written = match (parsed.ids, parsed.sampled, sampling.not_sampled) {
        (Some(_), Some(_), _) => Written::Always,
        (None, _, _) if !sampling.exports => Written::Never,
        (_, _, NotSampled::Omit) => Written::IfSampled,
        (_, _, NotSampled::Pass) => Written::Always,
    };
    TraceContext::from_parsed(&parsed, written, || {
        let trace_id = parsed
            .ids
            .map_or_else(|| ids.trace_id(request_id), |(trace_id, _)| trace_id);
        (sampled_by_ratio(trace_id, sampling.ratio), trace_id)
    })
}

/// The low 56 bits are the ones that W3C Trace Context level 2 asks to be random, and that OpenTelemetry samples by.
#[expect(
    clippy::cast_precision_loss,
    reason = "56 bits against a ratio: the last bits do not matter"
)]
fn sampled_by_ratio(trace_id: [u8; 16], ratio: f64) -> bool {
    const BITS: u32 = 56;
    let random = u128::from_be_bytes(trace_id) & ((1 << BITS) - 1);
    (random as f64) < ratio * (1_u64 << BITS) as f64
}
