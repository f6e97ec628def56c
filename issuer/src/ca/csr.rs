//! What a CSR must be: a P-256 key that signed it, and no other SPIFFE ID than the caller's own.

use outrigger_api::spiffe::SpiffeId;
use rcgen::SubjectPublicKeyInfo;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY};
use x509_parser::prelude::FromDer;

/// A CSR of a P-256 key is some 300 bytes.
const MAX_BYTES: usize = 16 * 1024;

/// What is wrong with a CSR.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// Not PKCS#10 in DER.
    #[error("the CSR is not a PKCS#10 request in DER: {0}")]
    Malformed(String),
    /// Not a P-256 key.
    #[error("the CSR's key is not an ECDSA P-256 key")]
    KeyType,
    /// The signature is not of the key in it.
    #[error("the CSR's signature is not made by the key in it")]
    Signature,
    /// It asks for somebody else's name.
    #[error("the CSR asks for {asked:?}, and the token is of {id}")]
    OtherId { asked: String, id: String },
}

/// The public key to certify for `id`. Names other than SPIFFE IDs are passed over.
pub(super) fn verify(der: &[u8], id: &SpiffeId) -> Result<SubjectPublicKeyInfo, CsrError> {
    if der.len() > MAX_BYTES {
        return Err(CsrError::Malformed(format!("{} bytes are too many", der.len())));
    }
    let (rest, csr) = X509CertificationRequest::from_der(der).map_err(|e| CsrError::Malformed(e.to_string()))?;
    if !rest.is_empty() {
        return Err(CsrError::Malformed(format!("{} bytes follow it", rest.len())));
    }
    let key = &csr.certification_request_info.subject_pki;
    let curve = key.algorithm.parameters.as_ref().and_then(|p| p.as_oid().ok());
    if key.algorithm.algorithm != OID_KEY_TYPE_EC_PUBLIC_KEY || curve != Some(OID_EC_P256) {
        return Err(CsrError::KeyType);
    }
    csr.verify_signature().map_err(|_| CsrError::Signature)?;
    for extension in csr.requested_extensions().into_iter().flatten() {
        let ParsedExtension::SubjectAlternativeName(names) = extension else {
            continue;
        };
        for name in &names.general_names {
            if let GeneralName::URI(uri) = name
                && uri.to_ascii_lowercase().starts_with("spiffe:")
                && *uri != id.as_str()
            {
                return Err(CsrError::OtherId {
                    asked: uri.chars().take(256).collect(),
                    id: id.to_string(),
                });
            }
        }
    }
    SubjectPublicKeyInfo::from_der(key.raw).map_err(|_| CsrError::KeyType)
}
