//! What golden files do not show: selection, names, and values at their edges.
#![allow(clippy::unwrap_used)]

mod circumstances;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::{Given, NamespaceMeta, Outcome, patch, workload};
use crate::settings::{ForwardedFor, Settings};

const GIVEN: Given<'_> = Given {
    key: "key",
    roots: None,
    controller: None,
};

fn namespace(name: &str, inject: Option<&str>) -> NamespaceMeta {
    let labels: BTreeMap<_, _> = inject
        .into_iter()
        .map(|value| ("outrigger.dev/inject".to_owned(), value.to_owned()))
        .collect();
    NamespaceMeta {
        name: name.to_owned(),
        labels,
        ..NamespaceMeta::default()
    }
}

fn pod(metadata: Value) -> Pod {
    let containers = json!([{"name": "app", "image": "app"}]);
    serde_json::from_value(json!({"metadata": metadata, "spec": {"containers": containers}})).unwrap()
}

fn outcome(metadata: Value, namespace: &NamespaceMeta) -> &'static str {
    match patch(&pod(metadata), namespace, &Settings::default(), GIVEN) {
        Ok(Outcome::Patched { .. }) => "patched",
        Ok(Outcome::OptedOut) => "opted out",
        Ok(Outcome::NotSelected) => "not selected",
        Ok(Outcome::LeftAlone(_)) => "left alone",
        Ok(Outcome::AlreadyInjected) => "already",
        Err(_) => "refused",
    }
}

#[test]
fn who_gets_one() {
    let (labelled, plain) = (namespace("shop", Some("enabled")), namespace("shop", None));
    let (yes, no) = (
        json!({"outrigger.dev/inject": "enabled"}),
        json!({"outrigger.dev/inject": "disabled"}),
    );
    assert_eq!(outcome(json!({}), &labelled), "patched");
    assert_eq!(outcome(json!({}), &plain), "not selected");
    assert_eq!(outcome(json!({}), &namespace("shop", Some("disabled"))), "not selected");
    assert_eq!(outcome(json!({"labels": yes}), &plain), "patched");
    assert_eq!(outcome(json!({"annotations": yes}), &plain), "patched");
    assert_eq!(outcome(json!({"labels": no}), &labelled), "opted out");
    assert_eq!(outcome(json!({"annotations": no}), &labelled), "opted out");
    assert_eq!(
        outcome(json!({"labels": yes, "annotations": no}), &labelled),
        "opted out"
    );
    assert_eq!(
        outcome(json!({"labels": no, "annotations": yes}), &labelled),
        "opted out"
    );
    assert_eq!(
        outcome(json!({"labels": {"outrigger.dev/inject": "yes"}}), &labelled),
        "refused"
    );
    for never in ["kube-system", "kube-public", "kube-node-lease", "outrigger"] {
        assert_eq!(
            outcome(json!({"labels": yes}), &namespace(never, Some("enabled"))),
            "not selected",
            "{never}"
        );
    }
    let mirror = json!({"annotations": {"kubernetes.io/config.mirror": "x"}});
    assert_eq!(outcome(mirror, &labelled), "not selected");
}

#[test]
fn half_a_sidecar_is_a_clash_and_not_a_sidecar() {
    let mut copied = pod(json!({"labels": {"outrigger.dev/proxy-version": "0.1.0"}}));
    copied.spec.as_mut().unwrap().containers[0].name = "outrigger-proxy".to_owned();
    let refusal = patch(
        &copied,
        &namespace("shop", Some("enabled")),
        &Settings::default(),
        GIVEN,
    )
    .unwrap_err();
    assert!(refusal.problems[0].contains("the name is the sidecar's"), "{refusal}");
}

#[test]
fn workloads_are_called_as_their_authors_called_them() {
    let name = |kind: &str, owner: &str, labels: Value| {
        let owner = json!([{"apiVersion": "v1", "kind": kind, "name": owner, "uid": "u", "controller": true}]);
        workload::name(&pod(
            json!({"generateName": "x-", "labels": labels, "ownerReferences": owner}),
        ))
    };
    let hash = json!({"pod-template-hash": "7d9c6b5f4d"});
    assert_eq!(name("ReplicaSet", "orders-7d9c6b5f4d", hash.clone()), "orders");
    assert_eq!(name("ReplicaSet", "orders", hash), "orders");
    assert_eq!(name("ReplicaSet", "orders-7d9c6b5f4d", json!({})), "orders-7d9c6b5f4d");
    assert_eq!(name("StatefulSet", "db", json!({"app": "other"})), "db");
    assert_eq!(name("Job", "report-29389440", json!({})), "report");
    assert_eq!(name("Job", "import-20261122", json!({})), "import-20261122");
    assert_eq!(name("Job", "once", json!({})), "once");
    let bare = |metadata| workload::name(&pod(metadata));
    assert_eq!(
        bare(json!({"name": "a-pod", "labels": {"app": "b", "app.kubernetes.io/name": "c"}})),
        "c"
    );
    assert_eq!(bare(json!({"name": "a-pod", "labels": {"app": "b"}})), "b");
    assert_eq!(bare(json!({"name": "a-pod"})), "a-pod");
    assert_eq!(bare(json!({"generateName": "run-"})), "run");
}

/// The sidecar of a pod with these annotations, and `more` in its spec.
fn sidecar(annotations: Value, more: Value, settings: &Settings) -> Value {
    let mut raw = json!({"metadata": {"annotations": annotations}, "spec": {"containers": [{"name": "app"}]}});
    raw["spec"]
        .as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    let typed: Pod = serde_json::from_value(raw.clone()).unwrap();
    let outcome = patch(&typed, &namespace("shop", Some("enabled")), settings, GIVEN).unwrap();
    let Outcome::Patched { patch, .. } = outcome else {
        panic!("{outcome:?}")
    };
    json_patch::patch(&mut raw, &patch).unwrap();
    raw["spec"]["initContainers"][1].clone()
}

fn env(sidecar: &Value, name: &str) -> Option<String> {
    let env = sidecar["env"]
        .as_array()
        .unwrap()
        .iter()
        .find(|env| env["name"] == name)?;
    Some(env["value"].as_str().unwrap().to_owned())
}

#[test]
fn a_request_and_a_limit_follow_one_another() {
    let settings = Settings::default();
    let of = |key: &str, value: &str| sidecar(json!({key: value}), json!({}), &settings)["resources"].clone();
    // Below the default request.
    let small = of("outrigger.dev/proxy-memory-limit", "16Mi");
    assert_eq!(
        (&small["requests"]["memory"], &small["limits"]["memory"]),
        (&json!("16Mi"), &json!("16Mi"))
    );
    // Above the default limit.
    let large = of("outrigger.dev/proxy-memory-request", "1Gi");
    assert_eq!(
        (&large["requests"]["memory"], &large["limits"]["memory"]),
        (&json!("1Gi"), &json!("1Gi"))
    );
    let cpu = of("outrigger.dev/proxy-cpu-limit", "2");
    assert_eq!(
        (&cpu["requests"]["cpu"], &cpu["limits"]["cpu"]),
        (&json!("10m"), &json!("2"))
    );
}

#[test]
fn a_pod_with_resources_as_a_whole_shares_them() {
    let more = json!({"resources": {"limits": {"memory": "64Mi"}}});
    assert_eq!(sidecar(json!({}), more, &Settings::default())["resources"], json!({}));
}

#[test]
fn an_ordinary_sidecar_of_a_job_comes_with_a_warning() {
    let metadata = json!({"annotations": {"outrigger.dev/native-sidecar": "false"}});
    let mut job = pod(metadata);
    job.spec.as_mut().unwrap().restart_policy = Some("Never".to_owned());
    let outcome = patch(&job, &namespace("shop", Some("enabled")), &Settings::default(), GIVEN).unwrap();
    let Outcome::Patched { warnings, .. } = outcome else {
        panic!("{outcome:?}")
    };
    assert!(warnings[0].contains("/shutdown"), "{warnings:?}");
}

#[test]
fn a_pod_whose_processes_see_one_another_comes_with_a_warning() {
    for (field, value, warned) in [
        ("shareProcessNamespace", json!(true), true),
        ("shareProcessNamespace", json!(false), false),
        ("hostPID", json!(true), true),
        ("hostIPC", json!(true), false),
    ] {
        let spec = json!({"containers": [{"name": "app"}], field: value});
        let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap();
        let outcome = patch(&pod, &namespace("shop", Some("enabled")), &Settings::default(), GIVEN).unwrap();
        let Outcome::Patched { warnings, .. } = outcome else {
            panic!("{outcome:?}")
        };
        let says = warnings.iter().any(|w| w.contains(field) && w.contains("SYS_PTRACE"));
        assert_eq!(says, warned, "{field}: {warnings:?}");
    }
}

#[test]
fn whoever_runs_as_the_sidecars_user_is_refused() {
    let own = |uid: i64| json!({"runAsUser": uid});
    for (of_pod, init, app, refused) in [
        (json!({}), json!({}), json!({}), None),
        (json!({}), json!({}), own(2140), Some("app")),
        (json!({}), own(2140), json!({}), Some("migrate")),
        (own(2140), json!({}), own(1000), Some("migrate")),
        (own(2140), own(1000), json!({}), Some("app")),
        (own(2140), own(1000), own(1001), None),
        (own(1000), json!({}), json!({}), None),
    ] {
        let spec = json!({
            "securityContext": of_pod,
            "initContainers": [{"name": "migrate", "securityContext": init}],
            "containers": [{"name": "app", "securityContext": app}],
        });
        let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap();
        let outcome = patch(&pod, &namespace("shop", Some("enabled")), &Settings::default(), GIVEN);
        match refused {
            None => assert!(outcome.is_ok(), "{spec}: {outcome:?}"),
            Some(name) => {
                let problems = outcome.unwrap_err().problems;
                assert!(
                    problems[0].contains(&format!("{name:?}: runAsUser 2140")),
                    "{spec}: {problems:?}"
                );
            }
        }
    }
}

#[test]
fn the_drain_ends_before_the_grace_period() {
    let settings = Settings::default();
    let drain = |grace: Value| {
        let sidecar = sidecar(json!({}), json!({"terminationGracePeriodSeconds": grace}), &settings);
        env(&sidecar, "OUTRIGGER_DRAIN_TIMEOUT").unwrap()
    };
    assert_eq!(drain(Value::Null), "28s");
    assert_eq!(drain(json!(600)), "30s");
    assert_eq!(drain(json!(10)), "8s");
    assert_eq!(drain(json!(0)), "1s");
    // kube-apiserver refuses it, after this webhook; and anybody can ask for a review.
    assert_eq!(drain(json!(i64::MIN)), "1s");
    assert_eq!(drain(json!(i64::MAX)), "30s");
}

#[test]
fn settings_reach_the_sidecar() {
    let settings: Settings = serde_saphyr::from_str(
        "{namespace: mesh, trustDomain: example.org, tracing: null, opaquePorts: '3307', accessLog: true,\n\
         closeExpired: true, forwardedFor: Append,\
         resources: {cpuRequest: null, memoryRequest: null, memoryLimit: null}}",
    )
    .unwrap();
    let sidecar = sidecar(json!({"outrigger.dev/opaque-ports": "3308"}), json!({}), &settings);
    assert_eq!(sidecar["resources"], json!({}));
    let env = |name| env(&sidecar, name);
    assert_eq!(env("OUTRIGGER_TRACING_ENDPOINT"), None);
    assert_eq!(
        env("OUTRIGGER_CONTROLLER").unwrap(),
        "outrigger-controller.mesh.svc:14150"
    );
    assert_eq!(
        env("OUTRIGGER_CONTROLLER_ID").unwrap(),
        "spiffe://example.org/ns/mesh/sa/outrigger-controller"
    );
    assert_eq!(env("OUTRIGGER_OPAQUE_PORTS").unwrap(), "3307,3308");
    assert_eq!(env("OUTRIGGER_ACCESS_LOG").unwrap(), "true");
    assert_eq!(env("OUTRIGGER_CLOSE_EXPIRED").unwrap(), "true");
    assert_eq!(env("OUTRIGGER_FORWARDED_FOR").unwrap(), "Append");
}

/// What is the default of every sidecar is not written: one of the version before knows no more.
#[test]
fn forwarded_for_is_appended_where_the_chart_or_the_pod_says_so() {
    for (of_chart, of_pod, expected) in [
        (ForwardedFor::Leave, None, None),
        (ForwardedFor::Leave, Some("Append"), Some("Append")),
        (ForwardedFor::Append, None, Some("Append")),
        (ForwardedFor::Append, Some("Leave"), None),
    ] {
        let settings = Settings {
            forwarded_for: of_chart,
            ..Settings::default()
        };
        let annotations = of_pod.map_or(json!({}), |value| json!({"outrigger.dev/forwarded-for": value}));
        let sidecar = sidecar(annotations, json!({}), &settings);
        assert_eq!(
            env(&sidecar, "OUTRIGGER_FORWARDED_FOR").as_deref(),
            expected,
            "{of_chart:?} {of_pod:?}"
        );
    }
}

/// A sidecar gets them as they are, and none that it could not use.
#[test]
fn authorities_of_the_collector_come_into_the_pod() {
    let root = include_str!("../../testdata/roots.pem");
    let settings = |endpoint: &str, certificates: &str| {
        let mut settings = Settings::default();
        let tracing = settings.tracing.as_mut().unwrap();
        (tracing.endpoint, tracing.ca_certificates) = (endpoint.to_owned(), certificates.to_owned());
        settings
    };
    for certificates in ["", root] {
        let settings = settings("https://jaeger:4317", certificates);
        assert_eq!(settings.mistakes(), Vec::<String>::new());
        let given = env(
            &sidecar(json!({}), json!({}), &settings),
            "OUTRIGGER_TRACING_CA_CERTIFICATES",
        );
        assert_eq!(given.as_deref(), Some(certificates).filter(|given| !given.is_empty()));
    }
    for (endpoint, certificates, field) in [
        ("http://jaeger:4317", root, "tracing.caCertificates: "),
        ("https://jaeger:4317", "none", "tracing.caCertificates: "),
        ("https://10.0.0.1:4317", "", "tracing.endpoint: "),
        ("https://[::1]:4317", "", "tracing.endpoint: "),
        ("ftp://jaeger", "", "tracing.endpoint: "),
    ] {
        let mistakes = settings(endpoint, certificates).mistakes();
        assert!(
            mistakes.len() == 1 && mistakes[0].starts_with(field),
            "{endpoint}: {mistakes:?}"
        );
    }
}

#[test]
fn contexts_that_are_not_sampled_are_passed_where_the_chart_says_so() {
    for (tracing, expected) in [
        ("", None),
        (", notSampled: Omit", None),
        (", notSampled: Pass", Some("Pass")),
    ] {
        let settings = format!("{{tracing: {{endpoint: 'http://jaeger:4317'{tracing}}}}}");
        let settings: Settings = serde_saphyr::from_str(&settings).unwrap();
        let sidecar = sidecar(json!({}), json!({}), &settings);
        assert_eq!(
            env(&sidecar, "OUTRIGGER_TRACING_NOT_SAMPLED").as_deref(),
            expected,
            "{tracing}"
        );
        assert_eq!(env(&sidecar, "OUTRIGGER_TRACING_SAMPLE_RATIO").unwrap(), "0.1");
    }
    assert!(serde_saphyr::from_str::<Settings>("{tracing: {endpoint: 'http://x', notSampled: pass}}").is_err());
}

/// A name without a dot would be looked up in the search domains of the node, too.
#[test]
fn spans_go_to_a_service_of_the_pods_own_namespace_or_where_they_are_told() {
    for (endpoint, expected) in [
        ("http://jaeger:4317", "http://jaeger.shop.svc:4317"),
        ("http://jaeger", "http://jaeger.shop.svc"),
        (
            "http://jaeger:4318/v1/x?http://jaeger=1",
            "http://jaeger.shop.svc:4318/v1/x?http://jaeger=1",
        ),
        ("http://Jaeger:4317/", "http://Jaeger.shop.svc:4317/"),
        ("HTTP://http:4317", "HTTP://http.shop.svc:4317"),
        // A collector in the pod itself.
        ("http://localhost:4317", "http://localhost:4317"),
        ("http://127.0.0.1:4317", "http://127.0.0.1:4317"),
        ("http://[::1]:4317", "http://[::1]:4317"),
        ("http://[fd00::17]:4317", "http://[fd00::17]:4317"),
        // Whoever writes a dot has said where it is.
        (
            "http://collector.observability:4317",
            "http://collector.observability:4317",
        ),
        ("http://jaeger.tracing.svc:4317", "http://jaeger.tracing.svc:4317"),
        ("http://jaeger.:4317", "http://jaeger.:4317"),
        ("http://traces.example.com", "http://traces.example.com"),
        ("https://jaeger:4317", "https://jaeger.shop.svc:4317"),
        ("https://otel.example.com", "https://otel.example.com"),
        ("http://jaeger:4317/$(HOME)", "http://jaeger.shop.svc:4317/$$(HOME)"),
    ] {
        let mut settings = Settings::default();
        settings.tracing.as_mut().unwrap().endpoint = endpoint.to_owned();
        assert!(settings.mistakes().is_empty(), "{endpoint}");
        let sidecar = sidecar(json!({}), json!({}), &settings);
        assert_eq!(env(&sidecar, "OUTRIGGER_TRACING_ENDPOINT").unwrap(), expected);
    }
}

#[test]
fn a_pod_cannot_weaken_what_its_namespace_says_of_mtls() {
    let mtls = |value: &str| BTreeMap::from([("outrigger.dev/mtls".to_owned(), value.to_owned())]);
    for (of_namespace, of_pod, expected, warned) in [
        (Some("strict"), Some("permissive"), "strict", true),
        (Some("strict"), Some("strict"), "strict", false),
        (Some("strict"), None, "strict", false),
        (Some("permissive"), Some("strict"), "strict", false),
        (None, Some("strict"), "strict", false),
        (Some("permissive"), Some("permissive"), "permissive", false),
        (None, None, "permissive", false),
    ] {
        let namespace = NamespaceMeta {
            annotations: of_namespace.map(mtls).unwrap_or_default(),
            ..namespace("shop", Some("enabled"))
        };
        let metadata = json!({"annotations": of_pod.map(mtls).unwrap_or_default()});
        let Ok(Outcome::Patched { patch, warnings }) = patch(&pod(metadata), &namespace, &Settings::default(), GIVEN)
        else {
            panic!("{of_namespace:?} {of_pod:?}: not patched");
        };
        let patch = json!(patch).to_string();
        let expected = json!({"name": "OUTRIGGER_MTLS", "value": expected}).to_string();
        assert!(patch.contains(&expected), "{of_namespace:?} {of_pod:?}: {patch}");
        assert_eq!(
            warnings.iter().any(|w| w.contains("cannot weaken")),
            warned,
            "{warnings:?}"
        );
    }
}
