//! Tokens that Kubernetes itself vouches for.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus, UserInfo};
use k8s_openapi::api::core::v1::Pod;
use kube::api::PostParams;
use kube::{Api, Client};
use outrigger_api::labels::TOKEN_AUDIENCE;
use outrigger_gate::{Room, Turns};
use parking_lot::Mutex;

use super::bound_pod::{BoundPod, vouch};
use super::token;
use crate::index::Index;
use crate::metrics::Metrics;
use crate::objects::{Object, ObjectName, from_k8s};
use outrigger_issuer::clock;
use outrigger_issuer::service::{AuthError, Authenticator, ServiceAccountRef};

/// How long the API server may take, and how long a token may wait for its turn, together.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Reviews at one time: a whole cluster that restarts must not become an attack on its API server. At 10 ms for one, those
/// that wait are done within a second.
const REVIEWS: Room = Room {
    working: 32,
    waiting: 512,
};
/// The controller's own token, which the same API server issued.
const OWN_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";
/// An API server may be changing from one issuer to the next.
const MAX_ISSUERS: usize = 8;

/// Asks the API server about every token. Nothing is remembered: an SVID is asked for once in hours, and a token of a
/// deleted pod must not be good for a moment longer.
pub struct TokenReviews {
    reviews: Api<TokenReview>,
    client: Client,
    index: Arc<Index>,
    metrics: Arc<Metrics>,
    /// Whether a caller at the address of another pod is refused.
    check_address: bool,
    /// By the caller's address. All tokens of an issuer that never issued a good one have one turn together.
    turns: Turns<Option<IpAddr>>,
    issuers: Mutex<Vec<String>>,
}

impl TokenReviews {
    /// Needs `create` on `tokenreviews.authentication.k8s.io`, and `get` on pods where the index does not know one yet.
    pub fn new(client: Client, index: Arc<Index>, metrics: Arc<Metrics>, check_address: bool) -> Self {
        let own = std::fs::read_to_string(OWN_TOKEN).ok();
        let issuer = own.and_then(|own| token::issuer(&own));
        Self {
            reviews: Api::all(client.clone()),
            client,
            index,
            metrics,
            check_address,
            turns: Turns::new(REVIEWS),
            issuers: Mutex::new(issuer.into_iter().collect()),
        }
    }

    async fn review(&self, token: &str) -> Result<BoundPod, AuthError> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: Some(token.to_owned()),
                audiences: Some(vec![TOKEN_AUDIENCE.to_owned()]),
            },
            ..TokenReview::default()
        };
        let answer = self.reviews.create(&PostParams::default(), &review).await;
        let answer =
            answer.map_err(|e| AuthError::Unavailable(format!("the API server did not review the token: {e}")))?;
        bound_pod(answer.status.unwrap_or_default()).map_err(AuthError::Refused)
    }

    /// Whether the pod may have an SVID: by the index, and where that says no, by the API server, since the index may lag.
    async fn check_pod(&self, bound: &BoundPod) -> Result<(), AuthError> {
        let known = self.index.pod(&bound.name);
        if vouch(bound, known.as_ref(), clock::now()).is_ok() {
            return Ok(());
        }
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &bound.name.namespace);
        let read = pods.get_opt(&bound.name.name).await;
        let read = read.map_err(|e| AuthError::Unavailable(format!("the pod {} cannot be read: {e}", bound.name)))?;
        let pod = read
            .as_ref()
            .and_then(from_k8s::pod)
            .and_then(|(_, object)| match object {
                Object::Pod(pod) => Some(pod),
                _ => None,
            });
        vouch(bound, pod.as_ref(), clock::now()).map_err(AuthError::Refused)
    }

    /// Whose address the caller has, where that is known and is another pod's. A node's address, behind which its pods may be,
    /// is nobody's.
    fn check_address(&self, bound: &BoundPod, caller: IpAddr) -> Result<(), AuthError> {
        let Some(owner) = self.index.pod_at(caller).filter(|owner| *owner != bound.name) else {
            return Ok(());
        };
        self.metrics.address_mismatch();
        let why = format!(
            "the token of the pod {} came from {caller}, the address of the pod {owner}",
            bound.name
        );
        if self.check_address {
            return Err(AuthError::Refused(why));
        }
        tracing::warn!("{why}");
        Ok(())
    }

    fn is_known(&self, issuer: &str) -> bool {
        let issuers = self.issuers.lock();
        // Outside of a cluster there is nothing to compare with.
        issuers.is_empty() || issuers.iter().any(|known| known == issuer)
    }

    /// The issuer has issued a good token.
    fn learn(&self, issuer: String) {
        let mut issuers = self.issuers.lock();
        if issuers.len() < MAX_ISSUERS && !issuers.contains(&issuer) {
            issuers.push(issuer);
        }
    }
}

impl Authenticator for TokenReviews {
    async fn authenticate(&self, token: &str, caller: IpAddr) -> Result<ServiceAccountRef, AuthError> {
        let claims = token::look(token, clock::now()).map_err(AuthError::Refused)?;
        let turn = self.turns.turn(self.is_known(&claims.issuer).then_some(caller));
        let checked = tokio::time::timeout(TIMEOUT, async {
            let _turn = turn.await.map_err(|_| AuthError::Crowded)?;
            let bound = self.review(token).await?;
            self.check_pod(&bound).await?;
            Ok(bound)
        });
        let bound = checked.await.unwrap_or_else(|_| {
            let why = format!("the API server did not review the token within {} s", TIMEOUT.as_secs());
            Err(AuthError::Unavailable(why))
        })?;
        self.check_address(&bound, caller)?;
        self.learn(claims.issuer);
        Ok(ServiceAccountRef {
            namespace: bound.name.namespace.as_ref().to_owned(),
            name: bound.service_account,
        })
    }
}

/// What the API server says of a token. The keys of a pod's token are there since Kubernetes 1.20 or so (KEP-1205).
fn bound_pod(status: TokenReviewStatus) -> Result<BoundPod, String> {
    let user = status.user.clone().unwrap_or_default();
    let account = account(status)?;
    let extra = |key: &str| extra(&user, key);
    let (name, uid) = (
        extra("authentication.kubernetes.io/pod-name"),
        extra("authentication.kubernetes.io/pod-uid"),
    );
    let (Some(name), Some(uid)) = (name, uid) else {
        return Err(format!(
            "the token of the ServiceAccount {}/{} is not bound to a pod",
            account.namespace, account.name
        ));
    };
    Ok(BoundPod {
        name: ObjectName::new(&account.namespace, name),
        uid: uid.to_owned(),
        service_account: account.name,
    })
}

fn extra<'a>(user: &'a UserInfo, key: &str) -> Option<&'a str> {
    let values = user.extra.as_ref()?.get(key)?;
    values.first().map(String::as_str).filter(|value| !value.is_empty())
}

fn account(status: TokenReviewStatus) -> Result<ServiceAccountRef, String> {
    if status.authenticated != Some(true) {
        let why = status.error.unwrap_or_else(|| "no reason given".to_owned());
        return Err(format!(
            "the API server does not accept the token ({why}): it must be a projected token with the audience \
             {TOKEN_AUDIENCE:?} of a pod that still exists"
        ));
    }
    // An API server that does not know about audiences leaves the list empty, and would accept any token.
    if !status.audiences.iter().flatten().any(|a| a == TOKEN_AUDIENCE) {
        return Err(format!("the token is not for the audience {TOKEN_AUDIENCE:?}"));
    }
    let username = status.user.and_then(|u| u.username).unwrap_or_default();
    username
        .strip_prefix("system:serviceaccount:")
        .and_then(|rest| rest.split_once(':'))
        .map(|(namespace, name)| ServiceAccountRef {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })
        .ok_or_else(|| format!("the token is of {username:?}, which is no ServiceAccount"))
}

#[cfg(test)]
#[path = "token_review_tests.rs"]
mod tests;
