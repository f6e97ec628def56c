//! `outrigger authz`: who may call a pod, by which rule. The pod's own sidecar is asked, and says what it decides by: what a policy was
//! meant to say, and whether it has come so far, is the matter of `status` and of `outrigger check`.

use std::fmt::Write;
use std::process::ExitCode;

use anyhow::Context;
use outrigger_access::view::{DENY, PolicyView, PortView, RuleView, View};
use serde::{Deserialize, Serialize};

use crate::cluster;

/// Say who may call a pod, by which rules of AccessPolicies, as its sidecar enforces them
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The pod
    pod: String,
    /// The pod's namespace, instead of that of the kubeconfig's context
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// A context of the kubeconfig, instead of the current one
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Asks the pod's sidecar, and prints what it says.
///
/// # Errors
/// When the sidecar cannot be asked.
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let client = cluster::connect(args.context).await?;
    let namespace = args.namespace.unwrap_or_else(|| client.default_namespace().to_owned());
    let pod = args.pod.strip_prefix("pod/").unwrap_or(&args.pod);
    let config = cluster::sidecar_page(&client, &namespace, pod, "/config").await?;
    let told = Told::read(format!("{namespace}/{pod}"), &config)?;
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&told)?),
        false => print!("{}", told.text()),
    }
    Ok(ExitCode::SUCCESS)
}

/// What the sidecar says of its policies.
#[derive(Debug, Serialize)]
struct Told {
    /// "namespace/name".
    pod: String,
    /// The pod's own SPIFFE ID, if it has one yet.
    identity: Option<String>,
    /// "strict" or "permissive".
    mtls: String,
    /// `None`: the controller has not said it yet, and nobody is let in.
    access: Option<View>,
}

/// As much of `/config` as is needed.
#[derive(Deserialize)]
struct Config {
    identity: Option<Identity>,
    mtls: String,
    targets: Targets,
}

#[derive(Deserialize)]
struct Identity {
    id: String,
}

#[derive(Deserialize)]
struct Targets {
    access: Option<View>,
}

impl Told {
    fn read(pod: String, config: &[u8]) -> anyhow::Result<Self> {
        let config: Config = serde_json::from_slice(config).with_context(|| {
            let version = env!("CARGO_PKG_VERSION");
            format!("what the sidecar of {pod} says is not understood; is it of version {version}, as this program?")
        })?;
        Ok(Self {
            pod,
            identity: config.identity.map(|identity| identity.id),
            mtls: config.mtls,
            access: config.targets.access,
        })
    }

    fn text(&self) -> String {
        let identity = self.identity.as_deref().unwrap_or("no identity yet");
        let first = format!("{} ({identity}), mutual TLS: {}", self.pod, self.mtls);
        let mut text = cluster::printable(&first) + "\n";
        let Some(access) = &self.access else {
            text += "\nNobody: the controller has not said yet who may call it.\n";
            return text;
        };
        for port in &access.ports {
            push(&mut text, port);
        }
        push(&mut text, &access.others);
        if self.mtls == "strict" {
            text += "\nOf all of these only who comes in mutual TLS: it is strict.\n";
        }
        text
    }
}

/// A port in a few lines, in the order of the decision.
fn push(text: &mut String, view: &PortView) {
    let mut line = |line: String| {
        text.push_str(&cluster::printable(&line));
        text.push('\n');
    };
    line(String::new());
    line(match view.port {
        Some(port) => format!("Port {port}"),
        None => "All other ports".to_owned(),
    });
    for policy in &view.enforced {
        let (mark, verb) = match policy.action == DENY {
            true => ('✗', "refused"),
            false => ('✓', "allowed"),
        };
        for rule in &policy.rules {
            line(format!("  {mark} {verb}: {}    ({})", whom(rule), by(policy, rule)));
        }
    }
    let closing: Vec<&str> = view.exclusive().map(|policy| policy.name.as_str()).collect();
    line(match closing.is_empty() {
        true => "  ✓ allowed: all else".to_owned(),
        false => format!("  ✗ refused: all else    ({})", closing.join(", ")),
    });
    for policy in &view.audited {
        for rule in &policy.rules {
            let verb = if policy.action == DENY {
                "would refuse"
            } else {
                "would allow"
            };
            line(format!(
                "  · Audit only, {verb}: {}    ({})",
                whom(rule),
                by(policy, rule)
            ));
        }
        if policy.exclusive {
            line(format!("  · Audit only, would refuse: all else    ({})", policy.name));
        }
    }
}

fn whom(rule: &RuleView) -> String {
    let all: Vec<String> = rule.sources.iter().map(|any| any.join(" or ")).collect();
    let mut text = match all.is_empty() {
        true => "anybody".to_owned(),
        false => all.join(", and "),
    };
    if !rule.http.is_empty() {
        // A String takes all that is written.
        let _ = write!(text, "; {}", rule.http.join("; or "));
    }
    text
}

fn by(policy: &PolicyView, rule: &RuleView) -> String {
    format!("{} rule {}", policy.name, rule.name)
}

#[cfg(test)]
mod tests;
