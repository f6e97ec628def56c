//! Whether a response is a proper answer to its request: what a proxy has to repair is repaired, and what it may not pass on
//! is no answer (RFC 9112 section 6.3, RFC 9110 section 7.8). It is the mirror of what the guard refuses in requests, as far as
//! hyper lets it through.

use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};

use crate::headers::protocols;

/// What of a request its response is held to.
pub(super) struct Asked {
    connect: bool,
    /// The protocols that it offers to go on with.
    offered: Vec<HeaderValue>,
}

impl Asked {
    pub(super) fn of<B>(request: &Request<B>) -> Self {
        Self {
            connect: request.method() == Method::CONNECT,
            offered: request.headers().get_all(UPGRADE).iter().cloned().collect(),
        }
    }

    /// Looks at the head of a response, and repairs it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn check<B>(&self, response: &mut Response<B>) -> Result<(), &'static str> {
        let status = response.status();
        let headers = response.headers_mut();
        if status == StatusCode::SWITCHING_PROTOCOLS && !self.offers(headers) {
            return Err("it goes on in another protocol (101) than was offered");
        }
        if status == StatusCode::NO_CONTENT || (self.connect && status.is_success()) {
            // RFC 9110 sections 8.6 and 9.3.6: they say nothing there, and are ignored.
            headers.remove(TRANSFER_ENCODING);
            headers.remove(CONTENT_LENGTH);
            return Ok(());
        }
        let coded = check_coding(headers)?;
        if check_length(headers)? && coded {
            return Err("both Transfer-Encoding and Content-Length");
        }
        Ok(())
    }

    /// RFC 9110 section 7.8: the server names the protocol, one that the client named.
    fn offers(&self, headers: &HeaderMap) -> bool {
        let offered = |protocol: &[u8]| {
            let mut all = self.offered.iter().flat_map(|list| protocols(list.as_bytes()));
            all.any(|offered| offered.eq_ignore_ascii_case(protocol))
        };
        let chosen = headers.get_all(UPGRADE).iter();
        let mut chosen = chosen.flat_map(|list| protocols(list.as_bytes())).peekable();
        chosen.peek().is_some() && chosen.all(offered)
    }
}

/// RFC 9112 section 6.1. Whether there is one.
fn check_coding(headers: &HeaderMap) -> Result<bool, &'static str> {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => Ok(false),
        (Some(coding), None) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") => Ok(true),
        _ => Err("a Transfer-Encoding other than chunked"),
    }
}

/// RFC 9110 section 8.6: one length. A list of equal ones becomes one. Whether there is one; hyper has looked at it where it
/// frames a body, not in the answer to HEAD for instance.
fn check_length(headers: &mut HeaderMap) -> Result<bool, &'static str> {
    let mut lengths = headers
        .get_all(CONTENT_LENGTH)
        .iter()
        .flat_map(|value| value.as_bytes().split(|&b| b == b','))
        .map(<[u8]>::trim_ascii);
    let Some(first) = lengths.next() else {
        return Ok(false);
    };
    let digits = Some(first).filter(|digits| !digits.is_empty() && digits.iter().all(u8::is_ascii_digit));
    let number = |digits: &[u8]| std::str::from_utf8(digits).ok()?.parse::<u64>().ok();
    let Some(length) = digits.and_then(number) else {
        return Err("its Content-Length is not a number");
    };
    let mut listed = false;
    for other in lengths {
        if other != first {
            return Err("lengths that differ");
        }
        listed = true;
    }
    if listed {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::Asked;
    use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};

    const SAME: Result<&[(&str, &str)], &str> = Ok(&[]);

    fn headers(of: &[(&'static str, &'static str)]) -> HeaderMap {
        of.iter()
            .map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v)))
            .collect()
    }

    /// What is left of the response's headers, or what is wrong.
    fn checked(
        method: &str,
        offers: &[&'static str],
        status: u16,
        of: &[(&'static str, &'static str)],
    ) -> Result<HeaderMap, &'static str> {
        let mut request = Request::builder().method(method).body(()).unwrap();
        for protocol in offers {
            request
                .headers_mut()
                .append("upgrade", HeaderValue::from_static(protocol));
        }
        let mut response = Response::builder().status(status).body(()).unwrap();
        *response.headers_mut() = headers(of);
        Asked::of(&request).check(&mut response)?;
        Ok(std::mem::take(response.headers_mut()))
    }

    #[test]
    fn framing_is_repaired_or_refused() {
        type Headers = &'static [(&'static str, &'static str)];
        let cases: &[(&str, u16, Headers, Result<Headers, &str>)] = &[
            ("GET", 200, &[], SAME),
            ("GET", 200, &[("content-length", "5")], SAME),
            ("GET", 200, &[("transfer-encoding", "Chunked")], SAME),
            (
                "GET",
                200,
                &[("content-length", "5"), ("content-length", "5")],
                Ok(&[("content-length", "5")]),
            ),
            (
                "GET",
                200,
                &[("content-length", "5, 5")],
                Ok(&[("content-length", "5")]),
            ),
            (
                "HEAD",
                200,
                &[("content-length", "05,05"), ("content-length", "05")],
                Ok(&[("content-length", "5")]),
            ),
            (
                "GET",
                200,
                &[("content-length", "5"), ("content-length", "6")],
                Err("differ"),
            ),
            ("GET", 200, &[("content-length", "5, 6")], Err("differ")),
            ("GET", 200, &[("content-length", "5,")], Err("differ")),
            ("HEAD", 200, &[("content-length", "5, 6")], Err("differ")),
            (
                "GET",
                304,
                &[("content-length", "5"), ("content-length", "6")],
                Err("differ"),
            ),
            ("GET", 200, &[("content-length", "+5")], Err("not a number")),
            ("HEAD", 200, &[("content-length", "five")], Err("not a number")),
            ("HEAD", 200, &[("content-length", "")], Err("not a number")),
            (
                "HEAD",
                200,
                &[("content-length", "99999999999999999999")],
                Err("not a number"),
            ),
            (
                "GET",
                200,
                &[("content-length", "5"), ("transfer-encoding", "chunked")],
                Err("both"),
            ),
            (
                "HEAD",
                200,
                &[("content-length", "5"), ("transfer-encoding", "chunked")],
                Err("both"),
            ),
            (
                "GET",
                200,
                &[("transfer-encoding", "gzip, chunked")],
                Err("other than chunked"),
            ),
            (
                "GET",
                200,
                &[("transfer-encoding", "chunked, gzip")],
                Err("other than chunked"),
            ),
            ("GET", 200, &[("transfer-encoding", "gzip")], Err("other than chunked")),
            (
                "GET",
                200,
                &[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")],
                Err("other than chunked"),
            ),
            // RFC 9110 sections 8.6 and 9.3.6.
            (
                "GET",
                204,
                &[("content-length", "5"), ("transfer-encoding", "chunked"), ("x", "1")],
                Ok(&[("x", "1")]),
            ),
            (
                "CONNECT",
                200,
                &[("content-length", "5"), ("transfer-encoding", "gzip")],
                Ok(&[]),
            ),
            ("CONNECT", 403, &[("content-length", "5")], SAME),
            (
                "CONNECT",
                403,
                &[("content-length", "5"), ("content-length", "6")],
                Err("differ"),
            ),
        ];
        for &(method, status, of, expected) in cases {
            let found = checked(method, &[], status, of);
            let name = format!("{method} {status} {of:?}");
            match expected {
                Err(what) => assert!(found.as_ref().is_err_and(|why| why.contains(what)), "{name}: {found:?}"),
                Ok([]) if found.as_ref().is_ok_and(|left| !left.is_empty()) => {
                    assert_eq!(found, Ok(headers(of)), "{name}")
                }
                Ok(left) => assert_eq!(found, Ok(headers(left)), "{name}"),
            }
        }
    }

    #[test]
    fn only_what_was_offered_is_switched_to() {
        for (offers, chosen, answers) in [
            (&["websocket"][..], &["websocket"][..], true),
            (&["websocket"], &["WebSocket"], true),
            (&["foo/1, bar"], &["bar"], true),
            (&["foo/1", "bar/2"], &["bar/2", "foo/1"], true),
            (&[], &["websocket"], false),
            (&[], &[], false),
            (&["websocket"], &[], false),
            (&["websocket"], &[""], false),
            (&["websocket"], &["h2c"], false),
            (&["websocket"], &["websocket, h2c"], false),
            (&["foo/1"], &["foo/2"], false),
            (&["foo/1"], &["foo"], false),
        ] {
            let chosen: Vec<_> = chosen.iter().map(|protocol| ("upgrade", *protocol)).collect();
            let found = checked("GET", offers, 101, &chosen);
            assert_eq!(found.is_ok(), answers, "{offers:?} {chosen:?}: {found:?}");
        }
    }
}
