//! Envoy's protocol of external authorization, as far as it is spoken here: `proxy/proto/envoy` says which fields. The code is written by
//! `cargo run -p outrigger-protobuf`.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::pedantic)]

include!("../../generated/envoy.service.auth.v3.rs");
