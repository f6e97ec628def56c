//! Asks the controller for an SVID.

use std::path::PathBuf;
use std::sync::Arc;

use outrigger_api::identity::IssueRequest;
use outrigger_api::identity::identity_client::IdentityClient;
use rustls_pki_types::CertificateDer;
use tonic::Code;

use super::bundle::TrustBundle;
use super::channel::{Dialer, status_words};
use super::tls::{client_config, provider};
use super::verify::Verifier;

/// What an issuer gives.
pub(super) struct Issued {
    /// The leaf first.
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) roots: Vec<CertificateDer<'static>>,
}

/// Makes an SVID from a CSR, DER.
pub(super) trait Issue: Send + 'static {
    fn issue(&mut self, csr: Vec<u8>, bundle: &TrustBundle) -> impl Future<Output = Result<Issued, String>> + Send;
}

/// The controller.
pub(super) struct Controller {
    pub(super) dialer: Dialer,
    pub(super) token_file: PathBuf,
}

impl Issue for Controller {
    async fn issue(&mut self, csr: Vec<u8>, bundle: &TrustBundle) -> Result<Issued, String> {
        let file = self.token_file.display();
        // A small file in memory: not worth a thread.
        let token = std::fs::read_to_string(&self.token_file)
            .map_err(|error| format!("the token {file} cannot be read: {error}: check the pod's volumes"))?;
        let verifier = Verifier::new(provider(), bundle, self.dialer.id.trust_domain())?;
        let tls = client_config(&Arc::new(verifier), None, b"h2", &self.dialer.clock)?;
        let mut client = IdentityClient::new(self.dialer.channel(Arc::new(tls)));
        let request = IssueRequest {
            csr,
            token: token.trim().to_owned(),
        };
        let response = client
            .issue(request)
            .await
            .map_err(|status| refused(&status))?
            .into_inner();
        let certificates = |list: Vec<Vec<u8>>| list.into_iter().map(CertificateDer::from).collect();
        Ok(Issued {
            chain: certificates(response.certificate_chain),
            roots: certificates(response.trust_bundle),
        })
    }
}

fn refused(status: &tonic::Status) -> String {
    let words = status_words(status);
    match status.code() {
        Code::Unauthenticated => format!(
            "the controller does not take the token: {words}: check that its audience is \"outrigger\" and that it has not \
             expired"
        ),
        Code::InvalidArgument | Code::PermissionDenied => {
            format!("the controller refuses: {words}: check the trust domain and the pod's service account")
        }
        Code::Unimplemented => {
            format!("what answers is no controller of Outrigger: {words}: check OUTRIGGER_CONTROLLER")
        }
        _ => words,
    }
}
