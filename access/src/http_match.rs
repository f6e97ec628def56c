//! What is sent, where it is HTTP.

use std::borrow::Cow;
use std::fmt;

use http::header::{CONTENT_TYPE, COOKIE, HOST};
use http::{HeaderMap, HeaderName};
use outrigger_api::access as proto;
use outrigger_api::access::http_condition;
use outrigger_api::discovery;
use outrigger_api::discovery::string_match;
use outrigger_api::pattern::{Budget, Pattern};

use crate::effect::{Effect, Faulty};
use crate::facts::{Call, Head};
use crate::host::{self, Host};
use crate::path;
use crate::remembered::Forgotten;

/// Any of them, and of each all conditions.
#[derive(Debug)]
pub(crate) struct HttpMatches(Box<[Box<[HttpCondition]>]>);

#[derive(Debug)]
enum HttpCondition {
    Methods(Box<[Box<str>]>),
    Paths(Box<[PathMatch]>),
    Header(HeaderName, Text),
    Hosts(Box<[Host]>),
    Grpc(GrpcMethod),
}

#[derive(Debug)]
struct PathMatch {
    /// In an Allow rule, and where an ambiguous path is taken as it is: in the form of [`path::RequestPath::normal`]. Else decoded.
    value: PathValue,
    take_ambiguous: bool,
}

#[derive(Debug)]
enum PathValue {
    Exact(Box<[u8]>),
    /// Without the slashes at its end.
    Prefix(Box<[u8]>),
    Pattern(Pattern),
}

#[derive(Debug)]
enum Text {
    Exact(Box<[u8]>),
    Pattern(Pattern),
}

/// Empty: any.
#[derive(Debug)]
struct GrpcMethod {
    service: Box<str>,
    method: Box<str>,
}

impl HttpMatches {
    pub(crate) fn new(message: &proto::HttpMatches, effect: Effect, patterns: &mut Budget) -> Result<Self, Faulty> {
        let any = effect.any_of(&message.any, |one| {
            effect.all_of(&one.all, |condition| HttpCondition::new(condition, effect, patterns))
        });
        any.map(Self)
    }

    /// For people, a text for each of them.
    pub(crate) fn texts(&self) -> Vec<String> {
        let texts = self.0.iter().map(|all| {
            let all: Vec<String> = all.iter().map(HttpCondition::to_string).collect();
            all.join(", ")
        });
        texts.collect()
    }

    pub(crate) fn are_met(&self, call: &Call<'_>, effect: Effect) -> bool {
        let Some(head) = call.head() else {
            return effect.of_unknown();
        };
        let is_met = |condition: &HttpCondition| condition.is_met(call, head, effect);
        self.0.iter().any(|all| all.iter().all(is_met))
    }
}

impl HttpCondition {
    fn new(message: &proto::HttpCondition, effect: Effect, patterns: &mut Budget) -> Result<Self, Faulty> {
        match message.kind.as_ref().ok_or(Faulty)? {
            http_condition::Kind::Methods(methods) => {
                let method = |method: &String| match method.is_empty() {
                    true => Err(Faulty),
                    false => Ok(method.as_str().into()),
                };
                effect.any_of(&methods.any, method).map(Self::Methods)
            }
            http_condition::Kind::Paths(paths) => {
                let take = paths.take_ambiguous;
                let any = effect.any_of(&paths.any, |one| PathMatch::new(one, take, effect, patterns));
                any.map(Self::Paths)
            }
            http_condition::Kind::Header(header) => {
                let name = HeaderName::from_bytes(header.name.as_bytes()).map_err(|_| Faulty)?;
                if name == HOST {
                    // HTTP/2 has none: it is a matter of `hosts`.
                    return Err(Faulty);
                }
                let value = header.value.as_ref().ok_or(Faulty)?;
                Ok(Self::Header(name, Text::new(value, patterns)?))
            }
            http_condition::Kind::Hosts(hosts) => effect.any_of(&hosts.any, |host| Host::new(host)).map(Self::Hosts),
            http_condition::Kind::Grpc(grpc) if grpc.service.is_empty() && grpc.method.is_empty() => Err(Faulty),
            http_condition::Kind::Grpc(grpc) => Ok(Self::Grpc(GrpcMethod {
                service: grpc.service.as_str().into(),
                method: grpc.method.as_str().into(),
            })),
        }
    }

    fn is_met(&self, call: &Call<'_>, head: &Head<'_>, effect: Effect) -> bool {
        if let Some(forgotten) = self.forgotten(call, head, effect) {
            return call.guess(forgotten, effect).unwrap_or(effect.of_unknown());
        }
        match self {
            Self::Methods(methods) => methods.iter().any(|method| match effect {
                Effect::Allow => **method == *head.method,
                // There are frameworks that do not care.
                Effect::Deny | Effect::Limit => method.eq_ignore_ascii_case(head.method),
            }),
            Self::Paths(paths) => paths.iter().any(|path| path.is_met(call, effect)),
            Self::Header(name, value) => value.is_met(name, head.headers, effect),
            Self::Hosts(hosts) => match host::requested(head.host) {
                // No host, or one that a resolver would read otherwise.
                host if host.is_empty() || host.contains('%') => effect.of_unknown(),
                host => hosts.iter().any(|wanted| wanted.is_met(host)),
            },
            Self::Grpc(method) => method.is_met(call, head, effect),
        }
    }

    /// What it is about, of a call of which nobody remembers that. `None`: it can be judged.
    fn forgotten(&self, call: &Call<'_>, head: &Head<'_>, effect: Effect) -> Option<Forgotten> {
        let memory = call.memory.as_ref()?;
        match self {
            Self::Methods(_) => (!memory.knows_method).then_some(Forgotten::METHOD),
            Self::Paths(paths) => {
                // All that is below "/", but for an Allow rule "*", which is a path too (RFC 9112 section 3.2.4).
                let whatever = effect.is_wide() && paths.iter().any(|path| path.value.is_any_path());
                (!whatever).then_some(Forgotten::PATH)
            }
            Self::Header(..) => Some(Forgotten::HEADER),
            Self::Hosts(_) => Some(Forgotten::HOST),
            // An Allow rule wants a call of gRPC.
            Self::Grpc(_) if effect == Effect::Allow && memory.knows_method && head.method != "POST" => None,
            Self::Grpc(_) => Some(Forgotten::PATH),
        }
    }
}

impl fmt::Display for HttpCondition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Methods(methods) => f.write_str(&methods.join(" or ")),
            Self::Paths(paths) => {
                let texts: Vec<String> = paths.iter().map(PathMatch::to_string).collect();
                write!(f, "path {}", texts.join(" or "))
            }
            Self::Header(name, Text::Exact(value)) => write!(f, "header {name}: {}", String::from_utf8_lossy(value)),
            Self::Header(name, Text::Pattern(pattern)) => write!(f, "header {name} like {}", pattern.as_str()),
            Self::Hosts(hosts) => {
                let texts: Vec<String> = hosts.iter().map(Host::to_string).collect();
                write!(f, "host {}", texts.join(" or "))
            }
            Self::Grpc(GrpcMethod { service, method }) => {
                let any = |name: &str| {
                    if name.is_empty() {
                        "*".to_owned()
                    } else {
                        name.to_owned()
                    }
                };
                write!(f, "gRPC {}/{}", any(service), any(method))
            }
        }
    }
}

impl fmt::Display for PathMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            PathValue::Exact(path) => write!(f, "{}", String::from_utf8_lossy(path))?,
            PathValue::Prefix(prefix) => write!(f, "{}/*", String::from_utf8_lossy(prefix))?,
            PathValue::Pattern(pattern) => write!(f, "like {}", pattern.as_str())?,
        }
        f.write_str(if self.take_ambiguous {
            " (ambiguous ones as they are)"
        } else {
            ""
        })
    }
}

impl PathMatch {
    fn new(
        message: &discovery::StringMatch,
        take_ambiguous: bool,
        effect: Effect,
        patterns: &mut Budget,
    ) -> Result<Self, Faulty> {
        let text = |path: &str| {
            let normal = path::normal_of_rule(path).ok_or(Faulty)?.into_bytes();
            Ok(match effect.is_wide() && !take_ambiguous {
                true => path::decoded(&normal),
                false => normal,
            })
        };
        let value = match message.kind.as_ref().ok_or(Faulty)? {
            string_match::Kind::Exact(path) => PathValue::Exact(text(path)?.into()),
            string_match::Kind::PathPrefix(path) => PathValue::Prefix(without_slashes(&text(path)?).into()),
            string_match::Kind::Regex(pattern) => {
                let compiled = match effect {
                    Effect::Allow => patterns.compile(pattern),
                    Effect::Deny | Effect::Limit => patterns.compile_any_case(pattern),
                };
                PathValue::Pattern(compiled.map_err(|_| Faulty)?)
            }
        };
        Ok(Self { value, take_ambiguous })
    }

    fn is_met(&self, call: &Call<'_>, effect: Effect) -> bool {
        let path = call.path();
        let normal = path.normal().as_bytes();
        if self.take_ambiguous {
            return self.value.is_met(normal, effect);
        }
        if path.is_ambiguous() {
            call.meets_ambiguity();
        }
        match effect {
            Effect::Allow if path.is_ambiguous() => self.value.is_any_path(),
            Effect::Allow => self.value.is_met(normal, effect),
            Effect::Deny | Effect::Limit => {
                self.value.is_any_path() || path.may_be(|reading| self.value.is_met(reading, effect))
            }
        }
    }
}

impl PathValue {
    /// "/", below which everything is.
    fn is_any_path(&self) -> bool {
        matches!(self, Self::Prefix(prefix) if prefix.is_empty())
    }

    /// A Deny rule does not care about the case of letters, nor about a slash at the end: there are routers that do not.
    fn is_met(&self, path: &[u8], effect: Effect) -> bool {
        let are_equal = |one: &[u8], other: &[u8]| match effect {
            Effect::Allow => one == other,
            Effect::Deny | Effect::Limit => without_slashes(one).eq_ignore_ascii_case(without_slashes(other)),
        };
        match self {
            Self::Exact(wanted) => are_equal(wanted, path),
            Self::Prefix(prefix) => match path.split_at_checked(prefix.len()) {
                Some((start, rest)) => are_equal(prefix, start) && matches!(rest, [] | [b'/', ..]),
                None => false,
            },
            // One of a Deny rule is compiled for any case.
            Self::Pattern(pattern) => {
                pattern.is_match(path) || (effect.is_wide() && pattern.is_match(without_slashes(path)))
            }
        }
    }
}

fn without_slashes(path: &[u8]) -> &[u8] {
    let end = path.iter().rposition(|&byte| byte != b'/');
    &path[..end.map_or(0, |end| end + 1)]
}

impl Text {
    fn new(message: &discovery::StringMatch, patterns: &mut Budget) -> Result<Self, Faulty> {
        match message.kind.as_ref().ok_or(Faulty)? {
            string_match::Kind::Exact(text) => Ok(Self::Exact(text.as_bytes().into())),
            string_match::Kind::Regex(pattern) => Ok(Self::Pattern(patterns.compile(pattern).map_err(|_| Faulty)?)),
            string_match::Kind::PathPrefix(_) => Err(Faulty),
        }
    }

    fn is_met(&self, name: &HeaderName, headers: &HeaderMap, effect: Effect) -> bool {
        let mut lines = headers.get_all(name).iter().map(|line| line.as_bytes());
        let are_cookies = name == COOKIE && headers.contains_key(COOKIE);
        match effect {
            // As apps are given them.
            Effect::Allow if are_cookies => self.is(&joined_cookies(headers)),
            Effect::Allow => headers.contains_key(name) && lines.all(|line| self.is(line)),
            // Several lines are one list, and one line may be the whole list (RFC 9110 section 5.3). Cookies have semicolons for it
            // (RFC 9113 section 8.2.3).
            Effect::Deny | Effect::Limit => {
                let separates = |&byte: &u8| byte == b',' || (are_cookies && byte == b';');
                let is_met = lines.any(|line| {
                    let mut members = line.split(separates).map(<[u8]>::trim_ascii);
                    self.is(line) || members.any(|member| self.is(member))
                });
                is_met || (are_cookies && self.is(&joined_cookies(headers)))
            }
        }
    }

    fn is(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(wanted) => **wanted == *value,
            Self::Pattern(pattern) => pattern.is_match(value),
        }
    }
}

/// All cookies of a request in one line, as apps are given them.
fn joined_cookies(headers: &HeaderMap) -> Cow<'_, [u8]> {
    let mut lines = headers.get_all(COOKIE).iter().map(|line| line.as_bytes());
    let first = lines.next().unwrap_or_default();
    let rest: Vec<&[u8]> = lines.collect();
    match rest.is_empty() {
        true => Cow::Borrowed(first),
        false => Cow::Owned([&[first][..], &rest].concat().join(&b"; "[..])),
    }
}

impl GrpcMethod {
    fn is_met(&self, call: &Call<'_>, head: &Head<'_>, effect: Effect) -> bool {
        let path = call.path();
        if path.is_ambiguous() {
            call.meets_ambiguity();
        }
        match effect {
            Effect::Allow => {
                let is_call = head.method == "POST" && is_grpc(head.headers);
                is_call && !path.is_ambiguous() && self.is_named_by(path.normal().as_bytes())
            }
            // What the app takes for a call is the app's business.
            Effect::Deny | Effect::Limit => path.may_be(|reading| self.begins(reading)),
        }
    }

    /// "/service/method", and nothing behind it.
    fn is_named_by(&self, path: &[u8]) -> bool {
        let is = |wanted: &str, segment: &[u8]| wanted.is_empty() || wanted.as_bytes() == segment;
        let mut segments = path.split(|&byte| byte == b'/');
        match (segments.next(), segments.next(), segments.next(), segments.next()) {
            (Some(b""), Some(service), Some(method), None) => is(&self.service, service) && is(&self.method, method),
            _ => false,
        }
    }

    /// Whatever stands behind it, in any case.
    fn begins(&self, path: &[u8]) -> bool {
        let is = |wanted: &str, segment: Option<&[u8]>| {
            wanted.is_empty() || segment.is_some_and(|segment| wanted.as_bytes().eq_ignore_ascii_case(segment))
        };
        let mut segments = path.split(|&byte| byte == b'/').skip(1);
        is(&self.service, segments.next()) && is(&self.method, segments.next())
    }
}

/// One `content-type`, "application/grpc" with or without what it carries ("+proto").
fn is_grpc(headers: &HeaderMap) -> bool {
    const GRPC: &[u8] = b"application/grpc";
    let mut lines = headers.get_all(CONTENT_TYPE).iter();
    let (Some(line), None) = (lines.next(), lines.next()) else {
        return false;
    };
    let Some((start, rest)) = line.as_bytes().split_at_checked(GRPC.len()) else {
        return false;
    };
    start.eq_ignore_ascii_case(GRPC) && matches!(rest.first(), None | Some(b'+' | b';' | b' ' | b'\t'))
}
