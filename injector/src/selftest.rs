//! `outrigger-injector test`, which `helm test` runs: does a new pod get a sidecar, and is the controller there?

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::PostParams;
use kube::{Api, Client};
use outrigger_api::labels;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::inject::PROXY_CONTAINER;

/// Right after an installation the pods are still starting.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_secs(1);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Nothing is created: kube-apiserver is asked in a dry run, which it does with all its webhooks.
///
/// # Errors
/// What is wrong, when it is still so after a minute.
pub async fn run(client: Client, namespace: &str, controller: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    eventually(deadline, async || injection(&client, namespace).await).await?;
    println!("A pod that asks for a sidecar gets one.");
    eventually(deadline, async || connects(controller).await).await?;
    println!("The controller accepts connections at {controller}.");
    Ok(())
}

async fn injection(client: &Client, namespace: &str) -> anyhow::Result<()> {
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "outrigger-test", "labels": {labels::INJECT: labels::ENABLED}},
        "spec": {"containers": [{"name": "app", "image": "example.invalid/app:1"}]},
    }))?;
    let parameters = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let created = Api::<Pod>::namespaced(client.clone(), namespace)
        .create(&parameters, &pod)
        .await;
    let spec = created
        .context("kube-apiserver did not take the pod")?
        .spec
        .unwrap_or_default();
    let mut containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    ensure!(
        containers.any(|container| container.name == PROXY_CONTAINER),
        "the pod has no sidecar: is there a MutatingWebhookConfiguration outrigger-injector?"
    );
    Ok(())
}

async fn connects(controller: &str) -> anyhow::Result<()> {
    match timeout(CONNECT_TIMEOUT, TcpStream::connect(controller)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => bail!("connecting to the controller at {controller}: {error}"),
        Err(_) => bail!("connecting to the controller at {controller}: no answer in {CONNECT_TIMEOUT:?}"),
    }
}

async fn eventually(deadline: Instant, mut what: impl AsyncFnMut() -> anyhow::Result<()>) -> anyhow::Result<()> {
    loop {
        match what().await {
            Err(error) if Instant::now() < deadline => eprintln!("not yet: {error:#}"),
            result => return result,
        }
        sleep(PAUSE).await;
    }
}
