//! What the chart's roles allow.

use anyhow::{Result, ensure};

use crate::run;

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
