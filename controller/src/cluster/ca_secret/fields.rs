//! What is in the CA's Secret.
//!
//! | key | who writes it | what |
//! |---|---|---|
//! | `tls.crt`, `tls.key`, `ca.crt` | this controller where they are absent; a person, cert-manager | the CA that is wanted |
//! | `previous.crt`, `previous.key` | the controller | the CA before it, while that one issues |
//! | `previous-ca.crt` | the controller | the roots of the CA before it, while they are trusted |
//! | `previous-until` | the controller | when they are trusted no more, RFC 3339; not while that CA issues |

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcOffset};

use outrigger_issuer::ca::CaPem;
use outrigger_issuer::ca::rotation::Previous;

const PREVIOUS: [&str; 4] = ["previous.crt", "previous.key", "previous-ca.crt", "previous-until"];

/// As the chart makes it.
pub(super) fn is_empty(secret: &Secret) -> bool {
    secret.data.as_ref().is_none_or(BTreeMap::is_empty)
}

/// The CA that is wanted.
pub(super) fn wanted(secret: &Secret) -> anyhow::Result<CaPem> {
    let (Some(certificates), Some(key)) = (field(secret, "tls.crt")?, field(secret, "tls.key")?) else {
        bail!("it needs tls.crt and tls.key");
    };
    let roots = field(secret, "ca.crt")?;
    Ok(CaPem {
        certificates,
        key,
        roots,
    })
}

/// The CA before it.
pub(super) fn previous(secret: &Secret) -> anyhow::Result<Option<Previous>> {
    let [certificates, key, roots, until] = PREVIOUS.map(|name| field(secret, name));
    let (certificates, key, roots, until) = (certificates?, key?, roots?, until?);
    let Some(roots) = roots else { return Ok(None) };
    if let (Some(certificates), Some(key)) = (certificates, key) {
        let roots = Some(roots);
        return Ok(Some(Previous::Issuing(CaPem {
            certificates,
            key,
            roots,
        })));
    }
    let until = until.context("previous-ca.crt needs previous-until")?;
    let until = OffsetDateTime::parse(until.trim(), &Rfc3339).context("previous-until is not a time of RFC 3339")?;
    // An offset may lead beyond the year 9999, which cannot be written.
    let until = until
        .checked_to_offset(UtcOffset::UTC)
        .context("previous-until is too late")?;
    let until = until.into();
    Ok(Some(Previous::Trusted { roots, until }))
}

/// Writes the CA that is wanted into a Secret that has none.
pub(super) fn set_wanted(secret: &mut Secret, pem: &CaPem) {
    let data = secret.data.get_or_insert_default();
    let mut set = |name: &str, text: &str| data.insert(name.to_owned(), ByteString(text.as_bytes().to_vec()));
    set("tls.crt", &pem.certificates);
    set("tls.key", &pem.key);
    if let Some(roots) = &pem.roots {
        set("ca.crt", roots);
    }
}

/// Writes what has to be kept of the CA before it, or takes it out.
///
/// # Errors
/// When the time cannot be written: it is beyond the year 9999.
pub(super) fn set_previous(secret: &mut Secret, previous: Option<&Previous>) -> anyhow::Result<()> {
    let texts = match previous {
        None => [None, None, None, None],
        Some(Previous::Issuing(pem)) => {
            let (certificates, key) = (pem.certificates.clone(), pem.key.clone());
            [Some(certificates), Some(key), pem.roots.clone(), None]
        }
        Some(Previous::Trusted { roots, until }) => {
            let until = OffsetDateTime::from(*until).format(&Rfc3339)?;
            [None, None, Some(roots.clone()), Some(until)]
        }
    };
    let data = secret.data.get_or_insert_default();
    for (name, text) in PREVIOUS.into_iter().zip(texts) {
        match text {
            Some(text) => drop(data.insert(name.to_owned(), ByteString(text.into_bytes()))),
            None => drop(data.remove(name)),
        }
    }
    Ok(())
}

fn field(secret: &Secret, name: &str) -> anyhow::Result<Option<String>> {
    let Some(ByteString(bytes)) = secret.data.as_ref().and_then(|data| data.get(name)) else {
        return Ok(None);
    };
    let text = String::from_utf8(bytes.clone());
    Ok(Some(text.with_context(|| format!("{name} is not text"))?))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    fn pem(name: &str) -> CaPem {
        CaPem {
            certificates: format!("{name} certificates"),
            key: format!("{name} key"),
            roots: Some(format!("{name} roots")),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let mut secret = Secret::default();
        assert!(is_empty(&secret) && wanted(&secret).is_err());
        set_wanted(&mut secret, &pem("new"));
        let trusted = Previous::Trusted {
            roots: "roots".to_owned(),
            until: SystemTime::UNIX_EPOCH + Duration::new(1_800_000_000, 500_000_000),
        };
        for written in [
            None,
            Some(Previous::Issuing(pem("old"))),
            Some(trusted),
            Some(Previous::Issuing(pem("older"))),
            None,
        ] {
            set_previous(&mut secret, written.as_ref()).unwrap();
            assert!(previous(&secret).unwrap() == written);
            assert!(wanted(&secret).unwrap() == pem("new"));
        }
        assert_eq!(secret.data.unwrap().len(), 3);
    }

    #[test]
    fn what_was_changed_by_hand_is_an_error_or_nothing() {
        let mut secret = Secret::default();
        set_previous(&mut secret, Some(&Previous::Issuing(pem("old")))).unwrap();
        secret.data.as_mut().unwrap().remove("previous.key");
        assert!(previous(&secret).is_err(), "nobody knows until when");
        for until in [
            "",
            "soon",
            "9999-12-31T23:59:59-23:59",
            "-1000-01-01T00:00:00Z",
            "1e300",
        ] {
            let text = ByteString(until.as_bytes().to_vec());
            secret.data.as_mut().unwrap().insert("previous-until".to_owned(), text);
            assert!(previous(&secret).is_err(), "{until}");
        }
        secret.data.as_mut().unwrap().remove("previous-ca.crt");
        assert!(previous(&secret).unwrap().is_none());
    }
}
