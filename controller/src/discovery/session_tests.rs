use std::net::Ipv4Addr;

use outrigger_api::spiffe::SpiffeId;
use outrigger_gate::Budget;
use outrigger_issuer::peer::{Bound, Peer};
use outrigger_issuer::share::Share;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::index::{Count, Of};
use crate::metrics::Metrics;
use crate::testing::Cluster;

#[tokio::test]
async fn what_a_sidecar_understands_is_known_while_it_wants_the_address() {
    let cluster = Cluster::new();
    cluster.add_service("web", 1);
    let ca = watch::Sender::new(Arc::new(Ca::generate("cluster.local").unwrap()));
    let metrics = Arc::new(Metrics::default());
    let service = DiscoveryService::new(cluster.index.clone(), metrics, ca.subscribe(), CancellationToken::new());
    let web: SocketAddr = "10.96.0.1:80".parse().unwrap();
    let id = SpiffeId::new("cluster.local", "client", "client").unwrap();
    let budget = Budget::new(1 << 20);
    let session = |features: &[Feature]| {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        let share = Share::new(&budget, &id, address.ip());
        let mut request = Request::new(());
        request.extensions_mut().insert(Arc::new(share.charge(1).unwrap()));
        request.extensions_mut().insert(Peer {
            address,
            identity: Some(id.clone()),
            bound: Bound::Share(share),
        });
        let (member, ()) = service.member(StreamKind::Session, request).unwrap();
        let hello = Hello {
            features: features
                .iter()
                .map(|feature| i32::from(*feature))
                .chain([4711])
                .collect(),
            ..Hello::default()
        };
        Session::new(member, &*cluster.index, &hello)
    };
    let count = || {
        cluster.index.read_with_callers(|_, callers| {
            let needs = [Feature::RetryConstraint];
            callers.count(&needs, &Of::All, |service, port, callers| {
                (&*service.name, port, callers) == ("web", 80, "client")
            })
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
