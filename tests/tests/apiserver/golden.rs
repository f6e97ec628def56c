//! The injector's golden files, through kube-apiserver.

use anyhow::{Context, Result, bail, ensure};
use outrigger_api::probes::KEY_HEADER;
use outrigger_injector::settings::VERSION;
use outrigger_tests::cluster::repository;
use outrigger_tests::control_plane::{ControlPlane, documents};
use outrigger_tests::kube::Kubectl;
use serde_json::{Value, json};

use super::{dry_run, namespace, run};

const IMAGE: &str = "registry.example/outrigger/proxy:test";

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
            // Only `outrigger inject` leaves a sidecar without roots.
            if case == "config-map" {
                continue;
            }
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
            // "line 1: Pod NAME: ..." is the offline prefix.
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
    // The volume with the API token has a random name, and stands before or after ours, whoever was first.
    let text = pod.to_string();
    if let Some(at) = text.find("kube-api-access-") {
        let random: String = text[at..].chars().take("kube-api-access-".len() + 5).collect();
        pod = serde_json::from_str(&text.replace(&random, "kube-api-access")).unwrap();
    }
    // The key of lifecycle handlers is a random one.
    let text = pod.to_string();
    let header = format!("{{\"name\":\"{KEY_HEADER}\",\"value\":\"");
    if let Some(at) = text.find(&header) {
        let key: String = text[at + header.len()..].chars().take_while(|c| *c != '"').collect();
        pod = serde_json::from_str(&text.replace(&key, "key")).unwrap();
    }
    // Spans go to a Service of the pod's own namespace, which is another one here.
    let text = pod.to_string();
    let jaeger = "http://jaeger.";
    if let Some(at) = text.find(jaeger) {
        let namespace: String = text[at + jaeger.len()..].chars().take_while(|c| *c != '.').collect();
        pod = serde_json::from_str(&text.replace(&format!("{jaeger}{namespace}."), "http://jaeger.shop.")).unwrap();
    }
    let by_name = |list: &mut Value| {
        if let Some(list) = list.as_array_mut() {
            list.sort_by_key(|item| (item["name"].to_string(), item["mountPath"].to_string()));
        }
    };
    by_name(&mut pod["spec"]["volumes"]);
    for kind in ["initContainers", "containers"] {
        for container in pod["spec"][kind].as_array_mut().into_iter().flatten() {
            by_name(&mut container["volumeMounts"]);
        }
    }
    pod
}

fn difference(expected: &Value, actual: &Value) -> String {
    let patch = json_patch::diff(expected, actual);
    format!(
        "kube-apiserver's pod differs from the golden file: {}",
        serde_json::to_string_pretty(&patch).unwrap()
    )
}
