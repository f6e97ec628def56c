//! What a rule says of requests.

use std::net::IpAddr;

use super::reader::{Reader, is_token, no_header};
use super::{GrpcSpec, HeaderSpec, HttpAttributesSpec, PathSpec};
use crate::access as proto;
use crate::access::http_condition;
use crate::discovery::{NamedMatch, StringMatch, string_match};
use crate::pattern::{Beginning, Pattern, PatternError};

impl Reader<'_> {
    pub(in crate::policy) fn http(&mut self, at: &str, spec: &HttpAttributesSpec) -> proto::HttpMatch {
        let mut all = Vec::new();
        if let Some(methods) = &spec.methods {
            let before = self.mistakes.len();
            let any = self.texts(&format!("{at}.methods"), methods, "method of HTTP", is_token);
            let kind = http_condition::Kind::Methods(proto::Methods { any });
            all.push((self.mistakes.len() == before).then_some(kind));
        }
        let take_ambiguous = spec.ambiguous_paths.as_deref().unwrap_or("Refuse");
        let take_ambiguous = self.one_of(&format!("{at}.ambiguousPaths"), take_ambiguous, &["Refuse", "Match"]);
        if spec.ambiguous_paths.is_some() && spec.paths.is_none() {
            self.mistake(&format!("{at}.ambiguousPaths"), "there are no paths");
            all.push(None);
        }
        if let Some(paths) = &spec.paths {
            let before = self.mistakes.len();
            if paths.is_empty() {
                self.mistake(&format!("{at}.paths"), "it is empty");
            }
            let any = paths.iter().enumerate();
            let any = any
                .filter_map(|(n, path)| self.path(&format!("{at}.paths[{n}]"), path))
                .collect();
            let kind = http_condition::Kind::Paths(proto::Paths {
                any,
                take_ambiguous: take_ambiguous == Some("Match"),
            });
            all.push((self.mistakes.len() == before && take_ambiguous.is_some()).then_some(kind));
        }
        if let Some(headers) = &spec.headers {
            if headers.is_empty() {
                self.mistake(&format!("{at}.headers"), "it is empty");
                all.push(None);
            }
            let headers = headers.iter().enumerate();
            all.extend(headers.map(|(n, header)| self.header(&format!("{at}.headers[{n}]"), header)));
        }
        if let Some(hosts) = &spec.hosts {
            let before = self.mistakes.len();
            let any = self.texts(&format!("{at}.hosts"), hosts, "host without a port", is_host);
            let kind = http_condition::Kind::Hosts(proto::Hosts { any });
            all.push((self.mistakes.len() == before).then_some(kind));
        }
        if let Some(grpc) = &spec.grpc {
            all.push(self.grpc(&format!("{at}.grpc"), grpc));
        }
        if all.is_empty() {
            self.mistake(at, "say at least one thing of the request");
            all.push(None);
        }
        let all = all.into_iter().map(|kind| proto::HttpCondition { kind });
        proto::HttpMatch { all: all.collect() }
    }

    /// A list of texts, each of which has to be of this form.
    fn texts(&mut self, at: &str, texts: &[String], what: &str, is_one: fn(&str) -> bool) -> Vec<String> {
        if texts.is_empty() {
            self.mistake(at, "it is empty");
        }
        for (n, text) in texts.iter().enumerate().filter(|(_, text)| !is_one(text)) {
            self.mistake(&format!("{at}[{n}]"), &format!("{text:?} is no {what}"));
        }
        texts.to_vec()
    }

    pub(in crate::policy) fn path(&mut self, at: &str, spec: &PathSpec) -> Option<StringMatch> {
        let types = ["Exact", "PathPrefix", "RegularExpression"];
        let type_ = self.one_of(&format!("{at}.type"), &spec.type_, &types)?;
        let value = spec.value.clone();
        if type_ == "RegularExpression" {
            // As the sidecar compiles it: a path of a Deny rule is met in any case of letters.
            let compiled = match self.deny {
                true => self.patterns.compile_any_case(&value),
                false => self.patterns.compile(&value),
            };
            return self.pattern(&format!("{at}.value"), value, compiled, Some(is_beginning_of_path));
        }
        if !value.starts_with('/') {
            return self.none(&format!("{at}.value"), format!("{value:?} does not begin with /"));
        }
        if value.contains(['?', '#']) || value.chars().any(char::is_control) {
            return self.none(&format!("{at}.value"), format!("{value:?} is more than a path"));
        }
        let kind = match type_ {
            "Exact" => string_match::Kind::Exact(value),
            _ => string_match::Kind::PathPrefix(value),
        };
        Some(StringMatch { kind: Some(kind) })
    }

    fn header(&mut self, at: &str, spec: &HeaderSpec) -> Option<http_condition::Kind> {
        if spec.name.eq_ignore_ascii_case("host") {
            return self.none(&format!("{at}.name"), "for the host there is `hosts`".to_owned());
        }
        self.named(at, spec).map(http_condition::Kind::Header)
    }

    /// The name of a header, and what its value has to be.
    pub(in crate::policy) fn named(&mut self, at: &str, spec: &HeaderSpec) -> Option<NamedMatch> {
        let type_ = spec.type_.as_deref().unwrap_or("Exact");
        let type_ = self.one_of(&format!("{at}.type"), type_, &["Exact", "RegularExpression"])?;
        if let Some(why) = no_header(&spec.name) {
            return self.none(&format!("{at}.name"), why);
        }
        let value = match type_ {
            // RFC 9110 section 5.5.
            "Exact" if spec.value.bytes().any(is_control) => {
                let why = format!("{:?} is no header's value: it has control characters", spec.value);
                return self.none(&format!("{at}.value"), why);
            }
            "Exact" => StringMatch {
                kind: Some(string_match::Kind::Exact(spec.value.clone())),
            },
            _ => {
                let compiled = self.patterns.compile(&spec.value);
                self.pattern(&format!("{at}.value"), spec.value.clone(), compiled, None)?
            }
        };
        Some(NamedMatch {
            name: spec.name.clone(),
            value: Some(value),
        })
    }

    /// `may_begin`: whether a value may begin so.
    fn pattern(
        &mut self,
        at: &str,
        text: String,
        compiled: Result<Pattern, PatternError>,
        may_begin: Option<fn(&Beginning) -> bool>,
    ) -> Option<StringMatch> {
        // What is meant can be written ("\x01"); as it is, it shows in no terminal.
        if text.bytes().any(is_control) {
            return self.none(at, format!("{text:?} has control characters"));
        }
        let pattern = match compiled {
            Ok(pattern) => pattern,
            Err(why) => return self.none(at, why.to_string()),
        };
        if let Some(may_begin) = may_begin
            && let Some(beginnings) = pattern.beginnings()
            && !beginnings.iter().any(may_begin)
        {
            return self.none(at, format!("no path begins as {text:?} does: they begin with /"));
        }
        Some(StringMatch {
            kind: Some(string_match::Kind::Regex(text)),
        })
    }

    fn grpc(&mut self, at: &str, spec: &GrpcSpec) -> Option<http_condition::Kind> {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let (service, method) = (text(&spec.service), text(&spec.method));
        if service.is_empty() && method.is_empty() {
            return self.none(at, "name a service, a method, or both".to_owned());
        }
        let is_name = |dots: bool, name: &str| {
            let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || dots && b == b'.';
            name.bytes().all(inner)
        };
        for (field, name, dots) in [("service", &service, true), ("method", &method, false)] {
            if !is_name(dots, name) {
                return self.none(
                    &format!("{at}.{field}"),
                    format!("{name:?} is no name of a gRPC {field}"),
                );
            }
        }
        Some(http_condition::Kind::Grpc(proto::GrpcMethod { service, method }))
    }
}

/// "*" is the path of an OPTIONS request for the server as a whole (RFC 9112 section 3.2.4), and CONNECT has none.
fn is_beginning_of_path(beginning: &Beginning) -> bool {
    matches!(*beginning.text, [] | [b'/' | b'*', ..])
}

/// What no header has.
fn is_control(byte: u8) -> bool {
    byte < b' ' && byte != b'\t' || byte == 0x7f
}

fn is_host(text: &str) -> bool {
    let name = text.strip_prefix("*.").unwrap_or(text);
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let is_name = !name.is_empty() && name.bytes().all(inner) && !name.starts_with('.') && !name.contains("..");
    is_name || text.parse::<IpAddr>().is_ok()
}
