//! Names of Kubernetes objects, and of who writes their status.

/// The `controllerName` of an entry that Outrigger's controller has written into a status (Gateway API).
pub const CONTROLLER: &str = "outrigger.dev/controller";

/// The condition of a route, at each of its parents, that says which sidecars are too old for it. Gateway API has none for that, and asks for a domain
/// before the names of others.
pub const ROUTE_PROGRAMMED: &str = "outrigger.dev/Programmed";

/// Whether it can be the name of a namespace: a label of RFC 1123, 1 to 63 of `[a-z0-9-]`, with no `-` at either end.
pub fn is_namespace(name: &str) -> bool {
    name.len() <= 63 && is_label(name)
}

/// Whether it can be the name of a ConfigMap: a subdomain of RFC 1123, labels of `[a-z0-9-]` with no `-` at either end, with dots
/// between them, 253 bytes at most. Another one might be more than one segment of a path at the API server.
pub fn is_subdomain(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(is_label)
}

/// Of any length.
fn is_label(label: &str) -> bool {
    let inner = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-');
    !label.is_empty() && label.bytes().all(inner) && !label.starts_with('-') && !label.ends_with('-')
}

/// Whether it can be a key of a ConfigMap: 1 to 253 of `[-._A-Za-z0-9]`.
pub fn is_config_map_key(key: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
    (1..=253).contains(&key.len()) && key.bytes().all(inner)
}

#[cfg(test)]
mod tests {
    use super::{is_config_map_key, is_namespace, is_subdomain};

    #[test]
    fn names_and_keys_of_config_maps() {
        for good in ["keys", "a", "1", "keys.v2", "a-b.c", &"a".repeat(253)] {
            assert!(is_subdomain(good), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            "-a",
            "a-",
            "a..b",
            "a.",
            ".a",
            "a.-b",
            "A",
            "a_b",
            "a/b",
            "../secrets/a",
            "a?b",
            "a#b",
            "a%2fb",
            "é",
            "a b",
            &"a".repeat(254),
        ] {
            assert!(!is_subdomain(bad), "{bad}");
        }
        for good in ["jwks.json", "CA_1", "..a", &"a".repeat(253)] {
            assert!(is_config_map_key(good), "{good}");
        }
        for bad in ["", "a/b", "a b", "é", "a\n", &"a".repeat(254)] {
            assert!(!is_config_map_key(bad), "{bad}");
        }
    }

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
