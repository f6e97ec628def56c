mod access;
mod backend_tls;
mod fallback;
mod keys;
mod limits;
mod networks;
mod persistence;
mod policies;
mod room;
mod routes;
mod services;
mod sessions;
mod slices;
mod workloads;

use crate::testing::Cluster;

/// The pods web-1 and other-1 of the namespace shop, each behind a Service of its name, and far-1 of another namespace.
fn cluster() -> Cluster {
    let cluster = Cluster::new();
    cluster.index.set_own("outrigger", "outrigger-controller-1");
    cluster.add_service("web", 1);
    cluster.add_service("other", 2);
    cluster.add_service_in("elsewhere", "far", 3);
    cluster
}
