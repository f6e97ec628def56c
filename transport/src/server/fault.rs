//! Why a request is refused before anybody decides about it, and how that is answered.

use http::header::CONTENT_LENGTH;
use http::request::Parts;
use http::{HeaderMap, Uri, Version};

use crate::error::{ProxyError, Reason};
use crate::limits::MAX_HEADER_BYTES;

/// What a client outside the mesh is told by a strict workload.
pub const PLAINTEXT_REFUSED: &str =
    "this workload takes mutual TLS only; call it from a pod with a sidecar, or see outrigger.dev/mtls";
/// Lines of an HTTP/1 header section, as many as hyper takes.
pub(super) const MAX_FIELDS: usize = 100;
/// What is wrong in both versions of HTTP.
pub(super) const TWO_LENGTHS: &str = "two Content-Length headers";
/// What HTTP/2 adds to the size of each field (RFC 9113 section 10.5.1).
const FIELD_OVERHEAD: usize = 32;

/// Why nothing more of a connection is passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// What is wrong with the message.
    Malformed(&'static str),
    /// The header section is larger than the limit.
    TooLarge,
    /// The head has more lines than the limit.
    TooMany,
    /// The head did not end in time.
    TooSlow,
    /// Too much memory is taken by heads whose end is not here.
    NoRoom,
    /// Too much memory is taken by requests that wait for their answers: on its connection, of its address, or by all.
    Crowded,
    /// The client speaks plaintext where only mutual TLS is taken, so no more of its head is kept.
    Plaintext,
}

impl Fault {
    /// As it is answered.
    pub fn error(self) -> ProxyError {
        match self {
            Fault::Malformed(what) => ProxyError::new(
                Reason::BadRequest,
                format!("the request is malformed: {what}; nothing of it was passed on"),
            ),
            Fault::TooLarge => ProxyError::new(
                Reason::HeadersTooLarge,
                "the request's header section is larger than 64 KiB; send less, cookies for instance",
            ),
            Fault::TooMany => ProxyError::new(
                Reason::HeadersTooLarge,
                format!("the request has more than {MAX_FIELDS} header lines; send fewer, or use HTTP/2"),
            ),
            Fault::TooSlow => ProxyError::new(
                Reason::HeadTimeout,
                "the request's header section did not end within 10 s of its first byte",
            ),
            Fault::NoRoom => ProxyError::new(
                Reason::Overloaded,
                "this sidecar holds too many unfinished header sections; give it more memory if they are not an attack",
            ),
            Fault::Crowded => ProxyError::new(
                Reason::Overloaded,
                "the requests that wait for their answers take too much memory: those of this client, of which one HTTP/2 connection \
                 has at most 8 MiB of headers, or those of all; send fewer at once, or give this sidecar more memory",
            ),
            Fault::Plaintext => ProxyError::new(Reason::PlaintextRefused, PLAINTEXT_REFUSED),
        }
    }
}

/// Whether a request may be looked at at all.
///
/// # Errors
/// [`Reason::BadRequest`] and others: what the connection's guard found, or a head over the limit.
pub fn check(head: &Parts) -> Result<(), ProxyError> {
    match head.extensions.get::<Fault>() {
        Some(fault) => Err(fault.error()),
        None if too_large(&head.uri, &head.headers) => Err(Fault::TooLarge.error()),
        // The scanner sees to it in HTTP/1; h2 takes several, if they are equal.
        None if head.version == Version::HTTP_2 && head.headers.get_all(CONTENT_LENGTH).iter().nth(1).is_some() => {
            Err(Fault::Malformed(TWO_LENGTHS).error())
        }
        None => Ok(()),
    }
}

/// Whether the header section is larger than the limit. A quarter of the cost of a hash: it is a walk over two slices.
fn too_large(uri: &Uri, headers: &HeaderMap) -> bool {
    let path = uri.path_and_query().map_or(0, |p| p.as_str().len());
    let fields: usize = headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + FIELD_OVERHEAD)
        .sum();
    path + fields > MAX_HEADER_BYTES
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{Fault, check, too_large};
    use http::{HeaderMap, HeaderValue, Request, Uri, Version};

    #[test]
    fn a_request_of_http2_has_one_length() {
        let checked = |lengths: &[&'static str]| {
            let mut request = Request::builder().version(Version::HTTP_2).body(()).unwrap();
            for length in lengths {
                request
                    .headers_mut()
                    .append("content-length", HeaderValue::from_static(length));
            }
            check(&request.into_parts().0).is_ok()
        };
        assert!(checked(&[]) && checked(&["5"]));
        assert!(!checked(&["5", "5"]), "refused in HTTP/1, too");
    }

    #[test]
    fn what_was_found_is_refused() {
        let mut request = Request::new(());
        assert!(check(&request.clone().into_parts().0).is_ok());
        request.extensions_mut().insert(Fault::Malformed("two Host headers"));
        let error = check(&request.into_parts().0).unwrap_err();
        assert!(error.detail.contains("two Host headers"), "{error}");
    }

    #[test]
    fn a_head_has_a_limit_whatever_it_came_in() {
        let mut headers = HeaderMap::new();
        assert!(!too_large(&Uri::from_static("/"), &headers));
        headers.insert("x", HeaderValue::from_bytes(&vec![b'a'; 64 * 1024]).unwrap());
        assert!(too_large(&Uri::from_static("/"), &headers));
    }
}
