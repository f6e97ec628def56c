//! `grpc-timeout`, as it comes and as it goes on.

use std::time::Duration;

use http::{HeaderMap, HeaderValue};
use outrigger_proxy_transport::grpc::{GRPC_TIMEOUT, set_timeout, timeout};

/// PROTOCOL-HTTP2.md: at most eight digits and a unit.
const MAX_LENGTH: usize = 9;

/// How long is left, in eight bytes of nanoseconds, and a header's value.
pub fn run(bytes: &[u8]) {
    let (left, value) = bytes.split_at(bytes.len().min(8));
    let left = left.iter().fold(0, |n, byte| n << 8 | u64::from(*byte));
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::from_bytes(value) {
        headers.insert(GRPC_TIMEOUT, value);
    }
    if let Some(said) = timeout(&headers) {
        // Written again, it is the same, or shorter by what eight digits cannot say.
        let again = written(said.max(Duration::from_nanos(1)));
        assert!(again <= said.max(Duration::from_nanos(1)));
        assert!(again >= said.mul_f64(0.99), "{said:?} became {again:?}");
    }
    let left = Duration::from_nanos(left);
    assert!(written(left) <= left.max(Duration::from_nanos(1)));
}

fn written(left: Duration) -> Duration {
    let mut headers = HeaderMap::new();
    set_timeout(&mut headers, left);
    assert!(headers[GRPC_TIMEOUT].len() <= MAX_LENGTH);
    let read = timeout(&headers).expect("what is written can be read");
    assert!(!read.is_zero());
    read
}
