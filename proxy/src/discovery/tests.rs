//! Discovery against a controller in this process, over real connections.

#![allow(clippy::unwrap_used)]

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo};
use outrigger_api::access::{Access, Policy};
use outrigger_api::discovery as proto;
use outrigger_api::discovery::discovery_server::{Discovery as Service, DiscoveryServer};
use outrigger_api::discovery::{Target as Message, ToSidecar, backend, from_sidecar, target, to_sidecar};
use outrigger_proxy_transport::error::Reason;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::Service as _;
use tonic::{Request, Response, Status};

use super::{Discovery, TargetKey};
use super::{DiscoveryConfig, StaticTargets};
use crate::dns::Resolver;
use crate::identity::testing::TestCa;
use crate::identity::{Credentials, Identity};
use crate::model::Workload;
use crate::model::{Endpoints, Protocol, Target};

const SIDECAR: &str = "spiffe://cluster.local/ns/shop/sa/orders";
const CONTROLLER: &str = "spiffe://cluster.local/ns/outrigger/sa/outrigger-controller";
const LONG: Duration = Duration::from_secs(10);
const SHORT: Duration = Duration::from_millis(300);

/// A controller that answers what it is told to.
#[derive(Clone, Default)]
struct Scripted(Arc<Mutex<State>>);

type Session = mpsc::Sender<Result<ToSidecar, Status>>;

#[derive(Default)]
struct State {
    /// By address; an address that is not there gets no answer.
    targets: HashMap<String, Message>,
    streams: Vec<(String, mpsc::Sender<Result<Message, Status>>)>,
    asked: Vec<proto::WatchTargetRequest>,
    networks: Vec<String>,
    workload: Option<mpsc::Sender<Result<proto::Workload, Status>>>,
    /// It does not know sessions.
    is_old: bool,
    /// Who may call the pod. `None`: it does not know AccessPolicies.
    access: Option<Access>,
    /// It has not heard from the API server yet.
    is_silent: bool,
    hellos: Vec<proto::Hello>,
    /// The addresses that each wants.
    sessions: Vec<(Session, HashSet<String>)>,
    /// Of the last state of a set.
    version: u64,
    /// Addresses for which there is no room.
    refused: HashSet<String>,
}

impl State {
    fn workload(&self) -> proto::Workload {
        proto::Workload {
            opaque_ports: vec![3306],
            protocols: [(8080, proto::Protocol::Http2.into())].into(),
            cluster_networks: self.networks.clone(),
        }
    }

    /// Who may call comes first.
    fn of_the_pod(&self) -> Vec<to_sidecar::Kind> {
        let access = self.access.clone().map(to_sidecar::Kind::Access);
        access
            .into_iter()
            .chain([to_sidecar::Kind::Workload(self.workload())])
            .collect()
    }

    /// A target in its parts: its endpoints first.
    fn parts(&mut self, address: &str) -> Vec<to_sidecar::Kind> {
        let Some(mut target) = self.targets.get(address).cloned() else {
            return Vec::new();
        };
        let mut parts = Vec::new();
        if let Some(target::Kind::Service(service)) = &mut target.kind {
            for (n, backend) in service.backends.iter_mut().enumerate() {
                if let Some(backend::Kind::Endpoints(endpoints)) = backend.kind.take() {
                    self.version += 1;
                    let name = format!("{address}#{n}");
                    parts.push(to_sidecar::Kind::EndpointSet(proto::EndpointSet {
                        name: name.clone(),
                        version: self.version,
                        endpoints: endpoints.endpoints,
                        ..proto::EndpointSet::default()
                    }));
                    backend.kind = Some(backend::Kind::EndpointSet(name));
                }
            }
        }
        parts.push(to_sidecar::Kind::Routes(proto::Routes {
            address: address.to_owned(),
            target: Some(target),
        }));
        parts
    }

    /// Hears what a sidecar says in the last session.
    fn hear(&mut self, session: usize, kind: from_sidecar::Kind) {
        let (sender, wants) = &mut self.sessions[session];
        let sender = sender.clone();
        let parts = match kind {
            from_sidecar::Kind::Hello(hello) => {
                self.hellos.push(hello);
                match self.is_silent {
                    true => Vec::new(),
                    false => self.of_the_pod(),
                }
            }
            from_sidecar::Kind::Want(want) => {
                self.asked.push(proto::WatchTargetRequest {
                    address: want.address.clone(),
                    namespace: self.hellos.last().unwrap().namespace.clone(),
                    pod: self.hellos.last().unwrap().pod.clone(),
                });
                if self.refused.contains(&want.address) {
                    vec![to_sidecar::Kind::Refused(proto::Refused {
                        address: want.address,
                        reason: "there is no room".to_owned(),
                    })]
                } else {
                    wants.insert(want.address.clone());
                    self.parts(&want.address)
                }
            }
            from_sidecar::Kind::Drop(drop) => {
                wants.remove(&drop.address);
                Vec::new()
            }
            from_sidecar::Kind::UnknownKey(_) => Vec::new(),
        };
        for kind in parts {
            sender.try_send(Ok(ToSidecar { kind: Some(kind) })).ok();
        }
    }
}

impl Scripted {
    fn set(&self, address: &str, message: Message) {
        let mut state = self.0.lock();
        state.targets.insert(address.to_owned(), message.clone());
        for (_, stream) in state.streams.iter().filter(|(key, _)| key == address) {
            stream.try_send(Ok(message.clone())).ok();
        }
        let parts = state.parts(address);
        for (session, _) in state.sessions.iter().filter(|(_, wants)| wants.contains(address)) {
            for kind in parts.clone() {
                session.try_send(Ok(ToSidecar { kind: Some(kind) })).ok();
            }
        }
    }

    /// What sidecars are told of the cluster's networks from now on.
    fn set_networks(&self, networks: &[&str]) {
        let mut state = self.0.lock();
        state.networks = networks.iter().map(|&network| network.to_owned()).collect();
        let workload = state.workload();
        let kind = Some(to_sidecar::Kind::Workload(workload.clone()));
        for (session, _) in &state.sessions {
            session.try_send(Ok(ToSidecar { kind: kind.clone() })).ok();
        }
        if let Some(stream) = &state.workload {
            stream.try_send(Ok(workload)).ok();
        }
    }

    /// Who may call the pod from now on.
    fn set_access(&self, access: Option<Access>) {
        let mut state = self.0.lock();
        state.access = access.clone();
        let kind = access.map(to_sidecar::Kind::Access);
        for (session, _) in &state.sessions {
            session.try_send(Ok(ToSidecar { kind: kind.clone() })).ok();
        }
    }

    fn asked(&self) -> usize {
        self.0.lock().asked.len()
    }
}

#[tonic::async_trait]
impl Service for Scripted {
    type SessionStream = ReceiverStream<Result<ToSidecar, Status>>;
    type WatchTargetStream = ReceiverStream<Result<Message, Status>>;
    type WatchWorkloadStream = ReceiverStream<Result<proto::Workload, Status>>;

    async fn session(
        &self,
        request: Request<tonic::Streaming<proto::FromSidecar>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        if self.0.lock().is_old {
            return Err(Status::unimplemented("of the version before"));
        }
        let (sender, receiver) = mpsc::channel(30_000);
        let session = {
            let mut state = self.0.lock();
            state.sessions.push((sender, HashSet::new()));
            state.sessions.len() - 1
        };
        let (mut requests, service) = (request.into_inner(), self.clone());
        tokio::spawn(async move {
            while let Ok(Some(request)) = requests.message().await {
                service.0.lock().hear(session, request.kind.unwrap());
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn watch_target(
        &self,
        request: Request<proto::WatchTargetRequest>,
    ) -> Result<Response<Self::WatchTargetStream>, Status> {
        let request = request.into_inner();
        let (sender, receiver) = mpsc::channel(16);
        let mut state = self.0.lock();
        if let Some(message) = state.targets.get(&request.address) {
            sender.try_send(Ok(message.clone())).unwrap();
        }
        state.streams.push((request.address.clone(), sender));
        state.asked.push(request);
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn watch_workload(
        &self,
        request: Request<proto::WatchWorkloadRequest>,
    ) -> Result<Response<Self::WatchWorkloadStream>, Status> {
        let request = request.into_inner();
        assert_eq!((&*request.namespace, &*request.pod), ("shop", "orders-1"));
        let (sender, receiver) = mpsc::channel(16);
        sender.try_send(Ok(self.0.lock().workload())).unwrap();
        self.0.lock().workload = Some(sender);
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// Serves until it is aborted, and its connections with it.
fn serve(listener: TcpListener, service: Scripted, credentials: &Credentials) -> JoinHandle<()> {
    let acceptor = TlsAcceptor::from(credentials.control_server());
    tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let (acceptor, service) = (acceptor.clone(), DiscoveryServer::new(service.clone()));
            connections.spawn(async move {
                let Ok(tls) = acceptor.accept(tcp).await else { return };
                let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                    let mut service = service.clone();
                    async move { Ok::<_, Infallible>(service.call(request).await.unwrap()) }
                });
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .max_concurrent_streams(4096 + 256)
                    .serve_connection(TokioIo::new(tls), service)
                    .await
                    .ok();
            });
        }
    })
}

struct Bench {
    ca: TestCa,
    service: Scripted,
    address: SocketAddr,
    server: JoinHandle<()>,
    discovery: Discovery,
}

impl Bench {
    async fn new() -> Self {
        let ca = TestCa::new("root");
        let identity = Identity::fixed(ca.credentials(SIDECAR));
        Self::with(ca, identity, CONTROLLER).await
    }

    /// The controller is of the version before the session.
    async fn old() -> Self {
        let bench = Self::new().await;
        bench.service.0.lock().is_old = true;
        bench
    }

    async fn with(ca: TestCa, identity: Identity, controller: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = Scripted::default();
        let server = serve(listener, service.clone(), &ca.credentials(controller));
        let config = DiscoveryConfig::Controller {
            address: address.to_string().parse().unwrap(),
            id: CONTROLLER.parse().unwrap(),
        };
        let resolver = Resolver::start(Some(&[])).unwrap();
        let discovery = Discovery::start(&config, &workload(), identity, resolver);
        Self {
            ca,
            service,
            address,
            server,
            discovery,
        }
    }

    async fn lose_controller(&mut self) {
        self.server.abort();
        (&mut self.server).await.unwrap_err();
    }

    async fn controller_comes_back(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        let mut state = self.service.0.lock();
        state.streams.clear();
        // Their numbers stay.
        state.sessions.iter_mut().for_each(|(_, wants)| wants.clear());
        drop(state);
        self.server = serve(listener, self.service.clone(), &self.ca.credentials(CONTROLLER));
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn workload() -> Workload {
    Workload {
        name: "orders".into(),
        namespace: "shop".into(),
        pod: "orders-1".into(),
        service_account: "orders".into(),
        trust_domain: "cluster.local".into(),
        node: "".into(),
        pod_ips: Vec::new(),
    }
}

fn key(address: &str) -> TargetKey {
    TargetKey::Address(address.parse().unwrap())
}

fn message(endpoints: &[&str]) -> Message {
    let endpoints = endpoints.iter().map(|address| proto::Endpoint {
        address: (*address).to_owned(),
        ..Default::default()
    });
    let backend = proto::Backend {
        kind: Some(backend::Kind::Endpoints(proto::Endpoints {
            endpoints: endpoints.collect(),
        })),
        ..Default::default()
    };
    Message {
        kind: Some(target::Kind::Service(proto::Service {
            backends: vec![backend],
            ..Default::default()
        })),
    }
}

fn endpoints(target: &Target) -> Vec<String> {
    let Target::Service(service) = target else {
        return Vec::new();
    };
    match &service.backends[0].endpoints {
        Endpoints::Known(endpoints) => endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect(),
        Endpoints::Dns { .. } | Endpoints::NoSuchPort(_) => Vec::new(),
    }
}

#[tokio::test]
async fn the_state_and_then_its_changes() {
    follows(Bench::new().await).await;
}

#[tokio::test]
async fn an_older_controller_is_asked_by_a_stream_for_each_target() {
    follows(Bench::old().await).await;
}

async fn follows(bench: Bench) {
    bench.service.set("10.96.0.1:80", message(&["10.0.0.1:80"]));
    let mut target = bench.discovery.watch(key("10.96.0.1:80"), LONG).await.unwrap();
    assert_eq!(endpoints(&target.borrow_and_update()), ["10.0.0.1:80"]);
    bench
        .service
        .set("10.96.0.1:80", message(&["10.0.0.2:80", "10.0.0.3:80"]));
    timeout(LONG, target.changed()).await.unwrap().unwrap();
    assert_eq!(endpoints(&target.borrow_and_update()), ["10.0.0.2:80", "10.0.0.3:80"]);
    // A second watcher shares the stream; so does the address as IPv6 sockets see it.
    bench.discovery.watch(key("10.96.0.1:80"), SHORT).await.unwrap();
    let mapped = bench
        .discovery
        .watch(key("[::ffff:10.96.0.1]:80"), SHORT)
        .await
        .unwrap();
    assert_eq!(endpoints(&mapped.borrow()).len(), 2);
    assert_eq!(bench.service.asked(), 1);
    let snapshot = bench.discovery.snapshot();
    assert_eq!(
        snapshot["targets"]["10.96.0.1:80"]["target"]["backends"][0]["endpoints"][0]["address"],
        "10.0.0.2:80"
    );
    assert_eq!(bench.service.0.lock().asked[0].namespace, "shop");
    assert_eq!(bench.service.0.lock().asked[0].pod, "orders-1");
}

#[tokio::test]
async fn what_the_controller_knows_of_the_pod() {
    let bench = Bench::new().await;
    let mut workload = bench.discovery.workload();
    let info = timeout(LONG, workload.wait_for(|info| !info.opaque_ports.is_empty()))
        .await
        .unwrap()
        .unwrap()
        .clone();
    assert_eq!(info.opaque_ports, [3306]);
    assert_eq!(info.protocols[&8080], Protocol::Http2);
}

#[tokio::test]
async fn outside_the_cluster() {
    let bench = Bench::new().await;
    bench.service.set("192.0.2.1:443", Message { kind: None });
    let target = bench.discovery.watch(key("192.0.2.1:443"), LONG).await.unwrap();
    assert!(matches!(**target.borrow(), Target::External));
}

#[tokio::test]
async fn no_answer_in_time_is_an_error_and_the_next_asker_profits() {
    let bench = Bench::new().await;
    let error = bench.discovery.watch(key("10.96.0.9:80"), SHORT).await.unwrap_err();
    assert_eq!(error.reason, Reason::DiscoveryUnavailable);
    assert!(
        error.detail.contains("10.96.0.9:80") && error.detail.contains("within 300ms"),
        "{error}"
    );
    bench.service.set("10.96.0.9:80", message(&[]));
    assert!(bench.discovery.watch(key("10.96.0.9:80"), LONG).await.is_ok());
    assert_eq!(bench.service.asked(), 1);
}

#[tokio::test]
async fn a_lost_controller_changes_nothing_and_is_found_again() {
    loses_the_controller(Bench::new().await).await;
}

#[tokio::test]
async fn a_lost_older_controller_changes_nothing_and_is_found_again() {
    loses_the_controller(Bench::old().await).await;
}

async fn loses_the_controller(mut bench: Bench) {
    bench.service.set("10.96.0.1:80", message(&["10.0.0.1:80"]));
    let mut target = bench.discovery.watch(key("10.96.0.1:80"), LONG).await.unwrap();
    bench.lose_controller().await;
    // A new target has no answer; the known one has, for new watchers too.
    let error = bench.discovery.watch(key("10.96.0.2:80"), SHORT).await.unwrap_err();
    assert!(error.detail.contains(&bench.address.to_string()), "{error}");
    let again = bench.discovery.watch(key("10.96.0.1:80"), SHORT).await.unwrap();
    assert_eq!(endpoints(&again.borrow()), ["10.0.0.1:80"]);
    assert_eq!(endpoints(&target.borrow_and_update()), ["10.0.0.1:80"]);
    bench.service.set("10.96.0.1:80", message(&["10.0.0.2:80"]));
    bench.controller_comes_back().await;
    timeout(LONG, target.changed()).await.unwrap().unwrap();
    assert_eq!(endpoints(&target.borrow()), ["10.0.0.2:80"]);
    assert_eq!(bench.discovery.snapshot()["problem"], serde_json::Value::Null);
}

/// An upgrade of the controller, and its way back: what was known stays, and each is asked in its own way.
#[tokio::test]
async fn from_an_older_controller_to_a_newer_one_and_back() {
    let mut bench = Bench::old().await;
    bench.service.set("10.96.0.1:80", message(&["10.0.0.1:80"]));
    let mut target = bench.discovery.watch(key("10.96.0.1:80"), LONG).await.unwrap();
    for (n, is_old) in [(2, false), (3, true), (4, false)] {
        bench.lose_controller().await;
        let endpoint = format!("10.0.0.{n}:80");
        bench.service.set("10.96.0.1:80", message(&[&endpoint]));
        bench.service.0.lock().is_old = is_old;
        bench.controller_comes_back().await;
        let told = target.wait_for(|target| endpoints(target) == [&*endpoint]);
        timeout(LONG, told).await.unwrap().unwrap();
    }
    let state = bench.service.0.lock();
    assert_eq!(state.hellos.len(), 2);
    // All that there are in this version: one that is left out would be missed by every policy that needs it.
    let features: Vec<_> = (1..1000)
        .filter(|&number| proto::Feature::try_from(number).is_ok())
        .collect();
    assert!(features.len() > 10);
    let mut said = state.hellos[0].features.clone();
    said.sort_unstable();
    assert_eq!(said, features);
}

/// How much the pod takes.
#[tokio::test]
async fn limits_are_those_that_were_said_last() {
    let bench = Bench::new().await;
    bench.service.set("10.96.0.1:80", message(&[]));
    bench.discovery.watch(key("10.96.0.1:80"), LONG).await.unwrap();
    let limits = bench.discovery.limits();
    assert!(limits.is_empty());
    let rate = outrigger_api::limits::Rate {
        requests: 1,
        interval_ms: 1000,
        burst: 1,
    };
    let policy = outrigger_api::limits::Policy {
        name: "shop/p".to_owned(),
        limits: vec![outrigger_api::limits::Limit {
            rate: Some(rate),
            ..outrigger_api::limits::Limit::default()
        }],
        ..outrigger_api::limits::Policy::default()
    };
    for (n, policies) in [(2, vec![policy]), (3, Vec::new())] {
        let (some, none) = (!policies.is_empty(), policies.is_empty());
        let kind = Some(to_sidecar::Kind::Limits(outrigger_api::limits::Limits { policies }));
        let sent = bench.service.0.lock().sessions[0].0.try_send(Ok(ToSidecar { kind }));
        sent.unwrap();
        // Messages come in their order, so the one of the other target is the last.
        let address = format!("10.96.0.{n}:80");
        bench.service.set(&address, message(&[]));
        bench.discovery.watch(key(&address), LONG).await.unwrap();
        assert_eq!((limits.has_policy("shop/p"), limits.is_empty()), (some, none));
    }
}

/// What is told again, is not compiled again, and nobody who watches it hears of it.
#[tokio::test]
async fn a_new_session_makes_nothing_anew_that_has_not_changed() {
    let mut bench = Bench::new().await;
    bench.service.set("10.96.0.1:80", message(&["10.0.0.1:80"]));
    let target = bench.discovery.watch(key("10.96.0.1:80"), LONG).await.unwrap();
    let before = Arc::clone(&target.borrow());
    bench.lose_controller().await;
    bench.controller_comes_back().await;
    // Messages come in their order, so the one of the other target is the last.
    bench.service.set("10.96.0.2:80", message(&[]));
    bench.discovery.watch(key("10.96.0.2:80"), LONG).await.unwrap();
    assert_eq!(bench.service.asked(), 3);
    assert!(Arc::ptr_eq(&target.borrow(), &before));
}

/// A change on top of a state that is not there is never guessed at: a new session tells all.
#[tokio::test]
async fn a_gap_begins_a_new_session() {
    let bench = Bench::new().await;
    bench.service.set("10.96.0.1:80", message(&["10.0.0.1:80"]));
    let mut target = bench.discovery.watch(key("10.96.0.1:80"), LONG).await.unwrap();
    target.mark_unchanged();
    {
        let mut state = bench.service.0.lock();
        state
            .targets
            .insert("10.96.0.1:80".to_owned(), message(&["10.0.0.2:80"]));
        let change = to_sidecar::Kind::EndpointSet(proto::EndpointSet {
            name: "10.96.0.1:80#0".to_owned(),
            version: 1001,
            since: 1000,
            removed: vec!["10.0.0.1:80".to_owned()],
            ..proto::EndpointSet::default()
        });
        let kind = Some(change);
        state.sessions[0].0.try_send(Ok(ToSidecar { kind })).unwrap();
    }
    let told = target.wait_for(|target| endpoints(target) == ["10.0.0.2:80"]);
    timeout(LONG, told).await.unwrap().unwrap();
    assert_eq!(bench.service.0.lock().hellos.len(), 2);
}

/// A controller that has no room for an address is asked again, and its reason is said.
#[tokio::test]
async fn what_is_refused_is_asked_for_again() {
    let bench = Bench::new().await;
    let address = "10.96.0.1:80";
    bench.service.set(address, message(&["10.0.0.1:80"]));
    bench.service.0.lock().refused.insert(address.to_owned());
    let error = bench.discovery.watch(key(address), SHORT).await.unwrap_err();
    assert!(error.detail.contains("there is no room"), "{error}");
    // The others are told.
    bench.service.set("10.96.0.2:80", message(&[]));
    bench.discovery.watch(key("10.96.0.2:80"), LONG).await.unwrap();
    bench.service.0.lock().refused.clear();
    bench.discovery.watch(key(address), LONG).await.unwrap();
    assert_eq!(bench.discovery.snapshot()["problem"], serde_json::Value::Null);
}

/// What nobody uses any more is dropped, and told again when it is used again.
#[tokio::test]
async fn what_is_not_used_is_dropped() {
    let bench = Bench::new().await;
    let address = "10.96.0.1:80";
    bench.service.set(address, message(&["10.0.0.1:80"]));
    bench.discovery.watch(key(address), LONG).await.map(drop).unwrap();
    let wanted = || bench.service.0.lock().sessions.last().unwrap().1.contains(address);
    assert!(wanted());
    let dropped = async {
        while wanted() {
            // The runtime's time goes on by itself while bytes are on their way.
            tokio::time::pause();
            tokio::time::advance(super::controller::KEEP).await;
            tokio::time::resume();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(1000 * super::controller::KEEP, dropped).await.unwrap();
    let again = bench.discovery.watch(key(address), LONG).await.unwrap();
    assert_eq!(endpoints(&again.borrow()), ["10.0.0.1:80"]);
    assert!(wanted());
}

#[tokio::test]
async fn somebody_else_is_not_the_controller() {
    let ca = TestCa::new("root");
    let identity = Identity::fixed(ca.credentials(SIDECAR));
    let bench = Bench::with(ca, identity, SIDECAR).await;
    bench.service.set("10.96.0.1:80", message(&["10.0.0.1:80"]));
    let error = bench
        .discovery
        .watch(key("10.96.0.1:80"), Duration::from_secs(1))
        .await
        .unwrap_err();
    assert!(error.detail.contains(&format!("expected {CONTROLLER}")), "{error}");
    assert_eq!(bench.service.asked(), 0);
}

#[tokio::test]
async fn a_new_svid_moves_the_streams_and_loses_nothing() {
    let ca = TestCa::new("root");
    let (identity, credentials) = Identity::changing(ca.credentials(SIDECAR));
    let bench = Bench::with(ca, identity, CONTROLLER).await;
    bench.service.set("10.96.0.1:80", message(&["10.0.0.1:80"]));
    let mut target = bench.discovery.watch(key("10.96.0.1:80"), LONG).await.unwrap();
    target.mark_unchanged();
    credentials.send_replace(Some(Arc::new(bench.ca.credentials_of(&bench.ca.svid(SIDECAR), 2))));
    timeout(LONG, target.changed()).await.unwrap().unwrap();
    assert_eq!(endpoints(&target.borrow()), ["10.0.0.1:80"]);
    assert_eq!(bench.service.asked(), 2);
}

#[tokio::test]
async fn without_an_svid_the_error_says_so() {
    let ca = TestCa::new("root");
    let (identity, credentials) = Identity::changing(ca.credentials(SIDECAR));
    credentials.send_replace(None);
    let bench = Bench::with(ca, identity, CONTROLLER).await;
    let error = bench.discovery.watch(key("10.96.0.1:80"), SHORT).await.unwrap_err();
    assert!(error.detail.contains("no SVID"), "{error}");
}

#[tokio::test]
async fn standalone() {
    let targets = StaticTargets {
        services: [("orders".into(), Arc::new(Target::External))].into(),
        ..StaticTargets::default()
    };
    let config = DiscoveryConfig::Standalone(targets);
    let identity = Identity::fixed(TestCa::new("root").credentials(SIDECAR));
    let discovery = Discovery::start(&config, &workload(), identity, Resolver::start(Some(&[])).unwrap());
    assert!(discovery.watch(TargetKey::Named("orders".into()), SHORT).await.is_ok());
    assert!(discovery.watch(key("10.0.0.1:80"), SHORT).await.is_ok());
    let error = discovery
        .watch(TargetKey::Named("web".into()), SHORT)
        .await
        .unwrap_err();
    assert!(error.detail.contains("\"web\""), "{error}");
    assert_eq!(discovery.snapshot()["targets"]["orders"], "external");
    assert!(
        discovery.access().borrow().is_some(),
        "who may call is known from the beginning"
    );
}

/// Waits until the controller's word on the cluster's networks has arrived.
async fn networks(discovery: &Discovery, count: usize) {
    let mut workload = discovery.workload();
    let told = workload.wait_for(|info| !info.opaque_ports.is_empty() && info.cluster_networks.len() == count);
    timeout(LONG, told).await.unwrap().unwrap();
}

#[tokio::test]
async fn nobody_is_asked_about_addresses_outside_of_the_clusters_networks() {
    let mut bench = Bench::new().await;
    let outside = |address| bench.discovery.is_outside(&key(address));
    // Before the controller's word nothing is known.
    assert!(!outside("203.0.113.7:443"));
    networks(&bench.discovery, 0).await;
    assert!(
        !outside("203.0.113.7:443"),
        "as with a controller that knows no networks"
    );
    bench.service.set_networks(&["10.0.0.0/8", "fd00:10::/32"]);
    networks(&bench.discovery, 2).await;
    for (address, is_outside) in [
        ("203.0.113.7:443", true),
        ("[2001:db8::7]:443", true),
        // Link-local.
        ("169.254.169.254:80", true),
        ("[fe80::1]:80", true),
        // The list is what counts, and not what is usual.
        ("192.168.0.1:80", true),
        ("[fd00:11::1]:80", true),
        ("10.96.0.1:80", false),
        ("[fd00:10::1]:80", false),
        // As a dual-stack socket has them.
        ("[::ffff:10.96.0.1]:80", false),
        ("[::ffff:203.0.113.7]:443", true),
    ] {
        assert_eq!(outside(address), is_outside, "{address}");
    }
    assert!(!bench.discovery.is_outside(&TargetKey::Named("orders".into())));
    // The list turned out to be wrong.
    bench.service.set_networks(&[]);
    networks(&bench.discovery, 0).await;
    assert!(!outside("203.0.113.7:443"));
    // What cannot be read is not taken for outside.
    bench.service.set_networks(&["10.0.0.0/8"]);
    networks(&bench.discovery, 1).await;
    bench.service.set_networks(&["10.0.0.0/8", "a network of the future"]);
    networks(&bench.discovery, 0).await;
    // The last word counts while the controller is away.
    bench.service.set_networks(&["10.0.0.0/8"]);
    networks(&bench.discovery, 1).await;
    bench.lose_controller().await;
    assert!(bench.discovery.is_outside(&key("203.0.113.7:443")));
    assert_eq!(bench.service.asked(), 0);
}

/// An app that tries every address of a network.
#[tokio::test]
async fn a_scan_of_ten_thousand_addresses_refuses_nobody() {
    let bench = Bench::new().await;
    let [service, other] = ["10.96.0.1:80", "10.96.0.2:80"];
    for service in [service, other] {
        bench.service.set(service, message(&["10.0.0.1:80"]));
    }
    let in_use = bench.discovery.watch(key(service), LONG).await.unwrap();
    let not_in_use = bench.discovery.watch(key(other), LONG).await.map(drop);
    not_in_use.unwrap();
    let scanned: Vec<String> = (0..10_000)
        .map(|n| format!("10.244.{}.{}:80", n / 256, n % 256))
        .collect();
    for address in &scanned {
        bench
            .service
            .0
            .lock()
            .targets
            .insert(address.clone(), Message { kind: None });
    }
    let patience = Duration::from_secs(120); // the test is not about how fast this is
    // As a connection does, that goes on without what it has learnt.
    let all = scanned.iter().map(async |address| {
        let found = bench.discovery.watch(key(address), patience).await.unwrap();
        assert!(matches!(**found.borrow(), Target::External));
    });
    futures_util::future::join_all(all).await;
    // What was known is still known, without asking for it again; and something new has room.
    for service in [service, other] {
        let known = bench.discovery.watch(key(service), LONG).await.unwrap();
        assert_eq!(endpoints(&known.borrow()), ["10.0.0.1:80"]);
    }
    assert_eq!(bench.service.asked(), 2 + scanned.len());
    bench.service.set("10.96.0.3:80", message(&["10.0.0.3:80"]));
    let new = bench.discovery.watch(key("10.96.0.3:80"), LONG).await.unwrap();
    assert_eq!(endpoints(&new.borrow()), ["10.0.0.3:80"]);
    let known = bench.discovery.snapshot()["targets"].as_object().unwrap().len();
    assert!(known <= 4096, "{known} targets are kept");
    drop(in_use);
}

/// And one whose controller is away: nothing comes of it, and what is known is not forgotten for it.
#[tokio::test]
async fn a_scan_without_a_controller_forgets_nothing() {
    let mut bench = Bench::new().await;
    bench.service.set("10.96.0.1:80", message(&["10.0.0.1:80"]));
    bench
        .discovery
        .watch(key("10.96.0.1:80"), LONG)
        .await
        .map(drop)
        .unwrap();
    bench.lose_controller().await;
    // More than there is room for, and never more at a time than are asked for.
    for network in 0..20 {
        let scanned = (0..=255).map(|n| key(&format!("10.244.{network}.{n}:80")));
        let all = scanned.map(|address| bench.discovery.watch(address, SHORT / 3));
        for found in futures_util::future::join_all(all).await {
            assert_eq!(found.unwrap_err().reason, Reason::DiscoveryUnavailable);
        }
    }
    let kept = bench.discovery.snapshot()["targets"].as_object().unwrap().len();
    assert!(
        (3_000..=4096).contains(&kept),
        "{kept}: the test is about a table that is full"
    );
    let known = bench.discovery.watch(key("10.96.0.1:80"), SHORT).await.unwrap();
    assert_eq!(endpoints(&known.borrow()), ["10.0.0.1:80"]);
}

/// A policy that lets nobody in at this port.
fn closing(port: u32) -> Access {
    Access {
        enforced: vec![Policy {
            name: format!("shop/closes-{port}"),
            exclusive: true,
            ports: Some(outrigger_api::access::Ports { numbers: vec![port] }),
            ..Policy::default()
        }],
        audited: Vec::new(),
    }
}

/// Which of the ports are closed; `None` while nothing is known.
fn closed(discovery: &Discovery) -> Option<Vec<u16>> {
    let access = discovery.access();
    let access = access.borrow();
    let access = access.as_ref()?;
    Some([80, 81, 82].into_iter().filter(|&port| access.selects(port)).collect())
}

/// Waits until what is known of who may call is this.
async fn hears(discovery: &Discovery, ports: &[u16]) {
    let mut access = discovery.access();
    let hearing = async {
        while closed(discovery).as_deref() != Some(ports) {
            access.changed().await.unwrap();
        }
    };
    let in_time = timeout(LONG, hearing).await;
    assert!(in_time.is_ok(), "{:?} and not {ports:?}", closed(discovery));
}

#[tokio::test]
async fn who_may_call_is_not_known_before_the_controllers_word() {
    let bench = Bench::new().await;
    bench.service.0.lock().is_silent = true;
    // A target is told: the session goes on.
    bench.service.set("10.96.0.1:80", message(&[]));
    bench.discovery.watch(key("10.96.0.1:80"), LONG).await.unwrap();
    assert_eq!(closed(&bench.discovery), None);
    assert_eq!(bench.discovery.snapshot()["access"], serde_json::Value::Null);
    bench.service.set_access(Some(closing(80)));
    hears(&bench.discovery, &[80]).await;
    bench.service.set_access(Some(closing(81)));
    hears(&bench.discovery, &[81]).await;
    bench.service.set_access(Some(Access::default()));
    hears(&bench.discovery, &[]).await;
}

/// The last word holds while nobody is there, and a new session changes it only by another word.
#[tokio::test]
async fn who_may_call_stays_known_without_the_controller() {
    let mut bench = Bench::new().await;
    bench.service.set_access(Some(closing(80)));
    hears(&bench.discovery, &[80]).await;
    let mut access = bench.discovery.access();
    access.mark_unchanged();
    let before = access.borrow().clone().unwrap();
    bench.lose_controller().await;
    assert_eq!(closed(&bench.discovery), Some(vec![80]));
    bench.controller_comes_back().await;
    // Messages come in their order, so this one is behind who may call.
    bench.service.set("10.96.0.2:80", message(&[]));
    bench.discovery.watch(key("10.96.0.2:80"), LONG).await.unwrap();
    assert_eq!(bench.service.0.lock().hellos.len(), 2);
    assert!(
        !access.has_changed().unwrap(),
        "who is asked again at each change is not asked for nothing"
    );
    assert!(Arc::ptr_eq(access.borrow().as_ref().unwrap(), &before));
    bench.lose_controller().await;
    bench.service.set_access(Some(closing(82)));
    bench.controller_comes_back().await;
    hears(&bench.discovery, &[82]).await;
}

/// One with a session and no policies, and one before the session: everybody may call, as before.
#[tokio::test]
async fn an_older_controller_says_nothing_of_who_may_call() {
    for bench in [Bench::new().await, Bench::old().await] {
        hears(&bench.discovery, &[]).await;
    }
}

/// In an upgrade, and on its way back, controllers of both versions answer. The older ones open nothing.
#[tokio::test]
async fn a_session_with_an_older_controller_leaves_policies_in_force() {
    let mut bench = Bench::new().await;
    bench.service.set_access(Some(closing(80)));
    hears(&bench.discovery, &[80]).await;
    for is_old in [false, true] {
        bench.lose_controller().await;
        {
            let mut state = bench.service.0.lock();
            (state.is_old, state.access) = (is_old, None);
        }
        bench.service.set_networks(match is_old {
            false => &["10.0.0.0/8"],
            true => &["10.0.0.0/8", "fd00::/8"],
        });
        bench.controller_comes_back().await;
        networks(&bench.discovery, if is_old { 2 } else { 1 }).await;
        assert_eq!(closed(&bench.discovery), Some(vec![80]));
    }
    bench.lose_controller().await;
    bench.service.0.lock().is_old = false;
    bench.service.set_access(Some(Access::default()));
    bench.controller_comes_back().await;
    hears(&bench.discovery, &[]).await;
}
