//! What a value may be: the same in the environment and in a file.

use std::time::Duration;

use outrigger_api::duration;
use outrigger_api::labels::MAX_TRUST_BUNDLE;
use outrigger_api::spiffe::SpiffeId;
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, DnsName};

use super::{ForwardedFor, Mtls};
use crate::telemetry::{NotSampled, TracingProtocol};

pub(super) fn spiffe_id(text: &str) -> Result<SpiffeId, String> {
    text.parse::<SpiffeId>().map_err(|error| error.to_string())
}

pub(super) fn roots(pem: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let roots: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    match roots {
        Ok(roots) if !roots.is_empty() => Ok(roots),
        Ok(_) => Err("has no certificate in PEM".to_owned()),
        // The library's error may quote all of it.
        Err(_) => Err("is not PEM".to_owned()),
    }
}

pub(super) fn mtls(text: &str) -> Result<Mtls, String> {
    match text {
        "permissive" => Ok(Mtls::Permissive),
        "strict" => Ok(Mtls::Strict),
        _ => Err(format!("{text:?} is neither \"permissive\" nor \"strict\"")),
    }
}

pub(super) fn forwarded_for(text: &str) -> Result<ForwardedFor, String> {
    match text {
        "Leave" => Ok(ForwardedFor::Leave),
        "Append" => Ok(ForwardedFor::Append),
        _ => Err(format!("{text:?} is neither \"Leave\" nor \"Append\"")),
    }
}

pub(super) fn tracing_endpoint(text: &str) -> Result<http::Uri, String> {
    text.parse::<http::Uri>()
        .ok()
        .filter(|uri| match uri.scheme_str() {
            Some("http") => uri.host().is_some(),
            // A certificate is for a name.
            Some("https") => uri.host().is_some_and(|host| DnsName::try_from(host).is_ok()),
            _ => false,
        })
        .ok_or_else(|| format!("{text:?} is not a URL like \"http://jaeger.tracing.svc:4317\" (or https, with a name)"))
}

/// PEM: certificates alone.
pub(super) fn ca_certificates(text: &str) -> Result<Vec<Vec<u8>>, String> {
    if text.len() > MAX_TRUST_BUNDLE {
        return Err(format!("{} bytes are more than {MAX_TRUST_BUNDLE}", text.len()));
    }
    let certificates: Result<Vec<Vec<u8>>, String> = CertificateDer::pem_slice_iter(text.as_bytes())
        .map(|der| {
            // The library's error may quote all of it.
            let der = der.map_err(|_| "is not PEM".to_owned())?;
            let read = RootCertStore::empty().add(der.clone());
            read.map_err(|_| "a certificate cannot be read".to_owned())?;
            Ok(der.to_vec())
        })
        .collect();
    certificates.and_then(|certificates| match text.matches("-----BEGIN ").count() {
        0 => Err("has no certificate".to_owned()),
        sections if sections == certificates.len() => Ok(certificates),
        _ => Err("has something beside certificates".to_owned()),
    })
}

/// Where nobody is asked for a certificate, none can be believed.
pub(super) fn ca_certificates_are_used(endpoint: &http::Uri, certificates: &[Vec<u8>]) -> Result<(), String> {
    match endpoint.scheme_str() == Some("https") || certificates.is_empty() {
        true => Ok(()),
        false => Err("is for endpoints of https".to_owned()),
    }
}

pub(super) fn tracing_protocol(text: &str) -> Result<TracingProtocol, String> {
    match text {
        "grpc" => Ok(TracingProtocol::Grpc),
        "http" => Ok(TracingProtocol::Http),
        _ => Err(format!("{text:?} is neither \"grpc\" nor \"http\"")),
    }
}

pub(super) fn sample_ratio(ratio: f64) -> Result<f64, String> {
    match (0.0..=1.0).contains(&ratio) {
        true => Ok(ratio),
        false => Err(format!("{ratio} is not between 0 and 1")),
    }
}

pub(super) fn not_sampled(text: &str) -> Result<NotSampled, String> {
    match text {
        "Omit" => Ok(NotSampled::Omit),
        "Pass" => Ok(NotSampled::Pass),
        _ => Err(format!("{text:?} is neither \"Omit\" nor \"Pass\"")),
    }
}

pub(super) fn log_filter(text: &str) -> Result<String, String> {
    match tracing_subscriber::EnvFilter::try_new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!(
            "{text:?} is not a filter like \"info\" or \"outrigger_proxy=debug\": {error}"
        )),
    }
}

pub(super) fn drain_timeout(text: &str) -> Result<Duration, String> {
    duration::parse_within(text, duration::DRAIN)
}

pub(super) fn detect_timeout(text: &str) -> Result<Duration, String> {
    duration::parse_within(text, Duration::from_millis(100)..=Duration::from_secs(60))
}

pub(super) fn workers(number: u64) -> Result<usize, String> {
    match number {
        // At most 64: fits every usize.
        1..=64 => Ok(number as usize),
        _ => Err(format!("{number} is not between 1 and 64")),
    }
}
