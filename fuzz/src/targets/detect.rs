//! What an app's connection speaks: the first bytes of anybody.

use outrigger_proxy_transport::net::detect::{Detected, Verdict, protocol};

/// More is never waited for.
const ENOUGH: usize = 2048;

/// Any first bytes.
pub fn run(bytes: &[u8]) {
    let whole = protocol(bytes);
    // How the bytes are cut into packets decides nothing.
    let step = 1 + bytes.len() / 100;
    for end in (0..bytes.len()).step_by(step) {
        let part = protocol(&bytes[..end]);
        assert!(
            part == Verdict::NeedMore || part == whole,
            "{part:?} at {end}, and {whole:?}"
        );
    }
    if bytes.len() >= ENOUGH {
        assert_ne!(whole, Verdict::NeedMore);
    }
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut fields);
    if matches!(request.parse(bytes), Ok(httparse::Status::Complete(_))) && is_usual(bytes, &request) {
        assert_eq!(whole, Verdict::Is(Detected::Http1), "{request:?}");
    }
}

/// Not one of the forms that HTTP allows and nobody uses: empty lines first, punctuation in a method, more than one space.
fn is_usual(bytes: &[u8], request: &httparse::Request<'_, '_>) -> bool {
    let (Some(method), Some(path)) = (request.method, request.path) else {
        return false;
    };
    let line = format!("{method} {path} HTTP/1.{}", request.version.unwrap_or(9));
    let rest = bytes.strip_prefix(line.as_bytes()).unwrap_or_default();
    method.len() <= 32
        && method
            .bytes()
            .all(|b| b.is_ascii_alphabetic() || b == b'-' || b == b'_')
        && path.starts_with(|c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '*' | '['))
        && (rest.starts_with(b"\r\n") || rest.starts_with(b"\n"))
}
