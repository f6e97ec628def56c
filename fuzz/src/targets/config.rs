//! A sidecar's configuration: the standalone file, and the environment.

use std::path::Path;
use std::time::Duration;

use outrigger_proxy::capture::CaptureConfig;
use outrigger_proxy::config::Config;
use outrigger_proxy::identity::FirstRoots;

const NAME: &str = "mesh/sidecar.yaml";

/// A file of YAML; or, after a line "env", lines of NAME=value.
pub fn run(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    match text.strip_prefix("env\n") {
        Some(lines) => environment(lines),
        None => file(&text),
    }
}

fn file(text: &str) {
    match Config::from_yaml(NAME, text) {
        Ok(config) => {
            let FirstRoots::File(roots) = &config.identity.roots else {
                panic!("a file has no roots of its own");
            };
            for path in [&config.identity.token_file, roots] {
                assert!(path.is_absolute() || path.starts_with(Path::new("mesh")), "{path:?}");
            }
            check(&config);
        }
        Err(errors) => check_errors(&errors, text, "mesh/sidecar.yaml:"),
    }
}

fn environment(lines: &str) {
    let get = |name: &str| {
        let line = lines
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.map(str::to_owned)
    };
    match CaptureConfig::from_env(get) {
        Ok(capture) => {
            let ports = capture.skip_inbound_ports.iter().chain(&capture.skip_outbound_ports);
            assert!(
                ports
                    .into_iter()
                    .all(|range| *range.start() > 0 && range.start() <= range.end())
            );
            assert!(
                capture
                    .skip_outbound_cidrs
                    .iter()
                    .all(|network| network.addr() == network.network())
            );
            assert!(!capture.skip_uids.contains(&u32::MAX));
        }
        Err(errors) => check_errors(&errors, lines, "OUTRIGGER_SKIP_"),
    }
    match Config::from_env(get) {
        Ok(config) => check(&config),
        Err(errors) => check_errors(&errors, lines, "OUTRIGGER_"),
    }
}

fn check(config: &Config) {
    assert!((1..=64).contains(&config.workers));
    assert!((Duration::from_millis(100)..=Duration::from_secs(60)).contains(&config.detect_timeout));
    assert!(config.drain_timeout <= Duration::from_secs(3600));
    assert!(
        config
            .tracing
            .as_ref()
            .is_none_or(|t| (0.0..=1.0).contains(&t.sample_ratio))
    );
    assert_eq!(config.identity.id.namespace(), &*config.workload.namespace);
}

fn check_errors(errors: &[String], text: &str, prefix: &str) {
    assert!(!errors.is_empty(), "refused without a reason");
    for error in errors {
        assert!(error.starts_with(prefix), "{error:?} does not say where");
        // A value may be quoted, and a control character is longer then.
        assert!(error.len() <= 1000 + 6 * text.len(), "{} bytes", error.len());
    }
}
