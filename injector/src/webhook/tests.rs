#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::sync::CancellationToken;

use super::{CONNECTIONS, MAX_BODY, Namespaces, TIMES, Webhook};
use crate::certs::{Material, Plan, Profile, Serving, plan};
use crate::inject::NamespaceMeta;
use crate::metrics::Metrics;
use crate::settings::Settings;

struct Fixed;

impl Namespaces for Fixed {
    fn find<'a>(&'a self, name: &'a str) -> BoxFuture<'a, anyhow::Result<NamespaceMeta>> {
        Box::pin(async move {
            anyhow::ensure!(name != "unreadable", "kube-apiserver is away");
            let labels = [("outrigger.dev/inject".to_owned(), "enabled".to_owned())].into();
            Ok(NamespaceMeta {
                name: name.to_owned(),
                labels,
                ..NamespaceMeta::default()
            })
        })
    }
}

struct Server {
    say_roots: watch::Sender<Option<Arc<str>>>,
    addr: std::net::SocketAddr,
    serving: Arc<Serving>,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<()>,
    metrics: Arc<Metrics>,
}

const ROOTS: &str = include_str!("../../testdata/roots.pem");
const HOST: &str = "outrigger-injector.outrigger.svc";

fn material() -> Material {
    let profile = Profile::of_service("outrigger-injector", "outrigger");
    match plan(None, &profile, OffsetDateTime::now_utc(), false).unwrap() {
        Plan::Write(material) => *material,
        Plan::Keep => panic!(),
    }
}

async fn serve(material: &Material) -> Server {
    let metrics = Arc::new(Metrics::default());
    let (say_roots, roots) = watch::channel(Some(Arc::from(ROOTS)));
    let settings = Settings {
        // A name that every machine knows.
        controller: Some("localhost:14150".to_owned()),
        ..Settings::default()
    };
    let mut webhook = Webhook::new(settings, Box::new(Fixed), roots, Arc::clone(&metrics));
    webhook.times.input = Duration::from_secs(60);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (serving, shutdown) = (Arc::new(Serving::default()), CancellationToken::new());
    serving.swap(material.certified_key().unwrap());
    let task = tokio::spawn(Arc::new(webhook).serve(listener, Arc::clone(&serving), shutdown.clone()));
    Server {
        say_roots,
        addr,
        serving,
        shutdown,
        task,
        metrics,
    }
}

impl Server {
    async fn connect(&self, trusted: &Material, tls12: bool) -> std::io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.addr).await?;
        let version = if tls12 {
            &rustls::version::TLS12
        } else {
            &rustls::version::TLS13
        };
        self.handshake(trusted, version, stream).await
    }

    async fn handshake(
        &self,
        trusted: &Material,
        version: &'static rustls::SupportedProtocolVersion,
        stream: TcpStream,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = rustls::RootCertStore::empty();
        for ca in &trusted.bundle {
            roots
                .add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap())
                .unwrap();
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap();
        let config = config.with_root_certificates(roots).with_no_client_auth();
        TlsConnector::from(Arc::new(config))
            .connect(ServerName::try_from(HOST).unwrap(), stream)
            .await
    }

    /// Status and body of what is answered.
    async fn ask(&self, trusted: &Material, method: &str, path: &str, body: &str) -> (u16, String) {
        let asked = self.announce(trusted, method, path, body.len(), body);
        let answer = tokio::time::timeout(Duration::from_secs(60), asked).await;
        answer.unwrap_or_else(|_| panic!("{method} {path} was not answered"))
    }

    /// Asks with a body that is said to be so long.
    async fn announce(&self, trusted: &Material, method: &str, path: &str, length: usize, body: &str) -> (u16, String) {
        let mut stream = self.connect(trusted, false).await.unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        // The server may have answered and closed before all is sent.
        let _ = stream.write_all(body.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), body.to_owned())
    }

    /// Waits until the webhook has so many connections.
    async fn until_crowded(&self, connections: usize) {
        let open = || {
            let text = self.metrics.text(OffsetDateTime::now_utc());
            let line = text
                .lines()
                .find_map(|l| l.strip_prefix("outrigger_admission_connections "));
            line.map_or(0, |number| number.parse::<usize>().unwrap())
        };
        let crowd = async {
            while open() < connections {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let crowded = tokio::time::timeout(Duration::from_secs(60), crowd).await;
        assert!(crowded.is_ok(), "{} connections of {connections}", open());
    }

    async fn end(self) {
        self.shutdown.cancel();
        self.task.await.unwrap();
    }
}

fn review(namespace: &str, pod: &Value) -> String {
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "the-uid", "kind": {"group": "", "version": "v1", "kind": "Pod"}, "operation": "CREATE",
            "resource": {"group": "", "version": "v1", "resource": "pods"}, "namespace": namespace, "object": pod,
        },
    })
    .to_string()
}

fn pod(spec: Value) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "app"},
        "spec": {"containers": [{"name": "app", "image": "app"}]},
    });
    pod["spec"]
        .as_object_mut()
        .unwrap()
        .extend(spec.as_object().unwrap().clone());
    pod
}

#[tokio::test]
async fn reviews_are_answered() {
    let material = material();
    let server = serve(&material).await;
    let mut pod_object = pod(json!({}));
    let (status, body) = server
        .ask(&material, "POST", "/inject?timeout=10s", &review("shop", &pod_object))
        .await;
    assert_eq!(status, 200, "{body}");
    let answer: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(answer["response"]["uid"], "the-uid");
    assert_eq!(answer["response"]["allowed"], true);
    assert_eq!(answer["response"]["patchType"], "JSONPatch");
    let patch: k8s_openapi::ByteString = serde_json::from_value(answer["response"]["patch"].clone()).unwrap();
    let patch: json_patch::Patch = serde_json::from_slice(&patch.0).unwrap();
    json_patch::patch(&mut pod_object, &patch).unwrap();
    assert_eq!(pod_object["spec"]["initContainers"][1]["name"], "outrigger-proxy");
    // And once more: nothing to add.
    let (_, body) = server
        .ask(&material, "POST", "/inject", &review("shop", &pod_object))
        .await;
    let answer: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(answer["response"], json!({"uid": "the-uid", "allowed": true}));

    let refused = pod(json!({"hostNetwork": true}));
    let (status, body) = server
        .ask(&material, "POST", "/inject", &review("shop", &refused))
        .await;
    let answer: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &answer["response"]["allowed"]), (200, &json!(false)));
    let message = answer["response"]["status"]["message"].as_str().unwrap();
    assert!(
        message.contains("hostNetwork") && message.contains("outrigger.dev/inject: disabled"),
        "{message}"
    );
    server.end().await;
}

#[tokio::test]
async fn who_cannot_be_in_the_mesh_or_find_the_controller_is_told() {
    let material = material();
    let server = serve(&material).await;
    let answer = async |pod: Value| -> Value {
        let (status, body) = server.ask(&material, "POST", "/inject", &review("shop", &pod)).await;
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    };
    let left_alone = answer(pod(json!({"nodeSelector": {"kubernetes.io/os": "windows"}}))).await;
    let response = left_alone["response"].as_object().unwrap();
    assert_eq!(response["allowed"], true);
    assert!(!response.contains_key("patch"));
    let warning = response["warnings"][0].as_str().unwrap();
    assert!(
        warning.starts_with("Outrigger leaves this pod alone: spec.nodeSelector says"),
        "{warning}"
    );

    // The controller's name is looked up for a pod that cannot do so.
    let mut own_servers = pod(json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["192.0.2.1"]}}));
    let response = answer(own_servers.clone()).await;
    let warning = response["response"]["warnings"][0].as_str().unwrap();
    assert!(
        warning.starts_with("dnsPolicy is \"None\": the sidecar has the controller's address"),
        "{warning}"
    );
    let patch: k8s_openapi::ByteString = serde_json::from_value(response["response"]["patch"].clone()).unwrap();
    let patch: json_patch::Patch = serde_json::from_slice(&patch.0).unwrap();
    json_patch::patch(&mut own_servers, &patch).unwrap();
    let env = own_servers["spec"]["initContainers"][1]["env"].as_array().unwrap();
    let controller = env
        .iter()
        .find(|variable| variable["name"] == "OUTRIGGER_CONTROLLER")
        .unwrap();
    let controller: std::net::SocketAddr = controller["value"].as_str().unwrap().parse().unwrap();
    assert!(
        controller.ip().is_loopback() && controller.port() == 14150,
        "{controller}"
    );
    server.end().await;
}

/// Nobody but kube-apiserver closes its connection, or a review would be lost on the way (90 s: Go's IdleConnTimeout).
#[tokio::test(start_paused = true)]
async fn an_idle_connection_lasts_longer_than_kube_apiserver_keeps_it() {
    let gate = outrigger_gate::Gate::new(CONNECTIONS);
    let work = outrigger_gate::Work::begin(gate.enter([10, 0, 0, 1].into()).await, TIMES);
    let (mut client, server) = tokio::io::duplex(64);
    let mut server = work.guard(server);
    drop(work.complete());
    server.write_all(b"answer").await.unwrap();
    server.flush().await.unwrap();
    let mut byte = [0];
    let kept = tokio::time::timeout(Duration::from_secs(95), server.read(&mut byte)).await;
    assert!(kept.is_err(), "{kept:?}");
    client.write_all(b"P").await.unwrap();
    assert_eq!(server.read(&mut byte).await.unwrap(), 1);
}

#[tokio::test]
async fn what_is_no_review_is_refused() {
    let material = material();
    let server = serve(&material).await;
    let other_version = review("shop", &pod(json!({}))).replace("admission.k8s.io/v1", "admission.k8s.io/v1beta1");
    let no_pod = review("shop", &json!({"spec": {"containers": "many"}}));
    for body in ["", "{}", "not JSON", &other_version, &no_pod] {
        let (status, why) = server.ask(&material, "POST", "/inject", body).await;
        assert_eq!(status, 400, "{body:?}: {why}");
        assert!(why.len() > 10, "{body:?}: {why}");
    }
    assert_eq!(server.ask(&material, "GET", "/inject", "").await.0, 405);
    assert_eq!(server.ask(&material, "POST", "/", "").await.0, 404);
    // By its length alone: what is sent behind an early answer may have the kernel reset the connection, and the answer is lost with it.
    let too_large = server.announce(&material, "POST", "/inject", MAX_BODY + 1, "");
    assert_eq!(too_large.await.0, 413);
    // It is not known what the namespace wants: better no pod than one outside of the mesh.
    assert_eq!(
        server
            .ask(&material, "POST", "/inject", &review("unreadable", &pod(json!({}))))
            .await
            .0,
        500
    );
    server.end().await;
}

#[tokio::test]
async fn the_certificate_is_swapped_without_a_restart() {
    let (old, new) = (material(), material());
    let server = serve(&old).await;
    assert!(server.connect(&old, true).await.is_ok(), "TLS 1.2");
    let mut kept = server.connect(&old, false).await.unwrap();
    server.serving.swap(new.certified_key().unwrap());
    assert!(
        server.connect(&old, false).await.is_err(),
        "the old certificate is still served"
    );
    assert_eq!(server.ask(&new, "POST", "/inject", "").await.0, 400);
    // A connection from before goes on.
    kept.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut answer = [0; 12];
    kept.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 404");
    // It is idle now, and does not hold up the end.
    tokio::time::timeout(Duration::from_secs(5), server.end())
        .await
        .unwrap();
}

mod attacks;
