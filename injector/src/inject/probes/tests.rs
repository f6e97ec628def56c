//! What golden files do not show: a pod that is looked at again, and what is left to kubelet.
#![allow(clippy::unwrap_used)]

use k8s_openapi::api::core::v1::Pod;
use outrigger_api::probes::{AppProbe, Ask, Kind};
use serde_json::{Value, json};

use super::left_to_kubelet;
use crate::inject::{Given, NamespaceMeta, Outcome, Refusal, patch};
use crate::settings::Settings;

fn typed(pod: &Value) -> Pod {
    serde_json::from_value(pod.clone()).unwrap()
}

/// Reviews the pod as it is now; whether something changed.
fn review(pod: &mut Value, key: &str) -> Result<bool, Refusal> {
    let namespace = NamespaceMeta {
        name: "shop".to_owned(),
        labels: [("outrigger.dev/inject".to_owned(), "enabled".to_owned())].into(),
        ..NamespaceMeta::default()
    };
    match patch(
        &typed(pod),
        &namespace,
        &Settings::default(),
        Given {
            key,
            roots: None,
            controller: None,
        },
    )? {
        Outcome::Patched { patch, .. } => {
            json_patch::patch(pod, &patch).unwrap();
            Ok(true)
        }
        Outcome::AlreadyInjected => Ok(false),
        other => panic!("{other:?}"),
    }
}

fn injected(containers: Value) -> Value {
    let mut pod = json!({"metadata": {"name": "app"}, "spec": {"containers": containers}});
    assert!(review(&mut pod, "first").unwrap());
    pod
}

fn variable<'a>(pod: &'a Value, name: &str) -> &'a str {
    let init = pod["spec"]["initContainers"].as_array().unwrap().iter();
    let proxy = init.clone().find(|c| c["name"] == "outrigger-proxy").unwrap();
    let env = proxy["env"].as_array().unwrap();
    env.iter().find(|v| v["name"] == name).unwrap()["value"]
        .as_str()
        .unwrap()
}

fn asked(pod: &Value) -> Vec<AppProbe> {
    serde_json::from_str(&variable(pod, "OUTRIGGER_APP_PROBES").replace("$$", "$")).unwrap()
}

fn let_in(pod: &Value) -> Value {
    serde_json::from_str(variable(pod, "OUTRIGGER_PROBES")).unwrap()
}

#[test]
fn what_another_webhook_adds_is_asked_too() {
    let mut pod = injected(json!([{
        "name": "app",
        "readinessProbe": {"httpGet": {"port": 8080, "path": "/ready", "httpHeaders": [{"name": "X", "value": "$a$$b"}]}},
        "lifecycle": {"preStop": {"httpGet": {"port": 8080, "path": "/drain"}}},
    }]));
    assert_eq!(asked(&pod).len(), 2);
    assert!(!review(&mut pod, "second").unwrap(), "nothing was added");
    let added = json!({
        "name": "added",
        "ports": [{"name": "health", "containerPort": 4444}],
        "livenessProbe": {"tcpSocket": {"port": "health"}, "periodSeconds": 7},
        "lifecycle": {"postStart": {"httpGet": {"port": 4444}}},
    });
    pod["spec"]["containers"].as_array_mut().unwrap().insert(0, added);
    // Before the sidecar: kubelet asks it when there is no sidecar yet.
    let early = json!({"name": "early", "restartPolicy": "Always", "startupProbe": {"tcpSocket": {"port": 7000}}});
    pod["spec"]["initContainers"]
        .as_array_mut()
        .unwrap()
        .insert(0, early.clone());
    let late = json!({"name": "late", "restartPolicy": "Always", "startupProbe": {"grpc": {"port": 7001}}});
    pod["spec"]["initContainers"].as_array_mut().unwrap().push(late);

    assert!(review(&mut pod, "second").unwrap());
    let probes = asked(&pod);
    let named: Vec<_> = probes.iter().map(|p| (p.container.as_str(), p.kind, p.port)).collect();
    assert_eq!(
        named,
        [
            ("late", Kind::Startup, 7001),
            ("added", Kind::Liveness, 4444),
            ("added", Kind::PostStart, 4444),
            ("app", Kind::Readiness, 8080),
            ("app", Kind::PreStop, 8080),
        ]
    );
    let Ask::Http(ready) = &probes[3].ask else {
        panic!("{:?}", probes[3])
    };
    assert_eq!(ready.headers, [("X".to_owned(), "$a$$b".to_owned())]);
    // One key for all, the first.
    assert!(
        probes
            .iter()
            .filter(|p| p.kind.is_handler())
            .all(|p| p.key.as_deref() == Some("first"))
    );
    assert_eq!(pod["spec"]["initContainers"][0], early);
    assert_eq!(let_in(&pod), json!([{"port": 7000}]));
    assert_eq!(
        pod["spec"]["containers"][0]["livenessProbe"],
        json!({"httpGet": {"path": "/probe/added/liveness", "port": 14190}, "periodSeconds": 7})
    );
    assert!(!review(&mut pod, "third").unwrap(), "and once more");
}

#[test]
fn a_probe_that_another_webhook_replaces_is_asked_as_it_is_then() {
    let mut pod = injected(json!([{"name": "app", "livenessProbe": {"tcpSocket": {"port": 8080}}}]));
    pod["spec"]["containers"][0]["livenessProbe"] = json!({"grpc": {"port": 9000, "service": "s"}});
    assert!(review(&mut pod, "second").unwrap());
    let probes = asked(&pod);
    assert_eq!(
        (probes.len(), probes[0].port, &probes[0].ask),
        (1, 9000, &Ask::Grpc("s".to_owned()))
    );
}

/// The sidecar must not give up before kubelet does.
#[test]
fn a_time_that_is_changed_later_is_the_sidecars_too() {
    let mut pod = injected(json!([{
        "name": "app",
        "livenessProbe": {"tcpSocket": {"port": 8080}},
        "readinessProbe": {"httpGet": {"port": 8080}, "timeoutSeconds": 3},
        "lifecycle": {"preStop": {"httpGet": {"port": 8080}}},
    }]));
    let times = |pod: &Value| asked(pod).iter().map(|p| p.timeout).collect::<Vec<_>>();
    assert_eq!(times(&pod), [Some(3), Some(1), None]);
    pod["spec"]["containers"][0]["livenessProbe"]["timeoutSeconds"] = json!(30);
    assert!(review(&mut pod, "second").unwrap());
    assert_eq!(times(&pod), [Some(3), Some(30), None]);
    assert!(!review(&mut pod, "third").unwrap());
}

#[test]
fn what_another_webhook_adds_may_not_be_the_sidecars() {
    for (added, why) in [
        (
            json!({"name": "added", "securityContext": {"runAsUser": 2140}}),
            "runAsUser 2140",
        ),
        (
            json!({"name": "added", "ports": [{"containerPort": 14190}]}),
            "port 14190",
        ),
    ] {
        let mut pod = injected(json!([{"name": "app"}]));
        pod["spec"]["containers"].as_array_mut().unwrap().push(added);
        let refusal = review(&mut pod, "second").unwrap_err();
        assert!(refusal.problems[0].contains(why), "{refusal}");
    }
}

#[test]
fn a_sidecar_of_the_version_before_keeps_what_it_has() {
    let mut pod = injected(json!([{"name": "app"}]));
    let env = pod["spec"]["initContainers"][1]["env"].as_array_mut().unwrap();
    env.retain(|variable| variable["name"] != "OUTRIGGER_APP_PROBES");
    pod["spec"]["containers"][0]["livenessProbe"] = json!({"tcpSocket": {"port": 8080}});
    assert!(!review(&mut pod, "second").unwrap());
    let left = left_to_kubelet(&typed(&pod));
    assert_eq!(
        left,
        ["livenessProbe of container app: its sidecar's version does not ask it"]
    );
}

#[test]
fn what_is_left_to_kubelet_is_named() {
    let mut pod = injected(json!([{
        "name": "app",
        "livenessProbe": {"httpGet": {"port": 80, "host": "example.com"}},
        "readinessProbe": {"tcpSocket": {"port": 80}},
        // kubelet fails at these by itself.
        "startupProbe": {"tcpSocket": {"port": "nowhere"}},
        "lifecycle": {"postStart": {"tcpSocket": {"port": 80}}, "preStop": {"httpGet": {"port": 80, "path": "mailto:x"}}},
    }]));
    let left = left_to_kubelet(&typed(&pod));
    assert_eq!(
        left,
        ["livenessProbe of container app: it asks the host \"example.com\""]
    );
    assert_eq!(let_in(&pod), json!([]));
    assert_eq!(asked(&pod).len(), 1);
    pod["metadata"]["annotations"] = json!({"outrigger.dev/rewrite-probes": "perhaps"});
    assert!(review(&mut pod, "second").unwrap_err().problems[0].contains("perhaps"));
}

#[test]
fn what_does_not_fit_into_the_environment_keeps_its_exception() {
    let large = |size| json!({"httpGet": {"port": 8080, "path": "/ready", "httpHeaders": [{"name": "X", "value": "x".repeat(size)}]}});
    let pod = injected(json!([
        {"name": "app", "readinessProbe": large(40_000), "livenessProbe": large(40_000)},
        // kube-apiserver refuses the second of two, and names that are none.
        {"name": "app", "readinessProbe": {"tcpSocket": {"port": 8081}}},
        {"name": "a/b", "readinessProbe": {"tcpSocket": {"port": 8082}}},
        {"name": "own", "readinessProbe": {"httpGet": {"port": 14190, "path": "/readyz"}}},
    ]));
    assert_eq!(asked(&pod).len(), 1);
    assert_eq!(
        let_in(&pod),
        json!([{"port": 8080, "target": "/ready"}, {"port": 8081}])
    );
    assert_eq!(
        pod["spec"]["containers"][3]["readinessProbe"]["httpGet"]["path"],
        "/readyz"
    );
}

/// Linux starts no program with a variable of more than 128 KiB.
#[test]
fn exceptions_leave_room_for_the_sidecar_to_start() {
    let long = |letter: &str| json!({"httpGet": {"port": 8080, "path": format!("/{}", letter.repeat(60_000))}});
    let mut pod = json!({
        "metadata": {"name": "app", "annotations": {"outrigger.dev/rewrite-probes": "false"}},
        "spec": {"containers": [
            {"name": "a", "livenessProbe": long("a"), "readinessProbe": long("b"), "startupProbe": long("c")},
            {"name": "b", "livenessProbe": {"tcpSocket": {"port": 8081}}},
        ]},
    });
    assert!(review(&mut pod, "first").unwrap());
    let ports: Vec<_> = let_in(&pod)
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["port"].clone())
        .collect();
    assert_eq!(ports, [json!(8080), json!(8081)]);
    assert!(variable(&pod, "OUTRIGGER_PROBES").len() < 70_000);
    assert!(!review(&mut pod, "second").unwrap());
}
