//! How much one sidecar asks of a backend at a time: see `outbound::breaker`.

use std::sync::Arc;

use outrigger_api::discovery as proto;
use outrigger_api::policy::MOST_AT_A_TIME;

/// What a policy says; at least one of them is a limit. Each holds for all workers together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CallLimits {
    /// The route whose requests are counted apart from all others. `None`: the Service's.
    pub counters: Option<Arc<str>>,
    /// Connections that are open, idle ones too.
    pub connections: Option<usize>,
    /// Requests that wait for a connection.
    pub pending: Option<usize>,
    /// Requests that are not answered to the last byte.
    pub requests: Option<usize>,
    /// Of each endpoint.
    pub endpoint_connections: Option<usize>,
    pub endpoint_requests: Option<usize>,
}

impl CallLimits {
    /// Takes over what `nearer` says. `None`: there is no limit.
    pub fn adopt(of: Option<&Arc<Self>>, nearer: &proto::CallLimits) -> Option<Arc<Self>> {
        let mut limits = of.map(|of| Self::clone(of)).unwrap_or_default();
        for (limit, said) in [
            (&mut limits.connections, nearer.max_connections),
            (&mut limits.pending, nearer.max_pending_requests),
            (&mut limits.requests, nearer.max_requests),
            (&mut limits.endpoint_connections, nearer.endpoint_max_connections),
            (&mut limits.endpoint_requests, nearer.endpoint_max_requests),
        ] {
            if let Some(said) = said {
                *limit = (said > 0).then(|| said.min(*MOST_AT_A_TIME.end()) as usize);
            }
        }
        (limits != Self::default()).then(|| Arc::new(limits))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nought_is_no_limit_and_what_is_not_said_stays() {
        let said = |max_connections, max_requests| proto::CallLimits {
            max_connections,
            max_requests,
            ..Default::default()
        };
        assert_eq!(CallLimits::adopt(None, &said(None, None)), None);
        assert_eq!(CallLimits::adopt(None, &said(Some(0), None)), None);
        let outer = CallLimits::adopt(None, &said(Some(u32::MAX), Some(7)));
        let expected = CallLimits {
            connections: Some(1_000_000),
            requests: Some(7),
            ..CallLimits::default()
        };
        assert_eq!(outer.as_deref(), Some(&expected));
        let nearer = CallLimits::adopt(outer.as_ref(), &said(None, Some(0)));
        assert_eq!(
            nearer.map(|nearer| (nearer.connections, nearer.requests)),
            Some((Some(1_000_000), None))
        );
        assert_eq!(CallLimits::adopt(outer.as_ref(), &said(Some(0), Some(0))), None);
    }
}
