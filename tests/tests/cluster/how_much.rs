//! How much the pods of a Service take together, under load: of one caller, by the default balancer.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use outrigger_tests::cluster::{Cluster, Report, SHOP, rolled_out, with_shop};
use outrigger_tests::kube::{Kubectl, eventually};
use serde_json::{Value, json};

/// A second, of all pods together. What the burst admits at once is little beside it; with one of two requests for each pod, chance would refuse one of twenty
/// that are due.
const RATE: f64 = 100.0;
const BURST: f64 = 20.0;

fn policy() -> Value {
    let rate = json!({"requests": RATE as u64, "interval": "1s"});
    json!({
        "apiVersion": "outrigger.dev/v1alpha1", "kind": "RateLimitPolicy", "metadata": {"name": "inventory"},
        "spec": {
            "targetRefs": [{"kind": "Service", "name": "inventory"}],
            "limits": [{"name": "all", "rate": rate, "burst": BURST as u64, "scope": "Service"}],
        },
    })
}

async fn scale(shop: &Kubectl, replicas: usize) -> Result<()> {
    let replicas = format!("--replicas={replicas}");
    shop.run(["scale", "deployment/inventory", &replicas]).await?;
    rolled_out(shop, "deployment/inventory").await
}

/// As many a second come through, give or take a tenth, and all others are answered 429.
fn ensure_admitted(report: &Report, a_second: f64) -> Result<()> {
    let seconds = report.lasted_ms as f64 / 1000.0;
    let (least, most) = (0.9 * a_second * seconds, 1.1 * a_second * seconds + BURST);
    let limited: u64 = report.failures.values().sum();
    ensure!(
        report.failures.keys().all(|why| why.contains("429")) && limited > 0,
        "it is not that others were limited: {report:?}"
    );
    ensure!(
        (least..=most).contains(&(report.succeeded as f64)),
        "{} were admitted in {seconds} s, and not {least} to {most}: {report:?}",
        report.succeeded
    );
    Ok(())
}

/// Twice as much is asked for as is admitted. Measured until it is right: the machine may be busy with what was made anew.
async fn admits(cluster: &Cluster, what: &str, host: &str, a_second: f64) -> Result<()> {
    let url = format!("http://{host}:8080/stock/canoe");
    eventually(what, Duration::from_secs(60), async || {
        let args = ["--for", "6", "--rate", "200", &url];
        let report = cluster.run_client(SHOP, true, &args).await?;
        println!("{what}: {} admitted in {} ms", report.succeeded, report.lasted_ms);
        ensure_admitted(&report, a_second)
    })
    .await
}

/// With three pods, with five, with one of the five alone, and with one.
async fn is_kept(cluster: &Cluster, shop: &Kubectl) -> Result<()> {
    for pods in [3, 5] {
        scale(shop, pods).await?;
        admits(cluster, &format!("{pods} pods"), "inventory", RATE).await?;
    }
    let pods = cluster.pods(SHOP, "app=inventory").await?;
    let pod = shop.get(["pod", pods.first().context("no pod of inventory")?]).await?;
    let address = pod["status"]["podIP"].as_str().context("it has no address")?;
    admits(cluster, "one of five pods", address, RATE / 5.0).await?;
    scale(shop, 1).await?;
    admits(cluster, "one pod", "inventory", RATE).await
}

#[test]
#[ignore = "needs root and a cluster"]
fn a_rate_is_kept_by_three_pods_by_five_and_by_one() -> Result<()> {
    with_shop(async |cluster| {
        let shop = cluster.admin.namespace(SHOP);
        cluster.set_failure_rate("0").await?;
        shop.apply(&policy().to_string()).await?;
        let kept = is_kept(&cluster, &shop).await;
        shop.run(["delete", "ratelimitpolicy", "inventory"]).await?;
        scale(&shop, 2).await?;
        kept
    })
}
