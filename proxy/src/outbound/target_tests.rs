//! Names as a worker's target uses them, against a name server in this process.

#![allow(clippy::unwrap_used)]

use std::cell::RefCell;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use outrigger_proxy_transport::error::{ProxyError, Reason};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::{NAME_IDLE, WorkerTarget};
use crate::dns::Resolver;
use crate::dns::testing::{SILENT, Server, fill};
use crate::model::Workload;
use crate::model::{Backend, Endpoints, Protocol, Service, ServiceName, Target};
use crate::outbound::affinity::Caller;
use crate::outbound::balance::Pick;
use crate::outbound::member::Member;
use crate::outbound::testing::NO_RULES;
use crate::telemetry::{Settings, Telemetry};

const LONG: Duration = Duration::from_secs(60);
/// What nobody in these tests waits for.
const FOR_EVER: Duration = Duration::from_secs(3600);

struct Named {
    target: WorkerTarget,
    rng: RefCell<SmallRng>,
    _updates: watch::Sender<Arc<Target>>,
}

impl Named {
    /// A Service whose endpoints are the addresses of a name.
    fn new(host: &str, resolver: &Resolver) -> Self {
        Self::with_affinity(host, resolver, false)
    }

    fn with_affinity(host: &str, resolver: &Resolver, client_affinity: bool) -> Self {
        let name = ServiceName {
            namespace: "shop".into(),
            name: "orders".into(),
            port: 80,
        };
        let service = Service {
            name: name.clone(),
            protocol: Protocol::Detect,
            routes: Arc::default(),
            byte_routes: Arc::default(),
            backends: vec![Arc::new(Backend {
                name,
                endpoints: Endpoints::Dns {
                    host: host.into(),
                    port: 80,
                },
                client_affinity,
                tls: None,
            })],
            rules: Arc::default(),
        };
        let (sender, updates) = watch::channel(Arc::new(Target::Service(Arc::new(service))));
        let telemetry = Telemetry::start(&Settings::default(), resolver).unwrap();
        let caller = Caller::new(&Workload {
            name: "web".into(),
            namespace: "shop".into(),
            pod: "web-1".into(),
            service_account: "web".into(),
            trust_domain: "mesh.test".into(),
            node: "".into(),
            pod_ips: Vec::new(),
        });
        Self {
            target: WorkerTarget::new(
                updates,
                caller,
                resolver.clone(),
                telemetry,
                Arc::default(),
                Instant::now(),
            ),
            rng: RefCell::new(SmallRng::seed_from_u64(1)),
            _updates: sender,
        }
    }

    /// What a request gets whose name may take `limit`.
    async fn pick(&self, limit: Duration) -> Result<Rc<Member>, ProxyError> {
        let snapshot = self.target.current(Instant::now()).unwrap();
        let backend = snapshot.backend(0).unwrap();
        let pick = Pick {
            tried: &[],
            now: Instant::now(),
            rng: &self.rng,
            rules: &NO_RULES,
            key: None,
            session: None,
            limit: None,
        };
        let picked = backend.pick(pick, None, limit);
        timeout(LONG, picked)
            .await
            .expect("it waits for an answer that is known")
    }
}

/// What is there without waiting.
fn at_once<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("it waits for an answer that is known"),
    }
}

fn address(last: u8) -> std::net::Ipv4Addr {
    [192, 0, 2, last].into()
}

#[tokio::test]
async fn a_name_that_is_known_to_have_no_address_costs_no_time() {
    let server = Server::new().await;
    server.set("empty.test", &[], 300);
    let resolver = server.resolver();
    for host in ["empty.test", "nowhere.test"] {
        let named = Named::new(host, &resolver);
        let mut answer = named.pick(FOR_EVER).await;
        for _ in 0..3 {
            let error = answer.err().unwrap();
            assert_eq!(error.reason, Reason::NoEndpoints);
            assert!(error.detail.contains(host), "{}", error.detail);
            answer = at_once(named.pick(FOR_EVER));
        }
        // Nor for another worker, which asks for the first time.
        assert!(at_once(Named::new(host, &resolver).pick(FOR_EVER)).is_err());
    }
    // What is not known yet is waited for, but not for ever.
    let silent = Named::new(&format!("{SILENT}.test"), &resolver);
    let error = silent.pick(Duration::from_millis(10)).await.err().unwrap();
    assert!(error.detail.contains("10ms"), "{}", error.detail);
}

#[tokio::test]
async fn a_name_is_asked_for_when_it_is_used_and_makes_room_when_it_is_idle() {
    let server = Server::new().await;
    server.set("orders.test", &[address(1)], 300);
    let resolver = server.resolver();
    let orders = Named::new("orders.test", &resolver);
    // Nobody has used it, so it takes no room.
    let mut watched = fill(&resolver).await;
    let one_more = || resolver.watch(&format!("{SILENT}-one-more.test"), 80);
    assert_eq!(server.asked.lock().len(), 0);
    let error = orders.pick(FOR_EVER).await.err().unwrap();
    assert_eq!(error.reason, Reason::NoEndpoints);
    assert!(error.detail.contains("1024 names are in use"), "{}", error.detail);
    // The same connection has an answer as soon as there is room.
    watched.pop();
    let first = orders.pick(FOR_EVER).await.unwrap();
    assert_eq!(first.endpoint.address.ip(), address(1));
    assert!(one_more().is_err(), "it is in use");
    orders.target.sweep(Instant::now());
    assert!(one_more().is_err(), "it was used a moment ago");
    orders.target.sweep(Instant::now() + NAME_IDLE);
    let last = one_more().unwrap();
    assert!(orders.pick(FOR_EVER).await.is_ok(), "its last address is known");
    drop(last);
    // Its connections, and what is known of its endpoints, have stayed.
    assert!(Rc::ptr_eq(&orders.pick(FOR_EVER).await.unwrap(), &first));
}

#[tokio::test]
async fn the_addresses_of_a_name_share_the_requests_whatever_affinity_its_service_declares() {
    let server = Server::new().await;
    server.set("orders.test", &[address(1), address(2)], 300);
    let orders = Named::with_affinity("orders.test", &server.resolver(), true);
    let mut picked = std::collections::BTreeSet::new();
    for _ in 0..100 {
        picked.insert(orders.pick(FOR_EVER).await.unwrap().endpoint.address.ip());
    }
    assert_eq!(picked.len(), 2, "{picked:?}");
}
