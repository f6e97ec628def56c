#![allow(clippy::unwrap_used)]
use super::{backend, backend_of_bytes, choose, decode};
use crate::model::{
    Backend, ByteRoute, Endpoints, Filters, HostnameMatch, PathMatch, Protocol, Route, RouteMatch, RouteRules, Service,
    ServiceName, Target, ValueMatch, WeightedBackend, from_proto,
};
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, Request, Version};
use outrigger_api::discovery as proto;
use outrigger_proxy_transport::error::Reason;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use std::sync::Arc;

fn named(name: &str) -> ServiceName {
    ServiceName {
        namespace: "shop".into(),
        name: name.into(),
        port: 80,
    }
}

fn to(name: &str) -> Arc<Backend> {
    Arc::new(Backend {
        name: named(name),
        endpoints: Endpoints::Known(Vec::new()),
        client_affinity: false,
        tls: None,
    })
}

fn route(name: &str, matches: Vec<RouteMatch>) -> Route {
    Route {
        name: name.into(),
        hostnames: Vec::new(),
        matches,
        backends: vec![WeightedBackend {
            backend: Some(0),
            weight: 1,
            filters: Filters::default(),
        }],
        rules: RouteRules::default(),
    }
}

fn path(path: PathMatch) -> RouteMatch {
    RouteMatch {
        path: Some(path),
        ..RouteMatch::default()
    }
}

fn service(routes: Vec<Route>) -> Service {
    Service {
        name: named("orders"),
        protocol: Protocol::Http1,
        routes: routes.into(),
        byte_routes: Arc::default(),
        backends: ["orders", "old", "new", "off"].map(to).into(),
        rules: Arc::default(),
    }
}

fn request(method: Method, uri: &str, headers: &[(&'static str, &str)]) -> Parts {
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(HeaderName::from_static(name), *value);
    }
    request.body(()).unwrap().into_parts().0
}

fn get(uri: &str) -> Parts {
    request(Method::GET, uri, &[("host", "orders.shop:80")])
}

fn taken(service: &Service, request: &Parts) -> Option<String> {
    let chosen = choose(service, request).ok()?;
    Some(chosen.route.map_or("service".into(), |r| r.name.to_string()))
}

#[test]
fn no_routes_means_the_service_itself() {
    let service = service(Vec::new());
    let request = get("/x");
    let chosen = choose(&service, &request).unwrap();
    assert!(chosen.route.is_none());
    let (to, _) = backend(&service, &chosen, &mut SmallRng::seed_from_u64(1)).unwrap();
    assert_eq!(to, 0);
}

#[test]
fn the_first_that_matches_wins() {
    let service = service(vec![
        route("exact", vec![path(PathMatch::Exact("/a/b".into()))]),
        route("prefix", vec![path(PathMatch::Prefix("/a".into()))]),
        route(
            "regex",
            vec![path(PathMatch::Regex(
                outrigger_api::pattern::Budget::default().compile("/v[0-9]+").unwrap(),
            ))],
        ),
    ]);
    let is = |uri: &str| taken(&service, &get(uri));
    assert_eq!(is("/a/b"), Some("exact".into()));
    assert_eq!(is("/a/b/c?d"), Some("prefix".into()));
    assert_eq!(is("/a"), Some("prefix".into()));
    assert_eq!(is("/v12"), Some("regex".into()));
    assert_eq!(is("/ab"), None);
    let request = get("/ab");
    assert_eq!(choose(&service, &request).unwrap_err().reason, Reason::NoRoute);
}

#[test]
fn everything_in_a_match_must_hold() {
    let all = RouteMatch {
        path: Some(PathMatch::Prefix(String::new())),
        method: Some(Method::POST),
        headers: vec![(HeaderName::from_static("x-tier"), ValueMatch::Exact("gold,blue".into()))],
        query: vec![("user name".into(), ValueMatch::Exact("a+b".into()))],
    };
    let service = service(vec![route("all", vec![all])]);
    let two = [("x-tier", "gold"), ("x-tier", "blue")];
    let good = "/x?z=1&user+name=a%2Bb&user+name=c";
    assert!(taken(&service, &request(Method::POST, good, &two)).is_some());
    assert!(taken(&service, &request(Method::GET, good, &two)).is_none());
    assert!(taken(&service, &request(Method::POST, good, &two[..1])).is_none());
    assert!(taken(&service, &request(Method::POST, "/x?z=1", &two)).is_none());
}

#[test]
fn hostnames() {
    let mut limited = route("limited", Vec::new());
    limited.hostnames = vec![
        HostnameMatch::Exact("orders.shop".into()),
        HostnameMatch::Suffix(".example.com".into()),
    ];
    let service = service(vec![limited]);
    let host = |h: &str| taken(&service, &request(Method::GET, "/", &[("host", h)])).is_some();
    assert!(host("orders.shop") && host("Orders.Shop:8080") && host("a.b.example.com"));
    assert!(!host("example.com") && !host("orders") && !host(".example.com"));
    let absolute = request(Method::GET, "http://orders.shop/x", &[]);
    assert!(taken(&service, &absolute).is_some());
}

/// Wherever the request says whom it is for: in `Host`, in the target as well, or in `:authority`.
#[test]
fn the_authority_is_matched_in_each_version() {
    let by_header = |value| RouteMatch {
        headers: vec![(http::header::HOST, value)],
        ..RouteMatch::default()
    };
    let mut by_hostname = route("hostname", Vec::new());
    by_hostname.hostnames = vec![HostnameMatch::Exact("[::1]".into())];
    let pattern = outrigger_api::pattern::Budget::default()
        .compile("tenant-.*:8080")
        .unwrap();
    let service = service(vec![
        route("header", vec![by_header(ValueMatch::Exact("Canary.shop:80".into()))]),
        route("pattern", vec![by_header(ValueMatch::Regex(pattern))]),
        by_hostname,
        route("empty", vec![by_header(ValueMatch::Exact(String::new()))]),
    ]);
    for (host, expected) in [
        ("Canary.shop:80", Some("header")),
        ("Canary.shop", None),
        ("tenant-1:8080", Some("pattern")),
        ("[::1]:80", Some("hostname")),
        ("[::1]", Some("hostname")),
    ] {
        let said = |version, uri: &str, said: bool| {
            let headers: &[_] = if said { &[("host", host)] } else { &[] };
            let mut request = request(Method::GET, uri, headers);
            request.version = version;
            taken(&service, &request)
        };
        let whole = format!("http://{host}/x");
        let expected = expected.map(str::to_owned);
        assert_eq!(said(Version::HTTP_10, "/x", true), expected, "{host}");
        assert_eq!(said(Version::HTTP_11, "/x", true), expected, "{host}");
        assert_eq!(said(Version::HTTP_11, &whole, true), expected, "{host}");
        assert_eq!(said(Version::HTTP_2, &whole, false), expected, "{host}");
    }
    let mut nobody = request(Method::GET, "/x", &[]);
    nobody.version = Version::HTTP_10;
    assert_eq!(taken(&service, &nobody), None, "a header that is not there");
}

#[test]
fn weights_are_kept() {
    let mut canary = route("canary", Vec::new());
    canary.backends = vec![
        WeightedBackend {
            backend: Some(1),
            weight: 9,
            filters: Filters::default(),
        },
        WeightedBackend {
            backend: Some(2),
            weight: 1,
            filters: Filters::default(),
        },
        WeightedBackend {
            backend: Some(3),
            weight: 0,
            filters: Filters::default(),
        },
        WeightedBackend {
            backend: None,
            weight: 10,
            filters: Filters::default(),
        },
    ];
    let service = service(vec![canary]);
    let request = get("/");
    let chosen = choose(&service, &request).unwrap();
    let mut rng = SmallRng::seed_from_u64(7);
    let mut counts = std::collections::HashMap::new();
    for _ in 0..20_000 {
        let drawn = match backend(&service, &chosen, &mut rng) {
            Ok((backend, _)) => service.backends[backend].name.name.to_string(),
            Err(error) => error.reason.code().to_owned(),
        };
        *counts.entry(drawn).or_insert(0) += 1;
    }
    assert!((8500..9500).contains(&counts["old"]), "{counts:?}");
    assert!((800..1200).contains(&counts["new"]), "{counts:?}");
    assert!((9500..10_500).contains(&counts["invalid-backend"]), "{counts:?}");
    assert!(!counts.contains_key("off"));
}

#[test]
fn a_route_without_backends_is_an_error_of_its_own() {
    let mut none = route("none", Vec::new());
    none.backends.clear();
    let service = service(vec![none]);
    let request = get("/");
    let chosen = choose(&service, &request).unwrap();
    let error = backend(&service, &chosen, &mut SmallRng::seed_from_u64(1)).unwrap_err();
    assert_eq!(error.reason, Reason::InvalidBackend);
}

#[test]
fn decoding() {
    assert_eq!(*decode("a%20b+c"), *b"a b c");
    assert_eq!(*decode("100%"), *b"100%");
    assert_eq!(*decode("%ff%FG"), *b"\xff%FG");
}

/// A Service of which one route takes what has the value, in a header or in the query.
fn with_value(kind: proto::string_match::Kind) -> [Service; 2] {
    let named = vec![proto::NamedMatch {
        name: "v".to_owned(),
        value: Some(proto::StringMatch { kind: Some(kind) }),
    }];
    let header = proto::Match {
        headers: named.clone(),
        ..proto::Match::default()
    };
    let query = proto::Match {
        query: named,
        ..proto::Match::default()
    };
    [header, query].map(|matched| {
        let message = proto::Service {
            routes: vec![proto::Route {
                name: "shop/r/0".to_owned(),
                matches: vec![matched],
                ..proto::Route::default()
            }],
            ..proto::Service::default()
        };
        let kind = Some(proto::target::Kind::Service(message));
        match from_proto::target(&proto::Target { kind }) {
            Target::Service(service) => Arc::into_inner(service).unwrap(),
            Target::External => unreachable!("a Service was told"),
        }
    })
}

/// A value in percent-encoding in both places; `None`: a header cannot have it.
fn has_value([header, query]: &[Service; 2], value: &str) -> (Option<bool>, bool) {
    let in_header = HeaderValue::from_bytes(&decode(value)).ok().map(|value| {
        let request = Request::builder().uri("/").header("v", value).body(()).unwrap();
        taken(header, &request.into_parts().0).is_some()
    });
    (in_header, taken(query, &get(&format!("/?u=1&v={value}"))).is_some())
}

/// The table that the controller runs, too.
#[test]
fn what_each_pattern_is_about() {
    let rows = include_str!("../../../api/tests/patterns.txt").lines();
    for row in rows.filter(|row| !row.starts_with('#')) {
        let [pattern, value, expected] = row.split(" => ").collect::<Vec<_>>()[..] else {
            panic!("{row}");
        };
        let services = with_value(proto::string_match::Kind::Regex(pattern.to_owned()));
        let (in_header, in_query) = has_value(&services, value);
        assert_eq!(in_query, expected == "yes", "{row}");
        assert!(in_header.is_none_or(|found| found == in_query), "{row}");
    }
}

#[test]
fn exact_values_are_compared_by_their_bytes() {
    for (wanted, value, expected) in [
        ("v\u{fc}", "v%C3%BC", true),
        ("v\u{fc}", "v%FC", false),
        ("v\u{fffd}", "v%FC", false),
        ("v", "v", true),
        ("v", "V", false),
        ("", "", true),
    ] {
        let services = with_value(proto::string_match::Kind::Exact(wanted.to_owned()));
        assert_eq!(
            has_value(&services, value),
            (Some(expected), expected),
            "{wanted} {value}"
        );
    }
    // Several fields of one name are one list, whatever their bytes are.
    let [service, _] = with_value(proto::string_match::Kind::Regex("a,.,b".to_owned()));
    let mut request = get("/");
    for value in [&b"a"[..], b"\xfc", b"b"] {
        request.headers.append("v", HeaderValue::from_bytes(value).unwrap());
    }
    assert!(taken(&service, &request).is_some());
}

fn byte_route(name: &str, server_names: &[&str], backends: &[(Option<usize>, u32)]) -> ByteRoute {
    ByteRoute {
        name: name.into(),
        server_names: server_names.iter().map(|name| HostnameMatch::parse(name)).collect(),
        backends: backends
            .iter()
            .map(|&(backend, weight)| WeightedBackend {
                backend,
                weight,
                filters: Filters::default(),
            })
            .collect(),
    }
}

#[test]
fn routes_of_bytes() {
    let mut rng = SmallRng::seed_from_u64(1);
    let mut taken = |service: &Service, server: Option<&str>| {
        backend_of_bytes(service, server, &mut rng).map_err(|error| error.reason)
    };
    let service = |routes: Vec<ByteRoute>| Service {
        byte_routes: routes.into(),
        ..service(Vec::new())
    };
    let by_name = service(vec![
        byte_route("any-example", &["*.example"], &[(Some(1), 1)]),
        byte_route("shop", &["shop.example", "*.shop.example"], &[(Some(2), 1)]),
        byte_route("late-shop", &["shop.example"], &[(Some(3), 1)]),
        byte_route("nobody", &["gone.example"], &[(None, 1)]),
        byte_route("no-backend", &["none.example"], &[]),
    ]);
    for (server, expected) in [
        (Some("shop.example"), Ok(2)),
        (Some("a.shop.example"), Ok(2)),
        (Some("bank.example"), Ok(1)),
        (Some("a.bank.example"), Ok(1)),
        (Some("example"), Err(Reason::NoRoute)),
        (Some("other.test"), Err(Reason::NoRoute)),
        (Some("gone.example"), Err(Reason::InvalidBackend)),
        (Some("none.example"), Err(Reason::InvalidBackend)),
        (None, Err(Reason::NoRoute)),
    ] {
        assert_eq!(taken(&by_name, server), expected, "{server:?}");
    }
    // Of every connection, and none.
    let all = service(vec![
        byte_route("all", &[], &[(Some(1), 1)]),
        byte_route("late", &[], &[(Some(2), 1)]),
    ]);
    assert_eq!((taken(&all, None), taken(&all, Some("a"))), (Ok(1), Ok(1)));
    assert_eq!(taken(&service(Vec::new()), None), Ok(0));
    // By weight.
    let split = service(vec![byte_route("split", &[], &[(Some(1), 1), (Some(2), 3), (None, 0)])]);
    let of_first = (0..4000).filter(|_| taken(&split, None) == Ok(1)).count();
    assert!((850..1150).contains(&of_first), "{of_first}");
}
