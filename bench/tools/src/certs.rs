//! One CA, and for each pod an ECDSA P-256 leaf with a SPIFFE ID; for linkerd2-proxy the key and the certificate request
//! that its identity client sends.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use time::{Duration, OffsetDateTime};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Where the files go.
    #[arg(long)]
    out: PathBuf,
}

/// The name of a pod's workload as Linkerd writes it.
pub(crate) fn linkerd_name(pod: &str) -> String {
    format!("{pod}.bench.serviceaccount.identity.linkerd.cluster.local")
}

fn valid_for_a_week(params: &mut CertificateParams) {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - Duration::minutes(5);
    params.not_after = now + Duration::days(7);
}

fn leaf(pod: &str) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(vec![linkerd_name(pod)])?;
    let id = format!("spiffe://cluster.local/ns/bench/sa/{pod}");
    params.subject_alt_names.push(SanType::URI(id.try_into()?));
    params.distinguished_name.push(DnType::CommonName, pod);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    valid_for_a_week(&mut params);
    Ok(params)
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let out = &options.out;
    fs::create_dir_all(out)?;
    let mut ca = CertificateParams::new(vec![])?;
    ca.distinguished_name.push(DnType::CommonName, "benchmark");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid_for_a_week(&mut ca);
    let ca_key = KeyPair::generate()?;
    let ca_cert = ca.self_signed(&ca_key)?;
    fs::write(out.join("ca.pem"), ca_cert.pem())?;
    fs::write(out.join("ca.key"), ca_key.serialize_pem())?;
    let issuer = Issuer::from_params(&ca, &ca_key);
    for pod in ["client", "server"] {
        let key = KeyPair::generate()?;
        let cert = leaf(pod)?.signed_by(&key, &issuer)?;
        fs::write(out.join(format!("{pod}.pem")), cert.pem())?;
        fs::write(out.join(format!("{pod}.key")), key.serialize_pem())?;

        let linkerd = out.join(format!("linkerd-{pod}"));
        fs::create_dir_all(&linkerd)?;
        let key = KeyPair::generate()?;
        let mut request = CertificateParams::new(vec![linkerd_name(pod)])?;
        request.distinguished_name.push(DnType::CommonName, linkerd_name(pod));
        fs::write(linkerd.join("csr.der"), request.serialize_request(&key)?.der())?;
        fs::write(linkerd.join("key.p8"), key.serialize_der())?;
        fs::write(
            linkerd.join("token"),
            "the control plane of the benchmark does not look",
        )?;
    }
    Ok(())
}
