//! Sessions over real connections, and a client that holds the controller to its promises.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::SystemTime;

use kube::core::DynamicObject;
use outrigger_api::discovery::{
    self as proto, Drop, EndpointSet, Feature, FromSidecar, Hello, ToSidecar, Want, from_sidecar, to_sidecar,
};
use outrigger_controller::discovery::Caller;
use outrigger_controller::objects::route::{Route, RouteKind};
use outrigger_controller::objects::{Object, ObjectName};
use prost::Message;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::*;

pub(crate) fn hello(pod: &str) -> from_sidecar::Kind {
    from_sidecar::Kind::Hello(Hello {
        namespace: String::new(),
        pod: pod.to_owned(),
        features: vec![Feature::EndpointChanges.into()],
    })
}

/// Of a sidecar that understands who may call it.
pub(crate) fn hello_of_today(pod: &str) -> from_sidecar::Kind {
    from_sidecar::Kind::Hello(Hello {
        namespace: String::new(),
        pod: pod.to_owned(),
        features: vec![Feature::EndpointChanges.into(), Feature::Access.into()],
    })
}

pub(crate) fn want(address: &str) -> from_sidecar::Kind {
    from_sidecar::Kind::Want(Want {
        address: address.to_owned(),
    })
}

fn drop_of(address: &str) -> from_sidecar::Kind {
    from_sidecar::Kind::Drop(Drop {
        address: address.to_owned(),
    })
}

/// A sidecar's end of a session: what it has been told.
pub(crate) struct Session {
    requests: mpsc::Sender<FromSidecar>,
    messages: Streaming<ToSidecar>,
    pub(crate) workload: Option<proto::Workload>,
    /// Whom to trust, DER.
    pub(crate) roots: Vec<Vec<u8>>,
    /// The version of one that is gone is 0.
    sets: HashMap<String, (u64, BTreeMap<SocketAddr, Endpoint>)>,
    wants: BTreeSet<String>,
    routes: HashMap<String, Target>,
    /// Messages of each kind, in the order in which they came.
    pub(crate) log: Vec<String>,
}

impl Session {
    pub(crate) async fn open(channel: Channel, first: from_sidecar::Kind) -> Result<Self, Status> {
        let (requests, receiver) = mpsc::channel(64);
        requests.try_send(FromSidecar { kind: Some(first) }).unwrap();
        let messages = DiscoveryClient::new(channel)
            .session(ReceiverStream::new(receiver))
            .await?;
        Ok(Self {
            requests,
            messages: messages.into_inner(),
            workload: None,
            roots: Vec::new(),
            sets: HashMap::new(),
            wants: BTreeSet::new(),
            routes: HashMap::new(),
            log: Vec::new(),
        })
    }

    pub(crate) async fn want(&mut self, address: &str) {
        self.wants.insert(address.to_owned());
        self.say(want(address)).await;
    }

    pub(crate) async fn say(&self, kind: from_sidecar::Kind) {
        // The session may have ended.
        self.requests.send(FromSidecar { kind: Some(kind) }).await.ok();
    }

    /// Takes the next message, and sees that it keeps the promises of discovery.proto.
    pub(crate) async fn next(&mut self) -> Result<(), Status> {
        let next = tokio::time::timeout(Duration::from_secs(60), self.messages.message());
        let message = next.await.expect("a message")?.ok_or_else(|| Status::ok("the end"))?;
        match message.kind.unwrap() {
            to_sidecar::Kind::Workload(workload) => {
                self.log.push("workload".to_owned());
                self.workload = Some(workload);
            }
            to_sidecar::Kind::Trust(trust) => self.roots = trust.roots,
            to_sidecar::Kind::Access(access) => {
                let names = access.enforced.iter().map(|policy| policy.name.as_str());
                self.log
                    .push(format!("access {}", names.collect::<Vec<_>>().join(", ")));
            }
            to_sidecar::Kind::Limits(limits) => {
                let names = limits.policies.iter().map(|policy| policy.name.as_str());
                self.log
                    .push(format!("limits {}", names.collect::<Vec<_>>().join(", ")));
            }
            to_sidecar::Kind::EndpointSet(set) => self.take(set),
            to_sidecar::Kind::Routes(routes) => {
                let target = routes.target.unwrap();
                for name in named(&target) {
                    assert!(self.sets[&name].0 > 0, "{name} is named before it is told");
                }
                self.log.push(format!("routes {}", routes.address));
                if self.wants.contains(&routes.address) {
                    self.routes.insert(routes.address, target);
                }
            }
            to_sidecar::Kind::Gone(name) => {
                // Routes may name it that were on their way when their address was dropped and wanted again.
                let version = std::mem::take(&mut self.sets.get_mut(&name).unwrap().0);
                assert_ne!(version, 0, "{name} was there");
                self.log.push(format!("gone {name}"));
            }
            to_sidecar::Kind::Refused(refused) => {
                self.log.push(format!("refused {}", refused.address));
            }
        }
        Ok(())
    }

    fn take(&mut self, set: EndpointSet) {
        let kind = if set.since == 0 { "all" } else { "change" };
        self.log.push(format!("{kind} {}", set.name));
        let (version, endpoints) = self.sets.entry(set.name).or_default();
        if set.since == 0 {
            endpoints.clear();
        } else {
            assert_eq!(set.since, *version);
        }
        assert_ne!(set.version, *version, "it is told for nothing");
        *version = set.version;
        for address in set.removed {
            assert!(endpoints.remove(&address.parse().unwrap()).is_some());
        }
        let new = set.endpoints.into_iter().map(|e| (e.address.parse().unwrap(), e));
        endpoints.extend(new);
    }

    pub(crate) async fn until(&mut self, mut done: impl FnMut(&Self) -> bool) {
        while !done(self) {
            self.next().await.unwrap();
        }
    }

    /// What it believes of an address.
    pub(crate) fn target(&self, address: &str) -> Option<Target> {
        let mut target = self.routes.get(address)?.clone();
        if let Some(target::Kind::Service(service)) = &mut target.kind {
            for backend in &mut service.backends {
                if let Some(backend::Kind::EndpointSet(name)) = &backend.kind {
                    let endpoints = self.sets[name].1.values().cloned().collect();
                    backend.kind = Some(backend::Kind::Endpoints(proto::Endpoints { endpoints }));
                }
            }
        }
        Some(target)
    }

    pub(crate) async fn forget(&mut self, address: &str) {
        self.say(drop_of(address)).await;
        self.wants.remove(address);
        self.routes.remove(address);
    }
}

fn named(target: &Target) -> Vec<String> {
    let Some(target::Kind::Service(service)) = &target.kind else {
        return Vec::new();
    };
    let named = service.backends.iter().filter_map(|backend| match &backend.kind {
        Some(backend::Kind::EndpointSet(name)) => Some(name.clone()),
        _ => None,
    });
    named.collect()
}

/// A Service of one backend, as the version before the session is told of it.
pub(crate) fn service<A: AsRef<str>>(endpoints: &[A]) -> Target {
    let endpoints = endpoints.iter().map(|address| Endpoint {
        address: address.as_ref().to_owned(),
        identity: "spiffe://cluster.local/ns/shop/sa/orders".to_owned(),
        ..Endpoint::default()
    });
    let backend = proto::Backend {
        kind: Some(backend::Kind::Endpoints(proto::Endpoints {
            endpoints: endpoints.collect(),
        })),
        ..proto::Backend::default()
    };
    Target {
        kind: Some(target::Kind::Service(proto::Service {
            backends: vec![backend],
            ..proto::Service::default()
        })),
    }
}

/// A sidecar that hears of itself first takes it for the word of a controller that knows no policies, and lets everybody in.
#[tokio::test]
async fn who_may_call_is_told_before_all_else_and_again_when_it_changes() {
    let targets = Arc::new(FixedTargets::new([]));
    let access = |names: &[&str]| outrigger_api::access::Access {
        enforced: names
            .iter()
            .map(|name| outrigger_api::access::Policy {
                name: (*name).to_owned(),
                ..Default::default()
            })
            .collect(),
        audited: Vec::new(),
    };
    targets.set_access(access(&["shop/first"]));
    let server = start_with(targets.clone(), targets.clone()).await;
    let channel = server.connect(Some(server.svid("shop", "orders"))).await;
    let mut session = Session::open(channel.clone(), hello_of_today("orders-1"))
        .await
        .unwrap();
    session.until(|s| s.log.len() == 2).await;
    assert_eq!(session.log, ["access shop/first", "workload"]);
    assert!(!session.roots.is_empty(), "whom to trust comes before both");
    targets.set_access(access(&["shop/first", "shop/second"]));
    session.until(|s| s.log.len() == 3).await;
    targets.set_access(access(&[]));
    session.until(|s| s.log.len() == 4).await;
    assert_eq!(session.log[2..], ["access shop/first, shop/second", "access "]);

    // One that does not understand it is not told, and the rest is as before.
    let mut older = Session::open(channel, hello("orders-2")).await.unwrap();
    older.until(|s| s.log.len() == 1).await;
    targets.set_access(access(&["shop/third"]));
    older.want("10.96.0.1:80").await;
    older.until(|s| s.log.len() == 2).await;
    assert_eq!(older.log, ["workload", "routes 10.96.0.1:80"]);
}

/// A tenant's routes must not take the other targets from whoever calls him.
#[tokio::test]
async fn routes_that_no_message_holds_are_refused_and_the_others_told() {
    let routes = |number: usize| {
        let mut target = service(&["10.0.0.1:80"]);
        if let Some(target::Kind::Service(service)) = &mut target.kind {
            let route = proto::Route {
                name: "x".repeat(1024),
                ..proto::Route::default()
            };
            service.routes = vec![route; number];
        }
        target
    };
    let (large, other) = ("10.96.0.2:80", "10.96.0.3:80");
    let targets = [(large, routes(5000)), (other, service(&["10.0.0.2:80"]))];
    let targets = targets.map(|(address, target)| (address.parse().unwrap(), target));
    let targets = Arc::new(FixedTargets::new(targets));
    let server = start_with(targets.clone(), targets).await;
    let channel = server.connect(Some(server.svid("shop", "orders"))).await;
    let mut session = Session::open(channel, hello("orders-1")).await.unwrap();
    session.want(large).await;
    session.want(other).await;
    session.until(|s| s.routes.len() == 1).await;
    assert!(session.log.contains(&format!("refused {large}")), "{:?}", session.log);
    // When they have become less, they are told to who asks again; and where they grow, the address is refused from then on.
    server.targets.replace(large.parse().unwrap(), routes(1));
    session.want(large).await;
    session.until(|s| s.routes.len() == 2).await;
    session.log.clear();
    server.targets.replace(large.parse().unwrap(), routes(5000));
    session.until(|s| s.log.contains(&format!("refused {large}"))).await;
    assert_eq!(session.target(other), Some(service(&["10.0.0.2:80"])));
}

#[tokio::test]
async fn a_session_tells_what_is_wanted_and_then_what_changes() {
    let server = start().await;
    let address = TARGET.parse().unwrap();
    server
        .targets
        .replace(address, service(&["10.0.0.1:80", "10.0.0.2:80"]));
    let channel = server.connect(Some(server.svid("shop", "orders"))).await;
    let mut session = Session::open(channel, hello("orders-1")).await.unwrap();
    session.want(TARGET).await;
    session.want("192.0.2.1:443").await;
    session.until(|s| s.routes.len() == 2).await;
    let set = format!("fixed/{TARGET}:0/v4");
    let routes = format!("routes {TARGET}");
    assert_eq!(
        session.log,
        ["workload", &format!("all {set}"), &routes, "routes 192.0.2.1:443"]
    );
    assert_eq!(session.target("192.0.2.1:443"), Some(Target::default()));
    session.log.clear();
    // An endpoint that flaps has no routes sent.
    for endpoints in [&["10.0.0.2:80"][..], &["10.0.0.1:80", "10.0.0.2:80"]] {
        server.targets.replace(address, service(endpoints));
        session.next().await.unwrap();
        assert_eq!(session.target(TARGET), Some(service(endpoints)));
    }
    assert_eq!(session.log, vec![format!("change {set}"); 2]);
    session.log.clear();
    // What is wanted again is told again.
    session.want(TARGET).await;
    session.next().await.unwrap();
    assert_eq!(session.log, [&*routes]);
    session.log.clear();
    session.forget(TARGET).await;
    session.next().await.unwrap();
    assert_eq!(session.log, [format!("gone {set}")]);
    server.targets.replace(address, service::<&str>(&[]));
    session.want(TARGET).await;
    session.until(|s| s.routes.contains_key(TARGET)).await;
    assert_eq!(session.target(TARGET), Some(service::<&str>(&[])));
    assert_eq!(server.number("outrigger_controller_wants"), 2.0);
    // The pod's own ports.
    let workload = proto::Workload {
        opaque_ports: vec![3306],
        ..proto::Workload::default()
    };
    server.targets.set_workload(workload.clone());
    session.until(|s| s.workload.as_ref() == Some(&workload)).await;

    // A shutdown ends the session with a word, and does not wait for it to end by itself.
    server.shutdown.cancel();
    assert_eq!(session.next().await.unwrap_err().code(), Code::Unavailable);
    server.stop().await;
}

/// All of them each time: they take the place of those that were trusted before.
#[tokio::test]
async fn a_session_tells_whom_to_trust() {
    let server = start().await;
    let channel = server.connect(Some(server.svid("shop", "orders"))).await;
    let mut session = Session::open(channel, hello("orders-1")).await.unwrap();
    let first = server.ca.borrow().clone();
    let root = |ca: &Ca| ca.bundle()[0].to_vec();
    session.until(|s| s.roots == [root(&first)]).await;
    let other = Ca::generate("cluster.local").unwrap();
    let mut pem = first.pem().clone();
    pem.roots = Some(first.bundle_pem() + &other.bundle_pem());
    let both = Ca::from_pem(pem, "cluster.local", SystemTime::now()).unwrap();
    for ca in [Arc::new(both), Arc::clone(&first)] {
        let roots: Vec<_> = ca.bundle().iter().map(|root| root.to_vec()).collect();
        server.ca.send_replace(ca);
        session.until(|s| s.roots == roots).await;
    }
    server.stop().await;
}

#[tokio::test]
async fn a_session_is_for_workloads_that_say_who_they_are() {
    let server = start().await;
    let nobody = server.connect(None).await;
    let refused = Session::open(nobody, hello("")).await.err().unwrap();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let channel = server.connect(Some(server.svid("shop", "orders"))).await;
    let of = |namespace: &str, pod: &str| {
        from_sidecar::Kind::Hello(Hello {
            namespace: namespace.to_owned(),
            pod: pod.to_owned(),
            // Of a newer sidecar.
            features: vec![1000],
        })
    };
    for (said, code) in [
        (vec![of("elsewhere", "")], Code::PermissionDenied),
        (vec![of("shop", &"x".repeat(254))], Code::InvalidArgument),
        (vec![want(TARGET)], Code::InvalidArgument),
        (vec![of("shop", ""), of("shop", "")], Code::InvalidArgument),
        (vec![of("shop", ""), want("orders:80")], Code::InvalidArgument),
        (vec![of("shop", ""), want(&"x".repeat(2000))], Code::OutOfRange),
    ] {
        let mut session = Session::open(channel.clone(), said[0].clone()).await.unwrap();
        for more in &said[1..] {
            session.say(more.clone()).await;
        }
        let refused = loop {
            if let Err(refused) = session.next().await {
                break refused;
            }
        };
        assert_eq!(refused.code(), code, "{said:?}: {refused}");
    }
    // A word of a newer sidecar is passed over, and the session goes on.
    let mut session = Session::open(channel, of("shop", "orders-1")).await.unwrap();
    session.requests.send(FromSidecar { kind: None }).await.unwrap();
    session.want(TARGET).await;
    session.until(|s| s.routes.contains_key(TARGET)).await;
    // Without the feature, each state is told whole.
    for endpoints in [&["10.0.0.1:80", "10.0.0.2:80"][..], &["10.0.0.2:80"]] {
        server.targets.replace(TARGET.parse().unwrap(), service(endpoints));
        session.until(|s| s.target(TARGET) == Some(service(endpoints))).await;
    }
    assert!(
        !session.log.iter().any(|m| m.starts_with("change")),
        "{:?}",
        session.log
    );
    server.stop().await;
}

/// An SVID lives on where its pod is gone: its session ends before it is told anything more.
#[tokio::test]
async fn the_session_of_an_identity_whose_last_pod_is_gone_ends() {
    let index = Index::new("cluster.local", Arc::new(Metrics::default()));
    let name = apply_pod(&index, "orders-1", "10.244.0.1");
    apply_local_service(&index, "10.0.0.1", "10.0.0.2");
    index.set_synced();
    let server = start_with(index.clone(), Arc::default()).await;
    let channel = server.connect(Some(server.svid("shop", "orders"))).await;
    let mut session = Session::open(channel.clone(), hello("orders-1")).await.unwrap();
    session.want(TARGET).await;
    session.until(|s| s.routes.contains_key(TARGET)).await;
    index.delete(Kind::Pod, name);
    index.flush();
    session.say(want("10.96.0.9:80")).await;
    assert_eq!(session.next().await.unwrap_err().code(), Code::PermissionDenied);
    let refused = Session::open(channel, hello("orders-1")).await.err().unwrap();
    assert_eq!(refused.code(), Code::PermissionDenied);
    server.stop().await;
}

fn apply_pod(index: &Index, name: &str, ip: &str) -> ObjectName {
    let pod = json!({
        "metadata": {"namespace": "shop", "name": name, "uid": name},
        "spec": {"serviceAccountName": "orders", "nodeName": "n1", "containers": []},
        "status": {"podIPs": [{"ip": ip}]},
    });
    let (name, pod) = from_k8s::pod(&serde_json::from_value(pod).unwrap()).unwrap();
    index.apply(name.clone(), pod);
    name
}

const SERVICES: u8 = 6;

fn address_of(service: u8) -> String {
    format!("10.96.1.{service}:80")
}

fn apply_service(index: &Index, n: u8) {
    let service = json!({
        "metadata": {"namespace": "shop", "name": format!("s{n}")},
        "spec": {
            "clusterIPs": [format!("10.96.1.{n}")], "ports": [{"name": "http", "port": 80}],
            "internalTrafficPolicy": if n == 0 { "Local" } else { "Cluster" },
        },
    });
    let (name, service) = from_k8s::service(&serde_json::from_value(service).unwrap()).unwrap();
    index.apply(name, service);
}

fn apply_slice(index: &Index, n: u8, endpoints: &BTreeSet<u8>) {
    let endpoints = endpoints
        .iter()
        .map(|e| json!({"addresses": [format!("10.0.{n}.{e}")], "nodeName": if e % 2 == 0 { "n1" } else { "n2" }}));
    let slice = json!({
        "metadata": {
            "namespace": "shop", "name": format!("s{n}-x"), "labels": {"kubernetes.io/service-name": format!("s{n}")},
        },
        "addressType": "IPv4", "ports": [{"name": "http", "port": 80}],
        "endpoints": endpoints.collect::<Vec<_>>(),
    });
    let (name, slice) = from_k8s::endpoint_slice(&serde_json::from_value(slice).unwrap()).unwrap();
    index.apply(name, slice);
}

/// The Service goes to itself and to these others.
fn apply_route(index: &Index, n: u8, to: &[u8]) {
    let backends = to.iter().map(|to| json!({"name": format!("s{to}"), "port": 80}));
    let route = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"namespace": "shop", "name": format!("r{n}")},
        "spec": {
            "parentRefs": [{"group": "", "kind": "Service", "name": format!("s{n}")}],
            "rules": [{"backendRefs": backends.collect::<Vec<_>>()}],
        },
    });
    let route: DynamicObject = serde_json::from_value(route).unwrap();
    let name = from_k8s::object_name(&route.metadata);
    let route = Route::read(RouteKind::Http, &route).unwrap();
    index.apply(name, Object::Route(Box::new(route)));
}

/// Services, endpoints and routes that change at random, and sidecars that want and forget at random: every message keeps the
/// promises, and in the end all is known as it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_changes_a_session_is_never_between_two_states() {
    for seed in 0..8 {
        let mut random = SmallRng::seed_from_u64(seed);
        let index = Index::new("cluster.local", Arc::default());
        apply_pod(&index, "orders-1", "127.0.0.1");
        (0..SERVICES).for_each(|n| apply_service(&index, n));
        index.set_synced();
        let server = start_with(index.clone(), Arc::default()).await;
        let channel = server.connect(Some(server.svid("shop", "orders"))).await;
        let mut session = Session::open(channel, hello("orders-1")).await.unwrap();
        let mut wanted = BTreeSet::new();
        for _ in 0..300 {
            let n = random.random_range(0..SERVICES);
            match random.random_range(0..6) {
                0 => {
                    wanted.insert(n);
                    session.want(&address_of(n)).await;
                }
                1 if wanted.remove(&n) => session.forget(&address_of(n)).await,
                2 => {
                    let others = (0..random.random_range(0..4)).map(|_| random.random_range(0..SERVICES));
                    apply_route(&index, n, &others.collect::<Vec<_>>());
                }
                3 => index.delete(Kind::Service, ObjectName::new("shop", &format!("s{n}"))),
                4 => apply_service(&index, n),
                _ => {
                    let number = random.random_range(0..8);
                    apply_slice(&index, n, &(0..number).map(|_| random.random_range(0..40)).collect());
                }
            }
            if random.random_bool(0.5) {
                index.flush();
            }
            // Sometimes it reads, and sometimes much is left unread.
            while random.random_bool(0.4) {
                let some = tokio::time::timeout(Duration::from_millis(1), session.next());
                if let Ok(next) = some.await {
                    next.unwrap();
                }
            }
        }
        index.flush();
        let caller = Caller {
            namespace: "shop".into(),
            service_account: "orders".into(),
            pod: "orders-1".into(),
            address: [127, 0, 0, 1].into(),
        };
        let place = index.watch_place(&caller).borrow().clone();
        let truth: Vec<_> = wanted
            .iter()
            .map(|n| {
                let address = address_of(*n);
                let views = index.watch_target(address.parse().unwrap(), "shop").borrow().clone();
                let bytes = views.view(&place).unwrap().bytes;
                (address, Target::decode(bytes).unwrap())
            })
            .collect();
        session
            .until(|s| {
                truth
                    .iter()
                    .all(|(address, target)| s.target(address).as_ref() == Some(target))
            })
            .await;
        // What no address names is forgotten.
        let all: BTreeSet<_> = session.routes.values().flat_map(named).collect();
        session
            .until(|s| {
                s.sets
                    .iter()
                    .all(|(name, (version, _))| *version == 0 || all.contains(name))
            })
            .await;
        server.stop().await;
    }
}
