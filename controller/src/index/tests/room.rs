//! What answers take: whoever makes them large takes the room from himself.

use std::sync::Arc;

use futures_util::FutureExt;
use serde_json::{Value, json};

use crate::access::{Access, Told};
use crate::discovery::Discover;
use crate::index::Index;
use crate::room::{Refusal, Room};
use crate::split::Understands;
use crate::split::{EndpointViews, Routes};
use crate::testing::{Cluster, pod_key};
use crate::topic::{Followed, Inbox, Reader};
use crate::topology::Place;

const TOTAL: u64 = 64 << 20;
/// What one namespace may have, where nobody else has anything: a charge is compared with what was free before it.
const HALF: usize = (32 << 20) + (1 << 20);
const PORTS: u16 = 1000;
/// A route of this many rules is nearly as large as etcd takes it.
const RULES: usize = 16;

fn cluster() -> Cluster {
    within(TOTAL)
}

fn within(bytes: u64) -> Cluster {
    Cluster {
        index: Index::within(Room::new(bytes), "cluster.local", Arc::default()),
    }
}

/// A Service with the ports from 1000 on.
fn service(namespace: &str, ip: &str, ports: u16) -> Value {
    let ports = (1000..1000 + ports).map(|port| json!({"name": format!("p{port}"), "port": port, "targetPort": 8080}));
    json!({
        "kind": "Service", "apiVersion": "v1",
        "metadata": {"namespace": namespace, "name": "web"},
        "spec": {"clusterIPs": [ip], "selector": {"app": "web"}, "ports": ports.collect::<Vec<_>>()},
    })
}

/// On the Service `web` of a namespace, with 80 KiB for each rule.
fn route(namespace: &str, on: &str, rules: usize) -> Value {
    let headers = (0..20).map(|n| json!({"name": format!("x-{n}"), "value": "x".repeat(4096)}));
    let filter =
        json!({"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": headers.collect::<Vec<_>>()}});
    json!({
        "kind": "HTTPRoute", "apiVersion": "gateway.networking.k8s.io/v1",
        "metadata": {"namespace": namespace, "name": "large"},
        "spec": {
            "parentRefs": [{"group": "", "kind": "Service", "namespace": on, "name": "web"}],
            "rules": vec![json!({"filters": [filter]}); rules],
        },
    })
}

fn apply(cluster: &Cluster, objects: impl IntoIterator<Item = Value>) {
    for object in objects {
        cluster.apply_value(object);
    }
    cluster.index.flush();
}

/// Sessions of clients in a namespace that want addresses.
struct Wants {
    inbox: Arc<Inbox>,
    followed: Vec<Followed<Routes>>,
}

impl Wants {
    fn of(cluster: &Cluster, ip: &str, ports: u16, callers: &str) -> Self {
        let inbox = Arc::new(Inbox::default());
        let follow = |port: u16| {
            let reader = Reader {
                inbox: Arc::clone(&inbox),
                number: port.into(),
            };
            let address = format!("{ip}:{port}").parse().unwrap();
            cluster.index.follow_routes(address, callers, reader)
        };
        Self {
            followed: (1000..1000 + ports).map(follow).collect(),
            inbox,
        }
    }

    /// How many are told, and how many bytes that is.
    fn told(&self) -> (usize, usize) {
        let messages = self.followed.iter().filter_map(|routes| routes.newest().message().ok());
        messages.fold((0, 0), |(number, bytes), message| (number + 1, bytes + message.len()))
    }
}

#[test]
fn a_large_route_on_many_ports_leaves_the_room_to_others() {
    let cluster = cluster();
    apply(
        &cluster,
        [service("evil", "10.96.0.1", PORTS), route("evil", "evil", RULES)],
    );
    apply(
        &cluster,
        [service("shop", "10.96.0.2", 2), route("shop", "shop", RULES)],
    );
    let evil = Wants::of(&cluster, "10.96.0.1", PORTS, "evil");
    let (told, bytes) = evil.told();
    assert!(told > 20 && bytes > HALF - (2 << 20) && bytes < HALF, "{told} {bytes}");
    assert!(cluster.index.room.used() <= HALF as u64);
    assert_eq!(
        evil.followed[usize::from(PORTS) - 1].newest().message(),
        Err(Refusal::NoRoom)
    );
    let others = Wants::of(&cluster, "10.96.0.2", 2, "client");
    assert_eq!(others.told().0, 2);
    // What nobody wants any more is given back.
    drop((evil, others));
    cluster.index.inner.lock().routes.sweep();
    assert_eq!(cluster.index.room.used(), 0);
}

/// Also where nobody looks at them: a session may be stopped.
#[test]
fn answers_that_become_large_are_held_to_it_too_and_come_back_when_they_are_small() {
    let cluster = cluster();
    apply(
        &cluster,
        [service("evil", "10.96.0.1", PORTS), route("evil", "evil", 0)],
    );
    let wants = Wants::of(&cluster, "10.96.0.1", PORTS, "client");
    assert_eq!(wants.told().0, usize::from(PORTS));
    assert_eq!(cluster.index.room.used(), 0);
    apply(&cluster, [route("evil", "evil", RULES)]);
    let (told, bytes) = wants.told();
    assert!(told > 20 && bytes < HALF, "{told} {bytes}");
    let refused = cluster.index.room.refused();
    assert_eq!(refused as usize, usize::from(PORTS) - told);
    // What was refused is not tried again at each change.
    apply(&cluster, [route("evil", "evil", RULES - 1)]);
    assert!(cluster.index.room.refused() - refused <= told as u64);
    apply(&cluster, [route("evil", "evil", 0)]);
    let again = Wants::of(&cluster, "10.96.0.1", PORTS, "client");
    assert_eq!(
        (again.told().0, wants.told().0),
        (usize::from(PORTS), usize::from(PORTS))
    );
    assert_eq!(cluster.index.room.used(), 0);
    let heard = std::iter::from_fn(|| wants.inbox.next().now_or_never());
    assert_eq!(heard.count(), usize::from(PORTS));
}

#[test]
fn what_no_message_holds_is_not_kept() {
    let cluster = cluster();
    let routes = (0..4).map(|n| {
        let mut route = route("evil", "evil", RULES);
        route["metadata"]["name"] = json!(format!("large-{n}"));
        route
    });
    apply(&cluster, routes.chain([service("evil", "10.96.0.1", 1)]));
    let wants = Wants::of(&cluster, "10.96.0.1", 1, "client");
    assert_eq!(wants.followed[0].newest().message(), Err(Refusal::TooLarge));
    // One rule whose matches stand between those of another is there once for each of them.
    let cluster = self::cluster();
    let mut split = route("evil", "evil", 2);
    for rule in 0..2 {
        let paths = (0..64).map(|n| json!({"path": {"type": "Exact", "value": "/".repeat(2 * n + rule + 1)}}));
        split["spec"]["rules"][rule]["matches"] = paths.collect();
    }
    apply(&cluster, [split, service("evil", "10.96.0.1", 1)]);
    let wants = Wants::of(&cluster, "10.96.0.1", 1, "client");
    assert_eq!(wants.followed[0].newest().message(), Err(Refusal::TooLarge));
    assert_eq!(cluster.index.room.used(), 0);
}

#[test]
fn what_is_equal_for_many_namespaces_is_kept_once() {
    let cluster = cluster();
    apply(
        &cluster,
        [service("shop", "10.96.0.1", 1), route("shop", "shop", RULES)],
    );
    let wants: Vec<_> = (0..20)
        .map(|n| Wants::of(&cluster, "10.96.0.1", 1, &format!("client-{n}")))
        .collect();
    let same = |at: &str| {
        let messages: Vec<_> = wants
            .iter()
            .map(|w| w.followed[0].newest().message().unwrap())
            .collect();
        assert!(
            messages.iter().all(|message| message.as_ptr() == messages[0].as_ptr()),
            "{at}"
        );
        messages[0].len() as u64
    };
    let bytes = same("as they are made");
    assert!(
        cluster.index.room.used() < bytes + 4096,
        "{} of {bytes}",
        cluster.index.room.used()
    );
    apply(&cluster, [route("shop", "shop", RULES - 1)]);
    let bytes = same("as they change");
    assert!(
        cluster.index.room.used() < bytes + 4096,
        "{} of {bytes}",
        cluster.index.room.used()
    );
}

/// They are told to clients of their namespace alone, who else could take the room of any Service.
#[test]
fn routes_and_policies_of_the_clients_are_charged_to_them() {
    let policy = json!({
        "kind": "TrafficPolicy", "apiVersion": "outrigger.dev/v1alpha1",
        "metadata": {"namespace": "evil", "name": "own"},
        "spec": {
            "targetRefs": [{"group": "", "kind": "Service", "namespace": "shop", "name": "web"}],
            "connectTimeout": "1s",
        },
    });
    for (what, on_shop, own) in [
        ("a route", 0, route("evil", "shop", RULES)),
        ("a policy", RULES, policy),
    ] {
        let cluster = cluster();
        apply(
            &cluster,
            [service("shop", "10.96.0.1", PORTS), route("shop", "shop", on_shop), own],
        );
        let evil = Wants::of(&cluster, "10.96.0.1", PORTS, "evil");
        let (told, bytes) = evil.told();
        assert!(told > 20 && bytes < HALF, "{what}: {told} {bytes}");
        apply(&cluster, [route("shop", "shop", RULES)]);
        let others = Wants::of(&cluster, "10.96.0.1", 4, "client");
        assert_eq!(others.told().0, 4, "{what}");
    }
}

/// A slice of a Service with this many endpoints at each port.
fn slice(namespace: &str, ports: u16, endpoints: u16) -> Value {
    let ports = (1000..1000 + ports).map(|port| json!({"name": format!("p{port}"), "port": port, "protocol": "TCP"}));
    let endpoints = (0..endpoints).map(|n| json!({"addresses": [format!("10.1.{}.{}", n / 256, n % 256)]}));
    json!({
        "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "addressType": "IPv4",
        "metadata": {"namespace": namespace, "name": "web-x", "labels": {"kubernetes.io/service-name": "web"}},
        "ports": ports.collect::<Vec<_>>(), "endpoints": endpoints.collect::<Vec<_>>(),
    })
}

#[test]
fn many_endpoints_at_many_ports_leave_the_room_to_others() {
    let cluster = cluster();
    apply(
        &cluster,
        [service("evil", "10.96.0.1", PORTS), slice("evil", PORTS, 1000)],
    );
    apply(&cluster, [service("shop", "10.96.0.2", 1), slice("shop", 1, 1000)]);
    let follow = |wants: &Wants| -> Vec<_> {
        let sets = wants.followed.iter().flat_map(|routes| routes.newest().sets().to_vec());
        let followed = sets.zip(0..).map(|(name, number)| {
            let reader = Reader {
                inbox: Arc::default(),
                number,
            };
            cluster.index.follow_endpoints(&name, reader)
        });
        followed.collect()
    };
    let evil = Wants::of(&cluster, "10.96.0.1", PORTS, "client");
    let sets = follow(&evil);
    let told = |sets: &[Followed<EndpointViews>]| {
        let views = sets
            .iter()
            .map(|set| set.newest().view(&Place::default(), Understands::default()));
        views
            .filter_map(Result::ok)
            .map(|view| view.message(None).len())
            .collect::<Vec<_>>()
    };
    let some = told(&sets).len();
    assert!((10..100).contains(&some), "{some}");
    assert!(cluster.index.room.used() <= HALF as u64);
    let shop = Wants::of(&cluster, "10.96.0.2", 1, "client");
    let all = told(&follow(&shop));
    assert!(all.len() == 1 && all[0] > 15_000, "{all:?}");
    // The same for sidecars of the version before.
    drop((evil, sets, shop));
    cluster.index.inner.lock().endpoints.sweep();
    cluster.index.inner.lock().routes.sweep();
    let streams: Vec<_> = (1000..1000 + PORTS)
        .map(|port| {
            cluster
                .index
                .watch_target(format!("10.96.0.1:{port}").parse().unwrap(), "client")
        })
        .collect();
    let views = streams.iter().map(|stream| stream.borrow().view(&Place::default()));
    let some = views.filter_map(Result::ok).count();
    assert!((10..1000).contains(&some), "{some}");
    assert!(cluster.index.room.used() <= HALF as u64);
    assert!(
        cluster
            .index
            .watch_target("10.96.0.2:1000".parse().unwrap(), "client")
            .borrow()
            .view(&Place::default())
            .is_ok()
    );
    drop(streams);
    cluster.index.inner.lock().targets.sweep();
    assert_eq!(cluster.index.room.used(), 0);
}

#[test]
fn pods_that_say_much_of_themselves_leave_the_room_to_others() {
    // The ports of one pod are 256 KiB.
    let cluster = within(4 << 20);
    let pod = |namespace: &str, n: usize, opaque: &str| {
        json!({
            "kind": "Pod", "apiVersion": "v1",
            "metadata": {
                "namespace": namespace, "name": format!("pod-{n}"), "annotations": {"outrigger.dev/opaque-ports": opaque},
            },
            "spec": {"containers": []}, "status": {"podIPs": [{"ip": format!("10.244.0.{n}")}]},
        })
    };
    apply(&cluster, (0..20).map(|n| pod("same", n, "1-65535")));
    apply(&cluster, (20..40).map(|n| pod("evil", n, &format!("{n}-65535"))));
    let watch = |namespace: &str, pods: std::ops::Range<usize>| -> Vec<_> {
        let names = pods.map(|n| format!("pod-{n}"));
        names.map(|name| cluster.known(namespace, &name)).collect()
    };
    let same = watch("same", 0..20);
    assert!(same.iter().all(|known| known.borrow().workload.is_some()));
    assert!(cluster.index.room.used() < 1 << 20, "they are told the same");
    let evil = watch("evil", 20..40);
    let told = evil.iter().filter(|known| known.borrow().workload.is_some()).count();
    assert!((5..10).contains(&told), "{told}");
    drop((same, evil));
    cluster.index.inner.lock().workloads.sweep();
    assert_eq!(cluster.index.room.used(), 0);
}

/// A pod whose policies have no room is closed, and never open; it is told of them as soon as there is room.
#[test]
fn policies_that_have_no_room_close_their_pods_until_there_is() {
    let cluster = within(4 << 20);
    let pod = |namespace: &str, n: usize| {
        json!({
            "kind": "Pod", "apiVersion": "v1",
            "metadata": {"namespace": namespace, "name": format!("pod-{n}"), "labels": {"n": n.to_string()}},
            "spec": {"serviceAccountName": "default", "containers": []},
        })
    };
    // 64 KiB, and not the same for any two pods.
    let policy = |namespace: &str, n: usize| {
        let names: Vec<_> = (0..16).map(|i| format!("/{i}{}", "x".repeat(4000))).collect();
        let paths: Vec<_> = names
            .iter()
            .map(|path| json!({"type": "Exact", "value": path}))
            .collect();
        let selector = json!({"matchLabels": {"n": n.to_string()}});
        json!({
            "kind": "AccessPolicy", "apiVersion": "outrigger.dev/v1alpha1",
            "metadata": {"namespace": namespace, "name": format!("policy-{n}")},
            "spec": {
                "targetRefs": [{"group": "", "kind": "Pod", "selector": selector}],
                "rules": [{"sources": [{"type": "Any"}], "httpAttributes": [{"paths": paths}]}],
            },
        })
    };
    let all =
        |namespace: &'static str, pods: usize| (0..pods).flat_map(move |n| [pod(namespace, n), policy(namespace, n)]);
    apply(&cluster, all("evil", 60));
    apply(&cluster, all("shop", 1));
    let follow = |namespace: &str, pods: usize| -> Vec<_> {
        let keys = (0..pods).map(|n| pod_key(namespace, &format!("pod-{n}"), "default"));
        let followed = keys.zip(0..).map(|(key, number)| {
            let reader = Reader {
                inbox: Arc::default(),
                number,
            };
            cluster.index.follow_access(&key, reader)
        });
        followed.collect()
    };
    let count = |followed: &[Followed<Access>], told: Told| {
        let those = followed.iter().filter(|access| access.newest().told() == told);
        those.count()
    };
    let mut evil = follow("evil", 60);
    let some = count(&evil, Told::All);
    assert!((20..40).contains(&some), "{some}");
    assert_eq!(count(&evil, Told::NoRoom), 60 - some);
    // One that becomes another, and no larger, needs no room beside itself.
    let other = policy("evil", 0).to_string().replace("xxxx", "yyyy");
    apply(&cluster, [serde_json::from_str(&other).unwrap()]);
    assert_eq!((count(&evil, Told::All), evil[0].newest().told()), (some, Told::All));
    assert_eq!(count(&follow("shop", 1), Told::All), 1);
    let closed = cluster.access_of("evil", "pod-59", "default");
    let closed: Vec<_> = closed
        .enforced
        .iter()
        .map(|p| (&*p.name, p.exclusive, p.rules.len()))
        .collect();
    assert_eq!(closed, [("(no room)", true, 0)]);
    // Sessions of others end.
    drop(evil.drain(..some));
    cluster.index.sweep();
    cluster.index.retry();
    assert_eq!(count(&evil, Told::All), evil.len());
    drop(evil);
    cluster.index.sweep();
    assert_eq!(cluster.index.room.used(), 0);
}
