#![allow(clippy::unwrap_used)]

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use http::Request;
use outrigger_api::discovery as proto;
use outrigger_api::pattern;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use tokio::time::Instant;

use super::*;
use crate::model::Endpoint;
use crate::outbound::balance::{Balancer, Pick};
use crate::outbound::hash::of_endpoint;
use crate::outbound::health::Answer;
use crate::outbound::testing::NO_RULES;

const NAME: &str = "s";
const START: SystemTime = UNIX_EPOCH;
const AT: Reference = Reference {
    backend: 1,
    endpoint: 2,
};

fn said(kind: proto::SessionType) -> proto::SessionPersistence {
    proto::SessionPersistence {
        r#type: kind.into(),
        name: NAME.to_owned(),
        key: vec![7; 32],
        ..Default::default()
    }
}

fn sessions_of(said: &proto::SessionPersistence, service: &str, rule: &str) -> Arc<Sessions> {
    let service = ServiceName {
        namespace: "shop".into(),
        name: service.into(),
        port: 80,
    };
    Sessions::from_proto(Some(said), &service, rule).unwrap()
}

fn sessions(kind: proto::SessionType) -> Arc<Sessions> {
    sessions_of(&said(kind), "cart", "shop/cart/0")
}

fn head(headers: &[(&str, &str)]) -> Parts {
    let mut request = Request::builder();
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

fn sealed(rules: &Sessions, at: Reference, now: SystemTime) -> String {
    seal(rules, at, now, [9; NONCE_LEN]).unwrap()
}

#[test]
fn a_reference_is_found_wherever_it_stands() {
    let cookie = sessions(proto::SessionType::Cookie);
    let good = sealed(&cookie, AT, START);
    assert_eq!(good.len(), TEXT);
    // Of another rule, whose path is longer: browsers send it first.
    let other = sealed(
        &sessions_of(&said(proto::SessionType::Cookie), "cart", "shop/cart/1"),
        AT,
        START,
    );
    let pair = |value: &str| format!("{NAME}={value}");
    for (lines, found) in [
        (vec![pair(&good)], true),
        (vec![format!("a=b; {};c=d", pair(&good))], true),
        (vec!["a=b".to_owned(), pair(&good), "c=d".to_owned()], true),
        (vec![pair(&other), pair(&good)], true),
        (
            vec![pair("short"), pair(""), pair(&"A".repeat(TEXT)), pair(&good)],
            true,
        ),
        // So many are looked at.
        (
            vec![pair(&other); MOST].into_iter().chain([pair(&good)]).collect(),
            false,
        ),
        (vec![pair(&other)], false),
        (vec![format!("x{NAME}={good}")], false),
        (vec![format!("{NAME}x={good}")], false),
        (vec![format!("S={good}")], false),
        (vec![format!("{NAME}=\"{good}\"")], false),
        (Vec::new(), false),
    ] {
        let lines: Vec<_> = lines.iter().map(|line| ("cookie", line.as_str())).collect();
        assert_eq!(read(&cookie, &head(&lines), START), found.then_some(AT), "{lines:?}");
    }
    let header = sessions(proto::SessionType::Header);
    let good = sealed(&header, AT, START);
    for (lines, found) in [
        (vec![("s", &*good)], true),
        (vec![("S", &*good)], true),
        (vec![("s", "x"), ("s", &*good)], true),
        (vec![("cookie", &*good)], false),
    ] {
        assert_eq!(read(&header, &head(&lines), START), found.then_some(AT), "{lines:?}");
    }
}

#[test]
fn what_was_not_sealed_for_this_rule_with_this_key_is_none() {
    let cookie = said(proto::SessionType::Cookie);
    let rules = sessions_of(&cookie, "cart", "shop/cart/0");
    let other_key = proto::SessionPersistence {
        key: vec![8; 32],
        ..cookie.clone()
    };
    for (service, rule, said) in [
        ("orders", "shop/cart/0", &cookie),
        ("cart", "shop/cart/1", &cookie),
        ("cart", "", &cookie),
        ("cart", "shop/cart/0", &other_key),
    ] {
        let foreign = sealed(&sessions_of(said, service, rule), AT, START);
        assert_eq!(open(&rules, foreign.as_bytes(), START), None, "{service} {rule}");
    }
    let good = sealed(&rules, AT, START);
    assert_eq!(open(&rules, good.as_bytes(), START), Some(AT));
    // Nothing of it is read in plain: neither twice the same, nor an address in it.
    let drawn = seal(&rules, AT, START, [1; NONCE_LEN]).unwrap();
    assert_ne!(drawn, good);
    // Each character of it counts; of the last one, those bits that mean something.
    for index in 0..good.len() {
        let mut forged = good.clone().into_bytes();
        forged[index] = if forged[index] == b'A' { b'Q' } else { b'A' };
        assert_eq!(open(&rules, &forged, START), None, "{index}");
    }
}

#[test]
fn a_session_ends_by_the_time_in_it() {
    let with = |seconds: u64| proto::SessionPersistence {
        absolute_timeout_ms: 1000 * seconds,
        ..said(proto::SessionType::Cookie)
    };
    let at = |seconds| START + Duration::from_secs(seconds);
    let minute = sessions_of(&with(60), "cart", "");
    let value = sealed(&minute, AT, at(1000));
    for (now, is_alive) in [(1000, true), (1059, true), (1060, false), (900_000, false), (0, true)] {
        assert_eq!(open(&minute, value.as_bytes(), at(now)).is_some(), is_alive, "{now}");
    }
    // The policy of today decides, and not the one of then.
    let none = sessions_of(&with(0), "cart", "");
    assert_eq!(open(&none, value.as_bytes(), at(900_000)), Some(AT));
}

#[test]
fn hostile_values_are_none_and_cost_nothing_for_good() {
    let mut rng = SmallRng::seed_from_u64(7);
    for kind in [proto::SessionType::Cookie, proto::SessionType::Header] {
        let rules = sessions(kind);
        let name = if kind == proto::SessionType::Cookie {
            "cookie"
        } else {
            NAME
        };
        let good = sealed(&rules, AT, START);
        for _ in 0..10_000 {
            let mut value: Vec<u8> = match rng.random_range(0..4) {
                0 => (0..rng.random_range(0..200))
                    .map(|_| rng.random_range(32..127))
                    .collect(),
                1 => vec![b'A'; rng.random_range(0..60_000)],
                2 => good.clone().into_bytes(),
                _ => {
                    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
                    (0..TEXT).map(|_| *alphabet.choose(&mut rng).unwrap()).collect()
                }
            };
            if let Some(byte) = value.first_mut() {
                *byte = if *byte == b'B' { b'C' } else { b'B' };
            }
            let value = String::from_utf8(value).unwrap();
            let line = format!("{NAME}={value}");
            let line = if kind == proto::SessionType::Cookie {
                &line
            } else {
                &value
            };
            assert_eq!(read(&rules, &head(&[(name, line)]), START), None, "{line}");
        }
    }
}

fn session<'a>(rules: &'a Sessions, path: Option<&'a PathMatch>, at: Option<Reference>) -> Session<'a> {
    Session {
        rules,
        path,
        at,
        backend: AT.backend,
    }
}

#[test]
fn a_client_is_told_what_is_new_to_it() {
    let mut permanent = said(proto::SessionType::Cookie);
    permanent.absolute_timeout_ms = 90_500;
    let lasting = sessions_of(&permanent, "cart", "");
    permanent.permanent = true;
    let permanent = sessions_of(&permanent, "cart", "");
    let (cookie, header) = (
        sessions(proto::SessionType::Cookie),
        sessions(proto::SessionType::Header),
    );
    for (rules, name, end) in [
        (&cookie, "set-cookie", "; Path=/; HttpOnly; SameSite=Lax"),
        (&lasting, "set-cookie", "; Path=/; HttpOnly; SameSite=Lax"),
        (&permanent, "set-cookie", "; Path=/; HttpOnly; SameSite=Lax; Max-Age=91"),
        (&header, "s", ""),
    ] {
        let mut response = HeaderMap::new();
        session(rules, None, Some(AT)).answered(AT.endpoint, &mut response, START);
        assert!(response.is_empty());
        for at in [None, Some(Reference { endpoint: 3, ..AT })] {
            response.clear();
            // Whatever an app says of its own cookies stays.
            response.insert("set-cookie", HeaderValue::from_static("a=b"));
            session(rules, None, at).answered(AT.endpoint, &mut response, START);
            let line = response.get_all(name).iter().next_back().unwrap().to_str().unwrap();
            let value = line.strip_suffix(end).unwrap();
            let value = value.strip_prefix("s=").unwrap_or(value);
            assert_eq!(open(rules, value.as_bytes(), START), Some(AT));
            assert_eq!(response.get("set-cookie").unwrap(), "a=b");
        }
    }
}

#[test]
fn the_path_of_the_cookie_is_that_of_the_match() {
    let mut patterns = pattern::Budget::default();
    let mut regex = |text: &str| PathMatch::Regex(patterns.compile(text).unwrap());
    for (matched, path) in [
        (None, "/"),
        (Some(PathMatch::Prefix(String::new())), "/"),
        (Some(PathMatch::Prefix("/foo".into())), "/foo"),
        (Some(PathMatch::Exact("/foo/bar".into())), "/foo/bar"),
        (Some(PathMatch::Exact("/foo;Path=/".into())), "/"),
        (Some(PathMatch::Exact("/f oo".into())), "/"),
        (Some(PathMatch::Exact("/ü".into())), "/"),
        // The example of GEP-1619.
        (Some(regex("/p1/p2/.*/p3")), "/p1/p2"),
        (Some(regex("^/p1/p2/[a-z]+/p3$")), "/p1/p2"),
        (Some(regex("/p1/p2?")), "/p1"),
        (Some(regex("/p1/?x")), "/"),
        (Some(regex("/p1/p2/{2}")), "/p1"),
        (Some(regex("/a/b|/c/d")), "/"),
        (Some(regex("/p1/p2")), "/p1"),
        (Some(regex(r"/p1\.p2/p3")), "/"),
        (Some(regex(".*")), "/"),
    ] {
        assert_eq!(cookie_path(matched.as_ref()), path, "{matched:?}");
    }
}

fn pods(numbers: impl IntoIterator<Item = u8>) -> Vec<Arc<Endpoint>> {
    let endpoint = |n| Endpoint {
        address: ([10, 0, 0, n], 8080).into(),
        identity: None,
        zone: None,
        pod: Some(format!("cart-{n}").into()),
        remote: false,
    };
    numbers.into_iter().map(|n| Arc::new(endpoint(n))).collect()
}

/// Clients that send back what they were told, and a balancer.
struct Clients {
    rules: Arc<Sessions>,
    balancer: Balancer,
    rng: RefCell<SmallRng>,
    cookies: HashMap<usize, String>,
    now: Instant,
}

impl Clients {
    fn new(seed: u64) -> Self {
        Self {
            rules: sessions(proto::SessionType::Cookie),
            balancer: Balancer::default(),
            rng: RefCell::new(SmallRng::seed_from_u64(seed)),
            cookies: HashMap::new(),
            now: Instant::now(),
        }
    }

    fn update(&mut self, endpoints: &[Arc<Endpoint>]) {
        self.balancer.update(endpoints, None, self.now);
    }

    /// The pod that answers a client, and whether the client was told something new.
    fn ask(&mut self, client: usize) -> (Arc<str>, bool) {
        let cookie = self.cookies.get(&client).map(|value| format!("a=b; {NAME}={value}"));
        let lines: Vec<_> = cookie.iter().map(|line| ("cookie", line.as_str())).collect();
        let session = session(&self.rules, None, read(&self.rules, &head(&lines), START));
        let member = self.balancer.pick(&Pick {
            tried: &[],
            now: self.now,
            rng: &self.rng,
            rules: &NO_RULES,
            key: None,
            session: session.endpoint(),
            limit: None,
        });
        let member = member.unwrap();
        member.take(&NO_RULES, self.now).end(Answer::Good, self.now);
        let mut response = HeaderMap::new();
        session.answered(member.reference(), &mut response, START);
        let told = response.get(SET_COOKIE).map(|line| line.to_str().unwrap());
        let value = told.map(|line| line[NAME.len() + 1..][..TEXT].to_owned());
        self.cookies.extend(value.map(|value| (client, value)));
        (member.endpoint.pod.clone().unwrap(), told.is_some())
    }

    fn all(&mut self, count: usize) -> Vec<(Arc<str>, bool)> {
        (0..count).map(|client| self.ask(client)).collect()
    }
}

/// "Affinity that survives scaling from 3 to 10 and back."
#[test]
fn only_sessions_of_endpoints_that_go_are_moved() {
    for seed in 0..20 {
        let mut clients = Clients::new(seed);
        clients.update(&pods(0..3));
        let first = clients.all(300);
        assert!(first.iter().all(|(_, told)| *told));
        for numbers in [0..10, 0..3] {
            clients.update(&pods(numbers));
            let now = clients.all(300);
            for (before, now) in first.iter().zip(&now) {
                assert_eq!(*now, (before.0.clone(), false), "seed {seed}");
            }
        }
        // New ones go anywhere, and those move whose endpoint goes.
        clients.update(&pods(0..10));
        let all = clients.all(600);
        let mut of_pods: HashMap<&str, usize> = HashMap::new();
        for (pod, _) in &all[300..] {
            *of_pods.entry(pod).or_default() += 1;
        }
        assert_eq!(of_pods.len(), 10, "seed {seed}");
        let left: Vec<u8> = (0..10)
            .filter(|_| clients.rng.borrow_mut().random_range(0..3) > 0)
            .chain([0])
            .collect();
        clients.update(&pods(left.iter().copied()));
        let stays = |pod: &str| left.iter().any(|n| format!("cart-{n}") == pod);
        let after = clients.all(600);
        for ((before, _), (now, told)) in all.iter().zip(&after) {
            assert_eq!((before == now, !told), (stays(before), stays(before)), "seed {seed}");
            assert!(stays(now));
        }
        // From then on they stay where they are now.
        clients.update(&pods(0..10));
        let again = clients.all(600);
        for ((before, _), now) in after.iter().zip(&again) {
            assert_eq!(*now, (before.clone(), false), "seed {seed}");
        }
    }
}

/// A pod of a StatefulSet is the same one wherever it runs; another pod at an address is another one.
#[test]
fn an_endpoint_is_its_pod_and_its_port() {
    let mut clients = Clients::new(1);
    clients.update(&pods(0..3));
    let before = clients.all(30);
    let moved = |name: &dyn Fn(u8) -> String| -> Vec<Arc<Endpoint>> {
        let moved = pods(0..3).into_iter().zip(0..).map(|(endpoint, n)| Endpoint {
            address: ([10, 0, 1, n], 8080).into(),
            pod: Some(name(n).into()),
            ..(*endpoint).clone()
        });
        moved.map(Arc::new).collect()
    };
    clients.update(&moved(&|n| format!("cart-{n}")));
    let after = clients.all(30);
    assert!(
        before
            .iter()
            .zip(&after)
            .all(|((pod, _), now)| *now == (pod.clone(), false))
    );
    clients.update(&moved(&|n| format!("other-{n}")));
    assert!(clients.all(30).iter().all(|(_, told)| *told));
    let [first, second] = [8080, 8081].map(|port| {
        let pod = pods([1]).remove(0);
        of_endpoint(&Endpoint {
            address: (pod.address.ip(), port).into(),
            ..(*pod).clone()
        })
    });
    assert_ne!(first, second);
    // All sidecars agree on it.
    assert_eq!((first, of_service(&name())), NUMBERS);
}

fn name() -> ServiceName {
    ServiceName {
        namespace: "shop".into(),
        name: "cart".into(),
        port: 80,
    }
}

const NUMBERS: (u64, u64) = (0x47d6_7662_f6ad_f001, 0x9952_1367_bd3c_96b8);

/// It goes on where it went while the endpoint was left out.
#[test]
fn a_session_whose_endpoint_is_left_out_moves_and_stays_there() {
    let mut clients = Clients::new(3);
    clients.update(&pods(0..3));
    let (first, _) = clients.ask(0);
    let member = clients
        .balancer
        .members()
        .iter()
        .find(|m| m.endpoint.pod.as_ref() == Some(&first));
    let member = std::rc::Rc::clone(member.unwrap());
    member
        .take(&NO_RULES, clients.now)
        .end(Answer::Unreachable, clients.now);
    let (second, told) = clients.ask(0);
    assert!(second != first && told);
    clients.now += NO_RULES.ejection().max;
    for _ in 0..20 {
        assert_eq!(clients.ask(0), (second.clone(), false));
    }
}

#[test]
fn backends_are_kept_whatever_their_weights_are() {
    use crate::model::{RouteRules, from_proto};
    let backend = |name: &str| proto::Backend {
        r#ref: Some(proto::ServiceRef {
            namespace: "shop".into(),
            name: name.into(),
            port: 80,
        }),
        ..Default::default()
    };
    let weighted = |backend, weight| proto::WeightedBackend {
        backend,
        weight,
        filters: Vec::new(),
    };
    let service = |backends: Vec<proto::WeightedBackend>| {
        from_proto::service(&proto::Service {
            r#ref: backend("cart").r#ref,
            backends: ["cart", "v1", "v2"].map(backend).into(),
            routes: vec![proto::Route {
                name: "shop/cart/0".into(),
                backends,
                ..Default::default()
            }],
            policy: Some(proto::Policy {
                session_persistence: Some(said(proto::SessionType::Header)),
                ..Default::default()
            }),
            ..Default::default()
        })
    };
    let at = |service: &Service, name: usize| {
        let rules: &RouteRules = &service.routes[0].rules;
        let sessions = rules.request.sessions.as_deref().unwrap();
        let reference = Reference {
            backend: of_service(&service.backends[name].name),
            endpoint: 1,
        };
        let value = sealed(sessions, reference, START);
        let head = head(&[(NAME, &value)]);
        let chosen = route::choose(service, &head).unwrap();
        let session = Session::of(sessions, &chosen, &head, START);
        session.backend(service, &chosen).map(|(index, _)| index)
    };
    let split = service(vec![weighted(1, 0), weighted(2, 100)]);
    assert_eq!((at(&split, 1), at(&split, 2), at(&split, 0)), (Some(1), Some(2), None));
    let without = service(vec![weighted(2, 100)]);
    assert_eq!((at(&without, 1), at(&without, 2)), (None, Some(2)));
    // A backend that is not there any more, and a Service without routes.
    let gone = service(vec![weighted(u32::MAX, 1), weighted(2, 1)]);
    assert_eq!(at(&gone, 1), None);
}
