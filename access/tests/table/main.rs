//! The table: policies as their authors write them, requests, and what becomes of each. The files beside this one are it; they can be read
//! without this one.
//!
//! A file has sections. In each, `policies` hold together: `name` is "namespace/name", `ports` are the ports of the pod that its target
//! selects (absent: all), `spec` is that of an AccessPolicy, and `faulty` says that it has mistakes. In each of the `cases`, `send` is
//! "METHOD target" of a request, or "bytes"; `from` is "namespace/service-account", a SPIFFE ID, or "nobody" (default "shop/web"); `at` is
//! the peer's address (default 10.244.1.7), `port` the pod's (default 8080), `host` whom the request is for (default "orders.shop:8080").
//! `then` is the verdict, `ambiguous` whether the path was why, `audit` what audited policies would refuse.
//!
//! The trust domain is cluster.local. The namespaces shop and shop-eu have the label team=shop. The pod's ports http and metrics are 8080
//! and 9090.

#![allow(clippy::unwrap_used)]

mod format;

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

use http::{HeaderMap, HeaderName, Uri};
use outrigger_access::{Access, Caller, Carries, Decision, Facts, Head, Tokens, Verdict};
use outrigger_api::spiffe::SpiffeId;

use format::Case;

const TRUST_DOMAIN: &str = "cluster.local";

impl Case {
    /// What becomes of it, as the table writes it.
    fn decide(&self, access: &Access) -> String {
        let identity: Option<SpiffeId> = match self.from.as_str() {
            "nobody" => None,
            id if id.starts_with("spiffe://") => Some(id.parse().unwrap()),
            account => {
                let (namespace, account) = account.split_once('/').unwrap();
                Some(SpiffeId::new(TRUST_DOMAIN, namespace, account).unwrap())
            }
        };
        let address = (self.at != "unknown").then(|| self.at.parse().unwrap());
        let mut headers = HeaderMap::new();
        for (name, lines) in &self.headers {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            for line in lines.all() {
                headers.append(&name, line.parse().unwrap());
            }
        }
        // As the sidecar reads it: what is no URI does not come so far.
        let (method, uri): (&str, Uri) = match self.send.split_once(' ') {
            Some((method, target)) => (method, target.parse().unwrap()),
            None => ("bytes", Uri::default()),
        };
        let carries = match method {
            "bytes" => Carries::Bytes,
            _ => Carries::Http(Head {
                method,
                path: uri.path(),
                host: uri.authority().map_or(&self.host, |authority| authority.as_str()),
                headers: &headers,
                tokens: &Tokens::NONE,
            }),
        };
        let caller = Caller {
            identity: identity.as_ref(),
            address,
        };
        let facts = Facts {
            port: self.port,
            caller,
            carries,
        };
        written(&access.decide(&facts))
    }

    fn expected(&self) -> String {
        let mut expected = self.then.clone();
        if self.ambiguous {
            expected.push_str(", ambiguous path");
        }
        for audited in &self.audit {
            write!(expected, ", audited: {audited}").unwrap();
        }
        expected
    }
}

fn written(decision: &Decision<'_>) -> String {
    let mut text = match decision.verdict {
        Verdict::Allowed(None) => "allowed".to_owned(),
        Verdict::Allowed(Some(by)) => format!("allowed by {} {}", by.policy, by.rule),
        Verdict::Denied(by) => format!("denied by {} {}", by.policy, by.rule),
        Verdict::Refused { exclusive, .. } => format!("refused by {exclusive}"),
        Verdict::InvalidToken { policy, why, .. } => format!("no token for {policy}: {why}"),
    };
    if decision.ambiguous_path {
        text.push_str(", ambiguous path");
    }
    for audited in &decision.audit {
        write!(text, ", audited: {}", audited.policy).unwrap();
        if let Some(rule) = audited.rule {
            write!(text, " {rule}").unwrap();
        }
    }
    text
}

#[test]
fn each_case_is_decided_as_the_table_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/table");
    let (mut count, mut wrong) = (0, Vec::new());
    let mut names = BTreeSet::new();
    for (file, section) in format::sections(&folder, |text| text) {
        let access = Access::new(&section.access(TRUST_DOMAIN));
        for case in &section.cases {
            let name = format!("{file}: {}: {}", section.about, case.case);
            let (found, expected) = (case.decide(&access), case.expected());
            if found != expected {
                wrong.push(format!("{name}\n  {}\n  is {found}, and not {expected}", case.send));
            }
            assert!(names.insert(name.clone()), "{name} is there twice");
            count += 1;
        }
    }
    assert!(wrong.is_empty(), "{} of {count}:\n{}", wrong.len(), wrong.join("\n"));
    println!("{count} cases");
    assert!(count >= 250, "{count} cases");
}

/// People are shown each rule that decides, at the port where it does, and as what it is.
#[test]
fn what_decides_is_shown() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/table");
    let mut shown = 0;
    for (file, section) in format::sections(&folder, |text| text) {
        let access = Access::new(&section.access(TRUST_DOMAIN));
        let view = access.view();
        for case in &section.cases {
            let at = view
                .ports
                .iter()
                .find(|at| at.port == Some(case.port))
                .unwrap_or(&view.others);
            let is_there = |policy: &str, action: &str, rule: &str| {
                let mut policies = at.enforced.iter().filter(|of| of.name == policy && of.action == action);
                policies.any(|of| of.rules.iter().any(|of| of.name == rule))
            };
            let decided = case.decide(&access);
            let words: Vec<&str> = decided.split([' ', ',']).collect();
            let is_shown = match words[..] {
                ["allowed", "by", policy, rule, ..] => is_there(policy, "Allow", rule),
                ["denied", "by", policy, rule, ..] => is_there(policy, "Deny", rule),
                ["refused", "by", policy, ..] => at.exclusive().any(|of| of.name == policy),
                _ => at.exclusive().next().is_none(),
            };
            assert!(
                is_shown,
                "{file}: {}: {}: {decided}, and {at:?}",
                section.about, case.case
            );
            shown += 1;
        }
    }
    assert!(shown > 400, "{shown}");
}
