//! Which BackendTLSPolicy holds for calls of a Service's port, and the certificates that it means.
//!
//! It holds for callers of all namespaces, and wherever the Service is called: by its own address, as a backend of a route, as a mirror. One that
//! cannot be carried out is told as one by which nobody is believed.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use outrigger_api::discovery as proto;
use outrigger_api::discovery::backend_tls;

use crate::objects::backend_tls::{BackendTls, BadReference, Trust};
use crate::objects::keys::KeySource;
use crate::objects::{ObjectName, ServicePort};
use crate::store::{Dep, Deps, Keys, Store};

/// Certificates of one policy, and bytes of them all.
const MAX_CERTIFICATES: usize = 64;
const MAX_BYTES: usize = 64 * 1024;

/// Who may have signed what servers show, by all references of a policy.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Trusted {
    /// DER.
    pub(crate) certificates: Vec<Vec<u8>>,
    /// What is wrong with each reference that is not good.
    pub(crate) bad: Vec<BadReference>,
    /// Nobody knows yet what there is.
    pub(crate) unread: bool,
}

/// How endpoints outside of the mesh are called by the port. `None`: no policy says it.
pub(super) fn of_port(store: &Store, deps: &mut Deps, service: &ObjectName, port: &str) -> Option<proto::BackendTls> {
    deps.insert(Dep::BackendTls(service.clone()));
    let policy = store.backend_tls.of_port(service, port)?;
    deps.extend(policy.key_sources().map(Dep::Keys));
    Some(told(store, policy))
}

/// Whether there is such a policy.
pub(super) fn holds(store: &Store, deps: &mut Deps, service: &ObjectName, port: Option<&ServicePort>) -> bool {
    deps.insert(Dep::BackendTls(service.clone()));
    let port = port.map_or("", |port| &port.name);
    store.backend_tls.of_port(service, port).is_some()
}

fn told(store: &Store, policy: &BackendTls) -> proto::BackendTls {
    let name = policy.name.to_string();
    let nobody = |why: String| Some(backend_tls::Trust::Nobody(why));
    let spec = match &policy.spec {
        Ok(spec) => spec,
        Err(mistakes) => {
            return proto::BackendTls {
                policy: name,
                trust: nobody(format!("the policy is not valid: {}", clipped(&mistakes.join("; ")))),
                ..proto::BackendTls::default()
            };
        }
    };
    let trust = match &spec.trust {
        Trust::System => Some(backend_tls::Trust::System(proto::SystemRoots {})),
        Trust::Certificates(references) => {
            let trusted = trusted(store, references);
            match trusted.certificates.is_empty() {
                true if trusted.unread => nobody("its CA certificates have not been read yet".to_owned()),
                // Who reads it in an error need not know what there is in another namespace: the status says it.
                true => nobody("the policy has no CA certificate that can be used; its status says why".to_owned()),
                false => Some(backend_tls::Trust::Ca(proto::CaCertificates {
                    certificates: trusted.certificates,
                })),
            }
        }
    };
    proto::BackendTls {
        policy: name,
        hostname: spec.hostname.clone(),
        subject_alt_names: spec.names.clone(),
        trust,
    }
}

/// What the references lead to now. One that leads nowhere takes nothing from the others.
pub(crate) fn trusted(store: &Store, references: &[(String, Result<KeySource, BadReference>)]) -> Trusted {
    let mut trusted = Trusted::default();
    let mut bytes = 0;
    for (shown, source) in references {
        let read = match source {
            Ok(source) => certificates(store.keys_at(source)),
            Err(bad) => Err(Some(bad.clone())),
        };
        let bad = match read {
            Ok(read) => {
                let more: usize = read.iter().map(Vec::len).sum();
                if trusted.certificates.len() + read.len() <= MAX_CERTIFICATES && bytes + more <= MAX_BYTES {
                    bytes += more;
                    trusted.certificates.extend(read);
                    continue;
                }
                invalid(format!(
                    "with it the policy would have more than {MAX_CERTIFICATES} certificates, or {MAX_BYTES} bytes of them"
                ))
            }
            Err(Some(bad)) => bad,
            Err(None) => {
                trusted.unread = true;
                continue;
            }
        };
        trusted.bad.push(BadReference {
            reason: bad.reason,
            message: match bad.message.contains(shown) {
                true => bad.message,
                false => format!("{shown}: {}", bad.message),
            },
        });
    }
    trusted
}

/// Err(None): it has not been read yet.
fn certificates(keys: Option<&Keys>) -> Result<Vec<Vec<u8>>, Option<BadReference>> {
    let keys = keys.ok_or(None)?;
    match (keys.jwks(), &keys.problem) {
        // A line for each certificate.
        (Some(lines), _) => {
            let read: Result<_, _> = lines.lines().map(|line| STANDARD.decode(line)).collect();
            read.map_err(|_| Some(invalid("it cannot be read".to_owned())))
        }
        (None, Some(problem)) => Err(Some(invalid(problem.why.clone()))),
        (None, None) => Err(None),
    }
}

fn invalid(message: String) -> BadReference {
    BadReference {
        reason: "InvalidCACertificateRef",
        message,
    }
}

/// It goes into errors and logs of all callers.
fn clipped(why: &str) -> &str {
    &why[..why.floor_char_boundary(512)]
}
