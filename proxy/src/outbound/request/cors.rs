//! What pages of other origins may do with an answer: the CORS protocol (https://fetch.spec.whatwg.org/#http-cors-protocol), as a route's filter
//! says it (Gateway API, HTTPCORSFilter).
//!
//! A preflight is answered here and reaches no app. The filter's word takes the place of what the app says in these headers: where
//! both spoke, a browser would refuse the answer. Answers of the sidecar itself have the headers too, so that a page sees the status.
//!
//! It protects users of browsers, and nobody else: another client is not asked who it is. Who may call is what an AccessPolicy says.

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use outrigger_proxy_transport::server::empty_response;

use crate::call::LocalReply;
use crate::model::{Allowed, Cors};

/// What the filter has to say in the answer to one request.
pub struct Answer<'a> {
    cors: &'a Cors,
    /// Where it is allowed.
    origin: Option<HeaderValue>,
}

/// What is to be said to this request, by [`Answer::add`].
///
/// # Errors
/// The answer, where it is a preflight.
pub fn on_request<'a>(cors: &'a Cors, request: &Parts) -> Result<Answer<'a>, LocalReply> {
    let origin = request.headers.get(ORIGIN);
    let answer = Answer {
        cors,
        origin: origin.filter(|origin| cors.allows(origin)).cloned(),
    };
    let method = request.headers.get(ACCESS_CONTROL_REQUEST_METHOD);
    let (Some(_), Some(method), true) = (origin, method, request.method == Method::OPTIONS) else {
        return Ok(answer);
    };
    let mut response = empty_response(StatusCode::NO_CONTENT);
    let headers = response.headers_mut();
    if answer.add_origin(headers) {
        let mut allow = |name: HeaderName, allowed: &Allowed, asked: Option<&HeaderValue>| match allowed {
            Allowed::Nothing => {}
            Allowed::These(these) => drop(headers.insert(name, these.clone())),
            // With credentials "*" is a name like others (https://fetch.spec.whatwg.org/#cors-protocol-and-credentials).
            Allowed::All if !cors.credentials => drop(headers.insert(name, HeaderValue::from_static("*"))),
            Allowed::All => drop(asked.map(|asked| headers.insert(name, asked.clone()))),
        };
        allow(ACCESS_CONTROL_ALLOW_METHODS, &cors.methods, Some(method));
        allow(
            ACCESS_CONTROL_ALLOW_HEADERS,
            &cors.headers,
            request.headers.get(ACCESS_CONTROL_REQUEST_HEADERS),
        );
        headers.insert(ACCESS_CONTROL_MAX_AGE, cors.max_age.clone());
    }
    headers.append(
        VARY,
        HeaderValue::from_static("access-control-request-method, access-control-request-headers"),
    );
    Err(response.into())
}

impl Answer<'_> {
    /// Says it in the head of a response.
    pub fn add(&self, headers: &mut HeaderMap) {
        for name in [
            ACCESS_CONTROL_ALLOW_ORIGIN,
            ACCESS_CONTROL_ALLOW_CREDENTIALS,
            ACCESS_CONTROL_EXPOSE_HEADERS,
        ] {
            headers.remove(name);
        }
        if self.add_origin(headers) {
            match &self.cors.expose {
                Allowed::These(these) => drop(headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, these.clone())),
                Allowed::All if !self.cors.credentials => {
                    headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("*"));
                }
                // What is exposed cannot be asked for, so there is nothing to repeat.
                Allowed::All | Allowed::Nothing => {}
            }
        }
    }

    /// Whether the request's origin is allowed.
    fn add_origin(&self, headers: &mut HeaderMap) -> bool {
        let is_for_all = self.cors.is_for_all();
        if !is_for_all {
            // Also where nothing is allowed: a cache must not give that answer to another origin.
            headers.append(VARY, HeaderValue::from_static("origin"));
        }
        let Some(origin) = &self.origin else { return false };
        let allowed = if is_for_all {
            HeaderValue::from_static("*")
        } else {
            origin.clone()
        };
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
        if self.cors.credentials {
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use http::Request;
    use outrigger_api::discovery as proto;

    use super::*;

    fn cors(origin: &str, credentials: bool, others: &[&str]) -> Cors {
        let others: Vec<_> = others.iter().map(|&other| other.to_owned()).collect();
        Cors::from_proto(&proto::Cors {
            origins: vec![origin.to_owned()],
            credentials,
            methods: others.clone(),
            headers: others.clone(),
            expose: others,
            max_age: 5,
        })
    }

    fn request(method: &Method, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().method(method);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    /// In lines, without what begins all of them.
    fn said(headers: &HeaderMap) -> String {
        let line = |(name, value): (&HeaderName, &HeaderValue)| {
            let name = name.as_str().replace("access-control-", "");
            format!("{name}: {}", value.to_str().unwrap())
        };
        let mut lines: Vec<_> = headers.iter().map(line).collect();
        lines.sort();
        lines.join("\n")
    }

    const SHOP: &str = "https://shop.example";
    const VARY_ALWAYS: &str = "vary: access-control-request-method, access-control-request-headers";

    #[test]
    fn preflights() {
        let asks = [
            ("origin", SHOP),
            ("access-control-request-method", "PUT"),
            ("access-control-request-headers", "x-a, x-b"),
        ];
        for (cors, expected) in [
            (
                cors(SHOP, false, &["PUT", "x-c"]),
                "allow-headers: PUT, x-c\nallow-methods: PUT, x-c\nallow-origin: https://shop.example\nmax-age: 5\n\
                 vary: access-control-request-method, access-control-request-headers\nvary: origin",
            ),
            (
                cors(SHOP, true, &["*"]),
                "allow-credentials: true\nallow-headers: x-a, x-b\nallow-methods: PUT\nallow-origin: https://shop.example\n\
                 max-age: 5\nvary: access-control-request-method, access-control-request-headers\nvary: origin",
            ),
            (
                cors("*", false, &["*"]),
                "allow-headers: *\nallow-methods: *\nallow-origin: *\nmax-age: 5\n\
                 vary: access-control-request-method, access-control-request-headers",
            ),
            (
                cors("*", true, &[]),
                "allow-credentials: true\nallow-origin: https://shop.example\nmax-age: 5\n\
                 vary: access-control-request-method, access-control-request-headers\nvary: origin",
            ),
            // Nobody's business: it hears nothing but that.
            (
                cors("https://other.example", true, &["*"]),
                "vary: access-control-request-method, access-control-request-headers\nvary: origin",
            ),
        ] {
            let Err(LocalReply::Response(response)) = on_request(&cors, &request(&Method::OPTIONS, &asks)) else {
                panic!("{cors:?}: a preflight is passed on");
            };
            assert_eq!(response.status(), StatusCode::NO_CONTENT);
            assert_eq!(said(response.headers()), expected, "{cors:?}");
        }
        // No header of its own is repeated that was not asked for.
        let asks = request(&Method::OPTIONS, &asks[..2]);
        let all = cors(SHOP, true, &["*"]);
        let Err(LocalReply::Response(response)) = on_request(&all, &asks) else {
            panic!()
        };
        assert!(!response.headers().contains_key(ACCESS_CONTROL_ALLOW_HEADERS));
        assert!(said(response.headers()).contains(VARY_ALWAYS));
    }

    #[test]
    fn what_is_no_preflight_is_passed_on() {
        let cors = cors(SHOP, false, &["*"]);
        let (origin, method) = (("origin", SHOP), ("access-control-request-method", "PUT"));
        for (of, headers) in [
            (Method::GET, &[origin, method][..]),
            (Method::OPTIONS, &[origin]),
            (Method::OPTIONS, &[method]),
            (Method::OPTIONS, &[]),
        ] {
            assert!(on_request(&cors, &request(&of, headers)).is_ok(), "{of} {headers:?}");
        }
    }

    #[test]
    fn answers() {
        for (cors, origin, expected) in [
            (
                cors(SHOP, false, &["x-c"]),
                Some(SHOP),
                "allow-origin: https://shop.example\nexpose-headers: x-c\nvary: origin",
            ),
            (
                cors(SHOP, true, &["*"]),
                Some(SHOP),
                "allow-credentials: true\nallow-origin: https://shop.example\nvary: origin",
            ),
            (
                cors("*", false, &["*"]),
                Some("null"),
                "allow-origin: *\nexpose-headers: *",
            ),
            (
                cors("*", true, &[]),
                Some("null"),
                "allow-credentials: true\nallow-origin: null\nvary: origin",
            ),
            (
                cors(SHOP, true, &["x-c"]),
                Some("https://other.example"),
                "vary: origin",
            ),
            // A cache must not give this answer to a page of another origin.
            (cors(SHOP, true, &["x-c"]), None, "vary: origin"),
            (cors("*", false, &["x-c"]), None, ""),
        ] {
            let headers: Vec<_> = origin.iter().map(|&origin| ("origin", origin)).collect();
            let head = request(&Method::GET, &headers);
            let Ok(answer) = on_request(&cors, &head) else {
                panic!("{cors:?}")
            };
            // What the app says is replaced.
            let mut response = HeaderMap::new();
            response.insert(
                ACCESS_CONTROL_ALLOW_ORIGIN,
                HeaderValue::from_static("https://app.example"),
            );
            response.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
            response.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("x-app"));
            answer.add(&mut response);
            assert_eq!(said(&response), expected, "{cors:?} {origin:?}");
        }
    }
}
