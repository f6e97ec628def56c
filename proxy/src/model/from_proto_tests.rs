#![allow(clippy::unwrap_used)]

use std::time::Duration;

use http::StatusCode;
use outrigger_api::discovery as proto;
use outrigger_api::discovery::{backend, filter, string_match, target};
use outrigger_api::pattern;
use prost::Message;
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};

use super::from_proto;
use super::{Endpoints, Filters, HostnameMatch, Mirror, PathMatch, Protocol, RouteRules, Service, Target, ValueMatch};

fn endpoint(address: &str, identity: &str) -> proto::Endpoint {
    proto::Endpoint {
        address: address.to_owned(),
        identity: identity.to_owned(),
        ..Default::default()
    }
}

fn backend(name: &str, endpoints: Vec<proto::Endpoint>) -> proto::Backend {
    proto::Backend {
        r#ref: Some(proto::ServiceRef {
            namespace: "shop".to_owned(),
            name: name.to_owned(),
            port: 8080,
        }),
        policy: None,
        client_affinity: false,
        tls: None,
        kind: Some(backend::Kind::Endpoints(proto::Endpoints { endpoints })),
    }
}

fn service(routes: Vec<proto::Route>) -> Service {
    from_proto::service(&proto::Service {
        byte_routes: Vec::new(),
        r#ref: backend("orders", vec![]).r#ref,
        protocol: proto::Protocol::Http2.into(),
        routes,
        backends: vec![
            backend(
                "orders",
                vec![endpoint("10.0.0.1:8080", "spiffe://cluster.local/ns/shop/sa/orders")],
            ),
            backend("orders-v2", vec![]),
        ],
        policy: None,
    })
}

fn path(kind: Option<string_match::Kind>) -> proto::Match {
    proto::Match {
        path: Some(proto::StringMatch { kind }),
        ..Default::default()
    }
}

fn named(name: &str, kind: string_match::Kind) -> proto::NamedMatch {
    proto::NamedMatch {
        name: name.to_owned(),
        value: Some(proto::StringMatch { kind: Some(kind) }),
    }
}

fn never(path: &PathMatch) -> bool {
    matches!(path, PathMatch::Exact(text) if text.contains('\0'))
}

#[test]
fn nothing_is_external_and_a_pod_is_one_endpoint() {
    assert!(matches!(
        from_proto::target(&proto::Target { kind: None }),
        Target::External
    ));
    let pod = proto::Pod {
        protocol: proto::Protocol::Opaque.into(),
        endpoint: Some(endpoint("[fd00::7]:5432", "")),
        ..Default::default()
    };
    let Target::Service(service) = from_proto::target(&proto::Target {
        kind: Some(target::Kind::Pod(pod)),
    }) else {
        panic!("not a service");
    };
    assert_eq!(service.protocol, Protocol::Opaque);
    assert_eq!((&*service.name.name, service.name.port), ("unknown", 5432));
    let Endpoints::Known(endpoints) = &service.backends[0].endpoints else {
        panic!("no endpoints");
    };
    assert_eq!((endpoints.len(), &endpoints[0].identity), (1, &None));
}

#[test]
fn an_endpoint_with_an_unreadable_identity_is_left_out_and_never_plaintext() {
    let bad = backend(
        "orders",
        vec![
            endpoint("10.0.0.1:80", "spiffe://nonsense"),
            endpoint("10.0.0.2", ""),
            endpoint("10.0.0.3:80", ""),
        ],
    );
    let service = from_proto::service(&proto::Service {
        backends: vec![bad],
        ..Default::default()
    });
    let Endpoints::Known(endpoints) = &service.backends[0].endpoints else {
        panic!("no endpoints");
    };
    let addresses: Vec<_> = endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect();
    assert_eq!(addresses, ["10.0.0.3:80"]);
}

#[test]
fn what_is_not_understood_matches_nothing_and_not_everything() {
    let regex = |pattern: &str| string_match::Kind::Regex(pattern.to_owned());
    let exact = |text: &str| string_match::Kind::Exact(text.to_owned());
    let with = |headers, query, method: &str| proto::Match {
        headers,
        query,
        method: method.to_owned(),
        ..Default::default()
    };
    for unusable in [
        path(None),
        path(Some(regex("("))),
        path(Some(regex("a)|(b"))),
        path(Some(regex(r"(\w{1000}){1000}"))),
        with(vec![named("bad name", exact("x"))], vec![], ""),
        with(
            vec![named("x", string_match::Kind::PathPrefix("x".to_owned()))],
            vec![],
            "",
        ),
        with(vec![proto::NamedMatch::default()], vec![], ""),
        with(vec![], vec![named("q", regex("["))], ""),
        with(vec![], vec![], "GET PUT"),
    ] {
        let route = proto::Route {
            matches: vec![unusable.clone()],
            ..Default::default()
        };
        let service = service(vec![route]);
        // The route stays: without it, requests would go to the Service itself.
        let matches = &service.routes[0].matches;
        assert_eq!(matches.len(), 1, "{unusable:?}");
        assert!(never(matches[0].path.as_ref().unwrap()), "{unusable:?}");
        // Beside a good one it is simply left out.
        let route = proto::Route {
            matches: vec![unusable, path(Some(exact("/good")))],
            ..Default::default()
        };
        let matches = &self::service(vec![route]).routes[0].matches;
        assert!(matches!(&matches[..], [m] if matches!(&m.path, Some(PathMatch::Exact(p)) if p == "/good")));
    }
}

/// Ten thousand patterns of a controller that does not count: beyond the budget they match nothing.
#[test]
fn the_patterns_of_a_target_have_a_budget() {
    let pattern = |i: usize| path(Some(string_match::Kind::Regex(format!("/{i}/[a-z]{{1,60}}(foo|bar)+"))));
    let route = |first: usize| proto::Route {
        matches: (first..first + 100).map(pattern).collect(),
        ..Default::default()
    };
    let service = service((0..100).map(|i| route(100 * i)).collect());
    let compiled = service.routes.iter().flat_map(|route| &route.matches);
    let compiled = compiled.filter(|m| matches!(m.path, Some(PathMatch::Regex(_)))).count();
    assert!(
        compiled > 0 && compiled <= outrigger_api::pattern::MAX_PATTERNS,
        "{compiled}"
    );
    assert_eq!(service.routes.len(), 100);
    assert!(never(service.routes[99].matches[0].path.as_ref().unwrap()));
}

#[test]
fn matches() {
    let route = proto::Route {
        matches: vec![
            path(Some(string_match::Kind::PathPrefix("/a/".to_owned()))),
            path(Some(string_match::Kind::PathPrefix("/".to_owned()))),
            path(Some(string_match::Kind::Regex("/v[0-9]+|/x".to_owned()))),
            proto::Match {
                method: "POST".to_owned(),
                headers: vec![named("X-Canary", string_match::Kind::Exact("yes".to_owned()))],
                ..Default::default()
            },
        ],
        hostnames: vec![
            "Shop.example.com".into(),
            "*.Example.org".into(),
            "".into(),
            "*".into(),
            "*x".into(),
        ],
        ..Default::default()
    };
    let service = service(vec![route]);
    let [prefix, root, regex, post] = &service.routes[0].matches[..] else {
        panic!("not four matches");
    };
    assert!(matches!(&prefix.path, Some(PathMatch::Prefix(p)) if p == "/a"));
    assert!(matches!(&root.path, Some(PathMatch::Prefix(p)) if p.is_empty()));
    let Some(PathMatch::Regex(regex)) = &regex.path else {
        panic!("no regex");
    };
    assert!(regex.is_match(b"/v12") && regex.is_match(b"/x") && !regex.is_match(b"/v1/b") && !regex.is_match(b"/xx"));
    assert_eq!(post.method, Some(http::Method::POST));
    assert!(matches!(&post.headers[0].1, ValueMatch::Exact(value) if value == "yes"));
    let [exact, suffix, unusable @ ..] = &service.routes[0].hostnames[..] else {
        panic!("no host names");
    };
    assert_eq!(*exact, HostnameMatch::Exact("shop.example.com".to_owned()));
    assert_eq!(*suffix, HostnameMatch::Suffix(".example.org".to_owned()));
    assert!(
        unusable
            .iter()
            .all(|name| *name == HostnameMatch::Exact("\0".to_owned()))
    );
}

#[test]
fn backends_by_index_and_filters() {
    let header = |name: &str, value: &str| proto::Header {
        name: name.to_owned(),
        value: value.to_owned(),
    };
    let kinds = [
        Some(filter::Kind::RequestHeaders(proto::HeaderModifier {
            set: vec![header("x-a", "1"), header("bad name", "1"), header("x-b", "bad\nvalue")],
            ..Default::default()
        })),
        Some(filter::Kind::Redirect(proto::Redirect {
            port: 99_999,
            status: 200,
            ..Default::default()
        })),
        Some(filter::Kind::Mirror(proto::Mirror {
            backend: 1,
            parts_per_million: 2_000_000,
        })),
        Some(filter::Kind::Mirror(proto::Mirror {
            backend: 7,
            parts_per_million: 1,
        })),
    ];
    let weighted = |backend| proto::WeightedBackend {
        backend,
        weight: 1,
        filters: vec![],
    };
    let service = service(vec![proto::Route {
        filters: kinds.into_iter().map(|kind| proto::Filter { kind }).collect(),
        backends: vec![weighted(1), weighted(2), weighted(u32::MAX)],
        ..Default::default()
    }]);
    let route = &service.routes[0];
    let names: Vec<_> = route
        .backends
        .iter()
        .map(|w| w.backend.map(|b| &*service.backends[b].name.name))
        .collect();
    assert_eq!(names, [Some("orders-v2"), None, None]);
    let filters = &route.rules.request.filters;
    assert_eq!(filters.count(), 3, "{filters:?}");
    assert_eq!(filters.request_headers[0].set.len(), 1);
    let redirect = filters.redirect.as_ref().unwrap();
    assert_eq!((redirect.status, redirect.port), (StatusCode::FOUND, None));
    let mirror = Mirror {
        backend: 1,
        parts_per_million: 1_000_000,
    };
    assert_eq!(filters.mirrors, [mirror]);
}

#[test]
fn a_service_without_backends_has_an_empty_one_that_no_index_reaches() {
    let service = from_proto::service(&proto::Service {
        routes: vec![proto::Route {
            backends: vec![proto::WeightedBackend::default()],
            ..Default::default()
        }],
        ..Default::default()
    });
    assert!(matches!(&service.backends[0].endpoints, Endpoints::Known(endpoints) if endpoints.is_empty()));
    assert!(service.routes[0].backends[0].backend.is_none());
}

#[test]
fn policies_merge_field_by_field() {
    let retry = |attempts, statuses: &[u32], statuses_set| proto::Retry {
        attempts,
        statuses: statuses.to_vec(),
        statuses_set,
        ..Default::default()
    };
    fn rules(outer: &RouteRules, inner: Option<&proto::Policy>) -> RouteRules {
        RouteRules::from_proto(outer, inner, Filters::default(), &mut pattern::Budget::default())
    }
    let outer = rules(
        &RouteRules::default(),
        Some(&proto::Policy {
            retry: Some(retry(Some(4), &[429, 99, 70_000], false)),
            request_timeout_ms: Some(2000),
            connect_timeout_ms: Some(0),
            ..Default::default()
        }),
    );
    assert_eq!(outer.attempt.retry.attempts, 4);
    assert_eq!(
        outer.attempt.retry.statuses,
        [502, 503, 504, 429].map(|s| StatusCode::from_u16(s).unwrap())
    );
    assert_eq!(outer.request.timeout, Some(Duration::from_secs(2)));
    assert!(outer.attempt.connect_timeout >= Duration::from_secs(3600));
    let inner = rules(
        &outer,
        Some(&proto::Policy {
            retry: Some(retry(None, &[500], true)),
            request_timeout_ms: Some(0),
            ..Default::default()
        }),
    );
    assert_eq!((inner.attempt.retry.attempts, inner.request.timeout), (4, None));
    assert_eq!(inner.attempt.retry.statuses, [StatusCode::INTERNAL_SERVER_ERROR]);
    assert_eq!(rules(&inner, None), inner);
    let bounded = rules(
        &RouteRules::default(),
        Some(&proto::Policy {
            retry: Some(proto::Retry {
                attempts: Some(u32::MAX),
                backoff_base_ms: Some(5000),
                budget_percent: Some(900),
                budget_min_per_second: Some(u32::MAX),
                max_body_bytes: Some(u64::MAX),
                ..Default::default()
            }),
            ..Default::default()
        }),
    );
    let retry = bounded.attempt.retry;
    assert_eq!(
        (retry.attempts, retry.max_body_bytes, retry.budget.min_count),
        (10, 1 << 20, 10_000)
    );
    assert_eq!((retry.budget.ratio, retry.backoff_max), (1.0, Duration::from_secs(5)));
}

#[test]
fn a_budgets_intervals_are_bounded_and_its_rate_replaces_the_older_word() {
    let budget = |outer: &RouteRules, retry: proto::Retry| {
        let policy = proto::Policy {
            retry: Some(retry),
            ..Default::default()
        };
        RouteRules::from_proto(
            outer,
            Some(&policy),
            Filters::default(),
            &mut pattern::Budget::default(),
        )
    };
    let rate = |count, interval_ms| Some(proto::RetryRate { count, interval_ms });
    let millis = Duration::from_millis;
    for (interval_ms, said, interval, count, min_interval) in [
        (0, rate(0, 0), millis(1000), 0, millis(1)),
        (2500, rate(3, 60_000), millis(2500), 3, millis(60_000)),
        (
            u64::MAX,
            rate(u32::MAX, u64::MAX),
            millis(3_600_000),
            1_000_000,
            millis(3_600_000),
        ),
        (10_000, None, millis(10_000), 7, millis(1000)),
    ] {
        let retry = proto::Retry {
            budget_interval_ms: Some(interval_ms),
            budget_min_rate: said,
            budget_min_per_second: Some(7),
            ..Default::default()
        };
        let budget = budget(&RouteRules::default(), retry).attempt.retry.budget;
        assert_eq!(
            (budget.interval, budget.min_count, budget.min_interval),
            (interval, count, min_interval)
        );
        assert_eq!(budget.ratio, 0.2);
    }
    // What is nearer says it in the older word.
    let outer = budget(
        &RouteRules::default(),
        proto::Retry {
            budget_min_rate: rate(1, 60_000),
            ..Default::default()
        },
    );
    let inner = proto::Retry {
        budget_min_per_second: Some(5),
        ..Default::default()
    };
    let inner = budget(&outer, inner).attempt.retry.budget;
    assert_eq!((inner.min_count, inner.min_interval), (5, millis(1000)));
}

#[test]
fn unknown_enumerators_are_detected() {
    let service = from_proto::service(&proto::Service {
        protocol: 4711,
        ..Default::default()
    });
    assert_eq!(service.protocol, Protocol::Detect);
    let info = from_proto::workload(&proto::Workload {
        opaque_ports: vec![0, 25, 70_000],
        protocols: [(8080, 4711), (90_000, 1), (9090, proto::Protocol::Http2.into())].into(),
        cluster_networks: vec!["10.0.0.0/8".to_owned(), "fd00::/8".to_owned()],
    });
    assert_eq!(info.opaque_ports, [25]);
    assert_eq!(info.cluster_networks.len(), 2);
    assert_eq!(info.protocols.len(), 2);
    assert_eq!(info.protocols[&9090], Protocol::Http2);
}

/// Whatever bytes decode, convert.
#[test]
fn any_message_converts() {
    let mut random = SmallRng::seed_from_u64(3);
    let seed = proto::Target {
        kind: Some(target::Kind::Service(proto::Service {
            r#ref: backend("orders", vec![]).r#ref,
            routes: vec![proto::Route {
                matches: vec![path(Some(string_match::Kind::Regex("/a+".to_owned())))],
                backends: vec![proto::WeightedBackend::default()],
                ..Default::default()
            }],
            backends: vec![backend("orders", vec![endpoint("10.0.0.1:80", "")])],
            ..Default::default()
        })),
    }
    .encode_to_vec();
    let mut decoded = 0;
    for _ in 0..20_000 {
        let mut bytes = seed.clone();
        for _ in 0..random.random_range(1..6) {
            let at = random.random_range(0..bytes.len());
            bytes[at] = random.next_u32() as u8;
        }
        if let Ok(message) = proto::Target::decode(&bytes[..]) {
            decoded += 1;
            from_proto::target(&message);
        }
    }
    assert!(decoded > 1000, "{decoded}");
}
