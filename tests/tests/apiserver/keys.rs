//! The keys of tokens: a controller with the rights that the chart gives it fetches them where policies say.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use outrigger_tests::kube::{Kubectl, eventually};
use outrigger_tests::provider::Provider;
use serde_json::{Value, json};

use super::{namespace, run};

const SOON: Duration = Duration::from_secs(30);

/// A policy that lets in whoever has a token of this provider.
fn policy(jwks: Value) -> Value {
    json!({
        "apiVersion": "outrigger.dev/v1alpha1", "kind": "AccessPolicy", "metadata": {"name": "p"},
        "spec": {
            "targetRefs": [{"kind": "Pod", "selector": {}}],
            "rules": [{"sources": [{"type": "JWT", "jwt": {"provider": "login"}}]}],
            "jwt": {"providers": [{"name": "login", "issuer": "https://i", "audiences": ["orders"], "jwks": jwks}]},
        },
    })
}

/// Waits for the words in what is said of the policy.
async fn is_said(shop: &Kubectl, words: &str) -> Result<()> {
    eventually(words, SOON, async || {
        let policy = shop.get(["accesspolicy", "p"]).await?;
        let conditions = policy
            .pointer("/status/ancestors/0/conditions")
            .context("no status yet")?;
        let current = conditions[1]["observedGeneration"] == policy["metadata"]["generation"];
        let message = conditions[1]["message"].as_str().unwrap_or_default();
        ensure!(current && message.contains(words), "{conditions:#}");
        ensure!(conditions[0]["status"] == "True", "{conditions:#}");
        Ok(())
    })
    .await
}

const ALL: &str = "All that it says is in force";

#[test]
#[ignore = "needs a kube-apiserver"]
fn the_keys_of_a_policys_providers_are_fetched_where_it_says() -> Result<()> {
    run(async |plane| {
        let shop = namespace(&plane.admin, "keys", false).await?;
        let mut provider = Provider::start().await?;
        let controller = plane.controller().await?;

        shop.apply(&policy(json!({"configMapRef": {"name": "keys"}})).to_string())
            .await?;
        is_said(&shop, "there is no ConfigMap keys").await?;
        let key = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
        let keys = format!(r#"{{"keys": [{{"kty": "OKP", "crv": "Ed25519", "kid": "1", "x": "{key}"}}]}}"#);
        let map = |name: &str, data: Value| {
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}).to_string()
        };
        shop.apply(&map("keys", json!({"jwks.json": keys}))).await?;
        is_said(&shop, ALL).await?;

        let loopback = policy(json!({"remote": {"url": "https://127.0.0.1:6443/openid/v1/jwks"}}));
        shop.apply(&loopback.to_string()).await?;
        is_said(&shop, "127.0.0.1 is not called").await?;
        let localhost = policy(json!({"remote": {"url": "https://localhost/keys"}}));
        shop.apply(&localhost.to_string()).await?;
        is_said(&shop, " is not called").await?;

        let url = format!("{}keys", provider.issuer);
        let with = |ca: Option<&str>| {
            let mut remote = json!({"url": url, "cacheDuration": "10s"});
            if let Some(ca) = ca {
                remote["caConfigMapRef"] = json!({"name": ca});
            }
            policy(json!({"remote": remote})).to_string()
        };
        shop.apply(&with(None)).await?;
        is_said(&shop, "its certificate is not of an authority that is trusted").await?;
        shop.apply(&map("login-ca", json!({"ca.crt": provider.ca}))).await?;
        shop.apply(&with(Some("login-ca"))).await?;
        is_said(&shop, ALL).await?;
        provider.stop().await?;
        is_said(&shop, "are the last that could be fetched").await?;
        controller.stop().await
    })
}
