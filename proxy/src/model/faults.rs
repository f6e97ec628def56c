//! Faults on purpose, as they are carried out: see `outbound::faults`.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderName, HeaderValue, StatusCode};
use outrigger_api::discovery as proto;
use outrigger_api::pattern;
use outrigger_api::policy::{ABORT_GRPC_STATUSES, ABORT_STATUSES, FAULT_DELAY, MAX_FAULTS};

use super::RouteMatch;
use super::from_proto::route_match;

/// Of the year 9999, the last one that RFC 3339 can say.
const LAST_SECOND: u64 = 253_402_300_799;

/// All faults of a rule, in their order. Rules that say nothing of them share those of the outer one.
#[derive(Clone, Debug, Default)]
pub struct Faults(Option<Arc<[Fault]>>);

/// One of them.
#[derive(Debug)]
pub struct Fault {
    /// Any of them; none matches everything.
    pub matches: Vec<RouteMatch>,
    /// The share of the requests, 0 to [`Fault::WHOLE`].
    pub share: u32,
    /// Only requests with this header; with any value where there is none.
    pub only_when: Option<(HeaderName, Option<HeaderValue>)>,
    /// From then on there is no such fault.
    pub until: Option<SystemTime>,
    pub delay: Option<RangeInclusive<Duration>>,
    pub abort: Option<Abort>,
}

/// What a request is answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abort {
    Http(StatusCode),
    /// gRPC calls alone.
    Grpc(u16),
}

impl Faults {
    /// In their order.
    pub fn iter(&self) -> impl Iterator<Item = &Fault> {
        self.0.iter().flat_map(|faults| faults.iter())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// What is not understood of a fault must not make more of it: it is left out.
    pub(super) fn from_proto(message: &proto::Faults, patterns: &mut pattern::Budget) -> Self {
        let faults = message.in_order.iter().take(MAX_FAULTS);
        let faults: Arc<[Fault]> = faults.filter_map(|m| Fault::from_proto(m, patterns)).collect();
        Self((!faults.is_empty()).then_some(faults))
    }
}

impl PartialEq for Faults {
    /// The very same ones.
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (a, b) => a.is_none() && b.is_none(),
        }
    }
}

impl Fault {
    /// All requests.
    pub const WHOLE: u32 = 1_000_000;

    fn from_proto(message: &proto::Fault, patterns: &mut pattern::Budget) -> Option<Self> {
        let only_when = match &message.only_when_header {
            None => None,
            Some(header) => {
                let value = header.value.as_deref().map(HeaderValue::from_str);
                let name = HeaderName::from_bytes(header.name.as_bytes());
                Some((name.ok()?, value.transpose().ok()?))
            }
        };
        let until = match message.until_unix_seconds {
            None => None,
            Some(seconds) if seconds > LAST_SECOND => return None,
            Some(seconds) => Some(SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))?),
        };
        if until.is_none() && only_when.is_none() {
            return None;
        }
        let delay = message.delay.map(|delay| {
            let max = super::rules::within(delay.max_ms, FAULT_DELAY);
            super::rules::within(delay.min_ms, FAULT_DELAY).min(max)..=max
        });
        let abort = match &message.abort {
            None => None,
            Some(abort) => Some(Abort::from_proto(abort)?),
        };
        if delay.is_none() && abort.is_none() {
            return None;
        }
        let matches = message.matches.iter().map(|m| route_match(m, patterns));
        Some(Self {
            matches: matches.collect::<Option<_>>()?,
            share: message.parts_per_million.min(Self::WHOLE),
            only_when,
            until,
            delay,
            abort,
        })
    }
}

impl Abort {
    fn from_proto(message: &proto::FaultAbort) -> Option<Self> {
        let of = |number: u32, range: RangeInclusive<u16>| u16::try_from(number).ok().filter(|n| range.contains(n));
        match (message.http_status, message.grpc_status) {
            (0, grpc) => of(grpc, ABORT_GRPC_STATUSES).map(Self::Grpc),
            (http, 0) => StatusCode::from_u16(of(http, ABORT_STATUSES)?).ok().map(Self::Http),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{Abort, Faults};
    use http::StatusCode;
    use outrigger_api::discovery as proto;
    use outrigger_api::pattern;

    /// One that is understood.
    fn fault() -> proto::Fault {
        proto::Fault {
            matches: vec![proto::Match::default()],
            parts_per_million: 5,
            only_when_header: Some(header("x-chaos")),
            until_unix_seconds: Some(60),
            delay: Some(proto::FaultDelay { min_ms: 5, max_ms: 9 }),
            abort: Some(abort(503, 0)),
        }
    }

    fn header(name: &str) -> proto::FaultHeader {
        proto::FaultHeader {
            name: name.to_owned(),
            value: Some("on".to_owned()),
        }
    }

    fn abort(http_status: u32, grpc_status: u32) -> proto::FaultAbort {
        proto::FaultAbort {
            http_status,
            grpc_status,
        }
    }

    fn read(in_order: Vec<proto::Fault>) -> Faults {
        Faults::from_proto(&proto::Faults { in_order }, &mut pattern::Budget::default())
    }

    #[test]
    fn what_is_understood() {
        let faults = read(vec![fault()]);
        let read = faults.iter().next().unwrap();
        let shown = format!("{:?} {:?} {:?}", read.share, read.delay, read.until);
        assert!(shown.starts_with("5 Some(5ms..=9ms) Some(SystemTime"), "{shown}");
        assert_eq!(read.abort, Some(Abort::Http(StatusCode::SERVICE_UNAVAILABLE)));
    }

    /// No mistake, and no word of a newer controller, makes more of a fault.
    #[test]
    fn one_that_is_not_understood_is_none() {
        let unknown = proto::Match {
            path: Some(proto::StringMatch { kind: None }),
            ..proto::Match::default()
        };
        let change = |change: &dyn Fn(&mut proto::Fault)| {
            let mut fault = fault();
            change(&mut fault);
            fault
        };
        for (what, fault) in [
            ("a match", change(&|f| f.matches.push(unknown.clone()))),
            ("a header", change(&|f| f.only_when_header = Some(header("a b")))),
            ("an abort", change(&|f| f.abort = Some(abort(200, 0)))),
            ("another", change(&|f| f.abort = Some(abort(0, 17)))),
            ("two at once", change(&|f| f.abort = Some(abort(503, 14)))),
            ("no abort", change(&|f| f.abort = Some(abort(0, 0)))),
            (
                "a year without a name",
                change(&|f| f.until_unix_seconds = Some(u64::MAX)),
            ),
            (
                "no end",
                change(&|f| (f.until_unix_seconds, f.only_when_header) = (None, None)),
            ),
            ("nothing to do", change(&|f| (f.delay, f.abort) = (None, None))),
        ] {
            assert!(read(vec![fault]).is_empty(), "{what}");
        }
        assert_eq!(read(vec![fault(); 20]).iter().count(), 8);
    }
}
