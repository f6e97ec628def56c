//! What the chart renders where there is something already: an earlier release, or Secrets of the user's.

use anyhow::{Context, Result, ensure};
use outrigger_injector::settings::{ForwardedFor, NotSampled, Settings};
use outrigger_tests::cluster::{INSTALL_NAMESPACE, repository};
use outrigger_tests::kube::Kubectl;
use serde_json::{Value, json};

/// The objects of `helm template` with these arguments.
async fn rendered(arguments: &[&str]) -> Result<Vec<Value>> {
    let chart = repository().join("charts/outrigger");
    let chart = chart.to_str().context("the path is not UTF-8")?;
    let helm = Kubectl::from_env()?.namespace(INSTALL_NAMESPACE);
    let text = helm
        .helm([&["template", "outrigger", chart], arguments].concat())
        .await?;
    let documents = text.split("\n---");
    documents
        .map(|document| serde_saphyr::from_str(document).with_context(|| document.to_owned()))
        .collect()
}

/// The environment of the controller that is said in plain words.
fn controllers_environment(objects: &[Value]) -> Option<Value> {
    let mut objects = objects.iter();
    let controller = objects.find(|o| o["kind"] == "Deployment" && o["metadata"]["name"] == "outrigger-controller")?;
    let variables = controller
        .pointer("/spec/template/spec/containers/0/env")?
        .as_array()?
        .iter();
    let plain = variables.filter_map(|v| Some((v["name"].as_str()?.to_owned(), v.get("value")?.clone())));
    Some(Value::Object(plain.collect()))
}

/// `helm upgrade --reuse-values` takes the values of the release before, which lack what came later, in the place of the chart's.
#[tokio::test]
#[ignore = "needs helm"]
async fn values_of_the_release_before_render_and_mean_the_defaults() -> Result<()> {
    let mut defaults = controllers_environment(&rendered(&[]).await?).context("no controller")?;
    let before = ["--set", "identity=null,routes=null,clusterNetworks=null"];
    let reused = controllers_environment(&rendered(&before).await?).context("no controller")?;
    // The controller itself has the same default. An empty list would mean something else.
    let networks = defaults["OUTRIGGER_CLUSTER_NETWORKS"].take();
    ensure!(
        networks
            .as_str()
            .is_some_and(|networks| networks.contains("10.0.0.0/8"))
    );
    defaults.as_object_mut().map(|d| d.remove("OUTRIGGER_CLUSTER_NETWORKS"));
    ensure!(reused == defaults, "{reused:#} is not {defaults:#}");

    let none = ["--set-json", "clusterNetworks=[]"];
    let none = controllers_environment(&rendered(&none).await?).context("no controller")?;
    ensure!(none["OUTRIGGER_CLUSTER_NETWORKS"] == "", "{none:#}");
    Ok(())
}

/// The injector's settings, read as it reads them.
fn settings(objects: &[Value]) -> Result<Settings> {
    let mut objects = objects.iter();
    let map = objects.find(|o| o["kind"] == "ConfigMap" && o["metadata"]["name"] == "outrigger-injector");
    let text = map.context("no settings")?["data"]["settings.yaml"].as_str();
    Ok(serde_saphyr::from_str(text.context("no text")?)?)
}

#[tokio::test]
#[ignore = "needs helm"]
async fn what_values_say_of_traces_and_callers_is_what_the_injector_reads() -> Result<()> {
    let said = async |arguments: &[&str]| -> Result<(ForwardedFor, NotSampled)> {
        let settings = settings(&rendered(arguments).await?)?;
        Ok((
            settings.forwarded_for,
            settings.tracing.context("no tracing")?.not_sampled,
        ))
    };
    let defaults = (ForwardedFor::Leave, NotSampled::Omit);
    ensure!(said(&[]).await? == defaults);
    // Of a release before, by `--reuse-values`.
    ensure!(said(&["--set", "proxy.forwardedFor=null,tracing.notSampled=null"]).await? == defaults);
    let other = said(&["--set", "proxy.forwardedFor=Append,tracing.notSampled=Pass"]);
    ensure!(other.await? == (ForwardedFor::Append, NotSampled::Pass));
    for wrong in ["proxy.forwardedFor=append", "tracing.notSampled=Never"] {
        ensure!(rendered(&["--set", wrong]).await.is_err(), "{wrong}");
    }
    Ok(())
}

/// By its whole name: the host's is cut at 63 characters, and then a controller takes its own word in a status for another's.
#[tokio::test]
#[ignore = "needs helm"]
async fn the_controller_knows_which_pod_it_is() -> Result<()> {
    let objects = rendered(&[]).await?;
    let mut deployments = objects.iter().filter(|object| object["kind"] == "Deployment");
    let controller = deployments.find(|object| object["metadata"]["name"] == "outrigger-controller");
    let controller = controller.context("no controller")?;
    let variables = controller.pointer("/spec/template/spec/containers/0/env");
    let mut variables = variables.and_then(Value::as_array).context("no environment")?.iter();
    let pod = variables.find(|variable| variable["name"] == "OUTRIGGER_POD");
    let field = pod.and_then(|pod| pod.pointer("/valueFrom/fieldRef/fieldPath"));
    ensure!(field == Some(&json!("metadata.name")), "{pod:?}");
    Ok(())
}

/// Whom the NetworkPolicies let in, by the names of the ports. None is made unless it is asked for.
#[tokio::test]
#[ignore = "needs a kube-apiserver"]
async fn network_policies_leave_the_admin_ports_to_who_is_named() -> Result<()> {
    let policies = |objects: Vec<Value>| -> Vec<Value> {
        let policies = objects.into_iter().filter(|object| object["kind"] == "NetworkPolicy");
        policies.collect()
    };
    ensure!(policies(rendered(&[]).await?).is_empty());
    ensure!(policies(rendered(&["--set", "networkPolicy=null"]).await?).is_empty());
    let monitoring = json!([{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]);
    let named = format!("networkPolicy.metricsFrom={monitoring}");
    let admin = Kubectl::from_env()?;
    let install = admin.create_namespace(INSTALL_NAMESPACE, &[]).await?;
    for (more, peers) in [(None, None), (Some(named.as_str()), Some(monitoring))] {
        let mut arguments = vec!["--set", "networkPolicy.enabled=true"];
        arguments.extend(more.iter().flat_map(|more| ["--set-json", more]));
        let policies = policies(rendered(&arguments).await?);
        ensure!(policies.len() == 2, "{policies:?}");
        for policy in policies {
            // A selector that takes no pod would protect nothing.
            let taken = install
                .run_with_input(["apply", "-o", "json", "-f", "-"], &policy.to_string())
                .await?;
            let taken: Value = serde_json::from_str(&taken)?;
            let own = match taken["metadata"]["name"].as_str() {
                Some("outrigger-controller") => "grpc",
                Some("outrigger-injector") => "webhook",
                other => anyhow::bail!("{other:?}"),
            };
            let rules = taken["spec"]["ingress"].as_array().context("no rules")?;
            let open = json!({"ports": [{"port": own, "protocol": "TCP"}]});
            let metrics = peers
                .iter()
                .map(|peers| json!({"ports": [{"port": "admin", "protocol": "TCP"}], "from": peers}));
            let expected: Vec<_> = std::iter::once(open).chain(metrics).collect();
            ensure!(*rules == expected, "{rules:?}");
            ensure!(taken["spec"]["policyTypes"] == json!(["Ingress"]));
            let deployments = rendered(&arguments).await?;
            let mut deployments = deployments.iter().filter(|object| object["kind"] == "Deployment");
            let of_it = deployments.find(|object| object["metadata"]["name"] == taken["metadata"]["name"]);
            let pod = &of_it.context("no Deployment of its name")?["spec"]["template"];
            for (label, value) in taken["spec"]["podSelector"]["matchLabels"]
                .as_object()
                .context("no selector")?
            {
                ensure!(pod["metadata"]["labels"][label] == *value, "{label}");
            }
            let ports = pod["spec"]["containers"][0]["ports"].as_array().into_iter().flatten();
            let ports: Vec<_> = ports.filter_map(|port| port["name"].as_str()).collect();
            ensure!(ports == [own, "admin"], "{ports:?}");
            install
                .run(["delete", "networkpolicy", taken["metadata"]["name"].as_str().unwrap()])
                .await?;
        }
    }
    for wrong in [
        "networkPolicy.enabled=1",
        "networkPolicy.metricsFrom=[{}]",
        "networkPolicy.egress=true",
    ] {
        ensure!(rendered(&["--set-json", wrong]).await.is_err(), "{wrong}");
    }
    Ok(())
}

/// Those that earlier controllers and injectors made, and those of `kubectl create secret tls`, are of the type
/// kubernetes.io/tls. A type cannot be changed: with another one in the manifest, whoever applies it (`kubectl apply`, Argo CD,
/// which cannot look for what is there) would fail.
#[tokio::test]
#[ignore = "needs helm"]
async fn secrets_are_of_whatever_type_they_are_and_hold_what_they_hold() -> Result<()> {
    let objects = rendered(&[]).await?;
    let secrets: Vec<_> = objects.iter().filter(|object| object["kind"] == "Secret").collect();
    ensure!(secrets.len() == 2, "{secrets:?}");
    for secret in secrets {
        for field in ["type", "data", "stringData", "immutable"] {
            ensure!(secret.get(field).is_none(), "{secret:#} says {field}");
        }
        ensure!(secret["metadata"]["annotations"] == json!({"helm.sh/resource-policy": "keep"}));
    }
    Ok(())
}
