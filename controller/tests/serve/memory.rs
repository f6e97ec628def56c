//! What sidecars cost the controller. It measures, and asserts nothing:
//! `cargo test -p outrigger-controller --test serve memory -- --ignored --nocapture`.
//!
//! The controller is a process of its own: this program again, as [`the_controller`].

use std::io::{BufRead, BufReader, Lines, Read};
use std::net::Ipv4Addr;
use std::process::{Child, ChildStdout, Command, Stdio};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use futures_util::stream::{self, StreamExt};
use outrigger_issuer::ca::CaPem;
use tonic::Streaming;

use super::sessions::{Session, hello};
use super::*;

const SIDECARS: u32 = 1000;
/// At a time.
const STARTING: usize = 64;
const TARGETS: u8 = 20;
const SERVICES: u8 = 200;
const IN_CHILD: &str = "OUTRIGGER_MEMORY_CONTROLLER";

/// What a sidecar does with its connection.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// A stream for each target, and one for itself.
    Streams,
    Session,
    /// A session that wants nothing.
    Bare,
    /// A session that wants addresses that do not exist and that nobody else wants.
    Invented,
}

/// What a sidecar holds open.
enum Asked {
    Streams(#[allow(dead_code)] Vec<Streaming<Target>>),
    Session(#[allow(dead_code)] Box<Session>),
}

impl Way {
    async fn ask(self, n: u32, channel: Channel) -> Asked {
        let targets = (0..u32::from(TARGETS)).map(|t| match self {
            Way::Invented => format!("{}:80", Ipv4Addr::from(0x0b00_0000 + n * 1000 + t)),
            _ => address(u8::try_from((n * 7 + t) % u32::from(SERVICES)).unwrap()),
        });
        if let Way::Streams = self {
            let mut client = DiscoveryClient::new(channel);
            let mut streams = Vec::new();
            for address in targets {
                let request = WatchTargetRequest {
                    address,
                    namespace: "shop".to_owned(),
                    pod: "orders-1".to_owned(),
                };
                let mut stream = client.watch_target(request).await.unwrap().into_inner();
                stream.message().await.unwrap().unwrap();
                streams.push(stream);
            }
            return Asked::Streams(streams);
        }
        let mut session = Session::open(channel, hello("orders-1")).await.unwrap();
        if let Way::Bare = self {
            session.next().await.unwrap();
            return Asked::Session(Box::new(session));
        }
        for address in targets {
            session.want(&address).await;
        }
        session
            .until(|s| s.log.iter().filter(|m| m.starts_with("routes")).count() == usize::from(TARGETS))
            .await;
        Asked::Session(Box::new(session))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures"]
async fn memory_of_a_thousand_sidecars() {
    for way in [Way::Streams, Way::Bare, Way::Session, Way::Invented] {
        let controller = Controller::start();
        let before = controller.resident();
        let connect = (0..SIDECARS).map(async |n| {
            let svid = controller.server.svid("shop", &format!("orders-{n}"));
            controller.server.connect(Some(svid)).await
        });
        let channels: Vec<_> = stream::iter(connect).buffered(STARTING).collect().await;
        let connected = controller.resident();
        let ask = (0..SIDECARS).zip(channels).map(|(n, channel)| way.ask(n, channel));
        let _asked: Vec<_> = stream::iter(ask).buffered(STARTING).collect().await;
        let told = controller.resident();
        let each = |bytes: u64| bytes / 1024 / u64::from(SIDECARS);
        println!(
            "{way:?}: {} MiB at first, {} MiB with {SIDECARS} connections ({} KiB each), {} MiB with {TARGETS} targets each \
             (another {} KiB each)",
            before >> 20,
            connected >> 20,
            each(connected - before),
            told >> 20,
            each(told - connected)
        );
    }
}

struct Controller {
    child: Child,
    /// It goes on writing.
    _output: Lines<BufReader<ChildStdout>>,
    server: Server,
}

impl Controller {
    fn start() -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "memory::the_controller", "--nocapture"])
            .env(IN_CHILD, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
        let said = output.by_ref().map(Result::unwrap).find_map(|line| {
            let mut words = line.strip_prefix("serving ")?.split(' ').map(str::to_owned);
            Some((words.next()?, words.next()?, words.next()?))
        });
        let (address, certificate, key) = said.unwrap();
        let text = |base64: String| String::from_utf8(BASE64_STANDARD.decode(base64).unwrap()).unwrap();
        let pem = CaPem {
            certificates: text(certificate),
            key: text(key),
            roots: None,
        };
        let ca = Ca::from_pem(pem, "cluster.local", std::time::SystemTime::now()).unwrap();
        let server = Server {
            address: address.parse().unwrap(),
            ca: watch::Sender::new(Arc::new(ca)),
            metrics: Arc::default(),
            targets: Arc::default(),
            shutdown: CancellationToken::new(),
            served: tokio::spawn(std::future::pending()),
        };
        Self {
            child,
            _output: output,
            server,
        }
    }

    fn resident(&self) -> u64 {
        attacks::resident(&self.child.id().to_string())
    }
}

impl std::ops::Drop for Controller {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn address(service: u8) -> String {
    format!("10.96.1.{service}:80")
}

/// No test: what [`Controller::start`] starts. It ends when nobody holds its input any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "part of what measures"]
async fn the_controller() {
    if std::env::var_os(IN_CHILD).is_none() {
        return;
    }
    let index = Index::new("cluster.local", Arc::new(Metrics::default()));
    let pod = |name: &str, ip: String| {
        let pod = json!({
            "metadata": {"namespace": "shop", "name": name},
            "spec": {"serviceAccountName": "orders", "containers": [{"name": "outrigger-proxy"}]},
            "status": {"podIPs": [{"ip": ip}]},
        });
        from_k8s::pod(&serde_json::from_value(pod).unwrap()).unwrap()
    };
    for n in 0..SERVICES {
        let service = json!({
            "metadata": {"namespace": "shop", "name": format!("service-{n}")},
            "spec": {"clusterIPs": [format!("10.96.1.{n}")], "ports": [{"name": "http", "port": 80, "appProtocol": "http"}]},
        });
        let (name, service) = from_k8s::service(&serde_json::from_value(service).unwrap()).unwrap();
        index.apply(name, service);
        let mut endpoints = Vec::new();
        for replica in 0..3 {
            let (name, ip) = (
                format!("service-{n}-6d5f7c9b8-{replica}"),
                format!("10.244.{replica}.{n}"),
            );
            endpoints.push(json!({"addresses": [ip], "targetRef": {"kind": "Pod", "namespace": "shop", "name": name}}));
            let (name, pod) = pod(&name, ip);
            index.apply(name, pod);
        }
        let slice = json!({
            "metadata": {
                "namespace": "shop", "name": format!("service-{n}-x"),
                "labels": {"kubernetes.io/service-name": format!("service-{n}")},
            },
            "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}], "endpoints": endpoints,
        });
        let (name, slice) = from_k8s::endpoint_slice(&serde_json::from_value(slice).unwrap()).unwrap();
        index.apply(name, slice);
    }
    index.set_synced();
    let ca = Ca::generate("cluster.local").unwrap();
    let words = [&ca.pem().certificates, &ca.pem().key].map(|pem| BASE64_STANDARD.encode(pem));
    let server = start_of(ca, 4 << 30, index, Arc::default()).await;
    println!("serving {} {}", server.address, words.join(" "));
    let input = tokio::task::spawn_blocking(|| std::io::stdin().read(&mut [0]));
    assert_eq!(input.await.unwrap().unwrap(), 0);
}
