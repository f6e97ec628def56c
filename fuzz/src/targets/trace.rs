//! Trace contexts in a request's headers, in every format at once.

use std::sync::LazyLock;

use http::{HeaderMap, HeaderValue, Uri};
use outrigger_proxy::dns::Resolver;
use outrigger_proxy::telemetry::{NotSampled, Settings, Telemetry, TraceContext, TracingConfig, TracingProtocol};
use regex::Regex;
use tokio::runtime::Runtime;

use super::header_lines;

const SPAN: [u8; 8] = [0xab; 8];
const WRITTEN: [&str; 8] = [
    "traceparent",
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
    "uber-trace-id",
];
/// The longest that is written: B3 in one header.
const MAX_WRITTEN: usize = 68;

static TRACEPARENT: LazyLock<Regex> = LazyLock::new(|| {
    let form = "^(?:00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})|(?:0[1-9a-f]|[1-9a-e][0-9a-f]|f[0-9a-e])-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?)$";
    Regex::new(form).expect("a pattern")
});

/// Without an exporter: a context that comes in is passed on, and none is begun. And with one, whose runtime does not run: a context that
/// begins is never sampled, and is kept back or passed on.
static TELEMETRY: LazyLock<(Runtime, [Telemetry; 3])> = LazyLock::new(|| {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let telemetry = {
        let _inside = runtime.enter();
        let nowhere = [([127, 0, 0, 1], 1).into()];
        let resolver = Resolver::start(Some(&nowhere)).expect("a resolver");
        let exporting = |not_sampled| TracingConfig {
            endpoint: Uri::from_static("http://127.0.0.1:1"),
            ca_certificates: Vec::new(),
            protocol: TracingProtocol::Grpc,
            sample_ratio: 0.0,
            not_sampled,
        };
        let each = [
            None,
            Some(exporting(NotSampled::Omit)),
            Some(exporting(NotSampled::Pass)),
        ];
        each.map(|tracing| {
            let settings = Settings {
                tracing,
                ..Settings::default()
            };
            Telemetry::start(&settings, &resolver).expect("telemetry")
        })
    };
    (runtime, telemetry)
});

/// Lines of "name: value".
pub fn run(bytes: &[u8]) {
    let before = header_lines(bytes);
    let extracted = TraceContext::extract(&before);
    check_traceparent(&before, extracted.as_ref());
    if let Some(context) = &extracted {
        assert_ne!(context.trace_id, [0; 16]);
        assert!(context.parent.is_some_and(|parent| parent != [0; 8]));
        let after = check_injected(&before, context);
        let next = TraceContext::extract(&after).expect("what was written is valid");
        assert_eq!((next.trace_id, next.parent), (context.trace_id, Some(SPAN)));
        assert_eq!(next.sampled, context.sampled);
        // Written once more, it says the same.
        let again = check_injected(&after, &next);
        let without_parent = |mut headers: HeaderMap| {
            // B3 names the span before as well.
            headers.remove("x-b3-parentspanid");
            headers.remove("b3");
            headers
        };
        assert_eq!(without_parent(again), without_parent(after));
    }
    // What the proxy does, which also goes on with B3's decision without a trace, and makes a decision that is left open.
    let none = HeaderValue::from_static("");
    let id = before.get("x-request-id").unwrap_or(&none);
    let [silent, omits, passes] = &TELEMETRY.1;
    for telemetry in [silent, omits] {
        let context = telemetry.context(&before, id);
        let mut after = before.clone();
        context.inject(SPAN, &mut after);
        // What is written has one, and what is kept back never.
        if after.contains_key("traceparent") {
            check_injected(&before, &context);
        } else {
            check_kept_back(&before, &after, extracted.as_ref());
            let mut again = after.clone();
            context.inject(SPAN, &mut again);
            assert_eq!(again, after);
        }
    }
    check_injected(&before, &passes.context(&before, id));
}

/// Nothing is written: what came stays or, where it is not valid, goes.
fn check_kept_back(before: &HeaderMap, after: &HeaderMap, came: Option<&TraceContext>) {
    for name in after.keys() {
        assert!(
            before.get_all(name).iter().eq(after.get_all(name).iter()),
            "{name} was changed"
        );
    }
    for name in before.keys().filter(|name| !after.contains_key(*name)) {
        assert!(
            WRITTEN.contains(&name.as_str()) || name == "tracestate",
            "{name} was removed"
        );
    }
    assert!(!after.contains_key("traceparent") && !after.contains_key("tracestate"));
    let left = TraceContext::extract(after);
    let says = |context: &TraceContext| (context.trace_id, context.parent, context.sampled);
    assert_eq!(left.as_ref().map(says), came.map(says));
}

/// Writes the context, and looks at every header.
fn check_injected(before: &HeaderMap, context: &TraceContext) -> HeaderMap {
    let mut after = before.clone();
    context.inject(SPAN, &mut after);
    for name in after.keys() {
        let (old, new) = (before.get_all(name), after.get_all(name));
        if WRITTEN.contains(&name.as_str()) {
            let same = old.iter().eq(new.iter());
            let short = new.iter().all(|value| value.len() <= MAX_WRITTEN && !value.is_empty());
            assert!(same || (short && new.iter().count() == 1), "{name}: {new:?}");
        } else {
            // tracestate, baggage and everything else: as it came.
            assert!(old.iter().eq(new.iter()), "{name} was changed");
        }
    }
    for name in before.keys().filter(|name| !after.contains_key(*name)) {
        let may_go = ["tracestate", "x-b3-sampled", "x-b3-flags", "x-b3-parentspanid"];
        assert!(may_go.contains(&name.as_str()), "{name} was removed");
    }
    after
}

/// W3C Trace Context 3.2, once more and as a pattern.
fn check_traceparent(headers: &HeaderMap, found: Option<&TraceContext>) {
    let mut values = headers.get_all("traceparent").iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return;
    };
    let Some(captures) = std::str::from_utf8(value.as_bytes())
        .ok()
        .and_then(|v| TRACEPARENT.captures(v))
    else {
        return;
    };
    let parts: Vec<&str> = captures.iter().skip(1).flatten().map(|m| m.as_str()).collect();
    let [trace_id, parent, flags] = parts[..] else {
        panic!("{parts:?}")
    };
    let (trace_id, parent) = (u128::from_str_radix(trace_id, 16), u64::from_str_radix(parent, 16));
    let (Ok(trace_id @ 1..), Ok(parent @ 1..)) = (trace_id, parent) else {
        return;
    };
    let context = found.expect("a valid traceparent gives the context");
    assert_eq!(context.trace_id, trace_id.to_be_bytes());
    assert_eq!(context.parent, Some(parent.to_be_bytes()));
    let sampled = u8::from_str_radix(flags, 16).is_ok_and(|flags| flags & 1 == 1);
    assert_eq!(context.sampled, sampled);
}
