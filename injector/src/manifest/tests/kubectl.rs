//! What kubectl itself reads: `testdata/kubectl.jsonl` was recorded with the decoder of Kubernetes' apimachinery 0.37, above
//! `sigs.k8s.io/yaml` 1.6.

use serde::Deserialize;
use serde_json::Value;

use super::objects;

#[derive(Deserialize)]
struct Recorded {
    text: String,
    /// `None` where kubectl refuses the text.
    objects: Option<Vec<Value>>,
}

#[test]
fn texts_are_read_as_kubectl_reads_them() {
    let recorded = include_str!("../../../testdata/kubectl.jsonl").lines();
    let (mut read, mut refused, mut accepted) = (0, Vec::new(), Vec::new());
    for line in recorded {
        let recorded: Recorded = serde_json::from_str(line).unwrap();
        // A list or a text is no object, and kubectl refuses it later.
        let theirs = recorded.objects.filter(|objects| objects.iter().all(Value::is_object));
        match (theirs, objects(&recorded.text)) {
            // A text with U+0085 is not written anew.
            (Some(_), Ok(_)) if recorded.text.contains('\u{85}') => {}
            (Some(theirs), Ok(ours)) => {
                read += 1;
                assert_eq!(as_floats(ours), as_floats(theirs), "{:?}", recorded.text);
            }
            (Some(_), Err(_)) => refused.push(recorded.text),
            (None, Ok(_)) => accepted.push(recorded.text),
            (None, Err(_)) => {}
        }
    }
    assert!(read > 150, "{read} texts were read");
    // What kubectl refuses we do too, but for these: each says one thing only, and if it is written anew, so that kubectl reads it.
    assert_eq!(
        accepted,
        [
            "a: &x [{b: 1}]\nd: {<<: *x}",
            "a: |\n  \tx\n",
            "a: \"\\/\"",
            "a: \"\\uD83D\\uDE00\"",
            "a: \u{2028}b",
            "a: x\u{85}y",
            "...\na: 1",
            "---# c\na: 1",
            "{\"a\":1}\n---\n{\"a\":\"\\/\"}",
        ]
    );
    // What is not read is refused, and these are all of the recorded ones.
    let known = [
        // kubectl leaves out what is behind the end.
        "a: 1\n...\nb: 1",
        " a: 1\nb: 2",
        "{\"a\":1}\n---\n{\"b\":2}\n{\"c\":3}",
        "{a: 1}\n{b: 2}",
        "---\n{\"a\":1}{\"b\":2}",
        "---\n{\"a\":1}\n{\"b\":2}",
        // A directive, an escape that YAML does not have, a comment without a space before it, a key that depends on YAML's version.
        "---\n%YAML 1.1\n---\na: 1",
        "a: \"\\'\"",
        "a: \"x\"# c",
        "a: [b]# c",
        "a: |# c\n  x",
        "a: {b:, c: 1}",
        "a: {?b}\n",
        // Half a character, which kubectl replaces.
        "{\"a\":\"\\ud800\"}",
    ];
    refused.retain(|text| !known.contains(&text.as_str()));
    assert_eq!(refused, [""; 0]);
}

/// kubectl's numbers are 64-bit floats where they are no 64-bit integers. The recording is read less exactly than the texts.
fn as_floats(objects: Vec<Value>) -> Value {
    fn walk(value: &mut Value) {
        match value {
            Value::Object(map) => map.values_mut().for_each(walk),
            Value::Array(items) => items.iter_mut().for_each(walk),
            Value::Number(number) if number.as_i64().is_none() => {
                *value = format!("{:.14e}", number.as_f64().unwrap()).into()
            }
            _ => {}
        }
    }
    let mut objects = Value::Array(objects);
    walk(&mut objects);
    objects
}
