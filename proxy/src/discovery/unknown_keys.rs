//! Keys that tokens name and that their providers are not known to have: the controller is told, so that it asks the providers again.

use std::time::Duration;

use outrigger_api::discovery::UnknownKey;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

/// How long nothing more is said of a provider: whoever makes tokens up asks for no more than this.
const PAUSE: Duration = Duration::from_secs(10);
/// Providers of which something is kept. Those of one pod are fewer.
const MAX: usize = 1024;

/// See the module.
#[derive(Default)]
pub(super) struct UnknownKeys {
    met: Mutex<Vec<Met>>,
    changed: Notify,
}

struct Met {
    key: UnknownKey,
    at: Instant,
    said: bool,
}

impl UnknownKeys {
    /// A token of the policy's provider named one. This is asked at each request with such a token: nothing is allocated where it was
    /// met a moment ago.
    pub(super) fn meet(&self, policy: &str, provider: &str) {
        let now = Instant::now();
        let mut met = self.met.lock();
        met.retain(|one| !one.said || now.saturating_duration_since(one.at) < PAUSE);
        let is_it = |one: &Met| one.key.policy == policy && one.key.provider == provider;
        if met.len() >= MAX || met.iter().any(is_it) {
            return;
        }
        let key = UnknownKey {
            policy: policy.to_owned(),
            provider: provider.to_owned(),
        };
        met.push(Met {
            key,
            at: now,
            said: false,
        });
        self.changed.notify_one();
    }

    /// Waits for something to say. It counts as said.
    pub(super) async fn next(&self) -> UnknownKey {
        loop {
            if let Some(one) = self.met.lock().iter_mut().find(|one| !one.said) {
                (one.said, one.at) = (true, Instant::now());
                return one.key.clone();
            }
            self.changed.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tokio::time::{advance, timeout};

    use super::*;

    async fn said(keys: &UnknownKeys) -> Vec<String> {
        let mut said = Vec::new();
        while let Ok(key) = timeout(Duration::ZERO, keys.next()).await {
            said.push(format!("{} {}", key.policy, key.provider));
        }
        said
    }

    #[tokio::test(start_paused = true)]
    async fn a_provider_is_named_once_in_ten_seconds_however_often_it_is_met() {
        let keys = UnknownKeys::default();
        let flood = || {
            for _ in 0..10_000 {
                keys.meet("shop/orders", "login");
                keys.meet("shop/orders", "partner");
            }
        };
        flood();
        assert_eq!(said(&keys).await, ["shop/orders login", "shop/orders partner"]);
        flood();
        assert!(said(&keys).await.is_empty());
        advance(PAUSE - Duration::from_millis(10)).await;
        flood();
        assert!(said(&keys).await.is_empty());
        advance(Duration::from_millis(20)).await;
        flood();
        assert_eq!(said(&keys).await.len(), 2);
    }

    /// While no controller listens, and also when policies change all the time.
    #[tokio::test(start_paused = true)]
    async fn what_nobody_hears_does_not_pile_up() {
        let keys = UnknownKeys::default();
        for n in 0..10_000 {
            keys.meet(&format!("shop/{n}"), "login");
        }
        assert_eq!(keys.met.lock().len(), MAX);
        advance(10 * PAUSE).await;
        assert_eq!(said(&keys).await.len(), MAX, "it is said as soon as somebody listens");
        keys.meet("shop/orders", "login");
        advance(2 * PAUSE).await;
        keys.meet("shop/orders", "login");
        assert_eq!(keys.met.lock().len(), 1, "what was said a while ago is forgotten");
    }
}
