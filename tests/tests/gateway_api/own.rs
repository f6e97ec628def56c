//! What Gateway API's own suite leaves out, on a real cluster: a table of routes, what calls see of them, and what their statuses say; and the recipes
//! of docs/releases.md.
//!
//! The pods are those of that suite: an echo server that says which pod it is and what it was asked for, called by its own client.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use outrigger_api::labels;
use outrigger_tests::cluster::{Cluster, INSTALL_NAMESPACE, examples_are_taken, on_cluster, rolled_out};
use outrigger_tests::kube::{Kubectl, eventually};
use serde_json::Value;

use super::cases::{CASES, MESHES, PODS};

pub(super) const NAMESPACE: &str = "routes";
/// A change takes as long to reach a sidecar that is in use, at most.
pub(super) const SOON: Duration = Duration::from_secs(30);

/// Some routes, and what comes of them.
pub(super) struct Case {
    pub name: &'static str,
    /// Objects, in YAML.
    pub objects: &'static str,
    /// "KIND/NAME Accepted's reason ResolvedRefs' reason".
    pub says: &'static [&'static str],
    pub asks: &'static [Ask],
}

/// What the client is called with, in words, and what it sees.
pub(super) struct Ask {
    pub client: &'static str,
    pub sees: Sees,
}

/// Of each answer: its status and the version of the pods that answered ("200 v1"; "503 -" of a sidecar's own); "failed" without one.
pub(super) enum Sees {
    /// All are so.
    All(&'static str),
    /// So many of them are so, of the answers to 100 requests or connections.
    Shares(&'static [(&'static str, RangeInclusive<usize>)]),
    /// All have this status and version, and among what is printed are these lines.
    Has(&'static str, &'static [&'static str]),
    /// So many of 100 requests have come to the pods of this version as well, when all have had this answer.
    Mirrored(&'static str, &'static [(&'static str, RangeInclusive<u64>)]),
}

#[test]
#[ignore = "needs root and a cluster"]
fn what_the_suite_leaves_out() -> Result<()> {
    on_cluster(Duration::from_secs(600), async |cluster| {
        super::install_crds(&cluster).await?;
        cluster.install().await?;
        rolled_out(&cluster.admin.namespace(INSTALL_NAMESPACE), "deployment").await?;
        let routes = cluster
            .admin
            .create_namespace(NAMESPACE, &[(labels::INJECT, labels::ENABLED)])
            .await?;
        eventually("the pods are taken", SOON, async || routes.apply(PODS).await).await?;
        rolled_out(&routes, "deployment").await?;
        cluster.admin.apply(MESHES).await?;
        eventually("what the mesh supports", SOON, async || meshes_say(&cluster).await).await?;
        cluster.admin.run_with_input(["delete", "-f", "-"], MESHES).await?;
        let examples = examples_are_taken(&routes, &["routes", "backend-tls"]).await?;
        ensure!(examples >= 9, "only {examples} examples");
        let mut failed = Vec::new();
        for case in CASES {
            routes.apply(case.objects).await.context(case.name)?;
            match case.holds(&cluster, &routes).await {
                Ok(()) => println!("holds: {}", case.name),
                Err(error) => failed.push(format!("{}: {error:#}", case.name)),
            }
            routes
                .run_with_input(["delete", "--wait=true", "-f", "-"], case.objects)
                .await?;
        }
        let tls = super::tls::all(&cluster, &routes).await;
        failed.extend(tls.err().map(|error| format!("BackendTLSPolicy: {error:#}")));
        let sessions = super::sessions::all(&routes).await;
        failed.extend(sessions.err().map(|error| format!("sessions: {error:#}")));
        let recipes = super::recipes::all(&cluster, &routes).await;
        failed.extend(recipes.err().map(|error| format!("{error:#}")));
        cluster
            .admin
            .run(["delete", "namespace", NAMESPACE, "--wait=false"])
            .await?;
        ensure!(failed.is_empty(), "{}", failed.join("\n"));
        Ok(())
    })
}

async fn meshes_say(cluster: &Cluster) -> Result<()> {
    let ours = cluster.admin.get(["xmesh", "outrigger"]).await?;
    let condition = &ours["status"]["conditions"][0];
    ensure!(
        condition["reason"] == "Accepted" && condition["status"] == "True",
        "{ours}"
    );
    let features = ours["status"]["supportedFeatures"].as_array().context("no features")?;
    ensure!(
        features.iter().any(|feature| feature["name"] == "HTTPRouteCORS"),
        "{ours}"
    );
    let another = cluster.admin.get(["xmesh", "another"]).await?;
    ensure!(another["status"].get("supportedFeatures").is_none(), "{another}");
    Ok(())
}

impl Case {
    async fn holds(&self, cluster: &Cluster, routes: &Kubectl) -> Result<()> {
        for says in self.says {
            let [object, accepted, resolved] = says.split(' ').collect::<Vec<_>>()[..] else {
                bail!("not an object and two reasons: {says}");
            };
            eventually(says, SOON, async || {
                conditions_are(&routes.get([object]).await?, accepted, resolved)
            })
            .await?;
        }
        for ask in self.asks {
            eventually(ask.client, SOON, async || ask.is_answered(cluster, routes).await).await?;
        }
        Ok(())
    }
}

/// For every parent of a route, or ancestor of a policy: the reasons, for what the object is now.
pub(super) fn conditions_are(object: &Value, accepted: &str, resolved: &str) -> Result<()> {
    let status = &object["status"];
    let parents = status["parents"].as_array().or_else(|| status["ancestors"].as_array());
    let parents = parents.context("no status")?;
    ensure!(!parents.is_empty(), "no parents");
    for parent in parents {
        ensure!(parent["controllerName"] == "outrigger.dev/controller", "{parent}");
        for (kind, reason) in [("Accepted", accepted), ("ResolvedRefs", resolved)] {
            let conditions = parent["conditions"].as_array().context("no conditions")?;
            let condition = conditions.iter().find(|condition| condition["type"] == kind);
            let condition = condition.with_context(|| format!("no {kind}"))?;
            let status = if reason == kind { "True" } else { "False" };
            ensure!(
                condition["reason"] == reason && condition["status"] == status,
                "{condition}"
            );
            let generation = &object["metadata"]["generation"];
            ensure!(
                condition["observedGeneration"] == *generation,
                "of generation {generation}: {condition}"
            );
        }
    }
    Ok(())
}

impl Ask {
    pub(super) async fn is_answered(&self, cluster: &Cluster, routes: &Kubectl) -> Result<()> {
        let before = self.received(cluster).await?;
        let exec = ["exec", "deploy/client", "-c", "echo", "--", "client"];
        let args = exec.into_iter().chain(self.client.split(' '));
        // Without an answer to any request the client fails.
        let printed = routes.run(args).await.unwrap_or_else(|error| format!("{error:#}"));
        let answers = answers(&printed);
        let number = |of: &str| answers.iter().filter(|answer| *answer == of).count();
        let all = |of: &str| {
            ensure!(number(of) == answers.len(), "{of} is expected:\n{printed}");
            Ok(())
        };
        match &self.sees {
            Sees::All(of) => all(of),
            Sees::Has(of, lines) => {
                all(of)?;
                let missing = lines.iter().find(|line| !printed.contains(**line));
                ensure!(missing.is_none(), "{missing:?} is missing:\n{printed}");
                Ok(())
            }
            Sees::Shares(shares) => {
                let is = |(of, share): &&(&str, RangeInclusive<usize>)| share.contains(&number(of));
                let other = shares.iter().find(|share| !is(share));
                ensure!(
                    other.is_none() && answers.len() == 100,
                    "{other:?}: {:?}",
                    summary(&answers)
                );
                Ok(())
            }
            Sees::Mirrored(of, shares) => {
                all(of)?;
                // A mirror's copy is under way when its request has been answered.
                eventually("mirrored", Duration::from_secs(5), async || {
                    let now = self.received(cluster).await?;
                    for (version, share) in *shares {
                        let more = now[*version] - before[*version];
                        ensure!(share.contains(&more), "{more} requests more at {version}");
                    }
                    Ok(())
                })
                .await
            }
        }
    }

    /// How many requests each version has had, where that is asked for.
    async fn received(&self, cluster: &Cluster) -> Result<BTreeMap<&'static str, u64>> {
        let mut received = BTreeMap::new();
        let Sees::Mirrored(_, shares) = &self.sees else {
            return Ok(received);
        };
        for (version, _) in *shares {
            let mut requests = 0;
            for pod in cluster.pods(NAMESPACE, &format!("version={version}")).await? {
                let metrics = cluster.admin_port(NAMESPACE, &pod, "/metrics").await?;
                let inbound = metrics.lines().filter(|line| {
                    line.starts_with("outrigger_requests_total{") && line.contains("direction=\"inbound\"")
                });
                for line in inbound {
                    let (_, value) = line.rsplit_once(' ').context("no value")?;
                    requests += value.parse::<u64>()?;
                }
            }
            received.insert(*version, requests);
        }
        Ok(received)
    }
}

/// Of each request.
fn answers(printed: &str) -> Vec<String> {
    let mut answers: BTreeMap<usize, (String, String)> = BTreeMap::new();
    for line in printed.lines() {
        let Some((number, said)) = line.strip_prefix('[').and_then(|line| line.split_once("] ")) else {
            continue;
        };
        let (number, part) = number.split_once(' ').unwrap_or((number, ""));
        let Ok(number) = number.parse() else { continue };
        let (status, version) = answers.entry(number).or_insert(("failed".to_owned(), "-".to_owned()));
        if let Some(code) = said.strip_prefix("StatusCode=") {
            // Of gRPC and of bytes it is what the server writes; of HTTP that says nothing.
            if part.is_empty() || status == "failed" {
                code.clone_into(status);
            }
        } else if let Some(name) = said.strip_prefix("Hostname=echo-").filter(|_| part == "body") {
            name.split('-').next().unwrap_or("-").clone_into(version);
        }
    }
    let text = |(status, version): (String, String)| match status.as_str() {
        "failed" => status,
        _ => format!("{status} {version}"),
    };
    match answers.is_empty() {
        true => vec!["failed".to_owned()],
        false => answers.into_values().map(text).collect(),
    }
}

fn summary(answers: &[String]) -> BTreeMap<&str, usize> {
    let mut summary = BTreeMap::new();
    for answer in answers {
        *summary.entry(answer.as_str()).or_default() += 1;
    }
    summary
}
