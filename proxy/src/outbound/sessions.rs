//! Session persistence (Gateway API, GEP-1619): requests of one session go to one endpoint, as long as that is there and works.
//!
//! With the first response a client gets a **reference** to the endpoint that has answered, in a cookie or a header, and sends it with
//! its next requests. Nothing is remembered here: the reference says which backend and which endpoint, and since when, so any sidecar
//! of any caller understands it, also after a restart. When a Service goes from three endpoints to ten and back, only sessions of
//! endpoints that go are moved.
//!
//! The endpoint is known by its pod's name and port, and by its address where there is no pod: a pod of a StatefulSet that is made anew is the
//! same one.
//!
//! **A reference is sealed** (AES-256-GCM-SIV, RFC 8452) with a key of the Service, which the controller tells the sidecars of its callers, and
//! is good for one rule of one Service alone. Who has no such key can neither read one, nor make one, nor use that of another rule. One that
//! cannot be opened, is too old, or leads to an endpoint that is not there or is left out, is as if there were none: the endpoint is
//! picked anew, and the client gets another reference. It is never an error, and the client is not told why.
//!
//! What a reference decides is only which of the endpoints is called that the caller might get anyway; no decision about access rests on
//! it. What it does not protect from: other callers' sidecars have the key as well; and whoever sends requests may send all of them to
//! one endpoint.
//!
//! Of one request at most [`MOST`] values are looked at, so that what it costs is bounded. Time and randomness are arguments.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::aead::{Aad, NONCE_LEN, Nonce};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::SET_COOKIE;
use http::request::Parts;
use http::{HeaderMap, HeaderValue};

use super::hash::{cookies, of_service};
use super::route::{self, Chosen};
use crate::model::{Carrier, Filters, PathMatch, Service, ServiceName, Sessions};

/// Values of one request that are looked at. There may be several cookies of one name, of rules with different paths.
const MOST: usize = 4;
/// The backend, the endpoint, and the time, 8 bytes each.
const PLAIN: usize = 24;
const TAG: usize = 16;
const SEALED: usize = NONCE_LEN + PLAIN + TAG;
/// In base64url (RFC 4648 section 5) without padding.
const TEXT: usize = (SEALED * 4).div_ceil(3);

/// The endpoint that a session is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reference {
    /// See [`of_service`].
    backend: u64,
    /// See [`of_endpoint`](super::hash::of_endpoint).
    endpoint: u64,
}

/// The session of a request.
pub struct Session<'a> {
    rules: &'a Sessions,
    /// What the route matched the path by.
    path: Option<&'a PathMatch>,
    /// Where it is. `None`: it begins, or begins anew.
    at: Option<Reference>,
    /// The one that the request goes to.
    backend: u64,
}

/// Where the session of a request is.
fn read(rules: &Sessions, request: &Parts, now: SystemTime) -> Option<Reference> {
    let opened = |value: &[u8]| open(rules, value, now);
    // What has another length is none.
    let is_candidate = |value: &&[u8]| value.len() == TEXT;
    match &rules.carrier {
        Carrier::Cookie(name) => {
            let mut values = cookies(request, name).filter(is_candidate).take(MOST);
            values.find_map(opened)
        }
        Carrier::Header(name) => {
            let values = request.headers.get_all(name).iter().map(HeaderValue::as_bytes);
            values.filter(is_candidate).take(MOST).find_map(opened)
        }
    }
}

impl<'a> Session<'a> {
    /// That of a request as its client has sent it.
    pub fn of(rules: &'a Sessions, chosen: &Chosen<'a>, request: &Parts, now: SystemTime) -> Self {
        Self {
            rules,
            path: chosen.path,
            at: read(rules, request, now),
            backend: 0,
        }
    }

    /// The backend that it is at, whatever that one's weight is now (GEP-1619, "Traffic Splitting"). `None`: there is none such, and the
    /// session begins anew.
    pub fn backend(&self, service: &'a Service, chosen: &Chosen<'a>) -> Option<(usize, &'a Filters)> {
        let at = self.at?;
        route::backend_where(service, chosen, |name| of_service(name) == at.backend)
    }

    /// The backend that the request goes to.
    pub fn goes_to(&mut self, backend: &ServiceName) {
        self.backend = of_service(backend);
        self.at = self.at.filter(|at| at.backend == self.backend);
    }

    /// The endpoint that it is at, by which [`Balancer`](super::balance::Balancer) finds it.
    pub fn endpoint(&self) -> Option<u64> {
        self.at.map(|at| at.endpoint)
    }

    /// Tells the client where its session is from now on, if that is elsewhere than before.
    pub fn answered(&self, endpoint: u64, response: &mut HeaderMap, now: SystemTime) {
        let by = Reference {
            backend: self.backend,
            endpoint,
        };
        if self.at == Some(by) {
            return;
        }
        let mut nonce = [0; NONCE_LEN];
        // Without randomness, or a key, there is no session.
        let drawn = aws_lc_rs::rand::fill(&mut nonce).ok();
        if let Some(value) = drawn.and_then(|()| seal(self.rules, by, now, nonce)) {
            self.write(&value, response);
        }
    }

    fn write(&self, value: &str, response: &mut HeaderMap) {
        match &self.rules.carrier {
            Carrier::Cookie(name) => {
                let path = cookie_path(self.path);
                // Lax: a link from another site leads into the session as well. Without Secure: what is plaintext here may have been TLS before
                // (an ingress), or not.
                let mut cookie = format!("{name}={value}; Path={path}; HttpOnly; SameSite=Lax");
                if let Some(timeout) = self.rules.timeout.filter(|_| self.rules.permanent) {
                    let seconds = timeout.as_secs() + u64::from(timeout.subsec_nanos() > 0);
                    cookie += &format!("; Max-Age={seconds}");
                }
                if let Ok(cookie) = HeaderValue::from_maybe_shared(bytes::Bytes::from(cookie)) {
                    response.append(SET_COOKIE, cookie);
                }
            }
            Carrier::Header(name) => {
                if let Ok(value) = HeaderValue::from_str(value) {
                    response.insert(name, value);
                }
            }
        }
    }
}

fn seal(rules: &Sessions, at: Reference, now: SystemTime, nonce: [u8; NONCE_LEN]) -> Option<String> {
    let mut sealed = [0; SEALED];
    let (head, rest) = sealed.split_at_mut(NONCE_LEN);
    let (plain, tag) = rest.split_at_mut(PLAIN);
    head.copy_from_slice(&nonce);
    let numbers = [at.backend, at.endpoint, seconds(now)];
    for (place, number) in plain.chunks_exact_mut(8).zip(numbers) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    let nonce = Nonce::assume_unique_for_key(nonce);
    let aead = &rules.key.aead;
    let made = aead.seal_in_place_separate_tag(nonce, Aad::from(&*rules.context), plain);
    tag.copy_from_slice(made.ok()?.as_ref());
    Some(URL_SAFE_NO_PAD.encode(sealed))
}

/// `None`: it was sealed by nobody who may, for another rule, or too long ago.
fn open(rules: &Sessions, text: &[u8], now: SystemTime) -> Option<Reference> {
    let mut sealed = [0; SEALED];
    let length = URL_SAFE_NO_PAD.decode_slice(text, &mut sealed).ok()?;
    let sealed = sealed.get_mut(..length)?;
    let (nonce, sealed) = sealed.split_at_mut_checked(NONCE_LEN)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
    let plain = rules.key.aead.open_in_place(nonce, Aad::from(&*rules.context), sealed);
    let plain: &[u8] = plain.ok()?;
    let number = |n: usize| Some(u64::from_le_bytes(plain.get(8 * n..8 * (n + 1))?.try_into().ok()?));
    let at = Reference {
        backend: number(0)?,
        endpoint: number(1)?,
    };
    // One of the future was sealed by a sidecar whose clock is ahead.
    let age = Duration::from_secs(seconds(now).saturating_sub(number(2)?));
    let is_alive = rules.timeout.is_none_or(|timeout| age < timeout);
    is_alive.then_some(at)
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// To which paths the client sends the cookie: to those that the match is for (GEP-1619, "Path"), so that rules do not share sessions. Of
/// a pattern, to all below its beginning.
fn cookie_path(matched: Option<&PathMatch>) -> &str {
    let path = match matched {
        None => "/",
        Some(PathMatch::Exact(path) | PathMatch::Prefix(path)) => path,
        Some(PathMatch::Regex(pattern)) => beginning(pattern.as_str()),
    };
    // What cannot stand there (RFC 6265 section 4.1.1), and the empty prefix, is any path.
    let can_stand = |byte: u8| byte.is_ascii_graphic() && byte != b';';
    match path.starts_with('/') && path.bytes().all(can_stand) {
        true => path,
        false => "/",
    }
}

/// The folders that all paths have which the pattern matches.
fn beginning(pattern: &str) -> &str {
    let pattern = pattern.strip_prefix('^').unwrap_or(pattern);
    if pattern.contains('|') {
        return "/";
    }
    let literal = pattern.find(|c| r".*+?()[]{}^$\".contains(c)).unwrap_or(pattern.len());
    let is_optional = pattern[literal..].starts_with(['*', '?', '{']);
    let literal = &pattern[..literal];
    let literal = match is_optional {
        true => literal.trim_end_matches('/'),
        false => literal,
    };
    let folder = literal.rfind('/').map_or("", |slash| &literal[..slash]);
    if folder.is_empty() { "/" } else { folder }
}

#[cfg(test)]
#[path = "sessions_tests.rs"]
mod tests;
