#![allow(clippy::unwrap_used)]

use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use super::metrics::Said;
use super::trust::validity;
use super::{DAY, Facts, Level, findings, some};

fn facts() -> Facts {
    let deployment = json!({"spec": {"replicas": 2, "selector": {}, "template": {}}, "status": {"readyReplicas": 2}});
    Facts {
        namespace: "outrigger".to_owned(),
        cluster_version: "v1.34.4".to_owned(),
        controller: serde_json::from_value(deployment.clone()).unwrap(),
        injector: serde_json::from_value(deployment).unwrap(),
        webhooks: None,
        missing_secrets: Vec::new(),
        own_kinds: true,
        gateway_api: false,
        bundle: None,
        bundles: [("shop".to_owned(), None)].into(),
        pods: Vec::new(),
        sidecars_say: Said::default(),
        controllers_say: Said::default(),
        now: SystemTime::UNIX_EPOCH + 1000 * DAY,
    }
}

fn pod(name: &str, labels: serde_json::Value, phase: &str, sidecar_ready: bool) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"namespace": "shop", "name": name, "labels": labels},
        "status": {"phase": phase, "initContainerStatuses": [
            {"name": "outrigger-proxy", "ready": sidecar_ready, "image": "", "imageID": "", "restartCount": 0}]},
    }))
    .unwrap()
}

fn texts(facts: &Facts, level: Level) -> Vec<String> {
    findings(facts)
        .into_iter()
        .filter(|f| f.level == level)
        .map(|f| f.text)
        .collect()
}

#[test]
fn what_is_missing_is_named() {
    let mut facts = facts();
    facts.injector = None;
    facts.own_kinds = false;
    facts.missing_secrets.push("outrigger-ca");
    let wrong = texts(&facts, Level::Wrong).join("\n");
    for part in [
        "Deployment outrigger/outrigger-injector",
        "MutatingWebhookConfiguration",
        "Secret outrigger/outrigger-ca is missing",
        "CRDs",
        "ConfigMap outrigger/outrigger-trust-bundle is missing",
    ] {
        assert!(wrong.contains(part), "{part:?} is not in\n{wrong}");
    }
}

#[test]
fn pods() {
    let mut facts = facts();
    let version = env!("CARGO_PKG_VERSION");
    facts.pods = vec![
        pod("fine", json!({"outrigger.dev/proxy-version": version}), "Running", true),
        pod("old", json!({"outrigger.dev/proxy-version": "0.0.9"}), "Running", true),
        pod(
            "stuck",
            json!({"outrigger.dev/proxy-version": version}),
            "Pending",
            false,
        ),
        pod("bare", json!({}), "Running", true),
        pod(
            "opted-out",
            json!({"outrigger.dev/inject": "disabled"}),
            "Running",
            true,
        ),
        pod("done", json!({}), "Succeeded", false),
    ];
    let wrong = texts(&facts, Level::Wrong);
    assert!(
        wrong.contains(&"pods without a sidecar in labelled namespaces: shop/bare".to_owned()),
        "{wrong:?}"
    );
    assert!(
        wrong.contains(&"sidecars that are not ready: shop/stuck".to_owned()),
        "{wrong:?}"
    );
    assert!(
        texts(&facts, Level::Warning)
            .iter()
            .any(|text| text.contains("sidecars of 0.0.9"))
    );
}

#[test]
fn probes_that_kubelet_sends_to_the_app_are_named() {
    let mut facts = facts();
    let version = env!("CARGO_PKG_VERSION");
    let pod = |name: &str, annotations: serde_json::Value, probe: serde_json::Value| -> Pod {
        let labels = json!({"outrigger.dev/proxy-version": version});
        serde_json::from_value(json!({
            "metadata": {"namespace": "shop", "name": name, "labels": labels, "annotations": annotations},
            "spec": {"containers": [{"name": "app", "livenessProbe": probe}],
                     "initContainers": [{"name": "outrigger-init"}, {"name": "outrigger-proxy"}]},
        }))
        .unwrap()
    };
    let own = json!({"httpGet": {"path": "/probe/app/liveness", "port": 14190}});
    facts.pods = vec![pod("fine", json!({}), own)];
    let named = |facts: &Facts| {
        texts(facts, Level::Warning)
            .into_iter()
            .find(|text| text.contains("kubelet asks"))
    };
    assert_eq!(named(&facts), None);
    let tcp = json!({"tcpSocket": {"port": 80}});
    facts.pods.push(pod(
        "opted-out",
        json!({"outrigger.dev/rewrite-probes": "false"}),
        tcp.clone(),
    ));
    facts.pods.push(pod(
        "elsewhere",
        json!({}),
        json!({"tcpSocket": {"port": 80, "host": "example.com"}}),
    ));
    facts.pods.push(pod("older", json!({}), tcp));
    let text = named(&facts).unwrap();
    for part in [
        "shop/opted-out: livenessProbe of container app: outrigger.dev/rewrite-probes",
        "shop/elsewhere: livenessProbe of container app: it asks the host \"example.com\"",
        "shop/older: livenessProbe of container app: its sidecar's version does not ask it",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
}

const ROOT: &str = include_str!("../../../injector/testdata/roots.pem");

#[test]
fn bundles_that_are_not_as_outriggers_own_are_named() {
    let mut facts = facts();
    facts.bundle = Some(ROOT.to_owned());
    facts.now = SystemTime::now();
    let bundle = |pem: &str| Some(pem.to_owned());
    facts.bundles = [("a", None), ("b", bundle(ROOT)), ("c", bundle("forged"))]
        .map(|(namespace, bundle)| (namespace.to_owned(), bundle))
        .into();
    let warnings = texts(&facts, Level::Warning).join("\n");
    assert!(warnings.contains("is not as in outrigger: a, c; "), "{warnings}");
    facts.bundle = bundle("rubbish");
    let wrong = texts(&facts, Level::Wrong).join("\n");
    assert!(
        wrong.contains("outrigger-trust-bundle: the trust bundle has no certificate"),
        "{wrong}"
    );
}

#[test]
fn pods_that_were_made_with_roots_that_are_gone_are_named() {
    let gone = "-----BEGIN CERTIFICATE-----\nGONE\n-----END CERTIFICATE-----\n";
    let pod = |name: &str, roots: &str, ready: bool| -> Pod {
        let mut pod = pod(name, json!({"outrigger.dev/proxy-version": "1"}), "Pending", ready);
        let env = json!([{"name": "OUTRIGGER_TRUST_BUNDLE", "value": roots}]);
        pod.spec = serde_json::from_value(json!({
            "containers": [], "initContainers": [{"name": "outrigger-proxy", "env": env}]
        }))
        .unwrap();
        pod
    };
    let mut facts = facts();
    facts.bundle = Some(ROOT.to_owned());
    facts.pods = vec![
        pod("stuck", gone, false),
        pod("newer", gone, true),
        pod("starting", &format!("{gone}{}", ROOT.replace('\n', "\r\n")), false),
    ];
    let wrong = texts(&facts, Level::Wrong).join("\n");
    assert!(wrong.contains("may not know the controller: shop/stuck\n"), "{wrong}");
}

#[test]
fn apps_that_see_their_sidecars_processes_are_named() {
    let mut facts = facts();
    let pod = |name: &str, labels: serde_json::Value, more: serde_json::Value| -> Pod {
        let mut pod =
            json!({"metadata": {"namespace": "shop", "name": name, "labels": labels}, "spec": {"containers": []}});
        pod["spec"]
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        serde_json::from_value(pod).unwrap()
    };
    let mesh = json!({"outrigger.dev/proxy-version": env!("CARGO_PKG_VERSION")});
    let shared = json!({"shareProcessNamespace": true});
    facts.pods = vec![
        pod("fine", mesh.clone(), json!({})),
        pod("outside", json!({}), shared.clone()),
        pod("shared", mesh.clone(), shared),
        pod("host", mesh, json!({"hostPID": true})),
    ];
    let warnings = texts(&facts, Level::Warning);
    let text = warnings.iter().find(|text| text.contains("see the processes")).unwrap();
    assert!(
        text.ends_with(": shop/shared (shareProcessNamespace), shop/host (hostPID)"),
        "{text}"
    );
}

#[test]
fn roots_are_warned_of_sixty_days_ahead() {
    let now = SystemTime::UNIX_EPOCH + 1000 * DAY;
    let level = |days: &[u32]| {
        validity(
            &days
                .iter()
                .map(|d| SystemTime::UNIX_EPOCH + *d * DAY)
                .collect::<Vec<_>>(),
            now,
        )
        .level
    };
    assert_eq!(level(&[1061]), Level::Good);
    assert_eq!(level(&[1059]), Level::Warning);
    // The old root goes, the new one is there.
    assert_eq!(level(&[999, 2000]), Level::Good);
    assert_eq!(level(&[999]), Level::Wrong);
    assert_eq!(level(&[]), Level::Wrong);
}

#[test]
fn long_lists_are_cut() {
    let names: Vec<_> = (0..8).map(|n| n.to_string()).collect();
    assert_eq!(some(&names), "0, 1, 2, 3, 4 and 3 more");
    assert_eq!(super::days(Duration::from_secs(7200)), "2 hours");
}

#[test]
fn what_sidecars_found_out_is_named() {
    let mut facts = facts();
    let metrics = "outrigger_server_first_ports{direction=\"outbound\",service=\"shop/nats\",server_port=\"4222\"} 1\n";
    facts.sidecars_say.add("shop/web-1", Ok(metrics.to_owned()));
    facts.sidecars_say.add("shop/web-2", Err("forbidden".to_owned()));
    let metrics =
        "outrigger_controller_addresses_outside_networks{kind=\"pod\"} 3\noutrigger_controller_networks_refuted 1\n";
    facts
        .controllers_say
        .add("outrigger/controller-1", Ok(metrics.to_owned()));
    let warnings = texts(&facts, Level::Warning).join("\n");
    for part in [
        "3 addresses of Services and pods are outside",
        "speak first",
        "shop/nats:4222",
        "metrics of 1 sidecars",
        "forbidden",
    ] {
        assert!(warnings.contains(part), "{part:?} is not in\n{warnings}");
    }
}

#[test]
fn only_sidecars_that_are_ready_are_asked() {
    let mesh = json!({"outrigger.dev/proxy-version": "1"});
    let pods = [
        pod("asked", mesh.clone(), "Running", true),
        pod("unready", mesh.clone(), "Running", false),
        pod("ended", mesh, "Succeeded", true),
        pod("outside", json!({}), "Running", true),
    ];
    let asked: Vec<_> = super::with_ready_sidecar(&pods).collect();
    assert_eq!(asked, [("shop".to_owned(), "asked".to_owned())]);
}
