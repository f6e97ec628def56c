//! Who is asked whether a request is let through (Gateway API, HTTPExternalAuthFilter; GEP-1494), and what is said to and taken from him.

use http::HeaderName;
use outrigger_api::discovery as proto;
use outrigger_api::discovery::external_auth::Protocol;

/// Of a request's body, what may be read before it is sent on.
const MAX_BODY: u32 = 1 << 20;

/// An external authorization.
#[derive(Debug, PartialEq)]
pub struct ExternalAuth {
    /// Index into [`super::Service::backends`]. `None`: nobody can be asked, and no request is let through.
    pub backend: Option<usize>,
    pub protocol: AuthProtocol,
    /// Bytes of a request's body that are sent along, and the size of the largest body. `None`: none are, of a body of any size.
    pub max_body: Option<usize>,
}

/// How it is asked. Of lists of headers, `None` is all.
#[derive(Debug, PartialEq)]
pub enum AuthProtocol {
    Http {
        /// Stands before the path of the request; without a slash at its end.
        path: String,
        /// Of the request, beside `Authorization`.
        headers: Vec<HeaderName>,
        /// Of the answer.
        response_headers: Option<Vec<HeaderName>>,
    },
    /// `envoy.service.auth.v3.Authorization`.
    Grpc { headers: Option<Vec<HeaderName>> },
}

impl ExternalAuth {
    /// `None`: it says something that is not understood, and so is no filter that could be carried out. `backend`: the place of a backend in
    /// the Service, by the message's index.
    pub(super) fn from_proto(message: &proto::ExternalAuth, backend: impl Fn(u32) -> Option<usize>) -> Option<Self> {
        let protocol = match message.protocol.as_ref()? {
            Protocol::Http(http) => AuthProtocol::Http {
                path: http.path.trim_end_matches('/').to_owned(),
                headers: names(&http.headers),
                response_headers: unless_empty(&http.response_headers),
            },
            Protocol::Grpc(grpc) => AuthProtocol::Grpc {
                headers: unless_empty(&grpc.headers),
            },
        };
        let max_body = usize::try_from(message.max_body.min(MAX_BODY)).ok();
        Some(Self {
            backend: backend(message.backend),
            protocol,
            max_body: max_body.filter(|&max| max > 0),
        })
    }
}

/// Those that can be read: no request and no answer has another.
fn names(names: &[String]) -> Vec<HeaderName> {
    let names = names.iter();
    names
        .filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok())
        .collect()
}

/// A list that has none that can be read is not the one that means all.
fn unless_empty(list: &[String]) -> Option<Vec<HeaderName>> {
    (!list.is_empty()).then(|| names(list))
}

#[cfg(test)]
mod tests {
    use super::super::{Filters, from_proto};
    use super::{AuthProtocol, ExternalAuth};
    use outrigger_api::discovery as proto;
    use outrigger_api::discovery::external_auth::Protocol;

    fn read(protocol: Option<Protocol>, max_body: u32) -> Option<ExternalAuth> {
        let message = proto::ExternalAuth {
            backend: 1,
            protocol,
            max_body,
        };
        ExternalAuth::from_proto(&message, |index| usize::try_from(index).ok().filter(|index| *index < 2))
    }

    #[test]
    fn what_is_not_understood_lets_nobody_through() {
        assert_eq!(read(None, 0), None);
        let message = proto::ExternalAuth {
            backend: u32::MAX,
            protocol: Some(Protocol::Grpc(proto::GrpcAuth::default())),
            max_body: 0,
        };
        let auth = ExternalAuth::from_proto(&message, |_| None);
        assert_eq!(auth.map(|auth| auth.backend), Some(None));
    }

    /// Whichever of two were left out, and one that could not be asked in time: the requests are answered 500.
    #[test]
    fn a_second_one_and_one_of_a_backend_are_none() {
        let filter = || proto::Filter {
            kind: Some(proto::filter::Kind::ExternalAuth(proto::ExternalAuth {
                backend: 0,
                protocol: Some(Protocol::Grpc(proto::GrpcAuth::default())),
                max_body: 0,
            })),
        };
        let count =
            |filters: &[proto::Filter]| Filters::from_proto(filters, |_| Some(0)).map(|filters| filters.count());
        assert_eq!((count(&[filter()]), count(&[filter(), filter()])), (Some(1), None));
        let service = from_proto::service(&proto::Service {
            backends: vec![proto::Backend::default()],
            routes: vec![proto::Route {
                backends: vec![proto::WeightedBackend {
                    backend: 0,
                    weight: 1,
                    filters: vec![filter()],
                }],
                ..proto::Route::default()
            }],
            ..proto::Service::default()
        });
        assert_eq!(service.routes[0].backends[0].backend, None);
    }

    #[test]
    fn a_list_of_names_that_are_none_is_not_the_list_that_means_all() {
        let of = |names: &[&str]| -> Vec<String> { names.iter().map(|name| (*name).to_owned()).collect() };
        for (list, expected) in [
            (&[][..], None),
            (&["x a"][..], Some(vec![])),
            (&["x a", "X-A"], Some(vec!["x-a".parse().unwrap_or(http::header::HOST)])),
        ] {
            let grpc = read(Some(Protocol::Grpc(proto::GrpcAuth { headers: of(list) })), 0);
            let http = read(
                Some(Protocol::Http(proto::HttpAuth {
                    response_headers: of(list),
                    headers: of(list),
                    path: "/a/".to_owned(),
                })),
                0,
            );
            let grpc = grpc.map(|auth| auth.protocol);
            assert_eq!(
                grpc,
                Some(AuthProtocol::Grpc {
                    headers: expected.clone()
                })
            );
            let expected = AuthProtocol::Http {
                path: "/a".to_owned(),
                headers: expected.clone().unwrap_or_default(),
                response_headers: expected,
            };
            assert_eq!(http.map(|auth| auth.protocol), Some(expected));
        }
    }

    #[test]
    fn bodies_are_bounded() {
        for (said, expected) in [
            (0, None),
            (1, Some(1)),
            (1 << 20, Some(1 << 20)),
            (u32::MAX, Some(1 << 20)),
        ] {
            let auth = read(Some(Protocol::Grpc(proto::GrpcAuth::default())), said);
            assert_eq!(auth.map(|auth| auth.max_body), Some(expected), "{said}");
        }
    }
}
