//! Whom this sidecar trusts, by whose word.
//!
//! What it was started with is believed until the controller, which is known by it, has said what to trust. From then on the
//! controller's word alone counts, and all of it: so a root can also be taken away, and what somebody else puts into a file is
//! joined to nothing. The word comes with each SVID, and over the discovery stream as soon as it is another one.
//!
//! It has to outlive the process. The environment of a container says for ever what was right when the pod was made, and after a
//! rotation it says a root that is gone: whoever has that one's key could be the controller of a container that starts anew. So
//! the word is kept in a file that lives as long as the pod, and that file wins over the environment. There is no way back to the
//! environment from a file that is right but leads to no controller: that is what such a key would be used for.

use std::fs;
use std::io::{self, Read};
use std::path::Path;

use outrigger_api::labels::{MAX_TRUST_BUNDLE, TRUST_BUNDLE_VARIABLE};
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::FirstRoots;
use super::bundle::TrustBundle;

pub(super) struct Roots {
    first: FirstRoots,
    /// What the controller said last on the discovery stream.
    told: watch::Receiver<Vec<CertificateDer<'static>>>,
    trusted: Option<TrustBundle>,
    /// Whether `trusted` is the controller's word, to this process or to one before it.
    by_controller: bool,
    /// Whether `trusted` is what the next process will find.
    kept: bool,
    /// The text of the file of [`FirstRoots::File`]: it is parsed only when that changes.
    pem: Vec<u8>,
}

impl Roots {
    pub(super) fn new(first: FirstRoots, told: watch::Receiver<Vec<CertificateDer<'static>>>) -> Self {
        Self {
            first,
            told,
            trusted: None,
            by_controller: false,
            kept: false,
            pem: Vec::new(),
        }
    }

    /// What is trusted now.
    pub(super) fn trusted(&self) -> Option<&TrustBundle> {
        self.trusted.as_ref()
    }

    /// Looks for another word. True: other roots are trusted than before.
    pub(super) fn look(&mut self) -> Result<bool, String> {
        if self.told.has_changed().unwrap_or(false) {
            let roots = self.told.borrow_and_update().clone();
            return self.learn(roots);
        }
        if self.by_controller {
            return Ok(false);
        }
        match self.first.clone() {
            FirstRoots::File(file) => self.read(&file),
            FirstRoots::Given { .. } if self.trusted.is_some() => Ok(false),
            FirstRoots::Given { roots, kept } => {
                self.trusted = match load(&kept) {
                    Ok(Some(bundle)) => {
                        tracing::info!(
                            roots = bundle.subjects(),
                            "trusting what the controller said to a process before this one"
                        );
                        (self.by_controller, self.kept) = (true, true);
                        Some(bundle)
                    }
                    Ok(None) => None,
                    Err(error) => {
                        tracing::warn!("{}: {error}: going on with {TRUST_BUNDLE_VARIABLE}", kept.display());
                        None
                    }
                };
                if self.trusted.is_none() {
                    let given = TrustBundle::from_der(roots);
                    self.trusted = Some(given.map_err(|error| format!("{TRUST_BUNDLE_VARIABLE} {error}"))?);
                }
                Ok(true)
            }
        }
    }

    /// Takes the controller's word in the place of all that was trusted. True: these are other roots. A controller that says
    /// nothing changes nothing.
    pub(super) fn learn(&mut self, roots: Vec<CertificateDer<'static>>) -> Result<bool, String> {
        if roots.is_empty() {
            return Ok(false);
        }
        let bundle = TrustBundle::from_der(roots)
            .map_err(|error| format!("the trust bundle of the controller {error}: check the CA's Secret"))?;
        let changed = !self.trusted.as_ref().is_some_and(|old| old.same_as(&bundle));
        if changed {
            tracing::info!(roots = bundle.subjects(), "the controller says whom to trust");
            self.kept = false;
        }
        self.by_controller = true;
        if let (FirstRoots::Given { kept, .. }, false) = (&self.first, self.kept) {
            match store(kept, &bundle) {
                Ok(()) => self.kept = true,
                Err(error) => tracing::warn!(
                    "{}: {error}: if this container starts anew after the CA was replaced, it does not know the controller",
                    kept.display()
                ),
            }
        }
        self.trusted = Some(bundle);
        Ok(changed)
    }

    /// Reads the file. One that is wrong changes nothing.
    fn read(&mut self, file: &Path) -> Result<bool, String> {
        let path = file.display();
        let check = "check that the namespace is labelled for injection and that the controller runs";
        // A small file in memory: not worth a thread.
        let pem =
            fs::read(file).map_err(|error| format!("the trust bundle {path} cannot be read: {error}: {check}"))?;
        if self.trusted.is_some() && pem == self.pem {
            return Ok(false);
        }
        let bundle =
            TrustBundle::from_pem(&pem).map_err(|error| format!("the trust bundle {path} {error}: {check}"))?;
        let changed = !self.trusted.as_ref().is_some_and(|old| old.same_as(&bundle));
        self.pem = pem;
        self.trusted = Some(bundle);
        Ok(changed)
    }
}

/// What a process before this one kept; `None` where there was none.
fn load(file: &Path) -> Result<Option<TrustBundle>, String> {
    let mut der = Vec::new();
    match fs::File::open(file) {
        Ok(file) => file
            .take(MAX_TRUST_BUNDLE as u64)
            .read_to_end(&mut der)
            .map_err(|error| format!("cannot be read: {error}"))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("cannot be opened: {error}")),
    };
    let mut roots = Vec::new();
    let mut rest = &der[..];
    while !rest.is_empty() {
        let (behind, _) = X509Certificate::from_der(rest).map_err(|_| "is no list of certificates".to_owned())?;
        roots.push(CertificateDer::from(rest[..rest.len() - behind.len()].to_vec()));
        rest = behind;
    }
    TrustBundle::from_der(roots).map(Some)
}

/// DER certificates, one behind the other.
fn store(file: &Path, bundle: &TrustBundle) -> io::Result<()> {
    let der: Vec<u8> = bundle.certificates().flat_map(|root| root.iter().copied()).collect();
    // The process may be killed at any moment: the file is there whole, or as it was.
    let new = file.with_extension("new");
    fs::write(&new, der)?;
    fs::rename(&new, file)
}
