//! The injector and the controller against a real kube-apiserver with etcd, with the rights that the chart gives them.
//! tests/run brings it up (`tests/cluster/up --control-plane`) and runs these one after the other.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::future::Future;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use outrigger_api::labels;
use outrigger_injector::settings::VERSION;
use outrigger_tests::cluster::repository;
use outrigger_tests::control_plane::{ControlPlane, documents};
use outrigger_tests::kube::{Kubectl, eventually};
use serde_json::{Value, json};

const IMAGE: &str = "registry.example/outrigger/proxy:test";

fn run<F: Future<Output = Result<()>>>(body: impl FnOnce(ControlPlane) -> F) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let test = async { body(ControlPlane::install().await?).await };
        let result = tokio::time::timeout(Duration::from_secs(180), test).await;
        result.unwrap_or_else(|_| bail!("not finished after 180 s"))
    })
}

/// A namespace with a name that no earlier test had.
async fn namespace(admin: &Kubectl, name: &str, inject: bool) -> Result<Kubectl> {
    let name = format!("{name}-{:06x}", rand::random::<u32>() & 0xff_ffff);
    let labels: &[_] = if inject {
        &[(labels::INJECT, labels::ENABLED)]
    } else {
        &[]
    };
    admin.create_namespace(&name, labels).await
}

/// Asks kube-apiserver to create it without keeping it: what it would be.
async fn dry_run(namespace: &Kubectl, object: &Value) -> Result<Value> {
    let arguments = [
        "create",
        "--dry-run=server",
        "--validate=ignore",
        "-o",
        "json",
        "-f",
        "-",
    ];
    Ok(serde_json::from_str(
        &namespace.run_with_input(arguments, &object.to_string()).await?,
    )?)
}

fn pod(name: &str, metadata: Value) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [{"name": "app", "image": "example/app:1"}]}
    });
    pod["metadata"]
        .as_object_mut()
        .unwrap()
        .extend(metadata.as_object().unwrap().clone());
    pod
}

fn has_sidecar(pod: &Value) -> bool {
    let init = pod["spec"]["initContainers"].as_array().into_iter().flatten();
    init.into_iter().any(|container| container["name"] == "outrigger-proxy")
}

/// What kube-apiserver makes of the inputs of the injector's golden files is what it makes of the golden files themselves.
#[test]
#[ignore = "needs a kube-apiserver"]
fn golden_files() -> Result<()> {
    run(async |plane| {
        let injector = plane
            .injector(|options| options.settings.image = IMAGE.to_owned())
            .await?;
        let folder = repository().join("injector/testdata");
        let mut cases = 0;
        for entry in std::fs::read_dir(&folder)? {
            let name = entry?.file_name().into_string().unwrap();
            let Some(case) = name.strip_suffix(".input.yaml") else {
                continue;
            };
            let read = |file: String| std::fs::read_to_string(folder.join(file));
            let input = documents(&read(name.clone())?);
            let golden = read(format!("{case}.golden.yaml"));
            match (input, golden) {
                (Ok(input), Ok(golden)) => {
                    let golden =
                        documents(&golden.replace("proxy-version: VERSION", &format!("proxy-version: {VERSION}")))?;
                    golden_case(&plane, &input, &golden)
                        .await
                        .with_context(|| case.to_owned())?;
                    cases += 1;
                }
                (Ok(input), Err(_)) if input.len() == 1 => {
                    let reason = read(format!("{case}.refused.txt"))?;
                    refused_case(&plane, &input[0], &reason)
                        .await
                        .with_context(|| case.to_owned())?;
                    cases += 1;
                }
                // Not valid YAML: nothing that could be sent to kube-apiserver.
                _ => {}
            }
        }
        ensure!(cases >= 14, "only {cases} cases were found");
        injector.stop().await;
        Ok(())
    })
}

async fn golden_case(plane: &ControlPlane, input: &[Value], golden: &[Value]) -> Result<()> {
    let injected = namespace(&plane.admin, "golden", true).await?;
    // Not labelled, so that nothing is put into what the golden file has already.
    let plain = namespace(&plane.admin, "plain", false).await?;
    if let Some(like) = input.iter().find(|object| object["kind"] == "Namespace") {
        for (key, value) in like["metadata"]["annotations"].as_object().into_iter().flatten() {
            let annotation = format!("{key}={}", value.as_str().unwrap());
            let name = injected.current_namespace();
            plane.admin.run(["annotate", "namespace", name, &annotation]).await?;
        }
    }
    ensure!(
        input.len() == golden.len(),
        "{} documents became {}",
        input.len(),
        golden.len()
    );
    for (input, golden) in input.iter().zip(golden) {
        let (Some(input), Some(golden)) = (pod_of(input), pod_of(golden)) else {
            continue;
        };
        let elsewhere = input["metadata"]["namespace"].as_str();
        let (injected, plain) = match elsewhere {
            Some(system @ ("kube-system" | "outrigger")) => {
                (plane.admin.namespace(system), plane.admin.namespace(system))
            }
            _ => (injected.clone(), plain.clone()),
        };
        for namespace in [&injected, &plain] {
            create_service_account(namespace, &input).await?;
        }
        let actual = comparable(dry_run(&injected, &without_namespace(&input)).await?);
        let expected = comparable(dry_run(&plain, &without_namespace(&golden)).await?);
        ensure!(actual == expected, "{}", difference(&expected, &actual));
        let twice = comparable(dry_run(&injected, &without_namespace(&golden)).await?);
        ensure!(twice == expected, "not idempotent: {}", difference(&expected, &twice));
    }
    Ok(())
}

async fn refused_case(plane: &ControlPlane, input: &Value, reason: &str) -> Result<()> {
    let injected = namespace(&plane.admin, "refused", true).await?;
    let pod = pod_of(input).context("not a pod")?;
    match dry_run(&injected, &pod).await {
        Ok(_) => bail!("it was let in"),
        Err(e) => {
            // "document 1: Pod NAME: ..." is the offline prefix.
            let reason = reason.trim().splitn(3, ": ").nth(2).unwrap_or_default();
            ensure!(format!("{e:#}").contains(reason), "{e:#}\ndoes not say\n{reason}");
            Ok(())
        }
    }
}

/// The pod that the controllers of Kubernetes would make of a workload.
fn pod_of(object: &Value) -> Option<Value> {
    let name = object["metadata"]["name"].as_str().unwrap_or("app").to_owned();
    let spec = &object["spec"];
    let (owner, kind, template) = match object["kind"].as_str()? {
        "Pod" => return Some(object.clone()),
        "Deployment" => (format!("{name}-5d8c9"), "ReplicaSet", &spec["template"]),
        "CronJob" => (
            format!("{name}-29400480"),
            "Job",
            &spec["jobTemplate"]["spec"]["template"],
        ),
        kind @ ("Job" | "StatefulSet" | "DaemonSet") => (name.clone(), kind, &spec["template"]),
        _ => return None,
    };
    let mut pod =
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": template["metadata"], "spec": template["spec"]});
    if pod["metadata"].is_null() {
        pod["metadata"] = json!({});
    }
    pod["metadata"]["name"] = format!("{owner}-x7k2p").into();
    if let Some(namespace) = object["metadata"].get("namespace") {
        pod["metadata"]["namespace"] = namespace.clone();
    }
    if kind == "ReplicaSet" {
        pod["metadata"]["labels"]["pod-template-hash"] = "5d8c9".into();
    }
    let api_version = if kind == "Job" { "batch/v1" } else { "apps/v1" };
    pod["metadata"]["ownerReferences"] = json!([{
        "apiVersion": api_version, "kind": kind, "name": owner, "controller": true,
        "uid": "00000000-0000-4000-8000-000000000000"
    }]);
    if kind == "StatefulSet" {
        // Its controller adds the volumes of the claims.
        for claim in spec["volumeClaimTemplates"].as_array().into_iter().flatten() {
            let volume = json!({"name": claim["metadata"]["name"], "persistentVolumeClaim": {"claimName": "claim"}});
            match pod["spec"]["volumes"].as_array_mut() {
                Some(volumes) => volumes.push(volume),
                None => pod["spec"]["volumes"] = json!([volume]),
            }
        }
    }
    Some(pod)
}

fn without_namespace(pod: &Value) -> Value {
    let mut pod = pod.clone();
    pod["metadata"].as_object_mut().unwrap().remove("namespace");
    pod
}

async fn create_service_account(namespace: &Kubectl, pod: &Value) -> Result<()> {
    let Some(name) = pod["spec"]["serviceAccountName"].as_str() else {
        return Ok(());
    };
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}});
    namespace.apply(&account.to_string()).await.map(drop)
}

/// Without what kube-apiserver gives each object of its own.
fn comparable(mut pod: Value) -> Value {
    let metadata = &pod["metadata"];
    pod["metadata"] = json!({"labels": metadata["labels"], "annotations": metadata["annotations"]});
    pod.as_object_mut().unwrap().remove("status");
    // The volume with the API token has a random name.
    let text = pod.to_string();
    let Some(at) = text.find("kube-api-access-") else {
        return pod;
    };
    let random: String = text[at..].chars().take("kube-api-access-".len() + 5).collect();
    serde_json::from_str(&text.replace(&random, "kube-api-access")).unwrap()
}

fn difference(expected: &Value, actual: &Value) -> String {
    let patch = json_patch::diff(expected, actual);
    format!(
        "kube-apiserver's pod differs from the golden file: {}",
        serde_json::to_string_pretty(&patch).unwrap()
    )
}

#[test]
#[ignore = "needs a kube-apiserver"]
fn namespaces_and_pods_choose() -> Result<()> {
    run(async |plane| {
        let injector = plane.injector(|_| {}).await?;
        let labelled = namespace(&plane.admin, "labelled", true).await?;
        let plain = namespace(&plane.admin, "plain", false).await?;
        let system = plane.admin.namespace("kube-system");
        let install = plane.admin.namespace("outrigger");
        let none = json!({});
        let out = json!({"labels": {labels::INJECT: labels::DISABLED}});
        let out_too = json!({"annotations": {labels::INJECT: labels::DISABLED}});
        let opt_in = json!({"labels": {labels::INJECT: labels::ENABLED}});
        let cases = [
            (&labelled, &none, true, "a labelled namespace"),
            (&labelled, &out, false, "opted out by a label"),
            (&labelled, &out_too, false, "opted out by an annotation"),
            (&plain, &none, false, "a namespace without the label"),
            (&plain, &opt_in, true, "opted in by a label"),
            (&system, &none, false, "kube-system"),
            (&install, &none, false, "Outrigger's own namespace"),
        ];
        for (namespace, metadata, expected, what) in cases {
            let created = dry_run(namespace, &pod("app", metadata.clone())).await.context(what)?;
            ensure!(has_sidecar(&created) == expected, "{what}: {created}");
        }
        injector.stop().await;
        Ok(())
    })
}

/// Deployment, StatefulSet, Job: the pods that Kubernetes' own controllers create are the ones that count.
#[test]
#[ignore = "needs a kube-apiserver"]
fn workloads_get_sidecars() -> Result<()> {
    run(async |plane| {
        let injector = plane.injector(|_| {}).await?;
        let shop = namespace(&plane.admin, "workloads", true).await?;
        let template = json!({
            "metadata": {"labels": {"app": "x"}},
            "spec": {"containers": [{"name": "app", "image": "example/app:1"}]}
        });
        let workload = |kind: &str, name: &str| {
            json!({
                "apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name},
                "spec": {"selector": {"matchLabels": {"app": "x"}}, "serviceName": name, "template": template}
            })
        };
        shop.run_with_input(
            ["create", "--validate=ignore", "-f", "-"],
            &[
                workload("Deployment", "orders").to_string(),
                workload("StatefulSet", "db").to_string(),
                json!({
                    "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "once"},
                    "spec": {"template": {"spec": {
                        "restartPolicy": "Never", "containers": [{"name": "app", "image": "example/app:1"}]
                    }}}
                })
                .to_string(),
            ]
            .join("\n---\n"),
        )
        .await?;
        let pods = eventually("three pods", Duration::from_secs(30), async || {
            let pods = shop.list(["pods"]).await?;
            ensure!(pods.len() == 3, "{} pods", pods.len());
            Ok(pods)
        })
        .await?;
        let names: BTreeSet<_> = pods.iter().map(workload_name).collect();
        ensure!(names == ["db", "once", "orders"].map(str::to_owned).into(), "{names:?}");
        injector.stop().await;
        Ok(())
    })
}

/// What the sidecar of a pod calls it in telemetry.
fn workload_name(pod: &Value) -> String {
    let init = pod["spec"]["initContainers"].as_array().into_iter().flatten();
    let mut env = init.flat_map(|container| container["env"].as_array().into_iter().flatten());
    let name = env
        .find(|env| env["name"] == "OUTRIGGER_WORKLOAD")
        .map(|env| &env["value"]);
    name.and_then(Value::as_str).unwrap_or("no sidecar").to_owned()
}

#[test]
#[ignore = "needs a kube-apiserver"]
fn certificate_rotation() -> Result<()> {
    run(async |plane| {
        plane
            .admin
            .namespace("outrigger")
            .run(["delete", "secret", "outrigger-injector-tls", "--ignore-not-found"])
            .await?;
        let injector = plane
            .injector(|options| {
                options.profile.leaf_life = Duration::from_secs(9);
                options.profile.ca_life = Duration::from_secs(21);
                options.profile.settle = Duration::from_secs(1);
            })
            .await?;
        let shop = namespace(&plane.admin, "rotation", true).await?;
        let bundle = async || {
            let configuration = plane
                .admin
                .get(["mutatingwebhookconfiguration", "outrigger-injector"])
                .await?;
            let bundle = configuration["webhooks"][0]["clientConfig"]["caBundle"]
                .as_str()
                .map(str::to_owned);
            bundle.context("no caBundle")
        };
        let mut bundles = BTreeSet::new();
        // Three leaves and two CAs later it still admits, at every moment.
        for _ in 0..60 {
            bundles.insert(bundle().await?);
            let created = dry_run(&shop, &pod("app", json!({}))).await?;
            ensure!(has_sidecar(&created), "{created}");
            tokio::time::sleep(Duration::from_millis(400)).await;
        }
        ensure!(bundles.len() >= 2, "the CA was not rotated");
        injector.stop().await;
        Ok(())
    })
}

/// The rights that both programs have are enough: every test here runs with them. And they are no more.
#[test]
#[ignore = "needs a kube-apiserver"]
fn rights_are_no_more_than_needed() -> Result<()> {
    run(async |plane| {
        for account in ["outrigger-controller", "outrigger-injector"] {
            for question in [
                &["get", "secrets", "-n", "default"][..],
                &["list", "secrets", "--all-namespaces"],
                &["list", "secrets", "-n", "kube-system"],
                &["create", "pods", "-n", "default"],
                &["create", "pods/exec", "-n", "default"],
                &["delete", "pods", "-n", "default"],
                &["patch", "deployments.apps", "-n", "outrigger"],
                &["create", "clusterrolebindings.rbac.authorization.k8s.io"],
                &["escalate", "clusterroles.rbac.authorization.k8s.io"],
                &["impersonate", "users"],
                &["create", "serviceaccounts/token", "-n", "default"],
                &["get", "nodes/proxy"],
                &[
                    "update",
                    "mutatingwebhookconfigurations.admissionregistration.k8s.io/another",
                ],
                &[
                    "patch",
                    "mutatingwebhookconfigurations.admissionregistration.k8s.io/another",
                ],
                &["patch", "customresourcedefinitions.apiextensions.k8s.io"],
                &["*", "*"],
            ] {
                ensure!(
                    !plane.may(account, question).await?,
                    "{account} may {}",
                    question.join(" ")
                );
            }
        }
        let own = [
            "patch",
            "mutatingwebhookconfigurations.admissionregistration.k8s.io/outrigger-injector",
        ];
        ensure!(
            plane.may("outrigger-injector", &own).await?,
            "the injector may not {}",
            own.join(" ")
        );
        ensure!(
            !plane.may("outrigger-controller", &own).await?,
            "the controller may {}",
            own.join(" ")
        );
        let review = ["create", "tokenreviews.authentication.k8s.io"];
        ensure!(
            plane.may("outrigger-controller", &review).await?,
            "the controller may not {}",
            review.join(" ")
        );
        ensure!(
            !plane.may("outrigger-injector", &review).await?,
            "the injector may {}",
            review.join(" ")
        );
        Ok(())
    })
}
