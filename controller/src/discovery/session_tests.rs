use std::net::Ipv4Addr;

use outrigger_api::discovery::UnknownKey;
use outrigger_api::spiffe::SpiffeId;
use outrigger_gate::Budget;
use outrigger_issuer::peer::{Bound, Peer};
use outrigger_issuer::share::{Share, Tenant};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::index::{Count, Of};
use crate::metrics::Metrics;
use crate::testing::Cluster;

struct Scene {
    cluster: Cluster,
    service: DiscoveryService,
    budget: Arc<Budget<Tenant>>,
    _ca: watch::Sender<Arc<Ca>>,
}

impl Scene {
    fn new() -> Self {
        let cluster = Cluster::new();
        let ca = watch::Sender::new(Arc::new(Ca::generate("cluster.local").unwrap()));
        let metrics = Arc::new(Metrics::default());
        let service = DiscoveryService::new(cluster.index.clone(), metrics, ca.subscribe(), CancellationToken::new());
        Self {
            cluster,
            service,
            budget: Budget::new(1 << 20),
            _ca: ca,
        }
    }

    /// Of a sidecar of the namespace client.
    fn session(&self, features: &[Feature]) -> Session {
        let id = SpiffeId::new("cluster.local", "client", "client").unwrap();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        let share = Share::new(&self.budget, &id, address.ip());
        let mut request = Request::new(());
        request.extensions_mut().insert(Arc::new(share.charge(1).unwrap()));
        request.extensions_mut().insert(Peer {
            address,
            identity: Some(id),
            bound: Bound::Share(share),
        });
        let (member, ()) = self.service.member(StreamKind::Session, request).unwrap();
        let hello = Hello {
            features: features
                .iter()
                .map(|feature| i32::from(*feature))
                .chain([4711])
                .collect(),
            ..Hello::default()
        };
        Session::new(member, &*self.cluster.index, &hello)
    }
}

#[tokio::test]
async fn what_a_sidecar_understands_is_known_while_it_wants_the_address() {
    let scene = Scene::new();
    let cluster = &scene.cluster;
    cluster.add_service("web", 1);
    let web: SocketAddr = "10.96.0.1:80".parse().unwrap();
    let session = |features: &[Feature]| scene.session(features);
    let count = || {
        let needs = [Feature::RetryConstraint];
        let callers = cluster.index.callers();
        callers.count(&needs, &Of::All, |service, port, callers| {
            (&*service.name, port, callers) == ("web", 80, "client")
        })
    };
    let mut today = session(&[Feature::EndpointChanges, Feature::RetryConstraint]);
    let mut before = session(&[Feature::EndpointChanges]);
    assert_eq!(count(), Count { all: 0, lacking: 0 });
    today.want(web);
    before.want(web);
    assert_eq!(count(), Count { all: 2, lacking: 1 });
    before.drop(web);
    assert_eq!(count(), Count { all: 1, lacking: 0 });
    drop(today);
    assert_eq!(count(), Count { all: 0, lacking: 0 });
}

#[tokio::test]
async fn what_a_pod_without_room_is_told_of_its_policies_is_known_until_it_is_told_all() {
    let scene = Scene::new();
    let mut session = scene.session(&[Feature::Access]);
    session.queue.clear();
    let status = Status::resource_exhausted("");
    session.refuse(Next::Access, &status).unwrap();
    let closed = session.queue.pop_front().unwrap();
    assert!(matches!(closed, Next::Closed));
    assert!(!session.inbox.is_closed());
    for (next, is_closed) in [(closed, true), (Next::Trust, true), (Next::Access, false)] {
        assert!(session.message(&next).is_ok_and(|message| message.is_some()));
        session.sent(&next, None);
        assert_eq!(session.inbox.is_closed(), is_closed);
    }
}

#[tokio::test]
async fn a_sidecar_says_that_it_does_not_know_a_key() {
    let scene = Scene::new();
    scene.cluster.index.set_own("outrigger", "controller");
    scene.cluster.apply(
        "kind: AccessPolicy\nmetadata: {namespace: client, name: p}\nspec:\n  targetRefs: [{kind: Namespace, name: client}]\n  rules: \
         [{sources: [{type: JWT, jwt: {provider: login}}]}]\n  jwt: {providers: [{name: login, issuer: 'https://i', audiences: [a], jwks: \
         {configMapRef: {name: keys}}}]}\n",
    );
    let mut asked = scene.cluster.index.asked_for_keys();
    let mut session = scene.session(&[Feature::Access, Feature::Tokens]);
    for (policy, provider, is_asked) in [
        ("client/p", "login", true),
        ("client/p", "logout", false),
        ("", "", false),
    ] {
        let kind = Some(from_sidecar::Kind::UnknownKey(UnknownKey {
            policy: policy.to_owned(),
            provider: provider.to_owned(),
        }));
        session.hear(FromSidecar { kind }).unwrap();
        assert_eq!(asked.try_recv().is_ok(), is_asked, "{policy} {provider}");
    }
}
