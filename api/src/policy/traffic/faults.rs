//! Faults on purpose: how an app behaves when what it calls is slow or fails.
//!
//! A fault ends by itself, or is for requests alone that ask for it; and which share of the requests it is for has to be said. So nothing
//! that is left out makes more of it.

use std::ops::RangeInclusive;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{to_millis, within};
use crate::discovery::{self, Feature};
use crate::duration;
use crate::policy::access::{HeaderSpec, PathSpec, Reader, is_token, no_header};

/// Of `faults[].delay`.
pub const FAULT_DELAY: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(3600);
/// HTTP statuses that an abort may have.
pub const ABORT_STATUSES: RangeInclusive<u16> = 400..=599;
/// gRPC statuses that an abort may have: all but OK.
pub const ABORT_GRPC_STATUSES: RangeInclusive<u16> = 1..=16;
/// Of one policy.
pub const MAX_FAULTS: usize = 8;
/// Of one fault; and headers of one of them.
const MAX_MATCHES: usize = 8;

/// Requests that are delayed, answered with an error, or both, to see how an app takes that. Say when it ends (`until`), or that only
/// requests with a header have it (`onlyWhenHeader`), or both.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.delay) || has(self.abort)",
    "message": "say delay, abort, or both"
}, {
    "rule": "has(self.until) || has(self.onlyWhenHeader)",
    "message": "say until, onlyWhenHeader, or both: no fault goes on for ever"
}]))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FaultSpec {
    /// Which requests: those that match any of these. Default: all that the policy is about.
    #[schemars(length(min = 1, max = 8))]
    pub matches: Option<Vec<FaultMatchSpec>>,
    /// The share of them, 0 to 100, drawn for each request. A request has at most one fault, and the shares of several add up: with 10
    /// and 5 for the same requests, 85 % have none.
    #[schemars(range(max = 100))]
    pub percent: u32,
    /// Only requests that carry this header.
    pub only_when_header: Option<FaultHeaderSpec>,
    /// When it ends, in RFC 3339: "2026-11-28T18:00:00Z".
    // Kubernetes takes more for a date-time than RFC 3339 does.
    #[schemars(
        length(max = 40),
        regex(pattern = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})$"),
        extend("format" = "date-time")
    )]
    pub until: Option<String>,
    /// How long they wait before they are sent, or answered.
    pub delay: Option<FaultDelaySpec>,
    /// What they are answered with, in place of being sent.
    pub abort: Option<FaultAbortSpec>,
}

/// What a request must be: all that is said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[schemars(extend("minProperties" = 1))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FaultMatchSpec {
    /// Its path, as the app sends it.
    pub path: Option<PathSpec>,
    /// Its method, in upper case.
    #[schemars(length(max = 32), regex(pattern = "^[A-Z0-9!#$%&'*+.^_`|~-]+$"))]
    pub method: Option<String>,
    /// Its headers: all of them. Several lines of one name are one value, with commas between them.
    #[schemars(length(min = 1, max = 8))]
    pub headers: Option<Vec<HeaderSpec>>,
}

/// A header that asks for the fault.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FaultHeaderSpec {
    /// Its name, in any case.
    #[schemars(length(max = 256), regex(pattern = "^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"))]
    pub name: String,
    /// The value of one of its lines. Default: any.
    #[schemars(length(min = 1, max = 1024), regex(pattern = r"^[^\x00-\x08\x0A-\x1F\x7F]*$"))]
    pub value: Option<String>,
}

/// How long: `fixed`, or by chance between `min` and `max`. 1ms to 1h.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.fixed) ? !has(self.min) && !has(self.max) : has(self.min) && has(self.max)",
    "message": "say fixed, or min and max"
}]))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FaultDelaySpec {
    /// The same for each.
    #[schemars(length(max = 24), regex(pattern = duration::PATTERN))]
    pub fixed: Option<String>,
    /// The shortest.
    #[schemars(length(max = 24), regex(pattern = duration::PATTERN))]
    pub min: Option<String>,
    /// The longest.
    #[schemars(length(max = 24), regex(pattern = duration::PATTERN))]
    pub max: Option<String>,
}

/// One of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[schemars(extend("minProperties" = 1, "maxProperties" = 1))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FaultAbortSpec {
    /// 400 to 599. A gRPC call gets the gRPC status that stands for it.
    #[schemars(range(min = 400, max = 599))]
    pub status: Option<u16>,
    /// 1 to 16: the fault is for gRPC calls alone.
    #[schemars(range(min = 1, max = 16))]
    pub grpc_status: Option<u16>,
}

/// All faults of a policy. A list is one field: an empty one says that there is none.
pub(super) fn to_proto(faults: &[FaultSpec], errors: &mut Vec<String>) -> discovery::Faults {
    let mut reader = Reader::new("");
    if faults.len() > MAX_FAULTS {
        reader.mistake("faults", &format!("{} are more than {MAX_FAULTS}", faults.len()));
    }
    let faults = faults.iter().enumerate();
    let faults = faults.map(|(n, fault)| fault.to_proto(&format!("faults[{n}]"), &mut reader));
    let faults = discovery::Faults {
        in_order: faults.collect(),
    };
    errors.append(&mut reader.mistakes);
    faults
}

impl FaultSpec {
    fn to_proto(&self, at: &str, reader: &mut Reader<'_>) -> discovery::Fault {
        if self.percent > 100 {
            reader.mistake(&format!("{at}.percent"), &format!("{} is more than 100", self.percent));
        }
        if self.delay.is_none() && self.abort.is_none() {
            reader.mistake(at, "say delay, abort, or both");
        }
        if self.until.is_none() && self.only_when_header.is_none() {
            reader.mistake(at, "say until, onlyWhenHeader, or both: no fault goes on for ever");
        }
        let matches = few(self.matches.as_deref(), &format!("{at}.matches"), reader);
        let matches = matches.iter().enumerate();
        let matches = matches.map(|(n, one)| one.to_proto(&format!("{at}.matches[{n}]"), reader));
        let matches = matches.collect();
        let header = self.only_when_header.as_ref();
        let delay = self.delay.as_ref();
        let abort = self.abort.as_ref();
        discovery::Fault {
            matches,
            parts_per_million: self.percent.min(100) * 10_000,
            only_when_header: header.map(|header| header.to_proto(&format!("{at}.onlyWhenHeader"), reader)),
            until_unix_seconds: self.until.as_deref().map(|text| {
                let seconds = unix_seconds(text).map_err(|why| reader.mistake(&format!("{at}.until"), &why));
                seconds.unwrap_or_default()
            }),
            delay: delay.and_then(|delay| delay.to_proto(&format!("{at}.delay"), reader)),
            abort: abort.map(|abort| abort.to_proto(&format!("{at}.abort"), reader)),
        }
    }
}

/// A list that may be left out, but not be empty, nor long.
fn few<'a, T>(list: Option<&'a [T]>, at: &str, reader: &mut Reader<'_>) -> &'a [T] {
    match list {
        Some([]) => reader.mistake(at, "it is empty"),
        Some(list) if list.len() > MAX_MATCHES => {
            reader.mistake(at, &format!("{} are more than {MAX_MATCHES}", list.len()));
        }
        _ => {}
    }
    list.unwrap_or_default()
}

/// A part of a second is left out: the fault ends earlier then.
fn unix_seconds(text: &str) -> Result<u64, String> {
    let parsed = OffsetDateTime::parse(text, &Rfc3339).ok();
    let seconds = parsed.and_then(|until| u64::try_from(until.unix_timestamp()).ok());
    seconds.ok_or_else(|| format!("{text:?} is no time of RFC 3339 like \"2026-11-28T18:00:00Z\""))
}

impl FaultMatchSpec {
    fn to_proto(&self, at: &str, reader: &mut Reader<'_>) -> discovery::Match {
        if *self == Self::default() {
            reader.mistake(at, "say at least one thing of the request");
        }
        if let Some(method) = &self.method
            && (!is_token(method) || method.bytes().any(|b| b.is_ascii_lowercase()))
        {
            reader.mistake(
                &format!("{at}.method"),
                &format!("{method:?} is no method of HTTP in upper case"),
            );
        }
        let path = self.path.as_ref();
        let path = path.and_then(|path| reader.path(&format!("{at}.path"), path));
        let headers = few(self.headers.as_deref(), &format!("{at}.headers"), reader);
        let headers = headers.iter().enumerate();
        let headers = headers.filter_map(|(n, header)| reader.named(&format!("{at}.headers[{n}]"), header));
        discovery::Match {
            path,
            headers: headers.collect(),
            query: Vec::new(),
            method: self.method.clone().unwrap_or_default(),
        }
    }
}

impl FaultHeaderSpec {
    fn to_proto(&self, at: &str, reader: &mut Reader<'_>) -> discovery::FaultHeader {
        if let Some(why) = no_header(&self.name) {
            reader.mistake(&format!("{at}.name"), &why);
        }
        // RFC 9110 section 5.5.
        let is_control = |b: u8| b < b' ' && b != b'\t' || b == 0x7f;
        if let Some(value) = &self.value
            && (value.is_empty() || value.bytes().any(is_control))
        {
            reader.mistake(&format!("{at}.value"), &format!("{value:?} is no header's value"));
        }
        discovery::FaultHeader {
            name: self.name.clone(),
            value: self.value.clone(),
        }
    }
}

impl FaultDelaySpec {
    fn to_proto(&self, at: &str, reader: &mut Reader<'_>) -> Option<discovery::FaultDelay> {
        let mut millis = |field: &str, text: &str| {
            let said = within(&format!("{at}.{field}"), Some(text), FAULT_DELAY, &mut reader.mistakes);
            said.map(to_millis)
        };
        let (min_ms, max_ms) = match (&self.fixed, &self.min, &self.max) {
            (Some(fixed), None, None) => {
                let fixed = millis("fixed", fixed)?;
                (fixed, fixed)
            }
            (None, Some(min), Some(max)) => (millis("min", min)?, millis("max", max)?),
            _ => {
                reader.mistake(at, "say fixed, or min and max");
                return None;
            }
        };
        if min_ms > max_ms {
            reader.mistake(&format!("{at}.min"), "it is more than max");
        }
        Some(discovery::FaultDelay { min_ms, max_ms })
    }
}

impl FaultAbortSpec {
    fn to_proto(&self, at: &str, reader: &mut Reader<'_>) -> discovery::FaultAbort {
        if self.status.is_some() == self.grpc_status.is_some() {
            reader.mistake(at, "say status or grpcStatus");
        }
        for (field, status, range) in [
            ("status", self.status, ABORT_STATUSES),
            ("grpcStatus", self.grpc_status, ABORT_GRPC_STATUSES),
        ] {
            if let Some(status) = status.filter(|status| !range.contains(status)) {
                let (least, most) = range.into_inner();
                let why = format!("{status} is not the status of an error, {least} to {most}");
                reader.mistake(&format!("{at}.{field}"), &why);
            }
        }
        discovery::FaultAbort {
            http_status: self.status.unwrap_or_default().into(),
            grpc_status: self.grpc_status.unwrap_or_default().into(),
        }
    }
}

/// A sidecar that does not know faults injects none.
pub(super) fn needs(policy: &discovery::Policy) -> Option<(Feature, &'static str)> {
    let faults = policy.faults.as_ref()?;
    (!faults.in_order.is_empty()).then_some((Feature::Faults, "faults"))
}

#[cfg(test)]
mod tests {
    use super::super::{TrafficPolicySpec, needs};
    use crate::discovery::Policy;

    fn policy(fault: &str) -> Result<Policy, Vec<String>> {
        let spec: TrafficPolicySpec = serde_saphyr::from_str(&format!("faults: [{{{fault}}}]")).unwrap();
        spec.to_proto()
    }

    #[test]
    fn mistakes_have_their_path() {
        let header = "percent: 1, onlyWhenHeader: {name: x}";
        let abort = &format!("{header}, abort: {{status: 503}}");
        for (fault, path) in [
            (
                "percent: 101, until: '2026-11-28T18:00:00Z', delay: {fixed: 1s}",
                "faults[0].percent",
            ),
            (
                "percent: 1, until: '2026-11-28T18:00:00Z'",
                "faults[0]: say delay, abort",
            ),
            ("percent: 1, delay: {fixed: 1s}", "faults[0]: say until, onlyWhenHeader"),
            ("percent: 1, until: tomorrow, delay: {fixed: 1s}", "faults[0].until"),
            ("percent: 1, until: '2026-11-28', delay: {fixed: 1s}", "faults[0].until"),
            (
                "percent: 1, until: '1926-11-28T18:00:00Z', delay: {fixed: 1s}",
                "faults[0].until",
            ),
            (
                "percent: 1, onlyWhenHeader: {name: outrigger-x}, delay: {fixed: 1s}",
                "faults[0].onlyWhenHeader.name",
            ),
            (
                "percent: 1, onlyWhenHeader: {name: x, value: \"a\\u0001\"}, delay: {fixed: 1s}",
                "faults[0].onlyWhenHeader.value",
            ),
            (&format!("{header}, delay: {{}}"), "faults[0].delay"),
            (&format!("{header}, delay: {{fixed: 1s, min: 1s}}"), "faults[0].delay"),
            (&format!("{header}, delay: {{max: 1s}}"), "faults[0].delay"),
            (&format!("{header}, delay: {{fixed: 61m}}"), "faults[0].delay.fixed"),
            (&format!("{header}, delay: {{fixed: 0s}}"), "faults[0].delay.fixed"),
            (&format!("{header}, delay: {{min: 2s, max: 1s}}"), "faults[0].delay.min"),
            (&format!("{header}, abort: {{}}"), "faults[0].abort"),
            (
                &format!("{header}, abort: {{status: 503, grpcStatus: 14}}"),
                "faults[0].abort",
            ),
            (&format!("{header}, abort: {{status: 200}}"), "faults[0].abort.status"),
            (
                &format!("{header}, abort: {{grpcStatus: 17}}"),
                "faults[0].abort.grpcStatus",
            ),
            (
                &format!("{header}, abort: {{grpcStatus: 0}}"),
                "faults[0].abort.grpcStatus",
            ),
            (&format!("{abort}, matches: []"), "faults[0].matches"),
            (
                &format!("{abort}, matches: [{}]", ["{method: GET}"; 9].join(", ")),
                "faults[0].matches: 9 are more than 8",
            ),
            (&format!("{abort}, matches: [{{}}]"), "faults[0].matches[0]"),
            (
                &format!("{abort}, matches: [{{method: get}}]"),
                "faults[0].matches[0].method",
            ),
            (
                &format!("{abort}, matches: [{{path: {{type: Exact, value: a}}}}]"),
                "faults[0].matches[0].path",
            ),
            (
                &format!("{abort}, matches: [{{headers: []}}]"),
                "faults[0].matches[0].headers",
            ),
            (
                &format!("{abort}, matches: [{{headers: [{{name: 'a b', value: x}}]}}]"),
                "faults[0].matches[0].headers[0].name",
            ),
        ] {
            let errors = policy(fault).unwrap_err();
            assert!(errors.len() == 1 && errors[0].starts_with(path), "{fault}: {errors:?}");
        }
        let nine = vec![format!("{{{abort}}}"); 9].join(", ");
        let spec: TrafficPolicySpec = serde_saphyr::from_str(&format!("faults: [{nine}]")).unwrap();
        assert_eq!(spec.to_proto().unwrap_err(), ["faults: 9 are more than 8"]);
        // The share has no default: neither all requests nor none.
        let silent = "faults: [{onlyWhenHeader: {name: x}, abort: {status: 503}}]";
        assert!(serde_saphyr::from_str::<TrafficPolicySpec>(silent).is_err());
    }

    #[test]
    fn a_list_is_one_field_and_an_empty_one_says_something() {
        let outer = policy("percent: 1, until: '2026-11-28T18:00:00Z', abort: {status: 503}").unwrap();
        let nearer = policy("percent: 2, until: '2026-11-28T18:00:00Z', abort: {status: 503}").unwrap();
        let none: TrafficPolicySpec = serde_saphyr::from_str("faults: []").unwrap();
        let none = none.to_proto().unwrap();
        let needed = |policy: &Policy| needs(policy).into_iter().map(|(_, field)| field).collect::<Vec<_>>();
        assert_eq!((needed(&outer), needed(&none)), (vec!["faults"], vec![]));
        for (nearer, outer, merged) in [
            (&nearer, &outer, &nearer),
            (&none, &outer, &none),
            (&outer, &none, &outer),
            (&Policy::default(), &outer, &outer),
            (&outer, &Policy::default(), &outer),
        ] {
            assert_eq!(nearer.over(outer), *merged);
        }
    }

    #[test]
    fn an_end_is_a_second() {
        for (text, seconds) in [
            ("1970-01-01T00:01:00Z", 60),
            ("1970-01-01T00:01:00.999Z", 60),
            ("1970-01-01T02:01:00+02:00", 60),
        ] {
            let policy = policy(&format!("percent: 1, until: '{text}', abort: {{status: 503}}")).unwrap();
            assert_eq!(
                policy.faults.unwrap().in_order[0].until_unix_seconds,
                Some(seconds),
                "{text}"
            );
        }
    }
}
