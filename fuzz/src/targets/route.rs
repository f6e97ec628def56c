//! Which route a request takes, against a second and slower reading of Gateway API.

use http::Request;
use http::request::Parts;
use outrigger_api::discovery as proto;
use outrigger_api::discovery::string_match::Kind;
use outrigger_proxy::model::from_proto;
use outrigger_proxy::outbound::route;
use rand::SeedableRng;
use rand::rngs::SmallRng;

use crate::Input;

const PATHS: [&str; 12] = [
    "/", "/a", "/a/", "/a/b", "/ab", "/a/b/c", "/A", "/b", "/a%2Fb", "//a", "/a.b", "/c",
];
const PREFIXES: [&str; 7] = ["/", "/a", "/a/", "/a/b", "/ab", "", "//"];
const NAMES: [&str; 4] = ["x-one", "x-two", "X-One", "host"];
const VALUES: [&str; 6] = ["", "1", "2", "1,2", "a b", "%31"];
const QUERIES: [&str; 7] = ["", "?q=1", "?q=2&q=1", "?p=a+b", "?q", "?%71=%31", "?q=1&p=2"];
const KEYS: [&str; 3] = ["q", "p", ""];
const METHODS: [&str; 4] = ["GET", "POST", "get", "X"];
const HOSTS: [&str; 7] = [
    "shop.test",
    "SHOP.test",
    "a.shop.test",
    "a.b.shop.test",
    "shop.test:80",
    "[::1]:80",
    "xshop.test",
];
const HOSTNAMES: [&str; 6] = ["shop.test", "*.shop.test", "Shop.Test", "*", "", "other.test"];
type Matches = fn(&str) -> bool;
/// Patterns, and what a whole value must be to match.
const PATTERNS: [(&str, Matches); 4] = [
    ("/a.*", |v| v.starts_with("/a")),
    ("1|2", |v| v == "1" || v == "2"),
    ("", str::is_empty),
    ("(", |_| false), // not a pattern: matches nothing
];

/// Choices for a Service's routes and for a request.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let message = proto::Service {
        routes: input.some(4, route),
        backends: vec![proto::Backend::default(); 2],
        ..proto::Service::default()
    };
    let service = from_proto::service(&message);
    let request = request(&mut input);
    let expected = message.routes.iter().position(|route| route_matches(route, &request));
    let chosen = route::choose(&service, &request);
    // HTTP/2 says whom it is for elsewhere.
    let http2 = route::choose(&service, &in_http2(&request));
    let name = |chosen: &Result<route::Chosen<'_>, _>| chosen.as_ref().ok().map(|c| c.route.map(std::ptr::from_ref));
    assert_eq!(name(&http2), name(&chosen), "{message:#?} {request:?}");
    let found = match &chosen {
        Ok(chosen) => chosen.route.map(|route| {
            let position = service.routes.iter().position(|r| std::ptr::eq(r, route));
            position.expect("one of the Service's")
        }),
        Err(_) => None,
    };
    assert_eq!(found, expected, "{message:#?} {request:?}");
    assert_eq!(chosen.is_err(), expected.is_none() && !message.routes.is_empty());
    let Ok(chosen) = chosen else {
        return;
    };
    if let Some(prefix) = chosen.prefix() {
        assert!(request.uri.path().starts_with(prefix));
    }
    let mut rng = SmallRng::seed_from_u64(u64::from(input.byte()));
    let backend = route::backend(&service, &chosen, &mut rng);
    if let Some(at) = expected {
        let possible: Vec<u32> = message.routes[at]
            .backends
            .iter()
            .filter(|b| b.weight > 0)
            .map(|b| b.backend)
            .collect();
        match &backend {
            Ok((backend, _)) => {
                assert!(possible.contains(&(*backend as u32)), "{backend} of {possible:?}");
            }
            Err(_) => assert!(possible.is_empty() || possible.iter().any(|b| *b >= 2), "{possible:?}"),
        }
    } else {
        assert!(backend.is_ok());
    }
}

fn route(input: &mut Input<'_>) -> proto::Route {
    proto::Route {
        hostnames: input.some(2, |i| i.pick(&HOSTNAMES).to_owned()),
        matches: input.some(2, route_match),
        backends: input.some(3, |i| proto::WeightedBackend {
            backend: i.pick(&[0, 1, 2]),
            weight: i.pick(&[0, 1, 100, u32::MAX]),
            filters: Vec::new(),
        }),
        ..proto::Route::default()
    }
}

fn route_match(input: &mut Input<'_>) -> proto::Match {
    let kind = match input.below(6) {
        0 => Some(Some(Kind::Exact(input.pick(&PATHS).to_owned()))),
        1 | 2 => Some(Some(Kind::PathPrefix(input.pick(&PREFIXES).to_owned()))),
        3 => Some(Some(Kind::Regex(input.pick(&PATTERNS).0.to_owned()))),
        4 => Some(None), // of a newer controller
        _ => None,
    };
    proto::Match {
        path: kind.map(|kind| proto::StringMatch { kind }),
        headers: input.some(2, |i| named(i, &NAMES)),
        query: input.some(2, |i| named(i, &KEYS)),
        method: match input.flag() {
            true => input.pick(&METHODS).to_owned(),
            false => String::new(),
        },
    }
}

fn named(input: &mut Input<'_>, names: &[&str]) -> proto::NamedMatch {
    let name = input.pick(names).to_owned();
    let kind = match input.below(4) {
        0 | 1 => Kind::Exact(input.pick(&VALUES).to_owned()),
        2 => Kind::Regex(input.pick(&PATTERNS).0.to_owned()),
        _ => Kind::PathPrefix("/".to_owned()), // has no meaning here
    };
    let value = Some(proto::StringMatch { kind: Some(kind) });
    proto::NamedMatch { name, value }
}

fn request(input: &mut Input<'_>) -> Parts {
    let uri = format!("{}{}", input.pick(&PATHS), input.pick(&QUERIES));
    let mut request = Request::builder()
        .method(input.pick(&METHODS))
        .uri(uri)
        .header("host", input.pick(&HOSTS));
    for _ in 0..input.below(3) {
        request = request.header(input.pick(&["x-one", "x-two"]), input.pick(&VALUES));
    }
    request.body(()).expect("a request").into_parts().0
}

fn in_http2(request: &Parts) -> Parts {
    let mut request = request.clone();
    let host = request.headers.remove("host").expect("one of HOSTS");
    let uri = format!("http://{}{}", host.to_str().expect("one of HOSTS"), request.uri);
    request.uri = uri.parse().expect("a URI");
    request.version = http::Version::HTTP_2;
    request
}

fn route_matches(route: &proto::Route, request: &Parts) -> bool {
    let host = request.headers["host"].to_str().expect("one of HOSTS").to_lowercase();
    let host = match host.strip_suffix(":80") {
        Some(host) => host.to_owned(),
        None => host,
    };
    let hostname = |name: &String| match name.to_lowercase().strip_prefix("*.") {
        Some(domain) => host
            .strip_suffix(domain)
            .is_some_and(|rest| rest.len() > 1 && rest.ends_with('.')),
        None => name.to_lowercase() == host,
    };
    (route.hostnames.is_empty() || route.hostnames.iter().any(hostname))
        && (route.matches.is_empty() || route.matches.iter().any(|m| match_matches(m, request)))
}

fn match_matches(m: &proto::Match, request: &Parts) -> bool {
    let path = request.uri.path();
    let elements = |path: &str| -> Vec<String> { path.trim_end_matches('/').split('/').map(str::to_owned).collect() };
    let path = m.path.as_ref().is_none_or(|wanted| match &wanted.kind {
        Some(Kind::Exact(exact)) => exact == path,
        // Element by element (Gateway API, PathMatchPathPrefix).
        Some(Kind::PathPrefix(prefix)) => {
            let prefix = elements(prefix);
            path.split('/')
                .map(str::to_owned)
                .collect::<Vec<_>>()
                .starts_with(&prefix)
                || prefix.iter().all(String::is_empty) && prefix.len() == 1
        }
        Some(Kind::Regex(pattern)) => pattern_matches(pattern, path),
        None => false,
    });
    let method = m.method.is_empty() || m.method == request.method.as_str();
    let headers = m.headers.iter().all(|wanted| {
        let values: Vec<&str> = request
            .headers
            .get_all(wanted.name.to_lowercase())
            .iter()
            .filter_map(|v| v.to_str().ok())
            .collect();
        !values.is_empty() && value_matches(wanted, &values.join(","))
    });
    let query = m.query.iter().all(|wanted| {
        let pairs = request
            .uri
            .query()
            .unwrap_or("")
            .split('&')
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        let decoded = |text: &str| text.replace('+', " ").replace("%31", "1").replace("%71", "q");
        let mut found = pairs
            .filter(|(name, _)| decoded(name) == wanted.name)
            .map(|(_, value)| decoded(value));
        found.next().is_some_and(|value| value_matches(wanted, &value))
    });
    path && method && headers && query
}

fn value_matches(wanted: &proto::NamedMatch, value: &str) -> bool {
    match wanted.value.as_ref().and_then(|v| v.kind.as_ref()) {
        Some(Kind::Exact(exact)) => exact == value,
        Some(Kind::Regex(pattern)) => pattern_matches(pattern, value),
        Some(Kind::PathPrefix(_)) | None => false,
    }
}

fn pattern_matches(pattern: &str, value: &str) -> bool {
    let (_, matches) = PATTERNS
        .iter()
        .find(|(text, _)| *text == pattern)
        .expect("one of PATTERNS");
    matches(value)
}
