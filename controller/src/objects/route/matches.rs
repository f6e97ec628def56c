//! A rule's matches, and which of them goes first.

use outrigger_api::discovery as proto;
use outrigger_api::discovery::string_match::Kind;
use outrigger_api::pattern::{Budget, Cost, escape, part};
use serde::Deserialize;

use super::spec::{GrpcMethodSpec, MatchSpec, NamedSpec, ValueSpec};

/// How specific a match is; the greater goes first. HTTPRouteRule.matches: an exact path, then the longest prefix, then
/// a method, then the most headers, then the most query parameters. A regular expression is between exact and prefix.
/// GRPCRouteRule.matches: the longest service, then the longest method, then the most headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank([usize; 5]);

/// What a route's patterns may take, and what they take.
#[derive(Default)]
pub(super) struct Patterns {
    budget: Budget,
    pub(super) cost: Cost,
}

pub(super) fn http(
    at: &str,
    specs: Vec<MatchSpec>,
    patterns: &mut Patterns,
    problems: &mut Vec<String>,
) -> Vec<(Rank, proto::Match)> {
    if specs.is_empty() {
        // The API's default: the prefix "/".
        return vec![(Rank([1, 1, 0, 0, 0]), proto::Match::default())];
    }
    let mut read = |spec: MatchSpec| {
        let path = http_path(spec.path, patterns)?;
        let method = spec.method.as_str().unwrap_or_default().to_ascii_uppercase();
        let headers = named(spec.headers, patterns, str::eq_ignore_ascii_case)?;
        let query = named(spec.query_params, patterns, |a, b| a == b)?;
        let (kind, length) = match &path {
            Kind::Exact(path) => (3, path.len()),
            Kind::Regex(path) => (2, path.len()),
            Kind::PathPrefix(path) => (1, path.len()),
        };
        let rank = Rank([
            kind,
            length,
            usize::from(!method.is_empty()),
            headers.len(),
            query.len(),
        ]);
        let matched = proto::Match {
            path: Some(proto::StringMatch { kind: Some(path) }),
            headers,
            query,
            method,
        };
        Ok((rank, matched))
    };
    collect(at, specs, problems, &mut read)
}

pub(super) fn grpc(
    at: &str,
    specs: Vec<MatchSpec>,
    patterns: &mut Patterns,
    problems: &mut Vec<String>,
) -> Vec<(Rank, proto::Match)> {
    if specs.is_empty() {
        return vec![(Rank::default(), proto::Match::default())];
    }
    let mut read = |spec: MatchSpec| {
        let method = match spec.method {
            serde_json::Value::Null => GrpcMethodSpec::default(),
            method => GrpcMethodSpec::deserialize(method).map_err(|e| format!("method: {e}"))?,
        };
        let headers = named(spec.headers, patterns, str::eq_ignore_ascii_case)?;
        let length = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        let rank = Rank([length(&method.service), length(&method.method), headers.len(), 0, 0]);
        let path = grpc_path(method, patterns)?.map(|kind| proto::StringMatch { kind: Some(kind) });
        let matched = proto::Match {
            path,
            headers,
            ..proto::Match::default()
        };
        Ok((rank, matched))
    };
    collect(at, specs, problems, &mut read)
}

fn collect(
    at: &str,
    specs: Vec<MatchSpec>,
    problems: &mut Vec<String>,
    read: &mut dyn FnMut(MatchSpec) -> Result<(Rank, proto::Match), String>,
) -> Vec<(Rank, proto::Match)> {
    let mut matches = Vec::new();
    for (i, spec) in specs.into_iter().enumerate() {
        match read(spec) {
            Ok(matched) => matches.push(matched),
            Err(why) => {
                problems.push(format!("{at}.matches[{i}].{why}; it matches nothing"));
                matches.push((Rank::default(), never()));
            }
        }
    }
    matches
}

/// What no request has. A match that cannot be read is not left out: without it its rule, or the Service with no other
/// rule, would take more than it should.
fn never() -> proto::Match {
    proto::Match {
        path: Some(proto::StringMatch {
            kind: Some(Kind::Exact("\0".to_owned())),
        }),
        ..proto::Match::default()
    }
}

fn http_path(path: Option<ValueSpec>, patterns: &mut Patterns) -> Result<Kind, String> {
    let path = path.unwrap_or_default();
    let value = path.value.unwrap_or_else(|| "/".to_owned());
    match path.type_.as_deref() {
        None | Some("PathPrefix") => Ok(Kind::PathPrefix(value)),
        Some("Exact") => Ok(Kind::Exact(value)),
        Some("RegularExpression") => regex("path", value, patterns),
        Some(other) => Err(format!("path: the type {other:?} is not supported")),
    }
}

/// The path of a gRPC request is "/package.Service/Method".
fn grpc_path(method: GrpcMethodSpec, patterns: &mut Patterns) -> Result<Option<Kind>, String> {
    let any = |part: &Option<String>| part.as_ref().is_none_or(String::is_empty);
    match method.type_.as_deref() {
        None | Some("Exact") => Ok(match (any(&method.service), any(&method.method)) {
            (true, true) => None,
            (false, true) => Some(Kind::PathPrefix(format!("/{}", method.service.unwrap_or_default()))),
            (false, false) => Some(Kind::Exact(format!(
                "/{}/{}",
                method.service.unwrap_or_default(),
                method.method.unwrap_or_default()
            ))),
            (true, false) => {
                let pattern = format!("/[^/]+/{}", escape(&method.method.unwrap_or_default()));
                Some(regex("method", pattern, patterns)?)
            }
        }),
        Some("RegularExpression") => {
            let part = |what: Option<String>| match what {
                Some(pattern) if !pattern.is_empty() => {
                    part(&pattern).map_err(|why| format!("method: {pattern:?}: {why}"))
                }
                _ => Ok("[^/]+".to_owned()),
            };
            let pattern = format!("/{}/{}", part(method.service)?, part(method.method)?);
            regex("method", pattern, patterns).map(Some)
        }
        Some(other) => Err(format!("method: the type {other:?} is not supported")),
    }
}

/// Of several with the same name only the first counts (HTTPHeaderMatch, HTTPQueryParamMatch).
fn named(
    specs: Vec<NamedSpec>,
    patterns: &mut Patterns,
    same: impl Fn(&str, &str) -> bool,
) -> Result<Vec<proto::NamedMatch>, String> {
    let mut read = |spec: NamedSpec| {
        let kind = match spec.type_.as_deref() {
            None | Some("Exact") => Kind::Exact(spec.value),
            Some("RegularExpression") => regex(&spec.name, spec.value, patterns)?,
            Some(other) => return Err(format!("{}: the type {other:?} is not supported", spec.name)),
        };
        Ok(proto::NamedMatch {
            name: spec.name,
            value: Some(proto::StringMatch { kind: Some(kind) }),
        })
    };
    let mut matches: Vec<proto::NamedMatch> = Vec::new();
    for spec in specs {
        if !matches.iter().any(|known| same(&known.name, &spec.name)) {
            matches.push(read(spec)?);
        }
    }
    Ok(matches)
}

fn regex(what: &str, pattern: String, patterns: &mut Patterns) -> Result<Kind, String> {
    let compiled = patterns
        .budget
        .compile(&pattern)
        .map_err(|why| format!("{what}: {pattern:?}: {why}"))?;
    patterns.cost += compiled.cost();
    Ok(Kind::Regex(pattern))
}

/// The match without what it costs: it matches nothing, if it has a pattern.
pub(crate) fn without_patterns(matched: &proto::Match) -> proto::Match {
    let is_pattern = |text: &Option<proto::StringMatch>| {
        let kind = text.as_ref().and_then(|text| text.kind.as_ref());
        matches!(kind, Some(Kind::Regex(_)))
    };
    let mut named = matched.headers.iter().chain(&matched.query);
    match is_pattern(&matched.path) || named.any(|named| is_pattern(&named.value)) {
        true => never(),
        false => matched.clone(),
    }
}
