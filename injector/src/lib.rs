//! Outrigger's injector: the sidecar is put into a pod by [`inject::patch`], a pure function, which the admission webhook
//! ([`app::start`]) and `outrigger inject` ([`manifest::inject`]) call alike.
//!
//! Architecture Invariant: `inject`, `manifest`, `settings` and `review` do no I/O.
//!
//! What the webhook needs of Kubernetes (the chart's RBAC says exactly this): `get` of namespaces; `get`, `list`, `watch`
//! and `patch` of its own MutatingWebhookConfiguration, of which a ValidatingAdmissionPolicy leaves `caBundle`; in its own
//! namespace `get`, `list`, `watch` and `update` of its own Secret, and `get`, `list` and `watch` of the trust bundle's ConfigMap.

#![cfg_attr(test, allow(clippy::disallowed_methods, clippy::disallowed_types))]

mod admin;
pub mod app;
pub mod certs;
mod clock;
pub mod inject;
pub mod manifest;
mod metrics;
mod quantity;
pub mod review;
pub mod roots;
pub mod rotation;
pub mod selftest;
pub mod settings;
mod webhook;

pub use webhook::PATH as WEBHOOK_PATH;
