#![allow(clippy::unwrap_used)]

use super::{inject, split};
use crate::inject::Given;
use crate::settings::Settings;

const GIVEN: Given<'_> = Given {
    key: "key",
    roots: None,
};

#[test]
fn documents_are_split_at_their_markers_only() {
    let texts = |text| split(text).iter().map(|d| d.text.to_owned()).collect::<Vec<_>>();
    assert_eq!(
        texts("---\na: 1\n---\n\n--- # two\nb: |\n  ---\n  x\n"),
        ["a: 1\n", "b: |\n  ---\n  x\n"]
    );
    assert_eq!(texts("a: 1"), ["a: 1"]);
    assert_eq!(texts("a: 1\r\n---\r\nb: 2\r\n"), ["a: 1\r\n", "b: 2\r\n"]);
    assert!(texts("").is_empty());
}

#[test]
fn json_is_yaml_too() {
    let text = r#"{"apiVersion":"v1","kind":"PodList","items":[
        {"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},"spec":{"containers":[{"name":"a"}]}}]}"#;
    let injected = inject(text, "shop", &Settings::default(), GIVEN).unwrap();
    assert_eq!(injected.notes, ["document 1: Pod a: sidecar put in"]);
    assert!(injected.yaml.contains("name: outrigger-proxy"));
}

#[test]
fn an_ending_without_a_newline_does_not_join_documents() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: a}]}\n---\na: 1";
    let injected = inject(text, "shop", &Settings::default(), GIVEN).unwrap();
    assert!(injected.yaml.ends_with("\n---\na: 1"), "{}", injected.yaml);
}

/// `kubectl apply -n` decides later where it goes: Kubernetes itself then writes the namespace into the name of the collector.
#[test]
fn without_a_namespace_the_pod_brings_its_own() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: a}]}\n";
    let injected = |text: &str, namespace| inject(text, namespace, &Settings::default(), GIVEN).unwrap().yaml;
    let named = text.replace("{name: a}\n", "{name: a, namespace: shop}\n");
    for (text, namespace, endpoint) in [
        (text, "", "http://jaeger.$(OUTRIGGER_NAMESPACE).svc:4317"),
        (text, "other", "http://jaeger.other.svc:4317"),
        (&named, "", "http://jaeger.shop.svc:4317"),
        (&named, "other", "http://jaeger.shop.svc:4317"),
    ] {
        let yaml = injected(text, namespace);
        assert!(yaml.contains(&format!("value: {endpoint}\n")), "{namespace:?}: {yaml}");
    }
}
