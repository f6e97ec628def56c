//! Outrigger's chart in a control plane that has no node: its objects are real, and its two programs run in the test's
//! process, with the rights of their ServiceAccounts and no others.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use outrigger_api::labels;
use outrigger_controller::app::Config as ControllerConfig;
use outrigger_injector::app::{self, Options, Running};
use outrigger_injector::settings::Settings;
use outrigger_proxy::discovery::{Discovery, DiscoveryConfig};
use outrigger_proxy::dns::{HostPort, Resolver};
use outrigger_proxy::identity::{Clock, FirstRoots, Identity, IdentityConfig};
use outrigger_proxy::model::Workload;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::cluster::{INSTALL_NAMESPACE, repository};
use crate::kube::{Kubectl, eventually};

/// The chart's objects, without pods.
pub struct ControlPlane {
    /// kubectl with all rights.
    pub admin: Kubectl,
    files: TempDir,
}

/// An injector that kube-apiserver calls.
pub struct Injector {
    /// Where it runs.
    pub running: Running,
    shutdown: CancellationToken,
}

impl ControlPlane {
    /// Applies what `helm template` renders with the chart's defaults, but for the Deployments: there is no node.
    ///
    /// # Errors
    /// When something is not taken.
    pub async fn install() -> Result<Self> {
        let admin = Kubectl::from_env()?;
        let install = admin.create_namespace(INSTALL_NAMESPACE, &[]).await?;
        let chart = repository().join("charts/outrigger");
        let chart = chart.to_str().context("the path is not UTF-8")?;
        let rendered = install
            .helm(["template", "outrigger", chart, "--include-crds", "--no-hooks"])
            .await?;
        let mut objects = Vec::new();
        for document in rendered.split("\n---") {
            let object: Value = serde_saphyr::from_str(document).with_context(|| document.to_owned())?;
            let kind = object["kind"].as_str().unwrap_or_default();
            if !matches!(
                kind,
                "" | "Deployment" | "PodDisruptionBudget" | "MutatingWebhookConfiguration"
            ) {
                objects.push(object);
            }
        }
        // CRDs first, in case that an object of theirs is rendered too.
        objects.sort_by_key(|object| object["kind"] != "CustomResourceDefinition");
        for object in &objects {
            let manifest = object.to_string();
            match object["kind"].as_str() {
                // As docs/upgrade.md has it: they do not fit into the annotation that another apply makes.
                Some("CustomResourceDefinition") => {
                    let apply = ["apply", "--server-side", "--force-conflicts", "-f", "-"];
                    install.run_with_input(apply, &manifest).await?;
                    let name = object["metadata"]["name"].as_str().context("a CRD without a name")?;
                    admin.wait_for_crd(name).await?;
                }
                _ => drop(install.apply(&manifest).await?),
            }
        }
        Ok(Self {
            admin,
            files: tempfile::tempdir()?,
        })
    }

    /// The webhook configuration as the chart has it.
    ///
    /// # Errors
    /// When the chart has none.
    async fn webhook_configuration(&self) -> Result<Value> {
        let chart = repository().join("charts/outrigger");
        let chart = chart.to_str().context("the path is not UTF-8")?;
        let install = self.admin.namespace(INSTALL_NAMESPACE);
        let rendered = install.helm(["template", "outrigger", chart]).await?;
        let objects = rendered
            .split("\n---")
            .filter_map(|document| serde_saphyr::from_str::<Value>(document).ok());
        let mut found = objects.filter(|object| object["kind"] == "MutatingWebhookConfiguration");
        found.next().context("the chart has no MutatingWebhookConfiguration")
    }

    /// Starts an injector, with changes to its options, and waits until it is ready. Sidecars get the roots of the golden files,
    /// unless a controller runs, which has its own.
    ///
    /// kube-apiserver resolves a Service of the type ExternalName itself, so it reaches the test's process by the name that
    /// the certificate is for; only type and port differ from the chart.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn injector(&self, change: impl FnOnce(&mut Options)) -> Result<Injector> {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let settings = Settings {
            namespace: INSTALL_NAMESPACE.to_owned(),
            ..Settings::default()
        };
        let mut options = Options::new(settings, any, any);
        options.linger = Duration::ZERO;
        change(&mut options);
        let shutdown = CancellationToken::new();
        let client = self.client_of("outrigger-injector").await?;
        let running = app::start(options, client, shutdown.clone()).await?;

        let install = self.admin.namespace(INSTALL_NAMESPACE);
        let roots = std::fs::read_to_string(repository().join("injector/testdata/roots.pem"))?;
        install.apply(&trust_bundle(&roots)).await?;
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "outrigger-injector"},
            "spec": {"type": "ExternalName", "externalName": "localhost"}
        });
        install
            .run(["delete", "service", "outrigger-injector", "--ignore-not-found"])
            .await?;
        install.apply(&service.to_string()).await?;
        let mut configuration = self.webhook_configuration().await?;
        for webhook in configuration["webhooks"].as_array_mut().context("no webhooks")? {
            webhook["clientConfig"]["service"]["port"] = running.webhook.port().into();
        }
        self.admin.apply(&configuration.to_string()).await?;
        eventually("the injector is ready", Duration::from_secs(30), async || {
            let url = format!("http://{}/readyz", running.admin);
            let (status, body) = http_get(&url).await?;
            ensure!(status == 200, "{status}: {body}");
            Ok(())
        })
        .await?;
        Ok(Injector { running, shutdown })
    }

    /// A client with the rights of a ServiceAccount of the install.
    ///
    /// # Errors
    /// When no token can be had.
    pub async fn client_of(&self, service_account: &str) -> Result<kube::Client> {
        let file = self.kubeconfig_of(INSTALL_NAMESPACE, service_account).await?;
        let kubeconfig = kube::config::Kubeconfig::read_from(file)?;
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await?;
        Ok(kube::Client::try_from(config)?)
    }

    /// A file like the one of `KUBECONFIG`, with the token of a ServiceAccount.
    async fn kubeconfig_of(&self, namespace: &str, service_account: &str) -> Result<PathBuf> {
        let token = self
            .admin
            .namespace(namespace)
            .run(["create", "token", service_account])
            .await?;
        let mut config: Value = serde_json::from_str(
            &self
                .admin
                .run(["config", "view", "--raw", "--minify", "-o", "json"])
                .await?,
        )?;
        config["users"][0]["user"] = json!({"token": token.trim()});
        let file = self
            .files
            .path()
            .join(format!("{namespace}-{service_account}.kubeconfig"));
        std::fs::write(&file, config.to_string())?;
        Ok(file)
    }

    /// Whether a ServiceAccount of the install may do this: `kubectl auth can-i`.
    ///
    /// # Errors
    /// When the question is not understood.
    pub async fn may(&self, service_account: &str, question: &[&str]) -> Result<bool> {
        let kubectl = self.admin.as_service_account(INSTALL_NAMESPACE, service_account);
        // It ends with 1 for a "no".
        let arguments = ["auth", "can-i"].iter().chain(question);
        match kubectl.run(arguments).await {
            Ok(answer) => Ok(answer.starts_with("yes")),
            Err(e) if format!("{e:#}").contains("\nno") => Ok(false),
            Err(e) => Err(e),
        }
    }
}

/// The ConfigMap with this trust bundle.
pub fn trust_bundle(pem: &str) -> String {
    let metadata = json!({"name": labels::TRUST_BUNDLE_CONFIG_MAP});
    let data = json!({labels::TRUST_BUNDLE_KEY: pem});
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}).to_string()
}

/// A controller that runs.
pub struct Controller {
    address: SocketAddr,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<Result<()>>,
}

/// The parts of a sidecar that talk to the controller.
pub struct Sidecar {
    /// Its SVID.
    pub identity: Identity,
    /// What it asks about targets.
    pub discovery: Discovery,
}

impl ControlPlane {
    /// Starts a controller, and waits until it is ready.
    ///
    /// # Errors
    /// When it ends instead, or does not become ready.
    pub async fn controller(&self) -> Result<Controller> {
        let (address, admin) = (free_port()?, free_port()?);
        let config = ControllerConfig {
            namespace: INSTALL_NAMESPACE.to_owned(),
            pod: String::new(),
            service_account: "outrigger-controller".to_owned(),
            trust_domain: "cluster.local".to_owned(),
            ca_secret: "outrigger-ca".to_owned(),
            listen: address,
            admin,
            cluster_networks: "10.0.0.0/8".parse().map_err(anyhow::Error::msg)?,
            allow_external_names: true,
            svid_ttl: Duration::from_secs(8 * 3600),
            check_address: false,
        };
        let shutdown = CancellationToken::new();
        let client = self.client_of("outrigger-controller").await?;
        let task = tokio::spawn(outrigger_controller::app::run(config, client, shutdown.clone()));
        eventually("the controller is ready", Duration::from_secs(30), async || {
            let (status, body) = http_get(&format!("http://{admin}/readyz")).await?;
            ensure!(status == 200, "{status}: {body}");
            Ok(())
        })
        .await?;
        Ok(Controller {
            address,
            shutdown,
            task,
        })
    }

    /// What a sidecar of this ServiceAccount in this namespace has: a pod with a token of this audience that is bound to it,
    /// and the trust bundle of the namespace's ConfigMap.
    ///
    /// # Errors
    /// When the controller does not put the trust bundle into the namespace.
    pub async fn sidecar(
        &self,
        controller: &Controller,
        namespace: &Kubectl,
        account: &str,
        audience: &str,
    ) -> Result<Sidecar> {
        let bundle = eventually("the trust bundle", Duration::from_secs(10), async || {
            let map = namespace.get(["configmap", labels::TRUST_BUNDLE_CONFIG_MAP]).await?;
            map["data"][labels::TRUST_BUNDLE_KEY]
                .as_str()
                .map(str::to_owned)
                .context("it is empty")
        })
        .await?;
        let file = self
            .files
            .path()
            .join(format!("{}-ca.crt", namespace.current_namespace()));
        std::fs::write(&file, bundle)?;
        self.sidecar_with(controller, namespace, account, audience, FirstRoots::File(file))
            .await
    }

    /// The same with these roots.
    ///
    /// # Errors
    /// When its pod cannot be made.
    pub async fn sidecar_with(
        &self,
        controller: &Controller,
        namespace: &Kubectl,
        account: &str,
        audience: &str,
        roots: FirstRoots,
    ) -> Result<Sidecar> {
        let name = namespace.current_namespace();
        let pod = format!("{account}-1");
        namespace
            .apply(
                &json!({
                    "apiVersion": "v1", "kind": "Pod",
                    "metadata": {"name": pod, "labels": {labels::INJECT: labels::DISABLED}},
                    "spec": {"serviceAccountName": account, "containers": [{"name": "app", "image": "example/app:1"}]},
                })
                .to_string(),
            )
            .await?;
        let bound = ["--bound-object-kind", "Pod", "--bound-object-name", &pod];
        let create = ["create", "token", account, "--audience", audience];
        let token = namespace.run([&create[..], &bound].concat()).await?;
        let token_file = self.files.path().join(format!("{name}-{account}-{audience}.token"));
        std::fs::write(&token_file, token.trim())?;

        let address = HostPort {
            host: controller.address.ip().to_string().into(),
            port: controller.address.port(),
        };
        let id: outrigger_api::spiffe::SpiffeId =
            format!("spiffe://cluster.local/ns/{INSTALL_NAMESPACE}/sa/outrigger-controller").parse()?;
        let resolver = || Resolver::start(Some(&[])).map_err(|e| anyhow::anyhow!(e));
        let identity = Identity::start(
            IdentityConfig {
                id: outrigger_api::spiffe::SpiffeId::new("cluster.local", name, account)?,
                issuer: address.clone(),
                issuer_id: id.clone(),
                token_file,
                roots,
            },
            Clock::system(),
            resolver()?,
        );
        let workload = Workload {
            name: account.into(),
            namespace: name.into(),
            pod: pod.as_str().into(),
            service_account: account.into(),
            trust_domain: "cluster.local".into(),
            node: "".into(),
            pod_ips: Vec::new(),
        };
        let config = DiscoveryConfig::Controller { address, id };
        let discovery = Discovery::start(&config, &workload, identity.clone(), resolver()?);
        Ok(Sidecar { identity, discovery })
    }
}

impl Controller {
    /// Ends it as SIGTERM does.
    ///
    /// # Errors
    /// Its own.
    pub async fn stop(self) -> Result<()> {
        self.shutdown.cancel();
        self.task.await?
    }
}

/// A port of loopback that was free a moment ago.
fn free_port() -> Result<SocketAddr> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?)
}

impl Injector {
    /// Ends it as SIGTERM does.
    pub async fn stop(self) {
        self.shutdown.cancel();
        self.running.ended().await;
    }
}

/// GET of a URL on loopback: the status and the body.
///
/// # Errors
/// When there is no answer.
pub async fn http_get(url: &str) -> Result<(u16, String)> {
    use http_body_util::{BodyExt, Empty};
    let client: hyper_util::client::legacy::Client<_, Empty<bytes::Bytes>> =
        hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new()).build_http();
    let (head, body) = client.get(url.parse()?).await?.into_parts();
    let body = body.collect().await?.to_bytes();
    Ok((head.status.as_u16(), String::from_utf8_lossy(&body).into_owned()))
}

/// A YAML file with several documents; those of a `List` are unfolded.
///
/// # Errors
/// When it is not YAML.
pub fn documents(text: &str) -> Result<Vec<Value>> {
    // As kubectl reads it: 0644 is octal.
    let options = serde_saphyr::options! { legacy_octal_numbers: true };
    let mut objects = Vec::new();
    for document in text.split("\n---\n") {
        let value: Value = serde_saphyr::from_str_with_options(document, options.clone())?;
        match value {
            Value::Null => {}
            Value::Object(mut list) if list.get("kind").is_some_and(|kind| kind == "List") => {
                let items = list.remove("items");
                objects.extend(items.and_then(|items| items.as_array().cloned()).unwrap_or_default());
            }
            other => objects.push(other),
        }
    }
    Ok(objects)
}
