//! What may be put into a running pod beside its sidecar, as `kubectl debug` does.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use outrigger_api::labels;
use outrigger_api::ports::PROXY_UID;
use outrigger_tests::kube::{Kubectl, eventually};
use serde_json::{Value, json};

use super::{has_sidecar, namespace, pod, run};

#[derive(Debug, PartialEq)]
enum Answer {
    Taken,
    Warned,
    Refused,
}

/// kube-apiserver asks nobody about it: no injector runs while it decides.
#[test]
#[ignore = "needs a kube-apiserver"]
fn no_guest_is_the_sidecars_user() -> Result<()> {
    run(async |plane| {
        let injector = plane.injector(|_| {}).await?;
        let shop = namespace(&plane.admin, "guests", true).await?;
        let create = async |name: &str, labels: Value, user: Value| {
            let mut pod = pod(name, json!({"labels": labels}));
            pod["spec"]["securityContext"] = user;
            pod["spec"]["containers"][0]["securityContext"] = json!({"runAsUser": 1000});
            shop.run_with_input(["create", "--validate=ignore", "-f", "-"], &pod.to_string())
                .await?;
            shop.get(["pod", name]).await
        };
        let own = json!({"runAsUser": PROXY_UID});
        let plain = create("plain", json!({}), json!({})).await?;
        let inherited = create("inherited", json!({}), own.clone()).await?;
        let outside = create("outside", json!({labels::INJECT: labels::DISABLED}), own.clone()).await?;
        ensure!(has_sidecar(&plain) && has_sidecar(&inherited) && !has_sidecar(&outside));
        injector.stop().await;

        let (another, target) = (json!({"runAsUser": 1001}), "outrigger-proxy");
        let cases = [
            (&plain, json!({}), "", Answer::Taken),
            (&plain, another.clone(), "app", Answer::Taken),
            (&plain, own.clone(), "", Answer::Refused),
            (&plain, json!({}), target, Answer::Warned),
            (&plain, own.clone(), target, Answer::Refused),
            (&inherited, json!({}), "", Answer::Refused),
            (&inherited, json!({"runAsNonRoot": true}), "", Answer::Refused),
            (&inherited, another, "", Answer::Taken),
            (&outside, own, "", Answer::Taken),
        ];
        for (pod, context, target, expected) in cases {
            let mut guest = json!({"name": "debug", "image": "example/debug:1", "securityContext": context});
            if !target.is_empty() {
                guest["targetContainerName"] = target.into();
            }
            // A policy that is new is in force a moment later.
            eventually(&format!("{expected:?}: {guest}"), Duration::from_secs(20), async || {
                let answer = add(&shop, pod, guest.clone()).await?;
                ensure!(answer == expected, "{answer:?} in {}", pod["metadata"]["name"]);
                Ok(())
            })
            .await?;
        }
        // Of those that are there already nothing is said again.
        let guest = json!({"name": "first", "image": "example/debug:1", "targetContainerName": target});
        put(&shop, &with(&plain, guest), "", &[]).await?;
        let plain = shop.get(["pod", "plain"]).await?;
        ensure!(plain["spec"]["ephemeralContainers"][0]["name"] == "first", "{plain}");
        let guest = json!({"name": "second", "image": "example/debug:1"});
        ensure!(add(&shop, &plain, guest).await? == Answer::Taken);
        Ok(())
    })
}

/// Asks kube-apiserver to put the container into the pod, without keeping it.
async fn add(namespace: &Kubectl, pod: &Value, guest: Value) -> Result<Answer> {
    let pod = with(pod, guest);
    if let Err(refused) = put(namespace, &pod, "?dryRun=All", &[]).await {
        let why = format!("{refused:#}");
        ensure!(why.contains("The user 2140 is the sidecar's own"), "{why}");
        return Ok(Answer::Refused);
    }
    match put(namespace, &pod, "?dryRun=All", &["--warnings-as-errors"]).await {
        Ok(_) => Ok(Answer::Taken),
        Err(warned) => {
            let why = format!("{warned:#}");
            ensure!(why.contains("The container sees the sidecar's process"), "{why}");
            Ok(Answer::Warned)
        }
    }
}

fn with(pod: &Value, guest: Value) -> Value {
    let mut pod = pod.clone();
    match pod["spec"]["ephemeralContainers"].as_array_mut() {
        Some(guests) => guests.push(guest),
        None => pod["spec"]["ephemeralContainers"] = json!([guest]),
    }
    pod
}

/// `query`, and flags of kubectl.
async fn put(namespace: &Kubectl, pod: &Value, query: &str, flags: &[&str]) -> Result<String> {
    let name = pod["metadata"]["name"].as_str().context("no name")?;
    let path = format!(
        "/api/v1/namespaces/{}/pods/{name}/ephemeralcontainers{query}",
        namespace.current_namespace()
    );
    let replace = ["replace", "--raw", &path, "-f", "-"];
    namespace
        .run_with_input([&replace[..], flags].concat(), &pod.to_string())
        .await
}
