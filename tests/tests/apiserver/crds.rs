//! CRDs of another version: Helm leaves those that are there, and the API server drops what they have not.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use outrigger_tests::control_plane::ControlPlane;
use outrigger_tests::kube::eventually;
use serde_json::{Value, json};

use super::{namespace, run};
use crate::demo::built;

const NAME: &str = "trafficpolicies.outrigger.dev";

/// What a program of the command line prints, whatever its exit code is.
async fn printed(arguments: &'static [&'static str]) -> Result<String> {
    let output = tokio::task::spawn_blocking(move || built("outrigger").args(arguments).output()).await??;
    Ok(String::from_utf8(output.stdout)?)
}

async fn upgrade(plane: &ControlPlane) -> Result<String> {
    let apply = ["apply", "--server-side", "--force-conflicts", "-f", "-"];
    plane.admin.run_with_input(apply, &printed(&["crds"]).await?).await
}

#[test]
#[ignore = "needs a kube-apiserver"]
fn an_older_crd_is_seen_and_upgraded() -> Result<()> {
    run(async |plane| {
        upgrade(&plane).await?;
        let mut crd = plane.admin.get(["crd", NAME]).await?;
        let spec = "/spec/versions/0/schema/openAPIV3Schema/properties/spec";
        let spec = crd.pointer_mut(spec).context("no schema")?;
        spec["properties"]
            .as_object_mut()
            .context("no fields")?
            .remove("retryConstraint");
        // It is about the field that is gone.
        let rules = spec["x-kubernetes-validations"].as_array_mut().context("no rules")?;
        rules.retain(|rule| !rule["rule"].to_string().contains("retryConstraint"));
        crd["metadata"]["annotations"] = json!({});
        plane
            .admin
            .run_with_input(["replace", "-f", "-"], &crd.to_string())
            .await?;

        let controller = plane.controller().await?;
        let shop = namespace(&plane.admin, "old-crd", true).await?;
        let policy = json!({
            "apiVersion": "outrigger.dev/v1alpha1", "kind": "TrafficPolicy", "metadata": {"name": "all"},
            "spec": {
                "targetRefs": [{"kind": "Namespace", "name": shop.current_namespace()}],
                "retryConstraint": {"budget": {"percent": 30}},
            },
        })
        .to_string();
        let refused = shop
            .apply(&policy)
            .await
            .err()
            .context("kubectl took a field that is not known")?;
        ensure!(
            format!("{refused:#}").contains("unknown field \"spec.retryConstraint\""),
            "{refused:#}"
        );
        // As who is told nothing.
        eventually("the field is dropped", Duration::from_secs(20), async || {
            let taken = shop
                .run_with_input(["apply", "--validate=ignore", "-o", "json", "-f", "-"], &policy)
                .await?;
            let taken: Value = serde_json::from_str(&taken)?;
            ensure!(taken["spec"].get("retryConstraint").is_none(), "it was kept");
            Ok(())
        })
        .await?;
        let programmed = async || {
            let policy = shop.get(["trafficpolicy", "all"]).await?;
            let conditions = policy
                .pointer("/status/ancestors/0/conditions")
                .and_then(Value::as_array);
            let mut conditions = conditions.context("no status")?.iter();
            let found = conditions.find(|condition| condition["type"] == "Programmed");
            Ok::<Value, anyhow::Error>(found.context("no condition")?.clone())
        };
        eventually("its status says so", Duration::from_secs(20), async || {
            let condition = programmed().await?;
            ensure!(condition["reason"] == "OldCRD", "{condition}");
            ensure!(
                condition["message"].to_string().contains(": spec.retryConstraint."),
                "{condition}"
            );
            Ok(())
        })
        .await?;
        let said = printed(&["check"]).await?;
        for line in [
            &format!("✗ the CRD {NAME} (of a version that did not say so) is older than this program"),
            &format!(
                "TrafficPolicy {}/all is without fields that it was applied with: spec.retryConstraint",
                shop.current_namespace()
            ),
        ] {
            ensure!(said.contains(line), "{line} is not in\n{said}");
        }

        println!("{}", upgrade(&plane).await?);
        eventually(
            "its status has nothing to say any more",
            Duration::from_secs(20),
            async || {
                let condition = programmed().await?;
                ensure!(condition["reason"] == "Programmed", "{condition}");
                Ok(())
            },
        )
        .await?;
        let said = printed(&["check"]).await?;
        ensure!(
            said.contains("✓ the CRDs of outrigger.dev are there, with all that this program knows"),
            "{said}"
        );
        // What was lost is not back by itself.
        ensure!(said.contains("is without fields that it was applied with"), "{said}");
        eventually("it is applied again", Duration::from_secs(20), async || {
            shop.apply(&policy).await?;
            let policy = shop.get(["trafficpolicy", "all"]).await?;
            ensure!(policy["spec"]["retryConstraint"]["budget"]["percent"] == 30, "{policy}");
            Ok(())
        })
        .await?;
        let said = printed(&["check"]).await?;
        ensure!(!said.contains("is without fields that it was applied with"), "{said}");
        controller.stop().await
    })
}
