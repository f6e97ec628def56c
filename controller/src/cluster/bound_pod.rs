//! The pod that a token is bound to, and whether it may have an SVID.

use std::time::{Duration, SystemTime};

use crate::objects::{ObjectName, Pod};

/// Kubernetes itself takes a pod's token until so long after the end of the pod's grace period.
const LEEWAY: Duration = Duration::from_secs(60);

/// What the API server says of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BoundPod {
    pub(super) name: ObjectName,
    pub(super) uid: String,
    pub(super) service_account: String,
}

/// Whether the pod is there, is the one that the token was made for, and runs.
///
/// A pod that is being deleted has an SVID until its grace period is over (`deletionTimestamp` is that end, not the moment of
/// the deletion): a long drain needs its connections, and a sidecar that is started again in the middle needs an SVID.
///
/// # Errors
/// Says what is wrong.
pub(super) fn vouch(bound: &BoundPod, pod: Option<&Pod>, now: SystemTime) -> Result<(), String> {
    let name = &bound.name;
    let Some(pod) = pod else {
        return Err(format!("the token's pod {name} does not exist any more"));
    };
    if *pod.uid != bound.uid {
        return Err(format!("the token is of an earlier pod of the name {name}"));
    }
    if *pod.service_account != bound.service_account {
        return Err(format!(
            "the token is of the ServiceAccount {:?}, and its pod {name} has {:?}",
            bound.service_account, pod.service_account
        ));
    }
    if pod.ended {
        return Err(format!("the token's pod {name} has ended"));
    }
    if pod.grace_ends.is_some_and(|end| end + LEEWAY <= now) {
        return Err(format!(
            "the token's pod {name} is deleted, and its grace period is over"
        ));
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_the_pod_that_the_token_was_made_for_and_while_it_runs() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let bound = BoundPod {
            name: ObjectName::new("shop", "orders-1"),
            uid: "u1".to_owned(),
            service_account: "orders".to_owned(),
        };
        let pod = Pod {
            uid: "u1".into(),
            service_account: "orders".into(),
            ..Pod::default()
        };
        assert_eq!(vouch(&bound, Some(&pod), now), Ok(()));
        let draining = Pod {
            grace_ends: Some(now + Duration::from_secs(3600)),
            ..pod.clone()
        };
        assert_eq!(vouch(&bound, Some(&draining), now), Ok(()), "a drain of an hour");

        assert!(vouch(&bound, None, now).unwrap_err().contains("does not exist"));
        for (wrong, why) in [
            (
                Pod {
                    uid: "u2".into(),
                    ..pod.clone()
                },
                "earlier pod",
            ),
            (
                Pod {
                    service_account: "admin".into(),
                    ..pod.clone()
                },
                "ServiceAccount",
            ),
            (
                Pod {
                    ended: true,
                    ..pod.clone()
                },
                "has ended",
            ),
            (
                Pod {
                    grace_ends: Some(now - LEEWAY),
                    ..pod
                },
                "grace period",
            ),
        ] {
            let error = vouch(&bound, Some(&wrong), now).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
