//! Whom the webhook is asked about, and that it goes on while its certificates change.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use outrigger_api::labels;
use outrigger_tests::kube::eventually;
use serde_json::{Value, json};

use super::{dry_run, has_sidecar, namespace, pod, run};

#[test]
#[ignore = "needs a kube-apiserver"]
fn namespaces_and_pods_choose() -> Result<()> {
    run(async |plane| {
        let injector = plane.injector(|_| {}).await?;
        let labelled = namespace(&plane.admin, "labelled", true).await?;
        let plain = namespace(&plane.admin, "plain", false).await?;
        let system = plane.admin.namespace("kube-system");
        let install = plane.admin.namespace("outrigger");
        let none = json!({});
        let out = json!({"labels": {labels::INJECT: labels::DISABLED}});
        let out_too = json!({"annotations": {labels::INJECT: labels::DISABLED}});
        let opt_in = json!({"labels": {labels::INJECT: labels::ENABLED}});
        let cases = [
            (&labelled, &none, true, "a labelled namespace"),
            (&labelled, &out, false, "opted out by a label"),
            (&labelled, &out_too, false, "opted out by an annotation"),
            (&plain, &none, false, "a namespace without the label"),
            (&plain, &opt_in, true, "opted in by a label"),
            (&system, &none, false, "kube-system"),
            (&install, &none, false, "Outrigger's own namespace"),
        ];
        for (namespace, metadata, expected, what) in cases {
            let created = dry_run(namespace, &pod("app", metadata.clone())).await.context(what)?;
            ensure!(has_sidecar(&created) == expected, "{what}: {created}");
        }
        injector.stop().await;
        Ok(())
    })
}

/// Deployment, StatefulSet, Job: the pods that Kubernetes' own controllers create are the ones that count.
#[test]
#[ignore = "needs a kube-apiserver"]
fn workloads_get_sidecars() -> Result<()> {
    run(async |plane| {
        let injector = plane.injector(|_| {}).await?;
        let shop = namespace(&plane.admin, "workloads", true).await?;
        let template = json!({
            "metadata": {"labels": {"app": "x"}},
            "spec": {"containers": [{"name": "app", "image": "example/app:1"}]}
        });
        let workload = |kind: &str, name: &str| {
            json!({
                "apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name},
                "spec": {"selector": {"matchLabels": {"app": "x"}}, "serviceName": name, "template": template}
            })
        };
        shop.run_with_input(
            ["create", "--validate=ignore", "-f", "-"],
            &[
                workload("Deployment", "orders").to_string(),
                workload("StatefulSet", "db").to_string(),
                json!({
                    "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "once"},
                    "spec": {"template": {"spec": {
                        "restartPolicy": "Never", "containers": [{"name": "app", "image": "example/app:1"}]
                    }}}
                })
                .to_string(),
            ]
            .join("\n---\n"),
        )
        .await?;
        let pods = eventually("three pods", Duration::from_secs(30), async || {
            let pods = shop.list(["pods"]).await?;
            ensure!(pods.len() == 3, "{} pods", pods.len());
            Ok(pods)
        })
        .await?;
        let names: BTreeSet<_> = pods.iter().map(workload_name).collect();
        ensure!(names == ["db", "once", "orders"].map(str::to_owned).into(), "{names:?}");
        injector.stop().await;
        Ok(())
    })
}

/// What the sidecar of a pod calls it in telemetry.
fn workload_name(pod: &Value) -> String {
    let init = pod["spec"]["initContainers"].as_array().into_iter().flatten();
    let mut env = init.flat_map(|container| container["env"].as_array().into_iter().flatten());
    let name = env
        .find(|env| env["name"] == "OUTRIGGER_WORKLOAD")
        .map(|env| &env["value"]);
    name.and_then(Value::as_str).unwrap_or("no sidecar").to_owned()
}

#[test]
#[ignore = "needs a kube-apiserver"]
fn certificate_rotation() -> Result<()> {
    run(async |plane| {
        let forget = async || {
            let install = plane.admin.namespace("outrigger");
            // As the chart made it.
            let empty = json!({"data": null}).to_string();
            let secret = [
                "patch",
                "secret",
                "outrigger-injector-tls",
                "--type",
                "merge",
                "-p",
                &empty,
            ];
            install.run(secret).await
        };
        forget().await?;
        let injector = plane
            .injector(|options| {
                options.profile.leaf_life = Duration::from_secs(9);
                options.profile.ca_life = Duration::from_secs(21);
                options.profile.settle = Duration::from_secs(1);
            })
            .await?;
        let shop = namespace(&plane.admin, "rotation", true).await?;
        let bundle = async || {
            let configuration = plane
                .admin
                .get(["mutatingwebhookconfiguration", "outrigger-injector"])
                .await?;
            let bundle = configuration["webhooks"][0]["clientConfig"]["caBundle"]
                .as_str()
                .map(str::to_owned);
            bundle.context("no caBundle")
        };
        let mut bundles = BTreeSet::new();
        // Three leaves and two CAs later it still admits, at every moment.
        for _ in 0..60 {
            bundles.insert(bundle().await?);
            let created = dry_run(&shop, &pod("app", json!({}))).await?;
            ensure!(has_sidecar(&created), "{created}");
            tokio::time::sleep(Duration::from_millis(400)).await;
        }
        ensure!(bundles.len() >= 2, "the CA was not rotated");
        injector.stop().await;
        forget().await?; // its short life is not for the other tests
        Ok(())
    })
}
