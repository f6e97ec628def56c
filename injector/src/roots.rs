//! The roots that sidecars start with: as the controller writes them into the ConfigMap in Outrigger's own namespace, where no
//! tenant writes. From there they go into the environment of each sidecar, which nobody can change.
//!
//! A sidecar whose environment says roots that are gone before it has started once never starts: so what is here must be new, and
//! a pod is rather not made than made without.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::watch_object;
use kube::{Api, Client};
use outrigger_api::labels::{MAX_TRUST_BUNDLE, TRUST_BUNDLE_CONFIG_MAP, TRUST_BUNDLE_KEY};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The ConfigMap is also read on a timer, for a watch that hangs.
const REREAD: Duration = Duration::from_secs(60);

/// Whether a sidecar can have these roots (PEM) in its environment.
///
/// # Errors
/// Says why not.
pub fn check(pem: &str) -> Result<(), String> {
    certificates(pem, "the trust bundle")
}

/// The same, of what is called so.
pub(crate) fn certificates(pem: &str, what: &str) -> Result<(), String> {
    if pem.len() > MAX_TRUST_BUNDLE {
        let size = pem.len();
        return Err(format!(
            "{what} has {size} bytes; {MAX_TRUST_BUNDLE} are allowed, because it is in the environment of every sidecar"
        ));
    }
    let mut roots = 0;
    for der in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        // The library's error may quote all of it.
        let der = der.map_err(|_| format!("{what} is not PEM"))?;
        X509Certificate::from_der(&der).map_err(|_| format!("a certificate of {what} cannot be read"))?;
        roots += 1;
    }
    match pem.matches("-----BEGIN ").count() {
        0 => Err(format!("{what} has no certificate")),
        sections if sections == roots => Ok(()),
        // A private key, perhaps: it must not get into every pod.
        _ => Err(format!("{what} has something beside certificates")),
    }
}

/// Keeps `roots` as the ConfigMap of `namespace` is. One that is broken or gone changes nothing: the last good roots are kept.
pub(crate) async fn follow(
    client: Client,
    namespace: String,
    roots: watch::Sender<Option<Arc<str>>>,
    shutdown: CancellationToken,
) {
    let api = Api::<ConfigMap>::namespaced(client, &namespace);
    let mut events = watch_object(api.clone(), TRUST_BUNDLE_CONFIG_MAP)
        .default_backoff()
        .boxed();
    loop {
        let found = tokio::select! {
            () = shutdown.cancelled() => return,
            Some(found) = events.next() => found.map_err(|error| error.to_string()),
            () = tokio::time::sleep(REREAD) => {
                api.get_opt(TRUST_BUNDLE_CONFIG_MAP).await.map_err(|error| error.to_string())
            }
        };
        match found.and_then(trust_bundle) {
            Ok(pem) => {
                let changed = roots.send_if_modified(|known| {
                    let changed = known.as_ref() != Some(&pem);
                    *known = Some(pem);
                    changed
                });
                if changed {
                    tracing::info!("sidecars get the trust bundle as it is now");
                }
            }
            Err(why) => tracing::warn!(
                "ConfigMap {namespace}/{TRUST_BUNDLE_CONFIG_MAP}: {why}; {}",
                match *roots.borrow() {
                    Some(_) => "sidecars get the trust bundle as it was",
                    None => "no pod can be made in labelled namespaces",
                }
            ),
        }
    }
}

fn trust_bundle(found: Option<ConfigMap>) -> Result<Arc<str>, String> {
    let map = found.ok_or("it is not there: the controller writes it")?;
    let pem = map.data.and_then(|mut data| data.remove(TRUST_BUNDLE_KEY));
    let pem = pem.ok_or_else(|| format!("it has no {TRUST_BUNDLE_KEY}: the controller writes it"))?;
    check(&pem)?;
    Ok(pem.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{check, trust_bundle};
    use k8s_openapi::api::core::v1::ConfigMap;
    use outrigger_api::labels::MAX_TRUST_BUNDLE;

    const ROOT: &str = include_str!("../testdata/roots.pem");

    #[test]
    fn what_a_sidecar_can_have_in_its_environment() {
        assert_eq!(check(ROOT), Ok(()));
        assert_eq!(check(&format!("a comment\n{ROOT}\n{ROOT}")), Ok(()));
        let key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        for (wrong, why) in [
            (String::new(), "no certificate"),
            ("AAAA".to_owned(), "no certificate"),
            (key.to_owned(), "something beside certificates"),
            (format!("{ROOT}{key}"), "something beside certificates"),
            (ROOT[..ROOT.len() - 10].to_owned(), "PEM"),
            (
                format!("{ROOT}-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
                "cannot be read",
            ),
            (ROOT.repeat(MAX_TRUST_BUNDLE / ROOT.len() + 1), "are allowed"),
        ] {
            let said = check(&wrong).unwrap_err();
            assert!(said.contains(why), "{said:?} does not say {why:?}: {wrong}");
        }
    }

    #[test]
    fn only_a_whole_config_map_has_a_trust_bundle() {
        let map = |data: serde_json::Value| -> Option<ConfigMap> {
            Some(serde_json::from_value(serde_json::json!({"data": data})).unwrap())
        };
        assert_eq!(&*trust_bundle(map(serde_json::json!({"ca.crt": ROOT}))).unwrap(), ROOT);
        for (wrong, why) in [
            (None, "it is not there"),
            (map(serde_json::json!({"tls.crt": ROOT})), "it has no ca.crt"),
            (map(serde_json::json!({"ca.crt": "rubbish"})), "no certificate"),
        ] {
            assert!(trust_bundle(wrong).unwrap_err().contains(why), "{why}");
        }
    }
}
