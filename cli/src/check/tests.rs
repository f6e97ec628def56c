#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{CustomResourceDefinition, JSONSchemaProps};
use outrigger_api::policy::crd;
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
        crds: crd::crds()
            .into_iter()
            .map(|crd| (crd.metadata.name.clone().unwrap(), crd))
            .collect(),
        own_kinds: true,
        gateway_api: false,
        bundle: None,
        bundles: [("shop".to_owned(), None)].into(),
        namespaces: Vec::new(),
        pods: Vec::new(),
        objects: Vec::new(),
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
        wrong
            .iter()
            .any(|text| text.starts_with("pods without a sidecar in labelled namespaces")
                && text.ends_with(": shop/bare")),
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

fn namespace(name: &str, labels: serde_json::Value, annotations: serde_json::Value) -> Namespace {
    serde_json::from_value(json!({"metadata": {"name": name, "labels": labels, "annotations": annotations}})).unwrap()
}

#[test]
fn pods_without_a_sidecar_are_told_apart_by_their_time() {
    let mut facts = facts();
    let fields = json!({"f:metadata": {"f:labels": {"f:outrigger.dev/inject": {}}}});
    let other = json!({"f:metadata": {"f:labels": {"f:team": {}}}});
    facts.namespaces = vec![
        serde_json::from_value(
            json!({"metadata": {"name": "shop", "labels": {"outrigger.dev/inject": "enabled"}, "managedFields": [
                {"manager": "kubectl-label", "time": "2026-01-02T00:00:00Z", "fieldsV1": fields},
                {"manager": "else", "time": "2026-01-09T00:00:00Z", "fieldsV1": other},
            ]}}),
        )
        .unwrap(),
    ];
    facts.webhooks =
        serde_json::from_value(json!({"metadata": {"creationTimestamp": "2026-01-04T00:00:00Z"}})).unwrap();
    let made = |name: &str, day: u32| -> Pod {
        let metadata =
            json!({"namespace": "shop", "name": name, "creationTimestamp": format!("2026-01-{day:02}T00:00:00Z")});
        serde_json::from_value(json!({"metadata": metadata, "status": {"phase": "Running"}})).unwrap()
    };
    facts.pods = vec![made("first", 1), made("second", 3), made("third", 5)];
    let wrong = texts(&facts, Level::Wrong).join("\n");
    for part in [
        "older than the label: shop/first\n",
        "made before the webhook was there, or was there again: shop/second\n",
        "made while the webhook did not answer for them, or older than the label: shop/third",
    ] {
        assert!(wrong.contains(part), "{part:?} is not in\n{wrong}");
    }
}

#[test]
fn pods_that_are_left_alone_are_a_warning() {
    let mut facts = facts();
    facts.pods = vec![
        serde_json::from_value(
            json!({"metadata": {"namespace": "shop", "name": "win"}, "spec": {"containers": [],
            "nodeSelector": {"kubernetes.io/os": "windows"}}}),
        )
        .unwrap(),
    ];
    assert!(
        !texts(&facts, Level::Wrong)
            .iter()
            .any(|text| text.contains("without a sidecar"))
    );
    let warnings = texts(&facts, Level::Warning).join("\n");
    assert!(
        warnings.contains("leaves alone: shop/win (spec.nodeSelector says"),
        "{warnings}"
    );
}

#[test]
fn namespaces_that_cannot_mean_what_they_say_are_named() {
    let mut facts = facts();
    let (none, yes) = (json!({}), json!({"outrigger.dev/inject": "enabled"}));
    let with = |level: &str| json!({"outrigger.dev/inject": "enabled", "pod-security.kubernetes.io/enforce": level});
    facts.namespaces = vec![
        namespace("fine", yes.clone(), none.clone()),
        namespace("off", json!({"outrigger.dev/inject": "disabled"}), none.clone()),
        namespace("mistyped", json!({"outrigger.dev/inject": "true"}), none.clone()),
        namespace("open", with("privileged"), none.clone()),
        namespace("closed", with("baseline"), none.clone()),
        namespace("tight", with("restricted"), none.clone()),
        namespace(
            "outside",
            json!({"pod-security.kubernetes.io/enforce": "restricted"}),
            none,
        ),
    ];
    let wrong = texts(&facts, Level::Wrong).join("\n");
    for part in [
        "label outrigger.dev/inject says nothing: mistyped (\"true\")\n",
        "lets no pod have a sidecar: closed (baseline), tight (restricted)",
    ] {
        assert!(wrong.contains(part), "{part:?} is not in\n{wrong}");
    }
}

#[test]
fn pods_that_are_older_than_strict_are_named() {
    let mut facts = facts();
    let yes = json!({"outrigger.dev/inject": "enabled"});
    facts.namespaces = vec![
        namespace("shop", yes.clone(), json!({"outrigger.dev/mtls": "strict"})),
        namespace("lax", yes, json!({})),
    ];
    let pod = |namespace: &str, name: &str, mtls: &str| -> Pod {
        let env = json!([{"name": "OUTRIGGER_MTLS", "value": mtls}]);
        let labels = json!({"outrigger.dev/proxy-version": env!("CARGO_PKG_VERSION")});
        serde_json::from_value(
            json!({"metadata": {"namespace": namespace, "name": name, "labels": labels},
            "spec": {"containers": [], "initContainers": [{"name": "outrigger-proxy", "env": env}]}}),
        )
        .unwrap()
    };
    facts.pods = vec![
        pod("shop", "old", "permissive"),
        pod("shop", "new", "strict"),
        pod("lax", "other", "permissive"),
    ];
    let wrong = texts(&facts, Level::Wrong).join("\n");
    assert!(wrong.contains("outrigger.dev/mtls: strict: shop/old"), "{wrong}");
    assert!(!wrong.contains("shop/new") && !wrong.contains("lax/other"), "{wrong}");
}

#[test]
fn policies_and_routes_that_are_not_in_force_are_named() {
    let mut facts = facts();
    let condition = |type_: &str, status: &str, reason: &str| json!({"type": type_, "status": status, "reason": reason, "message": "why"});
    let object = |kind: &str, name: &str, status: serde_json::Value| {
        let object = json!({"apiVersion": "x/v1", "kind": kind, "metadata": {"namespace": "shop", "name": name}, "status": status});
        serde_json::from_value(object).unwrap()
    };
    let route = |controller: &str, conditions: serde_json::Value| json!({"parents": [{"controllerName": controller, "parentRef": {"name": "web"}, "conditions": conditions}]});
    let ours = "outrigger.dev/controller";
    let good = json!([
        condition("Accepted", "True", "Accepted"),
        condition("ResolvedRefs", "True", "ResolvedRefs")
    ]);
    facts.objects = vec![
        object(
            "TrafficPolicy",
            "fine",
            json!({"conditions": [condition("Accepted", "True", "Accepted")]}),
        ),
        object(
            "TrafficPolicy",
            "late",
            json!({
                "conditions": [condition("Accepted", "False", "Conflicted")],
                "ancestors": [{"controllerName": ours, "conditions": [condition("Accepted", "False", "Conflicted")]}],
            }),
        ),
        object("HTTPRoute", "fine", route(ours, good)),
        object(
            "HTTPRoute",
            "refused",
            route(ours, json!([condition("Accepted", "False", "NoMatchingParent")])),
        ),
        object(
            "GRPCRoute",
            "lost",
            route(ours, json!([condition("ResolvedRefs", "False", "BackendNotFound")])),
        ),
        object(
            "HTTPRoute",
            "of-a-gateway",
            route("example.com/x", json!([condition("Accepted", "False", "NotAllowed")])),
        ),
        object("HTTPRoute", "new", json!({})),
        object(
            "HTTPRoute",
            "both",
            route(
                ours,
                json!([
                    condition("Accepted", "False", "NoMatchingParent"),
                    condition("ResolvedRefs", "False", "BackendNotFound")
                ]),
            ),
        ),
        object(
            "TLSRoute",
            "partly",
            route(
                ours,
                json!([condition("outrigger.dev/Programmed", "False", "PartiallyProgrammed")]),
            ),
        ),
    ];
    let at_target = |controller: &str, reason: &str| {
        let type_ = if reason == "TargetNotFound" {
            "Accepted"
        } else {
            "Programmed"
        };
        let programmed = condition(type_, "False", reason);
        let ancestor =
            json!({"controllerName": controller, "ancestorRef": {"name": "web"}, "conditions": [programmed]});
        // Of two targets with the same words.
        json!({"ancestors": [ancestor, ancestor]})
    };
    facts.objects.extend([
        object("TrafficPolicy", "partly", at_target(ours, "PartiallyProgrammed")),
        object("TrafficPolicy", "needless", at_target(ours, "Overridden")),
        object("BackendTLSPolicy", "misspelt", at_target(ours, "TargetNotFound")),
        object("BackendTLSPolicy", "older", at_target(ours, "PartiallyProgrammed")),
        object(
            "BackendTLSPolicy",
            "elsewhere",
            at_target("example.com/x", "TargetNotFound"),
        ),
        object(
            "TrafficPolicy",
            "of-another",
            at_target("example.com/x", "PartiallyProgrammed"),
        ),
    ]);
    let mesh = |name: &str, controller: &str| {
        let status = json!({"conditions": [condition("Accepted", "False", "InvalidParameters")]});
        let object = json!({"apiVersion": "x/v1", "kind": "XMesh", "metadata": {"name": name}, "spec": {"controllerName": controller}, "status": status});
        serde_json::from_value(object).unwrap()
    };
    facts
        .objects
        .extend([mesh("outrigger", ours), mesh("another", "example.com/x")]);
    let short = texts(&facts, Level::Warning);
    let short: Vec<_> = short.iter().filter(|text| text.contains("not all in force")).collect();
    assert_eq!(
        short,
        [
            "TLSRoute shop/partly is not all in force: outrigger.dev/Programmed: False, PartiallyProgrammed: why",
            "TrafficPolicy shop/partly is not all in force: Programmed: False, PartiallyProgrammed: why",
            "BackendTLSPolicy shop/older is not all in force: Programmed: False, PartiallyProgrammed: why",
        ]
    );
    let wrong = texts(&facts, Level::Wrong);
    let of_objects = |text: &&String| text.contains("not accepted") || text.contains("is in force, but");
    let wrong: Vec<_> = wrong.iter().filter(of_objects).collect();
    assert_eq!(
        wrong,
        [
            "TrafficPolicy shop/late is not accepted: Accepted: False, Conflicted: why",
            "HTTPRoute shop/refused is not accepted: Accepted: False, NoMatchingParent: why",
            "GRPCRoute shop/lost is in force, but not all that it refers to is there: ResolvedRefs: False, BackendNotFound: why",
            "HTTPRoute shop/both is not accepted: Accepted: False, NoMatchingParent: why",
            "BackendTLSPolicy shop/misspelt is not accepted: Accepted: False, TargetNotFound: why",
            "XMesh outrigger is not accepted: Accepted: False, InvalidParameters: why",
        ]
    );
}

#[test]
fn crds_of_another_version_are_named() {
    let mut facts = facts();
    assert!(
        texts(&facts, Level::Good)
            .join("\n")
            .contains("the CRDs of outrigger.dev are there")
    );
    let name = "trafficpolicies.outrigger.dev";
    let fields = |crd: &mut CustomResourceDefinition| -> BTreeMap<String, JSONSchemaProps> {
        let schema = crd.spec.versions[0].schema.as_mut().unwrap();
        let schema = schema.open_api_v3_schema.as_mut().unwrap();
        let spec = schema.properties.as_mut().unwrap().get_mut("spec").unwrap();
        std::mem::take(spec.properties.as_mut().unwrap())
    };
    let change = |facts: &mut Facts, change: &dyn Fn(&mut BTreeMap<String, JSONSchemaProps>)| {
        let crd = facts.crds.get_mut(name).unwrap();
        let mut known = fields(crd);
        change(&mut known);
        let schema = crd.spec.versions[0].schema.as_mut().unwrap();
        let spec = schema.open_api_v3_schema.as_mut().unwrap().properties.as_mut().unwrap();
        spec.get_mut("spec").unwrap().properties = Some(known);
    };
    change(&mut facts, &|known| {
        drop(known.insert("hedging".to_owned(), JSONSchemaProps::default()))
    });
    let warnings = texts(&facts, Level::Warning).join("\n");
    assert!(
        warnings.contains(&format!("{name} (")) && warnings.contains("it has spec.hedging"),
        "{warnings}"
    );
    change(&mut facts, &|known| drop(known.remove("retryConstraint")));
    facts.crds.get_mut(name).unwrap().metadata.annotations = None;
    let wrong = texts(&facts, Level::Wrong).join("\n");
    let expected = format!("the CRD {name} (of a version that did not say so) is older than this program");
    assert!(
        wrong.contains(&expected) && wrong.contains(", spec.retryConstraint"),
        "{wrong}"
    );
    let other = facts.crds.remove(name).unwrap();
    // Who may look at none is not told that they are missing.
    let missing = format!("the CRD {name} is missing");
    let says_so = |facts: &Facts| texts(facts, Level::Wrong).contains(&missing);
    assert_eq!(says_so(&facts), !facts.crds.is_empty());
    facts.crds.insert("another".to_owned(), other);
    assert!(says_so(&facts));
}

#[test]
fn fields_that_an_object_has_lost_are_named() {
    let mut facts = facts();
    let policy = |name: &str, applied: serde_json::Value, spec: serde_json::Value| {
        let applied = json!({"spec": applied}).to_string();
        serde_json::from_value(json!({
            "apiVersion": "outrigger.dev/v1alpha1", "kind": "TrafficPolicy",
            "metadata": {
                "namespace": "shop", "name": name,
                "annotations": {"kubectl.kubernetes.io/last-applied-configuration": applied},
            },
            "spec": spec,
        }))
        .unwrap()
    };
    let kept =
        json!({"targetRefs": [{"kind": "Service", "name": "web", "group": ""}], "retry": {"attempts": 2}, "more": 1});
    facts.objects = vec![
        policy(
            "pruned",
            json!({"targetRefs": [{"kind": "Service", "name": "web", "newer": 1}], "retry": {"attempts": 1, "hedge": {}}}),
            kept.clone(),
        ),
        policy(
            "whole",
            json!({"targetRefs": [], "retry": {"attempts": 1, "other": null}}),
            kept,
        ),
    ];
    let warnings = texts(&facts, Level::Warning).join("\n");
    let expected = "TrafficPolicy shop/pruned is without fields that it was applied with: spec.retry.hedge, spec.targetRefs[0].newer";
    assert!(warnings.contains(expected) && !warnings.contains("whole"), "{warnings}");
}
