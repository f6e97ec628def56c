//! Names of Kubernetes objects, and of who writes their status.

/// The `controllerName` of an entry that Outrigger's controller has written into a status (Gateway API).
pub const CONTROLLER: &str = "outrigger.dev/controller";

/// Whether it can be the name of a namespace: a label of RFC 1123, 1 to 63 of `[a-z0-9-]`, with no `-` at either end.
pub fn is_namespace(name: &str) -> bool {
    let inner = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-');
    (1..=63).contains(&name.len()) && name.bytes().all(inner) && !name.starts_with('-') && !name.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::is_namespace;

    #[test]
    fn labels_of_rfc_1123() {
        for good in ["shop", "a", "1", "team-7", &"a".repeat(63)] {
            assert!(is_namespace(good), "{good}");
        }
        for bad in [
            "",
            "-",
            "-a",
            "a-",
            "Shop",
            "a.b",
            "..",
            "a/b",
            "a?b",
            "a%2fb",
            "é",
            "a b",
            &"a".repeat(64),
        ] {
            assert!(!is_namespace(bad), "{bad}");
        }
    }
}
