//! Outrigger's control plane: issues identities, and streams discovery and policy to the sidecars.
//!
//! Identities are a crate of their own, [`outrigger_issuer`], with the server that this serves discovery beside them with. Here are
//! two halves. The pure one needs no Kubernetes and is what tests use: [`objects`] (what is kept of the cluster's), [`index`]
//! (objects in, answers out) and [`discovery`] (the discovery service over any [`discovery::Discover`]). The other,
//! [`cluster`], connects them to the API server; [`app`] puts all of it together.
//!
//! # What it must be allowed to do
//!
//! ClusterRole:
//!
//! | API group | resources | names | verbs |
//! |---|---|---|---|
//! | "" | services, namespaces, nodes | | list, watch |
//! | "" | pods | | get, list, watch |
//! | discovery.k8s.io | endpointslices | | list, watch |
//! | networking.k8s.io | servicecidrs | | list, watch |
//! | gateway.networking.k8s.io | httproutes, grpcroutes, tlsroutes, tcproutes, backendtlspolicies | | list, watch |
//! | gateway.networking.k8s.io | httproutes/status, grpcroutes/status, tlsroutes/status, tcproutes/status, backendtlspolicies/status | | patch |
//! | gateway.networking.x-k8s.io | xmeshes | | list, watch |
//! | gateway.networking.x-k8s.io | xmeshes/status | | patch |
//! | outrigger.dev | accesspolicies | | list, watch |
//! | outrigger.dev | accesspolicies/status | | patch |
//! | outrigger.dev | ratelimitpolicies | | list, watch |
//! | outrigger.dev | ratelimitpolicies/status | | patch |
//! | outrigger.dev | trafficpolicies | | list, watch |
//! | outrigger.dev | trafficpolicies/status | | patch |
//! | apiextensions.k8s.io | customresourcedefinitions | accesspolicies.outrigger.dev, ratelimitpolicies.outrigger.dev, trafficpolicies.outrigger.dev | list, watch |
//! | authentication.k8s.io | tokenreviews | | create |
//! | "" | configmaps | outrigger-trust-bundle | list, watch, patch |
//! | "" | configmaps | | create, get |
//!
//! Role in its own namespace:
//!
//! | API group | resources | names | verbs |
//! |---|---|---|---|
//! | "" | secrets | outrigger-ca | get, list, watch, update |
//! | events.k8s.io | events | | create, patch |
//!
//! (A list or watch limited to one name is allowed by a rule with that name. API
//! discovery is allowed to everybody who is authenticated.)

#![cfg_attr(test, allow(clippy::disallowed_methods, clippy::disallowed_types))]

pub mod access;
pub mod admin;
mod answers;
pub mod app;
pub mod cluster;
pub mod discovery;
pub mod index;
pub mod jwks;
pub mod metrics;
pub mod objects;
mod pieces;
pub mod room;
mod same;
pub mod session_keys;
pub mod split;
mod status;
mod store;
#[cfg(test)]
mod testing;
pub mod topic;
pub mod topology;
