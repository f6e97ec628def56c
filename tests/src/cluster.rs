//! A cluster with Outrigger in it: the three steps of the README, requests from inside the mesh, and what went wrong when
//! a test fails.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use http::Request;
use http_body_util::BodyExt;
use outrigger_api::labels;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::kube::{Kubectl, eventually};

/// Where the chart is installed.
pub const INSTALL_NAMESPACE: &str = "outrigger";
/// Where the shop is.
pub const SHOP: &str = "shop";
/// The image of `outrigger-test-client`; tests/load-images makes it.
pub const CLIENT_IMAGE: &str = "outrigger.test/client:1";
/// The image of the shop.
pub const SHOP_IMAGE: &str = "ghcr.io/outrigger-mesh/shop:0.1.0";
/// The name of the sidecar's container.
pub const SIDECAR: &str = "outrigger-proxy";

/// A cluster that `KUBECONFIG` points to.
pub struct Cluster {
    /// kubectl with all rights.
    pub admin: Kubectl,
    client: kube::Client,
}

/// Runs a test's body against the cluster with Outrigger and the shop in it, which the first of them installs. When it
/// fails, the state of the cluster is printed.
///
/// # Errors
/// The body's.
pub fn with_shop<F: Future<Output = Result<()>>>(body: impl FnOnce(Cluster) -> F) -> Result<()> {
    static READY: AtomicBool = AtomicBool::new(false);
    on_cluster(Duration::from_secs(400), async |cluster| {
        if !READY.load(Ordering::Relaxed) {
            cluster.three_steps().await?;
            READY.store(true, Ordering::Relaxed);
        }
        body(cluster).await
    })
}

/// Runs a test's body against the cluster, with nothing in it that was not there before. When it fails, the state of the
/// cluster is printed.
///
/// # Errors
/// The body's, and when it does not end within `limit`.
pub fn on_cluster<F: Future<Output = Result<()>>>(limit: Duration, body: impl FnOnce(Cluster) -> F) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let cluster = Cluster::connect().await?;
        let admin = cluster.admin.clone();
        let result = tokio::time::timeout(limit, body(cluster)).await;
        let result = result.unwrap_or_else(|_| bail!("not finished after {limit:?}"));
        if result.is_err() {
            dump(&admin).await;
        }
        result
    })
}

impl Cluster {
    async fn connect() -> Result<Self> {
        Ok(Self {
            admin: Kubectl::from_env()?,
            client: kube::Client::try_default().await?,
        })
    }

    /// Installs the chart, unless it is installed.
    ///
    /// # Errors
    /// Helm's.
    pub async fn install(&self) -> Result<()> {
        let install = self.admin.namespace(INSTALL_NAMESPACE);
        let chart = repository().join("charts/outrigger");
        let chart = chart.to_str().context("the path is not UTF-8")?;
        if install.helm(["status", "outrigger"]).await.is_err() {
            install
                .helm(["install", "outrigger", chart, "--create-namespace"])
                .await?;
        }
        Ok(())
    }

    /// What the README tells a user to do, and nothing else.
    async fn three_steps(&self) -> Result<()> {
        self.install().await?;
        let install = self.admin.namespace(INSTALL_NAMESPACE);
        if self.admin.run(["get", "namespace", SHOP]).await.is_err() {
            self.admin.run(["create", "namespace", SHOP]).await?;
        }
        let label = format!("{}={}", labels::INJECT, labels::ENABLED);
        self.admin
            .run(["label", "namespace", SHOP, &label, "--overwrite"])
            .await?;
        let shop = self.admin.namespace(SHOP);
        let manifests = repository().join("examples/shop");
        let manifests = manifests.to_str().context("the path is not UTF-8")?;
        // Right after the install, the webhook may not be there yet, and then it says so instead of letting pods in without
        // a sidecar. A user would do the same: apply again.
        eventually("the shop's manifests are taken", Duration::from_secs(60), async || {
            shop.run(["apply", "-f", manifests]).await
        })
        .await?;
        for namespace in [&install, &shop] {
            rolled_out(namespace, "deployment").await?;
        }
        Ok(())
    }

    /// A request to "name:port" of a Service (or of a pod, with `kind` "pods") by way of the API server.
    ///
    /// # Errors
    /// When there is no answer, or not one of 2xx.
    pub async fn proxied(&self, namespace: &str, kind: &str, name: &str, path: &str) -> Result<String> {
        let uri = format!("/api/v1/namespaces/{namespace}/{kind}/{name}/proxy{path}");
        let request = Request::get(&uri).body(kube::client::Body::empty())?;
        let response = self.client.send(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        let body = String::from_utf8_lossy(&body).into_owned();
        ensure!(status.is_success(), "{uri}: {status} {body}");
        Ok(body)
    }

    /// GET of a path of a sidecar's admin port that is shown to everybody.
    ///
    /// # Errors
    /// As [`Cluster::proxied`].
    pub async fn admin_port(&self, namespace: &str, pod: &str, path: &str) -> Result<String> {
        let name = format!("{pod}:{}", outrigger_api::ports::ADMIN);
        self.proxied(namespace, "pods", &name, path).await
    }

    /// The names of the running pods that a label selector takes.
    ///
    /// # Errors
    /// As [`Kubectl::run`].
    pub async fn pods(&self, namespace: &str, selector: &str) -> Result<Vec<String>> {
        let list = ["pods", "-l", selector, "--field-selector=status.phase=Running"];
        let pods = self.admin.namespace(namespace).list(list).await?;
        let alive = pods.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        Ok(alive
            .filter_map(|pod| pod["metadata"]["name"].as_str().map(str::to_owned))
            .collect())
    }

    /// Starts `outrigger-test-client` in a pod, and waits until it runs.
    ///
    /// # Errors
    /// When the pod is refused, or does not start within a minute.
    pub async fn start_client(&self, namespace: &str, inject: bool, args: &[&str]) -> Result<Client> {
        let client = self
            .apply_client(namespace, |name| client_pod(name, inject, args))
            .await?;
        client.started().await?;
        Ok(client)
    }

    /// Starts `outrigger-test-client` in the pod that `manifest` makes of its name, and does not wait for it.
    ///
    /// # Errors
    /// When the pod is refused.
    pub async fn apply_client(&self, namespace: &str, manifest: impl FnOnce(&str) -> Value) -> Result<Client> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let n = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("client-{}-{n}", std::process::id());
        let kubectl = self.admin.namespace(namespace);
        kubectl.apply(&manifest(&name).to_string()).await?;
        Ok(Client { kubectl, name })
    }

    /// Runs `outrigger-test-client` in a pod, to its end.
    ///
    /// # Errors
    /// As [`Cluster::start_client`] and [`Client::report`].
    pub async fn run_client(&self, namespace: &str, inject: bool, args: &[&str]) -> Result<Report> {
        self.start_client(namespace, inject, args).await?.report().await
    }

    /// Sets which share of its requests the shop's inventory answers 503. With "0" a request that is lost was lost by the
    /// mesh.
    ///
    /// # Errors
    /// As [`Kubectl::run`].
    pub async fn set_failure_rate(&self, share: &str) -> Result<()> {
        let shop = self.admin.namespace(SHOP);
        let value = format!("SHOP_FAILURE_RATE={share}");
        shop.run(["set", "env", "deployment/inventory", &value]).await?;
        rolled_out(&shop, "deployment").await
    }
}

/// The manifest of a pod that runs `outrigger-test-client` once.
pub fn client_pod(name: &str, inject: bool, args: &[&str]) -> Value {
    let inject = if inject { labels::ENABLED } else { labels::DISABLED };
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name,
            "labels": {"app": "client"},
            "annotations": {labels::INJECT: inject}
        },
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 5,
            "containers": [{
                "name": "client", "image": CLIENT_IMAGE, "imagePullPolicy": "IfNotPresent", "args": args,
                "terminationMessagePolicy": "FallbackToLogsOnError"
            }]
        }
    })
}

/// A pod that runs `outrigger-test-client`.
pub struct Client {
    kubectl: Kubectl,
    name: String,
}

/// What `outrigger-test-client` prints at its end.
#[derive(Clone, Debug, Deserialize)]
pub struct Report {
    /// How many requests there were.
    pub requests: u64,
    /// How many were answered 2xx.
    pub succeeded: u64,
    /// Why the others failed, and how often.
    pub failures: BTreeMap<String, u64>,
    /// Each value of the watched response header: when the first and the last request that got it were sent (Unix ms).
    pub seen: BTreeMap<String, (u64, u64)>,
    /// Of all of them together, from the first to the last that was sent.
    pub lasted_ms: u64,
    /// The slowest answer.
    pub slowest_ms: u64,
}

impl Client {
    /// The pod's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Waits until its app runs, or has run.
    ///
    /// # Errors
    /// When it does not within a minute.
    pub async fn started(&self) -> Result<()> {
        eventually(
            &format!("pod {} started", self.name),
            Duration::from_secs(60),
            async || {
                let pod = self.kubectl.get(["pod", &self.name]).await?;
                let app = &pod["status"]["containerStatuses"][0]["state"];
                ensure!(
                    app["running"].is_object() || app["terminated"].is_object(),
                    "{}",
                    pod["status"]
                );
                Ok(())
            },
        )
        .await
    }

    /// Waits for its end, and deletes the pod.
    ///
    /// # Errors
    /// When it does not end, or ends with an error.
    pub async fn report(self) -> Result<Report> {
        let report = self.ended("client").await.map(|ended| ended.report)?;
        self.kubectl.run(["delete", "pod", &self.name, "--wait=false"]).await?;
        report
    }

    /// Deletes the pod as a user does, and waits until its containers have ended by themselves.
    ///
    /// # Errors
    /// When they do not, or one of them ended with another code than 0: kubelet had to kill it, for instance.
    pub async fn stop(self) -> Result<Report> {
        // With a finalizer the pod outlives its containers, so that their exit codes can be read.
        self.finalizers(json!(["outrigger.test/exit-codes"])).await?;
        self.kubectl.run(["delete", "pod", &self.name, "--wait=false"]).await?;
        let sidecar = self.ended(SIDECAR).await;
        let client = self.ended("client").await;
        self.finalizers(json!([])).await?;
        let (sidecar, client) = (sidecar?, client?);
        ensure!(sidecar.code == 0, "the sidecar ended with {}", sidecar.code);
        client.report
    }

    async fn finalizers(&self, names: Value) -> Result<()> {
        let patch = json!({"metadata": {"finalizers": names}}).to_string();
        let args = ["patch", "pod", &self.name, "--type=merge", "-p", &patch];
        self.kubectl.run(args).await.map(drop)
    }

    async fn ended(&self, container: &str) -> Result<Ended> {
        let what = format!("{container} of {} ends", self.name);
        eventually(&what, Duration::from_secs(120), async || {
            let pod = self.kubectl.get(["pod", &self.name]).await?;
            let status = &pod["status"];
            let mut of_container = ["containerStatuses", "initContainerStatuses"]
                .into_iter()
                .flat_map(|kind| status[kind].as_array().into_iter().flatten())
                .filter(|of| of["name"] == container);
            let terminated = of_container.next().map(|of| &of["state"]["terminated"]);
            let terminated = terminated
                .filter(|t| t.is_object())
                .with_context(|| format!("not yet: {status}"))?;
            let code = terminated["exitCode"].as_i64().context("no exit code")?;
            let words = terminated["message"].as_str().unwrap_or_default();
            let report = match code {
                0 => serde_json::from_str(words).with_context(|| format!("not a report: {words:?}")),
                _ => Err(anyhow::anyhow!("{container} ended with {code}: {words}")),
            };
            Ok(Ended { code, report })
        })
        .await
    }
}

/// How a container ended.
struct Ended {
    code: i64,
    /// Its last words, if they are one.
    report: Result<Report>,
}

impl Report {
    /// How many requests there were in a second.
    pub fn per_second(&self) -> f64 {
        self.requests as f64 * 1000.0 / self.lasted_ms.max(1) as f64
    }

    /// # Errors
    /// When a request failed, or there were fewer than `least`.
    pub fn ensure_none_lost(&self, least: u64) -> Result<()> {
        ensure!(self.failures.is_empty(), "requests were lost: {self:?}");
        ensure!(self.succeeded >= least, "too few requests to prove anything: {self:?}");
        Ok(())
    }
}

/// Waits until all objects of a kind ("deployment", or "deployment/name") are rolled out, at most two minutes each.
///
/// # Errors
/// When one is not.
pub async fn rolled_out(namespace: &Kubectl, what: &str) -> Result<()> {
    let names = namespace.run(["get", what, "-o", "name"]).await?;
    for name in names.lines() {
        namespace.run(["rollout", "status", name, "--timeout=120s"]).await?;
    }
    Ok(())
}

/// The root of the repository.
pub fn repository() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).to_owned()
}

/// The API server takes each file of these folders of `examples`, by its schemas. How many there are.
///
/// # Errors
/// With the file that it does not take.
pub async fn examples_are_taken(kubectl: &Kubectl, folders: &[&str]) -> Result<usize> {
    let mut examples = 0;
    for folder in folders {
        for entry in std::fs::read_dir(repository().join("examples").join(folder))? {
            let path = entry?.path();
            let taken = kubectl.try_apply(&std::fs::read_to_string(&path)?).await;
            taken.with_context(|| path.display().to_string())?;
            examples += 1;
        }
    }
    Ok(examples)
}

/// Prints what a person would look at first.
async fn dump(admin: &Kubectl) {
    let show = async |title: &str, args: &[&str]| {
        let text = admin.run(args).await.unwrap_or_else(|e| format!("{e:#}"));
        println!("--- {title}\n{text}");
    };
    show("pods", &["get", "pods", "-A", "-o", "wide"]).await;
    show(
        "events",
        &[
            "get",
            "events",
            "-A",
            "--field-selector=type=Warning",
            "--sort-by=.lastTimestamp",
        ],
    )
    .await;
    let pods = admin.run([
        "get",
        "pods",
        "-A",
        "-o",
        "jsonpath={range .items[*]}{.metadata.namespace}/{.metadata.name}{\"\\n\"}{end}",
    ]);
    for pod in pods
        .await
        .unwrap_or_default()
        .lines()
        .filter(|pod| !pod.starts_with("kube-system/"))
    {
        let Some((namespace, name)) = pod.split_once('/') else {
            continue;
        };
        let args = [
            "logs",
            "-n",
            namespace,
            name,
            "--all-containers",
            "--prefix",
            "--tail=25",
        ];
        show(&format!("logs of {pod}"), &args).await;
    }
}
