//! Kinds that a cluster may have or not: Gateway API's, Outrigger's own, and ServiceCIDRs (Kubernetes 1.31 and later). They are read
//! without types of their own, whichever version is served.

use kube::core::{ApiResource, DynamicObject, GroupVersionKind};

use super::backend_tls::{self, BackendTls};
use super::mesh::{self, Mesh};
use super::policy::{Policy, PolicyKind};
use super::route::{self, Route, RouteKind};
use super::{Kind, Object, ObjectName, from_k8s};

const NETWORKING: &str = "networking.k8s.io";

impl Kind {
    /// All of these kinds.
    pub fn optional() -> impl Iterator<Item = Self> {
        let routes = RouteKind::ALL.into_iter().map(Self::Route);
        let policies = PolicyKind::ALL.into_iter().map(Self::Policy);
        routes
            .chain([Self::BackendTls, Self::ServiceCidr, Self::Mesh])
            .chain(policies)
    }

    /// How the API names one of these kinds, in the version in which a status is written. None for the others.
    pub fn resource(self) -> Option<ApiResource> {
        let (group, version, kind, plural) = match self {
            Self::Route(kind) => (route::GROUP, "v1", kind.name(), kind.plural()),
            Self::BackendTls => (route::GROUP, "v1", backend_tls::KIND, backend_tls::PLURAL),
            Self::Mesh => (mesh::GROUP, "v1alpha1", "XMesh", "xmeshes"),
            Self::ServiceCidr => (NETWORKING, "v1", "ServiceCIDR", "servicecidrs"),
            Self::Policy(kind) => return Some((kind.row().resource)()),
            Self::Service | Self::EndpointSlice | Self::Pod | Self::Node | Self::Namespace => return None,
        };
        let kind = GroupVersionKind::gvk(group, version, kind);
        Some(ApiResource::from_gvk_with_plural(&kind, plural))
    }
}

impl Object {
    /// Reads an object of one of these kinds. None if nothing can be made of it.
    pub fn read(kind: Kind, object: &DynamicObject) -> Option<(ObjectName, Self)> {
        let name = from_k8s::object_name(&object.metadata);
        let object = match kind {
            Kind::Route(kind) => Self::Route(Box::new(Route::read(kind, object)?)),
            Kind::Policy(kind) => Self::Policy(Box::new(Policy::read(kind, object))),
            Kind::BackendTls => Self::BackendTls(Box::new(BackendTls::read(object))),
            Kind::Mesh => Self::Mesh(Mesh::read(object)?),
            Kind::ServiceCidr => return from_k8s::service_cidr(object),
            Kind::Service | Kind::EndpointSlice | Kind::Pod | Kind::Node | Kind::Namespace => return None,
        };
        Some((name, object))
    }
}
