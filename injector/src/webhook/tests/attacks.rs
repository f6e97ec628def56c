//! Pods that want no pod to be made. Each row of THREATS.md about the webhook has its test here.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Instant;

use tokio::io::AsyncRead;
use tokio::net::TcpSocket;
use tokio::task::JoinSet;

use super::*;

/// So many connections stopped all creation of pods once.
const CONNECTIONS: usize = 1200;
const REVIEWS: usize = 100;

/// From an address of its own, as a pod would.
async fn connect_as_pod(to: SocketAddr, last: u8) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((Ipv4Addr::new(127, 0, 1, last), 0).into())?;
    socket.connect(to).await
}

impl Server {
    async fn connect_tls_as_pod(&self, trusted: &Material, last: u8) -> std::io::Result<TlsStream<TcpStream>> {
        let stream = connect_as_pod(self.addr, last).await?;
        self.handshake(trusted, &rustls::version::TLS13, stream).await
    }
}

/// Or for a while: where more connections come than are accepted, the kernel of the server drops some, and their clients never hear of it.
async fn until_closed(stream: &mut (impl AsyncRead + Unpin)) {
    let mut bytes = [0; 1024];
    let closed = async { while stream.read(&mut bytes).await.is_ok_and(|read| read > 0) {} };
    let _ = tokio::time::timeout(Duration::from_secs(10), closed).await;
}

/// Half of the connections say nothing at all; the others send a review whose body never ends. What is closed comes again.
fn trickle(server: &Arc<Server>, trusted: &Arc<Material>, connections: usize, addresses: u8) -> JoinSet<()> {
    let mut attack = JoinSet::new();
    for n in 0..connections {
        let (server, trusted) = (Arc::clone(server), Arc::clone(trusted));
        let last = 1 + u8::try_from(n % usize::from(addresses)).unwrap();
        attack.spawn(async move {
            loop {
                if n % 2 == 0 {
                    if let Ok(mut stream) = connect_as_pod(server.addr, last).await {
                        until_closed(&mut stream).await;
                    }
                } else if let Ok(mut stream) = server.connect_tls_as_pod(&trusted, last).await {
                    let head = format!("POST /inject HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 100000\r\n\r\n{{");
                    while stream.write_all(head.as_bytes()).await.is_ok() {
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
    }
    attack
}

/// Asks for reviews, one after the other, each on a connection of its own; says how long each took. All must be answered.
async fn reviews(server: &Server, trusted: &Material) -> Vec<Duration> {
    let body = review("shop", &pod(json!({})));
    let mut times = Vec::new();
    for n in 0..REVIEWS {
        let start = Instant::now();
        let (status, answer) = server.ask(trusted, "POST", "/inject", &body).await;
        assert_eq!(status, 200, "review {n}: {answer}");
        times.push(start.elapsed());
    }
    times.sort_unstable();
    times
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_never_end_their_review_stop_no_other() {
    let material = Arc::new(material());
    let server = Arc::new(serve(&material).await);
    let mut attack = trickle(&server, &material, CONNECTIONS, 3);
    server.until_crowded(900).await;
    let times = reviews(&server, &material).await;
    println!(
        "{CONNECTIONS} connections: median {:?}, 99th {:?}, last {:?}",
        times[50], times[98], times[99]
    );
    attack.shutdown().await;
}

/// The same as kube-apiserver does it: many at once, from one address, on connections that are kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_of_kube_apiserver_is_answered_whole() {
    let material = Arc::new(material());
    let server = Arc::new(serve(&material).await);
    let body = review("shop", &pod(json!({})));
    let mut burst = JoinSet::new();
    for _ in 0..40 {
        let (server, material, body) = (Arc::clone(&server), Arc::clone(&material), body.clone());
        burst.spawn(async move {
            let mut stream = server.connect(&material, false).await.unwrap();
            for _ in 0..3 {
                assert_eq!(review_on(&mut stream, &body).await, 200);
            }
        });
    }
    while let Some(done) = burst.join_next().await {
        done.unwrap();
    }
    let text = server.metrics.text(OffsetDateTime::now_utc());
    assert!(text.contains("connections_displaced_total 0\n"), "{text}");
}

/// A review on a connection that is kept; its status.
async fn review_on(stream: &mut TlsStream<TcpStream>, body: &str) -> u16 {
    let head = format!(
        "POST /inject HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let mut chunk = vec![0; 16 * 1024];
    loop {
        let text = String::from_utf8_lossy(&answer);
        if let Some((head, rest)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|l| {
                l.to_ascii_lowercase()
                    .strip_prefix("content-length: ")?
                    .parse::<usize>()
                    .ok()
            });
            if rest.len() >= length.unwrap() {
                return head[9..12].parse().unwrap();
            }
        }
        let read = stream.read(&mut chunk).await.unwrap();
        assert!(read > 0, "the connection was closed");
        answer.extend_from_slice(&chunk[..read]);
    }
}

/// 3 MB of empty containers would become 700 MB of structs, and a few of them at once the end of the process.
#[tokio::test]
async fn a_review_of_very_many_small_things_is_refused_before_it_is_read() {
    let material = material();
    let server = serve(&material).await;
    let containers = vec![json!({}); 1_000_000];
    let body = review("shop", &json!({"spec": {"containers": containers}}));
    let (status, why) = server.ask(&material, "POST", "/inject", &body).await;
    assert_eq!((status, why.contains("memory")), (503, true), "{why}");
    // Whoever asks for less is answered.
    assert_eq!(
        server
            .ask(&material, "POST", "/inject", &review("shop", &pod(json!({}))))
            .await
            .0,
        200
    );
    server.end().await;
}

/// The name goes into a URL: "x/../../api/v1/namespaces/kube-system/secrets/y" would say whether there is such a Secret.
#[tokio::test]
async fn a_namespace_that_is_no_name_is_refused() {
    let material = material();
    let server = serve(&material).await;
    for namespace in [
        "",
        "a/b",
        "../secrets",
        "shop?x=y",
        "Shop",
        "a.b",
        "shop/../../../version",
        &"a".repeat(64),
    ] {
        let (status, why) = server
            .ask(&material, "POST", "/inject", &review(namespace, &pod(json!({}))))
            .await;
        assert_eq!(
            (status, why.contains("no name of a namespace")),
            (400, true),
            "{namespace}: {why}"
        );
    }
    server.end().await;
}

/// Whom a sidecar trusts at its start is in the pod itself, where nobody can change it, and nothing of it is read from the
/// namespace. Without an answer to that there is no pod.
#[tokio::test]
async fn a_pod_has_the_roots_of_the_moment_in_its_environment_or_is_not_made() {
    let material = material();
    let server = serve(&material).await;
    let ask = async || {
        server
            .ask(&material, "POST", "/inject", &review("shop", &pod(json!({}))))
            .await
    };
    for roots in [ROOTS.to_owned(), ROOTS.repeat(2)] {
        server.say_roots.send_replace(Some(roots.as_str().into()));
        let (status, body) = ask().await;
        assert_eq!(status, 200, "{body}");
        let answer: Value = serde_json::from_str(&body).unwrap();
        let patch: k8s_openapi::ByteString = serde_json::from_value(answer["response"]["patch"].clone()).unwrap();
        let patch: json_patch::Patch = serde_json::from_slice(&patch.0).unwrap();
        let mut pod = pod(json!({}));
        json_patch::patch(&mut pod, &patch).unwrap();
        let env = pod["spec"]["initContainers"][1]["env"].as_array().unwrap();
        let value = |name: &str| env.iter().find(|env| env["name"] == name).map(|env| &env["value"]);
        assert_eq!(value("OUTRIGGER_TRUST_BUNDLE"), Some(&json!(roots)));
        assert_eq!(value("OUTRIGGER_TRUST_BUNDLE_FILE"), None);
        assert!(!pod.to_string().contains("configMap"), "{pod}");
    }
    server.say_roots.send_replace(None);
    let (status, why) = ask().await;
    assert_eq!(status, 500, "{why}");
    assert!(why.contains("ConfigMap outrigger/outrigger-trust-bundle"), "{why}");
    server.end().await;
}
