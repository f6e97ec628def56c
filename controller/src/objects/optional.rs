//! Kinds that a cluster may have or not: Gateway API's, Outrigger's own, and ServiceCIDRs (Kubernetes 1.31 and later). They are read
//! without types of their own, whichever version is served.

use kube::core::{ApiResource, DynamicObject, GroupVersionKind};

use super::policy::{Policy, PolicyKind};
use super::route::{self, Route, RouteKind};
use super::{Kind, Object, ObjectName, from_k8s};

const NETWORKING: &str = "networking.k8s.io";

impl Kind {
    /// All of these kinds.
    pub fn optional() -> impl Iterator<Item = Self> {
        let others = [Self::HttpRoute, Self::GrpcRoute, Self::ServiceCidr];
        others.into_iter().chain(PolicyKind::ALL.map(Self::Policy))
    }

    /// How the API names one of these kinds, in the version in which a status is written. None for the others.
    pub fn resource(self) -> Option<ApiResource> {
        let (group, version, kind, plural) = match self {
            Self::HttpRoute => (route::GROUP, "v1", "HTTPRoute", "httproutes"),
            Self::GrpcRoute => (route::GROUP, "v1", "GRPCRoute", "grpcroutes"),
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
        let route = |kind| Some(Self::Route(Box::new(Route::read(kind, object)?)));
        let object = match kind {
            Kind::HttpRoute => route(RouteKind::Http)?,
            Kind::GrpcRoute => route(RouteKind::Grpc)?,
            Kind::Policy(kind) => Self::Policy(Box::new(Policy::read(kind, object))),
            Kind::ServiceCidr => return from_k8s::service_cidr(object),
            Kind::Service | Kind::EndpointSlice | Kind::Pod | Kind::Node | Kind::Namespace => return None,
        };
        Some((name, object))
    }
}
