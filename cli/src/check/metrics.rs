//! What Outrigger's own pods count, read at their admin ports through kube-apiserver: it needs the right to `get`
//! `pods/proxy`, and no way of its own into the cluster.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use kube::Client;
use outrigger_api::{labels, ports};

use super::{Facts, Finding, some, warning};

/// Pods that are asked, in a cluster with more of them.
pub(super) const MAX_PODS: usize = 300;
/// Pods that are asked at a time.
pub(super) const AT_ONCE: usize = 16;
const TIMEOUT: Duration = Duration::from_secs(3);

/// The metrics of some pods: what is in them for the findings.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    /// Ports of Services ("namespace/name:port") whose server speaks first although nobody declared it.
    pub(super) servers_first: BTreeSet<String>,
    /// The same of pods, as their own sidecars say.
    pub(super) apps_first: BTreeSet<String>,
    /// Of a controller: how many addresses of Services and pods are outside of `clusterNetworks`, if that list is proved wrong.
    pub(super) outside_networks: Option<u64>,
    /// Why a pod could not be asked: the last reason, and how many pods there were of it.
    pub(super) failed: Option<(usize, String)>,
}

/// Asks the pods ("namespace", "name").
pub(super) async fn ask(client: &Client, pods: Vec<(String, String)>) -> Said {
    let answers = stream::iter(pods.into_iter().take(MAX_PODS)).map(|(namespace, name)| async move {
        let text = metrics(client, &namespace, &name).await;
        (format!("{namespace}/{name}"), text)
    });
    let answers = answers.buffer_unordered(AT_ONCE);
    let said = answers.fold(Said::default(), async |mut said, (pod, text)| {
        said.add(&pod, text);
        said
    });
    said.await
}

async fn metrics(client: &Client, namespace: &str, pod: &str) -> Result<String, String> {
    let path = format!(
        "/api/v1/namespaces/{namespace}/pods/{pod}:{}/proxy/metrics",
        ports::ADMIN
    );
    let request = http::Request::get(path).body(Vec::new()).map_err(|e| e.to_string())?;
    match tokio::time::timeout(TIMEOUT, client.request_text(request)).await {
        Ok(answer) => answer.map_err(|e| e.to_string()),
        Err(_) => Err(format!("{namespace}/{pod} does not answer within {TIMEOUT:?}")),
    }
}

impl Said {
    /// Adds the metrics of a pod.
    pub(super) fn add(&mut self, pod: &str, text: Result<String, String>) {
        let text = match text {
            Ok(text) => text,
            Err(why) => {
                let before = self.failed.take().map_or(0, |(pods, _)| pods);
                self.failed = Some((before + 1, why));
                return;
            }
        };
        if value(&text, "outrigger_controller_networks_refuted") > 0 {
            let outside = value(&text, "outrigger_controller_addresses_outside_networks");
            self.outside_networks = self.outside_networks.max(Some(outside));
        }
        for line in text
            .lines()
            .filter(|line| line.starts_with("outrigger_server_first_ports{"))
        {
            match (label(line, "service"), label(line, "server_port")) {
                (Some(service), Some(port)) => self.servers_first.insert(format!("{service}:{port}")),
                (None, Some(port)) => self.apps_first.insert(format!("{pod}:{port}")),
                _ => false,
            };
        }
    }
}

/// The sum of a metric's series.
fn value(text: &str, name: &str) -> u64 {
    let series = text.lines().filter_map(|line| line.strip_prefix(name));
    let series = series.filter(|rest| rest.starts_with(['{', ' ']));
    series
        .filter_map(|rest| rest.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

/// The value of a label in a line of metrics. Names of Kubernetes' objects and numbers have nothing to escape.
fn label<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = line.split_once(&format!("{name}=\""))?;
    rest.split_once('"').map(|(value, _)| value)
}

/// What is in them for a person.
pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    let mut findings = networks(facts);
    findings.extend(servers_first(&facts.sidecars_say));
    findings
}

/// What sidecars found out about ports, and what should have been declared.
fn servers_first(said: &Said) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut add = |what: &str, ports: &BTreeSet<String>| {
        let ports: Vec<_> = ports.iter().collect();
        if !ports.is_empty() {
            let text = format!("{what} that speak first, though nobody declared it: {}", some(&ports));
            let hint = format!(
                "a connection waits a second whenever this is not known yet: give the Service's port the appProtocol tcp, or \
                 annotate the Service with {}",
                labels::OPAQUE_PORTS
            );
            findings.push(warning(text, hint));
        }
    };
    add("servers", &said.servers_first);
    add("apps", &said.apps_first);
    findings.extend(unread("sidecars", said));
    findings
}

/// What the controller found out about `clusterNetworks`.
fn networks(facts: &Facts) -> Vec<Finding> {
    let said = &facts.controllers_say;
    let refuted = said.outside_networks.map(|addresses| {
        warning(
            format!(
                "{addresses} addresses of Services and pods are outside of clusterNetworks: sidecars ask the controller for every \
                 address"
            ),
            format!(
                "kubectl logs -n {} deployment/outrigger-controller names one; add its network to the chart's value clusterNetworks",
                facts.namespace
            ),
        )
    });
    refuted.into_iter().chain(unread("controllers", said)).collect()
}

fn unread(whose: &str, said: &Said) -> Option<Finding> {
    let (pods, why) = said.failed.as_ref()?;
    Some(warning(
        format!("the metrics of {pods} {whose} could not be read: {why}"),
        "is the pod ready, and are you allowed to get pods/proxy?",
    ))
}

#[cfg(test)]
mod tests {
    use super::Said;

    #[test]
    fn ports_whose_server_speaks_first() {
        let mut said = Said::default();
        let text = "# TYPE outrigger_server_first_ports gauge\n\
            outrigger_server_first_ports{direction=\"outbound\",service=\"shop/nats\",server_port=\"4222\"} 1\n\
            outrigger_server_first_ports{direction=\"inbound\",server_port=\"2525\"} 1\n\
            outrigger_detect_timeouts_total 3\n";
        for pod in ["shop/web-1", "shop/web-2"] {
            said.add(pod, Ok(text.to_owned()));
        }
        assert_eq!(said.servers_first, ["shop/nats:4222".to_owned()].into());
        assert_eq!(
            said.apps_first,
            ["shop/web-1:2525".to_owned(), "shop/web-2:2525".to_owned()].into()
        );
        assert_eq!(said.failed, None);
    }

    #[test]
    fn a_controllers_networks() {
        let text = |refuted, outside| {
            format!(
                "outrigger_controller_addresses_outside_networks{{kind=\"service\"}} 1\n\
                 outrigger_controller_addresses_outside_networks{{kind=\"pod\"}} {outside}\n\
                 outrigger_controller_networks_refuted {refuted}\n"
            )
        };
        let mut said = Said::default();
        said.add("outrigger/outrigger-controller-1", Ok(text(0, 0)));
        assert_eq!(said.outside_networks, None);
        said.add("outrigger/outrigger-controller-2", Ok(text(1, 2)));
        assert_eq!(said.outside_networks, Some(3));
    }

    #[test]
    fn pods_that_could_not_be_asked() {
        let mut said = Said::default();
        for _ in 0..2 {
            said.add("shop/web-1", Err("pods/proxy is forbidden".to_owned()));
        }
        assert_eq!(said.failed, Some((2, "pods/proxy is forbidden".to_owned())));
    }
}
