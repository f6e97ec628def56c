//! What a request is answered with in place of a failure: see `outbound::fallback`.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use outrigger_api::discovery as proto;
use outrigger_api::policy::{
    FALLBACK_GRPC_STATUSES, FALLBACK_STATUSES, FALLBACK_WHEN, FALLBACK_WHEN_GRPC, MAX_FALLBACK_BODY,
};

/// See the module.
#[derive(Clone, Debug, PartialEq)]
pub struct Fallback {
    pub when: FallbackWhen,
    /// `None`: it is for gRPC calls alone.
    pub status: Option<StatusCode>,
    /// To gRPC calls. `None`: it is not for them.
    pub grpc_status: Option<u16>,
    pub headers: HeaderMap,
    /// Not of gRPC calls.
    pub body: Bytes,
}

/// In place of which failures: any of these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FallbackWhen {
    pub no_endpoints: bool,
    pub overloaded: bool,
    pub timeout: bool,
    pub statuses: Vec<StatusCode>,
    pub grpc_statuses: Vec<u16>,
}

impl Fallback {
    /// `None`: the policy says that there is none, or what is not understood, and a failure stays what it is.
    pub(super) fn from_proto(message: &proto::Fallback) -> Option<Self> {
        let (when, response) = message.when.as_ref().zip(message.response.as_ref())?;
        let of = |number: u32| u16::try_from(number).ok();
        let status = match response.http_status {
            0 => None,
            number => Some(of(number).filter(|status| FALLBACK_STATUSES.contains(status))?),
        };
        let status = status.map(StatusCode::from_u16).transpose().ok()?;
        let grpc_status = match response.grpc_status {
            None => status
                .filter(|status| status.as_u16() >= 400)
                .map(outrigger_proxy_transport::error::grpc_status_of),
            Some(number) => Some(of(number).filter(|status| FALLBACK_GRPC_STATUSES.contains(status))?),
        };
        if response.body.len() > MAX_FALLBACK_BODY {
            return None;
        }
        let mut headers = HeaderMap::new();
        for header in &response.headers {
            let name = HeaderName::from_bytes(header.name.as_bytes()).ok()?;
            headers.append(name, HeaderValue::from_str(&header.value).ok()?);
        }
        let known = |numbers: &[u32], range: std::ops::RangeInclusive<u16>| -> Vec<u16> {
            let numbers = numbers.iter().filter_map(|number| of(*number));
            numbers.filter(|number| range.contains(number)).collect()
        };
        let statuses = known(&when.statuses, FALLBACK_WHEN);
        Some(Self {
            when: FallbackWhen {
                no_endpoints: when.no_endpoints,
                overloaded: when.overloaded,
                timeout: when.timeout,
                statuses: statuses
                    .into_iter()
                    .filter_map(|status| StatusCode::from_u16(status).ok())
                    .collect(),
                grpc_statuses: known(&when.grpc_statuses, FALLBACK_WHEN_GRPC),
            },
            status,
            grpc_status,
            headers,
            body: Bytes::from(response.body.clone()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Fallback;
    use outrigger_api::discovery as proto;

    fn fallback() -> proto::Fallback {
        proto::Fallback {
            when: Some(proto::FallbackWhen {
                no_endpoints: true,
                statuses: vec![503, 200, 70_000],
                grpc_statuses: vec![14, 0, 17],
                ..proto::FallbackWhen::default()
            }),
            response: Some(proto::FallbackResponse {
                http_status: 200,
                ..proto::FallbackResponse::default()
            }),
        }
    }

    /// What is not understood makes no failure look like an answer.
    #[test]
    fn one_that_is_not_understood_is_none() {
        let understood = Fallback::from_proto(&fallback()).map(|read| (read.when.statuses, read.when.grpc_statuses));
        assert_eq!(
            understood,
            Some((vec![http::StatusCode::SERVICE_UNAVAILABLE], vec![14]))
        );
        type Change = fn(&mut proto::Fallback);
        let response: [Change; 6] = [
            |f| f.when = None,
            |f| f.response = None,
            |f| f.response.iter_mut().for_each(|r| r.http_status = 101),
            |f| f.response.iter_mut().for_each(|r| r.grpc_status = Some(17)),
            |f| f.response.iter_mut().for_each(|r| r.body = "x".repeat(4097)),
            |f| {
                let header = proto::Header {
                    name: "a b".to_owned(),
                    value: String::new(),
                };
                f.response.iter_mut().for_each(|r| r.headers.push(header.clone()));
            },
        ];
        for (n, change) in response.into_iter().enumerate() {
            let mut fallback = fallback();
            change(&mut fallback);
            assert_eq!(Fallback::from_proto(&fallback), None, "{n}");
        }
    }
}
