//! AccessPolicies from kube-apiserver to a sidecar: what the CRD refuses, what reaches whom, and what is said of it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use outrigger_tests::cluster::examples_are_taken;
use outrigger_tests::kube::eventually;
use serde_json::{Value, json};

use super::{namespace, run};

fn policy(spec: Value) -> Value {
    let mut policy = json!({
        "apiVersion": "outrigger.dev/v1alpha1", "kind": "AccessPolicy", "metadata": {"name": "p"},
        "spec": {"targetRefs": [{"kind": "Service", "name": "orders"}]},
    });
    policy["spec"]
        .as_object_mut()
        .unwrap()
        .extend(spec.as_object().unwrap().clone());
    policy
}

/// kube-apiserver estimates what a rule in CEL costs at most when the CRD is applied, and refuses the CRD otherwise. That it takes it, all
/// tests here show.
#[test]
#[ignore = "needs a kube-apiserver"]
fn the_crd_takes_what_is_valid_and_refuses_what_is_not() -> Result<()> {
    run(async |plane| {
        plane.admin.create_namespace("shop", &[]).await?;
        let examples = examples_are_taken(&plane.admin, &["access", "rate-limits", "policies"]).await?;
        ensure!(examples >= 18, "only {examples} examples");

        let shop = namespace(&plane.admin, "access", false).await?;
        let rule = |rule: Value| json!({"rules": [rule]});
        let from = |source: Value| json!({"rules": [{"sources": [source]}]});
        let http =
            |attributes: Value| json!({"rules": [{"sources": [{"type": "Any"}], "httpAttributes": [attributes]}]});
        let provider = |more: Value| {
            let mut provider = json!({"name": "p", "issuer": "i", "audiences": ["a"], "jwks": {"inline": "{}"}});
            provider
                .as_object_mut()
                .unwrap()
                .extend(more.as_object().unwrap().clone());
            json!({"jwt": {"providers": [provider]}})
        };
        let target = |target: Value| json!({"targetRefs": [target]});
        let any = || json!([{"type": "Any"}]);
        let mut mistakes = Vec::new();
        for (wrong, words) in [
            (json!({"targetRefs": []}), "targetRefs"),
            (target(json!({"kind": "Pod"})), "named by their labels"),
            (
                target(json!({"kind": "Service", "name": "a", "selector": {}})),
                "named by their labels",
            ),
            (target(json!({"kind": "Service"})), "have one here"),
            (
                target(json!({"kind": "Namespace", "name": "a", "sectionName": "b"})),
                "only a Service has sections",
            ),
            (
                target(json!({"kind": "HTTPRoute", "group": "gateway.networking.k8s.io", "name": "a"})),
                "Unsupported value",
            ),
            (
                target(json!({"kind": "Service", "name": "a", "namespace": "b"})),
                "namespace",
            ),
            (
                target(json!({"kind": "Pod", "selector": {"matchExpressions": [{"key": "a", "operator": "In"}]}})),
                "In and NotIn have values",
            ),
            (json!({"action": "Log"}), "Unsupported value"),
            (json!({"mode": "Shadow"}), "Unsupported value"),
            (json!({"action": "Deny"}), "refuses nobody"),
            (
                json!({"action": "Deny", "exclusive": true, "rules": [{"sources": any()}]}),
                "only a policy that allows",
            ),
            (json!({"rules": []}), "should have at least 1"),
            (rule(json!({})), "sources"),
            (rule(json!({"sources": null})), "sources"),
            (rule(json!({"sources": []})), "should have at least 1"),
            (
                rule(json!({"sources": any(), "requires": null})),
                "must be of type array",
            ),
            (
                rule(json!({"sources": any(), "requires": []})),
                "should have at least 1",
            ),
            (rule(json!({"sources": any(), "when": {}})), "not declared in schema"),
            (rule(json!({"sources": any(), "name": "a b"})), "name"),
            (rule(json!({"sources": any(), "networkAttributes": {}})), "ports"),
            (
                rule(json!({"sources": any(), "networkAttributes": {"ports": [0]}})),
                "greater than or equal to 1",
            ),
            (
                rule(json!({"sources": any(), "networkAttributes": {"ports": [65536]}})),
                "less than or equal to 65535",
            ),
            (
                rule(json!({"sources": any(), "networkAttributes": {"ports": ["Web"]}})),
                "ports",
            ),
            (
                rule(json!({"sources": any(), "networkAttributes": {"ports": [true]}})),
                "ports",
            ),
            (from(json!({"type": "Country"})), "Unsupported value"),
            (from(json!({"type": "SPIFFE"})), "the field of the source's type"),
            (
                from(json!({"type": "Any", "spiffe": "spiffe://a/b"})),
                "the field of the source's type",
            ),
            (
                from(json!({"type": "Namespace", "address": {"cidrs": ["10.0.0.0/8"]}})),
                "the field of the source's type",
            ),
            (from(json!({"type": "SPIFFE", "spiffe": "spiffe://a/b*"})), "spiffe"),
            (
                from(json!({"type": "ServiceAccount", "serviceAccount": {"name": "a*"}})),
                "name",
            ),
            (from(json!({"type": "ServiceAccount", "serviceAccount": {}})), "name"),
            (
                from(json!({"type": "Namespace", "namespace": {}})),
                "a name or a selector",
            ),
            (
                from(json!({"type": "Namespace", "namespace": {"name": "a", "selector": {}}})),
                "a name or a selector",
            ),
            (
                from(json!({"type": "Address", "address": {"cidrs": ["10.0.0.1"]}})),
                "cidrs",
            ),
            (
                from(json!({"type": "JWT", "jwt": {"provider": "p"}})),
                "names one of jwt.providers",
            ),
            (http(json!({})), "at least 1 propert"),
            (http(json!({"methods": ["get"]})), "methods"),
            (
                http(json!({"paths": [{"type": "Exact", "value": "a"}]})),
                "begins with /",
            ),
            (
                http(json!({"paths": [{"type": "Glob", "value": "/a"}]})),
                "Unsupported value",
            ),
            (http(json!({"headers": [{"name": "a b", "value": "c"}]})), "name"),
            (
                http(json!({"headers": [{"name": "a", "value": "b\nc"}]})),
                "headers[0].value",
            ),
            (
                http(json!({"paths": [{"type": "RegularExpression", "value": "/a\u{1}"}]})),
                "paths[0].value",
            ),
            (http(json!({"hosts": ["*"]})), "hosts"),
            (http(json!({"grpc": {}})), "at least 1 propert"),
            (
                http(json!({"methods": ["GET"], "ambiguousPaths": "Allow"})),
                "Unsupported value",
            ),
            (provider(json!({"audiences": []})), "should have at least 1"),
            (provider(json!({"algorithms": ["HS256"]})), "algorithms"),
            (provider(json!({"algorithms": ["none"]})), "algorithms"),
            (provider(json!({"jwks": {}})), "at least 1 propert"),
            (
                provider(json!({"jwks": {"inline": "{}", "configMapRef": {"name": "a"}}})),
                "at most 1 item",
            ),
            (provider(json!({"jwks": {"remote": {"url": "http://i/k"}}})), "url"),
            (provider(json!({"jwks": {"remote": {}}})), "a url or a backendRef"),
            (provider(json!({"clockSkew": "11m"})), "10m at most"),
            (
                provider(json!({"jwks": {"remote": {"url": "https://i/k", "timeout": "1m"}}})),
                "100ms to 30s",
            ),
        ] {
            match shop.try_apply(&policy(wrong.clone()).to_string()).await {
                Ok(_) => mistakes.push(format!("{wrong} was taken")),
                Err(refused) if format!("{refused:#}").contains(words) => {}
                Err(refused) => mistakes.push(format!("{wrong}: {refused:#}\ndoes not say {words}")),
            }
        }
        ensure!(mistakes.is_empty(), "{}", mistakes.join("\n"));
        let twice = json!({"jwt": {"providers": [
            {"name": "p", "issuer": "i", "audiences": ["a"], "jwks": {"inline": "{}"}},
            {"name": "p", "issuer": "j", "audiences": ["a"], "jwks": {"inline": "{}"}},
        ]}});
        ensure!(
            shop.try_apply(&policy(twice).to_string()).await.is_err(),
            "two providers of one name were taken"
        );
        // And these are taken.
        for right in [
            json!({}),
            rule(json!({"sources": any(), "networkAttributes": {"ports": [1, 65535, "http", "a-1"]}})),
            rule(json!({"sources": any(), "requires": [{"type": "Unauthenticated"}]})),
            target(json!({"kind": "Pod", "selector": {}})),
        ] {
            shop.try_apply(&policy(right.clone()).to_string())
                .await
                .with_context(|| right.to_string())?;
        }
        Ok(())
    })
}

/// Who may do what with them: as with TrafficPolicies, the roles of Kubernetes itself.
#[test]
#[ignore = "needs a kube-apiserver"]
fn who_may_edit_a_namespace_may_edit_its_policies() -> Result<()> {
    run(async |plane| {
        let shop = namespace(&plane.admin, "access", false).await?;
        for (role, verbs) in [
            ("view", &["get", "list"][..]),
            ("edit", &["get", "create", "patch", "delete"]),
            ("admin", &["create"]),
        ] {
            let user = format!("a-{role}");
            let (name, who) = (format!("{user}-{role}"), format!("--user={user}"));
            shop.run(["create", "rolebinding", &name, &format!("--clusterrole={role}"), &who])
                .await?;
            for kind in ["accesspolicies.outrigger.dev", "trafficpolicies.outrigger.dev"] {
                for verb in verbs {
                    eventually(
                        &format!("{role} may {verb} {kind}"),
                        Duration::from_secs(20),
                        async || shop.run(["auth", "can-i", verb, kind, &format!("--as={user}")]).await,
                    )
                    .await?;
                }
                let write = shop
                    .run(["auth", "can-i", "create", kind, &format!("--as={user}")])
                    .await;
                ensure!(write.is_ok() == (role != "view"), "{role} and {kind}");
                let status = [
                    "auth",
                    "can-i",
                    "patch",
                    kind,
                    "--subresource=status",
                    &format!("--as={user}"),
                ];
                let status = shop.run(status).await;
                ensure!(status.is_err(), "{role} may write the status of {kind}");
            }
        }
        Ok(())
    })
}
