#![allow(clippy::unwrap_used)]
use std::time::Duration;

use rcgen::string::Ia5String;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};

use super::*;

struct Authority {
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

fn authority() -> Authority {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let der = params.self_signed(&key).unwrap().der().clone();
    Authority {
        der,
        issuer: Issuer::new(params, key),
    }
}

impl Authority {
    /// Of a server with these names; those with a colon are URIs.
    fn leaf(&self, names: &[&str]) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.not_before = time::OffsetDateTime::from_unix_timestamp(1_000).unwrap();
        params.not_after = time::OffsetDateTime::from_unix_timestamp(2_000).unwrap();
        let san = |name: &&str| {
            let name = Ia5String::try_from(*name).unwrap();
            match name.as_str().contains(':') {
                true => SanType::URI(name),
                false => SanType::DnsName(name),
            }
        };
        params.subject_alt_names = names.iter().map(san).collect();
        let key = KeyPair::generate().unwrap();
        params.signed_by(&key, &self.issuer).unwrap().der().clone()
    }
}

fn san(name: &str) -> proto::SubjectAltName {
    let kind = match name {
        "" => None,
        uri if uri.contains(':') => Some(subject_alt_name::Kind::Uri(uri.to_owned())),
        host => Some(subject_alt_name::Kind::Hostname(host.to_owned())),
    };
    proto::SubjectAltName { kind }
}

fn message(ca: &CertificateDer<'_>, names: &[&str]) -> proto::BackendTls {
    proto::BackendTls {
        policy: "shop/payments".to_owned(),
        hostname: "pay.example.com".to_owned(),
        subject_alt_names: names.iter().map(|name| san(name)).collect(),
        trust: Some(backend_tls::Trust::Ca(proto::CaCertificates {
            certificates: vec![ca.to_vec()],
        })),
    }
}

fn verify(message: &proto::BackendTls, leaf: &CertificateDer<'_>, at: u64) -> Result<(), Error> {
    let verifier = Verifier {
        roots: roots(message).unwrap(),
        names: message.subject_alt_names.iter().map(Name::from_proto).collect(),
        algorithms: default_provider().signature_verification_algorithms,
    };
    let asked = ServerName::try_from(message.hostname.clone()).unwrap();
    let now = UnixTime::since_unix_epoch(Duration::from_secs(at));
    verifier.verify_server_cert(leaf, &[], &asked, &[], now).map(drop)
}

/// The names of the policy, those of the certificate, and whether it is good.
#[test]
fn a_certificate_has_the_name_that_was_asked_for_or_one_of_those_that_are_listed() {
    let authority = authority();
    const ID: &str = "spiffe://example.com/ns/pay/sa/pay";
    for (policy, certificate, good) in [
        (&[][..], &["pay.example.com"][..], true),
        (&[], &["PAY.example.com"], true),
        (&[], &["other.example.com", "pay.example.com"], true),
        (&[], &["*.example.com"], true),
        (&[], &["other.example.com"], false),
        (&[], &["*.pay.example.com"], false),
        (&[], &[ID], false),
        (&[], &[], false),
        // The name that is asked for is none of them.
        (&["b.example.com"], &["pay.example.com"], false),
        (&["b.example.com"], &["b.example.com"], true),
        (&["b.example.com"], &["*.example.com"], true),
        (&["b.example.com", ID], &[ID], true),
        (&[ID], &["spiffe://example.com/ns/pay/sa/Pay"], false),
        (&[ID], &["spiffe://example.com/ns/pay/sa/pay/x"], false),
        (&[ID], &["pay.example.com"], false),
        (&["*.example.com"], &["a.example.com"], true),
        (&["*.example.com"], &["A.b.Example.com"], true),
        (&["*.example.com"], &["*.example.com"], true),
        (&["*.example.com"], &["example.com"], false),
        (&["*.example.com"], &["a.example.org"], false),
        // Of a newer controller.
        (&[""], &["pay.example.com"], false),
        (&["", "b.example.com"], &["b.example.com"], true),
    ] {
        let message = message(&authority.der, policy);
        let verified = verify(&message, &authority.leaf(certificate), 1_500);
        assert_eq!(verified.is_ok(), good, "{policy:?} {certificate:?}: {verified:?}");
    }
}

#[test]
fn a_certificate_is_of_the_authority_and_of_now() {
    let (ours, others) = (authority(), authority());
    let leaf = ours.leaf(&["pay.example.com"]);
    let message = message(&ours.der, &[]);
    verify(&message, &leaf, 1_999).unwrap();
    for at in [999, 2_001] {
        assert!(verify(&message, &leaf, at).is_err());
    }
    let of_others = others.leaf(&["pay.example.com"]);
    // Both authorities have the same name, and another key.
    assert_eq!(
        verify(&message, &of_others, 1_500).unwrap_err(),
        Error::InvalidCertificate(CertificateError::BadSignature)
    );
    // Whatever its names are.
    let mut listed = message;
    listed.subject_alt_names.push(san("pay.example.com"));
    assert!(verify(&listed, &of_others, 1_500).is_err());
    let system = proto::BackendTls {
        trust: Some(backend_tls::Trust::System(proto::SystemRoots {})),
        ..listed
    };
    assert!(verify(&system, &leaf, 1_500).is_err());
}

#[test]
fn the_same_words_are_parsed_once_and_others_are_another_trust() {
    let (one, two) = (authority(), authority());
    let first = BackendTls::from_proto(&message(&one.der, &[]));
    assert!(Arc::ptr_eq(&first, &BackendTls::from_proto(&message(&one.der, &[]))));
    for other in [message(&two.der, &[]), message(&one.der, &["a.example.com"])] {
        assert!(!Arc::ptr_eq(&first, &BackendTls::from_proto(&other)));
    }
    let weak = Arc::downgrade(&first);
    drop(first);
    assert!(weak.upgrade().is_none(), "nobody keeps what is not used");
}

#[test]
fn where_nobody_is_believed_there_is_no_client() {
    let ca = authority().der;
    let with = |trust| proto::BackendTls {
        trust,
        ..message(&ca, &[])
    };
    let broken = proto::CaCertificates {
        certificates: vec![vec![1, 2, 3]],
    };
    let none = proto::CaCertificates::default();
    for trust in [
        None,
        Some(backend_tls::Trust::Nobody("no reason".to_owned())),
        Some(backend_tls::Trust::Ca(broken)),
        Some(backend_tls::Trust::Ca(none)),
    ] {
        let tls = BackendTls::from_proto(&with(trust.clone()));
        for inside in [Inside::Http1, Inside::Http2, Inside::Bytes] {
            assert!(tls.client(inside).is_err(), "{trust:?}");
        }
        assert!(tls.problem().is_some());
    }
    let unnamed = proto::BackendTls {
        hostname: String::new(),
        ..message(&ca, &[])
    };
    assert!(BackendTls::from_proto(&unnamed).problem().is_some());
    assert_eq!(BackendTls::from_proto(&message(&ca, &[])).problem(), None);
}
