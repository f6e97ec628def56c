use std::time::{Duration, SystemTime};

use http::HeaderMap;
use outrigger_api::access as proto;
use serde_json::json;

use super::super::testing::{Signer, policy, provider};
use super::super::{Algorithm, Providers};
use super::*;

const NOW: u64 = 1_800_000_000;

struct World {
    signer: Signer,
    providers: Arc<Providers>,
    cache: Cache,
}

impl World {
    fn new() -> Self {
        let signer = Signer::new(Algorithm::EdDsa);
        let provider = provider("login", "me", "you", &[signer.jwk("k")]);
        let enforced = vec![policy("a/b", vec![provider])];
        let message = proto::Access {
            enforced,
            ..Default::default()
        };
        Self {
            signer,
            providers: Providers::after(&message, &Providers::default()),
            cache: Cache::default(),
        }
    }

    fn token(&self, n: usize, more: usize) -> String {
        let claims = json!({"iss": "me", "aud": "you", "exp": NOW + 60, "n": n, "more": "x".repeat(more)});
        self.signer
            .token(Algorithm::EdDsa, &json!({"alg": "EdDSA", "kid": "k"}), &claims)
    }

    fn is_good(&mut self, token: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert("authorization", format!("Bearer {token}").parse().unwrap());
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(NOW);
        let tokens = self.providers.authenticate(80, &mut headers, now, &mut self.cache);
        !tokens.verified.is_empty()
    }
}

fn bytes(store: &Store) -> usize {
    store.entries.values().map(|entry| entry.size() + ENTRY).sum()
}

#[test]
fn a_flood_of_bad_tokens_drives_no_good_one_out_and_both_are_bounded() {
    let mut world = World::new();
    let good = world.token(0, 0);
    assert!(world.is_good(&good));
    let (message, _) = good.rsplit_once('.').unwrap();
    for n in 0..2_000 {
        let bad = format!(
            "{message}.{}",
            super::super::testing::b64([n as u8; 64]) + &format!("{n:04}")
        );
        assert!(!world.is_good(&bad));
    }
    assert_eq!(world.cache.good.entries.len(), 1);
    assert!(world.cache.bad.bytes <= MAX_BAD && !world.cache.bad.entries.is_empty());
    for n in 1..600 {
        let token = world.token(n, 8_000);
        assert!(world.is_good(&token));
    }
    for (store, max) in [(&world.cache.good, MAX_GOOD), (&world.cache.bad, MAX_BAD)] {
        assert_eq!(store.bytes, bytes(store));
        assert_eq!(store.order.len(), store.entries.len());
        assert!(store.bytes <= max && store.bytes > max / 2, "{} of {max}", store.bytes);
    }
    assert!(world.is_good(&good), "it is verified again");
}

#[test]
fn what_is_kept_is_of_one_state_of_the_providers() {
    let mut world = World::new();
    let token = world.token(0, 0);
    assert!(world.is_good(&token));
    assert_eq!(world.cache.good.entries.len(), 1);
    let other = World::new();
    world.providers = other.providers;
    assert!(!world.is_good(&token));
    assert_eq!((world.cache.good.entries.len(), world.cache.bad.entries.len()), (0, 1));
}

/// The memory that claims take is measured, not guessed: small JSON can be large in memory.
#[test]
fn a_token_of_many_small_things_counts_what_it_takes() {
    let mut world = World::new();
    let many: Vec<_> = (0..4_000).map(|_| json!([])).collect();
    let claims = json!({"iss": "me", "aud": "you", "exp": NOW + 60, "many": many});
    let token = world.signer.token(Algorithm::EdDsa, &json!({"alg": "EdDSA"}), &claims);
    assert!(token.len() < 17_000, "{}", token.len());
    assert!(world.is_good(&token));
    assert!(world.cache.good.bytes > 4_000 * size_of::<serde_json::Value>());
}
