#![allow(clippy::unwrap_used)]
use http::{HeaderMap, HeaderName, HeaderValue};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::{Sampling, TraceContext, continue_or_start};
use crate::telemetry::NotSampled::{self, Omit, Pass};
use crate::telemetry::ids::Ids;

const T: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const S: &str = "00f067aa0ba902b7";
const NEXT: [u8; 8] = [0, 0, 0, 0, 0, 0, 0xab, 0xcd];

fn headers(lines: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        headers.append(
            name.parse::<HeaderName>().unwrap(),
            value.parse::<HeaderValue>().unwrap(),
        );
    }
    headers
}

fn extract(lines: &[(&str, &str)]) -> Option<(String, String, bool)> {
    let context = TraceContext::extract(&headers(lines))?;
    Some((
        format!("{:032x}", u128::from_be_bytes(context.trace_id)),
        format!("{:016x}", u64::from_be_bytes(context.parent.unwrap())),
        context.sampled,
    ))
}

fn is(trace: &str, span: &str, sampled: bool) -> Option<(String, String, bool)> {
    Some((trace.to_owned(), span.to_owned(), sampled))
}

/// Of a sidecar that exports spans.
fn sampling(ratio: f64, not_sampled: NotSampled) -> Sampling {
    Sampling {
        exports: true,
        ratio,
        not_sampled,
    }
}

/// Of one that does not.
const SILENT: Sampling = Sampling {
    exports: false,
    ratio: 0.0,
    not_sampled: Omit,
};

fn uuid(rng: &mut SmallRng) -> String {
    let bits = rng.random::<u128>() & !(0xf000 << 64 | 0xc000 << 48) | 0x4000 << 64 | 0x8000 << 48;
    let hex = format!("{bits:032x}");
    let parts = [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| &hex[part]);
    parts.join("-")
}

/// The context of a request with this ID and no other header.
fn begun(id: &str, ratio: f64, seed: u64) -> TraceContext {
    let ids = Ids::new(Some(seed));
    continue_or_start(&HeaderMap::new(), id.as_bytes(), &sampling(ratio, Omit), &ids)
}

/// What goes out for what came in, in the order of the names, where no trace that begins here is sampled.
fn out(lines: &[(&str, &str)]) -> Vec<String> {
    out_of(&sampling(0.0, Pass), lines)
}

fn out_of(sampling: &Sampling, lines: &[(&str, &str)]) -> Vec<String> {
    let mut headers = headers(lines);
    let context = continue_or_start(&headers, b"", sampling, &Ids::new(Some(1)));
    context.inject(NEXT, &mut headers);
    let mut out: Vec<String> = headers
        .iter()
        .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
        .collect();
    out.sort();
    out
}

#[test]
fn traceparent() {
    let w3c = |value: &str| extract(&[("traceparent", value)]);
    let rest = format!("{T}-{S}");
    assert_eq!(w3c(&format!("00-{rest}-01")), is(T, S, true));
    assert_eq!(w3c(&format!("00-{rest}-00")), is(T, S, false));
    assert_eq!(w3c(&format!("00-{rest}-03")), is(T, S, true));
    assert_eq!(
        w3c(&format!("00-{rest}-fe")),
        is(T, S, false),
        "unknown flags are passed over"
    );
    assert_eq!(
        w3c(&format!("  00-{rest}-01\t")),
        is(T, S, true),
        "white space around a value"
    );
    assert_eq!(w3c(&format!("cc-{rest}-01")), is(T, S, true), "a later version");
    assert_eq!(w3c(&format!("cc-{rest}-01-what-the-future-brings")), is(T, S, true));
    for wrong in [
        "",
        "00",
        "00-",
        &format!("00-{rest}-01-"),
        &format!("00-{rest}-01-more"),
        &format!("cc-{rest}-01.more"),
        &format!("cc-{rest}-01more"),
        &format!("ff-{rest}-01"),
        &format!("0-{rest}-01"),
        &format!("0g-{rest}-01"),
        &format!("00-{rest}-1"),
        &format!("00-{rest}-0X"),
        &format!("00-{rest}"),
        &format!("00_{rest}-01"),
        &format!("00-{}-{S}-01", T.to_uppercase()),
        &format!("00-{T}-{}-01", S.to_uppercase()),
        &format!("00-{}-{S}-01", "0".repeat(32)),
        &format!("00-{T}-{}-01", "0".repeat(16)),
        &format!("00-{}-{S}-01", &T[1..]),
        &format!("00-{T}0-{S}-01"),
        &format!("00-{}.-{S}-01", &T[1..]),
    ] {
        assert_eq!(w3c(wrong), None, "{wrong:?} was taken");
    }
    let twice = format!("00-{rest}-01");
    assert_eq!(extract(&[("traceparent", &twice), ("traceparent", &twice)]), None);
}

#[test]
fn b3_single() {
    let b3 = |value: &str| extract(&[("b3", value)]);
    let short = format!("{:0>32}", S);
    assert_eq!(b3(&format!("{T}-{S}-1")), is(T, S, true));
    assert_eq!(b3(&format!("{T}-{S}-0")), is(T, S, false));
    assert_eq!(b3(&format!("{T}-{S}-d")), is(T, S, true));
    assert_eq!(b3(&format!("{T}-{S}-1-00f067aa0ba902b8")), is(T, S, true));
    assert_eq!(b3(&format!("{T}-{S}")), is(T, S, true), "an open decision");
    assert_eq!(b3(&format!("{S}-{S}-1")), is(&short, S, true), "a trace ID of 64 bits");
    for wrong in [
        "",
        "0",
        "1",
        "d",
        "x",
        T,
        &format!("{T}-{S}-"),
        &format!("{T}-{S}-2"),
        &format!("{T}-{S}-true"),
        &format!("{T}-{S}-1-"),
        &format!("{T}-{S}-1-{S}-"),
        &format!("{T}-{S}-1-xyz"),
        &format!("{T}--1"),
        &format!("{}-{S}-1", &T[1..]),
        &format!("{}-{S}-1", "0".repeat(16)),
        &format!("{T}-{}-1", "0".repeat(16)),
        &format!("{}-{S}-1", T.to_uppercase()),
    ] {
        assert_eq!(b3(wrong), None, "{wrong:?} was taken");
    }
}

#[test]
fn b3_multi() {
    let ids = [("x-b3-traceid", T), ("x-b3-spanid", S)];
    let with = |more: &[(&'static str, &'static str)]| extract(&[&ids[..], more].concat());
    assert_eq!(with(&[("x-b3-sampled", "1")]), is(T, S, true));
    assert_eq!(with(&[("x-b3-sampled", "0")]), is(T, S, false));
    assert_eq!(with(&[("x-b3-sampled", "true")]), is(T, S, true));
    assert_eq!(with(&[("x-b3-sampled", "false")]), is(T, S, false));
    assert_eq!(with(&[("x-b3-flags", "1")]), is(T, S, true));
    assert_eq!(
        with(&[("x-b3-flags", "1"), ("x-b3-sampled", "0")]),
        is(T, S, true),
        "debug implies sampled"
    );
    assert_eq!(with(&[("x-b3-flags", "0"), ("x-b3-sampled", "0")]), is(T, S, false));
    assert_eq!(with(&[("x-b3-parentspanid", "")]), is(T, S, true), "an open decision");
    assert_eq!(extract(&ids[..1]), None);
    assert_eq!(extract(&ids[1..]), None);
    assert_eq!(extract(&[ids[0], ids[0], ids[1]]), None, "two trace IDs");
}

#[test]
fn uber() {
    let uber = |value: &str| extract(&[("uber-trace-id", value)]);
    assert_eq!(uber(&format!("{T}:{S}:0:1")), is(T, S, true));
    assert_eq!(uber(&format!("{T}:{S}:0:0")), is(T, S, false));
    assert_eq!(uber(&format!("{T}:{S}:0:3")), is(T, S, true));
    assert_eq!(uber(&format!("{T}:{S}:{S}:01")), is(T, S, true));
    assert_eq!(uber(&format!("{T}:{S}::1")), is(T, S, true));
    assert_eq!(uber(&format!("{T}%3A{S}%3a0%3A1")), is(T, S, true));
    assert_eq!(
        uber("AB:c:0:1"),
        is(&format!("{:0>32}", "ab"), "000000000000000c", true)
    );
    for wrong in [
        "",
        ":",
        ":::",
        "0:1:0:1",
        "1:0:0:1",
        "1:1:0",
        "1:1:0:",
        "1:1:0:1:1",
        "1:1:0:x",
        "1:1:x:1",
        "1:+1:0:1",
        "1:1:0:100",
        "1%1:0:1",
        &format!("1{T}:{S}:0:1"),
        &format!("{T}:1{S}:0:1"),
    ] {
        assert_eq!(uber(wrong), None, "{wrong:?} was taken");
    }
}

#[test]
fn w3c_goes_before_b3_and_b3_before_jaeger() {
    let w3c = ("traceparent", format!("00-{:0>32}-{S}-00", 1));
    let b3 = ("b3", format!("{:0>32}-{S}-1", 2));
    let multi = [("x-b3-traceid", format!("{:0>32}", 3)), ("x-b3-spanid", S.to_owned())];
    let uber = ("uber-trace-id", "4:4:0:1".to_owned());
    let mut all = vec![w3c, b3, multi[0].clone(), multi[1].clone(), uber];
    for (expected, remove) in [(1, 1), (2, 1), (3, 2), (4, 1)] {
        let lines: Vec<(&str, &str)> = all.iter().map(|(name, value)| (*name, value.as_str())).collect();
        assert_eq!(extract(&lines).unwrap().0, format!("{expected:0>32}"));
        all.drain(..remove);
    }
}

#[test]
fn what_came_in_goes_out() {
    let w3c = |flags: &str| format!("traceparent: 00-{T}-000000000000abcd-{flags}");
    assert_eq!(out(&[("traceparent", &format!("00-{T}-{S}-01"))]), [w3c("01")]);
    assert_eq!(out(&[("traceparent", &format!("00-{T}-{S}-03"))]), [w3c("03")]);
    assert_eq!(
        out(&[("traceparent", &format!("cc-{T}-{S}-ff-x"))]),
        [w3c("03")],
        "our own version"
    );
    assert_eq!(
        out(&[("b3", &format!("{T}-{S}-d"))]),
        [format!("b3: {T}-000000000000abcd-d-{S}"), w3c("01")]
    );
    assert_eq!(
        out(&[
            ("x-b3-traceid", S),
            ("x-b3-spanid", S),
            ("x-b3-sampled", "false"),
            ("x-b3-parentspanid", "")
        ]),
        [
            format!("traceparent: 00-{S:0>32}-000000000000abcd-00"),
            format!("x-b3-parentspanid: {S}"),
            "x-b3-sampled: 0".into(),
            "x-b3-spanid: 000000000000abcd".into(),
            format!("x-b3-traceid: {S}"),
        ],
        "a trace ID of 64 bits stays one for B3"
    );
    assert_eq!(
        out(&[("x-b3-traceid", T), ("x-b3-spanid", S), ("x-b3-flags", "1")])[1..],
        [
            "x-b3-flags: 1".to_owned(),
            format!("x-b3-parentspanid: {S}"),
            "x-b3-spanid: 000000000000abcd".into(),
            format!("x-b3-traceid: {T}"),
        ]
    );
    assert_eq!(
        out(&[("uber-trace-id", &format!("{T}:{S}:0:1"))]),
        [w3c("01"), format!("uber-trace-id: {T}:000000000000abcd:0:1")]
    );
}

#[test]
fn all_formats_say_the_same() {
    let lines = out(&[
        ("traceparent", &format!("00-{T}-{S}-00")),
        ("b3", "nonsense"),
        ("x-b3-spanid", ""),
        ("uber-trace-id", "7:7:0:1"),
        ("baggage", "a=b"),
        ("tracestate", "x=y"),
        ("tracestate", "z=w"),
    ]);
    assert_eq!(
        lines,
        [
            format!("b3: {T}-000000000000abcd-0-{S}"),
            "baggage: a=b".into(),
            format!("traceparent: 00-{T}-000000000000abcd-00"),
            "tracestate: x=y".into(),
            "tracestate: z=w".into(),
            format!("uber-trace-id: {T}:000000000000abcd:0:0"),
            format!("x-b3-parentspanid: {S}"),
            "x-b3-sampled: 0".into(),
            "x-b3-spanid: 000000000000abcd".into(),
            format!("x-b3-traceid: {T}"),
        ]
    );
}

#[test]
fn tracestate_belongs_to_a_valid_traceparent() {
    let valid = ("traceparent", &*format!("00-{T}-{S}-01"));
    assert_eq!(out(&[valid, ("tracestate", "a=b")]).len(), 2);
    assert_eq!(out(&[valid, ("tracestate", "")]).len(), 1, "an empty one is not sent");
    assert_eq!(out(&[("traceparent", "00-0-0-0"), ("tracestate", "a=b")]).len(), 1);
    assert_eq!(out(&[("b3", &format!("{T}-{S}-1")), ("tracestate", "a=b")]).len(), 2);
}

#[test]
fn a_new_trace_has_its_decision_from_the_ratio() {
    let ids = Ids::new(Some(7));
    let none = HeaderMap::new();
    let new = |ratio| continue_or_start(&none, b"", &sampling(ratio, Omit), &ids);
    let sampled = |ratio| (0..10_000).filter(|_| new(ratio).sampled).count();
    assert_eq!(sampled(0.0), 0);
    assert_eq!(sampled(1.0), 10_000);
    assert!((900..1100).contains(&sampled(0.1)));
    let one = new(1.0);
    assert!(one.parent.is_none() && one.trace_id != [0; 16]);
    assert_ne!(one.trace_id, new(1.0).trace_id);
    assert_eq!(out(&[])[0].len(), "traceparent: ".len() + 55);
}

/// Whatever draws they have of their own, which is what another seed is.
#[test]
fn sidecars_that_see_one_request_id_begin_one_trace_and_decide_the_same() {
    let mut rng = SmallRng::seed_from_u64(11);
    let mut sampled = 0;
    for _ in 0..200_000 {
        let id = uuid(&mut rng);
        let contexts = [1, 2].map(|seed| begun(&id, 0.1, seed));
        assert_eq!(contexts[0], contexts[1], "{id}");
        assert_ne!(contexts[0].trace_id, [0; 16]);
        sampled += u32::from(contexts[0].sampled);
    }
    // Within 2 % of a tenth, which is 3 standard deviations; the seed does not change.
    assert!((19_600..=20_400).contains(&sampled), "{sampled}");
}

#[test]
fn a_request_id_that_may_be_anybodys_makes_no_trace_id() {
    let long = "x".repeat(129);
    for (id, is_used) in [
        ("", false),
        ("1", false),
        ("123456789012345", false),
        ("1234567890123456", true),
        (&long[..128], true),
        (&long[..], false),
    ] {
        let same = begun(id, 1.0, 1).trace_id == begun(id, 1.0, 2).trace_id;
        assert_eq!(same, is_used, "{} bytes", id.len());
    }
    // Of SHA-256, so that sidecars of another version agree.
    let known = begun("4c1a3f4e-8f0b-4b52-9d3e-6a8a1c1f2b77", 1.0, 1).trace_id;
    assert_eq!(
        format!("{:032x}", u128::from_be_bytes(known)),
        "41e8090fa813dd34c25d7f7ffdc4af89"
    );
}

/// A context that came and says how it was decided is not touched by it: only what is decided here may be kept back.
#[test]
fn what_is_not_sampled_here_is_kept_back_or_passed() {
    let open = [("b3", &*format!("{T}-{S}"))];
    let multi = [("x-b3-traceid", T), ("x-b3-spanid", S), ("x-b3-parentspanid", S)];
    let as_it_came = |lines: &[(&str, &str)]| {
        let mut lines: Vec<String> = lines.iter().map(|(name, value)| format!("{name}: {value}")).collect();
        lines.sort();
        lines
    };
    for lines in [
        &[][..],
        &open,
        &multi,
        &[("b3", "0")],
        &[("x-b3-sampled", "false")],
        &[("baggage", "a=b")],
    ] {
        for sampling in [&sampling(0.0, Omit), &SILENT] {
            assert_eq!(out_of(sampling, lines), as_it_came(lines));
        }
        let passed = out(lines);
        assert!(
            passed
                .iter()
                .any(|line| line.starts_with("traceparent: ") && line.ends_with("-00")),
            "{passed:?}"
        );
        assert!(
            !passed.iter().any(|line| as_it_came(&open).contains(line)),
            "{passed:?}"
        );
    }
    for decided in ["00", "01"] {
        let came = [("traceparent", &*format!("00-{T}-{S}-{decided}"))];
        for sampling in [&sampling(0.0, Omit), &sampling(1.0, Omit), &SILENT] {
            assert_eq!(
                out_of(sampling, &came),
                [format!("traceparent: 00-{T}-000000000000abcd-{decided}")]
            );
        }
    }
    // What is sampled is written, whatever the rest.
    for lines in [&[][..], &open, &[("b3", "1")]] {
        let written = out_of(&sampling(1.0, Omit), lines);
        assert!(
            written
                .iter()
                .any(|line| line.starts_with("traceparent: ") && line.ends_with("-01")),
            "{written:?}"
        );
    }
    // A trace that nobody exports the beginning of is not begun.
    assert_eq!(out_of(&SILENT, &[("b3", "1")]), ["b3: 1"]);
}

#[test]
fn what_is_not_valid_is_removed_where_nothing_is_written() {
    let valid = format!("{T}-{S}");
    let open = ("b3", &*valid);
    for (came, left) in [
        (&[("traceparent", "nonsense"), ("tracestate", "a=b")][..], &[][..]),
        (&[("tracestate", "a=b")], &[]),
        (&[("traceparent", "00-0-0-0"), open], &["b3"]),
        (&[("b3", "nonsense")], &[]),
        (&[open, open], &[]),
        (&[("uber-trace-id", "1:0:0:1")], &[]),
        (&[("x-b3-traceid", T)], &[]),
        (
            &[("x-b3-traceid", T), ("x-b3-spanid", ""), ("x-b3-parentspanid", S)],
            &[],
        ),
        (
            &[
                ("x-b3-traceid", T),
                ("x-b3-spanid", S),
                ("x-b3-sampled", "maybe"),
                ("x-b3-parentspanid", ""),
            ],
            &["x-b3-spanid", "x-b3-traceid"],
        ),
        (
            &[("x-b3-traceid", "1"), ("x-b3-sampled", "0"), ("x-b3-flags", "x")],
            &["x-b3-sampled"],
        ),
        (&[("x-b3-flags", "0"), ("x-b3-spanid", "1")], &["x-b3-flags"]),
    ] {
        for sampling in [&sampling(0.0, Omit), &SILENT] {
            let out = out_of(sampling, came);
            let names: Vec<&str> = out.iter().filter_map(|line| Some(line.split_once(": ")?.0)).collect();
            assert_eq!(names, left, "{came:?}");
        }
    }
}

#[test]
fn what_b3_leaves_open_another_format_may_say() {
    let open = ("b3", &*format!("{T}-{S}"));
    for (decision, sampled) in [("0", false), ("1", true)] {
        let lines = [open, ("uber-trace-id", &*format!("{T}:{S}:0:{decision}"))];
        let context = continue_or_start(&headers(&lines), b"", &sampling(1.0, Omit), &Ids::new(Some(1)));
        assert_eq!(context.sampled, sampled);
        assert_eq!(
            out_of(&sampling(0.0, Omit), &lines).len(),
            3,
            "it is written in all formats"
        );
    }
}

#[test]
fn a_decision_without_a_trace_is_kept() {
    let ids = Ids::new(Some(7));
    let start = |name, value, ratio| continue_or_start(&headers(&[(name, value)]), b"", &sampling(ratio, Omit), &ids);
    assert!(!start("b3", "0", 1.0).sampled);
    assert!(start("b3", "1", 0.0).sampled);
    assert!(start("b3", "d", 0.0).sampled);
    assert!(!start("x-b3-sampled", "0", 1.0).sampled);
    assert!(start("x-b3-flags", "1", 0.0).sampled);
    let lines = out(&[("b3", "0")]);
    assert!(
        lines[0].starts_with("b3: ") && lines[0].ends_with("-000000000000abcd-0"),
        "{lines:?}"
    );
}

#[test]
fn an_open_decision_is_made_by_the_ratio_and_the_trace_alone() {
    let open = headers(&[("b3", &format!("{T}-{S}"))]);
    let decided =
        |ratio, id: &[u8], seed| continue_or_start(&open, id, &sampling(ratio, Omit), &Ids::new(Some(seed))).sampled;
    assert!(decided(1.0, b"", 1) && !decided(0.0, b"", 1));
    for n in 0..100 {
        let id = format!("a-request-of-many-{n}");
        assert_eq!(decided(0.5, b"", 1), decided(0.5, id.as_bytes(), n));
    }
}

#[test]
fn without_an_exporter_only_what_came_is_passed_on() {
    let ids = Ids::new(Some(7));
    let mut none = HeaderMap::new();
    continue_or_start(&none, b"", &SILENT, &ids).inject(NEXT, &mut none);
    assert!(none.is_empty());
    let mut some = headers(&[("traceparent", &format!("00-{T}-{S}-01"))]);
    continue_or_start(&some, b"", &SILENT, &ids).inject(NEXT, &mut some);
    assert_eq!(some["traceparent"], format!("00-{T}-000000000000abcd-01"));
}

/// Whatever bytes come, nothing panics, and what goes out is valid.
#[test]
fn any_bytes() {
    let mut rng = SmallRng::seed_from_u64(3);
    let names = [
        "traceparent",
        "b3",
        "x-b3-traceid",
        "x-b3-spanid",
        "x-b3-sampled",
        "uber-trace-id",
    ];
    let seeds = [
        format!("00-{T}-{S}-01"),
        format!("{T}-{S}-1"),
        T.into(),
        S.into(),
        "1".into(),
        format!("{T}:{S}:0:1"),
    ];
    for _ in 0..20_000 {
        let mut map = HeaderMap::new();
        for (name, seed) in names.into_iter().zip(&seeds) {
            let mut value = seed.clone().into_bytes();
            for _ in 0..rng.random_range(0..3) {
                let at = rng.random_range(0..value.len().max(1)).min(value.len());
                match rng.random_range(0..3) {
                    0 => value.insert(at, rng.random_range(0x20..0x7f)),
                    1 if at < value.len() => value[at] = rng.random_range(0x80..=0xff),
                    _ => value.truncate(at),
                }
            }
            map.insert(name, HeaderValue::from_bytes(&value).unwrap());
        }
        let came = map.clone();
        let context = continue_or_start(&map, b"", &sampling(0.5, Pass), &Ids::new(Some(1)));
        context.inject(NEXT, &mut map);
        let again = TraceContext::extract(&map).unwrap();
        assert_eq!((again.trace_id, again.sampled), (context.trace_id, context.sampled));
        assert!(map.values().all(|value| !value.is_empty()));
        // Where nothing is written, no context is lost.
        let mut map = came.clone();
        let silent = continue_or_start(&map, b"", &SILENT, &Ids::new(Some(1)));
        silent.inject(NEXT, &mut map);
        let before = TraceContext::extract(&came);
        let after = TraceContext::extract(&map);
        assert_eq!(
            after.map(|c| (c.trace_id, c.sampled)),
            before.map(|c| (c.trace_id, c.sampled))
        );
        assert!(map.values().all(|value| !value.is_empty()));
    }
}
