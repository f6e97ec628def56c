//! The path of a request as AccessPolicies read it, against apps that read it step by step.

use outrigger_access::path::{MAX_BYTES, MAX_READINGS, RequestPath};

use crate::Input;

/// What an app does to a path.
type Step = fn(&str) -> Option<String>;

/// Each whether it leaves a path alone that is not ambiguous.
const STEPS: [(Step, bool); 10] = [
    (decode, true),
    (|path| Some(path.replace('\\', "/")), true),
    (
        |path| Some(each(path, |segment| segment.split(';').next().unwrap_or(""))),
        true,
    ),
    (|path| path.split(';').next().map(str::to_owned), true),
    (merge, true),
    (|path| Some(resolve(path)), true),
    (|path| Some(path.replace(|c: char| c.is_ascii_control(), "")), true),
    (
        |path| path.split(|c: char| c.is_ascii_control()).next().map(str::to_owned),
        true,
    ),
    (|path| path.split(['?', '#']).next().map(str::to_owned), false),
    (
        |path| {
            Some(each(path, |segment| {
                segment.trim_matches(|c: char| c.is_ascii_whitespace())
            }))
        },
        false,
    ),
];

/// How many steps, which, and the path.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let steps = input.some(8, |input| input.pick(&STEPS));
    let raw = String::from_utf8_lossy(input.rest());
    let path = RequestPath::new(&raw);
    form(&raw, &path);

    let (mut count, mut size) = (0, 0);
    path.may_be(|reading| {
        count += 1;
        size += reading.len();
        false
    });
    assert!(
        count <= MAX_READINGS && (count <= 1 || size <= MAX_BYTES),
        "{count} readings of {size} bytes"
    );
    assert!(path.may_be(|reading| reading == raw.as_bytes()), "{raw:?} itself");

    let mut read = raw.clone().into_owned();
    let mut left_alone = true;
    for (step, leaves_alone) in steps {
        match step(&read) {
            Some(next) => read = next,
            // What is not text any more is nobody's to say.
            None => {
                assert!(path.may_be(|_| false), "{raw:?} may be anything");
                return;
            }
        }
        left_alone &= leaves_alone;
    }
    assert!(
        path.may_be(|reading| reading == read.as_bytes()),
        "{raw:?} may be {read:?}"
    );
    if !path.is_ambiguous() && left_alone {
        let once = decode(&raw);
        assert!(
            read == raw || Some(&read) == once.as_ref(),
            "{raw:?} is {read:?} to nobody"
        );
    }
}

fn form(raw: &str, path: &RequestPath<'_>) {
    let normal = path.normal();
    let again = RequestPath::new(normal);
    assert_eq!(again.normal(), normal, "{raw:?} twice");
    assert!(normal.len() <= 3 * raw.len());
    let is_of_path = |c: char| c.is_ascii_alphanumeric() || "/%-._~!$&'()*+,;=:@".contains(c);
    assert!(normal.chars().all(is_of_path), "{normal}");
    if path.is_ambiguous() {
        return;
    }
    assert!(!again.is_ambiguous() && (raw == "*" || raw.starts_with('/')), "{raw:?}");
    assert_eq!(decode(normal), decode(raw), "{raw:?} names something else");
    let decoded = decode(normal).expect("text");
    let segments: Vec<&str> = decoded.split('/').collect();
    assert_eq!(segments.len(), raw.split('/').count(), "{raw:?}");
    assert!(
        !segments.iter().any(|segment| matches!(*segment, "." | "..")),
        "{raw:?}"
    );
    assert!(
        !decoded.contains(|c: char| c == '\\' || c == ';' || c.is_ascii_control()),
        "{raw:?}"
    );
}

/// `None`: it is no text then.
fn decode(path: &str) -> Option<String> {
    let mut parts = path.split('%');
    let mut decoded = parts.next()?.as_bytes().to_vec();
    for part in parts {
        match part
            .get(..2)
            .filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))
        {
            Some(digits) => {
                decoded.extend(u8::from_str_radix(digits, 16));
                decoded.extend_from_slice(&part.as_bytes()[2..]);
            }
            None => {
                decoded.push(b'%');
                decoded.extend_from_slice(part.as_bytes());
            }
        }
    }
    String::from_utf8(decoded).ok()
}

fn each(path: &str, rewrite: impl Fn(&str) -> &str) -> String {
    path.split('/').map(rewrite).collect::<Vec<_>>().join("/")
}

fn merge(path: &str) -> Option<String> {
    let mut merged = path.to_owned();
    while merged.contains("//") {
        merged = merged.replace("//", "/");
    }
    Some(merged)
}

/// RFC 3986 section 5.2.4, as it is written there.
fn resolve(path: &str) -> String {
    if !path.starts_with('/') {
        return path.to_owned();
    }
    let (mut input, mut output) = (path.to_owned(), String::new());
    while !input.is_empty() {
        if input.starts_with("/./") {
            input.replace_range(..2, "");
        } else if input == "/." {
            input = "/".to_owned();
        } else if input.starts_with("/../") || input == "/.." {
            input = match input.get(3..) {
                Some("") | None => "/".to_owned(),
                Some(rest) => rest.to_owned(),
            };
            output.truncate(output.rfind('/').unwrap_or(0));
        } else {
            let end = input[1..].find('/').map_or(input.len(), |at| at + 1);
            output.push_str(&input[..end]);
            input.replace_range(..end, "");
        }
    }
    output
}
