//! What a controller of the commit in tests/skew/BASE said, and what its own sidecar made of it.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use outrigger_api::discovery as proto;
use prost::Message;
use serde_json::{Value, json};

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
        let mut then = model(&format!("{name}.json"));
        in_todays_words(&mut then);
        assert_eq!(understood, then, "{name}");
    }
    let workload = proto::Workload::decode(&read("workload")[..]).unwrap();
    let understood = snapshot::workload(&from_proto::workload(&workload));
    assert_eq!(understood, model("workload.json"));
}

/// What is shown by another name since, wherever it stands.
fn in_todays_words(model: &mut Value) {
    match model {
        Value::Array(items) => items.iter_mut().for_each(in_todays_words),
        Value::Object(fields) => {
            fields.values_mut().for_each(in_todays_words);
            if fields.contains_key("connectTimeoutMs") {
                // It had none of these.
                for field in ["idleTimeoutMs", "responseHeadersTimeoutMs", "sessionPersistence"] {
                    fields.insert(field.to_owned(), Value::Null);
                }
                fields.insert("faults".to_owned(), json!([]));
                fields.insert("fallback".to_owned(), Value::Null);
                fields.insert("limits".to_owned(), Value::Null);
            }
            let budget = (fields.remove("budgetPercent"), fields.remove("budgetMinPerSecond"));
            if let (Some(percent), Some(per_second)) = budget {
                let ratio = percent.as_f64().unwrap() / 100.0;
                let budget =
                    json!({"ratio": ratio, "intervalMs": 10_000, "minCount": per_second, "minIntervalMs": 1000});
                fields.insert("budget".to_owned(), budget);
            }
        }
        _ => {}
    }
}
