//! Requests of one session go to one endpoint (Gateway API, GEP-1619).

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::to_millis;
use crate::discovery::{self, Feature, SessionType};
use crate::duration;
use crate::policy::access::{is_token, no_header};

/// Of `sessionPersistence.absoluteTimeout`: up to 400 days, which is what browsers keep a cookie for (RFC 6265bis section 5.5).
pub const SESSION_TIMEOUT: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(400 * 86_400);
/// Bytes of `sessionPersistence.sessionName`, as GEP-1619 has it.
const MAX_NAME: usize = 128;
/// Headers that have another meaning, beside those that only sidecars write: for one hop (RFC 9110 section 7.6.1), for whom a request is, who
/// asks, and what a message holds. A session in their place would break the message.
const TAKEN: [&str; 33] = [
    "accept",
    "age",
    "allow",
    "authorization",
    "b3",
    "baggage",
    "cache-control",
    "connection",
    "cookie",
    "date",
    "etag",
    "expect",
    "forwarded",
    "host",
    "keep-alive",
    "location",
    "origin",
    "range",
    "referer",
    "retry-after",
    "server",
    "set-cookie",
    "te",
    "trace-id",
    "traceparent",
    "tracestate",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "vary",
    "via",
    "x-request-id",
];
/// What names of such headers begin with.
const TAKEN_BEGINNINGS: [&str; 8] = [
    "accept-",
    "access-control-",
    "content-",
    "grpc-",
    "if-",
    "proxy-",
    "sec-",
    "x-forwarded-",
];

/// Requests of one session go to one endpoint, as long as that is there and works: the caller's sidecar gives the client a reference to it,
/// which the client sends with its next requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "!has(self.cookieConfig) || !has(self.type) || self.type == 'Cookie'",
    "message": "cookieConfig is for the type Cookie"
}, {
    "rule": "!has(self.cookieConfig) || !has(self.cookieConfig.lifetimeType) || self.cookieConfig.lifetimeType != 'Permanent' || has(self.absoluteTimeout)",
    "message": "a cookie with the lifetimeType Permanent needs absoluteTimeout"
}]))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SessionPersistenceSpec {
    /// By what a request says of which session it is. Default `Cookie`.
    #[serde(rename = "type")]
    pub kind: Option<SessionPersistenceType>,
    /// The cookie's or the header's name, a token (RFC 9110). Default: a cookie with a name of its own for each rule and Service, or the header
    /// `x-session-endpoint`.
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"))]
    pub session_name: Option<String>,
    /// When a session ends, from its first request on, 1s to 9600h. Default: with its endpoint.
    #[schemars(
        regex(pattern = duration::PATTERN),
        extend("x-kubernetes-validations" = [{
            "rule": "duration(self) >= duration('1s') && duration(self) <= duration('9600h')",
            "message": "the time is 1s to 9600h"
        }])
    )]
    pub absolute_timeout: Option<String>,
    /// Of the type `Cookie`.
    pub cookie_config: Option<CookieConfigSpec>,
}

/// By what a request says of which session it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum SessionPersistenceType {
    /// By a cookie.
    Cookie,
    /// By a header, which the client takes from a response.
    Header,
}

/// What a client is told of the cookie.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CookieConfigSpec {
    /// How long a client keeps it. Default `Session`.
    pub lifetime_type: Option<CookieLifetime>,
}

/// How long a client keeps a cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum CookieLifetime {
    /// For as long as it likes: browsers until they are closed.
    Session,
    /// For `absoluteTimeout`.
    Permanent,
}

impl SessionPersistenceSpec {
    /// As it goes to a sidecar, without the key, which is the controller's. `at` is the field's path.
    pub fn to_proto(&self, at: &str, errors: &mut Vec<String>) -> discovery::SessionPersistence {
        let kind = match self.kind {
            None | Some(SessionPersistenceType::Cookie) => SessionType::Cookie,
            Some(SessionPersistenceType::Header) => SessionType::Header,
        };
        if let Some(why) = self.session_name.as_deref().and_then(|name| no_name(kind, name)) {
            errors.push(format!("{at}.sessionName: {why}"));
        }
        let timeout = self.absolute_timeout.as_deref();
        let timeout = timeout.map(|text| duration::parse_within(text, SESSION_TIMEOUT));
        let timeout = timeout.transpose().unwrap_or_else(|e| {
            errors.push(format!("{at}.absoluteTimeout: {e}"));
            None
        });
        if self.cookie_config.is_some() && kind == SessionType::Header {
            errors.push(format!("{at}.cookieConfig: it is for the type Cookie"));
        }
        let lifetime = self.cookie_config.as_ref().and_then(|config| config.lifetime_type);
        let permanent = lifetime == Some(CookieLifetime::Permanent);
        if permanent && self.absolute_timeout.is_none() {
            errors.push(format!(
                "{at}.absoluteTimeout: a cookie with the lifetimeType Permanent needs it"
            ));
        }
        discovery::SessionPersistence {
            r#type: kind.into(),
            name: self.session_name.clone().unwrap_or_default(),
            absolute_timeout_ms: timeout.map_or(0, to_millis),
            permanent,
            key: Vec::new(),
        }
    }
}

/// Without the key: messages are shown in logs.
impl fmt::Debug for discovery::SessionPersistence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionPersistence")
            .field("type", &self.r#type())
            .field("name", &self.name)
            .field("absolute_timeout_ms", &self.absolute_timeout_ms)
            .field("permanent", &self.permanent)
            .finish_non_exhaustive()
    }
}

/// Why a session cannot have the name.
fn no_name(kind: SessionType, name: &str) -> Option<String> {
    if !(1..=MAX_NAME).contains(&name.len()) {
        return Some(format!("it has 1 to {MAX_NAME} bytes"));
    }
    if kind == SessionType::Cookie {
        // RFC 6265 section 4.1.1.
        if !is_token(name) {
            return Some(format!("{name:?} is no cookie's name"));
        }
        let lower = name.to_ascii_lowercase();
        // RFC 6265bis section 4.1.3: browsers drop such a cookie without the attribute Secure, and a mesh does not know whether one would bring
        // a cookie back that has it.
        let needs_secure = ["__host-", "__secure-"].iter().any(|prefix| lower.starts_with(prefix));
        return needs_secure
            .then(|| format!("{name:?}: a cookie of such a name needs the attribute Secure, which it does not get"));
    }
    if let Some(why) = no_header(name) {
        return Some(why);
    }
    let lower = name.to_ascii_lowercase();
    let is_taken = TAKEN.contains(&&*lower) || TAKEN_BEGINNINGS.iter().any(|beginning| lower.starts_with(beginning));
    is_taken.then(|| format!("the header {name:?} has another meaning"))
}

/// What a sidecar must understand, and the field that says it.
pub(super) fn needs(policy: &discovery::Policy) -> Option<(Feature, &'static str)> {
    let is_said = policy.session_persistence.is_some();
    is_said.then_some((Feature::SessionPersistence, "sessionPersistence"))
}

#[cfg(test)]
mod tests {
    use super::super::{TrafficPolicySpec, needs};
    use super::*;

    fn parse(yaml: &str) -> TrafficPolicySpec {
        serde_saphyr::from_str(&format!("sessionPersistence: {yaml}")).unwrap()
    }

    #[test]
    fn what_is_said_and_what_is_not() {
        for (yaml, kind, name, timeout, permanent) in [
            ("{}", SessionType::Cookie, "", 0, false),
            ("{type: Cookie, sessionName: s}", SessionType::Cookie, "s", 0, false),
            ("{cookieConfig: {}}", SessionType::Cookie, "", 0, false),
            (
                "{cookieConfig: {lifetimeType: Session}, absoluteTimeout: 1h}",
                SessionType::Cookie,
                "",
                3_600_000,
                false,
            ),
            (
                "{cookieConfig: {lifetimeType: Permanent}, absoluteTimeout: 9600h}",
                SessionType::Cookie,
                "",
                34_560_000_000,
                true,
            ),
            (
                "{type: Header, absoluteTimeout: 1500ms, sessionName: X-Session}",
                SessionType::Header,
                "X-Session",
                1500,
                false,
            ),
        ] {
            let policy = parse(yaml).to_proto().unwrap();
            assert_eq!(needs(&policy), [(Feature::SessionPersistence, "sessionPersistence")]);
            let said = policy.session_persistence.clone().unwrap();
            let expected = (kind, name, timeout, permanent);
            assert_eq!(
                (said.r#type(), &*said.name, said.absolute_timeout_ms, said.permanent),
                expected,
                "{yaml}"
            );
            assert!(said.key.is_empty());
            // It is one field.
            let outer = parse("{type: Header, sessionName: other, absoluteTimeout: 1m}")
                .to_proto()
                .unwrap();
            assert_eq!(policy.over(&outer).session_persistence, Some(said), "{yaml}");
            assert_eq!(discovery::Policy::default().over(&policy), policy);
        }
    }

    #[test]
    fn mistakes_have_the_path_of_their_field() {
        let long = format!("{{sessionName: {}}}", "a".repeat(129));
        for (yaml, field) in [
            ("{sessionName: ''}", "sessionName"),
            (&long, "sessionName"),
            ("{sessionName: 'a b'}", "sessionName"),
            ("{sessionName: 'a;b'}", "sessionName"),
            ("{sessionName: __Host-session}", "sessionName"),
            ("{sessionName: __secure-session}", "sessionName"),
            ("{type: Header, sessionName: outrigger-session}", "sessionName"),
            ("{type: Header, sessionName: Cookie}", "sessionName"),
            ("{type: Header, sessionName: Set-Cookie}", "sessionName"),
            ("{type: Header, sessionName: host}", "sessionName"),
            ("{type: Header, sessionName: Authorization}", "sessionName"),
            ("{type: Header, sessionName: Proxy-Authorization}", "sessionName"),
            ("{type: Header, sessionName: content-length}", "sessionName"),
            ("{type: Header, sessionName: grpc-status}", "sessionName"),
            ("{type: Header, sessionName: upgrade}", "sessionName"),
            ("{type: Header, sessionName: ':path'}", "sessionName"),
            ("{absoluteTimeout: 0s}", "absoluteTimeout"),
            ("{absoluteTimeout: 9601h}", "absoluteTimeout"),
            ("{absoluteTimeout: soon}", "absoluteTimeout"),
            ("{cookieConfig: {lifetimeType: Permanent}}", "absoluteTimeout"),
            ("{type: Header, cookieConfig: {}}", "cookieConfig"),
        ] {
            let errors = parse(yaml).to_proto().unwrap_err();
            assert!(
                errors.len() == 1 && errors[0].starts_with(&format!("sessionPersistence.{field}: ")),
                "{yaml}: {errors:?}"
            );
        }
        assert!(TAKEN.is_sorted());
        let with_key = discovery::SessionPersistence {
            key: vec![42; 32],
            ..Default::default()
        };
        assert!(!format!("{with_key:?}").contains("42"));
        assert!(serde_saphyr::from_str::<TrafficPolicySpec>("sessionPersistence: {idleTimeout: 1m}").is_err());
    }
}
