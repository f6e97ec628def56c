//! What an issuing certificate signs, with its name byte for byte.
//!
//! Who verifies a chain compares the issuer's name in the leaf with the subject of the issuer (RFC 5280 section 6.1.3), most of them
//! by the bytes. The library that makes certificates keeps a name as one value of each kind, which a name need not be (section
//! 4.1.2.4): those of Active Directory have several DC and OU, others have several values in one RDN. So it makes a certificate that
//! nobody has signed; the name is put into that, and then it is signed.

use rcgen::{
    CertificateParams, DistinguishedName, KeyIdMethod, KeyPair, PublicKeyData, SignatureAlgorithm, SigningKey,
};
use rustls_pki_types::CertificateDer;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::X509Certificate;

use super::{CaError, parse};

const SEQUENCE: u8 = 0x30;
const BIT_STRING: u8 = 0x03;
/// An empty BIT STRING.
const NO_SIGNATURE: [u8; 3] = [BIT_STRING, 1, 0];

/// An issuing certificate with its key.
pub(super) struct Issuer {
    key: KeyPair,
    /// The subject, DER.
    name: Vec<u8>,
    /// How what it signs names its key.
    params: CertificateParams,
}

impl Issuer {
    pub(super) fn new(certificate: &X509Certificate<'_>, key: KeyPair) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let key_id = certificate
            .iter_extensions()
            .find_map(|extension| match extension.parsed_extension() {
                ParsedExtension::SubjectKeyIdentifier(id) => Some(KeyIdMethod::PreSpecified(id.0.into())),
                _ => None,
            });
        if let Some(key_id) = key_id {
            params.key_identifier_method = key_id;
        }
        Self {
            key,
            name: certificate.subject().as_raw().to_vec(),
            params,
        }
    }

    pub(super) fn sign(
        &self,
        params: &CertificateParams,
        public_key: &impl PublicKeyData,
    ) -> Result<CertificateDer<'static>, CaError> {
        let unsigned = rcgen::Issuer::from_params(&self.params, Unsigned(&self.key));
        let made: CertificateDer<'static> = params.signed_by(public_key, &unsigned)?.into();
        let parsed = parse("what was made", &made)?;
        let to_sign: &[u8] = parsed.tbs_certificate.as_ref();
        let placeholder = parsed.issuer().as_raw();
        // Both are parts of what was made.
        let at = placeholder.as_ptr().addr() - to_sign.as_ptr().addr();
        let (before, after) = (&to_sign[header(to_sign)..at], &to_sign[at + placeholder.len()..]);
        let algorithm = &made[header(&made) + to_sign.len()..made.len() - NO_SIGNATURE.len()];

        let to_sign = value(SEQUENCE, &[before, &self.name, after]);
        let signature = value(BIT_STRING, &[&[0], &self.key.sign(&to_sign)?]);
        Ok(value(SEQUENCE, &[&to_sign, algorithm, &signature]).into())
    }
}

/// Leaves the place of the signature empty.
struct Unsigned<'a>(&'a KeyPair);

impl PublicKeyData for Unsigned<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.0.algorithm()
    }
}

impl SigningKey for Unsigned<'_> {
    fn sign(&self, _: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(Vec::new())
    }
}

/// How long the tag and the length of a value are (X.690 section 8.1.3).
fn header(der: &[u8]) -> usize {
    match der[1] {
        0..0x80 => 2,
        long => 2 + usize::from(long & 0x7f),
    }
}

/// A value with its tag and length.
fn value(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let bytes = length.to_be_bytes();
    let digits = &bytes[length.leading_zeros() as usize / 8..];
    let mut der = vec![tag];
    if length >= 0x80 {
        // At most eight digits.
        der.push(0x80 | digits.len() as u8);
        der.extend_from_slice(digits);
    } else {
        der.push(length as u8);
    }
    parts.iter().for_each(|part| der.extend_from_slice(part));
    der
}
