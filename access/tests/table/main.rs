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

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

use http::{HeaderMap, HeaderName, Uri};
use outrigger_access::{Access, Caller, Carries, Decision, Facts, Head, Tokens, Verdict};
use outrigger_api::access as proto;
use outrigger_api::policy::access::{AccessPolicySpec, Cluster, JwksSpec};
use outrigger_api::policy::selector::LabelSelector;
use outrigger_api::spiffe::SpiffeId;
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Section {
    about: String,
    policies: Vec<Policy>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Policy {
    name: String,
    ports: Option<Vec<u32>>,
    #[serde(default)]
    faulty: bool,
    spec: AccessPolicySpec,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    case: String,
    #[serde(default = "web")]
    from: String,
    #[serde(default = "address")]
    at: String,
    #[serde(default = "port")]
    port: u16,
    send: String,
    #[serde(default = "host")]
    host: String,
    #[serde(default)]
    headers: BTreeMap<String, Lines>,
    then: String,
    #[serde(default)]
    ambiguous: bool,
    #[serde(default)]
    audit: Vec<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Lines {
    One(String),
    Several(Vec<String>),
}

fn web() -> String {
    "shop/web".to_owned()
}

fn address() -> String {
    "10.244.1.7".to_owned()
}

fn port() -> u16 {
    8080
}

fn host() -> String {
    "orders.shop:8080".to_owned()
}

struct Shop;

impl Cluster for Shop {
    fn trust_domain(&self) -> &str {
        "cluster.local"
    }

    fn namespaces(&self, selector: &LabelSelector) -> Vec<String> {
        let all = [("bank", "bank"), ("ops", "ops"), ("shop", "shop"), ("shop-eu", "shop")];
        let labels = |team: &str| BTreeMap::from([("team".to_owned(), team.to_owned())]);
        let selected = all.into_iter().filter(|(_, team)| selector.matches(&labels(team)));
        selected.map(|(name, _)| name.to_owned()).collect()
    }

    fn port(&self, name: &str) -> Option<u16> {
        match name {
            "http" => Some(8080),
            "metrics" => Some(9090),
            _ => None,
        }
    }

    fn jwks(&self, _: &JwksSpec) -> String {
        String::new()
    }
}

impl Section {
    fn access(&self) -> proto::Access {
        let mut access = proto::Access::default();
        for policy in &self.policies {
            let (namespace, _) = policy.name.split_once('/').unwrap();
            let (unresolved, mistakes) = policy.spec.to_wire(&policy.name, namespace);
            assert_eq!(!mistakes.is_empty(), policy.faulty, "{}: {mistakes:?}", self.about);
            let ports = policy.ports.clone().map(|numbers| proto::Ports { numbers });
            let wire = unresolved.resolve(ports, &Shop);
            match unresolved.audit {
                true => access.audited.push(wire),
                false => access.enforced.push(wire),
            }
        }
        access
    }
}

impl Case {
    /// What becomes of it, as the table writes it.
    fn decide(&self, access: &Access) -> String {
        let identity: Option<SpiffeId> = match self.from.as_str() {
            "nobody" => None,
            id if id.starts_with("spiffe://") => Some(id.parse().unwrap()),
            account => {
                let (namespace, account) = account.split_once('/').unwrap();
                Some(SpiffeId::new("cluster.local", namespace, account).unwrap())
            }
        };
        let address = (self.at != "unknown").then(|| self.at.parse().unwrap());
        let mut headers = HeaderMap::new();
        for (name, lines) in &self.headers {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            let lines = match lines {
                Lines::One(line) => std::slice::from_ref(line),
                Lines::Several(lines) => lines,
            };
            for line in lines {
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
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|file| file.unwrap().path())
        .collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    let (mut count, mut wrong) = (0, Vec::new());
    let mut names = BTreeSet::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let sections: Vec<Section> =
            serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        for section in sections {
            let access = Access::new(&section.access());
            for case in &section.cases {
                let name = format!(
                    "{}: {}: {}",
                    file.file_name().unwrap().display(),
                    section.about,
                    case.case
                );
                let (found, expected) = (case.decide(&access), case.expected());
                if found != expected {
                    wrong.push(format!("{name}\n  {}\n  is {found}, and not {expected}", case.send));
                }
                assert!(names.insert(name.clone()), "{name} is there twice");
                count += 1;
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {count}:\n{}", wrong.len(), wrong.join("\n"));
    println!("{count} cases");
    assert!(count >= 250, "{count} cases");
}
