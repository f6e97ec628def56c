//! What an SVID costs: sidecars that renew theirs, at a real controller and a real kube-apiserver.
//!
//! Each renewal is what a sidecar does: a connection without a certificate, a token and a CSR; then a new connection with the SVID,
//! and on it a session that wants each address in use. Each has a loopback address of its own, as pods have.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{ApiResource, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use outrigger_api::discovery::discovery_client::DiscoveryClient;
use outrigger_api::discovery::{Feature, FromSidecar, Hello, ToSidecar, Want, from_sidecar, to_sidecar};
use outrigger_api::identity::IssueRequest;
use outrigger_api::identity::identity_client::IdentityClient;
use rand::Rng;
use rcgen::{CertificateParams, KeyPair, SanType};
use rustls::ClientConfig;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use serde_json::{Value, json};
use tokio::net::TcpSocket;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

const NAMESPACE: &str = "bench-renew";
const ACCOUNT: &str = "app";
/// As a sidecar's own.
const TIMEOUT: Duration = Duration::from_secs(10);
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));

#[derive(clap::Args)]
pub(crate) struct Options {
    /// The controller.
    #[arg(long)]
    addr: SocketAddr,
    /// Renewals.
    #[arg(long, default_value_t = 1000)]
    number: usize,
    /// Pods that they are of. Each renewal has a token of its own: kube-apiserver remembers those that it has seen.
    #[arg(long, default_value_t = 100)]
    pods: usize,
    /// Addresses in use of each, with a Service of ten endpoints behind each of them.
    #[arg(long, default_value_t = 0)]
    targets: usize,
    /// Renewals a second; without it all come at once.
    #[arg(long)]
    rate: Option<f64>,
    /// Processes whose CPU time is taken: NAME=PID.
    #[arg(long, value_delimiter = ',')]
    cpu: Vec<String>,
}

pub(crate) async fn run(options: Options) -> Result<()> {
    // kube takes the process's default provider.
    let installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
    ensure!(installed.is_ok(), "another cryptography provider is installed already");
    let client = Client::try_default().await?;
    let targets: Arc<[String]> = prepare(&client, &options).await?.into();
    let tokens = tokens(&client, options.number, options.pods).await?;
    // The controller has seen the pods, and what the preparing cost is over.
    sleep(Duration::from_secs(3)).await;

    let before = cpu(&options.cpu)?;
    let start = Instant::now();
    let renewals = tokens.into_iter().enumerate().map(|(n, token)| {
        let targets = Arc::clone(&targets);
        let at = start
            + options
                .rate
                .map_or(Duration::ZERO, |rate| Duration::from_secs_f64(n as f64 / rate));
        let sidecar = Sidecar {
            controller: options.addr,
            // 127.0.0.0/8 is this host's as a whole.
            own: Ipv4Addr::from(0x7f01_0000 + u32::try_from(n)? * 2 + 1),
            pod: format!("app-{}", n % options.pods),
            token,
        };
        anyhow::Ok(tokio::task::spawn_local(async move {
            sleep_until(at).await;
            sidecar.renew(&targets).await
        }))
    });
    let renewals: Vec<_> = renewals.collect::<Result<_>>()?;
    let mut times = Vec::new();
    let (mut failures, mut open) = (0, Vec::new());
    for renewal in renewals {
        let renewed = renewal.await??;
        times.push(renewed.issued);
        failures += renewed.failures;
        open.push(renewed.session);
    }
    let elapsed = start.elapsed();
    let after = cpu(&options.cpu)?;
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64();
    let used = before.into_iter().zip(after).map(|((name, before), (_, after))| {
        let each = (after - before) / options.number as f64;
        (
            name,
            json!({"seconds": after - before, "milliseconds_each": each * 1000.0}),
        )
    });
    let report = json!({
        "renewals": options.number, "targets": options.targets, "seconds": elapsed.as_secs_f64(), "failures": failures,
        "issued_after_seconds": {"p50": at(0.5), "p99": at(0.99), "max": at(1.0)},
        "cpu": used.collect::<serde_json::Map<_, _>>(),
    });
    println!("{report}");
    Ok(())
}

/// A namespace with pods, which run nowhere, and the addresses of Services with endpoints.
async fn prepare(client: &Client, options: &Options) -> Result<Vec<String>> {
    let labels = json!({"kubernetes.io/metadata.name": NAMESPACE});
    apply(
        client,
        "v1",
        "Namespace",
        NAMESPACE,
        None,
        json!({"metadata": {"labels": labels}}),
    )
    .await?;
    let namespace = Some(NAMESPACE);
    apply(client, "v1", "ServiceAccount", ACCOUNT, namespace, json!({})).await?;
    let pods = stream::iter((0..options.pods).map(|n| async move {
        let spec =
            json!({"spec": {"serviceAccountName": ACCOUNT, "containers": [{"name": "app", "image": "example/app:1"}]}});
        apply(client, "v1", "Pod", &format!("app-{n}"), namespace, spec).await
    }));
    pods.buffer_unordered(16).try_for_each(|_| async { Ok(()) }).await?;
    let services = stream::iter((0..options.targets).map(|n| async move {
        let name = format!("service-{n}");
        let spec = json!({"spec": {"ports": [{"name": "http", "port": 80, "appProtocol": "http"}]}});
        let service = apply(client, "v1", "Service", &name, namespace, spec).await?;
        let endpoints: Vec<_> = (1..=10)
            .map(|m| json!({"addresses": [format!("10.200.{n}.{m}")]}))
            .collect();
        let slice = json!({
            "metadata": {"labels": {"kubernetes.io/service-name": name}}, "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}], "endpoints": endpoints,
        });
        apply(client, "discovery.k8s.io/v1", "EndpointSlice", &name, namespace, slice).await?;
        let ip = service.data["spec"]["clusterIP"].as_str().context("no ClusterIP")?;
        anyhow::Ok(format!("{ip}:80"))
    }));
    services.buffer_unordered(16).try_collect().await
}

async fn apply(
    client: &Client,
    version: &str,
    kind: &str,
    name: &str,
    namespace: Option<&str>,
    mut object: Value,
) -> Result<DynamicObject> {
    let (group, short) = version.split_once('/').unwrap_or(("", version));
    let resource = ApiResource {
        group: group.to_owned(),
        version: short.to_owned(),
        api_version: version.to_owned(),
        kind: kind.to_owned(),
        plural: format!("{}s", kind.to_lowercase()),
    };
    let api: Api<DynamicObject> = match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    (object["apiVersion"], object["kind"]) = (version.into(), kind.into());
    object["metadata"]["name"] = name.into();
    let applied = api
        .patch(name, &PatchParams::apply("bench").force(), &Patch::Apply(&object))
        .await;
    applied.with_context(|| format!("{kind} {name}"))
}

/// As kubelet asks for them.
async fn tokens(client: &Client, number: usize, pods: usize) -> Result<Vec<String>> {
    let listed: Api<k8s_openapi::api::core::v1::Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let listed = listed.list(&ListParams::default()).await?;
    let uids: std::collections::HashMap<_, _> = listed
        .items
        .into_iter()
        .filter_map(|pod| Some((pod.metadata.name?, pod.metadata.uid?)))
        .collect();
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), NAMESPACE);
    let tokens = stream::iter((0..number).map(|n| {
        let (accounts, uids) = (&accounts, &uids);
        async move {
            let pod = format!("app-{}", n % pods);
            let bound = json!({"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": uids.get(&pod)});
            let request = json!({
                "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "metadata": {},
                "spec": {"audiences": ["outrigger"], "expirationSeconds": 3600, "boundObjectRef": bound},
            });
            let answer: Value = accounts
                .create_subresource("token", ACCOUNT, &PostParams::default(), &request)
                .await?;
            let token = answer["status"]["token"].as_str().context("no token")?;
            anyhow::Ok(token.to_owned())
        }
    }));
    tokens.buffered(16).try_collect().await
}

struct Sidecar {
    controller: SocketAddr,
    own: Ipv4Addr,
    pod: String,
    token: String,
}

struct Renewed {
    issued: Duration,
    failures: u32,
    /// Open until all are done.
    session: Option<Session>,
}

type Session = Streaming<ToSidecar>;

impl Sidecar {
    async fn renew(self, targets: &[String]) -> Result<Renewed> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        let id = format!("spiffe://cluster.local/ns/{NAMESPACE}/sa/{ACCOUNT}");
        params.subject_alt_names = vec![SanType::URI(id.as_str().try_into()?)];
        let csr = params.serialize_request(&key)?.der().to_vec();
        let (start, mut failures) = (Instant::now(), 0);
        let chain = until_done(&mut failures, async || self.issue(csr.clone()).await).await;
        let issued = start.elapsed();
        let chain: Vec<_> = chain.into_iter().map(CertificateDer::from).collect();
        let session = match targets {
            [] => None,
            targets => {
                let svid = || {
                    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
                    (chain.clone(), key)
                };
                Some(until_done(&mut failures, async || self.session(svid(), targets).await).await)
            }
        };
        Ok(Renewed {
            issued,
            failures,
            session,
        })
    }

    /// Until all targets are known.
    async fn session(
        &self,
        svid: (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>),
        targets: &[String],
    ) -> Result<Session> {
        let hello = from_sidecar::Kind::Hello(Hello {
            namespace: NAMESPACE.to_owned(),
            pod: self.pod.clone(),
            features: vec![Feature::EndpointChanges.into()],
        });
        let wants = targets.iter().map(|address| {
            from_sidecar::Kind::Want(Want {
                address: address.clone(),
            })
        });
        let said: Vec<_> = std::iter::once(hello)
            .chain(wants)
            .map(|kind| FromSidecar { kind: Some(kind) })
            .collect();
        let mut client = DiscoveryClient::new(self.channel(Some(svid)).await?);
        // What is said has no end.
        let said = stream::iter(said).chain(stream::pending());
        let mut session = client.session(said).await?.into_inner();
        let mut known = 0;
        while known < targets.len() {
            let message = session.message().await?.context("the session ended")?;
            match message.kind {
                Some(to_sidecar::Kind::Routes(_)) => known += 1,
                Some(to_sidecar::Kind::Refused(refused)) => anyhow::bail!("{}", refused.reason),
                _ => {}
            }
        }
        Ok(session)
    }

    async fn issue(&self, csr: Vec<u8>) -> Result<Vec<Vec<u8>>> {
        let mut client = IdentityClient::new(self.channel(None).await?);
        let token = self.token.clone();
        let answer = client.issue(IssueRequest { csr, token }).await?;
        Ok(answer.into_inner().certificate_chain)
    }

    async fn channel(&self, svid: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>) -> Result<Channel> {
        let config = ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody));
        let mut config = match svid {
            Some((chain, key)) => config.with_client_auth_cert(chain, key)?,
            None => config.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        let (config, own, controller) = (Arc::new(config), self.own, self.controller);
        let connect = tower::service_fn(move |_| {
            let config = Arc::clone(&config);
            async move {
                let socket = TcpSocket::new_v4()?;
                socket.bind((own, 0).into())?;
                let stream = socket.connect(controller).await?;
                stream.set_nodelay(true)?;
                let name = ServerName::from(own);
                let stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await?;
                Ok::<_, std::io::Error>(TokioIo::new(stream))
            }
        });
        let endpoint = Endpoint::from_static("http://controller.invalid");
        Ok(endpoint.connect_with_connector(connect).await?)
    }
}

/// Tries as a sidecar does.
async fn until_done<T>(failures: &mut u32, attempt: impl AsyncFn() -> Result<T>) -> T {
    let mut wait = RETRY.0;
    loop {
        if let Ok(Ok(done)) = timeout(TIMEOUT, attempt()).await {
            return done;
        }
        *failures += 1;
        let jitter = rand::rng().random_range(0.5..=1.0);
        sleep(wait.mul_f64(jitter)).await;
        wait = (2 * wait).min(RETRY.1);
    }
}

/// User and system time of each, in seconds.
fn cpu(processes: &[String]) -> Result<Vec<(String, f64)>> {
    let of = |process: &String| {
        let (name, pid) = process.split_once('=').context("NAME=PID")?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // proc_pid_stat(5): the name ends with the last bracket; fields 14 and 15, in hundredths.
        let (_, fields) = stat.rsplit_once(')').context("not a stat file")?;
        let mut fields = fields.split_whitespace().skip(11);
        let mut next = || {
            fields
                .next()
                .context("too few fields")?
                .parse::<f64>()
                .context("not a number")
        };
        Ok((name.to_owned(), (next()? + next()?) / 100.0))
    };
    processes.iter().map(of).collect()
}

/// Takes whoever answers for the controller: nothing is at stake here.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}
