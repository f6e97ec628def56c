//! The files of the table. Whoever asks a real sidecar reads them too.

use std::collections::BTreeMap;
use std::path::Path;

use outrigger_api::access as proto;
use outrigger_api::policy::access::{AccessPolicySpec, Cluster, JwksSpec};
use outrigger_api::policy::selector::LabelSelector;
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Section {
    pub(crate) about: String,
    pub(crate) policies: Vec<Policy>,
    pub(crate) cases: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Policy {
    pub(crate) name: String,
    pub(crate) ports: Option<Vec<u32>>,
    #[serde(default)]
    pub(crate) faulty: bool,
    pub(crate) spec: AccessPolicySpec,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Case {
    pub(crate) case: String,
    #[serde(default = "web")]
    pub(crate) from: String,
    #[serde(default = "address")]
    pub(crate) at: String,
    #[serde(default = "port")]
    pub(crate) port: u16,
    pub(crate) send: String,
    #[serde(default = "host")]
    pub(crate) host: String,
    #[serde(default)]
    pub(crate) headers: BTreeMap<String, Lines>,
    pub(crate) then: String,
    #[serde(default)]
    pub(crate) ambiguous: bool,
    #[serde(default)]
    pub(crate) audit: Vec<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
pub(crate) enum Lines {
    One(String),
    Several(Vec<String>),
}

impl Lines {
    pub(crate) fn all(&self) -> &[String] {
        match self {
            Self::One(line) => std::slice::from_ref(line),
            Self::Several(lines) => lines,
        }
    }
}

/// The sections of all files in the folder, in the order of the files' names, with the name of each file. `read` may change the text.
pub(crate) fn sections(folder: &Path, read: impl Fn(String) -> String) -> Vec<(String, Section)> {
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|file| file.unwrap().path())
        .collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    let mut all = Vec::new();
    for file in files {
        let text = read(std::fs::read_to_string(&file).unwrap());
        let sections: Vec<Section> =
            serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let name = file.file_name().unwrap().display().to_string();
        all.extend(sections.into_iter().map(|section| (name.clone(), section)));
    }
    all
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

struct Shop<'a>(&'a str);

impl Cluster for Shop<'_> {
    fn trust_domain(&self) -> &str {
        self.0
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
    /// The policies of a mesh of this trust domain.
    pub(crate) fn access(&self, trust_domain: &str) -> proto::Access {
        let mut access = proto::Access::default();
        for policy in &self.policies {
            let (namespace, _) = policy.name.split_once('/').unwrap();
            let (unresolved, mistakes) = policy.spec.to_wire(&policy.name, namespace);
            assert_eq!(!mistakes.is_empty(), policy.faulty, "{}: {mistakes:?}", self.about);
            let ports = policy.ports.clone().map(|numbers| proto::Ports { numbers });
            let wire = unresolved.resolve(ports, &Shop(trust_domain));
            match unresolved.audit {
                true => access.audited.push(wire),
                false => access.enforced.push(wire),
            }
        }
        access
    }
}
