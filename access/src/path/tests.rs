use super::{MAX_BYTES, MAX_READINGS, RequestPath, normal_of_rule};

/// What a path is in the one form, and whether it is ambiguous.
#[test]
fn one_form() {
    for (raw, normal, ambiguous) in [
        ("/", "/", false),
        ("/a/b/", "/a/b/", false),
        ("/a.b/...", "/a.b/...", false),
        ("*", "*", false),
        // Unreserved characters, and letters of %XX.
        ("/%61%2D%2e%5f%7e%41", "/a-._~A", false),
        ("/caf%c3%a9", "/caf%C3%A9", false),
        ("/a%20b", "/a%20b", false),
        ("/a%3Ab:c", "/a%3Ab:c", false),
        ("/%3f%23", "/%3F%23", false),
        // What no path has.
        ("/a|b\"{}", "/a%7Cb%22%7B%7D", false),
        ("/café", "/caf%C3%A9", true),
        // Delimiters.
        ("/a%2Fb", "/a%2Fb", true),
        ("/a%2fb", "/a%2Fb", true),
        ("/a%5cb", "/a%5Cb", true),
        ("/a\\b", "/a%5Cb", true),
        ("/a;b", "/a;b", true),
        ("/a%3bb", "/a%3Bb", true),
        ("/a%00", "/a%00", true),
        ("/a%0d%0a", "/a%0D%0A", true),
        ("/a%7f", "/a%7F", true),
        // Segments.
        ("//", "//", true),
        ("/a//b", "/a//b", true),
        ("/a//", "/a//", true),
        ("/.", "/.", true),
        ("/..", "/..", true),
        ("/a/./b", "/a/./b", true),
        ("/a/%2e%2E/b", "/a/../b", true),
        ("/a/.%2e", "/a/..", true),
        ("/a/.b", "/a/.b", false),
        ("/a/..b/b..", "/a/..b/b..", false),
        // Twice.
        ("/%252e%252e/a", "/%252e%252e/a", true),
        ("/%25252e", "/%25252e", true),
        ("/%25%32%65", "/%252e", true),
        ("/100%25", "/100%25", false),
        ("/100%25xy", "/100%25xy", false),
        // What is broken.
        ("", "", true),
        ("a/b", "a/b", true),
        ("/%", "/%25", true),
        ("/%zz%4", "/%25zz%254", true),
        ("/%%32e", "/%252e", true),
        ("/%u002e", "/%25u002e", true),
        ("/%ff", "/%FF", true),
        ("/%c0%af", "/%C0%AF", true),
    ] {
        let path = RequestPath::new(raw);

        assert_eq!((path.normal(), path.is_ambiguous()), (normal, ambiguous), "{raw}");
        assert_eq!(RequestPath::new(path.normal()).normal(), path.normal(), "{raw} twice");
    }
}

#[test]
fn what_a_rule_names() {
    for (text, expected) in [
        ("/a b/é", Some("/a%20b/%C3%A9")),
        ("/a%2fb", Some("/a%2Fb")),
        ("/%41", Some("/A")),
        ("a", None),
        ("", None),
        ("/a?b", None),
        ("/a#b", None),
    ] {
        assert_eq!(normal_of_rule(text).as_deref(), expected, "{text}");
    }
}

fn may_be(raw: &str, wanted: &str) -> bool {
    RequestPath::new(raw).may_be(|reading| reading == wanted.as_bytes())
}

/// Ways to write a path that some server takes for another one.
#[test]
fn readings() {
    for raw in [
        "/admin",
        "/%61dmin",
        "/%2561dmin",
        "/%252561dmin",
        "//admin",
        "/./admin",
        "/%2e/admin",
        "/%252e/admin",
        "/x/../admin",
        "/x/%2e%2e/admin",
        "/x/..%2fadmin",
        "/x%2f..%2fadmin",
        "/x%2fy/../admin", // resolved, then decoded
        "/x/%2e%2e/../admin",
        "/\\admin",
        "/x\\..\\admin",
        "/x%5c..%5cadmin",
        "/x/..%255cadmin",
        "/x/..;/admin",
        "/x/..;a=b/admin",
        "/x/%2e%2e%3b/admin",
        "/;/admin",
        "/;a/b;c/../admin",
        "/admin;x",
        "/admin;x=1/y/..;/..;/admin",
        "/admin;/y", // cut
        "/admin%3bx",
        "/admin%3Fx",
        "/admin%23x",
        "/admin%253fx",
        "/admin%20",
        "/%20admin",
        "/admin%00.png",
        "/ad%00min",
        "/ad%0amin",
        "/ad%09min%0d",
        "/a//../admin",      // resolved, then merged
        "/a/b//../../admin", // merged, then resolved
        "/../admin",
        "/../../admin",
    ] {
        assert!(may_be(raw, "/admin"), "{raw}");
    }
    for raw in [
        "/",
        "/administrator",
        "/x/admin",
        "/admi%256f",
        "/public%2Fadmin",
        "/public/a//b",
        "/public/..admin",
        "/public/%2e%2e%2e/admin",
        "/public/admin;x",
        "/100%25/admin",
        "*",
    ] {
        assert!(!may_be(raw, "/admin"), "{raw}");
    }
}

/// What nobody can say anything about is every path.
#[test]
fn broken_paths() {
    for raw in ["", "admin", "/%", "/%a", "/%zz", "/%u0061", "/%ff", "/%c0%ae", "/%25ff"] {
        assert!(may_be(raw, "/whatever"), "{raw}");
    }
}

#[test]
fn there_are_not_too_many_readings() {
    let much = "/a;b/..%2f%255c//%00%20%3f/x".repeat(20);
    let long = format!("/{}%2f", "a".repeat(MAX_BYTES / 2));
    let deep = format!("/{}41", "%25".repeat(2) + &"25".repeat(MAX_READINGS));
    for raw in [&much, &long, &deep] {
        let mut tests = 0;
        let path = RequestPath::new(raw);
        assert!(path.may_be(|_| {
            tests += 1;
            false
        }));
        assert_eq!(tests, 0, "{raw}");
    }
    // A long one that is not ambiguous, and one with a few ways to read it.
    assert!(!may_be(&"/abc".repeat(MAX_BYTES), "/admin"));
    assert!(!may_be(&format!("/{}%2f", "a".repeat(MAX_BYTES / 2 - 10)), "/admin"));
}
