use std::time::{Duration, SystemTime};

use outrigger_api::spiffe::SpiffeId;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose, SanType};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Ca, CaError, CaPem, CsrError, SignError};

const HOUR: Duration = Duration::from_secs(3600);

fn orders() -> SpiffeId {
    SpiffeId::new("cluster.local", "shop", "orders").unwrap()
}

fn csr_of(key: &KeyPair, names: &[&str]) -> Vec<u8> {
    let mut params = CertificateParams::default();
    let names = names.iter().map(|name| SanType::URI((*name).try_into().unwrap()));
    params.subject_alt_names = names.collect();
    params.serialize_request(key).unwrap().der().to_vec()
}

fn csr(names: &[&str]) -> Vec<u8> {
    csr_of(&KeyPair::generate().unwrap(), names)
}

fn x509<'a>(der: &'a CertificateDer<'_>) -> X509Certificate<'a> {
    X509Certificate::from_der(der).unwrap().1
}

/// A CA whose certificate is made with `change`, signed by `issuer` or itself.
pub(super) fn make_ca(
    change: impl FnOnce(&mut CertificateParams),
    issuer: Option<&rcgen::Issuer<'static, KeyPair>>,
) -> (rcgen::Issuer<'static, KeyPair>, String, String) {
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, format!("ca {:x}", rand::random::<u64>()));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    let certificate = match issuer {
        Some(issuer) => params.signed_by(&key, issuer).unwrap(),
        None => params.self_signed(&key).unwrap(),
    };
    let key_pem = key.serialize_pem();
    (rcgen::Issuer::new(params, key), certificate.pem(), key_pem)
}

fn from_pem(certificates: String, key: String, roots: Option<String>) -> Result<Ca, CaError> {
    let pem = CaPem {
        certificates,
        key,
        roots,
    };
    Ca::from_pem(pem, "cluster.local", SystemTime::now())
}

#[test]
fn an_svid_says_who_it_is_and_nothing_else() {
    let ca = Ca::generate("cluster.local").unwrap();
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let csr = csr(&["spiffe://cluster.local/ns/shop/sa/orders", "https://example.com"]);
    let chain = ca.sign_csr_at(&csr, &orders(), 24 * HOUR, now).unwrap();
    assert_eq!(chain.len(), 1, "the root is not sent");
    let svid = x509(&chain[0]);
    let names = svid.subject_alternative_name().unwrap().unwrap().value;
    assert_eq!(names.general_names.len(), 1);
    assert_eq!(super::spiffe_id(&chain[0]).unwrap(), orders());
    assert!(!svid.is_ca());
    let usage = svid.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.digital_signature() && !usage.value.key_cert_sign());
    let extended = svid.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && extended.client_auth && !extended.any);
    assert_eq!(svid.validity().not_before.timestamp(), 1_800_000_000 - 300);
    assert_eq!(svid.validity().not_after.timestamp(), 1_800_000_000 + 24 * 3600);
    assert_eq!(svid.raw_serial().len(), 16);
    let other = ca.sign_csr_at(&csr, &orders(), HOUR, now).unwrap();
    assert_ne!(x509(&other[0]).raw_serial(), svid.raw_serial());
}

#[test]
fn an_svid_does_not_outlive_its_issuer() {
    let ca = Ca::generate("cluster.local").unwrap();
    let end = ca.issuer_not_after();
    let chain = ca.sign_csr_at(&csr(&[]), &orders(), 24 * HOUR, end - HOUR).unwrap();
    assert_eq!(super::not_after(&chain[0]).unwrap(), end);
    let expired = ca.sign_csr_at(&csr(&[]), &orders(), HOUR, end);
    let Err(SignError::Ca(e @ CaError::Expired { .. })) = expired else {
        panic!("{expired:?}");
    };
    assert!(e.to_string().contains("and it is 20"), "{e}");
}

#[test]
fn a_csr_for_somebody_else_is_refused() {
    let ca = Ca::generate("cluster.local").unwrap();
    for asked in [
        "spiffe://cluster.local/ns/shop/sa/admin",
        "SPIFFE://cluster.local/ns/shop/sa/orders",
        "spiffe://other.domain/ns/shop/sa/orders",
    ] {
        let result = ca.sign_csr(&csr(&[asked]), &orders(), HOUR);
        assert!(
            matches!(result, Err(SignError::Csr(CsrError::OtherId { .. }))),
            "{asked}: {result:?}"
        );
    }
}

#[test]
fn only_p256_keys_that_signed_their_csr() {
    let ca = Ca::generate("cluster.local").unwrap();
    let refused = |csr: &[u8]| match ca.sign_csr(csr, &orders(), HOUR) {
        Err(SignError::Csr(e)) => e,
        other => panic!("{other:?}"),
    };
    for algorithm in [
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_ED25519,
        &rcgen::PKCS_RSA_SHA256,
    ] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        assert_eq!(refused(&csr_of(&key, &[])), CsrError::KeyType);
    }
    let good = csr(&[]);
    let mut forged = good.clone();
    // The last byte belongs to the signature.
    *forged.last_mut().unwrap() ^= 1;
    assert_eq!(refused(&forged), CsrError::Signature);
    let mut longer = good.clone();
    longer.push(0);
    assert!(matches!(refused(&longer), CsrError::Malformed(_)));
    assert!(matches!(refused(&good[..good.len() - 10]), CsrError::Malformed(_)));
    assert!(matches!(refused(b""), CsrError::Malformed(_)));
    assert!(matches!(refused(&vec![0x30; 20_000]), CsrError::Malformed(_)));
}

#[test]
fn a_ca_survives_its_secret() {
    let made = Ca::generate("cluster.local").unwrap();
    let read = Ca::from_pem(made.pem().clone(), "cluster.local", SystemTime::now()).unwrap();
    assert_eq!(made.bundle(), read.bundle());
    assert_eq!(
        read.bundle_pem(),
        made.pem().roots.clone().unwrap(),
        "the PEM writer is rcgen's equal"
    );
    assert_eq!(made.issuer_not_after(), made.root_not_after());
}

#[test]
fn an_intermediate_of_the_users_own() {
    let (root, root_pem, _) = make_ca(|_| {}, None);
    let (_, intermediate_pem, key) = make_ca(|_| {}, Some(&root));
    let (_, other_root_pem, _) = make_ca(|_| {}, None);

    // The root in ca.crt, as cert-manager does it; and another one, for a rotation.
    let roots = format!("{root_pem}{other_root_pem}");
    let ca = from_pem(intermediate_pem.clone(), key.clone(), Some(roots)).unwrap();
    assert_eq!(ca.bundle().len(), 2);
    let chain = ca.sign_csr(&csr(&[]), &orders(), HOUR).unwrap();
    assert_eq!(chain.len(), 2, "the leaf and the intermediate");

    // The root at the end of tls.crt.
    let ca = from_pem(format!("{intermediate_pem}{root_pem}"), key.clone(), None).unwrap();
    assert_eq!(ca.bundle().len(), 1);
    assert_eq!(ca.sign_csr(&csr(&[]), &orders(), HOUR).unwrap().len(), 2);

    // No root anywhere: the intermediate itself is trusted.
    let ca = from_pem(intermediate_pem.clone(), key.clone(), None).unwrap();
    assert_eq!(ca.bundle().len(), 1);

    // A root that is not above it: every peer would refuse every SVID.
    let Err(wrong) = from_pem(intermediate_pem, key, Some(other_root_pem)) else {
        panic!("taken");
    };
    assert!(wrong.to_string().contains("ca.crt must hold the root"), "{wrong}");
}

#[test]
fn rsa_and_p384_cas_of_the_users_own() {
    for algorithm in [&rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_RSA_SHA256] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        let ca = from_pem(certificate.pem(), key.serialize_pem(), None).unwrap();
        assert_eq!(ca.sign_csr(&csr(&[]), &orders(), HOUR).unwrap().len(), 1);
    }
}

/// Made by OpenSSL: a name may have several values of one kind (Active Directory's DC and OU), several in one RDN, and text of any
/// kind. It is in what the CA signs byte for byte; that the chain verifies, `Ca::from_pem` proves.
#[test]
fn whatever_the_name_of_a_ca() {
    for pem in [
        include_str!("testdata/directory.pem"),
        include_str!("testdata/several.pem"),
        include_str!("testdata/utf8.pem"),
    ] {
        let (certificate, key) = pem.split_at(pem.find("-----BEGIN PRIVATE KEY").unwrap());
        let ca = from_pem(certificate.to_owned(), key.to_owned(), None).unwrap();
        let chain = ca.sign_csr(&csr(&[orders().as_str()]), &orders(), HOUR).unwrap();
        let (leaf, root) = (x509(&chain[0]), x509(&ca.bundle()[0]));
        assert_eq!(leaf.issuer().as_raw(), root.subject().as_raw());
    }
}

#[test]
fn what_is_no_ca_is_refused_with_what_to_do() {
    let refused = |certificates: &str, key: &str, roots: Option<&str>| {
        let result = from_pem(certificates.to_owned(), key.to_owned(), roots.map(str::to_owned));
        result.err().map(|e| e.to_string()).unwrap_or_default()
    };
    let (_, pem, key) = make_ca(|_| {}, None);
    let (_, _, other_key) = make_ca(|_| {}, None);
    let (_, leaf, leaf_key) = make_ca(|params| params.is_ca = IsCa::ExplicitNoCa, None);
    let (_, no_sign, no_sign_key) = make_ca(|p| p.key_usages = vec![KeyUsagePurpose::DigitalSignature], None);
    let day = Duration::from_secs(24 * 3600);
    let (_, old, old_key) = make_ca(|p| p.not_after = (SystemTime::now() - day).into(), None);
    let wordy = |p: &mut CertificateParams| {
        let words = "a name of many words ".repeat(50);
        p.distinguished_name.push(DnType::OrganizationName, words);
    };
    let many = pem.clone() + &make_ca(wordy, None).1.repeat(20);
    for (error, expected) in [
        (refused(&pem, &other_key, None), "tls.key is not the key of tls.crt"),
        (refused(&leaf, &leaf_key, None), "not a CA"),
        (refused(&no_sign, &no_sign_key, None), "may not sign"),
        (refused(&old, &old_key, None), "expired at"),
        (refused("", &key, None), "tls.crt holds no certificate"),
        (refused(&pem, "nonsense", None), "tls.key is not a private key"),
        (refused(&pem, &key, Some(&many)), "32768 are allowed"),
        (
            refused(
                &pem,
                &key,
                Some("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
            ),
            "ca.crt",
        ),
    ] {
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
    }
}

#[test]
fn issued_svids_have_their_key() {
    let ca = Ca::generate("cluster.local").unwrap();
    let svid = ca.issue(&orders(), HOUR).unwrap();
    let key = KeyPair::try_from(&svid.key).unwrap();
    assert_eq!(
        rcgen::PublicKeyData::der_bytes(&key),
        &*x509(&svid.chain[0]).public_key().subject_public_key.data
    );
}

#[test]
fn a_spiffe_id_is_the_only_uri() {
    let key = KeyPair::generate().unwrap();
    let certificate = |names: &[&str]| {
        let mut params = CertificateParams::default();
        let names = names.iter().map(|name| SanType::URI((*name).try_into().unwrap()));
        params.subject_alt_names = names.collect();
        params.self_signed(&key).unwrap().der().clone()
    };
    let id = "spiffe://cluster.local/ns/shop/sa/orders";
    assert_eq!(super::spiffe_id(&certificate(&[id])), Some(orders()));
    assert_eq!(super::spiffe_id(&certificate(&[id, "https://example.com"])), None);
    assert_eq!(super::spiffe_id(&certificate(&["https://example.com"])), None);
    assert_eq!(super::spiffe_id(&certificate(&[])), None);
}
