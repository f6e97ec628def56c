//! Tokens that Kubernetes itself vouches for.

use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::api::PostParams;
use kube::{Api, Client};
use outrigger_api::labels::TOKEN_AUDIENCE;
use tokio::sync::Semaphore;

use crate::issuer::{AuthError, Authenticator, ServiceAccountRef};

/// How long the API server may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Reviews at one time; the others wait. A whole cluster that restarts must not become an attack on its API server.
const CONCURRENCY: usize = 32;

/// Asks the API server about every token. Nothing is remembered: an SVID is asked for once in hours, and a token of a
/// deleted pod must not be good for a moment longer.
pub struct TokenReviews {
    api: Api<TokenReview>,
    permits: Semaphore,
}

impl TokenReviews {
    /// Needs `create` on `tokenreviews.authentication.k8s.io`.
    pub fn new(client: Client) -> Self {
        Self {
            api: Api::all(client),
            permits: Semaphore::new(CONCURRENCY),
        }
    }
}

impl Authenticator for TokenReviews {
    async fn authenticate(&self, token: &str) -> Result<ServiceAccountRef, AuthError> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: Some(token.to_owned()),
                audiences: Some(vec![TOKEN_AUDIENCE.to_owned()]),
            },
            ..TokenReview::default()
        };
        let unavailable =
            |why: String| AuthError::Unavailable(format!("the API server did not review the token: {why}"));
        let answer = tokio::time::timeout(TIMEOUT, async {
            let _permit = self.permits.acquire().await;
            self.api.create(&PostParams::default(), &review).await
        })
        .await
        .map_err(|_| unavailable(format!("no answer within {} s", TIMEOUT.as_secs())))?
        .map_err(|e| unavailable(e.to_string()))?;
        account(answer.status.unwrap_or_default())
    }
}

fn account(status: TokenReviewStatus) -> Result<ServiceAccountRef, AuthError> {
    if status.authenticated != Some(true) {
        let why = status.error.unwrap_or_else(|| "no reason given".to_owned());
        return Err(AuthError::Refused(format!(
            "the API server does not accept the token ({why}): it must be a projected token with the audience \
             {TOKEN_AUDIENCE:?} of a pod that still exists"
        )));
    }
    // An API server that does not know about audiences leaves the list empty, and would accept any token.
    if !status.audiences.iter().flatten().any(|a| a == TOKEN_AUDIENCE) {
        return Err(AuthError::Refused(format!(
            "the token is not for the audience {TOKEN_AUDIENCE:?}"
        )));
    }
    let username = status.user.and_then(|u| u.username).unwrap_or_default();
    username
        .strip_prefix("system:serviceaccount:")
        .and_then(|rest| rest.split_once(':'))
        .map(|(namespace, name)| ServiceAccountRef {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })
        .ok_or_else(|| AuthError::Refused(format!("the token is of {username:?}, which is no ServiceAccount")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use k8s_openapi::api::authentication::v1::{TokenReviewStatus, UserInfo};

    use super::account;

    fn status(authenticated: bool, audience: &str, user: &str) -> TokenReviewStatus {
        TokenReviewStatus {
            authenticated: Some(authenticated),
            audiences: Some(vec![audience.to_owned()]),
            user: Some(UserInfo {
                username: Some(user.to_owned()),
                ..UserInfo::default()
            }),
            error: None,
        }
    }

    #[test]
    fn only_a_service_account_for_our_audience() {
        let user = "system:serviceaccount:shop:orders";
        let account_ref = account(status(true, "outrigger", user)).unwrap();
        assert_eq!((&*account_ref.namespace, &*account_ref.name), ("shop", "orders"));
        assert!(account(status(false, "outrigger", user)).is_err());
        assert!(account(status(true, "https://kubernetes.default.svc", user)).is_err());
        assert!(account(status(true, "outrigger", "system:node:n1")).is_err());
        let mut none = status(true, "outrigger", user);
        none.audiences = None;
        assert!(account(none).is_err());
    }
}
