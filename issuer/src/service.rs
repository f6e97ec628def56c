//! The identity service: a token and a CSR in, an SVID out.

use std::collections::HashMap;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use outrigger_api::identity::identity_server::Identity;
use outrigger_api::identity::{IssueRequest, IssueResponse};
use outrigger_api::spiffe::SpiffeId;
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;
use tonic::{Code, Request, Response, Status};

use crate::ca::{Ca, SignError};
use crate::metrics::{IssueResult, Metrics};
use crate::peer::{Bound, Peer};
use crate::refusals::Refusals;

/// A projected token is some 1 to 2 KiB.
const MAX_TOKEN_BYTES: usize = 16 * 1024;

/// Whoever guesses, waits: a stranger has few requests at the same time, so this is what bounds their rate.
const REFUSAL_DELAY: Duration = Duration::from_millis(250);

/// A ServiceAccount, as a token names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServiceAccountRef {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// Why a token was not taken.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// The token is not good; another try with the same one is of no use.
    #[error("{0}")]
    Refused(String),
    /// Who must say so cannot be asked now.
    #[error("{0}")]
    Unavailable(String),
    /// Too many ask, and most of them are this caller.
    #[error("too many ask for an SVID from this address: try again later")]
    Crowded,
}

/// Says whose a token is.
pub trait Authenticator: Send + Sync + 'static {
    /// The ServiceAccount that the token belongs to. The caller's address is for fairness; it proves nothing.
    fn authenticate(
        &self,
        token: &str,
        caller: IpAddr,
    ) -> impl Future<Output = Result<ServiceAccountRef, AuthError>> + Send;
}

/// Tokens that are known beforehand: for the demo and tests.
#[derive(Clone, Debug, Default)]
pub struct StaticTokens(HashMap<String, ServiceAccountRef>);

impl StaticTokens {
    /// No tokens.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a token of a ServiceAccount.
    #[must_use]
    pub fn with(mut self, token: impl Into<String>, namespace: impl Into<String>, name: impl Into<String>) -> Self {
        let account = ServiceAccountRef {
            namespace: namespace.into(),
            name: name.into(),
        };
        self.0.insert(token.into(), account);
        self
    }
}

impl Authenticator for StaticTokens {
    async fn authenticate(&self, token: &str, _: IpAddr) -> Result<ServiceAccountRef, AuthError> {
        // A token file of the demo may end in a newline.
        self.0
            .get(token.trim())
            .cloned()
            .ok_or_else(|| AuthError::Refused("the token is not known to this issuer".to_owned()))
    }
}

/// `outrigger.identity.v1.Identity`.
pub struct Issuer<A> {
    ca: watch::Receiver<Arc<Ca>>,
    authenticator: A,
    trust_domain: String,
    ttl: Duration,
    metrics: Arc<Metrics>,
    refusals: Refusals,
}

impl<A: Authenticator> Issuer<A> {
    /// Issues SVIDs of `trust_domain` that live for `ttl`, always by the newest CA.
    pub fn new(
        ca: watch::Receiver<Arc<Ca>>,
        authenticator: A,
        trust_domain: impl Into<String>,
        ttl: Duration,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            ca,
            authenticator,
            trust_domain: trust_domain.into(),
            ttl,
            metrics,
            refusals: Refusals::default(),
        }
    }

    async fn answer(&self, request: IssueRequest, caller: IpAddr) -> Result<IssueResponse, (IssueResult, Status)> {
        if request.token.is_empty() || request.token.len() > MAX_TOKEN_BYTES {
            let message = "the request has no token, or one that is too long: check the projected token volume";
            return Err((IssueResult::Unauthenticated, Status::unauthenticated(message)));
        }
        let account = self
            .authenticator
            .authenticate(&request.token, caller)
            .await
            .map_err(|e| match e {
                AuthError::Refused(why) => (IssueResult::Unauthenticated, Status::unauthenticated(why)),
                AuthError::Unavailable(why) => (IssueResult::Unavailable, Status::unavailable(why)),
                AuthError::Crowded => (IssueResult::Crowded, Status::resource_exhausted(e.to_string())),
            })?;
        let id = SpiffeId::new(&self.trust_domain, &account.namespace, &account.name)
            .map_err(|e| (IssueResult::InvalidCsr, Status::invalid_argument(e.to_string())))?;
        let ca = self.ca.borrow().clone();
        let chain = ca.sign_csr(&request.csr, &id, self.ttl).map_err(|e| match e {
            SignError::Csr(e) => (IssueResult::InvalidCsr, Status::invalid_argument(e.to_string())),
            SignError::Ca(e) => (IssueResult::Unavailable, Status::unavailable(e.to_string())),
        })?;
        tracing::info!(identity = %id, "issued an SVID");
        let bytes = |certificates: &[CertificateDer<'_>]| certificates.iter().map(|c| c.to_vec()).collect();
        Ok(IssueResponse {
            certificate_chain: bytes(&chain),
            trust_bundle: bytes(ca.bundle()),
        })
    }
}

#[tonic::async_trait]
impl<A: Authenticator> Identity for Issuer<A> {
    async fn issue(&self, request: Request<IssueRequest>) -> Result<Response<IssueResponse>, Status> {
        let peer = request.extensions().get::<Peer>().cloned();
        let caller = peer
            .as_ref()
            .map_or(Ipv4Addr::UNSPECIFIED.into(), |peer| peer.address.ip().to_canonical());
        // The request is whole: from here on the connection is not closed for another.
        let _working = peer.and_then(|peer| match peer.bound {
            Bound::Times(work) => Some(work.complete()),
            Bound::Share(_) => None,
        });
        match self.answer(request.into_inner(), caller).await {
            Ok(response) => {
                self.metrics.issued(IssueResult::Ok);
                Ok(Response::new(response))
            }
            Err((result, status)) => {
                self.metrics.issued(result);
                self.refusals.note("refused to issue an SVID", &status, caller);
                if status.code() == Code::Unauthenticated {
                    tokio::time::sleep(REFUSAL_DELAY).await;
                }
                Err(status)
            }
        }
    }
}
