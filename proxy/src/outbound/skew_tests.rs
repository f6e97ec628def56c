//! A controller that is newer or older than this sidecar: messages made of raw fields, and what is decided from them.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use futures_util::FutureExt;
use http::Request;
use http::request::Parts;
use outrigger_api::discovery as proto;
use outrigger_api::pattern;
use prost::Message;
use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::affinity::Caller;
use super::request::{Facts, Refusal, apply_rules, filters};
use super::route;
use crate::call::LocalReply;
use crate::identity::Clock;
use crate::model::{
    Backend, Endpoints, Filters, RetryPolicy, RouteRules, Service, Target, Workload, WorkloadInfo, from_proto,
};

/// A field number that no message has.
const LATER: u32 = 100;

/// A length-delimited field: a message, a text, or bytes.
fn field(number: u32, content: impl AsRef<[u8]>) -> Vec<u8> {
    let content = content.as_ref();
    [varint(number << 3 | 2), varint(content.len() as u32), content.to_vec()].concat()
}

fn integer(number: u32, value: u32) -> Vec<u8> {
    [varint(number << 3), varint(value)].concat()
}

fn varint(mut value: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

fn all(fields: &[Vec<u8>]) -> Vec<u8> {
    fields.concat()
}

/// Fields of every wire type that a later version might have added.
fn later() -> Vec<u8> {
    let (fixed64, fixed32) = (
        [&varint(103 << 3 | 1)[..], &[1; 8]].concat(),
        [&varint(104 << 3 | 5)[..], &[1; 4]].concat(),
    );
    all(&[
        field(LATER, "later"),
        integer(101, 1),
        field(102, field(1, "x")),
        fixed64,
        fixed32,
    ])
}

fn reference(name: &str) -> Vec<u8> {
    all(&[field(1, "shop"), field(2, name), integer(3, 8080)])
}

fn endpoint(address: &str, identity: &str) -> Vec<u8> {
    all(&[field(1, address), field(2, identity)])
}

const ORDERS: &str = "spiffe://cluster.local/ns/shop/sa/orders";

fn backend(name: &str, more: &[u8]) -> Vec<u8> {
    let endpoints = field(1, all(&[endpoint("10.0.0.1:8080", ORDERS), later()]));
    all(&[field(1, reference(name)), field(2, endpoints), more.to_vec()])
}

/// A Service, and the route that is tried first (`Route`'s fields without its backend, which is "second").
fn service(of_route: &[u8]) -> Vec<u8> {
    let second = field(4, all(&[integer(1, 1), integer(2, 1)]));
    of_service(&field(3, all(&[field(1, "shop/split/0"), of_route.to_vec(), second])))
}

fn of_service(more: &[u8]) -> Vec<u8> {
    let fields = [
        field(1, reference("orders")),
        field(4, backend("first", &[])),
        field(4, backend("second", &[])),
        more.to_vec(),
    ];
    field(1, all(&fields))
}

fn decode(bytes: &[u8]) -> Target {
    from_proto::target(&proto::Target::decode(bytes).unwrap())
}

fn request() -> Parts {
    let request = Request::get("http://orders:8080/a/b")
        .header("x-canary", "yes")
        .body(());
    request.unwrap().into_parts().0
}

/// What becomes of a request: in words.
fn decide(bytes: &[u8]) -> String {
    match decode(bytes) {
        Target::External => "passed on untouched".to_owned(),
        Target::Service(service) => answer(&service),
    }
}

fn answer(service: &Service) -> String {
    let facts = Facts {
        caller: Caller::new(&Workload::default()),
        rng: &SmallRng::seed_from_u64(1).into(),
        clock: &Clock::system(),
        keeps_upgrade: false,
    };
    let mut head = request();
    let planned = apply_rules(service, facts, &mut head, async |_, _, _| Ok(()));
    match planned.now_or_never().unwrap() {
        Ok(plan) => format!("{} {}", head.uri.path(), goes_to(&service.backends[plan.backend])),
        Err(Refusal {
            reply: LocalReply::Response(_),
            ..
        }) => "redirect".to_owned(),
        Err(Refusal {
            reply: LocalReply::Error(error),
            ..
        }) => error.reason.code().to_owned(),
    }
}

fn goes_to(backend: &Backend) -> String {
    let Endpoints::Known(endpoints) = &backend.endpoints else {
        return "by name".to_owned();
    };
    let identities = endpoints
        .iter()
        .map(|e| e.identity.as_ref().map_or("plaintext", |id| id.as_str()));
    format!("{} {:?}", backend.name.name, identities.collect::<Vec<_>>())
}

#[test]
fn a_newer_controller() {
    let to_second = format!("/a/b second [{ORDERS:?}]");
    let string_match = |kind: Vec<u8>| field(1, kind);
    let a = string_match(field(2, "/a"));
    let unknown = field(LATER, "x");
    let header = |value: Vec<u8>| field(2, all(&[field(1, "x-canary"), field(2, value)]));
    let modifier = |kind: Vec<u8>| field(2, kind);
    let table: &[(&str, Vec<u8>, &str)] = &[
        // The base of all others.
        ("a prefix that matches", service(&field(2, &a)), &to_second),
        (
            "fields of a Target",
            all(&[service(&field(2, &a)), later()]),
            &to_second,
        ),
        (
            "fields of a Service",
            of_service(&all(&[
                field(3, all(&[field(2, &a), field(4, integer(2, 1))])),
                later(),
            ])),
            "/a/b first",
        ),
        ("fields of a Route", service(&all(&[field(2, &a), later()])), &to_second),
        (
            "fields of a Match",
            service(&field(2, all(&[a.clone(), later()]))),
            &to_second,
        ),
        (
            "fields of a StringMatch",
            service(&field(2, field(1, all(&[field(2, "/a"), later()])))),
            &to_second,
        ),
        (
            "fields of a Policy",
            service(&all(&[field(2, &a), field(5, later())])),
            &to_second,
        ),
        ("a kind of target", field(LATER, "x"), "passed on untouched"),
        // A condition that is not understood is never met.
        (
            "a kind of path match",
            service(&field(2, field(1, &unknown))),
            "no-route",
        ),
        (
            "a kind of header match",
            service(&field(2, header(unknown.clone()))),
            "no-route",
        ),
        (
            "a kind of query match",
            service(&field(2, field(3, all(&[field(1, "q"), field(2, &unknown)])))),
            "no-route",
        ),
        (
            "a header that matches",
            service(&field(2, header(field(1, "yes")))),
            &to_second,
        ),
        (
            "a match beside one that is understood",
            service(&all(&[field(2, field(1, &unknown)), field(2, &a)])),
            &to_second,
        ),
        (
            "a form of host name",
            service(&all(&[field(2, &a), field(6, "orders-[0-9]")])),
            "no-route",
        ),
        // A filter that is not understood is never skipped.
        (
            "a kind of filter",
            service(&all(&[field(2, &a), field(3, &unknown)])),
            "invalid-backend",
        ),
        (
            "a kind of rewrite",
            service(&all(&[field(2, &a), field(3, field(3, modifier(unknown.clone())))])),
            "invalid-backend",
        ),
        (
            "a rewrite",
            service(&all(&[field(2, &a), field(3, field(3, modifier(field(2, "/c"))))])),
            &to_second.replace("/a/b", "/c/b"),
        ),
        (
            "a kind of redirect",
            service(&all(&[field(2, &a), field(3, field(4, field(3, &unknown)))])),
            "invalid-backend",
        ),
        (
            "a redirect",
            service(&all(&[field(2, &a), field(3, field(4, field(3, field(2, "/c"))))])),
            "redirect",
        ),
        (
            "a field of a filter",
            service(&all(&[field(2, &a), field(3, all(&[field(1, ""), later()]))])),
            &to_second,
        ),
        (
            "a kind of filter of a backend",
            of_service(&field(
                3,
                field(4, all(&[integer(1, 1), integer(2, 1), field(3, &unknown)])),
            )),
            "invalid-backend",
        ),
        // An identity that is not understood never means plaintext.
        (
            "a form of identity",
            field(
                1,
                field(4, field(2, field(1, endpoint("10.0.0.1:80", "urn:workload:orders")))),
            ),
            "/a/b unknown []",
        ),
        (
            "a kind of backend",
            field(1, field(4, all(&[field(1, reference("orders")), field(LATER, "x")]))),
            "/a/b orders []",
        ),
    ];
    for (what, bytes, expected) in table {
        let decided = decide(bytes);
        assert!(decided.starts_with(expected), "{what}: {decided}, and not {expected}");
    }
}

#[test]
fn numbers_that_are_not_known_are_as_good_as_absent() {
    let Target::Service(service) = decode(&of_service(&all(&[integer(2, 77), field(5, later())]))) else {
        panic!("not a Service");
    };
    assert_eq!(service.protocol, crate::model::Protocol::Detect);
    assert_eq!(*service.rules, RouteRules::default());
    // A retry condition that is not known adds none, and takes none away.
    let retry = all(&[integer(1, 4), later(), integer(4, 14), integer(4, 4_000_000)]);
    let policy = proto::Policy::decode(&field(1, retry)[..]).unwrap();
    let rules = RouteRules::from_proto(
        &RouteRules::default(),
        Some(&policy),
        Filters::default(),
        &mut pattern::Budget::default(),
    );
    let retry = rules.attempt.retry;
    assert_eq!((retry.attempts, &retry.grpc_statuses[..]), (4, &[14][..]));
    assert_eq!(retry.statuses, RetryPolicy::default().statuses);
    assert!(!retry.non_idempotent);
}

#[test]
fn an_older_controller() {
    // The oldest that could be: a Service is endpoints, and nothing else.
    let bare = field(1, field(4, field(2, field(1, field(1, "10.0.0.1:80")))));
    assert_eq!(decide(&bare), r#"/a/b unknown ["plaintext"]"#);
    let Target::Service(service) = decode(&bare) else {
        panic!("not a Service");
    };
    assert_eq!(*service.rules, RouteRules::default());
    assert_eq!(decide(&field(1, [])), "/a/b unknown []");
    assert_eq!(decide(&[]), "passed on untouched");
    // A pod without its Service's name.
    let pod = field(2, field(2, endpoint("10.0.0.1:80", ORDERS)));
    assert_eq!(decide(&pod), format!("/a/b unknown [{ORDERS:?}]"));
    // What is known of the pod itself: nothing.
    assert_eq!(
        from_proto::workload(&proto::Workload::default()),
        WorkloadInfo::default()
    );
}

/// What a controller of the commit in tests/skew/BASE said of a Service with routes.
#[test]
fn routes_recorded_from_the_version_before_match_what_they_matched() {
    let recorded = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/skew/recorded/orders.target");
    let Target::Service(orders) = decode(&fs::read(recorded).unwrap()) else {
        panic!("not a Service");
    };
    for (method, uri, canary, route) in [
        ("POST", "http://orders.shop/exact", "yes", Some("shop/split/0")),
        ("POST", "http://orders.shop/exact", "no", None),
        ("GET", "http://a.example.com/v12/x?full=1", "no", Some("shop/split/0")),
        ("POST", "http://a.example.com/v12/x?full=1", "no", None),
        ("GET", "http://a.example.com/v/x?full=1", "no", None),
        ("GET", "http://orders.shop/old/x", "no", Some("shop/split/1")),
        // A Service's routes hold whatever host name it is called by.
        ("GET", "http://elsewhere/old/x", "no", Some("shop/split/1")),
    ] {
        let request = Request::builder().method(method).uri(uri).header("x-canary", canary);
        let head = request.body(()).unwrap().into_parts().0;
        let chosen = route::choose(&orders, &head).ok();
        let name = chosen.and_then(|chosen| chosen.route).map(|route| &*route.name);
        assert_eq!(name, route, "{method} {uri}");
    }
    // A rewrite of the path, after what came before it.
    let mut head = Request::get("http://a.example.com/v1/x?full=1")
        .body(())
        .unwrap()
        .into_parts()
        .0;
    let chosen = route::choose(&orders, &head).unwrap();
    let filters = &chosen.rules.request.filters;
    assert_eq!(filters.count(), 4);
    assert!(filters::on_request(filters, chosen.prefix(), &mut head).is_ok());
    assert_eq!(head.uri, "http://inner.example/new?full=1");
    assert_eq!(
        (&head.headers["x-a"], &head.headers["x-b"]),
        (&"1".parse().unwrap(), &"2".parse().unwrap())
    );
}
