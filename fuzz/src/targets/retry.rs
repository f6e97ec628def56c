//! A server's word on when to try again: `Retry-After` and `grpc-retry-pushback-ms`.

use std::time::{Duration, SystemTime};

use http::StatusCode;
use outrigger_proxy::model::RetryPolicy;
use outrigger_proxy::outbound::retry::{Attempted, MAX_SERVER_WAIT, RetryDecision, judge};
use outrigger_proxy_transport::grpc::grpc_status;

use super::header_lines;

/// Lines of "name: value", the headers of a 503.
pub fn run(bytes: &[u8]) {
    let headers = header_lines(bytes);
    let policy = RetryPolicy::default();
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777); // Sun, 06 Nov 1994 08:49:37 GMT
    let answered = Attempted::Answered {
        status: StatusCode::SERVICE_UNAVAILABLE,
        headers: &headers,
        reason: None,
    };
    assert_eq!(
        judge(&answered, false, &policy, now),
        RetryDecision::Final,
        "it may have been processed"
    );
    let decision = judge(&answered, true, &policy, now);
    let wanted = grpc_status(&headers).is_none_or(|status| policy.grpc_statuses.contains(&status));
    if !wanted {
        assert_eq!(decision, RetryDecision::Final);
    }
    let text = |name: &str| {
        headers
            .get(name)
            .map(|value| value.to_str().unwrap_or("\u{fffd}").trim())
    };
    match decision {
        RetryDecision::Retry { after } => assert!(after <= MAX_SERVER_WAIT),
        RetryDecision::Final => {}
        RetryDecision::Replay => panic!("there was an answer"),
    }
    if let (Some(pushback), true) = (text("grpc-retry-pushback-ms"), wanted) {
        let millis = all_digits(pushback).filter(|millis| *millis <= 1000);
        assert_eq!(decision, waits(millis.map(Duration::from_millis)), "{pushback:?}");
    } else if let (Some(after), true) = (text("retry-after"), wanted)
        && let Some(seconds) = all_digits(after)
    {
        assert_eq!(decision, waits(Some(Duration::from_secs(seconds))), "{after:?}");
    }
}

fn waits(wait: Option<Duration>) -> RetryDecision {
    match wait.filter(|wait| *wait <= MAX_SERVER_WAIT) {
        Some(after) => RetryDecision::Retry { after },
        None => RetryDecision::Final,
    }
}

/// A number of any length; the largest that there is stands for larger ones (RFC 9111 section 1.2.2).
fn all_digits(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}
