//! kubectl and helm as the tests use them, and waiting for what they say.

use std::ffi::OsStr;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::Instant;

/// The program `kubectl` with a kubeconfig and a namespace.
#[derive(Clone, Debug)]
pub struct Kubectl {
    kubeconfig: PathBuf,
    namespace: Option<String>,
    user: Vec<String>,
}

impl Kubectl {
    /// For the cluster of the environment variable `KUBECONFIG`.
    ///
    /// # Errors
    /// When there is none: these tests never guess a cluster.
    pub fn from_env() -> Result<Self> {
        let kubeconfig = std::env::var_os("KUBECONFIG").context("KUBECONFIG is not set; tests/run sets it")?;
        Ok(Self {
            kubeconfig: kubeconfig.into(),
            namespace: None,
            user: Vec::new(),
        })
    }

    /// The same in a namespace.
    #[must_use]
    pub fn namespace(&self, namespace: &str) -> Self {
        Self {
            namespace: Some(namespace.to_owned()),
            ..self.clone()
        }
    }

    /// The namespace that it was given.
    pub fn current_namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or("default")
    }

    /// The same as a service account, by impersonation.
    #[must_use]
    pub fn as_service_account(&self, namespace: &str, name: &str) -> Self {
        let user = vec![
            format!("--as=system:serviceaccount:{namespace}:{name}"),
            "--as-group=system:serviceaccounts".to_owned(),
            format!("--as-group=system:serviceaccounts:{namespace}"),
            "--as-group=system:authenticated".to_owned(),
        ];
        Self { user, ..self.clone() }
    }

    /// Runs it, and returns what it printed.
    ///
    /// # Errors
    /// When it ends with another code than 0; the text has what it wrote to stderr.
    pub async fn run<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Result<String> {
        self.run_with_input(args, "").await
    }

    /// Waits until kube-apiserver serves the resources of a CRD, "PLURAL.GROUP".
    ///
    /// # Errors
    /// When it does not become established.
    pub async fn wait_for_crd(&self, name: &str) -> Result<()> {
        let crd = format!("crd/{name}");
        // A CRD that was made a moment ago has no conditions, and `kubectl wait` takes that for an error.
        eventually("a CRD is established", Duration::from_secs(30), async || {
            self.run(["wait", "--for=condition=Established", &crd, "--timeout=30s"])
                .await
        })
        .await?;
        Ok(())
    }

    /// Runs it with text on its standard input.
    ///
    /// # Errors
    /// As [`Kubectl::run`].
    pub async fn run_with_input<A: AsRef<OsStr>>(
        &self,
        args: impl IntoIterator<Item = A>,
        input: &str,
    ) -> Result<String> {
        let mut command = self.command(args);
        let what = format!("{:?}", command.as_std());
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("{what}: is kubectl on the PATH?"))?;
        let mut stdin = child.stdin.take().context("stdin")?;
        let input = input.to_owned();
        let writer = tokio::spawn(async move { stdin.write_all(input.as_bytes()).await });
        let output = child.wait_with_output().await?;
        // A program that reads nothing may have gone before everything was written.
        drop(writer.await?);
        printed(&what, output)
    }

    /// `apply -f -`
    ///
    /// # Errors
    /// As [`Kubectl::run`].
    pub async fn apply(&self, manifests: &str) -> Result<String> {
        self.run_with_input(["apply", "-f", "-"], manifests).await
    }

    /// What the API server says of objects, by its schemas and strictly. Nothing of them is kept.
    ///
    /// # Errors
    /// As [`Kubectl::run`].
    pub async fn try_apply(&self, manifests: &str) -> Result<String> {
        let apply = [
            "apply",
            "--server-side",
            "--dry-run=server",
            "--validate=strict",
            "-f",
            "-",
        ];
        self.run_with_input(apply, manifests).await
    }

    /// `get ... -o json`
    ///
    /// # Errors
    /// As [`Kubectl::run`].
    pub async fn get<A: AsRef<str>>(&self, args: impl IntoIterator<Item = A>) -> Result<Value> {
        let args = args.into_iter().map(|a| a.as_ref().to_owned());
        let args = std::iter::once("get".to_owned())
            .chain(args)
            .chain(["-o".to_owned(), "json".to_owned()]);
        Ok(serde_json::from_str(&self.run(args).await?)?)
    }

    /// The items of `get ... -o json`.
    ///
    /// # Errors
    /// As [`Kubectl::run`].
    pub async fn list<A: AsRef<str>>(&self, args: impl IntoIterator<Item = A>) -> Result<Vec<Value>> {
        match self.get(args).await?["items"].take() {
            Value::Array(items) => Ok(items),
            other => bail!("not a list: {other}"),
        }
    }

    /// GET of a path of the API server, for its proxy to Services and pods too.
    ///
    /// # Errors
    /// As [`Kubectl::run`].
    pub async fn raw(&self, path: &str) -> Result<String> {
        self.run(["get", "--raw", path]).await
    }

    /// Starts it, with its output piped. It is killed when the value is dropped.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Result<Child> {
        Ok(self
            .command(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?)
    }

    /// Makes a port of a pod reachable on this machine, over the pod's loopback.
    ///
    /// # Errors
    /// When kubectl does not say within a minute that it is.
    pub async fn forward(&self, pod: &str, port: u16) -> Result<Forward> {
        let (pod, port) = (format!("pod/{pod}"), format!(":{port}"));
        let mut kubectl = self.spawn(["port-forward", "--address=127.0.0.1", &pod, &port])?;
        let mut lines = BufReader::new(kubectl.stdout.take().context("stdout")?).lines();
        // "Forwarding from 127.0.0.1:40123 -> 14190"
        let line = tokio::time::timeout(Duration::from_secs(60), lines.next_line()).await??;
        let line = line.with_context(|| format!("{pod} is not forwarded to"))?;
        let address = line.split(' ').find_map(|word| word.parse().ok());
        Ok(Forward {
            address: address.with_context(|| format!("no address in {line:?}"))?,
            _lines: lines,
            _kubectl: kubectl,
        })
    }

    /// Runs `helm` against the same cluster and namespace.
    ///
    /// # Errors
    /// As [`Kubectl::run`].
    pub async fn helm<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Result<String> {
        let mut command = Command::new("helm");
        command.env("KUBECONFIG", &self.kubeconfig).args(args);
        if let Some(namespace) = &self.namespace {
            command.args(["--namespace", namespace]);
        }
        let what = format!("{:?}", command.as_std());
        let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await;
        printed(&what, output.with_context(|| format!("{what}: is helm on the PATH?"))?)
    }

    /// Creates a namespace, unless it is there, and puts labels on it.
    ///
    /// # Errors
    /// As [`Kubectl::run`].
    pub async fn create_namespace(&self, name: &str, labels: &[(&str, &str)]) -> Result<Self> {
        let labels: serde_json::Map<String, Value> = labels
            .iter()
            .map(|&(key, value)| (key.to_owned(), value.into()))
            .collect();
        let manifest = serde_json::json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}
        });
        self.apply(&manifest.to_string()).await?;
        let namespace = self.namespace(name);
        eventually("the default service account", Duration::from_secs(30), async || {
            namespace.run(["get", "serviceaccount", "default"]).await
        })
        .await?;
        Ok(namespace)
    }

    fn command<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new("kubectl");
        command.env("KUBECONFIG", &self.kubeconfig).args(&self.user);
        if let Some(namespace) = &self.namespace {
            command.args(["--namespace", namespace]);
        }
        command.args(args).kill_on_drop(true);
        command
    }
}

/// A port of a pod on this machine, until it is dropped.
pub struct Forward {
    /// Where it is.
    pub address: SocketAddr,
    /// kubectl ends when nobody could read what it writes.
    _lines: Lines<BufReader<ChildStdout>>,
    _kubectl: Child,
}

fn printed(what: &str, output: Output) -> Result<String> {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        bail!("{what}: {}\n{text}{error}", output.status);
    }
    Ok(text)
}

/// Asks again every 100 ms until the answer is not an error.
///
/// # Errors
/// The last one, when `limit` has passed.
pub async fn eventually<T, F: Future<Output = Result<T>>>(
    what: &str,
    limit: Duration,
    mut ask: impl FnMut() -> F,
) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        match ask().await {
            Ok(answer) => return Ok(answer),
            Err(e) if Instant::now() > end => {
                return Err(e.context(format!("not within {limit:?}: {what}")));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}
