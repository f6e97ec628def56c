//! Headers of a hop, and the sidecar's own answers with a stranger's text in them.

use http::{HeaderMap, HeaderValue};
use outrigger_proxy_transport::error::{ProxyError, Reason};
use outrigger_proxy_transport::headers::strip_hop_by_hop;
use outrigger_proxy_transport::server::{error_response, reason_of};

use super::header_lines;
use crate::Input;

const KEPT: [&str; 5] = ["host", "content-length", "transfer-encoding", "te", "trailer"];

/// Whether it is an upgrade, a reason, and lines of "name: value".
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let upgrade = input.flag();
    let reason = input.pick(&Reason::ALL);
    let rest = input.rest();
    error(reason, &String::from_utf8_lossy(rest));

    let before = header_lines(rest);
    let mut after = before.clone();
    strip_hop_by_hop(&mut after, upgrade);
    let mut again = after.clone();
    strip_hop_by_hop(&mut again, upgrade);
    assert_eq!(again, after, "not the same when it is done twice");
    assert!(after.len() <= before.len() + 1);
    assert!(!after.contains_key("keep-alive") || !before.contains_key("connection"));
    let connection: Vec<&HeaderValue> = after.get_all("connection").iter().collect();
    if upgrade && before.contains_key("upgrade") {
        assert_eq!(connection, ["upgrade"]);
    } else {
        assert!(connection.is_empty() && !after.contains_key("upgrade"));
    }
    assert!(
        after.get_all("te").iter().all(|te| te == "trailers"),
        "{:?}",
        after.get("te")
    );
    for name in named(&before) {
        let kept = KEPT.contains(&name.as_str()) || (upgrade && matches!(name.as_str(), "upgrade" | "connection"));
        assert!(kept || !after.contains_key(name.as_str()), "{name} is of this hop");
    }
    for name in KEPT.iter().filter(|name| **name != "te") {
        assert!(before.get_all(*name).iter().eq(after.get_all(*name).iter()), "{name}");
    }
}

/// What `Connection` names.
fn named(headers: &HeaderMap) -> Vec<String> {
    let values = headers.get_all("connection").iter().filter_map(|v| v.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .map(|token| token.trim().to_ascii_lowercase())
        .filter(|token| !token.is_empty())
        .collect()
}

/// The text arrives whole, in a form that a header can have.
fn error(reason: Reason, detail: &str) {
    let error = ProxyError::new(reason, detail);
    let plain = error_response(&error, false);
    assert_eq!(
        (plain.status(), reason_of(plain.headers())),
        (reason.status(), Some(reason))
    );
    let grpc = error_response(&error, true);
    let message = grpc.headers()["grpc-message"].to_str().expect("printable ASCII");
    assert!(message.len() <= 3 * (detail.len() + 32));
    assert_eq!(percent_decoded(message), format!("{detail} ({})", reason.code()));
}

fn percent_decoded(text: &str) -> String {
    let mut decoded = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        if *first == b'%' {
            let (digits, tail) = tail.split_at(2);
            let digits = std::str::from_utf8(digits).expect("digits");
            decoded.push(u8::from_str_radix(digits, 16).expect("digits"));
            rest = tail;
        } else {
            decoded.push(*first);
        }
    }
    String::from_utf8(decoded).expect("what was text")
}
