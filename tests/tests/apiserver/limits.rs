//! RateLimitPolicies at kube-apiserver: what the CRD refuses.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{namespace, run};

#[test]
#[ignore = "needs a kube-apiserver"]
fn the_crd_of_limits_refuses_what_is_wrong() -> Result<()> {
    run(async |plane| {
        let shop = namespace(&plane.admin, "limits", false).await?;
        let limit = |more: Value| {
            let mut limit = json!({"rate": {"requests": 1, "interval": "1s"}, "scope": "Pod"});
            limit.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            json!({"limits": [limit]})
        };
        let token = json!([{"type": "JWT", "jwt": {"provider": "p"}}]);
        let mut mistakes = Vec::new();
        for (wrong, words) in [
            (json!({}), "limits"),
            (json!({"limits": []}), "should have at least 1"),
            (json!({"connections": {}}), "should have at least 1"),
            (json!({"connections": {"max": 0}}), "greater than or equal to 1"),
            (
                json!({"connections": {"perIdentity": 1_000_001}}),
                "less than or equal to 1000000",
            ),
            (
                json!({"targetRefs": [], "limits": limit(json!({}))["limits"]}),
                "targetRefs",
            ),
            (
                json!({"mode": "Audit", "limits": limit(json!({}))["limits"]}),
                "Unsupported value",
            ),
            (limit(json!({"scope": "Mesh"})), "Unsupported value"),
            (limit(json!({"scope": "Global"})), "limits of the scope Global need it"),
            (
                json!({"limits": limit(json!({}))["limits"], "global": {"address": "redis.shop.svc:6379"}}),
                "limits of the scope Global need it, and no others have it",
            ),
            (
                json!({"limits": limit(json!({"scope": "Global"}))["limits"], "global": {"address": "redis://redis.shop.svc"}}),
                "spec.global.address",
            ),
            (
                json!({"limits": limit(json!({"scope": "Global"}))["limits"], "global": {"address": "10.0.0.7:6379", "timeout": "2s"}}),
                "the timeout is 1ms to 1s",
            ),
            (
                json!({"limits": limit(json!({"scope": "Global"}))["limits"], "global": {"address": "10.0.0.7:6379", "onFailure": "Wait"}}),
                "Unsupported value",
            ),
            (limit(json!({"scope": null})), "scope"),
            (limit(json!({"rate": null})), "rate"),
            (
                limit(json!({"rate": {"requests": 0, "interval": "1s"}})),
                "greater than or equal to 1",
            ),
            (
                limit(json!({"rate": {"requests": 1, "interval": "999ms"}})),
                "the interval is 1s to 24h",
            ),
            (
                limit(json!({"rate": {"requests": 1, "interval": "25h"}})),
                "the interval is 1s to 24h",
            ),
            (limit(json!({"burst": 0})), "greater than or equal to 1"),
            (
                limit(json!({"per": [{"type": "Claim"}]})),
                "the field of the part's type",
            ),
            (
                limit(
                    json!({"per": [{"type": "Claim", "claim": {"accessPolicy": "A", "provider": "p", "name": "sub"}}]}),
                ),
                "accessPolicy",
            ),
            (
                limit(json!({"per": [{"type": "Header"}]})),
                "the field of the part's type",
            ),
            (
                limit(json!({"per": [{"type": "Identity", "address": {}}]})),
                "the field of the part's type",
            ),
            (limit(json!({"keys": {"max": 5}})), "without `per` there is one bucket"),
            (
                limit(json!({"per": [{"type": "Identity"}], "keys": {"max": 100_001}})),
                "less than or equal to 100000",
            ),
            (limit(json!({"matches": [{}]})), "at least 1"),
            (limit(json!({"matches": [{"sources": token}]})), "accessPolicy"),
            (
                limit(json!({"overrides": [{"sources": token, "rate": {"requests": 1, "interval": "1s"}}]})),
                "accessPolicy",
            ),
            (
                limit(json!({"cost": {"header": "x", "max": 10_001}})),
                "less than or equal to 10000",
            ),
            (limit(json!({"connections": {}})), "not declared in schema"),
        ] {
            let mut object = json!({
                "apiVersion": "outrigger.dev/v1alpha1", "kind": "RateLimitPolicy", "metadata": {"name": "p"},
                "spec": {"targetRefs": [{"kind": "Service", "name": "orders"}]},
            });
            let spec = object["spec"].as_object_mut().unwrap();
            spec.extend(wrong.as_object().unwrap().clone());
            match shop.try_apply(&object.to_string()).await {
                Ok(_) => mistakes.push(format!("{wrong} is taken")),
                Err(error) if format!("{error:#}").contains(words) => {}
                Err(error) => mistakes.push(format!("{wrong}: {error:#}")),
            }
        }
        ensure!(mistakes.is_empty(), "{mistakes:#?}");
        Ok(())
    })
}
