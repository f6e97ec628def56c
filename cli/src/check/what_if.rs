//! `outrigger check --what-if FILE`: whom would these AccessPolicies shut out?
//!
//! Each sidecar counts whom it has let in (`/callers` of its admin port). The controller's own index, filled with the cluster's objects, says what
//! the sidecar of each pod is told, once as it is and once with the policies of the file; and what decides in sidecars judges the callers
//! by it. Nothing is written to the cluster.

mod file;
mod gather;
mod judge;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use kube::Client;

/// Prints a line for each finding. The exit code is 1 when somebody would be refused, and else 3 when not all could be judged.
///
/// # Errors
/// When the file is faulty, or the cluster does not let the user look.
pub(super) async fn run(client: &Client, own_namespace: &str, file: &Path) -> anyhow::Result<ExitCode> {
    let name = file.display().to_string();
    let text = std::fs::read_to_string(file).with_context(|| name.clone())?;
    let proposed = file::policies(&name, &text, client.default_namespace());
    let proposed = proposed.map_err(|mistakes| anyhow::anyhow!("{}", mistakes.join("\n")))?;
    let cluster = gather::cluster(client, own_namespace).await?;
    let changes = judge::changes(&cluster, &proposed)?;
    let seen = gather::callers(client, &changes).await;
    let report = judge::report(&proposed, &changes, &seen);
    for finding in &report.findings {
        println!("{finding}");
    }
    let outcome = report.outcome();
    println!("\n{}", outcome.text());
    Ok(ExitCode::from(outcome.exit_code()))
}
