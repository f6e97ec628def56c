//! What a review costs in memory while it is read.

/// For each byte of the text: the text itself, and the strings that are made from it.
const BYTE: u64 = 2;
/// For each object: a struct of the API is some hundred bytes, and a container some more, however short its JSON is ("{}").
const OBJECT: u64 = 1024;
/// For each element or field: a value of JSON in a list or map.
const ELEMENT: u64 = 96;

/// At most so many bytes are needed to read a review. It is an estimate from above, from its text alone, so that a small text
/// of very many small things is not taken for small.
pub(super) fn of(text: &[u8]) -> u64 {
    let (mut objects, mut elements) = (0, 0);
    let (mut in_string, mut escaped) = (false, false);
    for byte in text {
        match (in_string, byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (_, b'"') => in_string = !in_string,
            (false, b'{') => objects += 1,
            (false, b',' | b':' | b'[') => elements += 1,
            _ => {}
        }
    }
    text.len() as u64 * BYTE + objects * OBJECT + elements * ELEMENT
}

#[cfg(test)]
mod tests {
    use super::{BYTE, ELEMENT, OBJECT, of};

    #[test]
    fn structure_is_counted_and_text_is_not() {
        assert_eq!(of(b""), 0);
        let text = br#"{"a":[{},{}],"b{{\",,":"\\"}"#;
        assert_eq!(of(text), text.len() as u64 * BYTE + 3 * OBJECT + 5 * ELEMENT);
    }

    #[test]
    fn a_small_text_of_many_objects_costs_much() {
        let text = format!("[{}]", ["{}"; 10_000].join(","));
        assert!(of(text.as_bytes()) > 10_000_000);
    }
}
