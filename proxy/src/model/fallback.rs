//! What is done in place of a failure: see `outbound::fallback`.

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
    pub instead: Instead,
}

/// What is done.
#[derive(Clone, Debug, PartialEq)]
pub enum Instead {
    Answer(FallbackAnswer),
    /// One of them is asked, each with a weight above 0.
    Ask(Vec<FallbackBackend>),
}

/// Another Service that can be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FallbackBackend {
    /// Index into [`Service::backends`](super::Service::backends).
    pub backend: usize,
    pub weight: u32,
}

/// What a request is answered with.
#[derive(Clone, Debug, PartialEq)]
pub struct FallbackAnswer {
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
    /// Whether another backend is asked.
    pub fn asks(&self) -> bool {
        matches!(self.instead, Instead::Ask(_))
    }

    /// `None`: the policy says that there is none, or what is not understood, and a failure stays what it is.
    pub(super) fn from_proto(message: &proto::Fallback) -> Option<Self> {
        let when = FallbackWhen::from_proto(message.when.as_ref()?);
        let instead = match &message.response {
            Some(response) => Instead::Answer(FallbackAnswer::from_proto(response)?),
            None => Instead::Ask(
                message
                    .backends
                    .iter()
                    .filter_map(FallbackBackend::from_proto)
                    .collect(),
            ),
        };
        let is_any = !matches!(&instead, Instead::Ask(backends) if backends.is_empty());
        is_any.then_some(Self { when, instead })
    }
}

impl FallbackBackend {
    /// `None`: it is not there, or gets nothing.
    fn from_proto(message: &proto::FallbackBackend) -> Option<Self> {
        let backend = usize::try_from(message.backend?).ok()?;
        (message.weight > 0).then_some(Self {
            backend,
            weight: message.weight,
        })
    }
}

impl FallbackAnswer {
    fn from_proto(response: &proto::FallbackResponse) -> Option<Self> {
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
        Some(Self {
            status,
            grpc_status,
            headers,
            body: Bytes::from(response.body.clone()),
        })
    }
}

impl FallbackWhen {
    fn from_proto(when: &proto::FallbackWhen) -> Self {
        let known = |numbers: &[u32], range: std::ops::RangeInclusive<u16>| -> Vec<u16> {
            let numbers = numbers.iter().filter_map(|number| of(*number));
            numbers.filter(|number| range.contains(number)).collect()
        };
        let statuses = known(&when.statuses, FALLBACK_WHEN);
        Self {
            no_endpoints: when.no_endpoints,
            overloaded: when.overloaded,
            timeout: when.timeout,
            statuses: statuses
                .into_iter()
                .filter_map(|status| StatusCode::from_u16(status).ok())
                .collect(),
            grpc_statuses: known(&when.grpc_statuses, FALLBACK_WHEN_GRPC),
        }
    }
}

fn of(number: u32) -> Option<u16> {
    u16::try_from(number).ok()
}

#[cfg(test)]
mod tests {
    use super::{Fallback, Instead};
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
            backends: Vec::new(),
        }
    }

    /// One that is not there takes no share.
    #[test]
    fn backends_that_are_there_are_asked() {
        let asked = |weight, backend| proto::FallbackBackend {
            weight,
            backend,
            ..proto::FallbackBackend::default()
        };
        for (backends, expected) in [
            (
                vec![asked(1, Some(2)), asked(5, None), asked(0, Some(1)), asked(3, Some(4))],
                &[(2, 1), (4, 3)][..],
            ),
            (vec![asked(1, None), asked(0, Some(1))], &[]),
            (vec![], &[]),
        ] {
            let fallback = proto::Fallback {
                response: None,
                backends,
                ..fallback()
            };
            let read = Fallback::from_proto(&fallback);
            let read = read.map(|read| match read.instead {
                Instead::Ask(backends) => backends.iter().map(|one| (one.backend, one.weight)).collect(),
                Instead::Answer(_) => panic!("it has none"),
            });
            assert_eq!(read, (!expected.is_empty()).then(|| expected.to_vec()));
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
