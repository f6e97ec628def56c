//! Tokens (RFC 7519): who issues them, and what a rule asks of one.

use std::ops::RangeInclusive;
use std::time::Duration;

use schemars::JsonSchema;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use super::reader::{OURS, Reader, is_token};
use crate::access as proto;
use crate::access::token_place;
use crate::duration;
use crate::names::{is_config_map_key, is_subdomain};

/// Of `clockSkew`.
pub const CLOCK_SKEW: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(600);
/// Of `cacheDuration`.
pub const CACHE_DURATION: RangeInclusive<Duration> = Duration::from_secs(10)..=Duration::from_secs(24 * 3600);
/// Of `timeout`.
pub const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(30);
/// Where nothing else is said.
const DEFAULT_CLOCK_SKEW: Duration = Duration::from_secs(60);
const DEFAULT_CACHE_DURATION: Duration = Duration::from_secs(300);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(2);
const DEFAULT_ALGORITHMS: [&str; 2] = ["RS256", "ES256"];
const DEFAULT_KEY: &str = "jwks.json";
const DEFAULT_CA_KEY: &str = "ca.crt";
/// Headers that frame or route a message, or say who sends it: no claim may become one of them.
const RESERVED: [&str; 11] = [
    "connection",
    "content-length",
    "expect",
    "forwarded",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Asymmetric signatures (RFC 7518 section 3.1, RFC 8037). With a symmetric one, whoever can verify a token could make one.
pub const ALGORITHMS: [&str; 10] = [
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA",
];

/// Of a token that a rule asks for: all that is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JwtSourceSpec {
    /// One of `jwt.providers` of this policy: who has issued it.
    #[schemars(length(min = 1, max = 63))]
    pub provider: String,
    /// All of them.
    #[schemars(length(min = 1, max = 8))]
    pub claims: Option<Vec<ClaimSpec>>,
    /// Of its claim `scope` or `scp`: all of them.
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 253)))]
    pub scopes: Option<Vec<String>>,
}

/// A claim of a token.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClaimSpec {
    /// Of a claim at the top, as it is written ("groups"), or, where it begins with "/", a JSON Pointer into all of them (RFC 6901):
    /// "/realm_access/roles".
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The claim is one of these, or, where it is a list, has one of them.
    #[schemars(required, length(min = 1, max = 32), inner(length(max = 1024)))]
    pub values: Option<Vec<String>>,
}

/// Tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JwtSpec {
    /// Who issues them.
    #[schemars(
        length(min = 1, max = 8),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub providers: Vec<ProviderSpec>,
}

/// Who issues tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProviderSpec {
    /// By which the rules of this policy name it.
    #[schemars(regex(pattern = "^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$"), length(max = 63))]
    pub name: String,
    /// The claim `iss` of its tokens, to the letter.
    #[schemars(length(min = 1, max = 2048))]
    pub issuer: String,
    /// One of them is in the claim `aud`. It is required: a token for somebody else is none for this app.
    #[schemars(required, length(min = 1, max = 16), inner(length(min = 1, max = 1024)))]
    pub audiences: Option<Vec<String>>,
    /// By which its tokens may be signed, whatever a token says. Asymmetric ones. Default: `RS256` and `ES256`.
    #[schemars(
        length(min = 1, max = 10),
        inner(regex(pattern = "^((RS|PS|ES)(256|384|512)|EdDSA)$"))
    )]
    pub algorithms: Option<Vec<String>>,
    /// Its keys.
    pub jwks: JwksSpec,
    /// Where a token is looked for; more than one of the issuer is refused. Default: the header `Authorization`, behind `Bearer`.
    #[schemars(length(min = 1, max = 4))]
    pub from: Option<Vec<TokenPlaceSpec>>,
    /// Whether the app gets the token too. Default true.
    pub forward: Option<bool>,
    /// What the app is told of a verified token. Headers of these names that came in are removed.
    #[schemars(length(min = 1, max = 16))]
    pub claim_to_headers: Option<Vec<ClaimToHeaderSpec>>,
    /// By how much clocks may differ (`exp`, `nbf`, `iat`), up to 10m. Default 60s.
    #[schemars(
        length(max = 24),
        regex(pattern = duration::PATTERN),
        extend("x-kubernetes-validations" = [{
            "rule": "duration(self) <= duration('10m')",
            "message": "clocks differ by 10m at most"
        }])
    )]
    pub clock_skew: Option<String>,
}

/// A JSON Web Key Set (RFC 7517): one of these.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[schemars(extend("minProperties" = 1, "maxProperties" = 1))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JwksSpec {
    /// The set itself.
    #[schemars(length(min = 1, max = 65536))]
    pub inline: Option<String>,
    /// In a ConfigMap of the policy's own namespace.
    pub config_map_ref: Option<ConfigMapRefSpec>,
    /// To be fetched: by the controller, never by a sidecar.
    pub remote: Option<RemoteJwksSpec>,
}

/// A key of a ConfigMap.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConfigMapRefSpec {
    /// The ConfigMap.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Default `jwks.json`.
    #[schemars(length(min = 1, max = 253))]
    pub key: Option<String>,
}

/// Certificates in a key of a ConfigMap.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CaConfigMapRefSpec {
    /// The ConfigMap, of the policy's own namespace.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Default `ca.crt`. One or more certificates in PEM.
    #[schemars(length(min = 1, max = 253))]
    pub key: Option<String>,
}

/// Where keys are fetched: `url` or `backendRef`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.url) != has(self.backendRef)",
    "message": "a url or a backendRef"
}, {
    "rule": "!has(self.caConfigMapRef) || has(self.url)",
    "message": "caConfigMapRef: only a url has a certificate"
}]))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RemoteJwksSpec {
    /// "https://login.example.com/keys". No redirect is followed, and loopback, link-local, unspecified and multicast addresses are not asked.
    #[schemars(
        length(max = 2048),
        regex(pattern = "^https://[A-Za-z0-9._:\\[\\]-]+(/[!-\"$-~]*)?$")
    )]
    pub url: Option<String>,
    /// A Service of the policy's own namespace.
    pub backend_ref: Option<JwksBackendSpec>,
    /// Whom to trust for the certificate of the url, in the place of the public authorities (Mozilla's list).
    pub ca_config_map_ref: Option<CaConfigMapRefSpec>,
    /// How long a set is good for, 10s to 24h. Default 5m.
    #[schemars(
        length(max = 24),
        regex(pattern = duration::PATTERN),
        extend("x-kubernetes-validations" = [{
            "rule": "duration(self) >= duration('10s') && duration(self) <= duration('24h')",
            "message": "a set is good for 10s to 24h"
        }])
    )]
    pub cache_duration: Option<String>,
    /// For one answer, 100ms to 30s. Default 2s.
    #[schemars(
        length(max = 24),
        regex(pattern = duration::PATTERN),
        extend("x-kubernetes-validations" = [{
            "rule": "duration(self) >= duration('100ms') && duration(self) <= duration('30s')",
            "message": "the timeout is 100ms to 30s"
        }])
    )]
    pub timeout: Option<String>,
}

/// A Service that has keys, asked by plain HTTP.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JwksBackendSpec {
    /// The Service.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Its port.
    #[schemars(range(min = 1, max = 65535))]
    pub port: i64,
    /// "/keys".
    #[schemars(length(min = 1, max = 1024), regex(pattern = "^/[^#]*$"))]
    pub path: String,
}

/// Where a token is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TokenPlaceSpec {
    /// A header.
    pub header: TokenHeaderSpec,
}

/// A header that has a token.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TokenHeaderSpec {
    /// Its name.
    #[schemars(length(max = 256), regex(pattern = "^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"))]
    pub name: String,
    /// What stands before the token, in any case, with the space: "Bearer ". Default: nothing.
    #[schemars(length(max = 64), regex(pattern = "^[ -~]*$"))]
    pub prefix: Option<String>,
}

/// A header that the app gets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClaimToHeaderSpec {
    /// As a rule names one.
    #[schemars(length(min = 1, max = 253))]
    pub claim: String,
    /// The header.
    #[schemars(length(max = 256), regex(pattern = "^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"))]
    pub header: String,
}

impl ConfigMapRefSpec {
    /// The key.
    pub fn key(&self) -> &str {
        self.key.as_deref().unwrap_or(DEFAULT_KEY)
    }
}

impl CaConfigMapRefSpec {
    /// The key.
    pub fn key(&self) -> &str {
        self.key.as_deref().unwrap_or(DEFAULT_CA_KEY)
    }
}

impl RemoteJwksSpec {
    /// The host, the port, and the path with the query of `url`. `None`: there is no url, or it is none that can be asked.
    pub fn https(&self) -> Option<(&str, u16, &str)> {
        let rest = self.url.as_deref()?.strip_prefix("https://")?;
        let (authority, path) = match rest.find('/') {
            Some(end) => rest.split_at(end),
            None => (rest, "/"),
        };
        // An IPv6 address has colons of its own.
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()?),
            _ => (authority, 443),
        };
        let is_host = |b: u8| b.is_ascii_alphanumeric() || b"-._[]:".contains(&b);
        let is_sound = !host.is_empty() && host.bytes().all(is_host) && (host.starts_with('[') || !host.contains(':'));
        let is_asked = path.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
        (is_sound && is_asked && port > 0).then_some((host, port, path))
    }

    /// How long a set is good for.
    pub fn cache_duration(&self) -> Duration {
        within(&self.cache_duration, CACHE_DURATION)
            .ok()
            .flatten()
            .unwrap_or(DEFAULT_CACHE_DURATION)
    }

    /// For one answer.
    pub fn timeout(&self) -> Duration {
        within(&self.timeout, TIMEOUT).ok().flatten().unwrap_or(DEFAULT_TIMEOUT)
    }
}

fn within(text: &Option<String>, range: RangeInclusive<Duration>) -> Result<Option<Duration>, String> {
    text.as_deref()
        .map(|text| duration::parse_within(text, range))
        .transpose()
}

impl Reader<'_> {
    /// The provider, and whether it is free of mistakes. One that is not takes no token for valid; it is sent all the same, so that what it
    /// removes from requests is removed.
    pub(super) fn provider(&mut self, at: &str, spec: &ProviderSpec) -> (proto::Provider, bool) {
        let before = self.mistakes.len();
        for (field, text) in [("name", &spec.name), ("issuer", &spec.issuer)] {
            if text.is_empty() {
                self.mistake(&format!("{at}.{field}"), "it is empty");
            }
        }
        let audiences = spec.audiences.clone().unwrap_or_default();
        if audiences.is_empty() || audiences.iter().any(String::is_empty) {
            self.mistake(
                &format!("{at}.audiences"),
                "say for whom the tokens are that count here",
            );
        }
        let algorithms = match &spec.algorithms {
            Some(algorithms) => algorithms.clone(),
            None => DEFAULT_ALGORITHMS.map(str::to_owned).into(),
        };
        if algorithms.is_empty() {
            self.mistake(&format!("{at}.algorithms"), "it is empty");
        }
        for (n, algorithm) in algorithms.iter().enumerate() {
            let field = format!("{at}.algorithms[{n}]");
            self.one_of(&field, algorithm, &ALGORITHMS);
        }
        self.keys(&format!("{at}.jwks"), &spec.jwks);
        let from = self.places(&format!("{at}.from"), spec.from.as_deref());
        let claim_to_headers = self.headers(&format!("{at}.claimToHeaders"), spec.claim_to_headers.as_deref());
        let skew = self.duration(&format!("{at}.clockSkew"), &spec.clock_skew, CLOCK_SKEW);
        let sound = self.mistakes.len() == before;
        let provider = proto::Provider {
            name: spec.name.clone(),
            issuer: spec.issuer.clone(),
            audiences,
            algorithms: if sound { algorithms } else { Vec::new() },
            // What they are, the cluster says.
            jwks: String::new(),
            jwks_place: String::new(),
            from,
            forward: spec.forward.unwrap_or(true),
            claim_to_headers,
            // Ten minutes at most.
            clock_skew_ms: skew.unwrap_or(DEFAULT_CLOCK_SKEW).as_millis() as u64,
        };
        (provider, sound)
    }

    /// A claim's name, or a JSON Pointer.
    pub(in crate::policy) fn claim(&mut self, at: &str, name: &str) {
        // RFC 6901 section 3.
        let mut escapes = name.split('~').skip(1);
        let is_pointer = name.len() > 1 && escapes.all(|rest| rest.starts_with(['0', '1']));
        if name.is_empty() || name.starts_with('/') && !is_pointer {
            self.mistake(at, &format!("{name:?} is neither a claim nor a JSON Pointer to one"));
        }
    }

    fn keys(&mut self, at: &str, spec: &JwksSpec) {
        let set = [
            spec.inline.is_some(),
            spec.config_map_ref.is_some(),
            spec.remote.is_some(),
        ];
        if set.iter().filter(|set| **set).count() != 1 {
            self.mistake(at, "give one of inline, configMapRef and remote");
        }
        if let Some(inline) = &spec.inline
            && !has_keys(inline)
        {
            self.mistake(&format!("{at}.inline"), "it is no JSON Web Key Set, {\"keys\": […]}");
        }
        if let Some(map) = &spec.config_map_ref {
            self.config_map(&format!("{at}.configMapRef"), &map.name, map.key());
        }
        let Some(remote) = &spec.remote else { return };
        match (&remote.url, &remote.backend_ref) {
            (Some(_), None) => {
                if remote.https().is_none() {
                    self.mistake(
                        &format!("{at}.remote.url"),
                        "it is not like \"https://login.example.com/keys\"",
                    );
                }
            }
            (None, Some(backend)) => {
                let is_port = (1..=65535).contains(&backend.port);
                if backend.name.is_empty() || !is_port || !backend.path.starts_with('/') {
                    let why = "it has a name, a port of 1 to 65535, and a path that begins with /";
                    self.mistake(&format!("{at}.remote.backendRef"), why);
                }
            }
            _ => self.mistake(&format!("{at}.remote"), "give a url or a backendRef"),
        }
        if let Some(ca) = &remote.ca_config_map_ref {
            let ca_at = format!("{at}.remote.caConfigMapRef");
            self.config_map(&ca_at, &ca.name, ca.key());
            if remote.url.is_none() {
                self.mistake(&ca_at, "there is no url whose certificate it is for");
            }
        }
        self.duration(
            &format!("{at}.remote.cacheDuration"),
            &remote.cache_duration,
            CACHE_DURATION,
        );
        self.duration(&format!("{at}.remote.timeout"), &remote.timeout, TIMEOUT);
    }

    fn config_map(&mut self, at: &str, name: &str, key: &str) {
        if !is_subdomain(name) {
            let why = format!("{name:?} is no name of a ConfigMap: a-z, 0-9, \"-\" and \".\", 253 of them at most");
            self.mistake(&format!("{at}.name"), &why);
        }
        if !is_config_map_key(key) {
            let why =
                format!("{key:?} is no key of a ConfigMap: A-Z, a-z, 0-9, \"-\", \"_\" and \".\", 253 of them at most");
            self.mistake(&format!("{at}.key"), &why);
        }
    }

    fn places(&mut self, at: &str, places: Option<&[TokenPlaceSpec]>) -> Vec<proto::TokenPlace> {
        if places.is_some_and(<[_]>::is_empty) {
            self.mistake(at, "it is empty");
        }
        let places = places.into_iter().flatten().enumerate();
        let places = places.map(|(n, TokenPlaceSpec { header })| {
            let prefix = header.prefix.clone().unwrap_or_default();
            let is_text = prefix.bytes().all(|b| matches!(b, b' '..=b'~'));
            let sound = is_token(&header.name) && is_text;
            if !sound {
                self.mistake(
                    &format!("{at}[{n}].header"),
                    "it is no header's name, or the prefix is no text",
                );
            }
            let header = token_place::Kind::Header(proto::TokenHeader {
                name: header.name.clone(),
                prefix,
            });
            proto::TokenPlace {
                kind: sound.then_some(header),
            }
        });
        places.collect()
    }

    fn headers(&mut self, at: &str, headers: Option<&[ClaimToHeaderSpec]>) -> Vec<proto::ClaimToHeader> {
        if headers.is_some_and(<[_]>::is_empty) {
            self.mistake(at, "it is empty");
        }
        let headers = headers.into_iter().flatten().enumerate();
        let headers = headers.filter_map(|(n, ClaimToHeaderSpec { claim, header })| {
            self.claim(&format!("{at}[{n}].claim"), claim);
            let name = header.to_ascii_lowercase();
            if !is_token(&name) || RESERVED.contains(&&*name) || name.starts_with(OURS) {
                let why = format!("{header:?} is no header that a claim may become");
                self.mistake(&format!("{at}[{n}].header"), &why);
                return None;
            }
            Some(proto::ClaimToHeader {
                claim: claim.clone(),
                header: header.clone(),
            })
        });
        headers.collect()
    }

    fn duration(&mut self, at: &str, text: &Option<String>, range: RangeInclusive<Duration>) -> Option<Duration> {
        within(text, range).map_err(|why| self.mistake(at, &why)).ok().flatten()
    }
}

fn has_keys(text: &str) -> bool {
    /// What is in it is the business of whoever uses it.
    #[derive(Deserialize)]
    struct Set {
        keys: Vec<IgnoredAny>,
    }
    serde_json::from_str(text).is_ok_and(|set: Set| !set.keys.is_empty())
}
