//! The pieces of the request path, and how often each may allocate: `benches/pieces.rs` measures them,
//! `tests/allocations.rs` holds them to the number.

use std::cell::RefCell;
use std::fmt;
use std::hint::black_box;
use std::rc::Rc;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri};
use outrigger_access::{Access, Caller, Carries, Facts, Head, Tokens};
use outrigger_api::access::{self, condition, http_condition, identity, source};
use outrigger_api::discovery as proto;
use outrigger_api::discovery::string_match::Kind;
use outrigger_api::spiffe::SpiffeId;
use outrigger_proxy::call::{Call, Callee, Remote};
use outrigger_proxy::dns::Resolver;
use outrigger_proxy::model::from_proto;
use outrigger_proxy::model::{Balancing, Endpoints, Service};
use outrigger_proxy::outbound::balance::{Balancer, Pick};
use outrigger_proxy::outbound::health::Answer;
use outrigger_proxy::outbound::route;
use outrigger_proxy::telemetry::{
    Direction, NotSampled, Peer, RequestEnd, RequestInfo, ServiceMetrics, Settings, Status, Telemetry, TracingConfig,
    TracingProtocol, request_id,
};
use outrigger_proxy_transport::authority;
use outrigger_proxy_transport::drain::Activity;
use outrigger_proxy_transport::headers::strip_hop_by_hop;
use outrigger_proxy_transport::server::Scanner;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::time::Instant;

/// One piece.
pub struct Piece {
    name: &'static str,
    /// In the steady state; a reallocation is one too.
    pub allocations: usize,
    /// Makes all that it works on, and gives what is measured. That is called once: most pieces change what they work on.
    pub prepare: fn() -> Work,
}

/// See [`Piece::prepare`].
pub type Work = Box<dyn FnMut()>;

impl fmt::Display for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

const HEAD: &str = "GET /orders/17?full=1 HTTP/1.1\r\nHost: orders.shop.svc.cluster.local\r\n\
    User-Agent: shop/1.4\r\nAccept: application/json\r\nAccept-Encoding: gzip\r\nX-Version: 2\r\n\
    X-Request-Id: 4c1a3f4e-8f0b-4b52-9d3e-6a8a1c1f2b77\r\n\
    Traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00\r\n\r\n";
const B3: &str = "GET /orders/17 HTTP/1.1\r\nHost: orders\r\nX-B3-TraceId: 4bf92f3577b34da6a3ce929d0e0e4736\r\n\
    X-B3-SpanId: 00f067aa0ba902b7\r\nX-B3-Sampled: 1\r\n\r\n";
const ABSOLUTE: &str = "GET http://orders/17 HTTP/1.1\r\nHost: orders\r\n\r\n";
const HOPS: &str =
    "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, X-Hop\r\nKeep-Alive: max=5\r\nX-Hop: 1\r\n\r\n";

/// All of them, in the order of a request.
pub const PIECES: &[Piece] = &[
    piece("guard: scan", 0, || {
        on(HEAD, |_| Scanner::default().scan(black_box(HEAD.as_bytes())))
    }),
    piece("authority: of an absolute target", 0, || {
        let mut request = Request::from_parts(head(ABSOLUTE), ());
        call(move || authority::settle(&mut request))
    }),
    piece("authority: of HTTP/2", 0, || {
        let mut request = Request::from_parts(head(ABSOLUTE), ());
        *request.version_mut() = http::Version::HTTP_2;
        request.headers_mut().remove(http::header::HOST);
        call(move || authority::settle(&mut request))
    }),
    piece("call: begin", 1, || begin(HEAD)),
    piece("call: begin, new IDs", 3, || begin(ABSOLUTE)),
    piece("route: the tenth", 0, || {
        on(HEAD, |r| route::choose(&SERVICE, r).is_ok())
    }),
    piece("access: the twentieth rule", 0, || {
        on(HEAD, |r| decide(r, "/orders/17"))
    }),
    piece("access: an encoded path", 6, || {
        on(HEAD, |r| decide(r, "/orders/caf%C3%A9"))
    }),
    piece("hop-by-hop: none", 0, || {
        on(HEAD, |r| strip_hop_by_hop(&mut r.headers, false))
    }),
    piece("hop-by-hop: three", 3, || {
        on(HOPS, |r| strip_hop_by_hop(&mut r.headers, false))
    }),
    piece("balance: pick, take, learn", 0, pick),
    piece("attempt: copy of the head", 7, || on(HEAD, |r| r.clone())),
    piece("trace: parse W3C", 0, || parse(HEAD)),
    piece("trace: parse B3", 0, || parse(B3)),
    piece("trace: none, of a request ID", 0, || parse(ABSOLUTE)),
    piece("trace: write W3C", 1, || inject(HEAD)),
    piece("trace: write W3C and B3", 6, || inject(B3)),
    piece("span: not sampled", 0, || span(HEAD)),
    piece("span: sampled, dropped", 4, || span(B3)),
    piece("metrics: outbound", 0, || end(Direction::Outbound)),
    piece("metrics: inbound", 0, || end(Direction::Inbound)),
];

const fn piece(name: &'static str, allocations: usize, prepare: fn() -> Work) -> Piece {
    Piece {
        name,
        allocations,
        prepare,
    }
}

fn call<O>(mut work: impl FnMut() -> O + 'static) -> Work {
    Box::new(move || _ = black_box(work()))
}

fn on<O>(text: &str, mut work: impl FnMut(&mut Parts) -> O + 'static) -> Work {
    let mut head = head(text);
    call(move || work(black_box(&mut head)))
}

/// As hyper makes it: what comes from the client are parts of the one buffer that was read.
fn head(text: &str) -> Parts {
    let bytes = Bytes::copy_from_slice(text.as_bytes());
    let mut lines = bytes
        .split(|&b| b == b'\n')
        .map(|line| bytes.slice_ref(line.trim_ascii_end()));
    let first = lines.next().expect("a first line");
    let target = first.split(|&b| b == b' ').nth(1).expect("a target");
    let mut request = Request::get(Uri::from_maybe_shared(bytes.slice_ref(target)).expect("a URI"));
    // The case of the names, which hyper keeps so that it can write them again.
    let mut cases = HeaderMap::<Bytes>::default();
    for line in lines {
        if let Some(colon) = line.iter().position(|&b| b == b':') {
            let name = HeaderName::from_bytes(&line[..colon]).expect("a name");
            cases.append(&name, line.slice(..colon));
            request = request.header(
                name,
                HeaderValue::from_maybe_shared(line.slice(colon + 2..)).expect("a value"),
            );
        }
    }
    request.extension(cases).body(()).expect("a request").into_parts().0
}

fn outbound_call(head: &mut Parts, activity: &Rc<Activity>) -> Call {
    let callee = Callee::Service(&SERVICE.name, &METRICS);
    Call::begin(&TELEMETRY, callee, head, Rc::default(), activity.begin())
}

fn begin(text: &str) -> Work {
    let activity = Rc::default();
    let mut begun = None;
    // It ends with what is prepared: that is not measured.
    on(text, move |head| _ = begun.insert(outbound_call(head, &activity)))
}

fn pick() -> Work {
    thread_local! {
        static SHARED: Rc<(Balancer, RefCell<SmallRng>)> = Rc::new((balancer(), SmallRng::seed_from_u64(1).into()));
    }
    let (shared, now) = (SHARED.with(Rc::clone), Instant::now());
    call(move || {
        let (balancer, rng) = &*shared;
        let picked = balancer.pick(&Pick {
            tried: &[],
            now,
            rng,
            rules: &Balancing::NONE,
            key: None,
            session: None,
            limit: None,
        });
        let mut in_hand = picked.expect("an endpoint").take(&Balancing::NONE, now);
        in_hand.end(Answer::Good, now + Duration::from_millis(1));
    })
}

/// Of a request that came with an ID.
fn parse(text: &str) -> Work {
    let id = HeaderValue::from_static("4c1a3f4e-8f0b-4b52-9d3e-6a8a1c1f2b77");
    on(text, move |r| TELEMETRY.context(&r.headers, &id))
}

fn inject(text: &str) -> Work {
    let mut first = head(text);
    let id = request_id(&mut first);
    let context = TELEMETRY.context(&first.headers, &id);
    on(text, move |r| context.inject(TELEMETRY.start_span().id, &mut r.headers))
}

fn span(text: &str) -> Work {
    struct Nobody;
    impl Remote for Nobody {
        fn peer(&self) -> Peer<'_> {
            Peer::default()
        }
    }
    let mut of = outbound_call(&mut head(text), &Rc::default());
    let nobody: Rc<dyn Remote> = Rc::new(Nobody);
    call(move || {
        of.attempt(Rc::clone(&nobody));
        of.end_attempt(Status::default());
    })
}

fn end(direction: Direction) -> Work {
    let mut head = head(HEAD);
    let id = request_id(&mut head);
    let context = TELEMETRY.context(&head.headers, &id);
    let (service, metrics) = match direction {
        Direction::Outbound => (Some(SERVICE.name.clone()), Arc::clone(&METRICS)),
        Direction::Inbound => (None, TELEMETRY.metrics().port(80)),
    };
    let request = RequestInfo::new(direction, service, 80, id, context, &head);
    call(move || {
        TELEMETRY.request_ended(&RequestEnd {
            request: &request,
            metrics: &metrics,
            peer: Peer::default(),
            status: Status {
                http: Some(200),
                ..Status::default()
            },
            duration: Duration::from_millis(1),
            retries: 0,
            request_bytes: 0,
            response_bytes: 1024,
        });
    })
}

static METRICS: LazyLock<Arc<ServiceMetrics>> = LazyLock::new(|| TELEMETRY.metrics().service(Some(&SERVICE.name)));

/// As by default, with a collector. Its runtime is gone: nothing runs beside what is measured, and spans are dropped.
static TELEMETRY: LazyLock<Telemetry> = LazyLock::new(|| {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    let _inside = runtime.enter();
    let resolver = Resolver::start(Some(&[([127, 0, 0, 1], 53).into()])).expect("a resolver");
    let tracing = TracingConfig {
        endpoint: Uri::from_static("http://127.0.0.1:4317"),
        ca_certificates: Vec::new(),
        protocol: TracingProtocol::Grpc,
        sample_ratio: 1.0,
        not_sampled: NotSampled::Omit,
    };
    let settings = Settings {
        tracing: Some(tracing),
        ..Settings::default()
    };
    Telemetry::start(&settings, &resolver).expect("telemetry")
});

/// Two policies of ten rules, each with a caller, a method and a path, and a Deny policy about a path. The last rule lets the caller in.
static ACCESS: LazyLock<Access> = LazyLock::new(|| {
    let http = |all: Vec<http_condition::Kind>| {
        let all = all.into_iter().map(|kind| access::HttpCondition { kind: Some(kind) });
        let any = vec![access::HttpMatch { all: all.collect() }];
        condition::Kind::Http(access::HttpMatches { any })
    };
    let below = |prefix: &str| {
        let kind = Some(Kind::PathPrefix(prefix.into()));
        http_condition::Kind::Paths(access::Paths {
            any: vec![proto::StringMatch { kind }],
            take_ambiguous: false,
        })
    };
    let get = || {
        http_condition::Kind::Methods(access::Methods {
            any: vec!["GET".into()],
        })
    };
    let by = |account: &str| {
        let id = identity::Kind::Exact(format!("spiffe://cluster.local/ns/shop/sa/{account}"));
        let kind = source::Kind::Identity(access::Identity { kind: Some(id) });
        let any = vec![access::Source { kind: Some(kind) }];
        condition::Kind::Sources(access::Sources { any })
    };
    let rule = |conditions: [condition::Kind; 2]| access::Rule {
        name: "0".into(),
        conditions: conditions.map(|kind| access::Condition { kind: Some(kind) }).into(),
    };
    let policy = |name: &str, deny, rules| access::Policy {
        name: name.into(),
        deny,
        exclusive: !deny,
        rules,
        ..access::Policy::default()
    };
    let other = |i: usize| match i % 2 {
        0 => rule([by("web"), http(vec![get(), below(&format!("/other-{i}"))])]),
        _ => rule([by(&format!("other-{i}")), http(vec![get(), below("/orders")])]),
    };
    let mut last: Vec<access::Rule> = (10..19).map(other).collect();
    last.push(rule([by("web"), http(vec![get(), below("/orders")])]));
    Access::new(&access::Access {
        enforced: vec![
            policy("shop/a", false, (0..10).map(other).collect()),
            policy("shop/b", false, last),
            policy(
                "shop/c",
                true,
                vec![rule([by("web"), http(vec![below("/orders/admin")])])],
            ),
        ],
        audited: Vec::new(),
    })
});

static WEB: LazyLock<SpiffeId> = LazyLock::new(|| SpiffeId::new("cluster.local", "shop", "web").expect("a SPIFFE ID"));

fn decide(head: &Parts, path: &str) -> bool {
    let facts = Facts {
        port: 8080,
        caller: Caller {
            identity: Some(&WEB),
            address: Some([10, 0, 0, 7].into()),
        },
        carries: Carries::Http(Head {
            method: head.method.as_str(),
            path,
            host: authority::of(head),
            headers: &head.headers,
            tokens: &Tokens::NONE,
        }),
    };
    let decision = ACCESS.decide(&facts);
    assert!(decision.verdict.is_allowed());
    decision.verdict.is_allowed()
}

/// With ten routes, each by prefix, header and parameter; the last is the one for `/orders`. And ten endpoints.
static SERVICE: LazyLock<Service> = LazyLock::new(|| {
    let value = |kind| Some(proto::StringMatch { kind: Some(kind) });
    let named = |name: &str, exact: &str| proto::NamedMatch {
        name: name.into(),
        value: value(Kind::Exact(exact.into())),
    };
    let wanted = |prefix| proto::Match {
        path: value(Kind::PathPrefix(prefix)),
        method: "GET".into(),
        headers: vec![named("x-version", "2")],
        query: vec![named("full", "1")],
    };
    let route = |prefix| proto::Route {
        matches: vec![wanted(prefix)],
        ..proto::Route::default()
    };
    let endpoint = |n| proto::Endpoint {
        address: format!("10.0.0.{n}:8080"),
        ..proto::Endpoint::default()
    };
    let endpoints = (1..=10).map(endpoint).collect();
    from_proto::service(&proto::Service {
        routes: (1..10)
            .map(|i| format!("/other-{i}"))
            .chain(["/orders".into()])
            .map(route)
            .collect(),
        backends: vec![proto::Backend {
            kind: Some(proto::backend::Kind::Endpoints(proto::Endpoints { endpoints })),
            ..proto::Backend::default()
        }],
        ..proto::Service::default()
    })
});

fn balancer() -> Balancer {
    let mut balancer = Balancer::default();
    if let Endpoints::Known(endpoints) = &SERVICE.backends[0].endpoints {
        balancer.update(endpoints, None, Instant::now());
    }
    balancer
}
