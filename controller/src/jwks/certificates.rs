//! CA certificates out of a ConfigMap: read once here, so that no sidecar gets what it cannot use.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

/// Of one ConfigMap, in bytes of PEM.
const MAX_PEM: usize = 64 * 1024;
/// In one ConfigMap.
const MAX: usize = 64;

/// Each as DER in base64, a line for each.
///
/// # Errors
/// What is wrong with them, in words for a status. Nothing of what is there is quoted: who wrote the policy need not be somebody who may read it.
pub(super) fn certificates(pem: &[u8]) -> Result<String, String> {
    if pem.len() > MAX_PEM {
        return Err(format!("ca.crt is larger than {MAX_PEM} bytes"));
    }
    let mut roots = RootCertStore::empty();
    let mut lines = String::new();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|_| "ca.crt is no PEM of certificates".to_owned())?;
        if roots.len() == MAX {
            return Err(format!("ca.crt has more than {MAX} certificates"));
        }
        lines += &STANDARD.encode(&certificate);
        lines.push('\n');
        let added = roots.add(certificate);
        added.map_err(|_| "ca.crt has a certificate that cannot be read".to_owned())?;
    }
    match roots.is_empty() {
        true => Err("ca.crt has no certificate".to_owned()),
        false => Ok(lines),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_bundle_is_said() {
        let ca = outrigger_issuer::ca::Ca::generate("cluster.local")
            .unwrap()
            .pem()
            .certificates
            .clone();
        let two = format!("# comment\n{ca}\n{ca}");
        assert_eq!(certificates(two.as_bytes()).unwrap().lines().count(), 2);
        let broken = ca.replacen("MII", "AAA", 1);
        let many = ca.repeat(MAX + 1);
        for (pem, part) in [
            ("", "no certificate"),
            ("-----BEGIN NOTHING-----", "no "),
            (&*broken, "cannot be read"),
            (&*many, "more than 64"),
            (&*"x".repeat(MAX_PEM + 1), "larger"),
        ] {
            let why = certificates(pem.as_bytes()).unwrap_err();
            assert!(why.contains(part), "{why}");
        }
    }
}
