//! What a controller of the commit in tests/skew/BASE said, and what its own sidecar made of it.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use outrigger_api::discovery as proto;
use prost::Message;
use serde_json::Value;

use super::snapshot;
use crate::model::from_proto;

#[test]
fn what_was_recorded_from_the_version_before_means_what_it_meant() {
    let recorded = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/skew/recorded");
    let read = |name: &str| fs::read(recorded.join(name)).unwrap();
    let model = |name: &str| -> Value { serde_json::from_slice(&read(name)).unwrap() };
    for name in ["orders", "canary", "web-db", "pod", "pod-outside-the-mesh", "external"] {
        let message = proto::Target::decode(&read(&format!("{name}.target"))[..]).unwrap();
        let mut understood = snapshot::target(&from_proto::target(&message));
        // Compiled patterns are no words: the tests of outbound say what they match.
        let routes = understood.get_mut("routes").and_then(Value::as_array_mut);
        for route in routes.into_iter().flatten() {
            route.as_object_mut().unwrap().remove("matches");
        }
        assert_eq!(understood, model(&format!("{name}.json")), "{name}");
    }
    let workload = proto::Workload::decode(&read("workload")[..]).unwrap();
    let understood = snapshot::workload(&from_proto::workload(&workload));
    assert_eq!(understood, model("workload.json"));
}
