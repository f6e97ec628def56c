//! An endpoint that says it is busy gets fewer requests for a while (`loadBalancer.penalty`): its load counts [`TIMES`] as much.
//!
//! It is never left out for that: where all are busy, requests are spread as before, and where one of them has less to do than a
//! fourth of what the others have, it is asked. How long, the answer says (`Retry-After`, `grpc-retry-pushback-ms`), at most for
//! `max`; where it does not, it is `duration`. This is what an endpoint has said to requests of any rule; it counts for those whose
//! policy has a penalty.

use std::time::{Duration, SystemTime};

use super::retry::{Attempted, Wanted, wanted_wait};
use crate::model::Penalty;
use outrigger_proxy_transport::grpc::grpc_status;

/// See the module.
pub const TIMES: u32 = 4;

/// For how long the load of an endpoint counts more that has answered so.
pub fn penalised(attempted: &Attempted<'_>, policy: &Penalty, now: SystemTime) -> Option<Duration> {
    let Attempted::Answered { status, headers, .. } = *attempted else {
        return None;
    };
    let status = match grpc_status(headers) {
        Some(8) => 429,
        Some(14) => 503,
        _ => status.as_u16(),
    };
    policy
        .statuses
        .contains(&status)
        .then(|| match wanted_wait(headers, now) {
            Wanted::Wait(time) => time.min(policy.max),
            Wanted::Nothing | Wanted::Never => policy.duration.min(policy.max),
        })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn how_long_is_what_the_answer_says_within_the_policy() {
        let policy = Penalty {
            statuses: vec![429, 503],
            duration: 5 * SECOND,
            max: 60 * SECOND,
        };
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        for (status, headers, expected) in [
            (200, &[][..], None),
            (500, &[("retry-after", "7")], None),
            (429, &[], Some(5)),
            (503, &[], Some(5)),
            (429, &[("retry-after", "7")], Some(7)),
            (429, &[("retry-after", "Sun, 06 Nov 1994 08:49:47 GMT")], Some(10)),
            (429, &[("retry-after", "nonsense")], Some(5)),
            (429, &[("retry-after", "3600")], Some(60)),
            (200, &[("grpc-status", "8")], Some(5)),
            (
                200,
                &[("grpc-status", "14"), ("grpc-retry-pushback-ms", "9000")],
                Some(9),
            ),
            (200, &[("grpc-status", "8"), ("grpc-retry-pushback-ms", "-1")], Some(5)),
            (200, &[("grpc-status", "7")], None),
            (200, &[("grpc-status", "0")], None),
        ] {
            let lines = headers
                .iter()
                .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
            let headers: HeaderMap = lines.collect();
            let attempted = Attempted::Answered {
                status: StatusCode::from_u16(status).unwrap(),
                headers: &headers,
                reason: None,
            };
            let expected = expected.map(|seconds| seconds * SECOND);
            assert_eq!(penalised(&attempted, &policy, now), expected, "{status} {headers:?}");
        }
    }
}
