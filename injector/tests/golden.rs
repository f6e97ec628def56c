//! What the injector does to manifests, as files that are read as diffs: `NAME.input.yaml` becomes `NAME.golden.yaml`, or
//! `NAME.refused.txt` where it is refused. `UPDATE_GOLDEN=1` writes them.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use k8s_openapi::api::core::v1::Pod;
use outrigger_injector::inject::{self, Given, NamespaceMeta, Outcome};
use outrigger_injector::manifest;
use outrigger_injector::settings::{Settings, VERSION};

const GIVEN: Given<'_> = Given {
    // Where a random one would be.
    key: "00112233445566778899aabbccddeeff",
    roots: Some(include_str!("../testdata/roots.pem")),
    controller: None,
};
/// What `outrigger inject` does without `--trust-bundle`.
const WITHOUT_ROOTS: &str = "config-map";

#[test]
fn golden_files() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let mut inputs: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .filter_map(|entry| {
            Some(
                entry
                    .unwrap()
                    .file_name()
                    .to_str()?
                    .strip_suffix(".input.yaml")?
                    .to_owned(),
            )
        })
        .collect();
    inputs.sort();
    assert!(inputs.len() >= 15, "the golden files are gone: {inputs:?}");
    let settings = settings();
    let mut wrong = Vec::new();
    for name in inputs {
        let text = fs::read_to_string(folder.join(format!("{name}.input.yaml"))).unwrap();
        let given = Given {
            roots: GIVEN.roots.filter(|_| name != WITHOUT_ROOTS),
            ..GIVEN
        };
        let (file, other, actual) = match manifest::inject(&text, "shop", &settings, given) {
            Ok(injected) => {
                let again = manifest::inject(&injected.text, "shop", &settings, given).unwrap();
                assert_eq!(
                    again.text, injected.text,
                    "{name}: injecting twice is not the same as once"
                );
                let notes: String = injected.notes.iter().map(|note| format!("# {note}\n")).collect();
                // The golden files do not change with every release.
                let yaml = injected
                    .text
                    .replace(&format!("proxy-version: {VERSION:?}"), "proxy-version: VERSION");
                ("golden.yaml", "refused.txt", notes + &yaml)
            }
            Err(errors) => {
                let errors = errors.iter().map(|error| format!("{error}\n")).collect();
                ("refused.txt", "golden.yaml", errors)
            }
        };
        let path = folder.join(format!("{name}.{file}"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&path, actual).unwrap();
            let _ = fs::remove_file(folder.join(format!("{name}.{other}")));
        } else if fs::read_to_string(&path).unwrap_or_default() != actual {
            wrong.push(path.display().to_string());
            eprintln!("--- {} is now\n{actual}", path.display());
        }
    }
    assert!(
        wrong.is_empty(),
        "not as written (UPDATE_GOLDEN=1 writes them anew): {wrong:#?}"
    );
}

/// The webhook's answer for a Deployment's pod is what `outrigger inject` writes into the Deployment.
#[test]
fn webhook_and_offline_agree() {
    let deployment = "{apiVersion: apps/v1, kind: Deployment, metadata: {name: orders}, spec: {template: {
        metadata: {labels: {app: x}}, spec: {containers: [{name: app, image: app}]}}}}";
    let offline = manifest::inject(deployment, "shop", &settings(), GIVEN).unwrap().text;
    let offline: serde_json::Value = serde_saphyr::from_str(&offline).unwrap();

    let mut pod = serde_json::json!({
        "metadata": {
            "generateName": "orders-5d8c9-",
            "labels": {"app": "x", "pod-template-hash": "5d8c9"},
            "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "orders-5d8c9", "uid": "u", "controller": true}],
        },
        "spec": {"containers": [{"name": "app", "image": "app"}]},
    });
    let typed: Pod = serde_json::from_value(pod.clone()).unwrap();
    let namespace = NamespaceMeta {
        name: "shop".to_owned(),
        labels: [("outrigger.dev/inject".to_owned(), "enabled".to_owned())].into(),
        ..NamespaceMeta::default()
    };
    let Outcome::Patched { patch, .. } = inject::patch(&typed, &namespace, &settings(), GIVEN).unwrap() else {
        panic!()
    };
    json_patch::patch(&mut pod, &patch).unwrap();
    assert_eq!(pod["spec"], offline["spec"]["template"]["spec"]);
    assert_eq!(pod["metadata"]["labels"]["outrigger.dev/proxy-version"], VERSION);
}

fn settings() -> Settings {
    Settings {
        image: "registry.example/outrigger/proxy:test".to_owned(),
        ..Settings::default()
    }
}
