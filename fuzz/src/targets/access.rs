//! Who may call, against a second and slower reading of access.proto: with three values, and none of them put in its place before
//! the end.

use std::collections::BTreeSet;
use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue};
use outrigger_access::path::RequestPath;
use outrigger_access::{Access, Caller, Carries, Facts, Head, Tokens, Verdict};
use outrigger_api::access as proto;
use outrigger_api::access::{condition, http_condition, identity, source};
use outrigger_api::discovery::{StringMatch, string_match};
use outrigger_api::pattern::Budget;
use outrigger_api::spiffe::SpiffeId;
use prost::Message;

use crate::Input;

const PORTS: [u16; 3] = [80, 8080, 0];
const IDS: [&str; 4] = [
    "",
    "spiffe://cluster.local/ns/shop/sa/web",
    "spiffe://cluster.local/ns/shop/sa/web-2",
    "spiffe://other.test/ns/ops/sa/web",
];
const ADDRESSES: [&str; 5] = ["", "10.0.0.7", "::ffff:10.0.0.7", "10.1.0.1", "fd00::1"];
const METHODS: [&str; 4] = ["GET", "POST", "get", "CONNECT"];
const PATHS: [&str; 12] = [
    "/",
    "/a",
    "/a/",
    "/a/b",
    "/A",
    "/a%2Fb",
    "//a",
    "/b/../a",
    "/a;x",
    "*",
    "",
    "/shop.v1.Orders/Place",
];
const HOSTS: [&str; 6] = [
    "shop.test",
    "Shop.test.:80",
    "a.shop.test",
    "[fd00::1]:80",
    "10.0.0.1",
    "",
];
const VALUES: [&str; 5] = ["1", "2", "1, 2", "", "application/grpc"];
const NAMES: [&str; 3] = ["x-one", "x-two", "content-type"];
/// As many as one budget surely has room for.
const MAX_PATTERNS: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Truth {
    False,
    Unknown,
    True,
}

use Truth::{False, True, Unknown};

/// Choices for a request, and an Access.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let port = input.pick(&PORTS);
    let identity: Option<SpiffeId> = input.pick(&IDS).parse().ok();
    let address: Option<IpAddr> = input.pick(&ADDRESSES).parse().ok();
    let is_bytes = input.below(4) == 0;
    let (method, path, host) = (input.pick(&METHODS), input.pick(&PATHS), input.pick(&HOSTS));
    let mut headers = HeaderMap::new();
    for (name, value) in input.some(4, |i| (i.pick(&NAMES), i.pick(&VALUES))) {
        headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    let facts = Facts {
        port,
        caller: Caller {
            identity: identity.as_ref(),
            address,
        },
        carries: match is_bytes {
            true => Carries::Bytes,
            false => Carries::Http(Head {
                method,
                path,
                host,
                headers: &headers,
                tokens: &Tokens::NONE,
            }),
        },
    };
    if let Ok(message) = proto::Access::decode(input.rest()) {
        decide(&message, &facts);
    }
}

fn decide(message: &proto::Access, facts: &Facts<'_>) {
    let access = Access::new(message);
    let decision = access.decide(facts);
    assert_eq!(decision, access.decide(facts), "twice");
    let selected = |policy: &&proto::Policy| selects(policy, facts.port);
    let any = message
        .enforced
        .iter()
        .chain(&message.audited)
        .any(|policy| selected(&policy));
    assert_eq!(access.selects(facts.port), any);
    let is_named_once = |policies: &[proto::Policy]| {
        let names: BTreeSet<&str> = policies.iter().map(|policy| policy.name.as_str()).collect();
        names.len() == policies.len()
    };
    if patterns(message) > MAX_PATTERNS || !is_named_once(&message.enforced) || !is_named_once(&message.audited) {
        return;
    }

    let enforced: Vec<&proto::Policy> = message.enforced.iter().filter(selected).collect();
    let matching = |deny: bool| -> Vec<(&str, &str)> {
        let policies = enforced.iter().filter(|policy| policy.deny == deny);
        policies.flat_map(|policy| rules(policy, facts)).collect()
    };
    let (denying, allowing) = (matching(true), matching(false));
    let is_exclusive = |policy: &&&proto::Policy| !policy.deny && policy.exclusive;
    let exclusive: Vec<&str> = enforced
        .iter()
        .filter(is_exclusive)
        .map(|policy| policy.name.as_str())
        .collect();
    match decision.verdict {
        Verdict::Denied(by) => assert!(denying.contains(&(by.policy, by.rule)), "{message:#?}"),
        _ => assert!(denying.is_empty(), "{denying:?} {message:#?}"),
    }
    match decision.verdict {
        Verdict::Allowed(Some(by)) => assert!(allowing.contains(&(by.policy, by.rule)), "{message:#?}"),
        Verdict::Allowed(None) => assert!(allowing.is_empty() && exclusive.is_empty(), "{message:#?}"),
        Verdict::Refused { exclusive: by, .. } => {
            assert!(allowing.is_empty() && exclusive.contains(&by), "{message:#?}");
        }
        Verdict::Denied(_) => {}
        Verdict::InvalidToken { .. } => panic!("there is none"),
    }
    let refuses = |policy: &&proto::Policy| match policy.deny {
        true => !rules(policy, facts).is_empty(),
        false => policy.exclusive && allowing.is_empty() && rules(policy, facts).is_empty(),
    };
    let audited = message.audited.iter().filter(selected).filter(refuses);
    let mut audited: Vec<&str> = audited.map(|policy| policy.name.as_str()).collect();
    if !decision.verdict.is_allowed() {
        audited.clear();
    }
    let mut found: Vec<&str> = decision.audit.iter().map(|audited| audited.policy).collect();
    audited.sort_unstable();
    found.sort_unstable();
    assert_eq!(found, audited, "{message:#?}");
}

fn selects(policy: &proto::Policy, port: u16) -> bool {
    policy
        .ports
        .as_ref()
        .is_none_or(|ports| ports.numbers.contains(&u32::from(port)))
}

/// The rules of a policy that are met.
fn rules<'a>(policy: &'a proto::Policy, facts: &Facts<'_>) -> Vec<(&'a str, &'a str)> {
    let least = if policy.deny { Unknown } else { True };
    let is_met = |rule: &&proto::Rule| all(&rule.conditions, |one| condition(one, facts, policy)) >= least;
    let met = policy.rules.iter().filter(is_met);
    met.map(|rule| (policy.name.as_str(), rule.name.as_str())).collect()
}

fn all<T>(conditions: &[T], judge: impl Fn(&T) -> Truth) -> Truth {
    conditions.iter().map(judge).min().unwrap_or(Unknown)
}

fn any<T>(alternatives: &[T], judge: impl Fn(&T) -> Truth) -> Truth {
    alternatives.iter().map(judge).max().unwrap_or(Unknown)
}

fn truth(met: bool) -> Truth {
    if met { True } else { False }
}

fn condition(condition: &proto::Condition, facts: &Facts<'_>, policy: &proto::Policy) -> Truth {
    match &condition.kind {
        None => Unknown,
        Some(condition::Kind::Ports(ports)) => truth(ports.numbers.contains(&u32::from(facts.port))),
        Some(condition::Kind::Sources(sources)) => any(&sources.any, |one| source(one, facts, policy)),
        Some(condition::Kind::Http(http)) => any(&http.any, |one| {
            all(&one.all, |one| match &facts.carries {
                Carries::Bytes => Unknown,
                Carries::Http(head) => of_request(one, head, policy.deny),
            })
        }),
    }
}

fn source(source: &proto::Source, facts: &Facts<'_>, policy: &proto::Policy) -> Truth {
    let id = facts.caller.identity;
    let is_id = |text: &str| {
        let parts: Vec<&str> = text.splitn(4, '/').collect();
        matches!(parts[..], ["spiffe:", "", domain, _] if !domain.is_empty())
    };
    match &source.kind {
        None => Unknown,
        // No request has one here.
        Some(source::Kind::Jwt(token)) => {
            let is_known = policy.providers.iter().any(|provider| provider.name == token.provider);
            let mut claims = token.claims.iter();
            let is_faulty = !token.claims.is_empty() && claims.all(|claim| claim.values.is_empty());
            // Another policy's are none of its own.
            match (&facts.carries, is_known && !is_faulty && token.policy.is_empty()) {
                (Carries::Http(_), true) => False,
                _ => Unknown,
            }
        }
        Some(source::Kind::Any(_)) => True,
        Some(source::Kind::Unauthenticated(_)) => truth(id.is_none()),
        Some(source::Kind::Identity(one)) => match &one.kind {
            Some(identity::Kind::Exact(exact)) if is_id(exact) => truth(id.is_some_and(|id| id.as_str() == exact)),
            Some(identity::Kind::Prefix(prefix)) if is_id(prefix) && prefix.ends_with('/') => {
                truth(id.is_some_and(|id| id.as_str().starts_with(prefix)))
            }
            _ => Unknown,
        },
        Some(source::Kind::Namespaces(namespaces)) if namespaces.trust_domain.is_empty() => Unknown,
        Some(source::Kind::Namespaces(namespaces)) => truth(id.is_some_and(|id| {
            let named = namespaces.names.iter().any(|name| name == id.namespace());
            named && id.trust_domain() == namespaces.trust_domain
        })),
        Some(source::Kind::Networks(networks)) => {
            let within = any(&networks.cidrs, |cidr| in_network(facts.caller.address, cidr));
            let excepted = networks
                .except
                .iter()
                .map(|cidr| in_network(facts.caller.address, cidr))
                .max();
            let not_excepted = match excepted.unwrap_or(False) {
                False => True,
                Unknown => Unknown,
                True => False,
            };
            within.min(not_excepted)
        }
    }
}

/// By bits.
fn in_network(address: Option<IpAddr>, cidr: &str) -> Truth {
    let bits = |address: IpAddr| match address.to_canonical() {
        IpAddr::V4(v4) => (4, u128::from(u32::from(v4)) << 96),
        IpAddr::V6(v6) => (6, u128::from(v6)),
    };
    let network = || {
        let (network, length) = cidr.split_once('/')?;
        let (network, length): (IpAddr, u32) = (network.parse().ok()?, length.parse().ok()?);
        let most = if network.is_ipv4() { 32 } else { 128 };
        let mapped = network.is_ipv6() && network.to_canonical().is_ipv4();
        let (family, wanted) = match (mapped, length.checked_sub(96)) {
            // What is wider than all of IPv4 is of IPv6.
            (true, None) => match network {
                IpAddr::V6(v6) => (6, u128::from(v6)),
                IpAddr::V4(_) => return None,
            },
            _ => bits(network),
        };
        let given = length;
        let length = if mapped {
            length.checked_sub(96).unwrap_or(length)
        } else {
            length
        };
        (given <= most).then_some((family, wanted, length))
    };
    let Some((family, wanted, length)) = network() else {
        return Unknown;
    };
    let Some((own, address)) = address.map(bits) else {
        return Unknown;
    };
    let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
    truth(own == family && address & mask == wanted & mask)
}

fn of_request(condition: &proto::HttpCondition, head: &Head<'_>, deny: bool) -> Truth {
    match &condition.kind {
        None => Unknown,
        Some(http_condition::Kind::Methods(methods)) => any(&methods.any, |method| match (method.is_empty(), deny) {
            (true, _) => Unknown,
            (_, false) => truth(method == head.method),
            (_, true) => truth(method.eq_ignore_ascii_case(head.method)),
        }),
        Some(http_condition::Kind::Paths(paths)) => {
            any(&paths.any, |path| of_path(path, paths.take_ambiguous, head, deny))
        }
        Some(http_condition::Kind::Header(header)) => of_header(&header.name, header.value.as_ref(), head, deny),
        Some(http_condition::Kind::Hosts(hosts)) => any(&hosts.any, |host| of_host(host, head.host)),
        Some(http_condition::Kind::Grpc(grpc)) => of_grpc(grpc, head, deny),
    }
}

fn pattern(text: &str, value: &[u8]) -> Truth {
    let compiled = Budget::default().compile(text);
    compiled.map_or(Unknown, |pattern| truth(pattern.is_match(value)))
}

fn of_path(wanted: &StringMatch, take_ambiguous: bool, head: &Head<'_>, deny: bool) -> Truth {
    let Some(kind) = &wanted.kind else {
        return Unknown;
    };
    let (text, is_prefix) = match kind {
        string_match::Kind::Exact(text) => (text, false),
        string_match::Kind::PathPrefix(text) => (text, true),
        string_match::Kind::Regex(regex) if pattern(regex, b"") == Unknown => return Unknown,
        string_match::Kind::Regex(regex) => {
            let path = RequestPath::new(head.path);
            let is = |value: &[u8]| pattern(regex, value) == True;
            return truth(match (deny, take_ambiguous) {
                (_, true) => is(path.normal().as_bytes()),
                (true, false) => path.may_be(is),
                (false, false) => !path.is_ambiguous() && is(path.normal().as_bytes()),
            });
        }
    };
    if !text.starts_with('/') || text.contains(['?', '#']) {
        return Unknown;
    }
    let of_rule = RequestPath::new(text);
    let path = RequestPath::new(head.path);
    let is = |wanted: &str, value: &str| {
        let bare = |text: &str| text.trim_end_matches('/').to_owned();
        let below = |wanted: &str, value: &str| value == wanted || value.starts_with(&format!("{wanted}/"));
        match (is_prefix, deny) {
            (true, false) => below(&bare(wanted), value),
            (true, true) => below(&bare(wanted).to_ascii_lowercase(), &value.to_ascii_lowercase()),
            (false, false) => wanted == value,
            (false, true) => bare(&wanted.to_ascii_lowercase()) == bare(&value.to_ascii_lowercase()),
        }
    };
    let everything = is_prefix && of_rule.normal().trim_end_matches('/').is_empty();
    truth(match (deny, take_ambiguous) {
        (_, true) => is(of_rule.normal(), path.normal()),
        (true, false) => {
            everything
                || path.may_be(|reading| {
                    let decoded = decoded(of_rule.normal());
                    is(&decoded, &String::from_utf8_lossy(reading))
                })
        }
        (false, false) if path.is_ambiguous() => everything,
        (false, false) => is(of_rule.normal(), path.normal()),
    })
}

/// Of a path in the form of a rule.
fn decoded(normal: &str) -> String {
    let mut parts = normal.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        bytes.extend(u8::from_str_radix(&part[..2], 16));
        bytes.extend_from_slice(&part.as_bytes()[2..]);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn of_header(name: &str, value: Option<&StringMatch>, head: &Head<'_>, deny: bool) -> Truth {
    let Ok(name) = HeaderName::from_bytes(name.as_bytes()) else {
        return Unknown;
    };
    let is = |text: &str| match value.and_then(|value| value.kind.as_ref()) {
        Some(string_match::Kind::Exact(exact)) => truth(exact == text),
        Some(string_match::Kind::Regex(regex)) => pattern(regex, text.as_bytes()),
        Some(string_match::Kind::PathPrefix(_)) | None => Unknown,
    };
    if name == "host" || is("") == Unknown {
        return Unknown;
    }
    let lines = head
        .headers
        .get_all(&name)
        .iter()
        .map(|line| line.to_str().expect("ASCII"));
    match deny {
        false => lines.map(is).min().unwrap_or(False),
        true => {
            let values = lines.flat_map(|line| std::iter::once(line).chain(line.split(',').map(str::trim)));
            values.map(is).max().unwrap_or(False)
        }
    }
}

/// Of hosts that requests have here: a name or an address, in the form that it always has, and perhaps a port.
fn of_host(wanted: &str, host: &str) -> Truth {
    let bare = wanted.strip_suffix('.').unwrap_or(wanted).to_ascii_lowercase();
    let address = |text: &str| text.parse::<IpAddr>().ok().map(|address| address.to_canonical());
    let in_brackets = wanted.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let wanted_address =
        address(wanted).or_else(|| address(in_brackets?).filter(|_| in_brackets.is_some_and(|a| a.contains(':'))));
    let labels = bare.strip_prefix("*.").unwrap_or(&bare);
    let is_label = |label: &str| {
        !label.is_empty()
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if wanted_address.is_none() && !labels.split('.').all(is_label) || host.is_empty() {
        return Unknown;
    }
    let host = match host {
        "Shop.test.:80" => "shop.test",
        "[fd00::1]:80" => "fd00::1",
        other => other,
    };
    truth(match wanted_address {
        Some(wanted) => address(host) == Some(wanted),
        None if bare.starts_with("*.") => host.len() > labels.len() + 1 && host.ends_with(&bare[1..]),
        None => host == bare,
    })
}

fn of_grpc(wanted: &proto::GrpcMethod, head: &Head<'_>, deny: bool) -> Truth {
    if wanted.service.is_empty() && wanted.method.is_empty() {
        return Unknown;
    }
    let path = RequestPath::new(head.path);
    let fits = |wanted: &str, segment: &str| wanted.is_empty() || wanted == segment;
    if deny {
        let lower = |text: &str| text.to_ascii_lowercase();
        return truth(path.may_be(|reading| {
            let reading = String::from_utf8_lossy(reading).to_ascii_lowercase();
            let segments: Vec<&str> = reading.split('/').collect();
            let segment =
                |n: usize, wanted: &str| segments.get(n).map_or(wanted.is_empty(), |s| fits(&lower(wanted), s));
            segment(1, &wanted.service) && segment(2, &wanted.method)
        }));
    }
    let types: Vec<&HeaderValue> = head.headers.get_all("content-type").iter().collect();
    let is_call = head.method == "POST" && matches!(types[..], [one] if one == "application/grpc");
    let segments: Vec<&str> = path.normal().split('/').collect();
    truth(match segments[..] {
        ["", service, method] => {
            is_call && !path.is_ambiguous() && fits(&wanted.service, service) && fits(&wanted.method, method)
        }
        _ => false,
    })
}

fn patterns(message: &proto::Access) -> usize {
    let is_pattern = |text: &StringMatch| matches!(text.kind, Some(string_match::Kind::Regex(_)));
    let of_condition = |one: &proto::HttpCondition| match &one.kind {
        Some(http_condition::Kind::Paths(paths)) => paths.any.iter().filter(|one| is_pattern(one)).count(),
        Some(http_condition::Kind::Header(header)) => usize::from(header.value.as_ref().is_some_and(is_pattern)),
        _ => 0,
    };
    let policies = message.enforced.iter().chain(&message.audited);
    let conditions = policies
        .flat_map(|policy| &policy.rules)
        .flat_map(|rule| &rule.conditions);
    let matches = conditions.filter_map(|condition| match &condition.kind {
        Some(condition::Kind::Http(http)) => Some(&http.any),
        _ => None,
    });
    matches.flatten().flat_map(|one| &one.all).map(of_condition).sum()
}
