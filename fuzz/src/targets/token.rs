//! Tokens, made up and signed: against a second reading of what a good one says, and what the app hears of it.

use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, HeaderValue};
use outrigger_access::jwt::{Cache, MAX_TOKEN};
use outrigger_access::{Access, Caller, Carries, Facts, Head, Verdict};
use outrigger_api::access as proto;
use outrigger_api::access::{condition, source};
use serde_json::{Value, json};

use super::header_lines;
use crate::Input;

const NOW: i64 = 1_800_000_000;
const SKEW: i64 = 60;
const HEADERS: [(&str, bool); 8] = [
    (r#"{"alg":"EdDSA","kid":"k"}"#, true),
    (r#"{"alg":"Ed25519","typ":"at+JWT"}"#, true),
    (r#"{"alg":"none"}"#, false),
    (r#"{"alg":"HS256","kid":"k"}"#, false),
    (r#"{"alg":"EdDSA","kid":"other"}"#, false),
    (r#"{"alg":"EdDSA","crit":["exp"]}"#, false),
    (r#"{"alg":"EdDSA","typ":"logout+jwt"}"#, false),
    (r#"{"kid":"k"}"#, false),
];

static KEY: LazyLock<Ed25519KeyPair> =
    LazyLock::new(|| Ed25519KeyPair::from_seed_unchecked(&[7; 32]).expect("a seed of 32 bytes"));
static ACCESS: LazyLock<Access> = LazyLock::new(|| Access::new(&message()));

/// Whoever has a token of "me" for "you".
fn message() -> proto::Access {
    let jwk = json!({"kty": "OKP", "crv": "Ed25519", "kid": "k", "x": b64(KEY.public_key().as_ref())});
    let header = |claim: &str, header: &str| proto::ClaimToHeader {
        claim: claim.to_owned(),
        header: header.to_owned(),
    };
    let provider = proto::Provider {
        name: "p".to_owned(),
        issuer: "me".to_owned(),
        audiences: vec!["you".to_owned()],
        algorithms: vec!["EdDSA".to_owned(), "ES256".to_owned(), "RS256".to_owned()],
        jwks: json!({ "keys": [jwk] }).to_string(),
        forward: false,
        claim_to_headers: vec![header("sub", "x-user"), header("/a/b", "x-inner")],
        clock_skew_ms: 60_000,
        ..proto::Provider::default()
    };
    let token = proto::Jwt {
        provider: "p".to_owned(),
        ..proto::Jwt::default()
    };
    let source = proto::Source {
        kind: Some(source::Kind::Jwt(token)),
    };
    let sources = condition::Kind::Sources(proto::Sources { any: vec![source] });
    let rule = proto::Rule {
        name: "0".to_owned(),
        conditions: vec![proto::Condition { kind: Some(sources) }],
    };
    let policy = proto::Policy {
        name: "a/b".to_owned(),
        exclusive: true,
        rules: vec![rule],
        providers: vec![provider],
        ..proto::Policy::default()
    };
    proto::Access {
        enforced: vec![policy],
        ..proto::Access::default()
    }
}

fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Header lines as they come, or the claims of a token that is signed.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    match input.flag() {
        true => signed(input.pick(&HEADERS), input.rest()),
        false => made_up(input.rest()),
    }
}

/// Who has no key makes no token; nothing that came in says who calls; and nothing grows.
fn made_up(lines: &[u8]) {
    let mut headers = header_lines(lines);
    let size = size(&headers);
    let mut cache = Cache::default();
    let allowed = ask(&mut headers, &mut cache);
    let is_ours = |name: &str| matches!(&*name.replace('_', "-"), "x-user" | "x-inner");
    if !allowed {
        assert!(headers.keys().all(|name| !is_ours(name.as_str())), "{headers:?}");
        assert!(self::size(&headers) <= size);
    }
    let before = headers.clone();
    ask(&mut headers, &mut cache);
    assert!(allowed || headers == before, "twice");
}

fn signed((header, is_good): (&'static str, bool), text: &[u8]) {
    let message = format!("{}.{}", b64(header), b64(text));
    let token = format!("{message}.{}", b64(KEY.sign(message.as_bytes()).as_ref()));
    let mut cache = Cache::default();
    let sent = || {
        let mut headers = HeaderMap::new();
        let value = HeaderValue::try_from(format!("Bearer {token}")).expect("base64 is ASCII");
        headers.insert("authorization", value);
        headers.insert("x-user", HeaderValue::from_static("root"));
        headers
    };
    let mut headers = sent();
    let allowed = ask(&mut headers, &mut cache);
    let claims: Option<Value> = serde_json::from_slice(text).ok();
    let expected = is_good && token.len() <= MAX_TOKEN && claims.as_ref().is_some_and(is_alive);
    assert!(!allowed || expected, "{header} {claims:?}");
    if expected && !allowed {
        // Two issuers are none.
        let text = String::from_utf8_lossy(text);
        assert!(text.matches("iss").count() > 1 || text.contains('\\'), "{text}");
    }
    if allowed {
        assert!(!headers.contains_key("authorization"));
        let claims = claims.expect("they are alive");
        for (name, claim) in [("x-user", claims.get("sub")), ("x-inner", claims.pointer("/a/b"))] {
            let lines = headers.get_all(name).iter().count();
            assert!(lines <= usize::from(claim.is_some()), "{headers:?}");
            if let (Some(value), Some(Value::String(text))) = (headers.get(name), claim) {
                assert_eq!(value.as_bytes(), text.as_bytes());
                assert!(text.bytes().all(|b| matches!(b, b' '..=b'~')), "{text:?}");
            }
        }
    }
    let mut again = sent();
    assert_eq!(ask(&mut again, &mut cache), allowed, "from the cache");
    assert_eq!(again, headers, "from the cache");
}

fn is_alive(claims: &Value) -> bool {
    let for_us = match &claims["aud"] {
        Value::Array(all) => all.contains(&"you".into()),
        one => *one == "you",
    };
    let (now, skew) = (NOW as f64, SKEW as f64);
    let is_date = |date: &f64| date.abs() <= 253_402_300_799.0;
    let date = |name: &str| {
        let date = claims.get(name)?;
        Some(date.as_f64().filter(is_date).map(f64::floor))
    };
    let mut beginnings = ["nbf", "iat"].iter().filter_map(|name| date(name));
    let begun = beginnings.all(|date| date.is_some_and(|date| date <= now + skew));
    let lives = date("exp").flatten().is_some_and(|ends| ends > now - skew);
    claims["iss"] == "me" && for_us && begun && lives
}

fn ask(headers: &mut HeaderMap, cache: &mut Cache) -> bool {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(NOW.unsigned_abs());
    let tokens = ACCESS.authenticate(80, headers, now, cache);
    let facts = Facts {
        port: 80,
        caller: Caller::default(),
        carries: Carries::Http(Head {
            method: "GET",
            path: "/",
            host: "",
            headers,
            tokens: &tokens,
        }),
    };
    matches!(ACCESS.decide(&facts).verdict, Verdict::Allowed(_))
}

fn size(headers: &HeaderMap) -> usize {
    headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len())
        .sum()
}
