//! Random manifests, whose values are known because they were there first.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Map, Value, json};

use super::{injected, objects};
use crate::manifest::print;

const CASES: u64 = 200;

/// Whatever stands in a manifest, kubectl reads the same from what comes out, apart from the sidecar.
#[test]
fn any_manifest_comes_back_equal() {
    for seed in 0..CASES {
        let mut random = StdRng::seed_from_u64(seed);
        let objects_in: Vec<_> = (0..random.random_range(1..4)).map(|_| object(&mut random)).collect();
        let text = written(&mut random, &objects_in);
        assert_eq!(objects(&text).unwrap(), objects_in, "seed {seed}: {text}");
        let injected = injected(&text);
        let mut objects_out = objects(&injected).unwrap_or_else(|why| panic!("seed {seed}: {why:?}\n{injected}"));
        for object in &mut objects_out {
            without_sidecar(object);
        }
        assert_eq!(objects_out, objects_in, "seed {seed}:\n{text}\nbecame\n{injected}");
    }
}

/// A reader of YAML 1.2 reads the same from what is printed as one of YAML 1.1.
#[test]
fn all_readers_agree_on_what_is_printed() {
    for seed in 0..CASES {
        let mut random = StdRng::seed_from_u64(seed);
        let mut object = Map::from_iter([("kind".to_owned(), Value::Null)]);
        object.extend(map(&mut random, 3).as_object().cloned().unwrap_or_default());
        let yaml = print::yaml(&object);
        let object = Value::Object(object);
        assert_eq!(
            objects(&yaml).unwrap(),
            std::slice::from_ref(&object),
            "seed {seed}:\n{yaml}"
        );
        assert_eq!(
            serde_saphyr::from_str::<Value>(&yaml).unwrap(),
            object,
            "seed {seed}:\n{yaml}"
        );
        let text = print::json(&object);
        assert_eq!(
            serde_json::from_str::<Value>(&text).unwrap(),
            object,
            "seed {seed}:\n{text}"
        );
    }
}

fn object(random: &mut StdRng) -> Value {
    let annotations: Map<_, _> = (0..3)
        .map(|n| (format!("x/{n}{}", key(random)), text(random).into()))
        .collect();
    match random.random_range(0..4) {
        0 => {
            json!({"apiVersion": "example.com/v1", "kind": "Other", "metadata": {"annotations": annotations}, "spec": map(random, 3)})
        }
        1 => json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"annotations": annotations}, "spec": pod(random)}),
        _ => {
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"annotations": annotations, "more": map(random, 2)},
            "spec": {"template": {"metadata": {"annotations": annotations}, "spec": pod(random)}}})
        }
    }
}

/// With fields that no version of Kubernetes has.
fn pod(random: &mut StdRng) -> Value {
    let args: Vec<_> = (0..random.random_range(0..4)).map(|_| text(random)).collect();
    json!({"containers": [{"name": "app", "args": args, "futureField": map(random, 3)}], "otherField": value(random, 3)})
}

fn map(random: &mut StdRng, depth: usize) -> Value {
    let entries = random.random_range(0..4);
    Value::Object((0..entries).map(|_| (key(random), value(random, depth - 1))).collect())
}

fn value(random: &mut StdRng, depth: usize) -> Value {
    match random.random_range(0..if depth == 0 { 4 } else { 6 }) {
        0 => text(random).into(),
        1 => [json!(null), json!(true), json!(false), json!({}), json!([])]
            .choose(random)
            .cloned()
            .unwrap_or_default(),
        2 => [
            json!(0),
            json!(-1),
            json!(8080),
            json!(i64::MAX),
            json!(i64::MIN),
            json!(u64::MAX),
        ]
        .choose(random)
        .cloned()
        .unwrap_or_default(),
        3 => [
            json!(0.5),
            json!(1e300),
            json!(-2.5e-7),
            json!(1.25e22),
            json!(123_456.789),
        ]
        .choose(random)
        .cloned()
        .unwrap_or_default(),
        4 => map(random, depth),
        _ => (0..random.random_range(0..4))
            .map(|_| value(random, depth - 1))
            .collect(),
    }
}

fn key(random: &mut StdRng) -> String {
    match random.random_range(0..20) {
        0 => "k".repeat(random.random_range(900..1100)),
        _ => text(random),
    }
}

/// Texts that some reader, somewhere, takes for something else, and pieces of such put together.
fn text(random: &mut StdRng) -> String {
    const WHOLE: &[&str] = &[
        "",
        "yes",
        "No",
        "ON",
        "off",
        "y",
        "N",
        "true",
        "null",
        "~",
        "NULL",
        "<<",
        "=",
        "0",
        "-1",
        "017",
        "0o17",
        "0x1F",
        "0b1",
        "1_000",
        "1e3",
        "1.5",
        ".5",
        ".inf",
        "-.INF",
        ".nan",
        "12:30",
        "190:20:30",
        "2001-01-01",
        "2001-12-14t21:59:43.10-05:00",
        "10m",
        "256Mi",
        "1e",
        "0.1.0",
        "a",
        "orders",
        "example.com/x:1",
        "/bin/sh",
        "-c",
        "--flag=x",
        "key: value",
        "a #b",
        "a: ",
        "- a",
        "? a",
        "!x",
        "&x",
        "*x",
        "@x",
        "`x`",
        "%x",
        "[a]",
        "{a}",
        "a,b",
        "'",
        "\"",
        "\\",
        "\\n",
        "$(X)",
        "$$",
        "---",
        "...",
        "\n",
        "\n\n",
        "\t",
        " ",
        "a\n",
        "\na",
        "a\nb",
        "a\nb\n",
        "a\nb\n\n",
        " a\nb",
        "\ta\nb",
        "a\n b",
        "a\n\tb",
        "a \nb",
        "a\n\nb\n",
        "a\r\nb",
        "#!/bin/sh\nset -e\n\nexec x\n",
        "---\na",
        "a\n---\nb\n",
        "# a\n# b\n",
        "\u{0}",
        "\u{7f}",
        "\u{85}",
        "\u{a0}",
        "\u{2028}",
        "\u{feff}",
        "\u{fffe}",
        "é",
        "\u{1f600}",
        "日本",
    ];
    match random.random_range(0..4) {
        0 => (0..random.random_range(1..4))
            .map(|_| *WHOLE.choose(random).unwrap())
            .collect(),
        1 => (0..random.random_range(0..12))
            .map(|_| random.random_range(' '..='~'))
            .collect(),
        _ => (*WHOLE.choose(random).unwrap()).to_owned(),
    }
}

/// The objects as a stream, each in a form of its own.
fn written(random: &mut StdRng, objects: &[Value]) -> String {
    let json = random.random_bool(0.2);
    let mut text = String::new();
    for (index, object) in objects.iter().enumerate() {
        if json {
            text += &object.to_string();
            text += ["", "\n", " \n\n"].choose(random).unwrap();
            continue;
        }
        if index > 0 || random.random() {
            text += ["---\n", "--- # next\n", "--- \t\n# one\n\n"].choose(random).unwrap();
        }
        match object {
            Value::Object(object) if random.random() => text += &print::yaml(object),
            object => {
                flow(random, &mut text, object, 1);
                text.push('\n');
            }
        }
        text += ["", "...\n", "# end\n", "\n\n"].choose(random).unwrap();
    }
    match random.random_range(0..4) {
        0 if !json => text.replace('\n', "\r\n"),
        _ => text,
    }
}

/// In flow style, with comments, line breaks and all that is allowed between tokens.
fn flow(random: &mut StdRng, text: &mut String, value: &Value, indent: usize) {
    let space = |random: &mut StdRng, text: &mut String| {
        let line = format!("\n{}", " ".repeat(indent));
        let comment = format!(" # {{'\"{line}");
        *text += [" ", "  ", "\t ", &line, &comment].choose(random).unwrap();
    };
    match value {
        Value::Object(map) => {
            text.push('{');
            for (name, value) in map {
                space(random, text);
                // A long key is found only behind its mark.
                if name.len() > 500 {
                    *text += "? ";
                }
                *text += &double_quoted(random, name);
                text.push(':');
                space(random, text);
                flow(random, text, value, indent + 1);
                text.push(',');
            }
            text.push('}');
        }
        Value::Array(items) => {
            text.push('[');
            for item in items {
                space(random, text);
                flow(random, text, item, indent + 1);
                text.push(',');
            }
            text.push(']');
        }
        Value::Null => *text += ["~", "null", "Null", "NULL"].choose(random).unwrap(),
        Value::Bool(true) => *text += ["true", "True", "yes", "on", "Y"].choose(random).unwrap(),
        Value::Bool(false) => *text += ["false", "FALSE", "no", "Off", "n"].choose(random).unwrap(),
        Value::Number(number) => match number.as_i64().filter(|n| *n >= 0) {
            Some(n) => {
                *text += [
                    format!("{n}"),
                    format!("0x{n:X}"),
                    format!("0{n:o}"),
                    format!("0o{n:o}"),
                    format!("+{n}"),
                ]
                .choose(random)
                .unwrap()
            }
            None => *text += &number.to_string(),
        },
        Value::String(string) => *text += &double_quoted(random, string),
    }
}

fn double_quoted(random: &mut StdRng, string: &str) -> String {
    let single = string.chars().all(|c| (' '..='~').contains(&c));
    if single && random.random() {
        return format!("'{}'", string.replace('\'', "''"));
    }
    let mut text = "\"".to_owned();
    for c in string.chars() {
        let code = u32::from(c);
        match c {
            'a'..='z' if random.random_bool(0.8) => text.push(c),
            '\u{85}' if random.random() => text += "\\N",
            '\u{2028}' if random.random() => text += "\\L",
            '\0' if random.random() => text += "\\0",
            '\n' if random.random() => text += "\\n",
            _ if code < 256 && random.random() => text += &format!("\\x{code:02x}"),
            _ if code < 65_536 && random.random() => text += &format!("\\u{code:04X}"),
            _ => text += &format!("\\U{code:08x}"),
        }
    }
    text.push('"');
    text
}

fn without_sidecar(object: &mut Value) {
    let template = match object["kind"].as_str() {
        Some("Pod") => object,
        Some("Deployment") => &mut object["spec"]["template"],
        _ => return,
    };
    let ours = |item: &Value| item["name"].as_str().is_some_and(|name| name.starts_with("outrigger-"));
    let spec = template["spec"].as_object_mut().unwrap();
    for field in ["initContainers", "volumes"] {
        let items = spec.remove(field).unwrap_or_default();
        assert!(
            items
                .as_array()
                .is_some_and(|items| items.len() == 2 && items.iter().all(ours))
        );
    }
    let labels = template["metadata"]
        .as_object_mut()
        .unwrap()
        .remove("labels")
        .unwrap_or_default();
    assert_eq!(labels.as_object().map(Map::len), Some(1));
}
