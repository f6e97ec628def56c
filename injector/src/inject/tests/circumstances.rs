//! What a pod's namespace, its operating system, its name servers and other meshes make of it.

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::{GIVEN, env, namespace, pod};
use crate::inject::{Given, NamespaceMeta, Outcome, Refusal, patch, quality};
use crate::settings::Settings;

fn parsed(pod: Value) -> Pod {
    serde_json::from_value(pod).unwrap()
}

fn decided(pod: &Pod, namespace: &NamespaceMeta) -> Result<Outcome, Refusal> {
    patch(pod, namespace, &Settings::default(), GIVEN)
}

#[test]
fn pods_of_windows_and_of_other_meshes_are_left_alone() {
    let container = |name: &str| json!({"containers": [{"name": "app"}, {"name": name}]});
    let init = |name: &str| json!({"containers": [{"name": "app"}], "initContainers": [{"name": name, "restartPolicy": "Always"}]});
    let affinity = |key: &str, values: Value| {
        let term = json!({"matchExpressions": [{"key": key, "operator": "In", "values": values}]});
        let required = json!({"nodeSelectorTerms": [term]});
        json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}})
    };
    let label = |key: &str, value: &str| json!({"labels": {key: value}});
    let annotation = |key: &str, value: &str| json!({"annotations": {key: value}});
    let none = json!({});
    for (metadata, spec, expected) in [
        (none.clone(), json!({"os": {"name": "windows"}}), Some("spec.os.name")),
        (none.clone(), json!({"os": {"name": "linux"}}), None),
        (
            none.clone(),
            json!({"nodeSelector": {"kubernetes.io/os": "windows"}}),
            Some("spec.nodeSelector"),
        ),
        (
            none.clone(),
            json!({"nodeSelector": {"beta.kubernetes.io/os": "windows"}}),
            Some("spec.nodeSelector"),
        ),
        (
            none.clone(),
            json!({"nodeSelector": {"kubernetes.io/os": "linux"}}),
            None,
        ),
        (
            none.clone(),
            affinity("kubernetes.io/os", json!(["windows"])),
            Some("spec.affinity.nodeAffinity"),
        ),
        (
            none.clone(),
            affinity("kubernetes.io/os", json!(["windows", "linux"])),
            None,
        ),
        (none.clone(), affinity("disk", json!(["windows"])), None),
        (
            none.clone(),
            json!({"securityContext": {"windowsOptions": {"hostProcess": true}}}),
            Some("securityContext.windowsOptions"),
        ),
        (
            none.clone(),
            container("istio-proxy"),
            Some("container istio-proxy says that it is in Istio's"),
        ),
        (none.clone(), init("istio-proxy"), Some("container istio-proxy")),
        (
            none.clone(),
            container("linkerd-proxy"),
            Some("container linkerd-proxy says that it is in Linkerd's"),
        ),
        (none.clone(), init("linkerd-proxy"), Some("container linkerd-proxy")),
        (none.clone(), container("my-istio-proxy"), None),
        (
            label("sidecar.istio.io/inject", "true"),
            none.clone(),
            Some("label sidecar.istio.io/inject: \"true\""),
        ),
        (
            annotation("sidecar.istio.io/inject", "true"),
            none.clone(),
            Some("annotation sidecar.istio.io/inject"),
        ),
        (label("sidecar.istio.io/inject", "false"), none.clone(), None),
        (
            annotation("sidecar.istio.io/status", "{}"),
            none.clone(),
            Some("annotation sidecar.istio.io/status"),
        ),
        (
            annotation("linkerd.io/inject", "enabled"),
            none.clone(),
            Some("annotation linkerd.io/inject"),
        ),
        (
            annotation("linkerd.io/inject", "ingress"),
            none.clone(),
            Some("annotation linkerd.io/inject"),
        ),
        (annotation("linkerd.io/inject", "disabled"), none.clone(), None),
    ] {
        let mut pod = json!({"metadata": metadata, "spec": {"containers": [{"name": "app"}]}});
        pod["spec"]
            .as_object_mut()
            .unwrap()
            .extend(spec.as_object().unwrap().clone());
        let outcome = decided(&parsed(pod.clone()), &namespace("shop", Some("enabled"))).unwrap();
        match (expected, &outcome) {
            (Some(part), Outcome::LeftAlone(why)) => assert!(why.contains(part), "{pod}: {why}"),
            (None, Outcome::Patched { .. }) => {}
            _ => panic!("{pod}: {outcome:?}"),
        }
        // Who did not ask is told nothing.
        let outcome = decided(&parsed(pod), &namespace("shop", None)).unwrap();
        assert_eq!(outcome, Outcome::NotSelected);
    }
}

#[test]
fn a_namespace_that_forbids_capture_is_named_with_what_to_do() {
    for (level, refused) in [("privileged", false), ("baseline", true), ("restricted", true)] {
        let mut namespace = namespace("shop", Some("enabled"));
        let labels = &mut namespace.labels;
        labels.insert("pod-security.kubernetes.io/enforce".to_owned(), level.to_owned());
        labels.insert("pod-security.kubernetes.io/warn".to_owned(), "restricted".to_owned());
        let outcome = decided(&pod(json!({})), &namespace);
        assert_eq!(outcome.is_err(), refused, "{level}: {outcome:?}");
        if let Err(refusal) = outcome {
            let text = refusal.to_string();
            for part in [
                "pod-security.kubernetes.io/enforce",
                level,
                "NET_ADMIN",
                "privileged",
                "inject: disabled",
            ] {
                assert!(text.contains(part), "{part:?} is not in {text}");
            }
        }
        let without = pod(json!({"labels": {"outrigger.dev/inject": "disabled"}}));
        assert_eq!(decided(&without, &namespace), Ok(Outcome::OptedOut));
    }
}

#[test]
fn a_guaranteed_pod_stays_guaranteed() {
    let own = |cpu: &str, memory: &str| json!({"cpu": cpu, "memory": memory});
    let app =
        |requests: Value, limits: Value| json!({"name": "app", "resources": {"requests": requests, "limits": limits}});
    let guaranteed = app(own("1", "1Gi"), own("1000m", "1024Mi"));
    let only_limits = json!({"name": "app", "resources": {"limits": own("1", "1Gi")}});
    let burstable = app(own("1", "512Mi"), own("1", "1Gi"));
    let annotation = |key: &str, value: &str| json!({format!("outrigger.dev/proxy-{key}"): value});
    for (annotations, containers, expected) in [
        (json!({}), json!([guaranteed]), Some(own("100m", "256Mi"))),
        (json!({}), json!([only_limits]), Some(own("100m", "256Mi"))),
        (json!({}), json!([guaranteed, burstable]), None),
        (json!({}), json!([burstable]), None),
        (json!({}), json!([{"name": "app"}]), None),
        (
            annotation("cpu-limit", "500m"),
            json!([guaranteed]),
            Some(own("500m", "256Mi")),
        ),
        (
            annotation("cpu-request", "50m"),
            json!([guaranteed]),
            Some(own("50m", "256Mi")),
        ),
        (
            annotation("cpu-request", "300m"),
            json!([guaranteed]),
            Some(own("300m", "256Mi")),
        ),
        (
            annotation("memory-request", "64Mi"),
            json!([guaranteed]),
            Some(own("100m", "64Mi")),
        ),
        (
            annotation("memory-limit", "1Gi"),
            json!([guaranteed]),
            Some(own("100m", "1Gi")),
        ),
    ] {
        let mut raw = json!({"metadata": {"annotations": annotations}, "spec": {"containers": containers}});
        let Ok(Outcome::Patched { patch, .. }) = decided(&parsed(raw.clone()), &namespace("shop", Some("enabled")))
        else {
            panic!("{raw}: not patched");
        };
        json_patch::patch(&mut raw, &patch).unwrap();
        let init = raw["spec"]["initContainers"].as_array().unwrap();
        for container in init {
            let resources = &container["resources"];
            match &expected {
                Some(own) => assert_eq!(*resources, json!({"requests": own, "limits": own}), "{annotations}"),
                None => assert_ne!(resources["requests"], resources["limits"], "{raw}"),
            }
        }
        let patched = parsed(raw);
        assert_eq!(
            quality::is_guaranteed(patched.spec.as_ref().unwrap()),
            expected.is_some()
        );
    }
}

#[test]
fn a_pod_with_other_name_servers_knows_the_controller_by_its_address() {
    let name = "outrigger-controller.outrigger.svc:14150";
    let (v4, v6) = ("10.96.0.7:14150", "[fd00::7]:14150");
    for (policy, address, expected, warned) in [
        (json!("None"), Some(v4), v4, "has the controller's address"),
        (json!("Default"), Some(v6), v6, "has the controller's address"),
        (json!("Default"), None, name, "finds no controller"),
        (json!("ClusterFirst"), Some(v4), name, ""),
        (json!("ClusterFirstWithHostNet"), Some(v4), name, ""),
        (Value::Null, Some(v4), name, ""),
    ] {
        let mut raw = json!({"metadata": {}, "spec": {"dnsPolicy": policy, "containers": [{"name": "app"}]}});
        let given = Given {
            controller: address.map(|address| address.parse().unwrap()),
            ..GIVEN
        };
        let outcome = patch(
            &parsed(raw.clone()),
            &namespace("shop", Some("enabled")),
            &Settings::default(),
            given,
        );
        let Ok(Outcome::Patched { patch, warnings }) = outcome else {
            panic!("{outcome:?}")
        };
        json_patch::patch(&mut raw, &patch).unwrap();
        assert_eq!(
            env(&raw["spec"]["initContainers"][1], "OUTRIGGER_CONTROLLER").unwrap(),
            expected,
            "{policy}"
        );
        assert_eq!(
            warnings.iter().any(|w| w.contains("dnsPolicy")),
            !warned.is_empty(),
            "{warnings:?}"
        );
        assert!(warnings.iter().all(|w| w.contains(warned)), "{warnings:?}");
    }
}

/// Kubernetes expands `$(NAME)` in commands, arguments and values; what the injector writes means itself.
#[test]
fn dollar_signs_of_the_pod_come_through() {
    let expanded = |text: &str| {
        assert!(!text.replace("$$", "").contains('$'), "{text:?} would be expanded");
        text.replace("$$", "$")
    };
    let probe =
        json!({"httpGet": {"path": "/$(HOME)/$$", "port": 80, "httpHeaders": [{"name": "x", "value": "$(X)"}]}});
    let mut raw = json!({
        "metadata": {"name": "a", "labels": {"app": "a$(B)"}},
        "spec": {"containers": [{"name": "app", "args": ["$(C)", "$$"], "livenessProbe": probe}]},
    });
    let settings: Settings = serde_saphyr::from_str(
        "{image: 'registry/$(D):1', controller: 'controller.$(E).svc:1', logLevel: 'a[b=$(F)]=info', tracing: {endpoint: 'http://j.k:1/$(G)'}}",
    )
    .unwrap();
    let Ok(Outcome::Patched { patch, .. }) = patch(
        &parsed(raw.clone()),
        &namespace("shop", Some("enabled")),
        &settings,
        GIVEN,
    ) else {
        panic!()
    };
    json_patch::patch(&mut raw, &patch).unwrap();
    assert_eq!(raw["spec"]["containers"][0]["args"], json!(["$(C)", "$$"]));
    for container in raw["spec"]["initContainers"].as_array().unwrap() {
        for argument in container["command"].as_array().unwrap() {
            expanded(argument.as_str().unwrap());
        }
        for variable in container["env"].as_array().into_iter().flatten() {
            variable["value"].as_str().map(&expanded);
        }
    }
    let sidecar = &raw["spec"]["initContainers"][1];
    let env = |name| expanded(&env(sidecar, name).unwrap());
    assert_eq!(env("OUTRIGGER_WORKLOAD"), "a$(B)");
    assert_eq!(env("OUTRIGGER_CONTROLLER"), "controller.$(E).svc:1");
    assert_eq!(env("OUTRIGGER_LOG"), "a[b=$(F)]=info");
    assert_eq!(env("OUTRIGGER_TRACING_ENDPOINT"), "http://j.k:1/$(G)");
    let asked = env("OUTRIGGER_APP_PROBES");
    assert!(asked.contains("/$(HOME)/$$") && asked.contains("\"$(X)\""), "{asked}");
}
