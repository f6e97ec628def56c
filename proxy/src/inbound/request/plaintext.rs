//! Whether a request may come in plaintext.

use http::Method;
use http::request::Parts;
use outrigger_api::probes::GRPC_HEALTH;
use outrigger_proxy_transport::error::{ProxyError, Reason};
use outrigger_proxy_transport::server::PLAINTEXT_REFUSED;

use super::{Caller, Facts};
use crate::config::{Config, LetIn, Mtls, Plaintext};

/// See the module.
pub(super) struct PlaintextRule {
    mtls: Mtls,
    let_in: Vec<LetIn>,
}

impl PlaintextRule {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            mtls: config.mtls,
            let_in: config.let_in.clone(),
        }
    }

    /// Mutual TLS, what kubelet asks, or a pod that takes plaintext.
    ///
    /// # Errors
    /// [`Reason::PlaintextRefused`].
    pub(super) fn admit(&self, facts: &Facts<'_>) -> Result<(), ProxyError> {
        if facts.caller.peer.is_some() || self.mtls == Mtls::Permissive || facts.is_probe {
            return Ok(());
        }
        Err(ProxyError::new(Reason::PlaintextRefused, PLAINTEXT_REFUSED))
    }

    /// Whether it is what kubelet asks the app itself, in plaintext. Nobody can be told apart from kubelet, so it is no more
    /// than kubelet's own request: no other method, query, body or upgrade. `is_bare`: it has neither a body nor an upgrade.
    pub(super) fn is_probe(&self, caller: &Caller, head: &Parts, is_bare: bool, keeps_upgrade: bool) -> bool {
        if caller.peer.is_some() {
            return false;
        }
        let path = head.uri.path();
        let target = head.uri.path_and_query().map_or(path, |p| p.as_str());
        let get = head.method == Method::GET && is_bare;
        let is = |what: &Plaintext| match what {
            Plaintext::Connection => false,
            Plaintext::Get(declared) => get && target == declared,
            Plaintext::GetPath(declared) => get && (path == declared || target == declared),
            Plaintext::GrpcHealth => head.method == Method::POST && target == GRPC_HEALTH && !keeps_upgrade,
        };
        self.let_in.iter().any(|e| e.port == caller.app.port() && is(&e.what))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::rc::Rc;

    use http::Request;
    use outrigger_api::probes::GRPC_HEALTH;
    use outrigger_proxy_transport::net::Term;

    use super::{LetIn, Mtls, Plaintext, PlaintextRule};
    use crate::inbound::Caller;
    use crate::inbound::introduction::Introduction;
    use crate::inbound::request::Facts;

    #[test]
    fn in_plaintext_comes_what_kubelet_asks_and_else_nothing() {
        let let_in = |port, what| LetIn { port, what };
        let strict = PlaintextRule {
            mtls: Mtls::Strict,
            let_in: vec![
                let_in(8080, Plaintext::GetPath("/live".into())),
                let_in(8080, Plaintext::Get("/ready?full=1".into())),
                let_in(8081, Plaintext::Connection),
                let_in(9000, Plaintext::GrpcHealth),
            ],
        };
        let permissive = PlaintextRule {
            mtls: Mtls::Permissive,
            let_in: Vec::new(),
        };
        let bare = true;
        for (port, method, target, is_bare, is_probe) in [
            (8080, "GET", "/live", bare, true),
            (8080, "GET", "/live?x", bare, true),
            (8080, "GET", "/live", !bare, false),
            (8080, "HEAD", "/live", bare, false),
            (8080, "POST", "/live", bare, false),
            (8080, "GET", "/live/", bare, false),
            (8080, "GET", "/ready?full=1", bare, true),
            (8080, "GET", "/ready", bare, false),
            (8080, "GET", "/ready?full=1&x", bare, false),
            (8080, "GET", "/", bare, false),
            (8081, "GET", "/live", bare, false),
            (9000, "POST", GRPC_HEALTH, !bare, true),
            (9000, "GET", GRPC_HEALTH, bare, false),
            (8080, "POST", GRPC_HEALTH, !bare, false),
        ] {
            let request = Request::builder().method(method).uri(target).body(());
            let head = request.unwrap().into_parts().0;
            let from = |peer: Option<&str>| {
                Rc::new(Caller {
                    app: ([127, 0, 0, 1], port).into(),
                    peer: peer.map(|peer| peer.parse().unwrap()),
                    address: None,
                    term: Term::default(),
                    introduction: Introduction::default(),
                })
            };
            let (plain, mesh) = (from(None), from(Some("spiffe://cluster.local/ns/shop/sa/web")));
            let what = format!("{method} {target} at {port}");
            for (rule, caller, probe, admitted) in [
                (&strict, &plain, is_probe, is_probe),
                (&strict, &mesh, false, true),
                (&permissive, &plain, false, true),
            ] {
                let facts = Facts {
                    caller,
                    is_probe: rule.is_probe(caller, &head, is_bare, false),
                    keeps_upgrade: false,
                };
                assert_eq!(facts.is_probe, probe, "{what}");
                assert_eq!(rule.admit(&facts).is_ok(), admitted, "{what}");
            }
            assert!(!strict.is_probe(&plain, &head, false, true), "{what}, with an upgrade");
        }
    }
}
