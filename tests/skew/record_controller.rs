//! Writes what the controller of this version answers. `record` runs it with the code of the commit in BASE.
#![allow(clippy::unwrap_used)]


include!("cluster.rs");

use std::path::PathBuf;

use outrigger_controller::discovery::{Caller, Discover};
use outrigger_controller::gateway::{Route, RouteKind};
use outrigger_controller::index::from_k8s;
use outrigger_controller::index::objects::Object;
use outrigger_controller::policy::TrafficPolicy;
use prost::Message;

fn policy(object: &DynamicObject) -> Object {
    Object::TrafficPolicy(Box::new(TrafficPolicy::read(object)))
}

#[test]
fn record() {
    let to = PathBuf::from(std::env::var("OUTRIGGER_RECORD_TO").unwrap());
    let index = index(include_str!("objects.yaml"), "mesh.test");
    let caller = Caller {
        namespace: NAMESPACE.into(),
        service_account: ACCOUNT.into(),
        pod: POD.into(),
        address: [127, 0, 0, 1].into(),
    };
    let place = index.watch_place(&caller).borrow().clone();
    for (name, address) in ADDRESSES {
        let views = index.watch_target(address.parse().unwrap(), NAMESPACE).borrow().clone();
        std::fs::write(to.join(format!("{name}.target")), views.bytes(&place)).unwrap();
    }
    let workload = index.watch_workload(NAMESPACE, POD).borrow().message.encode_to_vec();
    std::fs::write(to.join("workload"), workload).unwrap();
}
