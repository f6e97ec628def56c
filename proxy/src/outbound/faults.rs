//! Faults on purpose (`faults` of a TrafficPolicy): a request is delayed, answered with an error, or both, so that one can see how
//! its app takes that.
//!
//! A fault is of the request as a whole: it is decided once, and no retry takes it back, so that 30 % are 30 %. What a route answers by itself
//! (a redirect, an invalid backend) has none. A delay is a part of `timeouts.request` and of a gRPC caller's own limit, as it would be if the
//! server took so long, and ends with them; `timeouts.backendRequest` begins when the request is sent.
//!
//! Faults do no harm to what is measured and what is learned: no endpoint is picked for a request that is aborted, nothing is put into the
//! retry budget, and no mirror gets it; the time that a request was delayed is not its endpoint's. A request with a fault stands in
//! `outrigger_faults_total` and in no metric of the Service.
//!
//! It does not protect the app: each request that waits takes what it would take if the server were so slow. Whether a fault may be there
//! is up to who may write the policy.

use std::time::{Duration, SystemTime};

use http::request::Parts;
use http::{Response, Version};
use outrigger_proxy_transport::error::{ProxyError, Reason, grpc_status_of};
use outrigger_proxy_transport::grpc::{GRPC_STATUS, is_grpc};
use outrigger_proxy_transport::server::{ResponseBody, error_response};
use rand::Rng;
use tokio::time::Instant;

use super::route::matches_any;
use crate::call::{Call, LocalReply};
use crate::model::{Abort, Fault, Faults};

/// What a request is to suffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Injected {
    pub delay: Option<Duration>,
    pub abort: Option<Abort>,
}

/// The fault that a request has, if any. Of those whose conditions it meets each has its share of the whole, one after the other, so
/// that each share is what it says as long as they are not more than all together.
pub fn decide(faults: &Faults, head: &Parts, now: SystemTime, rng: &mut impl Rng) -> Option<Injected> {
    let mut met = faults.iter().filter(|fault| meets(fault, head, now)).peekable();
    // Nothing is drawn for requests that no fault is for.
    met.peek()?;
    let drawn = rng.random_range(0..Fault::WHOLE);
    let mut end: u32 = 0;
    let fault = met.find(|fault| {
        end = end.saturating_add(fault.share);
        drawn < end
    })?;
    Some(Injected {
        delay: fault.delay.as_ref().map(|delay| rng.random_range(delay.clone())),
        abort: fault.abort,
    })
}

fn meets(fault: &Fault, head: &Parts, now: SystemTime) -> bool {
    fault.until.is_none_or(|until| now < until)
        && fault.only_when.as_ref().is_none_or(|(name, value)| {
            let mut values = head.headers.get_all(name).iter();
            values.any(|found| value.as_ref().is_none_or(|value| value == found))
        })
        && (!matches!(fault.abort, Some(Abort::Grpc(_))) || head.version == Version::HTTP_2 && is_grpc(&head.headers))
        && matches_any(&fault.matches, head)
}

impl Injected {
    /// Makes the request wait, at most until `deadline`, and marks its call.
    ///
    /// # Errors
    /// What answers it in place of a server.
    pub async fn carry_out(&self, deadline: Option<Instant>, call: &mut Call) -> Result<(), LocalReply> {
        call.fault(self.delay, self.abort.is_some());
        if let Some(delay) = self.delay {
            let until = Instant::now() + delay;
            let at = deadline.map_or(until, |deadline| deadline.min(until));
            tokio::time::sleep_until(at).await;
            if at < until {
                let late = "the request's time was up while a fault delayed it on purpose; see timeouts.request, the caller's \
                            grpc-timeout, and faults";
                return Err(ProxyError::new(Reason::RequestTimeout, late).into());
            }
        }
        match self.abort {
            Some(abort) => Err(answer(abort, call.request.is_grpc()).into()),
            None => Ok(()),
        }
    }
}

fn answer(abort: Abort, grpc: bool) -> Response<ResponseBody> {
    let why = "a fault on purpose; see faults in the TrafficPolicies of the Service and of its routes";
    let mut response = error_response(&ProxyError::new(Reason::FaultInjected, why), grpc);
    let grpc_status = match abort {
        Abort::Http(status) if !grpc => {
            *response.status_mut() = status;
            return response;
        }
        Abort::Http(status) => grpc_status_of(status),
        Abort::Grpc(status) => status,
    };
    response.headers_mut().insert(GRPC_STATUS, grpc_status.into());
    response
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::testing::rules_of;
    use super::{Injected, decide};
    use crate::model::{Abort, Faults};
    use http::request::Parts;
    use http::{Request, StatusCode, Version};
    use rand::SeedableRng;
    use rand::rngs::SmallRng;
    use std::time::{Duration, SystemTime};

    fn faults(yaml: &str) -> Faults {
        rules_of(&format!("faults: {yaml}")).request.faults
    }

    fn request(method: &str, path: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().method(method).uri(path).version(Version::HTTP_2);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn who_has_a_fault() {
        let faults = faults(
            "[{percent: 100, until: '1970-01-01T00:01:00Z', abort: {grpcStatus: 14}},\
              {percent: 100, until: '1970-01-01T00:01:00Z', abort: {status: 500}, \
               matches: [{path: {type: PathPrefix, value: /a}, method: GET}, {headers: [{name: x-b, value: 'c.*', type: RegularExpression}]}]},\
              {percent: 100, onlyWhenHeader: {name: X-Chaos, value: 'on'}, abort: {status: 501}},\
              {percent: 100, onlyWhenHeader: {name: x-any}, abort: {status: 502}},\
              {percent: 100, onlyWhenHeader: {name: x-both}, until: '1970-01-01T00:01:00Z', abort: {status: 504}},\
              {percent: 0, onlyWhenHeader: {name: x-none}, abort: {status: 503}}]",
        );
        let http = |status| Some(Abort::Http(StatusCode::from_u16(status).unwrap()));
        let grpc = ("content-type", "application/grpc");
        let http1 = {
            let mut request = request("POST", "/b", &[grpc]);
            request.version = Version::HTTP_11;
            request
        };
        for (now, request, abort) in [
            (59, request("POST", "/b", &[grpc]), Some(Abort::Grpc(14))),
            (60, request("POST", "/b", &[grpc]), None),
            (59, http1, None),
            (59, request("GET", "/a/b", &[]), http(500)),
            (59, request("GET", "/ab", &[]), None),
            (59, request("POST", "/a", &[]), None),
            (59, request("POST", "/b", &[("x-b", "cd")]), http(500)),
            (59, request("POST", "/b", &[("x-b", "dc")]), None),
            // It has ended, and the next one is looked at.
            (60, request("GET", "/a", &[("x-chaos", "on")]), http(501)),
            (
                60,
                request("GET", "/a", &[("x-chaos", "off"), ("x-chaos", "on")]),
                http(501),
            ),
            (60, request("GET", "/a", &[("x-chaos", "off")]), None),
            (60, request("GET", "/a", &[("x-any", "")]), http(502)),
            (59, request("GET", "/b", &[("x-both", "1")]), http(504)),
            (60, request("GET", "/b", &[("x-both", "1")]), None),
            (60, request("GET", "/a", &[("x-none", "1")]), None),
        ] {
            let mut rng = SmallRng::seed_from_u64(1);
            let decided = decide(&faults, &request, at(now), &mut rng);
            assert_eq!(decided.and_then(|fault| fault.abort), abort, "{now} {request:?}");
        }
    }

    /// How many of 10,000 requests have the one, and the other.
    fn shares(faults: &Faults) -> [usize; 2] {
        let mut rng = SmallRng::seed_from_u64(1);
        let request = request("GET", "/", &[("x", "1")]);
        let decided: Vec<_> = (0..10_000)
            .filter_map(|_| decide(faults, &request, at(0), &mut rng))
            .collect();
        let delayed = decided.iter().filter(|fault| fault.delay.is_some()).count();
        let aborted = decided.iter().filter(|fault| fault.abort.is_some()).count();
        assert_eq!(delayed + aborted, decided.len(), "a request has one fault");
        [delayed, aborted]
    }

    #[test]
    fn each_share_is_what_it_says() {
        let two = |first: u32, second: u32| {
            faults(&format!(
                "[{{percent: {first}, onlyWhenHeader: {{name: x}}, delay: {{fixed: 1s}}}}, \
                  {{percent: {second}, onlyWhenHeader: {{name: x}}, abort: {{status: 503}}}}]"
            ))
        };
        for (first, second, expected) in [
            (0, 0, [0..=0, 0..=0]),
            (100, 0, [10_000..=10_000, 0..=0]),
            (0, 100, [0..=0, 10_000..=10_000]),
            (10, 30, [900..=1100, 2850..=3150]),
            // There is not more than the whole.
            (100, 100, [10_000..=10_000, 0..=0]),
            (60, 60, [5850..=6150, 3850..=4150]),
        ] {
            let counted = shares(&two(first, second));
            let holds = expected
                .iter()
                .zip(&counted)
                .all(|(range, count)| range.contains(count));
            assert!(holds, "{first} {second}: {counted:?}");
        }
    }

    #[test]
    fn a_delay_is_between_its_ends() {
        let faults = faults("[{percent: 100, onlyWhenHeader: {name: x}, delay: {min: 100ms, max: 300ms}}]");
        let mut rng = SmallRng::seed_from_u64(1);
        let request = request("GET", "/", &[("x", "1")]);
        let all = (0..1000).filter_map(|_| decide(&faults, &request, at(0), &mut rng)?.delay);
        let all: Vec<_> = all.collect();
        assert_eq!(all.len(), 1000);
        let (min, max) = (all.iter().min().unwrap(), all.iter().max().unwrap());
        assert!(*min >= Duration::from_millis(100) && *max <= Duration::from_millis(300));
        assert!(*max - *min > Duration::from_millis(150));
    }

    #[test]
    fn where_no_fault_is_for_a_request_nothing_is_drawn() {
        let untouched = || SmallRng::seed_from_u64(1);
        for faults in [
            Faults::default(),
            faults("[{percent: 100, onlyWhenHeader: {name: x}, abort: {status: 503}}]"),
        ] {
            let mut rng = untouched();
            let decided: Option<Injected> = decide(&faults, &request("GET", "/", &[]), at(0), &mut rng);
            assert_eq!((decided, rng), (None, untouched()));
        }
    }
}
