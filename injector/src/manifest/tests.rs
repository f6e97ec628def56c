#![allow(clippy::unwrap_used)]

mod generator;
mod kubectl;

use serde_json::{Value, json};

use super::{Note, decode, inject, stream};
use crate::inject::Given;
use crate::settings::Settings;

const GIVEN: Given<'_> = Given {
    key: "key",
    roots: None,
    controller: None,
};

const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: a}]}\n";

fn injected(text: &str) -> String {
    inject(text, "shop", &Settings::default(), GIVEN).unwrap().text
}

fn notes(text: &str) -> Vec<String> {
    let injected = inject(text, "shop", &Settings::default(), GIVEN).unwrap();
    injected.notes.iter().map(ToString::to_string).collect()
}

fn errors(text: &str) -> Vec<String> {
    let errors = inject(text, "shop", &Settings::default(), GIVEN).unwrap_err();
    errors.iter().map(ToString::to_string).collect()
}

fn objects(text: &str) -> Result<Vec<Value>, Vec<Note>> {
    let (documents, mistakes) = stream::documents(text);
    match mistakes.is_empty() {
        true => Ok(documents.into_iter().map(|document| document.read.value).collect()),
        false => Err(mistakes),
    }
}

/// Texts whose reading took time that grew with the square of their length, or the cube.
#[test]
fn many_of_the_same_are_read_as_one_is() {
    let quoted = |number: usize| format!("k{number}: \"a\nb\"\n");
    let text: String = (0..3000).map(quoted).collect();
    let map = objects(&text).unwrap().remove(0);
    let all = (0..3000).map(|number| (format!("k{number}"), Value::from("a b")));
    assert_eq!(map, all.collect::<Value>());

    let text = "{\"a\":1}\n".repeat(20_000);
    let (documents, mistakes) = stream::documents(&text);
    assert!(mistakes.is_empty());
    assert!((1..=20_000).eq(documents.iter().map(|document| document.line)));
}

#[test]
fn what_has_no_pods_comes_back_byte_for_byte() {
    for text in [
        "",
        "\n",
        "# nothing but this\n",
        "---\na: 1\n---\n\n--- # two\nb: |\n  ---\n  x\n",
        "a: 1",
        "a: 1\r\n---\r\nb: 'x\r\n  y'\r\n",
        "a: &x {b: yes, <<: {c: 0644}} # kept\n---\n...\n---\nb: \"\\n\"\n",
        "{\"a\":1}{\"b\":2}\n\n  {\"c\": [1.0, 1e3]}",
        "{\"a\":1}\n---\nb: 2\n--- \t# x\n{c: 3}",
        "data: {a: \"x\u{2028}y\"}\n",
    ] {
        assert_eq!(injected(text), text);
    }
}

#[test]
fn around_what_is_changed_nothing_changes() {
    let before = "# of the Service\na: 1 # one\n---\n\n# of the pod\n";
    let behind = "--- # last\nb: 2";
    let injected = injected(&format!("{before}{POD}{behind}"));
    assert!(injected.starts_with(&format!("{before}apiVersion: v1\n")), "{injected}");
    assert!(injected.ends_with(behind), "{injected}");
    assert!(injected.contains("name: outrigger-proxy"));
    // An end without a newline joins nothing.
    let text = format!("{}\n---\na: 1", POD.trim_end());
    assert!(self::injected(&text).ends_with("\n---\na: 1"));
}

#[test]
fn json_stays_json() {
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"},
        "spec": {"containers": [{"name": "a", "args": ["\u{1f600}\u{7f}\u{2028}\0\"\\"]}]}});
    let text = format!("{pod}\n{{\"kind\":\"Service\", \"x\": 1.0}}{pod}");
    let injected = injected(&text);
    let values: Vec<Value> = serde_json::Deserializer::from_str(&injected)
        .into_iter()
        .map(Result::unwrap)
        .collect();
    assert_eq!(values.len(), 3, "{injected}");
    assert_eq!(values[0], values[2]);
    for value in [&values[0], &values[2]] {
        assert_eq!(value["spec"]["initContainers"][1]["name"], "outrigger-proxy");
        assert_eq!(value["spec"]["containers"], pod["spec"]["containers"]);
    }
    assert!(injected.contains("}\n{\"kind\":\"Service\", \"x\": 1.0}{"));
    assert_eq!(
        notes(&text),
        ["line 1: Pod a: sidecar put in", "line 2: Pod a: sidecar put in"]
    );
}

#[test]
fn lists_are_looked_through() {
    let pod =
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {"containers": [{"name": "a"}]}});
    let list = json!({"apiVersion": "v1", "kind": "List", "items": [{"kind": "Service", "apiVersion": "v1"}, pod]});
    assert_eq!(notes(&list.to_string()), ["line 1: Pod a: sidecar put in"]);
    // kubectl knows by the list what an object of it is.
    let typed = "apiVersion: apps/v1\nkind: DeploymentList\nitems:\n- metadata: {name: a}\n  spec: {template: {spec: {containers: [{name: a}]}}}\n";
    assert_eq!(notes(typed), ["line 4: Deployment a: sidecar put in"]);
}

#[test]
fn what_kubectl_takes_for_a_pod_is_one() {
    let text = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a, creationTimestamp: null}\nspec:\n  template:\n    \
        metadata: {creationTimestamp: , labels: {app: }, annotations: }\n    spec:\n      initContainers:\n      volumes: ~\n      \
        overhead: {cpu: 1}\n      containers:\n      - name: a\n        resources: {limits: {cpu: 1, memory: 1e9}, requests: {cpu: 0.5}}\n        \
        ports: [{containerPort: 8080.0}]\n        env: [{name: x, value: }]\n";
    assert_eq!(notes(text), ["line 1: Deployment a: sidecar put in"]);
}

#[test]
fn mistakes_say_where_they_are_and_nothing_comes_out() {
    for (text, expected) in [
        // What kubectl would leave out without a word.
        ("a: 1\n...\nb: 2\n", "line 3: the document has ended"),
        ("---\n{\"a\":1}\n{\"b\":2}\n", "line 3: the document has ended"),
        (" a: 1\nb: 2\n", "line 2: the document has ended"),
        // What it does not read.
        ("{\"a\":1}{\"b\":2}\n---\nc: 1\n", "line 2: behind two JSON objects"),
        ("a: 1\n--- b\n", "line 2: behind \"---\""),
        ("a: 1\n---\n[b]\n", "line 3: this is no object"),
        ("a: [\n---\nb: 1\n", "line "),
        ("a: .inf\n", "line 1: JSON has no number"),
        ("a: 1\nb: \u{1}\n", "line 2: '\\u{1}' is a control character"),
        ("a:\n  ~: 1\n", "line 2: null cannot be a key"),
        ("a:\n- {? [b] : c}\n", "line 2: a map or a list cannot be a key"),
        ("a: &x\n- *x\n", "line 2: the value of this anchor contains itself"),
        ("a: {b:,c}\n", "line 1: a space is missing"),
        // Each with its own line.
        (
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\nspec:\n  containers:\n  - name: a\n    ports:\n    - containerPort: http\n",
            "line 9: Pod a: spec.containers[0].ports[0].containerPort: ",
        ),
        (
            "kind: Job\napiVersion: batch/v1\nmetadata: {name: a}\nspec:\n  template:\n    metadata:\n      labels:\n        app: 1\n    spec: {}\n",
            "line 8: Job a: spec.template.metadata.labels.app: ",
        ),
        (
            "kind: Job\napiVersion: batch/v1\nmetadata: {name: a}\n",
            "line 1: Job a: /spec/template is missing",
        ),
    ] {
        let with_more = format!("{POD}---\n{text}");
        let shift = POD.lines().count() + 1;
        for (text, shift) in [(text, 0), (&with_more, shift)] {
            if text.starts_with(POD) && expected.contains("JSON objects") {
                continue;
            }
            let found = errors(text);
            let (line, why) = expected
                .strip_prefix("line ")
                .unwrap()
                .split_once(':')
                .unwrap_or_default();
            let expected = match line.parse::<usize>() {
                Ok(line) => format!("line {}:{why}", line + shift),
                Err(_) => expected.to_owned(),
            };
            assert!(
                found[0].starts_with(&expected),
                "{text:?}: {found:?} and not {expected:?}"
            );
        }
    }
    // To YAML it is a text.
    assert_eq!(
        errors("{\"a\": 1}\n{\"b\":\n  -1e400}\n"),
        ["line 3: no number is as large as -1e400"]
    );
    assert_eq!(objects("b: -1e400\n").unwrap(), [json!({"b": "-1e400"})]);
    // All of them together.
    assert_eq!(errors("a: .inf\n---\n[b]\n").len(), 2);
    // What two readers read differently is not written again.
    let text = POD.replace("{name: a}\n", "{name: a, annotations: {b: \"x\u{2028}y\"}}\n");
    assert!(
        errors(&text)[0].starts_with("line 3: '\\u{2028}' ends a line"),
        "{:?}",
        errors(&text)
    );
}

#[test]
fn a_document_of_aliases_of_aliases_is_refused() {
    let mut text = "a: &x0 [b,b,b,b,b,b,b,b,b,b]\n".to_owned();
    for n in 1..12 {
        let before = n - 1;
        let aliases = vec![format!("*x{before}"); 10].join(",");
        text += &format!("a{n}: &x{n} [{aliases}]\n");
    }
    assert!(errors(&text)[0].contains("aliases of aliases"), "{:?}", errors(&text));
    for deep in [
        format!("a: {}{}", "[".repeat(100_000), "]".repeat(100_000)),
        format!("a:\n{}b", "- ".repeat(1000)),
    ] {
        let errors = errors(&deep);
        let says = |part| errors[0].contains(part);
        assert!(says("in one another") || says("recursion limit"), "{errors:?}");
    }
}

#[test]
fn a_key_that_is_there_twice_is_told() {
    let text = POD.replace("metadata: {name: a}", "metadata:\n  name: a\n  name: b");
    assert_eq!(
        notes(&text),
        [
            "line 5: the key \"name\" is there twice: the last one holds",
            "line 1: Pod b: sidecar put in"
        ]
    );
    assert!(injected(&text).contains("  name: b\n"));
}

#[test]
fn kinds_of_others_are_named_and_left_alone() {
    for (version, kind, template, path) in [
        (
            "argoproj.io/v1alpha1",
            "Rollout",
            "{template: {spec: {containers: [{name: a}]}}}",
            "spec.template.spec",
        ),
        (
            "apps.kruise.io/v1alpha1",
            "CloneSet",
            "{template: {spec: {containers: [{name: a}]}}}",
            "spec.template.spec",
        ),
        (
            "serving.knative.dev/v1",
            "Service",
            "{template: {spec: {containers: [{image: a}]}}}",
            "spec.template.spec",
        ),
        (
            "batch.volcano.sh/v1alpha1",
            "Job",
            "{tasks: [{template: {spec: {containers: [{name: a}]}}}]}",
            "spec.tasks[0].template.spec",
        ),
        (
            "extensions/v1beta1",
            "Deployment",
            "{template: {spec: {containers: [{name: a}]}}}",
            "spec.template.spec",
        ),
    ] {
        let text = format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: a}}\nspec: {template}\n");
        assert_eq!(injected(&text), text);
        let notes = notes(&text);
        assert!(
            notes[0].starts_with(&format!("line 1: {kind} a: left alone")),
            "{notes:?}"
        );
        assert!(notes[0].contains(&format!(" its {path},")), "{notes:?}");
    }
    // A schema describes pods too, and has none.
    let crd = "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nspec: {properties: {containers: {type: array}}}\n";
    assert_eq!(notes(crd), [""; 0]);
}

#[test]
fn bytes_are_utf_8_or_utf_16() {
    let text = "a: \u{e9}\u{1f600}\n";
    let utf_16 = |of_unit: fn(u16) -> [u8; 2]| -> Vec<u8> {
        format!("\u{feff}{text}").encode_utf16().flat_map(of_unit).collect()
    };
    for bytes in [
        text.as_bytes().to_vec(),
        format!("\u{feff}{text}").into_bytes(),
        utf_16(u16::to_le_bytes),
        utf_16(u16::to_be_bytes),
    ] {
        assert_eq!(decode(bytes).unwrap(), text);
    }
    assert_eq!(decode(b"a: 1\nb: \xff\n".to_vec()).unwrap_err().line, 2);
    assert!(decode(b"\xff\xfea".to_vec()).is_err());
}

/// `kubectl apply -n` decides later where it goes: Kubernetes itself then writes the namespace into the name of the collector.
#[test]
fn without_a_namespace_the_pod_brings_its_own() {
    let injected = |text: &str, namespace| inject(text, namespace, &Settings::default(), GIVEN).unwrap().text;
    let named = POD.replace("{name: a}\n", "{name: a, namespace: shop}\n");
    for (text, namespace, endpoint) in [
        (POD, "", "http://jaeger.$(OUTRIGGER_NAMESPACE).svc:4317"),
        (POD, "other", "http://jaeger.other.svc:4317"),
        (&named, "", "http://jaeger.shop.svc:4317"),
        (&named, "other", "http://jaeger.shop.svc:4317"),
    ] {
        let yaml = injected(text, namespace);
        let plain = format!("value: {endpoint}\n");
        let quoted = format!("value: \"{endpoint}\"\n");
        assert!(yaml.contains(&plain) || yaml.contains(&quoted), "{namespace:?}: {yaml}");
    }
}
