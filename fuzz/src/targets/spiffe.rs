//! SPIFFE IDs: out of a peer's certificate, and out of discovery.

use std::sync::LazyLock;

use outrigger_api::spiffe::SpiffeId;
use regex::Regex;

static FORM: LazyLock<Regex> = LazyLock::new(|| {
    let form = r"^spiffe://([a-z0-9._-]{1,255})/ns/([a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)/sa/([a-z0-9.-]{1,253})$";
    Regex::new(form).expect("a pattern")
});

/// Any text.
pub fn run(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    // No segment of a path is relative.
    let captures = FORM.captures(&text).filter(|c| !matches!(&c[3], "." | ".."));
    match text.parse::<SpiffeId>() {
        Ok(id) => {
            let parts = captures.map(|c| [1, 2, 3].map(|i| c[i].to_owned()));
            let found = [id.trust_domain(), id.namespace(), id.service_account()].map(str::to_owned);
            assert_eq!(parts.as_ref(), Some(&found), "{text}");
            assert_eq!(id.as_str(), text);
            let [trust_domain, namespace, service_account] = &found;
            assert_eq!(
                SpiffeId::new(trust_domain, namespace, service_account).as_ref(),
                Ok(&id)
            );
        }
        Err(error) => {
            assert!(captures.is_none(), "{text} is refused");
            assert!(
                error.to_string().len() < 4096,
                "the text of a stranger is quoted without a limit"
            );
        }
    }
}
