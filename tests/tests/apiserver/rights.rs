//! What the chart's roles allow.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use outrigger_tests::kube::eventually;
use serde_json::{Value, json};

use super::run;

/// The rights that both programs have are enough: every test here runs with them. And they are no more.
#[test]
#[ignore = "needs a kube-apiserver"]
fn rights_are_no_more_than_needed() -> Result<()> {
    run(async |plane| {
        for account in ["outrigger-controller", "outrigger-injector"] {
            for question in [
                &["get", "secrets", "-n", "default"][..],
                &["list", "secrets", "--all-namespaces"],
                &["list", "secrets", "-n", "kube-system"],
                &["create", "secrets", "-n", "outrigger"],
                &["create", "pods", "-n", "default"],
                &["create", "pods/exec", "-n", "default"],
                &["delete", "pods", "-n", "default"],
                &["patch", "deployments.apps", "-n", "outrigger"],
                &["create", "clusterrolebindings.rbac.authorization.k8s.io"],
                &["escalate", "clusterroles.rbac.authorization.k8s.io"],
                &["impersonate", "users"],
                &["create", "serviceaccounts/token", "-n", "default"],
                &["get", "nodes/proxy"],
                &[
                    "update",
                    "mutatingwebhookconfigurations.admissionregistration.k8s.io/another",
                ],
                &[
                    "patch",
                    "mutatingwebhookconfigurations.admissionregistration.k8s.io/another",
                ],
                &["list", "customresourcedefinitions.apiextensions.k8s.io"],
                &["patch", "customresourcedefinitions.apiextensions.k8s.io"],
                &["*", "*"],
            ] {
                ensure!(
                    !plane.may(account, question).await?,
                    "{account} may {}",
                    question.join(" ")
                );
            }
        }
        let bundle = "configmaps/outrigger-trust-bundle";
        for (question, may) in [
            (["get", bundle, "-n", "outrigger"], true),
            (["watch", bundle, "-n", "outrigger"], true),
            (["get", bundle, "-n", "default"], false),
            (["get", "configmaps", "-n", "outrigger"], false),
            (["update", bundle, "-n", "outrigger"], false),
            (["patch", bundle, "-n", "outrigger"], false),
        ] {
            let words = question.join(" ");
            ensure!(
                plane.may("outrigger-injector", &question).await? == may,
                "the injector: {words}"
            );
        }
        // Keys of tokens are in ConfigMaps that policies name; nobody has to see which ones there are.
        for (question, may) in [
            (["get", "configmaps/keys", "-n", "default"], true),
            (["list", "configmaps", "-n", "default"], false),
            (["watch", "configmaps", "-n", "outrigger"], false),
            (["patch", "configmaps/keys", "-n", "default"], false),
            (["delete", "configmaps/keys", "-n", "default"], false),
        ] {
            let words = question.join(" ");
            ensure!(
                plane.may("outrigger-controller", &question).await? == may,
                "the controller: {words}"
            );
        }
        let own = [
            "patch",
            "mutatingwebhookconfigurations.admissionregistration.k8s.io/outrigger-injector",
        ];
        ensure!(
            plane.may("outrigger-injector", &own).await?,
            "the injector may not {}",
            own.join(" ")
        );
        ensure!(
            !plane.may("outrigger-controller", &own).await?,
            "the controller may {}",
            own.join(" ")
        );
        let review = ["create", "tokenreviews.authentication.k8s.io"];
        ensure!(
            plane.may("outrigger-controller", &review).await?,
            "the controller may not {}",
            review.join(" ")
        );
        ensure!(
            !plane.may("outrigger-injector", &review).await?,
            "the injector may {}",
            review.join(" ")
        );
        Ok(())
    })
}

/// RBAC knows no fields: what the injector may patch, a ValidatingAdmissionPolicy says.
#[test]
#[ignore = "needs a kube-apiserver"]
fn the_injector_changes_its_ca_bundle_and_nothing_else() -> Result<()> {
    run(async |plane| {
        // It gets ready, so it has written its caBundle.
        plane.injector(|_| {}).await?.stop().await;
        let patch = async |patch: Value| {
            let patch = patch.to_string();
            let what = ["patch", "mutatingwebhookconfiguration", "outrigger-injector"];
            let how = ["--type=json", "--dry-run=server", "-p", &patch];
            let who = ["--as=system:serviceaccount:outrigger:outrigger-injector"];
            plane.admin.run([&what[..], &how, &who].concat()).await
        };
        for wrong in [
            json!({"op": "replace", "path": "/webhooks/0/rules/0/resources", "value": ["*"]}),
            json!({"op": "replace", "path": "/webhooks/1/failurePolicy", "value": "Ignore"}),
            json!({"op": "replace", "path": "/webhooks/0/namespaceSelector", "value": {}}),
            json!({"op": "replace", "path": "/webhooks/0/clientConfig/service/namespace", "value": "evil"}),
            json!({"op": "remove", "path": "/webhooks/1"}),
            json!({"op": "add", "path": "/metadata/labels/evil", "value": "yes"}),
        ] {
            // A policy that is new is in force a moment later.
            eventually(&format!("{wrong} is refused"), Duration::from_secs(20), async || {
                let refused = patch(json!([wrong])).await.err().context("it was taken")?;
                ensure!(format!("{refused:#}").contains("The injector changes n"), "{refused:#}");
                Ok(())
            })
            .await?;
        }
        patch(json!([{"op": "replace", "path": "/webhooks/0/clientConfig/caBundle", "value": "Cg=="}])).await?;
        Ok(())
    })
}
