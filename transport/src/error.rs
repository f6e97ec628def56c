//! One value for everything that can go wrong with a request: what to answer, whether another attempt is safe, and the
//! code that the response, the log line, the span and the metric all carry.

use http::StatusCode;

/// A stable short code, sent as `outrigger-error`. `docs/errors.md` says for each what it means and what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// No ready endpoint.
    NoEndpoints,
    /// The controller has not answered yet, and there is nothing to go on with.
    DiscoveryUnavailable,
    /// This sidecar has no SVID yet.
    IdentityUnavailable,
    /// The TCP connection could not be made.
    ConnectFailed,
    /// The TCP connection, the TLS handshake, or the peer's HTTP/2 SETTINGS took too long.
    ConnectTimeout,
    /// The TLS handshake failed.
    TlsFailed,
    /// The endpoint is somebody else than discovery named.
    IdentityMismatch,
    /// The endpoint closed or reset the connection before a response.
    UpstreamReset,
    /// The endpoint refused the stream unprocessed (REFUSED_STREAM, GOAWAY).
    UpstreamRefused,
    /// The endpoint's answer is not HTTP.
    UpstreamProtocol,
    /// `timeouts.request` ran out.
    RequestTimeout,
    /// `timeouts.backendRequest` or `timeouts.responseHeaders` ran out, and no attempt was left.
    AttemptTimeout,
    /// `timeouts.idle`: no byte moved for so long.
    IdleTimeout,
    /// The Service has routes, and none matches.
    NoRoute,
    /// The route's backend does not exist.
    InvalidBackend,
    /// The app on this pod does not accept the connection.
    AppUnavailable,
    /// The request is malformed.
    BadRequest,
    /// The header section is larger than the limit.
    HeadersTooLarge,
    /// The header section did not end in time.
    HeadTimeout,
    /// This sidecar has no memory left for the request's header section.
    Overloaded,
    /// Plaintext, where mutual TLS is required.
    PlaintextRefused,
    /// The called workload's policies do not let the caller in.
    AccessDenied,
    /// They would have, perhaps, with a token.
    TokenRequired,
    /// The caller's token is not good.
    TokenInvalid,
    /// The called workload takes no more such requests for now.
    RateLimited,
    /// The called workload counts its requests in a store that does not answer, and refuses them meanwhile.
    LimitUnavailable,
    /// The called sidecar does not know yet whom its workload lets in.
    AccessUnknown,
    /// A policy of the Service called has requests fail on purpose.
    FaultInjected,
    /// The Service that a route's ExternalAuth filter names does not let the request through.
    AuthDenied,
    /// It does not say whether it does.
    AuthUnavailable,
    /// The request's body is larger than what such a filter sends along.
    BodyTooLarge,
    /// The client went away before the response.
    ClientClosed,
}

impl Reason {
    /// Every reason, for the documentation's test.
    pub const ALL: [Reason; 32] = [
        Reason::NoEndpoints,
        Reason::DiscoveryUnavailable,
        Reason::IdentityUnavailable,
        Reason::ConnectFailed,
        Reason::ConnectTimeout,
        Reason::TlsFailed,
        Reason::IdentityMismatch,
        Reason::UpstreamReset,
        Reason::UpstreamRefused,
        Reason::UpstreamProtocol,
        Reason::RequestTimeout,
        Reason::AttemptTimeout,
        Reason::IdleTimeout,
        Reason::NoRoute,
        Reason::InvalidBackend,
        Reason::AppUnavailable,
        Reason::BadRequest,
        Reason::HeadersTooLarge,
        Reason::HeadTimeout,
        Reason::Overloaded,
        Reason::PlaintextRefused,
        Reason::AccessDenied,
        Reason::TokenRequired,
        Reason::TokenInvalid,
        Reason::RateLimited,
        Reason::LimitUnavailable,
        Reason::AccessUnknown,
        Reason::FaultInjected,
        Reason::AuthDenied,
        Reason::AuthUnavailable,
        Reason::BodyTooLarge,
        Reason::ClientClosed,
    ];

    /// The code as it is sent.
    pub fn code(self) -> &'static str {
        match self {
            Reason::NoEndpoints => "no-endpoints",
            Reason::DiscoveryUnavailable => "discovery-unavailable",
            Reason::IdentityUnavailable => "identity-unavailable",
            Reason::ConnectFailed => "connect-failed",
            Reason::ConnectTimeout => "connect-timeout",
            Reason::TlsFailed => "tls-failed",
            Reason::IdentityMismatch => "identity-mismatch",
            Reason::UpstreamReset => "upstream-reset",
            Reason::UpstreamRefused => "upstream-refused",
            Reason::UpstreamProtocol => "upstream-protocol",
            Reason::RequestTimeout => "request-timeout",
            Reason::AttemptTimeout => "attempt-timeout",
            Reason::IdleTimeout => "idle-timeout",
            Reason::NoRoute => "no-route",
            Reason::InvalidBackend => "invalid-backend",
            Reason::AppUnavailable => "app-unavailable",
            Reason::BadRequest => "bad-request",
            Reason::HeadersTooLarge => "headers-too-large",
            Reason::HeadTimeout => "head-timeout",
            Reason::Overloaded => "overloaded",
            Reason::PlaintextRefused => "plaintext-refused",
            Reason::AccessDenied => "access-denied",
            Reason::TokenRequired => "token-required",
            Reason::TokenInvalid => "token-invalid",
            Reason::RateLimited => "rate-limited",
            Reason::LimitUnavailable => "limit-unavailable",
            Reason::AccessUnknown => "access-unknown",
            Reason::FaultInjected => "fault-injected",
            Reason::AuthDenied => "auth-denied",
            Reason::AuthUnavailable => "auth-unavailable",
            Reason::BodyTooLarge => "body-too-large",
            Reason::ClientClosed => "client-closed",
        }
    }

    /// The HTTP status that it is answered with. Of [`Reason::FaultInjected`] a policy says it, and of [`Reason::AuthDenied`] who was asked.
    pub fn status(self) -> StatusCode {
        match self {
            Reason::NoEndpoints
            | Reason::DiscoveryUnavailable
            | Reason::IdentityUnavailable
            | Reason::ConnectFailed
            | Reason::TlsFailed
            | Reason::IdentityMismatch
            | Reason::UpstreamRefused
            | Reason::AppUnavailable
            | Reason::Overloaded
            | Reason::LimitUnavailable
            | Reason::AccessUnknown
            | Reason::AuthUnavailable
            | Reason::FaultInjected => StatusCode::SERVICE_UNAVAILABLE,
            Reason::ConnectTimeout | Reason::RequestTimeout | Reason::AttemptTimeout | Reason::IdleTimeout => {
                StatusCode::GATEWAY_TIMEOUT
            }
            Reason::UpstreamReset | Reason::UpstreamProtocol => StatusCode::BAD_GATEWAY,
            Reason::NoRoute => StatusCode::NOT_FOUND,
            Reason::InvalidBackend => StatusCode::INTERNAL_SERVER_ERROR,
            Reason::BadRequest | Reason::ClientClosed => StatusCode::BAD_REQUEST,
            Reason::HeadersTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Reason::HeadTimeout => StatusCode::REQUEST_TIMEOUT,
            Reason::PlaintextRefused | Reason::AccessDenied | Reason::AuthDenied => StatusCode::FORBIDDEN,
            Reason::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Reason::TokenRequired | Reason::TokenInvalid => StatusCode::UNAUTHORIZED,
            Reason::RateLimited => StatusCode::TOO_MANY_REQUESTS,
        }
    }

    /// The gRPC status that a gRPC client gets (grpc's statuscodes.md).
    pub fn grpc_status(self) -> u16 {
        match self {
            Reason::InvalidBackend => 14, // GRPCRouteRule.backendRefs: UNAVAILABLE
            // As gRPC says of a message that is too large: RESOURCE_EXHAUSTED.
            Reason::BodyTooLarge => 8,
            _ => grpc_status_of(self.status()),
        }
    }

    /// Whether the app at the other end cannot have seen the request, so that another attempt is safe for every method.
    pub fn never_processed(self) -> bool {
        matches!(
            self,
            Reason::ConnectFailed
                | Reason::ConnectTimeout
                | Reason::TlsFailed
                | Reason::IdentityMismatch
                | Reason::UpstreamRefused
                | Reason::AppUnavailable
                | Reason::Overloaded
                | Reason::AccessUnknown
        )
    }
}

/// The gRPC status that stands for an HTTP status, where a sidecar answers: 504 and 429 have names of their own in gRPC, which its mapping for
/// clients does not use (http-grpc-status-mapping.md); the others are as there.
pub fn grpc_status_of(status: StatusCode) -> u16 {
    match status {
        StatusCode::GATEWAY_TIMEOUT | StatusCode::REQUEST_TIMEOUT => 4, // DEADLINE_EXCEEDED
        StatusCode::FORBIDDEN => 7,                                     // PERMISSION_DENIED
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE | StatusCode::TOO_MANY_REQUESTS => 8, // RESOURCE_EXHAUSTED
        StatusCode::NOT_FOUND => 12,                                    // UNIMPLEMENTED
        StatusCode::BAD_REQUEST | StatusCode::INTERNAL_SERVER_ERROR => 13, // INTERNAL
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE => 14, // UNAVAILABLE
        StatusCode::UNAUTHORIZED => 16,                                 // UNAUTHENTICATED
        _ => 2,                                                         // UNKNOWN
    }
}

/// A request that this sidecar could not carry out.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{detail}")]
pub struct ProxyError {
    /// The code.
    pub reason: Reason,
    /// For a person: what was tried, where, and what to check next. It goes into the response's body and the log.
    pub detail: String,
}

impl ProxyError {
    /// An error with its reason and the sentence for a person.
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self {
            reason,
            detail: detail.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Reason;

    #[test]
    fn the_documentation_has_a_row_for_each_code_and_no_other() {
        let rows: Vec<Vec<&str>> = include_str!("../../docs/errors.md")
            .lines()
            .filter(|line| line.starts_with("| <a id="))
            .map(|line| line.split('|').map(str::trim).collect())
            .collect();
        assert_eq!(rows.len(), Reason::ALL.len());
        for (reason, row) in Reason::ALL.into_iter().zip(rows) {
            // The place that an answer's text refers to.
            let code = reason.code();
            assert_eq!(row[1], format!("<a id=\"{code}\"></a>`{code}`"));
            if reason == Reason::ClientClosed {
                continue; // nobody is there to be answered
            }
            assert_eq!(row[2], reason.status().as_str(), "{}", reason.code());
            assert_eq!(row[3], reason.grpc_status().to_string(), "{}", reason.code());
            assert_eq!(row[4] == "any method", reason.never_processed(), "{}", reason.code());
        }
    }

    /// GRPCRouteRule.backendRefs and HTTPRouteRule.backendRefs of Gateway API.
    #[test]
    fn an_invalid_backend_is_unavailable_to_grpc_and_500_to_others() {
        assert_eq!(Reason::InvalidBackend.grpc_status(), 14);
        assert_eq!(Reason::InvalidBackend.status(), 500);
    }

    #[test]
    fn each_code_is_made_by_a_test_of_its_name() {
        let tests = include_str!("../../tests/tests/errors.rs");
        for reason in Reason::ALL {
            let name = reason.code().replace('-', "_");
            let begins = format!("#[tokio::test]\nasync fn {name}() {{");
            assert!(tests.contains(&begins), "tests/tests/errors.rs has no test {name}");
        }
    }
}
