//! The injector and the controller against a real kube-apiserver with etcd, with the rights that the chart gives them.
//! tests/run brings it up (`tests/cluster/up --control-plane`) and runs these one after the other.

mod access;
mod chart;
mod controller;
mod crds;
mod golden;
mod guests;
mod injector;
mod keys;
mod limits;
mod rights;
mod roots;
mod tokens;

use std::future::Future;
use std::time::Duration;

use anyhow::{Result, bail};
use outrigger_api::labels;
use outrigger_tests::control_plane::ControlPlane;
use outrigger_tests::kube::Kubectl;
use serde_json::{Value, json};

fn run<F: Future<Output = Result<()>>>(body: impl FnOnce(ControlPlane) -> F) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let test = async { body(ControlPlane::install().await?).await };
        let result = tokio::time::timeout(Duration::from_secs(180), test).await;
        result.unwrap_or_else(|_| bail!("not finished after 180 s"))
    })
}

/// A namespace with a name that no earlier test had.
async fn namespace(admin: &Kubectl, name: &str, inject: bool) -> Result<Kubectl> {
    let name = format!("{name}-{:06x}", rand::random::<u32>() & 0xff_ffff);
    let labels: &[_] = if inject {
        &[(labels::INJECT, labels::ENABLED)]
    } else {
        &[]
    };
    admin.create_namespace(&name, labels).await
}

/// Asks kube-apiserver to create it without keeping it: what it would be.
async fn dry_run(namespace: &Kubectl, object: &Value) -> Result<Value> {
    let arguments = [
        "create",
        "--dry-run=server",
        "--validate=ignore",
        "-o",
        "json",
        "-f",
        "-",
    ];
    Ok(serde_json::from_str(
        &namespace.run_with_input(arguments, &object.to_string()).await?,
    )?)
}

fn pod(name: &str, metadata: Value) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [{"name": "app", "image": "example/app:1"}]}
    });
    pod["metadata"]
        .as_object_mut()
        .unwrap()
        .extend(metadata.as_object().unwrap().clone());
    pod
}

fn has_sidecar(pod: &Value) -> bool {
    let init = pod["spec"]["initContainers"].as_array().into_iter().flatten();
    init.into_iter().any(|container| container["name"] == "outrigger-proxy")
}
