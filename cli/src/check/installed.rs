//! What the chart installs.

use k8s_openapi::api::apps::v1::Deployment;
use outrigger_injector::certs;

use super::{Facts, Finding, WEBHOOK_WARNING, days, good, left, warning, wrong};

pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![
        deployment(facts, "outrigger-controller", facts.controller.as_ref()),
        deployment(facts, "outrigger-injector", facts.injector.as_ref()),
        webhooks(facts),
    ];
    findings.extend(facts.missing_secrets.iter().map(|name| {
        wrong(
            format!("Secret {}/{name} is missing", facts.namespace),
            "helm upgrade brings it back, empty; do it while the old pods still run, which know what belongs into it",
        )
    }));
    findings.push(good(match facts.gateway_api {
        true => "Gateway API is installed: Outrigger carries out its routes whose parent is a Service",
        false => "Gateway API is not installed: everything works, except for routes",
    }));
    findings
}

fn deployment(facts: &Facts, name: &str, deployment: Option<&Deployment>) -> Finding {
    let namespace = &facts.namespace;
    let Some(deployment) = deployment else {
        return wrong(
            format!("there is no Deployment {namespace}/{name}"),
            format!("helm install outrigger charts/outrigger -n {namespace} --create-namespace"),
        );
    };
    let wanted = deployment.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
    let ready = deployment.status.as_ref().and_then(|s| s.ready_replicas).unwrap_or(0);
    let text = format!("{name}: {ready} of {wanted} replicas are ready");
    let hint = format!("kubectl describe pods -n {namespace} -l app.kubernetes.io/name={name}");
    match ready {
        _ if ready >= wanted && ready > 0 => good(text),
        0 => wrong(text, hint),
        _ => warning(text, hint),
    }
}

fn webhooks(facts: &Facts) -> Finding {
    let Some(configuration) = &facts.webhooks else {
        return wrong(
            "there is no MutatingWebhookConfiguration outrigger-injector: new pods get no sidecar",
            "helm upgrade brings it back",
        );
    };
    let log = format!(
        "kubectl logs -n {} deployment/outrigger-injector says why",
        facts.namespace
    );
    for webhook in configuration.webhooks.iter().flatten() {
        let name = &webhook.name;
        let bundle = webhook
            .client_config
            .ca_bundle
            .as_ref()
            .map(|b| String::from_utf8_lossy(&b.0).into_owned());
        let Some(bundle) = bundle.filter(|b| !b.is_empty()) else {
            return wrong(
                format!("webhook {name} has no CA bundle: pods cannot be made in labelled namespaces"),
                log,
            );
        };
        match certs::ends(&bundle) {
            Err(why) => return wrong(format!("webhook {name}: its CA bundle is not valid: {why}"), log),
            // The bundle holds an old CA beside the new one during a rotation.
            Ok(ends) => match ends.into_iter().max().map(|end| left(end, facts.now)) {
                None | Some(None) => return wrong(format!("webhook {name}: its CA bundle has expired"), log),
                Some(Some(left)) if left < WEBHOOK_WARNING => {
                    return warning(format!("webhook {name}: its CA bundle expires in {}", days(left)), log);
                }
                Some(Some(_)) => {}
            },
        }
    }
    good("the webhook configuration has a valid CA bundle")
}
