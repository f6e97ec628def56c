//! Objects in YAML for tests of everything that is decided from the index.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use kube::core::DynamicObject;
use outrigger_api::discovery as proto;
use outrigger_api::discovery::to_sidecar;
use prost::Message;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::access::PodKey;
use crate::discovery::{Discover, Known};
use crate::index::Index;
use crate::metrics::Metrics;
use crate::objects::{Kind, Object, ObjectName, from_k8s};
use crate::split::Understands;
use crate::topic::Reader;
use crate::topology::Place;

/// An index, and objects to fill it with.
pub(crate) struct Cluster {
    pub(crate) index: Arc<Index>,
}

impl Cluster {
    pub(crate) fn new() -> Self {
        Self {
            index: Index::new("cluster.local", Arc::new(Metrics::default())),
        }
    }

    /// A cluster with all objects of a YAML text.
    pub(crate) fn with(yaml: &str) -> Self {
        let cluster = Self::new();
        cluster.apply(yaml);
        cluster
    }

    /// Applies all objects of a YAML text, separated by "---".
    pub(crate) fn apply(&self, yaml: &str) {
        for document in yaml.split("---\n").filter(|d| !d.trim().is_empty()) {
            let value: Value = serde_saphyr::from_str(document).unwrap();
            self.apply_value(value);
        }
        self.index.flush();
    }

    pub(crate) fn apply_value(&self, value: Value) {
        let kind = value["kind"].as_str().unwrap().to_owned();
        let (name, object) = match kind.as_str() {
            "Service" => from_k8s::service(&serde_json::from_value(value).unwrap()).unwrap(),
            "EndpointSlice" => from_k8s::endpoint_slice(&serde_json::from_value(value).unwrap()).unwrap(),
            "Pod" => from_k8s::pod(&serde_json::from_value(value).unwrap()).unwrap(),
            "Node" => from_k8s::node(&serde_json::from_value(value).unwrap()).unwrap(),
            "Namespace" => from_k8s::namespace(&serde_json::from_value(value).unwrap()).unwrap(),
            _ => {
                let is_it = |k: &Kind| k.resource().is_some_and(|resource| resource.kind == kind);
                let optional = Kind::optional().find(is_it).unwrap_or_else(|| panic!("{kind}"));
                let object: DynamicObject = serde_json::from_value(value).unwrap();
                Object::read(optional, &object).unwrap()
            }
        };
        self.index.apply(name, object);
    }

    pub(crate) fn delete(&self, kind: Kind, namespace: &str, name: &str) {
        self.index.delete(kind, ObjectName::new(namespace, name));
        self.index.flush();
    }

    /// What is behind the address for a client in the namespace "client".
    pub(crate) fn target(&self, address: &str) -> Option<proto::target::Kind> {
        self.target_for(address, "client")
    }

    pub(crate) fn target_for(&self, address: &str, consumer: &str) -> Option<proto::target::Kind> {
        self.target_at(address, consumer, &Place::default())
    }

    /// The same for a client that runs there.
    pub(crate) fn target_at(&self, address: &str, consumer: &str, place: &Place) -> Option<proto::target::Kind> {
        let address: SocketAddr = address.parse().unwrap();
        let views = self.index.watch_target(address, consumer).borrow().clone();
        let target = proto::Target::decode(views.view(place).unwrap().bytes).unwrap();
        assert_eq!(
            self.in_session(address, consumer, place),
            target,
            "a session tells the same"
        );
        target.kind
    }

    /// The same from the two parts in which a session tells it.
    fn in_session(&self, address: SocketAddr, consumer: &str, place: &Place) -> proto::Target {
        let told = |message: Bytes| proto::ToSidecar::decode(message).unwrap().kind.unwrap();
        let reader = || Reader {
            inbox: Arc::default(),
            number: 0,
        };
        let routes = self.index.follow_routes(address, consumer, reader()).newest();
        let to_sidecar::Kind::Routes(message) = told(routes.message().unwrap()) else {
            panic!("no routes");
        };
        assert_eq!(message.address, address.to_string());
        let mut target = message.target.unwrap();
        let mut names = routes.sets().iter();
        if let Some(proto::target::Kind::Service(service)) = &mut target.kind {
            for backend in &mut service.backends {
                let Some(proto::backend::Kind::EndpointSet(named)) = &backend.kind else {
                    continue;
                };
                let name = names.next().unwrap();
                let views = self.index.follow_endpoints(name, reader()).newest();
                let to_sidecar::Kind::EndpointSet(set) =
                    told(views.view(place, Understands::default()).unwrap().message(None))
                else {
                    panic!("no endpoints");
                };
                assert_eq!((named, set.since), (&set.name, 0));
                let endpoints = set.endpoints;
                backend.kind = Some(proto::backend::Kind::Endpoints(proto::Endpoints { endpoints }));
            }
        }
        assert_eq!(names.next(), None);
        target
    }

    /// What is known of a pod, whose ServiceAccount has its name without the number at the end.
    pub(crate) fn known(&self, namespace: &str, pod: &str) -> watch::Receiver<Arc<Known>> {
        let account = pod.rsplit_once('-').map_or(pod, |(account, _)| account);
        self.index.watch_workload(&pod_key(namespace, pod, account))
    }

    /// What a pod is told of who may call it, whose ServiceAccount has its name without the number at the end.
    pub(crate) fn access(&self, namespace: &str, pod: &str) -> outrigger_api::access::Access {
        self.access_of(namespace, pod, pod.rsplit_once('-').unwrap().0)
    }

    pub(crate) fn access_of(&self, namespace: &str, pod: &str, account: &str) -> outrigger_api::access::Access {
        let reader = Reader {
            inbox: Arc::default(),
            number: 0,
        };
        let followed = self.index.follow_access(&pod_key(namespace, pod, account), reader);
        followed.newest().said().unwrap()
    }

    pub(crate) fn service(&self, address: &str) -> proto::Service {
        self.service_for(address, "client")
    }

    pub(crate) fn service_for(&self, address: &str, consumer: &str) -> proto::Service {
        match self.target_for(address, consumer) {
            Some(proto::target::Kind::Service(service)) => service,
            other => panic!("{address} is {other:?}"),
        }
    }

    pub(crate) fn pod(&self, address: &str) -> proto::Pod {
        match self.target(address) {
            Some(proto::target::Kind::Pod(pod)) => pod,
            other => panic!("{address} is {other:?}"),
        }
    }

    /// A Service in the namespace shop with the port 80 → 8080 and one ready pod of the mesh, which has the identity of
    /// the same name. `n` is the last byte of both addresses.
    pub(crate) fn add_service(&self, name: &str, n: u8) {
        self.add_service_in("shop", name, n);
    }

    pub(crate) fn add_service_in(&self, namespace: &str, name: &str, n: u8) {
        self.apply_value(json!({
            "kind": "Service", "apiVersion": "v1",
            "metadata": {"namespace": namespace, "name": name},
            "spec": {
                "clusterIP": format!("10.96.0.{n}"), "clusterIPs": [format!("10.96.0.{n}")], "selector": {"app": name},
                "ports": [{"name": "http", "port": 80, "targetPort": 8080}],
            },
        }));
        self.apply_value(json!({
            "kind": "Pod", "apiVersion": "v1",
            "metadata": {
                "namespace": namespace, "name": format!("{name}-1"),
                "labels": {"app": name},
            },
            "spec": {"serviceAccountName": name, "containers": [{"name": "outrigger-proxy"}]},
            "status": {"podIP": format!("10.244.0.{n}"), "podIPs": [{"ip": format!("10.244.0.{n}")}]},
        }));
        self.apply_value(json!({
            "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "addressType": "IPv4",
            "metadata": {
                "namespace": namespace, "name": format!("{name}-x"), "labels": {"kubernetes.io/service-name": name},
            },
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            "endpoints": [{
                "addresses": [format!("10.244.0.{n}")],
                "conditions": {"ready": true},
                "targetRef": {"kind": "Pod", "namespace": namespace, "name": format!("{name}-1")},
            }],
        }));
        self.index.flush();
    }
}

/// A pod as its sidecar says it is.
pub(crate) fn pod_key(namespace: &str, pod: &str, account: &str) -> PodKey {
    PodKey {
        name: ObjectName::new(namespace, pod),
        service_account: account.into(),
    }
}

/// The addresses of a backend.
pub(crate) fn addresses(backend: &proto::Backend) -> Vec<&str> {
    endpoints(backend).iter().map(|e| e.address.as_str()).collect()
}

pub(crate) fn endpoints(backend: &proto::Backend) -> &[proto::Endpoint] {
    match &backend.kind {
        Some(proto::backend::Kind::Endpoints(endpoints)) => &endpoints.endpoints,
        other => panic!("{other:?}"),
    }
}
