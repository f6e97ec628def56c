use std::sync::Arc;
use std::time::SystemTime;

use outrigger_api::discovery::Feature;
use serde_json::{Value, json};

use super::tests::{NOW, writes};
use crate::discovery::Discover;
use crate::objects::Kind;
use crate::testing::Cluster;
use crate::topic::{Inbox, Reader};

fn policy(name: &str, created: &str, targets: Value, validation: Value) -> Value {
    json!({
        "kind": "BackendTLSPolicy", "apiVersion": "gateway.networking.k8s.io/v1",
        "metadata": {
            "namespace": "shop", "name": name, "generation": 3, "resourceVersion": "7",
            "creationTimestamp": format!("{created}-01-01T00:00:00Z"),
        },
        "spec": {"targetRefs": targets, "validation": validation},
    })
}

fn web() -> Value {
    json!([{"group": "", "kind": "Service", "name": "web"}])
}

fn system() -> Value {
    json!({"hostname": "a.example.com", "wellKnownCACertificates": "System"})
}

fn with_refs(references: Value) -> Value {
    json!({"hostname": "a.example.com", "caCertificateRefs": references})
}

fn cluster() -> Cluster {
    let cluster = Cluster::new();
    cluster.index.set_own("outrigger", "controller-a");
    cluster.add_service("web", 1);
    cluster
}

/// The status that is to be written.
fn status(cluster: &Cluster, name: &str) -> Option<Value> {
    let writes = writes(cluster, NOW).into_iter();
    let mut of = writes.filter(|write| write.kind == Kind::BackendTls && &*write.name.name == name);
    of.next().map(|write| write.status)
}

/// Of each condition of an ancestor: its type, its status and its reason.
fn conditions(status: &Value, ancestor: usize) -> Vec<String> {
    let conditions = status["ancestors"][ancestor]["conditions"].as_array().unwrap();
    let word = |value: &Value| value.as_str().unwrap().to_owned();
    let said = |c: &Value| [word(&c["type"]), word(&c["status"]), word(&c["reason"])].join(" ");
    conditions.iter().map(said).collect()
}

const GOOD: [&str; 3] = [
    "Accepted True Accepted",
    "ResolvedRefs True ResolvedRefs",
    "Programmed True Programmed",
];

#[test]
fn reasons() {
    let map = json!({"group": "", "kind": "ConfigMap", "name": "ca"});
    let secret = json!({"group": "", "kind": "Secret", "name": "ca"});
    let none = json!({"group": "", "kind": "ConfigMap", "name": "none"});
    let port = |name: &str| json!([{"group": "", "kind": "Service", "name": "web", "sectionName": name}]);
    let nowhere = json!([{"group": "", "kind": "Service", "name": "nowhere"}]);
    let resolved = "ResolvedRefs True ResolvedRefs";
    for (targets, validation, expected) in [
        (web(), system(), &GOOD[..]),
        (port("http"), system(), &GOOD),
        (web(), with_refs(json!([map])), &GOOD),
        (port("admin"), system(), &["Accepted False TargetNotFound", resolved]),
        (nowhere, system(), &["Accepted False TargetNotFound", resolved]),
        (
            web(),
            json!({"hostname": "a.example.com"}),
            &["Accepted False Invalid", resolved],
        ),
        (
            web(),
            with_refs(json!([secret])),
            &["Accepted False NoValidCACertificate", "ResolvedRefs False InvalidKind"],
        ),
        (
            web(),
            with_refs(json!([none])),
            &[
                "Accepted False NoValidCACertificate",
                "ResolvedRefs False InvalidCACertificateRef",
            ],
        ),
        // One is good, and holds.
        (
            web(),
            with_refs(json!([secret, map])),
            &[GOOD[0], "ResolvedRefs False InvalidKind", GOOD[2]],
        ),
    ] {
        let cluster = cluster();
        cluster.apply_value(policy("p", "2026", targets.clone(), validation.clone()));
        cluster.index.flush();
        let sources = cluster.index.key_sources().borrow().clone();
        for source in &sources {
            assert_eq!(status(&cluster, "p"), None, "it is not known yet");
            let now = SystemTime::UNIX_EPOCH;
            match source.place.to_string().contains("none") {
                true => cluster
                    .index
                    .forget_keys(source, "there is no ConfigMap none".to_owned(), now),
                false => cluster.index.set_keys(source, Ok("AQID\n".to_owned()), now),
            }
        }
        let status = status(&cluster, "p").unwrap();
        assert_eq!(conditions(&status, 0), expected, "{targets} {validation}");
        let entry = &status["ancestors"][0];
        let accepted = entry["conditions"][0]["message"].as_str().unwrap();
        let is_attached = !expected[0].contains("TargetNotFound");
        assert_ne!(accepted.contains("in plaintext"), is_attached, "{accepted}");
        assert_eq!(entry["controllerName"], "outrigger.dev/controller");
        assert_eq!(entry["ancestorRef"]["kind"], "Service");
        assert_eq!(entry["conditions"][0]["observedGeneration"], 3);
        if expected[0].contains("NoValid") {
            let message = entry["conditions"][1]["message"].as_str().unwrap();
            assert!(message.starts_with("Secret ca: ") || message == "there is no ConfigMap none");
        }
    }
}

#[test]
fn the_younger_one_gives_way_and_what_others_wrote_stays() {
    let cluster = cluster();
    let gateway = json!({
        "ancestorRef": {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "g"},
        "controllerName": "example.com/gateway", "conditions": [],
    });
    let mut older = policy("z", "2025", web(), system());
    older["status"] = json!({"ancestors": [gateway]});
    cluster.apply_value(older.clone());
    let both = json!([
        {"group": "", "kind": "Service", "name": "web"},
        {"group": "", "kind": "Service", "name": "web", "sectionName": "http"},
        {"group": "example.com", "kind": "Backend", "name": "x"},
    ]);
    cluster.apply_value(policy("a", "2026", both, system()));
    let written = status(&cluster, "z").unwrap();
    assert_eq!(written["ancestors"][0], gateway);
    assert_eq!(conditions(&written, 1), GOOD);
    let younger = status(&cluster, "a").unwrap();
    assert_eq!(younger["ancestors"].as_array().unwrap().len(), 2);
    assert_eq!(conditions(&younger, 0)[0], "Accepted False Conflicted");
    assert_eq!(conditions(&younger, 1), GOOD);
    // It is written once.
    older["status"] = written;
    cluster.apply_value(older);
    assert_eq!(status(&cluster, "z"), None);
}

#[test]
fn sidecars_of_the_version_before_are_counted() {
    let cluster = cluster();
    cluster.apply_value(policy("p", "2026", web(), system()));
    let follow = |features: &[Feature]| {
        let reader = Reader {
            inbox: Arc::new(Inbox::new(features.iter().copied())),
            number: 0,
        };
        cluster
            .index
            .follow_routes("10.96.0.1:80".parse().unwrap(), "client", reader)
    };
    let _today = follow(&[Feature::BackendTls]);
    assert_eq!(conditions(&status(&cluster, "p").unwrap(), 0), GOOD);
    let _before = follow(&[Feature::ZoneSpill]);
    let status = status(&cluster, "p").unwrap();
    assert_eq!(conditions(&status, 0)[2], "Programmed False PartiallyProgrammed");
    let message = status["ancestors"][0]["conditions"][2]["message"].as_str().unwrap();
    assert!(message.starts_with("controller-a: 1 of 2 sidecars"), "{message}");
}
