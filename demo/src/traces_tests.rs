#![allow(clippy::unwrap_used)]

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};

use super::{Kind, MAX_TRACES, Store};

const CALLS: [(&str, &str); 2] = [("load", "web"), ("web", "orders")];
const CLIENT: i32 = 3;
const SERVER: i32 = 2;

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}

struct Made {
    trace: u8,
    id: u8,
    parent: u8, // 0: none
    service: &'static str,
    kind: i32,
    start: u64,
    resend: i64,
}

fn export(made: &Made) -> ExportTraceServiceRequest {
    let span = Span {
        trace_id: vec![made.trace; 16],
        span_id: vec![made.id; 8],
        parent_span_id: if made.parent == 0 { vec![] } else { vec![made.parent; 8] },
        name: "POST".to_owned(),
        kind: made.kind,
        start_time_unix_nano: made.start * 1_000_000,
        end_time_unix_nano: (made.start + 10) * 1_000_000,
        attributes: vec![attribute("http.request.resend_count", Value::IntValue(made.resend))],
        status: (made.id == 4).then(|| Status {
            code: StatusCode::Error as i32,
            message: String::new(),
        }),
        ..Span::default()
    };
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource {
                attributes: vec![attribute("service.name", Value::StringValue(made.service.to_owned()))],
                ..Resource::default()
            }),
            scope_spans: vec![ScopeSpans {
                spans: vec![span],
                ..ScopeSpans::default()
            }],
            ..ResourceSpans::default()
        }],
    }
}

/// load → web → orders, where the first attempt at orders (4) failed and the second (6) did not.
fn spans(trace: u8) -> Vec<Made> {
    let made = |id, parent, service, kind, start, resend| Made {
        trace,
        id,
        parent,
        service,
        kind,
        start,
        resend,
    };
    vec![
        made(7, 6, "orders", SERVER, 6, 0),
        made(6, 2, "web", CLIENT, 5, 1),
        made(5, 4, "orders", SERVER, 3, 0),
        made(4, 2, "web", CLIENT, 2, 0),
        made(2, 1, "web", SERVER, 1, 0),
        made(1, 0, "load", CLIENT, 0, 0),
    ]
}

fn store(spans: &[Made]) -> Store {
    let mut store = Store::new(CALLS.to_vec());
    spans.iter().for_each(|span| store.add(&export(span)));
    store
}

#[test]
fn spans_in_any_order_make_a_trace() {
    let store = store(&spans(1));
    let trace = store.longest().unwrap();
    let order: Vec<_> = trace
        .in_order()
        .iter()
        .map(|(depth, span)| (*depth, span.id[..2].to_owned()))
        .collect();
    let expected = [(0, "01"), (1, "02"), (2, "04"), (3, "05"), (2, "06"), (3, "07")];
    assert_eq!(order, expected.map(|(depth, id)| (depth, id.to_owned())));
    assert_eq!(trace.services(), ["load", "web", "orders"]);
    assert_eq!((trace.retries(), store.count(), store.spans()), (1, 1, 6));
    assert!((trace.duration_ms() - 16.0).abs() < 1e-9);
    assert_eq!(trace.spans.iter().filter(|span| span.error).count(), 1);
    assert_eq!(trace.spans[0].kind, Kind::Server);
    assert_eq!(store.check(trace), Ok(()));
}

#[test]
fn what_is_missing_is_said() {
    let without = |id| store(&spans(1).into_iter().filter(|span| span.id != id).collect::<Vec<_>>());
    let check = |store: Store| store.check(store.longest().unwrap()).unwrap_err();
    assert!(check(without(1)).contains("the parent of POST of web"));
    assert!(check(without(6)).contains("the parent of POST of orders"));
    let calls: Vec<_> = spans(1).into_iter().filter(|span| span.id < 3).collect();
    assert_eq!(check(store(&calls)), "it has no call from web to orders");
    let mut wrong = spans(1);
    wrong[0].parent = 2;
    assert!(check(store(&wrong)).contains("a Server span of web is the parent of a Server span of orders"));
}

#[test]
fn a_circle_of_parents_does_no_harm() {
    let mut circle = spans(1);
    circle[5].parent = 7;
    let store = store(&circle);
    assert_eq!(store.longest().unwrap().in_order().len(), 0);
    assert!(store.check(store.longest().unwrap()).is_err());
}

#[test]
fn memory_is_bounded_and_the_longest_is_kept() {
    let mut store = Store::new(CALLS.to_vec());
    for trace in 0..=255_u8 {
        let spans = spans(trace);
        // All but the very first lack the retry.
        let spans = spans.iter().filter(|span| trace == 0 || span.id < 6);
        spans.for_each(|span| store.add(&export(span)));
    }
    assert_eq!(store.newest().count(), MAX_TRACES);
    assert_eq!(store.newest().next().unwrap().id, "ff".repeat(16));
    assert!(store.trace(&"00".repeat(16)).is_none());
    assert_eq!(store.longest().unwrap().id, "00".repeat(16));
    assert_eq!(store.count(), 256);
}
