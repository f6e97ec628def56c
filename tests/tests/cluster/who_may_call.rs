//! Who may call a pod, as the command line says it of pods in a cluster.

use anyhow::{Context, Result, ensure};
use outrigger_tests::cluster::{SHOP, with_shop};
use outrigger_tests::kube::eventually;
use serde_json::{Value, json};
use std::time::Duration;

use super::purchase;
use crate::demo::built;

/// What `outrigger` prints, and its exit code.
async fn printed(arguments: Vec<String>) -> Result<(String, Option<i32>)> {
    let output = tokio::task::spawn_blocking(move || built("outrigger").args(arguments).output()).await??;
    let said = [output.stdout, output.stderr].concat();
    Ok((String::from_utf8(said)?, output.status.code()))
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

/// Only this ServiceAccount may call orders.
fn only(account: &str) -> Value {
    json!({
        "apiVersion": "outrigger.dev/v1alpha1", "kind": "AccessPolicy", "metadata": {"name": "orders", "namespace": SHOP},
        "spec": {
            "targetRefs": [{"kind": "Service", "name": "orders"}],
            "rules": [{"name": "callers", "sources": [{"type": "ServiceAccount", "serviceAccount": {"name": account}}]}],
        },
    })
}

#[test]
#[ignore = "needs root and a cluster"]
fn a_sidecar_says_who_may_call_it() -> Result<()> {
    with_shop(async |cluster| {
        let shop = cluster.admin.namespace(SHOP);
        cluster.set_failure_rate("0").await?;
        let orders = cluster
            .pods(SHOP, "app=orders")
            .await?
            .pop()
            .context("no pod of orders")?;
        let asked = words(&format!("authz {orders} -n {SHOP}"));
        let (said, code) = printed(asked.clone()).await?;
        ensure!(code == Some(0) && said.contains("✓ allowed: all else"), "{said}");
        shop.apply(&only("web").to_string()).await?;
        eventually("it is in force", Duration::from_secs(10), async || {
            let (said, code) = printed(asked.clone()).await?;
            let rule = format!("✓ allowed: spiffe://cluster.local/ns/{SHOP}/sa/web    ({SHOP}/orders rule callers)");
            ensure!(code == Some(0) && said.contains(&rule), "{said}");
            ensure!(
                said.contains(&format!("✗ refused: all else    ({SHOP}/orders)")),
                "{said}"
            );
            Ok(())
        })
        .await?;
        let (json, _) = printed([asked, vec!["--json".to_owned()]].concat()).await?;
        let json: Value = serde_json::from_str(&json)?;
        ensure!(json["access"]["ports"][0]["port"] == 8080, "{json}");
        shop.run(["delete", "accesspolicy", "orders"]).await?;
        cluster
            .run_client(SHOP, true, &purchase(&[]))
            .await?
            .ensure_none_lost(1)?;

        let (said, code) = printed(words(&format!("authz nobody -n {SHOP}"))).await?;
        ensure!(code == Some(1) && said.contains("not found"), "{said}");
        Ok(())
    })
}

#[test]
#[ignore = "needs root and a cluster"]
fn whom_a_policy_would_shut_out_is_known_before_it_is_in_force() -> Result<()> {
    with_shop(async |cluster| {
        cluster.set_failure_rate("0").await?;
        cluster
            .run_client(SHOP, true, &purchase(&[]))
            .await?
            .ensure_none_lost(1)?;
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("policy.yaml");
        let asked = words(&format!("check --what-if {}", file.display()));
        let web = format!("spiffe://cluster.local/ns/{SHOP}/sa/web at port 8080: ");
        for (account, code, line) in [
            ("web", 0, format!("✓ {SHOP}/orders would let in {web}")),
            ("nobody", 1, format!("✗ {SHOP}/orders would refuse {web}")),
        ] {
            std::fs::write(&file, only(account).to_string())?;
            let (said, exit) = printed(asked.clone()).await?;
            ensure!(
                exit == Some(code) && said.contains(&line),
                "{account}: {exit:?}: {said}"
            );
        }
        // Nothing was applied.
        cluster
            .run_client(SHOP, true, &purchase(&[]))
            .await?
            .ensure_none_lost(1)?;

        std::fs::write(&file, only("web").to_string().replace("Service\"", "HTTPRoute\""))?;
        let (said, exit) = printed(asked).await?;
        let mistake = format!("{}:1: spec.targetRefs", file.display());
        ensure!(exit == Some(1) && said.contains(&mistake), "{said}");
        Ok(())
    })
}
