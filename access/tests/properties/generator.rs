//! Policies and requests of few words, so that they often meet.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue};
use outrigger_access::{Caller, Carries, Facts, Head, Tokens};
use outrigger_api::access as proto;
use outrigger_api::access::{condition, http_condition, identity, source};
use outrigger_api::discovery::{NamedMatch, StringMatch, string_match};
use outrigger_api::spiffe::SpiffeId;
use rand::Rng;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;

static NO_TOKENS: Tokens = Tokens::NONE;
pub(crate) const PORTS: [u16; 3] = [80, 8080, 9090];
const IDS: [&str; 4] = [
    "spiffe://cluster.local/ns/shop/sa/web",
    "spiffe://cluster.local/ns/shop/sa/web-2",
    "spiffe://cluster.local/ns/ops/sa/web",
    "spiffe://other.test/ns/shop/sa/web",
];
const PREFIXES: [&str; 4] = [
    "spiffe://cluster.local/",
    "spiffe://cluster.local/ns/shop/",
    "spiffe://cluster.local/ns/shop/sa/web", // faulty
    "spiffe://other.test/ns/",
];
const NAMESPACES: [&str; 3] = ["shop", "ops", "kube-system"];
const ADDRESSES: [&str; 4] = ["10.0.0.7", "::ffff:10.0.0.7", "10.1.0.1", "fd00::1"];
const NETWORKS: [&str; 7] = [
    "10.0.0.0/16",
    "10.0.0.7/32",
    "0.0.0.0/0",
    "fd00::/8",
    "::ffff:10.0.0.0/104",
    "::/0",
    "10.0.0.0/33", // faulty
];
const METHODS: [&str; 5] = ["GET", "POST", "get", "DELETE", "OPTIONS"];
/// Each is read in one way.
pub(crate) const PLAIN: [&str; 7] = ["/", "/a", "/a/b", "/ab", "/A", "/shop.v1.Orders/Place", "/b/a"];
const PATHS: [&str; 6] = ["/a%2Fb", "//a", "/b/../a", "/a;x", "*", ""];
const PATTERNS: [&str; 5] = ["/a.*", "/[ab]+", ".*", "/a", "("];
const NAMES: [&str; 3] = ["x-one", "X-Two", "host"];
const VALUES: [&str; 4] = ["1", "2", "1,2", ""];
const HOSTS: [&str; 6] = [
    "shop.test",
    "Shop.test.",
    "a.shop.test:80",
    "[fd00::1]:80",
    "10.0.0.1",
    "",
];
const HOST_MATCHES: [&str; 5] = ["shop.test", "*.shop.test", "fd00::1", "shop.test:80", "10.0.0.1"];

pub(crate) struct Generator<'a>(pub(crate) &'a mut SmallRng);

impl Generator<'_> {
    pub(crate) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        *of.choose(self.0).unwrap()
    }

    pub(crate) fn one_in(&mut self, n: u32) -> bool {
        self.0.random_ratio(1, n)
    }

    fn some<T>(&mut self, least: usize, most: usize, mut make: impl FnMut(&mut Self) -> T) -> Vec<T> {
        let count = self.0.random_range(least..=most);
        (0..count).map(|_| make(self)).collect()
    }

    /// A list that is empty once in a while.
    fn list<T>(&mut self, make: impl FnMut(&mut Self) -> T) -> Vec<T> {
        let least = usize::from(!self.one_in(20));
        self.some(least, 2, make)
    }

    pub(crate) fn access(&mut self) -> proto::Access {
        let mut access = proto::Access {
            enforced: self.some(0, 4, |g| g.policy()),
            audited: self.some(0, 1, |g| g.policy()),
        };
        for (n, policy) in access.enforced.iter_mut().chain(&mut access.audited).enumerate() {
            policy.name = format!("shop/{n}");
        }
        access
    }

    /// One policy, which is about the path alone.
    pub(crate) fn about_paths(&mut self) -> proto::Access {
        let paths = self.some(1, 2, |g| g.path_match());
        let kind = match self.one_in(6) {
            true => http_condition::Kind::Grpc(self.grpc()),
            false => http_condition::Kind::Paths(proto::Paths {
                any: paths,
                take_ambiguous: false,
            }),
        };
        let all = vec![proto::HttpCondition { kind: Some(kind) }];
        let any = vec![proto::HttpMatch { all }];
        let kind = Some(condition::Kind::Http(proto::HttpMatches { any }));
        let rule = proto::Rule {
            name: "0".to_owned(),
            conditions: vec![proto::Condition { kind }],
        };
        let deny = self.one_in(2);
        let policy = proto::Policy {
            name: "shop/paths".to_owned(),
            deny,
            exclusive: !deny,
            rules: vec![rule],
            ..proto::Policy::default()
        };
        proto::Access {
            enforced: vec![policy],
            audited: Vec::new(),
        }
    }

    fn grpc(&mut self) -> proto::GrpcMethod {
        proto::GrpcMethod {
            service: self.pick(&["shop.v1.Orders", "shop.v1.Other", ""]).to_owned(),
            method: self.pick(&["Place", "Other", ""]).to_owned(),
        }
    }

    pub(crate) fn policy(&mut self) -> proto::Policy {
        let deny = self.one_in(3);
        proto::Policy {
            name: "shop/one".to_owned(),
            deny,
            exclusive: !self.one_in(3),
            ports: self.one_in(2).then(|| self.ports()),
            rules: self.some(0, 3, |g| g.rule()),
            providers: Vec::new(),
        }
    }

    fn ports(&mut self) -> proto::Ports {
        proto::Ports {
            numbers: self.some(0, 2, |g| u32::from(g.pick(&PORTS))),
        }
    }

    pub(crate) fn rule(&mut self) -> proto::Rule {
        proto::Rule {
            name: "0".to_owned(),
            conditions: self.list(|g| g.condition()),
        }
    }

    pub(crate) fn condition(&mut self) -> proto::Condition {
        let kind = match self.0.random_range(0..8) {
            0..3 => condition::Kind::Sources(proto::Sources {
                any: self.list(|g| g.source()),
            }),
            3 => condition::Kind::Ports(self.ports()),
            _ => condition::Kind::Http(proto::HttpMatches {
                any: self.list(|g| proto::HttpMatch {
                    all: g.list(|g| g.http()),
                }),
            }),
        };
        let kind = (!self.one_in(20)).then_some(kind);
        proto::Condition { kind }
    }

    fn source(&mut self) -> proto::Source {
        let id = |kind| source::Kind::Identity(proto::Identity { kind: Some(kind) });
        let kind = match self.0.random_range(0..8) {
            0 => source::Kind::Any(proto::Anybody {}),
            1 => source::Kind::Unauthenticated(proto::Unauthenticated {}),
            2 | 3 => id(identity::Kind::Exact(self.pick(&IDS).to_owned())),
            4 => id(identity::Kind::Prefix(self.pick(&PREFIXES).to_owned())),
            5 => source::Kind::Namespaces(proto::Namespaces {
                trust_domain: self
                    .pick(&["cluster.local", "cluster.local", "other.test", ""])
                    .to_owned(),
                names: self.some(0, 2, |g| g.pick(&NAMESPACES).to_owned()),
            }),
            _ => source::Kind::Networks(proto::Networks {
                cidrs: self.list(|g| g.pick(&NETWORKS).to_owned()),
                except: self.some(0, 1, |g| g.pick(&NETWORKS).to_owned()),
            }),
        };
        let kind = (!self.one_in(20)).then_some(kind);
        proto::Source { kind }
    }

    fn http(&mut self) -> proto::HttpCondition {
        let kind = match self.0.random_range(0..9) {
            0 => http_condition::Kind::Methods(proto::Methods {
                any: self.list(|g| g.pick(&METHODS).to_owned()),
            }),
            1..5 => http_condition::Kind::Paths(proto::Paths {
                any: self.list(|g| g.path_match()),
                take_ambiguous: false,
            }),
            5 => http_condition::Kind::Header(NamedMatch {
                name: self.pick(&NAMES).to_owned(),
                value: Some(StringMatch {
                    kind: Some(match self.one_in(8) {
                        false => string_match::Kind::Exact(self.pick(&VALUES).to_owned()),
                        true => string_match::Kind::Regex(self.pick(&["1.*", "[12]", "("]).to_owned()),
                    }),
                }),
            }),
            6 | 7 => http_condition::Kind::Hosts(proto::Hosts {
                any: self.list(|g| g.pick(&HOST_MATCHES).to_owned()),
            }),
            _ => http_condition::Kind::Grpc(self.grpc()),
        };
        let kind = (!self.one_in(20)).then_some(kind);
        proto::HttpCondition { kind }
    }

    fn path_match(&mut self) -> StringMatch {
        // Patterns are slow to compile.
        let kind = match self.0.random_range(0..16) {
            0..5 => string_match::Kind::Exact(self.pick(&PLAIN).to_owned()),
            5..7 => string_match::Kind::Exact(self.pick(&PATHS).to_owned()),
            7..15 => string_match::Kind::PathPrefix(self.pick(&PLAIN).to_owned()),
            _ => string_match::Kind::Regex(self.pick(&PATTERNS).to_owned()),
        };
        let kind = (!self.one_in(20)).then_some(kind);
        StringMatch { kind }
    }

    pub(crate) fn request(&mut self) -> Request {
        let mut headers = HeaderMap::new();
        for name in ["x-one", "x-two"] {
            for value in self.some(0, 2, |g| g.pick(&VALUES)) {
                headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
            }
        }
        if self.one_in(2) {
            let grpc = self.pick(&["application/grpc", "application/grpc+proto", "application/json"]);
            headers.append(http::header::CONTENT_TYPE, HeaderValue::from_static(grpc));
        }
        let identity = (!self.one_in(4)).then(|| self.pick(&IDS).parse().unwrap());
        let address = (!self.one_in(8)).then(|| self.pick(&ADDRESSES).parse().unwrap());
        Request {
            port: self.pick(&PORTS),
            identity,
            address,
            is_bytes: self.one_in(6),
            method: self.pick(&METHODS).to_owned(),
            path: match self.one_in(3) {
                true => self.pick(&PATHS),
                false => self.pick(&PLAIN),
            }
            .to_owned(),
            host: self.pick(&HOSTS).to_owned(),
            headers,
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) port: u16,
    identity: Option<SpiffeId>,
    address: Option<IpAddr>,
    is_bytes: bool,
    method: String,
    pub(crate) path: String,
    host: String,
    headers: HeaderMap,
}

impl Request {
    /// The same caller, who sends bytes.
    pub(crate) fn as_bytes(&self) -> Self {
        Self {
            is_bytes: true,
            ..self.clone()
        }
    }

    /// The same with another path.
    pub(crate) fn at(&self, path: &str) -> Self {
        Self {
            is_bytes: false,
            path: path.to_owned(),
            ..self.clone()
        }
    }

    pub(crate) fn facts(&self) -> Facts<'_> {
        Facts {
            port: self.port,
            caller: Caller {
                identity: self.identity.as_ref(),
                address: self.address,
            },
            carries: match self.is_bytes {
                true => Carries::Bytes,
                false => Carries::Http(Head {
                    method: &self.method,
                    path: &self.path,
                    host: &self.host,
                    headers: &self.headers,
                    tokens: &NO_TOKENS,
                }),
            },
        }
    }
}
