//! Certificates: a peer's, before anything of it is believed, and the roots of a trust bundle.

use std::sync::{Arc, LazyLock};

use outrigger_proxy::identity::TrustBundle;
use outrigger_proxy::identity::verify::{Leaf, Verifier};
use rustls::client::danger::ServerCertVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

/// The root, and what it issued.
const ROOT: &[u8] = include_bytes!("../../certificates/root.der");
const ISSUED: [&[u8]; 2] = [
    include_bytes!("../../corpus/certificate/svid.der"),
    include_bytes!("../../corpus/certificate/svid-of-orders.der"),
];
/// In the life of all of them: 2026-01-01.
const NOW: u64 = 1_767_225_600;
/// Longest error, whatever the certificate says.
const MAX_ERROR: usize = 2048;

static VERIFIER: LazyLock<Verifier> = LazyLock::new(|| {
    let bundle = TrustBundle::from_der([CertificateDer::from(ROOT)]).expect("the stored root is one");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    Verifier::new(&provider, &bundle, "mesh.test").expect("the bundle has a root")
});

/// Any DER, or any PEM.
pub fn run(bytes: &[u8]) {
    if bytes.starts_with(b"-") {
        return bundle(bytes);
    }
    let der = CertificateDer::from(bytes);
    let leaf = Leaf::parse(&der);
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(NOW));
    let name = ServerName::try_from("x.peer").expect("a name");
    let as_server = VERIFIER.verify_server_cert(&der, &[], &name, &[], now).map(drop);
    let as_client = VERIFIER.verify_client_cert(&der, &[], now).map(drop);
    assert_eq!(as_server.is_ok(), as_client.is_ok(), "{as_server:?} {as_client:?}");
    match (&leaf, as_server) {
        (Ok(leaf), Ok(())) => {
            // Not a bit of what the root signed can be changed.
            assert!(
                ISSUED.contains(&bytes),
                "a changed certificate of {} is believed",
                leaf.id
            );
            assert_eq!(leaf.id.trust_domain(), "mesh.test");
        }
        (Err(error), Ok(())) => panic!("believed, and cannot be read: {error}"),
        (_, Err(error)) => {
            let error = error.to_string();
            assert!(error.len() <= MAX_ERROR, "{} bytes: {error}", error.len());
        }
    }
}

fn bundle(pem: &[u8]) {
    match TrustBundle::from_pem(pem) {
        Ok(bundle) => {
            let roots = bundle.certificates().count();
            assert!(roots > 0 && roots <= pem.len() / 64, "{roots} roots");
            assert_eq!(bundle.not_after().count(), roots);
        }
        Err(error) => assert!(error.len() <= MAX_ERROR, "{} bytes: {error}", error.len()),
    }
}
