//! What a route changes in a request and its response (Gateway API, HTTPRouteFilter).

use http::{HeaderName, HeaderValue, StatusCode};
use outrigger_api::discovery as proto;
use outrigger_api::discovery::{filter, path_modifier};

use super::{Cors, ExternalAuth};

/// The filters of a route, or of one of its backends, each kind by itself. Gateway API leaves open in which order filters
/// of different kinds act: `outbound::request::filters` has it.
#[derive(Debug, Default, PartialEq)]
pub struct Filters {
    pub cors: Option<Cors>,
    /// Of a route alone.
    pub external_auth: Option<ExternalAuth>,
    pub redirect: Option<Redirect>,
    pub request_headers: Vec<HeaderModifier>,
    pub rewrites: Vec<Rewrite>,
    pub response_headers: Vec<HeaderModifier>,
    pub mirrors: Vec<Mirror>,
}

#[derive(Debug, Default, PartialEq)]
pub struct HeaderModifier {
    pub set: Vec<(HeaderName, HeaderValue)>,
    pub add: Vec<(HeaderName, HeaderValue)>,
    pub remove: Vec<HeaderName>,
}

#[derive(Debug, Default, PartialEq)]
pub struct Rewrite {
    pub hostname: Option<HeaderValue>,
    pub path: Option<PathModifier>,
}

#[derive(Debug, PartialEq)]
pub enum PathModifier {
    ReplaceFull(String),
    ReplacePrefix(String),
}

#[derive(Debug, PartialEq)]
pub struct Redirect {
    pub scheme: Option<String>,
    pub hostname: Option<String>,
    pub port: Option<u16>,
    pub path: Option<PathModifier>,
    pub status: StatusCode,
}

#[derive(Debug, PartialEq)]
pub struct Mirror {
    /// Index into [`super::Service::backends`].
    pub backend: usize,
    pub parts_per_million: u32,
}

impl Filters {
    /// Of a backend that has none of its own.
    pub const NONE: &'static Self = &Self {
        cors: None,
        external_auth: None,
        redirect: None,
        request_headers: Vec::new(),
        rewrites: Vec::new(),
        response_headers: Vec::new(),
        mirrors: Vec::new(),
    };

    /// `None`: there is one that is not understood. `backend`: the place of a backend in the Service, by the message's index.
    pub(super) fn from_proto(messages: &[proto::Filter], backend: impl Fn(u32) -> Option<usize>) -> Option<Self> {
        let mut filters = Self::default();
        for message in messages {
            match message.kind.as_ref()? {
                filter::Kind::RequestHeaders(m) => filters.request_headers.push(header_modifier(m)),
                filter::Kind::ResponseHeaders(m) => filters.response_headers.push(header_modifier(m)),
                filter::Kind::Rewrite(m) => filters.rewrites.push(rewrite(m)?),
                filter::Kind::Redirect(m) => {
                    // No second one is reached.
                    filters.redirect.get_or_insert(redirect(m)?);
                }
                filter::Kind::Cors(m) => {
                    // Two would answer one request.
                    filters.cors.get_or_insert_with(|| Cors::from_proto(m));
                }
                filter::Kind::ExternalAuth(m) => {
                    let auth = ExternalAuth::from_proto(m, &backend)?;
                    if filters.external_auth.replace(auth).is_some() {
                        // Each has a word on the request: leaving one out would be looser.
                        return None;
                    }
                }
                // A copy that goes nowhere changes nothing for the request.
                filter::Kind::Mirror(m) => filters.mirrors.extend(backend(m.backend).map(|backend| Mirror {
                    backend,
                    parts_per_million: m.parts_per_million.min(1_000_000),
                })),
            }
        }
        Some(filters)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        let Self {
            cors,
            external_auth,
            redirect,
            request_headers,
            rewrites,
            response_headers,
            mirrors,
        } = self;
        usize::from(cors.is_some())
            + usize::from(external_auth.is_some())
            + usize::from(redirect.is_some())
            + request_headers.len()
            + rewrites.len()
            + response_headers.len()
            + mirrors.len()
    }
}

fn header_modifier(message: &proto::HeaderModifier) -> HeaderModifier {
    let name = |name: &str| HeaderName::from_bytes(name.as_bytes()).ok();
    let pairs = |headers: &[proto::Header]| {
        let pairs = headers
            .iter()
            .filter_map(|header| Some((name(&header.name)?, HeaderValue::from_str(&header.value).ok()?)));
        pairs.collect()
    };
    HeaderModifier {
        set: pairs(&message.set),
        add: pairs(&message.add),
        remove: message.remove.iter().filter_map(|header| name(header)).collect(),
    }
}

fn rewrite(message: &proto::UrlRewrite) -> Option<Rewrite> {
    Some(Rewrite {
        hostname: match text(&message.hostname) {
            Some(host) => Some(HeaderValue::try_from(host).ok()?),
            None => None,
        },
        path: path_modifier(message.path.as_ref())?,
    })
}

/// The outer `None`: it is of a kind that is not understood.
fn path_modifier(message: Option<&proto::PathModifier>) -> Option<Option<PathModifier>> {
    let Some(message) = message else {
        return Some(None);
    };
    Some(Some(match message.kind.as_ref()? {
        path_modifier::Kind::ReplaceFull(path) => PathModifier::ReplaceFull(path.clone()),
        path_modifier::Kind::ReplacePrefix(path) => PathModifier::ReplacePrefix(path.clone()),
    }))
}

fn redirect(message: &proto::Redirect) -> Option<Redirect> {
    let status = u16::try_from(message.status).unwrap_or(0);
    Some(Redirect {
        scheme: text(&message.scheme),
        hostname: text(&message.hostname),
        port: u16::try_from(message.port).ok().filter(|&port| port > 0),
        path: path_modifier(message.path.as_ref())?,
        status: StatusCode::from_u16(status)
            .ok()
            .filter(StatusCode::is_redirection)
            .unwrap_or(StatusCode::FOUND),
    })
}

fn text(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}
