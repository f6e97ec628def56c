//! `outrigger inject`: a manifest goes in, the manifest with sidecars comes out. Offline.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use outrigger_injector::inject::{Given, random_key};
use outrigger_injector::manifest;
use outrigger_injector::roots::check;
use outrigger_injector::settings::Settings;

/// Put the sidecar into the workloads of a manifest, as the webhook would, and print it
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A YAML or JSON file with one or more objects; "-", the default, reads standard input
    #[arg(value_name = "FILE", conflicts_with = "filename")]
    file: Option<PathBuf>,
    /// The same, as kubectl has it
    #[arg(short, long, value_name = "FILE")]
    filename: Option<PathBuf>,
    /// Where objects go that name no namespace [default: wherever they are applied]
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// The settings of an installation: `settings.yaml` of its ConfigMap outrigger-injector
    #[arg(long, value_name = "FILE")]
    settings: Option<PathBuf>,
    /// The sidecar's image, instead of the settings' one
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// The roots that the sidecars trust at first, PEM, as in key `ca.crt` of the ConfigMap outrigger-trust-bundle in Outrigger's
    /// namespace. Without it the ConfigMap of the pods' own namespace says them, and so does whoever may write there
    #[arg(long, value_name = "FILE")]
    trust_bundle: Option<PathBuf>,
    /// For clusters older than Kubernetes 1.29: the sidecar is an ordinary container
    #[arg(long)]
    no_native_sidecars: bool,
}

impl Args {
    /// The manifest; "-" is standard input.
    fn file(&self) -> PathBuf {
        let named = self.file.as_ref().or(self.filename.as_ref());
        named.cloned().unwrap_or_else(|| PathBuf::from("-"))
    }
}

/// Prints the manifest to standard output, and what was done to standard error.
///
/// # Errors
/// When a file cannot be read, or the manifest cannot be injected; every mistake in it is named.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let mut settings = match &args.settings {
        Some(file) => Settings::load(file)?,
        None => Settings::default(),
    };
    if let Some(image) = &args.image {
        settings.image.clone_from(image);
    }
    settings.native_sidecars &= !args.no_native_sidecars;
    let file = args.file();
    let name = file.display();
    let text = manifest::decode(read(&file)?).map_err(|wrong| anyhow::anyhow!("{name}: {wrong}"))?;
    let namespace = args.namespace.as_deref().unwrap_or_default();
    let roots = args.trust_bundle.as_deref().map(trust_bundle).transpose()?;
    let given = Given {
        key: &random_key()?,
        roots: roots.as_deref(),
        controller: None,
    };
    let injected = manifest::inject(&text, namespace, &settings, given).map_err(|errors| {
        let errors: Vec<_> = errors.iter().map(|error| format!("{name}: {error}")).collect();
        anyhow::anyhow!("{}", errors.join("\n"))
    })?;
    for note in &injected.notes {
        eprintln!("{name}: {note}");
    }
    std::io::stdout().write_all(injected.text.as_bytes())?;
    Ok(())
}

fn trust_bundle(file: &Path) -> anyhow::Result<String> {
    let roots = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    check(&roots).map_err(|why| anyhow::anyhow!("{}: {why}", file.display()))?;
    Ok(roots)
}

fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    if file.as_os_str() != "-" {
        return std::fs::read(file).with_context(|| file.display().to_string());
    }
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes).context("standard input")?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::Parser;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        args: super::Args,
    }

    #[test]
    fn the_file_is_named_with_or_without_its_flag() {
        for (line, file) in [
            (vec![], "-"),
            (vec!["-"], "-"),
            (vec!["a.yaml"], "a.yaml"),
            (vec!["-f", "a.yaml"], "a.yaml"),
            (vec!["--filename", "a.yaml", "-n", "shop"], "a.yaml"),
            (vec!["-n", "shop", "a.yaml"], "a.yaml"),
        ] {
            let line = std::iter::once("inject").chain(line);
            let args = Program::try_parse_from(line).unwrap().args;
            assert_eq!(args.file().as_os_str(), file);
        }
        assert!(Program::try_parse_from(["inject", "a.yaml", "-f", "b.yaml"]).is_err());
        assert!(Program::try_parse_from(["inject", "a.yaml", "b.yaml"]).is_err());
    }
}
