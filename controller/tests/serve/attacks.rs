//! Pods that want the controller to themselves. Each row of THREATS.md about it has its test here.
//!
//! The attackers write HTTP/2 by hand: a library would keep to the limits that the server announces.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::time::Instant;

use kube::core::DynamicObject;
use outrigger_api::discovery::{FromSidecar, from_sidecar, to_sidecar};
use outrigger_controller::objects::Object;
use outrigger_controller::objects::route::{Route, RouteKind};
use outrigger_controller::room::Room;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;

use super::sessions::{Session, hello, hello_of_today, service as service_of, want};
use super::*;

/// The numbers that took the controller down. `OUTRIGGER_ATTACK=whole` asks for them; without it they are smaller.
struct Size {
    streams: u32,
    idle: usize,
}

fn size() -> Size {
    match std::env::var("OUTRIGGER_ATTACK").as_deref() {
        Ok("whole") => Size {
            streams: 16_000,
            idle: 1200,
        },
        _ => Size {
            streams: 1000,
            idle: 700,
        },
    }
}

/// From an address of its own, as a pod would.
async fn connect_as_pod(to: SocketAddr, last: u8) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((Ipv4Addr::new(127, 0, 1, last), 0).into())?;
    socket.connect(to).await
}

impl Server {
    async fn raw(&self, svid: Option<IssuedSvid>, last: u8) -> std::io::Result<TlsStream<TcpStream>> {
        let config = self.client_config(svid, &[&rustls::version::TLS13]);
        let stream = connect_as_pod(self.address, last).await?;
        tls(Arc::new(config), stream).await
    }

    /// Of a metric; 0 while nothing was counted.
    pub(crate) fn number(&self, metric: &str) -> f64 {
        let text = self.metrics.encode();
        let line = text.lines().find_map(|l| l.strip_prefix(metric)?.strip_prefix(' '));
        line.map_or(0.0, |number| number.parse().unwrap())
    }

    pub(crate) async fn until(&self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let waited = async {
            while !done(self) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(120), waited).await;
        waited.unwrap_or_else(|_| panic!("{what}: {}", self.metrics.encode()));
    }

    /// Asks for SVIDs, one after the other, each on a connection of its own, as sidecars that start do; says how long each took.
    async fn svids(&self, number: usize) -> Vec<Duration> {
        let csr = csr("spiffe://cluster.local/ns/shop/sa/orders");
        let mut times = Vec::new();
        for n in 0..number {
            let start = Instant::now();
            let request = IssueRequest {
                csr: csr.clone(),
                token: "token-of-orders".to_owned(),
            };
            // A sidecar tries again: on a machine that is overloaded its own handshake may take too long.
            let issued = async {
                loop {
                    if let Ok(channel) = self.try_connect(None, &[&rustls::version::TLS13]).await
                        && let Ok(answer) = IdentityClient::new(channel).issue(request.clone()).await
                    {
                        return answer.into_inner();
                    }
                    tokio::time::sleep(Duration::from_millis(250)).await;
                }
            };
            let issued = tokio::time::timeout(Duration::from_secs(60), issued).await;
            let issued = issued.unwrap_or_else(|_| panic!("SVID {n} was not issued"));
            assert_eq!(issued.certificate_chain.len(), 1);
            times.push(start.elapsed());
        }
        times.sort_unstable();
        times
    }
}

fn report(what: &str, times: &[Duration]) {
    let (median, last) = (times[times.len() / 2], times[times.len() - 1]);
    println!("{what}: {} SVIDs, median {median:?}, slowest {last:?}", times.len());
}

/// RFC 9113 section 4.1.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const ACK: u8 = 1;

/// A gRPC request head in HPACK without a table (RFC 7541 section 6.2.2).
fn head(path: &str) -> Vec<u8> {
    let text = |s: &str| [&[u8::try_from(s.len()).unwrap()], s.as_bytes()].concat();
    [
        vec![0x83, 0x86, 0x04],
        text(path),
        vec![0x01],
        text("controller"),
        vec![0x0f, 0x10],
        text("application/grpc"),
        vec![0x00],
        text("te"),
        text("trailers"),
    ]
    .concat()
}

fn message(message: &impl prost::Message) -> Vec<u8> {
    let body = message.encode_to_vec();
    [&[0], &u32::try_from(body.len()).unwrap().to_be_bytes()[..], &body].concat()
}

fn preface(settings: &[u8]) -> Vec<u8> {
    [
        &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..],
        &frame(SETTINGS, 0, 0, settings),
        &frame(SETTINGS, ACK, 0, &[]),
    ]
    .concat()
}

/// Opens streams, whatever the server allows, and leaves them open until the server closes the connection.
async fn flood(
    stream: TlsStream<TcpStream>,
    settings: &[u8],
    path: &str,
    streams: u32,
    mut request: impl FnMut(u32) -> Vec<u8>,
) {
    let (mut read, mut write) = tokio::io::split(stream);
    let head = head(path);
    let written = async {
        write.write_all(&preface(settings)).await?;
        for n in 0..streams {
            let id = 2 * n + 1;
            let both = [
                frame(HEADERS, END_HEADERS, id, &head),
                frame(DATA, END_STREAM, id, &request(n)),
            ]
            .concat();
            write.write_all(&both).await?;
        }
        write.flush().await?;
        std::future::pending::<std::io::Result<()>>().await
    };
    let drained = async {
        let mut bytes = vec![0; 16 * 1024];
        while read.read(&mut bytes).await.is_ok_and(|n| n > 0) {}
    };
    tokio::select! {
        // The server may close before all is written; what it says is read to the end either way.
        Err(_) = written => {}
        () = drained => {}
    }
}

/// No credential at all: 8 connections, each with thousands of requests with garbage tokens, and again when they are closed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_tokens_do_not_stop_the_issuing() {
    let server = Arc::new(start().await);
    let streams = size().streams;
    let mut attack = JoinSet::new();
    for _ in 0..8 {
        let server = Arc::clone(&server);
        attack.spawn(async move {
            let garbage = message(&IssueRequest {
                csr: vec![0x30; 1000],
                token: "x".repeat(1000),
            });
            loop {
                if let Ok(stream) = server.raw(None, 1).await {
                    let path = "/outrigger.identity.v1.Identity/Issue";
                    flood(stream, &[], path, streams, |_| garbage.clone()).await;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
    }
    let refused = "outrigger_controller_svids_issued_total{result=\"unauthenticated\"}";
    server
        .until("the attack has begun", |s| s.metrics.encode().contains(refused))
        .await;
    report("garbage tokens", &server.svids(50).await);
    attack.shutdown().await;
    Arc::try_unwrap(server).ok().unwrap().stop().await;
}

/// A stranger has two requests at a time, however many it sends: the others are refused unread.
#[tokio::test]
async fn a_stranger_has_two_streams() {
    const RST_STREAM: u8 = 3;
    const REFUSED_STREAM: [u8; 4] = 7_u32.to_be_bytes();
    let server = start().await;
    let mut stream = server.raw(None, 1).await.unwrap();
    let head = head("/outrigger.identity.v1.Identity/Issue");
    // Their messages do not come, so none of them is answered.
    let heads = (0..10).flat_map(|n| frame(HEADERS, END_HEADERS, 2 * n + 1, &head));
    let sent: Vec<u8> = preface(&[]).into_iter().chain(heads).collect();
    stream.write_all(&sent).await.unwrap();
    let mut refused = Vec::new();
    while refused.len() < 8 {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.unwrap();
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        stream.read_exact(&mut payload).await.unwrap();
        if head[3] == RST_STREAM {
            assert_eq!(payload, REFUSED_STREAM);
            refused.push(u32::from_be_bytes([head[5], head[6], head[7], head[8]]));
        }
    }
    assert_eq!(refused, [5, 7, 9, 11, 13, 15, 17, 19]);
    drop(stream);
    server.stop().await;
}

/// Connections that say nothing once stopped the issuing: each held a permit for its handshake.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_connections_do_not_stop_the_issuing() {
    let server = Arc::new(start().await);
    let attacked = Arc::clone(&server);
    let attack = tokio::spawn(async move {
        let mut held = VecDeque::new();
        loop {
            // As fast as it can until all places are taken; from then on in place of those that are closed.
            if attacked.number("outrigger_controller_strangers_displaced") > 0.0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            for _ in 0..8 {
                held.extend(connect_as_pod(attacked.address, 1).await.ok());
            }
            let beyond = held.len().saturating_sub(size().idle);
            held.drain(..beyond);
        }
    });
    server
        .until("the oldest are closed", |s| {
            s.number("outrigger_controller_strangers_displaced") > 0.0
        })
        .await;
    report("silent connections", &server.svids(50).await);
    attack.abort();
    assert!(attack.await.unwrap_err().is_cancelled());
    Arc::try_unwrap(server).ok().unwrap().stop().await;
}

fn watch(address: String) -> Vec<u8> {
    message(&WatchTargetRequest {
        address,
        ..WatchTargetRequest::default()
    })
}

const SESSION: &str = "/outrigger.discovery.v1.Discovery/Session";
const WATCH_TARGET: &str = "/outrigger.discovery.v1.Discovery/WatchTarget";

/// Bytes that a process has in memory.
pub(crate) fn resident(process: &str) -> u64 {
    let statm = std::fs::read_to_string(format!("/proc/{process}/statm")).unwrap();
    let pages: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

/// What the budget charges, against what is used: `cargo test -p outrigger-controller --test serve costs -- --ignored --nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures"]
async fn costs_of_connections_and_streams() {
    const CONNECTIONS: u32 = 100;
    const STREAMS: u32 = 30;
    let server = start().await;
    // What is allocated once is no connection's.
    drop(server.raw(Some(server.svid("shop", "warm")), 1).await.unwrap());
    let charged = "outrigger_controller_charged_bytes";
    let (before, mut attack, mut streams) = (resident("self"), JoinSet::new(), Vec::new());
    for n in 0..CONNECTIONS {
        let last = 1 + u8::try_from(n).unwrap();
        streams.push(server.raw(Some(server.svid("shop", "orders")), last).await.unwrap());
    }
    server
        .until("connections", |s| {
            s.number(charged) >= f64::from(CONNECTIONS * 64 * 1024)
        })
        .await;
    let connected = resident("self");
    for (n, stream) in (0..).zip(streams) {
        attack.spawn(async move {
            let invented = |m: u32| watch(format!("{}:80", Ipv4Addr::from(0x0b00_0000 + n * 1000 + m)));
            flood(stream, &[], WATCH_TARGET, STREAMS, invented).await;
        });
    }
    let open = "outrigger_controller_streams_open{kind=\"target\"}";
    server
        .until("streams", |s| s.number(open) >= 0.9 * f64::from(CONNECTIONS * STREAMS))
        .await;
    let (streams, end) = (server.number(open), resident("self"));
    println!(
        "a connection, both ends: {} bytes",
        (connected - before) / u64::from(CONNECTIONS)
    );
    println!(
        "a stream: {} bytes of {streams} streams",
        (end - connected) as f64 / streams
    );
    attack.shutdown().await;
    server.stop().await;
}

/// One SVID: 24 connections, each with thousands of streams about addresses that do not exist.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_of_one_pod_leave_the_memory_to_others() {
    let server = Arc::new(start().await);
    let streams = size().streams;
    let mut attack = JoinSet::new();
    for connection in 0..24_u32 {
        let stream = server.raw(Some(server.svid("evil", "default")), 1).await.unwrap();
        attack.spawn(async move {
            let invented = |n: u32| watch(format!("{}:80", Ipv4Addr::from(0x0b00_0000 + connection * 100_000 + n)));
            flood(stream, &[], WATCH_TARGET, streams, invented).await;
        });
    }
    // A fifth of all is for one pod: it gets so far, and no further.
    let (charged, fifth) = ("outrigger_controller_charged_bytes", BUDGET as f64 / 5.0);
    server
        .until("the attack is at its bound", |s| s.number(charged) > 0.98 * fifth)
        .await;
    // A charge is compared with what was free before it.
    let most = fifth + ONE_CHARGE;
    assert!(server.number(charged) <= most, "{}", server.number(charged));
    server
        .until("what is beyond is refused", |s| {
            s.number("outrigger_controller_over_budget") > 0.0
        })
        .await;
    let open = server.number("outrigger_controller_streams_open{kind=\"target\"}");
    println!(
        "24 connections of {streams} streams: {open} are open, {} bytes charged",
        server.number(charged)
    );

    report("invented addresses", &server.svids(50).await);
    let mut client = DiscoveryClient::new(server.connect(Some(server.svid("shop", "orders"))).await);
    let request = WatchTargetRequest {
        address: TARGET.to_owned(),
        ..WatchTargetRequest::default()
    };
    let mut updates = client.watch_target(request).await.unwrap().into_inner();
    assert_eq!(updates.message().await.unwrap().unwrap(), pod("10.0.0.1:80"));
    attack.shutdown().await;
    // Who ends gives back.
    drop((updates, client));
    server.until("all is given back", |s| s.number(charged) == 0.0).await;
    Arc::try_unwrap(server).ok().unwrap().stop().await;
}

/// The same pod is heard at a pace, however many connections it has: each attempt costs the controller more than the pod. What was
/// refused in 14 s, while nobody else was answered, takes hours.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_says_much_is_heard_slowly_and_others_are_not() {
    /// As in the server.
    const BURST: u64 = 512 * 1024;
    const PER_SECOND: u64 = 32 * 1024;
    /// What is read at once, of each of the connections.
    const AHEAD: u64 = 24 * 32 * 1024;
    let server = Arc::new(start().await);
    let invented = |n: u32| watch(format!("{}:80", Ipv4Addr::from(0x0b00_0000 + n)));
    let one = (2 * 9 + head(WATCH_TARGET).len() + invented(0).len()) as u64;
    let began = Instant::now();
    let mut attack = JoinSet::new();
    for connection in 0..24_u32 {
        let stream = server.raw(Some(server.svid("evil", "default")), 1).await.unwrap();
        attack.spawn(flood(stream, &[], WATCH_TARGET, 16_000, move |n| {
            invented(connection * 100_000 + n)
        }));
    }
    let pauses = "outrigger_controller_pauses";
    server.until("it pauses", |s| s.number(pauses) > 0.0).await;
    let heard = |s: &Server| {
        let open = s.number("outrigger_controller_streams_open{kind=\"target\"}");
        open + s.number("outrigger_controller_over_budget")
    };
    // Others say what they have to say meanwhile.
    let channel = server.connect(Some(server.svid("shop", "orders"))).await;
    let mut session = Session::open(channel, hello("")).await.unwrap();
    for n in 0..100 {
        session.want(&format!("10.97.0.{n}:80")).await;
    }
    session.until(|s| s.target("10.97.0.99:80").is_some()).await;
    report("a pod that is heard slowly", &server.svids(10).await);
    let most = (BURST + PER_SECOND * (began.elapsed().as_secs() + 1) + AHEAD) / one;
    assert!(heard(&server) <= most as f64, "{} of {most}", heard(&server));
    attack.shutdown().await;
    drop(session);
    Arc::try_unwrap(server).ok().unwrap().stop().await;
}

/// What the namespace `evil` has, and one other: a Service with 1,000 ports, and a route without a port of nearly as much as etcd
/// takes.
fn apply_large_route(index: &Index, namespace: &str, ip: &str, rules: usize) {
    let ports = (1000..2000).map(|port| json!({"name": format!("p{port}"), "port": port}));
    let service = json!({
        "metadata": {"namespace": namespace, "name": "web"},
        "spec": {"clusterIPs": [ip], "ports": ports.collect::<Vec<_>>()},
    });
    let (name, service) = from_k8s::service(&serde_json::from_value(service).unwrap()).unwrap();
    index.apply(name, service);
    let headers = (0..20).map(|n| json!({"name": format!("x-{n}"), "value": "x".repeat(4096)}));
    let headers = json!({"set": headers.collect::<Vec<_>>()});
    let filter = json!({"type": "RequestHeaderModifier", "requestHeaderModifier": headers});
    let route = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"namespace": namespace, "name": "large"},
        "spec": {
            "parentRefs": [{"group": "", "kind": "Service", "name": "web"}],
            "rules": vec![json!({"filters": [filter]}); rules],
        },
    });
    let route: DynamicObject = serde_json::from_value(route).unwrap();
    let name = from_k8s::object_name(&route.metadata);
    let route = Route::read(RouteKind::Http, &route).unwrap();
    index.apply(name, Object::Route(Box::new(route)));
    index.flush();
}

/// A session that reads all answers, as fast as they come: how many addresses are told, and how many refused, in all.
async fn say_all(channel: Channel, said: Vec<FromSidecar>, heard: watch::Sender<(usize, usize)>) {
    let (sender, requests) = mpsc::channel(64);
    let mut client = DiscoveryClient::new(channel);
    let messages = client.session(ReceiverStream::new(requests)).await;
    let mut messages = messages.unwrap().into_inner();
    let say = async {
        for said in said {
            sender.send(said).await.ok();
        }
        std::future::pending::<()>().await;
    };
    let read = async {
        while let Ok(Some(message)) = messages.message().await {
            heard.send_modify(|(told, refused)| match message.kind {
                Some(to_sidecar::Kind::Routes(_)) => *told += 1,
                Some(to_sidecar::Kind::Refused(_)) => *refused += 1,
                _ => {}
            });
        }
    };
    tokio::select! {
        () = say => {}
        () = read => {}
    }
}

/// One Service with 1,000 ports and one large route: who wants all of them has the index keep them 1,000 times.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_route_on_a_thousand_ports_leaves_the_memory_to_others() {
    const ROOM: u64 = 16 << 20;
    let metrics = Arc::new(Metrics::default());
    let index = Index::within(Room::new(ROOM), "cluster.local", metrics.clone());
    // Anybody is a pod at this address.
    for (namespace, account) in [("evil", "default"), ("shop", "orders")] {
        let pod = json!({
            "metadata": {"namespace": namespace, "name": account},
            "spec": {"serviceAccountName": account, "containers": []},
        });
        let (name, pod) = from_k8s::pod(&serde_json::from_value(pod).unwrap()).unwrap();
        index.apply(name, pod);
    }
    apply_large_route(&index, "evil", "10.96.0.1", 16);
    apply_large_route(&index, "shop", "10.96.0.2", 1);
    index.set_synced();
    let server = start_with(index.clone(), Arc::default()).await;
    let before = resident("self");
    let wants = (1000..2000).map(|port| want(&format!("10.96.0.1:{port}")));
    let wants: Vec<_> = said([hello("")].into_iter().chain(wants)).collect();
    let mut attack = JoinSet::new();
    let mut heard = Vec::new();
    for _ in 0..2 {
        let (sender, receiver) = watch::channel((0, 0));
        let channel = server.connect(Some(server.svid("evil", "default"))).await;
        attack.spawn(say_all(channel, wants.clone(), sender));
        heard.push(receiver);
    }
    for heard in &mut heard {
        let all = heard.wait_for(|(told, refused)| told + refused == 1000);
        let (told, refused) = *tokio::time::timeout(Duration::from_secs(120), all)
            .await
            .unwrap()
            .unwrap();
        assert!(told > 3 && refused > 900, "{told} {refused}");
    }
    let taken = || {
        let text = metrics.encode();
        let taken = text
            .lines()
            .find_map(|l| l.strip_prefix("outrigger_controller_answer_bytes "));
        taken.unwrap().parse::<u64>().unwrap()
    };
    // A charge is compared with what was free before it.
    let most = ROOM / 2 + (1 << 20);
    assert!(taken() <= most, "{}", taken());
    println!(
        "1,000 ports: {} bytes charged, {} more in use",
        taken(),
        resident("self") - before
    );
    // When it changes, it is made again for those who were told of it, and for nobody else.
    apply_large_route(&index, "evil", "10.96.0.1", 15);
    for heard in &mut heard {
        let told = heard.borrow_and_update().0;
        let again = heard.wait_for(|(now, _)| *now > told);
        tokio::time::timeout(Duration::from_secs(120), again)
            .await
            .unwrap()
            .unwrap();
    }
    assert!(taken() <= most, "{}", taken());

    report("a large route on many ports", &server.svids(10).await);
    let channel = server.connect(Some(server.svid("shop", "orders"))).await;
    let mut session = Session::open(channel, hello("")).await.unwrap();
    let own: Vec<_> = (1000..1010).map(|port| format!("10.96.0.2:{port}")).collect();
    for address in &own {
        session.want(address).await;
    }
    session
        .until(|s| own.iter().all(|address| s.target(address).is_some()))
        .await;
    attack.shutdown().await;
    drop(session);
    server.stop().await;
}

/// The largest of the attacks' own charges.
const ONE_CHARGE: f64 = 64.0 * 1024.0;

/// All that a session of an attacker says.
fn said(kinds: impl IntoIterator<Item = from_sidecar::Kind>) -> impl Iterator<Item = FromSidecar> {
    kinds.into_iter().map(|kind| FromSidecar { kind: Some(kind) })
}

/// One SVID: 24 connections, each with sessions that want thousands of addresses that do not exist, and read all answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wants_of_one_pod_leave_the_memory_to_others() {
    let server = Arc::new(start().await);
    let wants = size().streams;
    let mut attack = JoinSet::new();
    for connection in 0..24_u32 {
        let channel = server.connect(Some(server.svid("evil", "default"))).await;
        for session in 0..4 {
            let mut client = DiscoveryClient::new(channel.clone());
            let first = 0x0b00_0000 + (4 * connection + session) * 100_000;
            let invented = (first..first + wants).map(|n| want(&format!("{}:80", Ipv4Addr::from(n))));
            let said: Vec<_> = said([hello("")].into_iter().chain(invented)).collect();
            attack.spawn(async move {
                // Few at a time: what a client that is gone has not sent yet keeps its stream open.
                let (sender, requests) = mpsc::channel(64);
                let Ok(messages) = client.session(ReceiverStream::new(requests)).await else {
                    return;
                };
                let mut messages = messages.into_inner();
                let say = async {
                    for said in said {
                        sender.send(said).await.ok();
                    }
                    std::future::pending::<()>().await;
                };
                let read = async { while messages.message().await.is_ok_and(|message| message.is_some()) {} };
                tokio::select! {
                    () = say => {}
                    () = read => {}
                }
            });
        }
    }
    let (charged, fifth) = ("outrigger_controller_charged_bytes", BUDGET as f64 / 5.0);
    server
        .until("the attack is at its bound", |s| s.number(charged) > 0.98 * fifth)
        .await;
    // A charge is compared with what was free before it.
    let most = fifth + ONE_CHARGE;
    assert!(server.number(charged) <= most, "{}", server.number(charged));
    server
        .until("what is beyond is refused", |s| {
            s.number("outrigger_controller_over_budget") > 0.0
        })
        .await;
    println!(
        "96 sessions of {wants} wants: {} are told, {} bytes charged",
        server.number("outrigger_controller_wants"),
        server.number(charged)
    );

    report("invented addresses", &server.svids(50).await);
    let channel = server.connect(Some(server.svid("shop", "orders"))).await;
    let mut session = Session::open(channel, hello("")).await.unwrap();
    session.want(TARGET).await;
    session.until(|s| s.target(TARGET) == Some(pod("10.0.0.1:80"))).await;
    attack.shutdown().await;
    // Who ends gives back; but with all its numbers, what it has said before is still to be read.
    drop(session);
    if wants < 16_000 {
        server.until("all is given back", |s| s.number(charged) == 0.0).await;
    }
    Arc::try_unwrap(server).ok().unwrap().stop().await;
}

/// A pod that has as much as it may is refused one address, and keeps the others; when it drops some, there is room again.
#[tokio::test]
async fn a_session_at_its_bound_goes_on_with_what_it_has() {
    let server = start().await;
    let channel = server.connect(Some(server.svid("shop", "orders"))).await;
    let mut session = Session::open(channel, hello("")).await.unwrap();
    session.want(TARGET).await;
    session.until(|s| s.target(TARGET).is_some()).await;
    let invented = |n: u32| format!("{}:80", Ipv4Addr::from(0x0b00_0000 + n));
    let refused = |s: &Session| s.log.iter().any(|m| m.starts_with("refused"));
    let mut wanted = 0;
    while !refused(&session) {
        session.want(&invented(wanted)).await;
        wanted += 1;
        session.next().await.unwrap();
    }
    server.targets.replace(TARGET.parse().unwrap(), pod("10.0.0.2:80"));
    session.until(|s| s.target(TARGET) == Some(pod("10.0.0.2:80"))).await;
    session.log.clear();
    for n in 0..10 {
        session.forget(&invented(n)).await;
    }
    session.want("10.96.0.9:80").await;
    session.until(|s| s.target("10.96.0.9:80").is_some()).await;
    assert!(!refused(&session));
    // Nothing is left of what was dropped, however often.
    let before = server.number("outrigger_controller_charged_bytes");
    for n in 0..2_000 {
        session.want(&invented(n)).await;
        session.forget(&invented(n)).await;
        session.next().await.unwrap();
    }
    session.want("10.96.0.10:80").await;
    session.until(|s| s.target("10.96.0.10:80").is_some()).await;
    assert!(server.number("outrigger_controller_charged_bytes") <= before + 8192.0);
    drop(session);
    server.stop().await;
}

/// Addresses give way to it, and come back when there is room. Else a pod that has as much as it may would go on trusting a root that
/// was taken away.
#[tokio::test]
async fn a_pod_at_its_bound_hears_whom_to_trust_all_the_same() {
    let targets = Arc::<FixedTargets>::default();
    // A pod has a fifth of it: room for its connection, its session and some addresses.
    let ca = Ca::generate("cluster.local").unwrap();
    let server = start_of(ca, 5 * 200 * 1024, targets.clone(), targets).await;
    let channel = server.connect(Some(server.svid("shop", "orders"))).await;
    let mut session = Session::open(channel, hello("")).await.unwrap();
    let refused = |s: &Session| s.log.iter().filter(|m| m.starts_with("refused")).count();
    let mut wanted = 0;
    while refused(&session) == 0 {
        session.want(&format!("11.0.0.{wanted}:80")).await;
        wanted += 1;
        session.next().await.unwrap();
    }
    session.log.clear();
    // 31 roots are some 12 KiB.
    let mut roots = server.ca.borrow().bundle_pem();
    for _ in 0..30 {
        roots += &Ca::generate("cluster.local").unwrap().bundle_pem();
    }
    let mut pem = server.ca.borrow().pem().clone();
    pem.roots = Some(roots);
    let ca = Ca::from_pem(pem, "cluster.local", std::time::SystemTime::now()).unwrap();
    server.ca.send_replace(Arc::new(ca));
    session.until(|s| s.roots.len() == 31).await;
    // What was refused in its place is told behind it, and the session goes on.
    session.until(|s| refused(s) > 2).await;
    // They were taken, so there is room again.
    session.want("11.0.1.1:80").await;
    session.until(|s| s.target("11.0.1.1:80").is_some()).await;
    drop(session);
    server.stop().await;
}

/// Else a pod that has as much as it may would go on with policies that are not in force any more. Where no address is left to give way,
/// nobody may call it until there is room.
#[tokio::test]
async fn a_pod_at_its_bound_hears_who_may_call_it_or_that_nobody_may() {
    let policy = |name: &str| outrigger_api::access::Policy {
        name: name.to_owned(),
        exclusive: true,
        rules: vec![outrigger_api::access::Rule {
            name: "x".repeat(20 << 10),
            ..Default::default()
        }],
        ..Default::default()
    };
    let access = |name: &str| outrigger_api::access::Access {
        enforced: vec![policy(name)],
        ..Default::default()
    };
    let targets = Arc::<FixedTargets>::default();
    // A pod has a fifth of it: room for its connections, its sessions and some addresses.
    let ca = Ca::generate("cluster.local").unwrap();
    let server = start_of(ca, 5 * 300 * 1024, targets.clone(), targets.clone()).await;
    let open = async |hello| {
        let channel = server.connect(Some(server.svid("shop", "orders"))).await;
        Session::open(channel, hello).await.unwrap()
    };
    let refused = |s: &Session| s.log.iter().filter(|m| m.starts_with("refused")).count();
    let mut without_addresses = open(hello_of_today("")).await;
    without_addresses.until(|s| s.log.iter().any(|m| m == "access ")).await;
    let mut with_addresses = open(hello("")).await;
    let mut wanted = 0;
    while refused(&with_addresses) == 0 {
        with_addresses.want(&format!("11.0.0.{wanted}:80")).await;
        wanted += 1;
        with_addresses.next().await.unwrap();
    }
    targets.set_access(access("shop/first"));
    without_addresses
        .until(|s| s.log.iter().any(|m| m == "access (no room)"))
        .await;
    drop(with_addresses);
    without_addresses
        .until(|s| s.log.iter().any(|m| m == "access shop/first"))
        .await;
    // Addresses give way to it.
    while refused(&without_addresses) == 0 {
        without_addresses.want(&format!("11.0.1.{wanted}:80")).await;
        wanted += 1;
        without_addresses.next().await.unwrap();
    }
    without_addresses.log.clear();
    targets.set_access(access("shop/second"));
    without_addresses.until(|s| refused(s) > 2).await;
    assert_eq!(without_addresses.log[0], "access shop/second");
    drop(without_addresses);
    server.stop().await;
}

/// Where a message has no room in what its pod may have, its address is refused alone: endpoints, endpoints that become more,
/// routes.
#[tokio::test]
async fn a_message_that_has_no_room_is_refused_alone() {
    let addresses = ["10.96.0.2:80", "10.96.0.3:80", "10.96.0.4:80", "10.96.0.5:80"];
    let [many, grows, routes, other] = addresses;
    let endpoints = |number: u32| -> Vec<String> {
        (0..number)
            .map(|n| format!("{}:80", Ipv4Addr::from(0x0a00_0000 + n)))
            .collect()
    };
    let large = |name: &str| {
        let mut target = service_of(&endpoints(1));
        if let Some(target::Kind::Service(service)) = &mut target.kind {
            let route = outrigger_api::discovery::Route {
                name: name.to_owned(),
                ..outrigger_api::discovery::Route::default()
            };
            service.routes = vec![route];
        }
        target
    };
    let targets = [
        (many, service_of(&endpoints(4000))),
        (grows, service_of(&endpoints(1))),
        (routes, large(&"x".repeat(200_000))),
        (other, service_of(&endpoints(2))),
    ];
    let targets = targets.map(|(address, target)| (address.parse().unwrap(), target));
    let targets = Arc::new(FixedTargets::new(targets));
    // A pod has a fifth of it: room for its connection, its session and small messages.
    let budget = 5 * 130 * 1024;
    let server = start_of(Ca::generate("cluster.local").unwrap(), budget, targets.clone(), targets).await;
    let channel = server.connect(Some(server.svid("shop", "orders"))).await;
    let mut session = Session::open(channel, hello("")).await.unwrap();
    for address in addresses {
        session.want(address).await;
    }
    let refused = |s: &Session, address: &str| s.log.contains(&format!("refused {address}"));
    session.until(|s| refused(s, many) && refused(s, routes)).await;
    session
        .until(|s| s.target(grows).is_some() && s.target(other).is_some())
        .await;
    assert!(session.target(many).is_none() && session.target(routes).is_none());

    server
        .targets
        .replace(grows.parse().unwrap(), service_of(&endpoints(4000)));
    session.until(|s| refused(s, grows)).await;
    server
        .targets
        .replace(other.parse().unwrap(), service_of(&endpoints(3)));
    session
        .until(|s| s.target(other) == Some(service_of(&endpoints(3))))
        .await;
    // Who asks again when it has become less is told.
    for address in [many, grows, routes] {
        server
            .targets
            .replace(address.parse().unwrap(), service_of(&endpoints(4)));
        session.want(address).await;
        session
            .until(|s| s.target(address) == Some(service_of(&endpoints(4))))
            .await;
    }
    drop(session);
    server.stop().await;
}

/// One connection whose windows are one byte: what it does not take is charged to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_nobody_takes_are_charged() {
    for (path, request) in [
        (WATCH_TARGET, watch(TARGET.to_owned())),
        (
            SESSION,
            said([hello(""), want(TARGET)])
                .flat_map(|said| message(&said))
                .collect(),
        ),
    ] {
        nobody_takes(path, request).await;
    }
}

async fn nobody_takes(path: &'static str, request: Vec<u8>) {
    let server = Arc::new(start().await);
    let large = Target {
        kind: Some(target::Kind::Pod(Pod {
            endpoint: Some(Endpoint {
                address: "x".repeat(200_000),
                ..Endpoint::default()
            }),
            ..Pod::default()
        })),
    };
    server.targets.replace(TARGET.parse().unwrap(), large);
    let stream = server.raw(Some(server.svid("evil", "default")), 1).await.unwrap();
    // SETTINGS_INITIAL_WINDOW_SIZE (4).
    let settings = [&[0, 4][..], &1_u32.to_be_bytes()].concat();
    let attack = tokio::spawn(async move {
        flood(stream, &settings, path, 1000, |_| request.clone()).await;
    });
    let (charged, fifth) = ("outrigger_controller_charged_bytes", BUDGET as f64 / 5.0);
    server
        .until("messages are charged", |s| s.number(charged) > 0.9 * fifth)
        .await;
    // A charge is compared with what was free before it.
    let most = fifth + ONE_CHARGE;
    assert!(server.number(charged) <= most, "{}", server.number(charged));
    attack.abort();
    server.until("all is given back", |s| s.number(charged) == 0.0).await;
    Arc::try_unwrap(server).ok().unwrap().stop().await;
}
