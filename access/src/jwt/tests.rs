use std::time::{Duration, SystemTime};

use aws_lc_rs::hmac;
use serde_json::{Value, json};

use super::testing::{Signer, b64, jwks, policy, provider};
use super::*;

const NOW: u64 = 1_800_000_000;
const ISSUER: &str = "https://login.example.com";

/// A provider with one key, in a policy of its own, and what has become of requests to port 8080.
struct World {
    signer: Signer,
    message: proto::Access,
    cache: Cache,
    providers: Arc<Providers>,
    now: u64,
}

impl World {
    fn new() -> Self {
        let signer = Signer::new(Algorithm::Es256);
        let provider = provider("login", ISSUER, "orders", &[signer.jwk("k1")]);
        Self::of(signer, vec![policy("shop/orders", vec![provider])], Vec::new())
    }

    fn of(signer: Signer, enforced: Vec<proto::Policy>, audited: Vec<proto::Policy>) -> Self {
        let message = proto::Access { enforced, audited };
        Self {
            signer,
            cache: Cache::default(),
            providers: Providers::after(&message, &Providers::default()),
            message,
            now: NOW,
        }
    }

    /// The state with its first provider changed.
    fn change(&mut self, change: impl FnOnce(&mut proto::Provider)) {
        change(&mut self.message.enforced[0].providers[0]);
        self.providers = Providers::after(&self.message, &Providers::default());
    }

    fn token(&self, claims: &Value) -> String {
        self.token_with(&json!({"alg": "ES256", "kid": "k1"}), claims)
    }

    fn token_with(&self, header: &Value, claims: &Value) -> String {
        self.signer.token(Algorithm::Es256, header, claims)
    }

    fn request(&mut self, headers: &mut HeaderMap) -> Tokens {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(self.now);
        self.providers.authenticate(8080, headers, now, &mut self.cache)
    }

    /// `Ok(true)`: verified; `Ok(false)`: nobody's.
    fn bearer(&mut self, token: &str) -> Result<bool, Failure> {
        let tokens = self.request(&mut headers(&[("authorization", &format!("Bearer {token}"))]));
        result(&tokens)
    }
}

fn result(tokens: &Tokens) -> Result<bool, Failure> {
    match tokens.refused {
        Some(refused) => Err(refused.why),
        None => Ok(is_verified(tokens, 0)),
    }
}

fn is_verified(tokens: &Tokens, number: usize) -> bool {
    tokens.verified.iter().any(|verified| verified.provider == number)
}

fn headers(lines: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
    }
    headers
}

/// What a good token says; and changed.
fn claims() -> Value {
    json!({"iss": ISSUER, "aud": "orders", "sub": "ada", "exp": NOW + 600})
}

fn with(name: &str, value: impl Into<Value>) -> Value {
    let mut claims = claims();
    claims[name] = value.into();
    claims
}

fn without(name: &str) -> Value {
    let mut claims = claims();
    claims.as_object_mut().unwrap().remove(name);
    claims
}

#[test]
fn claims_of_a_token_must_be_the_policys() {
    let mut world = World::new();
    let far = 253_402_300_800_u64;
    for (what, claims, expected) in [
        ("good", claims(), Ok(true)),
        (
            "one of several audiences",
            with("aud", json!(["web", "orders"])),
            Ok(true),
        ),
        ("another audience", with("aud", "web"), Err(Failure::Audience)),
        (
            "other audiences",
            with("aud", json!(["web", "pay"])),
            Err(Failure::Audience),
        ),
        ("a longer audience", with("aud", "orders2"), Err(Failure::Audience)),
        (
            "a list in the list",
            with("aud", json!([["orders"]])),
            Err(Failure::Audience),
        ),
        ("no audience", without("aud"), Err(Failure::Audience)),
        ("null as audience", with("aud", Value::Null), Err(Failure::Audience)),
        ("another issuer", with("iss", "https://evil.example.com"), Ok(false)),
        ("a slash more", with("iss", "https://login.example.com/"), Ok(false)),
        ("another case", with("iss", "https://LOGIN.example.com"), Ok(false)),
        ("a list of issuers", with("iss", json!([ISSUER])), Ok(false)),
        ("no issuer", without("iss"), Ok(false)),
        ("no end", without("exp"), Err(Failure::Undated)),
        ("null as end", with("exp", Value::Null), Err(Failure::Undated)),
        ("a text as end", with("exp", "never"), Err(Failure::Undated)),
        ("an end that is no date", with("exp", far), Err(Failure::Undated)),
        ("an end in no time", with("exp", 1e300), Err(Failure::Undated)),
        ("an end before 1970", with("exp", -1), Err(Failure::Expired)),
        ("a fraction", with("exp", NOW as f64 + 0.5), Ok(true)),
        ("ended", with("exp", NOW - 60), Err(Failure::Expired)),
        ("ended within the skew", with("exp", NOW - 59), Ok(true)),
        ("not begun", with("nbf", NOW + 61), Err(Failure::Early)),
        ("not begun within the skew", with("nbf", NOW + 60), Ok(true)),
        ("a text as beginning", with("nbf", "now"), Err(Failure::Undated)),
        ("issued tomorrow", with("iat", NOW + 86_400), Err(Failure::Early)),
        ("issued yesterday", with("iat", NOW - 86_400), Ok(true)),
    ] {
        let token = world.token(&claims);
        assert_eq!(world.bearer(&token), expected, "{what}");
        // And again, from the cache where it is.
        assert_eq!(world.bearer(&token), expected, "{what}, again");
    }
}

#[test]
fn the_header_of_a_token_chooses_nothing() {
    let mut world = World::new();
    let key = world.signer.jwk("k1");
    let header = |name: &str, value: Value| {
        let mut header = json!({"alg": "ES256", "kid": "k1", "typ": "JWT"});
        header[name] = value;
        header
    };
    let own = Signer::new(Algorithm::Es256).jwk("k1");
    for (what, header, expected) in [
        ("good", header("x", 1.into()), Ok(true)),
        ("an access token", header("typ", "at+jwt".into()), Ok(true)),
        (
            "an access token in full",
            header("typ", "Application/AT+JWT".into()),
            Ok(true),
        ),
        ("without a type", json!({"alg": "ES256", "kid": "k1"}), Ok(true)),
        ("a logout token", header("typ", "logout+jwt".into()), Err(Failure::Type)),
        ("a DPoP proof", header("typ", "dpop+jwt".into()), Err(Failure::Type)),
        ("a type that is none", header("typ", 1.into()), Err(Failure::Malformed)),
        ("a token in a token", header("cty", "JWT".into()), Err(Failure::Type)),
        ("crit", header("crit", json!(["exp"])), Err(Failure::Critical)),
        ("an empty crit", header("crit", json!([])), Err(Failure::Critical)),
        ("crit of null", header("crit", Value::Null), Err(Failure::Critical)),
        ("b64", header("b64", false.into()), Err(Failure::Critical)),
        ("encrypted", header("enc", "A128GCM".into()), Err(Failure::Critical)),
        ("compressed", header("zip", "DEF".into()), Err(Failure::Critical)),
        ("none", header("alg", "none".into()), Err(Failure::Algorithm)),
        ("None", header("alg", "nOnE".into()), Err(Failure::Algorithm)),
        ("another curve", header("alg", "ES384".into()), Err(Failure::Algorithm)),
        (
            "another kind of key",
            header("alg", "RS256".into()),
            Err(Failure::Algorithm),
        ),
        ("no algorithm", json!({"kid": "k1"}), Err(Failure::Malformed)),
        (
            "an algorithm that is none",
            header("alg", json!(["ES256"])),
            Err(Failure::Malformed),
        ),
        (
            "another key's name",
            header("kid", "k2".into()),
            Err(Failure::UnknownKey),
        ),
        (
            "a path as name",
            header("kid", "../../k1".into()),
            Err(Failure::UnknownKey),
        ),
        ("a name that is none", header("kid", 1.into()), Err(Failure::Malformed)),
        ("no name", json!({"alg": "ES256"}), Ok(true)),
        ("a key of its own", header("jwk", own), Ok(true)),
        (
            "a place of keys",
            header("jku", "https://evil.example.com/keys".into()),
            Ok(true),
        ),
    ] {
        let token = world.token_with(&header, &claims());
        assert_eq!(world.bearer(&token), expected, "{what}");
    }

    // A key that the token brings verifies nothing.
    let forger = Signer::new(Algorithm::Es256);
    for header in [
        header("jwk", forger.jwk("k1")),
        json!({"alg": "ES256", "jwk": forger.jwk("k1"), "jku": "https://evil.example.com/keys"}),
    ] {
        let token = forger.token(Algorithm::Es256, &header, &claims());
        assert!(world.bearer(&token).is_err(), "{header}");
    }

    // The public key as a shared secret (CVE-2015-9235 and its kin).
    for secret in [
        key.to_string(),
        key["x"].as_str().unwrap().to_owned(),
        jwks(std::slice::from_ref(&key)),
        String::new(),
    ] {
        for (name, algorithm) in [("HS256", hmac::HMAC_SHA256), ("HS512", hmac::HMAC_SHA512)] {
            let message = format!(
                "{}.{}",
                b64(header("alg", name.into()).to_string()),
                b64(claims().to_string())
            );
            let tag = hmac::sign(&hmac::Key::new(algorithm, secret.as_bytes()), message.as_bytes());
            assert_eq!(
                world.bearer(&format!("{message}.{}", b64(tag))),
                Err(Failure::Algorithm)
            );
        }
    }

    // No signature, and `none`.
    let none = format!("{}.{}.", b64(r#"{"alg":"none"}"#), b64(claims().to_string()));
    assert_eq!(world.bearer(&none), Err(Failure::Algorithm));
    let good = world.token(&claims());
    let (message, _) = good.rsplit_once('.').unwrap();
    assert_eq!(world.bearer(&format!("{message}.")), Err(Failure::Signature));
}

#[test]
fn only_what_is_written_as_a_token_is_one() {
    let mut world = World::new();
    let good = world.token(&claims());
    let parts: Vec<&str> = good.split('.').collect();
    let (header, body, signature) = (parts[0], parts[1], parts[2]);
    // Two thirds are left of what base64 makes of it.
    let huge = world.token(&with("more", "x".repeat(MAX_TOKEN)));
    let large = world.token(&with("more", "x".repeat(MAX_TOKEN * 3 / 4 - 400)));
    assert!(large.len() <= MAX_TOKEN && large.len() > MAX_TOKEN - 600);
    let nested = |depth| {
        format!(
            "{{\"iss\":\"{ISSUER}\",\"deep\":{}1{}}}",
            "[".repeat(depth),
            "]".repeat(depth)
        )
    };
    let signed = |body: &str| {
        let message = format!("{header}.{}", b64(body));
        format!(
            "{message}.{}",
            b64(world.signer.sign(Algorithm::Es256, message.as_bytes()))
        )
    };
    let (deep, twice) = (
        signed(&nested(2000)),
        signed(&format!("{{\"iss\":\"{ISSUER}\",\"iss\":\"{ISSUER}\"}}")),
    );
    for (what, token, expected) in [
        ("good", good.clone(), Ok(true)),
        ("large", large, Ok(true)),
        ("huge", huge, Ok(false)),
        ("nested deep", deep, Err(Failure::Malformed)),
        ("two issuers", twice, Ok(false)),
        ("opaque", "abcdef".to_owned(), Ok(false)),
        ("empty", String::new(), Ok(false)),
        ("dots", "..".to_owned(), Ok(false)),
        ("two parts", format!("{header}.{body}"), Ok(false)),
        ("four parts", format!("{good}.{signature}"), Ok(false)),
        ("five parts, encrypted", format!("{header}.a.b.c.d"), Ok(false)),
        ("two tokens in one line", format!("{good}, Bearer {good}"), Ok(false)),
        ("padding", format!("{good}=="), Ok(false)),
        ("the other alphabet", format!("{header}.{body}.+/+/"), Ok(false)),
        ("white space inside", format!("{header}. {body}.{signature}"), Ok(false)),
        (
            "a header that is no JSON",
            format!("{}.{body}.{signature}", b64("alg")),
            Err(Failure::Malformed),
        ),
        (
            "a header of another length",
            format!("{header}A.{body}.{signature}"),
            Err(Failure::Malformed),
        ),
        (
            "a signature of a wrong length",
            format!("{header}.{body}.{signature}AAA"),
            Err(Failure::Malformed),
        ),
        (
            "another signature",
            format!("{header}.{body}.{}", b64([1; 64])),
            Err(Failure::Signature),
        ),
    ] {
        assert_eq!(world.bearer(&token), expected, "{what}");
    }
    // RFC 9110 section 11: the scheme in any case, and spaces.
    for (line, expected) in [
        (format!("bearer {good}"), Ok(true)),
        (format!("BEARER   {good}"), Ok(true)),
        (format!("Bearer{good}"), Ok(false)),
        (format!("Basic {good}"), Ok(false)),
        (format!("DPoP {good}"), Ok(false)),
        (good.clone(), Ok(false)),
        ("Bearer".to_owned(), Ok(false)),
        ("é".to_owned(), Ok(false)),
    ] {
        let mut headers = HeaderMap::new();
        headers.insert("authorization", http::HeaderValue::from_bytes(line.as_bytes()).unwrap());
        assert_eq!(result(&world.request(&mut headers)), expected, "{line}");
    }
    assert_eq!(result(&world.request(&mut HeaderMap::new())), Ok(false));
}

#[test]
fn more_than_one_token_is_refused_and_none_of_many_is_verified() {
    let mut world = World::new();
    world.change(|provider| {
        let place = |name: &str, prefix: &str| proto::TokenPlace {
            kind: Some(proto::token_place::Kind::Header(proto::TokenHeader {
                name: name.to_owned(),
                prefix: prefix.to_owned(),
            })),
        };
        provider.from = vec![
            place("authorization", "Bearer "),
            place("x-token", ""),
            proto::TokenPlace::default(),
        ];
    });
    let (one, two) = (world.token(&claims()), world.token(&with("sub", "eve")));
    let foreign = world.token(&with("iss", "https://other.example.com"));
    let (bearer_one, bearer_two) = (format!("Bearer {one}"), format!("Bearer {two}"));
    for (lines, expected) in [
        (vec![("authorization", &*bearer_one)], Ok(true)),
        (vec![("x-token", &*one)], Ok(true)),
        (
            vec![("authorization", &*bearer_one), ("authorization", &bearer_two)],
            Err(Failure::Ambiguous),
        ),
        (
            vec![("authorization", &*bearer_one), ("authorization", &bearer_one)],
            Err(Failure::Ambiguous),
        ),
        (
            vec![("authorization", "Basic YTpi"), ("authorization", &bearer_one)],
            Err(Failure::Ambiguous),
        ),
        (
            vec![("authorization", &*bearer_one), ("x-token", &two)],
            Err(Failure::Ambiguous),
        ),
        (vec![("authorization", &*bearer_one), ("x-token", "x.y.z")], Ok(true)),
        (vec![("authorization", &*bearer_one), ("x-token", &foreign)], Ok(true)),
        (vec![("authorization", "Basic YTpi"), ("x-token", &one)], Ok(true)),
        (
            vec![("authorization", "Basic YTpi"), ("authorization", "Basic YTpi")],
            Ok(false),
        ),
        (vec![("x-token", &*foreign), ("x-token", &foreign)], Ok(false)),
    ] {
        let tokens = world.request(&mut headers(&lines));
        assert_eq!(
            result(&tokens),
            expected,
            "{:?}",
            lines.iter().map(|(name, _)| name).collect::<Vec<_>>()
        );
        assert!(tokens.refused.is_none() || !is_verified(&tokens, 0));
    }
}

#[test]
fn a_token_is_for_the_providers_of_its_issuer_whose_policies_are_for_the_port() {
    let signer = Signer::new(Algorithm::Es256);
    let login = |name: &str, audience: &str| provider(name, ISSUER, audience, &[signer.jwk("k1")]);
    let other = provider("other", "https://other.example.com", "orders", &[signer.jwk("k1")]);
    let on_8080 = proto::Policy {
        ports: Some(proto::Ports { numbers: vec![8080] }),
        ..policy("shop/here", vec![login("login", "orders"), other])
    };
    let on_9090 = proto::Policy {
        ports: Some(proto::Ports { numbers: vec![9090] }),
        ..policy("shop/there", vec![login("login", "admin")])
    };
    let everywhere = policy("shop/all", vec![login("login", "mesh")]);
    let audited = policy("shop/tried", vec![login("login", "tried")]);
    let mut world = World::of(signer, vec![on_8080, on_9090, everywhere], vec![audited]);
    let number = |world: &World, policy: &str, name: &str| {
        let enforced = policy != "shop/tried";
        world.providers.of(policy, enforced).number(name).unwrap()
    };
    let (here, other, there, all, tried) = (
        number(&world, "shop/here", "login"),
        number(&world, "shop/here", "other"),
        number(&world, "shop/there", "login"),
        number(&world, "shop/all", "login"),
        number(&world, "shop/tried", "login"),
    );
    for (audience, verified, refused) in [
        (json!("orders"), vec![here], None),
        (json!("mesh"), vec![all], None),
        (json!(["orders", "mesh", "admin"]), vec![here, all], None),
        (json!(["orders", "tried"]), vec![here, tried], None),
        // Good for an audited policy alone, and for a port that was not called: bad.
        (json!("tried"), vec![tried], Some(Failure::Audience)),
        (json!("admin"), vec![], Some(Failure::Audience)),
    ] {
        let token = world.token(&with("aud", audience.clone()));
        let tokens = world.request(&mut headers(&[("authorization", &format!("Bearer {token}"))]));
        let found: Vec<_> = [here, other, there, all, tried]
            .into_iter()
            .filter(|number| is_verified(&tokens, *number))
            .collect();
        assert_eq!(found, verified, "{audience}");
        assert_eq!(tokens.refused.map(|refused| refused.why), refused, "{audience}");
    }
    // Of an audited policy's issuer alone: never refused.
    world.message.enforced.clear();
    world.providers = Providers::after(&world.message, &Providers::default());
    let token = world.token(&claims());
    assert_eq!(world.bearer(&token), Ok(false));
    assert!(world.providers.are_for(8080));
    world.message.audited.clear();
    world.providers = Providers::after(&world.message, &Providers::default());
    assert!(!world.providers.are_for(8080));
}

#[test]
fn a_new_key_is_known_at_once_and_an_old_one_no_more() {
    let mut world = World::new();
    let old = world.token(&claims());
    assert_eq!(world.bearer(&old), Ok(true));
    let before = world.signer.jwk("k1");
    world.signer = Signer::new(Algorithm::Es256);
    let new = world.token_with(&json!({"alg": "ES256", "kid": "k2"}), &claims());
    let asked = |world: &mut World, token: &str| {
        let tokens = world.request(&mut headers(&[("authorization", &format!("Bearer {token}"))]));
        let asked = world
            .providers
            .unknown_key(&tokens)
            .map(|(policy, provider)| format!("{policy} {provider}"));
        (result(&tokens), asked)
    };
    let unknown = (Err(Failure::UnknownKey), Some("shop/orders login".to_owned()));
    assert_eq!(asked(&mut world, &new), unknown);
    assert_eq!(asked(&mut world, &new), unknown, "from the cache too");
    let nameless = world.token_with(&json!({"alg": "ES256"}), &claims());
    assert_eq!(asked(&mut world, &nameless), unknown, "it may be a new key's");
    assert_eq!(asked(&mut world, &old), (Ok(true), None));
    let (both, after) = (vec![before, world.signer.jwk("k2")], vec![world.signer.jwk("k2")]);
    world.change(|provider| provider.jwks = jwks(&both));
    for token in [&old, &new, &nameless] {
        assert_eq!(asked(&mut world, token), (Ok(true), None));
    }
    world.change(|provider| provider.jwks = jwks(&after));
    assert_eq!(asked(&mut world, &new), (Ok(true), None));
    assert_eq!(asked(&mut world, &old), unknown);
    // No keys yet: nothing is verified.
    world.change(|provider| provider.jwks.clear());
    assert_eq!(asked(&mut world, &new), unknown);
    // What a policy does not say, it does not allow.
    world.change(|provider| (provider.jwks, provider.algorithms) = (jwks(&after), Vec::new()));
    assert_eq!(world.bearer(&new), Err(Failure::Algorithm));
    world.change(|provider| provider.algorithms = vec!["RS256".to_owned(), "none".to_owned()]);
    assert_eq!(world.bearer(&new), Err(Failure::Algorithm));
    world.change(|provider| {
        provider.algorithms = vec!["ES256".to_owned()];
        provider.audiences.clear();
    });
    assert_eq!(world.bearer(&new), Err(Failure::Audience));
}

#[test]
fn a_token_that_is_kept_ends_when_it_says() {
    let mut world = World::new();
    let token = world.token(&with("nbf", NOW + 100));
    for (now, expected) in [
        (NOW, Err(Failure::Early)),
        (NOW + 39, Err(Failure::Early)),
        (NOW + 40, Ok(true)),
        (NOW + 659, Ok(true)),
        (NOW + 660, Err(Failure::Expired)),
        // A clock that is set back.
        (NOW + 500, Ok(true)),
        (NOW, Err(Failure::Early)),
    ] {
        world.now = now;
        assert_eq!(world.bearer(&token), expected, "at {now}");
    }
}

#[test]
fn the_app_hears_what_was_verified_and_nothing_that_came_in() {
    let mut world = World::new();
    world.change(|provider| {
        let to = |claim: &str, header: &str| proto::ClaimToHeader {
            claim: claim.to_owned(),
            header: header.to_owned(),
        };
        provider.forward = false;
        provider.claim_to_headers = vec![
            to("sub", "X-User"),
            to("/realm/roles", "x-roles"),
            to("level", "x-level"),
            to("admin", "x-admin"),
            to("name", "x-name"),
            to("missing", "x-missing"),
            to("realm", "x-realm"),
            to("not a header", "x y"),
        ];
    });
    let mut said = claims();
    said["realm"] = json!({"roles": ["a", "b"]});
    said["level"] = 3.into();
    said["admin"] = false.into();
    said["name"] = "Zoë\r\nx-admin: true".into();
    let token = format!("Bearer {}", world.token(&said));
    let forged = [
        ("x-user", "root"),
        ("x-user", "root2"),
        ("X_User", "root"),
        ("x-roles", "admin"),
        ("x-name", "root"),
        ("x-missing", "root"),
        ("x-realm", "root"),
        ("x-userx", "stays"),
    ];
    let lines = |more: &[(&str, &str)]| headers(&[&forged[..], more].concat());
    let mut with_token = lines(&[("authorization", &token)]);
    assert_eq!(result(&world.request(&mut with_token)), Ok(true));
    let expected = headers(&[
        ("x-userx", "stays"),
        ("x-user", "ada"),
        ("x-roles", "a,b"),
        ("x-level", "3"),
        ("x-admin", "false"),
    ]);
    assert_eq!(with_token, expected);

    let mut bare = lines(&[]);
    assert_eq!(result(&world.request(&mut bare)), Ok(false));
    assert_eq!(bare, headers(&[("x-userx", "stays")]));

    // Another one's token goes on.
    let mut foreign = lines(&[("authorization", "Bearer opaque")]);
    world.request(&mut foreign);
    assert_eq!(
        foreign,
        headers(&[("x-userx", "stays"), ("authorization", "Bearer opaque")])
    );

    // Where the policy is only tried, nothing changes.
    world.message.audited = std::mem::take(&mut world.message.enforced);
    world.providers = Providers::after(&world.message, &Providers::default());
    let mut audited = lines(&[("authorization", &token)]);
    assert_eq!(result(&world.request(&mut audited)), Ok(true));
    assert_eq!(audited, lines(&[("authorization", &token)]));
}

#[test]
fn a_claim_is_a_header_only_where_the_app_reads_the_same() {
    let claims = Claims(json!({
        "text": "a b", "line": "a\r\nx: y", "nul": "a\0", "utf8": "Zoë", "space": " a", "empty": "", "long": "x".repeat(4097),
        "most": "x".repeat(4096), "commas": ["a,b", "c"], "mixed": ["a", 1, true], "object": {"a": 1}, "float": 1.5, "null": null,
        "list": [["a"]], "none": [], "big": 18_446_744_073_709_551_615_u64, "negative": -5, "tab": "a\tb",
    }));
    let header = |name: &str| claims.header(&ClaimName::new(name));
    for (name, expected) in [
        ("text", "a b"),
        ("mixed", "a,1,true"),
        ("big", "18446744073709551615"),
        ("negative", "-5"),
    ] {
        assert_eq!(header(name).unwrap(), expected, "{name}");
    }
    assert!(header("most").is_some());
    for name in [
        "line", "nul", "utf8", "space", "empty", "long", "commas", "object", "float", "null", "list", "none", "tab",
        "absent",
    ] {
        assert_eq!(header(name), None, "{name}");
    }
}

#[test]
fn claims_and_scopes_are_met_by_what_stands_there() {
    let claims = Claims(json!({
        "groups": ["dev", "ops"], "sub": "ada", "level": 3, "admin": true, "https://example.com/roles": ["r"], "a.b": "dotted",
        "a": {"b": "inner", "c/d": "slash"}, "float": 1.0, "scope": "read  write", "scp": ["admin", 5], "list": [["dev"]],
    }));
    for (name, values, expected) in [
        ("groups", vec!["ops"], true),
        ("groups", vec!["no", "dev"], true),
        ("groups", vec!["de"], false),
        ("groups", vec!["dev,ops"], false),
        ("groups", vec![], false),
        ("sub", vec!["ada"], true),
        ("sub", vec!["Ada"], false),
        ("level", vec!["3"], true),
        ("admin", vec!["true"], true),
        ("admin", vec!["True", "1"], false),
        ("float", vec!["1.0", "1"], false),
        ("https://example.com/roles", vec!["r"], true),
        ("a.b", vec!["dotted"], true),
        ("a.b", vec!["inner"], false),
        ("/a/b", vec!["inner"], true),
        ("/a/c~1d", vec!["slash"], true),
        ("/groups/0", vec!["dev"], true),
        ("/absent", vec!["null", ""], false),
        ("absent", vec!["null", ""], false),
        ("a", vec!["inner"], false),
        ("list", vec!["dev"], false),
    ] {
        let values: Vec<String> = values.into_iter().map(str::to_owned).collect();
        assert_eq!(
            claims.matches(&ClaimName::new(name), &values),
            expected,
            "{name} {values:?}"
        );
    }
    for (scope, expected) in [
        ("read", true),
        ("write", true),
        ("admin", true),
        ("rea", false),
        ("", false),
        ("5", false),
    ] {
        assert_eq!(claims.has_scope(scope), expected, "{scope:?}");
    }
}

/// RFC 6750 section 3.1: what a client hears is of the token, and never of the policy. The words are in a quoted-string there.
#[test]
fn what_a_client_hears_is_plain() {
    for failure in [
        Failure::Malformed,
        Failure::Audience,
        Failure::Expired,
        Failure::Early,
        Failure::Ambiguous,
    ] {
        assert!(failure.told().bytes().all(|b| b.is_ascii_alphabetic() || b == b' '));
        assert!(!failure.to_string().is_empty());
    }
}

/// A controller that was started again has not fetched any keys yet: what a sidecar knows of the same place is good.
#[test]
fn keys_that_are_not_known_yet_are_those_of_before_from_the_same_place() {
    let signer = Signer::new(Algorithm::Es256);
    let at = |place: &str, keys: &[Value]| proto::Provider {
        jwks_place: place.to_owned(),
        jwks: if keys.is_empty() { String::new() } else { jwks(keys) },
        ..provider("login", ISSUER, "orders", &[])
    };
    let one = [signer.jwk("k1")];
    let state = |provider: &proto::Provider, before: &Providers| {
        let message = proto::Access {
            enforced: vec![policy("a", vec![provider.clone()])],
            audited: Vec::new(),
        };
        Providers::after(&message, before)
    };
    let keys = |providers: &Providers| providers.all[0].keys.len();
    let first = state(&at("p", &one), &Providers::default());
    assert_eq!(keys(&first), 1);
    let narrow = proto::Provider {
        algorithms: vec!["EdDSA".to_owned()],
        ..at("p", &[])
    };
    for (next, then) in [
        (at("p", &[]), 1),
        (at("other", &[]), 0),
        // None, and not: none yet.
        (at("", &[]), 0),
        // What the policy says of algorithms is never what it said before.
        (narrow, 0),
        (at("p", &one), 1),
    ] {
        assert_eq!(keys(&state(&next, &first)), then, "{next:?}");
    }
    // Through any number of restarts, and not by another place.
    let later = state(&at("p", &[]), &state(&at("p", &[]), &first));
    assert_eq!(keys(&later), 1);
    let back = state(&at("p", &[]), &state(&at("other", &[]), &first));
    assert_eq!(keys(&back), 0);
    // Without a state before there are none, and a state that knows no places has none to give.
    assert_eq!(keys(&state(&at("p", &[]), &Providers::default())), 0);
    let old = state(&at("", &one), &Providers::default());
    assert_eq!((keys(&old), keys(&state(&at("", &[]), &old))), (1, 0));
}

/// Two policies of one place may have been told different sets: each goes on with its own, and who has none with the other's.
#[test]
fn keys_of_before_are_a_providers_own_where_it_has_some() {
    let signer = Signer::new(Algorithm::Es256);
    let at = |keys: &[Value]| proto::Provider {
        jwks_place: "p".to_owned(),
        jwks: if keys.is_empty() { String::new() } else { jwks(keys) },
        algorithms: vec!["ES256".to_owned()],
        ..provider("login", ISSUER, "orders", &[])
    };
    let state = |a: &[Value], b: &[Value], before: &Providers| {
        let message = proto::Access {
            enforced: vec![policy("a", vec![at(a)]), policy("b", vec![at(b)])],
            audited: Vec::new(),
        };
        let providers = Providers::after(&message, before);
        let keys = [0, 1].map(|n| providers.all[n].keys.len());
        (providers, keys)
    };
    let (two, one) = ([signer.jwk("k1"), signer.jwk("k2")], [signer.jwk("k2")]);
    let other = [Signer::new(Algorithm::EdDsa).jwk("k3")];
    for (a, b, then) in [
        (&two[..], &one[..], [2, 1]),
        (&one, &two, [1, 2]),
        (&[], &one, [1, 1]),
        // It is known, and has none for the policy's algorithms.
        (&other, &one, [0, 1]),
        (&one, &[], [1, 1]),
    ] {
        let (first, _) = state(a, b, &Providers::default());
        assert_eq!(state(&[], &[], &first).1, then);
    }
}

/// A signature is verified once for all policies of an issuer, and each has its own say on the rest.
#[test]
fn providers_with_the_same_keys_share_them_and_nothing_else() {
    let signer = Signer::new(Algorithm::Es256);
    let of = |audience: &str| provider("login", ISSUER, audience, &[signer.jwk("k1")]);
    let narrow = proto::Provider {
        algorithms: vec!["EdDSA".to_owned()],
        ..of("orders")
    };
    let policies = [
        ("a", of("orders")),
        ("b", of("web")),
        ("c", narrow),
        ("d", of("orders")),
    ];
    let policies = policies.map(|(name, provider)| policy(name, vec![provider]));
    let mut world = World::of(signer, policies.into(), Vec::new());
    let keys = |n: usize| Arc::as_ptr(&world.providers.all[n].keys);
    assert!(keys(0) == keys(1) && keys(0) == keys(3) && keys(0) != keys(2));
    let token = world.token(&claims());
    let tokens = world.request(&mut headers(&[("authorization", &format!("Bearer {token}"))]));
    let verified = [0, 1, 2, 3].map(|number| is_verified(&tokens, number));
    assert_eq!(verified, [true, false, false, true]);
}

#[test]
fn each_reason_is_a_word_and_documented() {
    let all = [
        Failure::Malformed,
        Failure::Type,
        Failure::Critical,
        Failure::Algorithm,
        Failure::UnknownKey,
        Failure::Signature,
        Failure::Audience,
        Failure::Undated,
        Failure::Expired,
        Failure::Early,
        Failure::Ambiguous,
    ];
    let documentation = include_str!("../../../docs/configuration.md");
    for failure in all {
        let code = failure.code();
        assert!(documentation.contains(&format!("`{code}`")), "{code}");
        assert_eq!(all.iter().filter(|other| other.code() == code).count(), 1, "{code}");
    }
}

/// What becomes of requests to rules that ask for tokens.
mod decided {
    use std::slice::from_ref;

    use outrigger_api::access::{Condition, Source, condition, source};
    use outrigger_api::spiffe::SpiffeId;

    use super::*;
    use crate::{Access, Caller, Carries, Facts, Head, Verdict};

    fn sources(any: &[source::Kind]) -> Condition {
        let any = any.iter().map(|kind| Source {
            kind: Some(kind.clone()),
        });
        Condition {
            kind: Some(condition::Kind::Sources(proto::Sources { any: any.collect() })),
        }
    }

    fn token(provider: &str, claims: &[(&str, &str)], scopes: &[&str]) -> source::Kind {
        let claim = |(name, value): &(&str, &str)| proto::ClaimMatch {
            name: (*name).to_owned(),
            values: vec![(*value).to_owned()],
        };
        source::Kind::Jwt(proto::Jwt {
            provider: provider.to_owned(),
            claims: claims.iter().map(claim).collect(),
            scopes: scopes.iter().map(|scope| (*scope).to_owned()).collect(),
            policy: String::new(),
        })
    }

    fn workload(name: &str) -> source::Kind {
        let kind = proto::identity::Kind::Exact(format!("spiffe://cluster.local/ns/shop/sa/{name}"));
        source::Kind::Identity(proto::Identity { kind: Some(kind) })
    }

    fn head<'a>(headers: &'a HeaderMap, tokens: &'a Tokens) -> Head<'a> {
        Head {
            method: "GET",
            path: "/",
            host: "orders",
            headers,
            tokens,
        }
    }

    struct Asked {
        world: World,
        access: Access,
    }

    impl Asked {
        fn new(deny: bool, rules: Vec<Vec<Condition>>) -> Self {
            let signer = Signer::new(Algorithm::Es256);
            let provider = provider("login", ISSUER, "orders", &[signer.jwk("k1")]);
            let rules = rules.into_iter().enumerate().map(|(n, conditions)| proto::Rule {
                name: n.to_string(),
                conditions,
            });
            let policy = proto::Policy {
                deny,
                exclusive: !deny,
                rules: rules.collect(),
                ..policy("shop/orders", vec![provider])
            };
            let world = World::of(signer, vec![policy], Vec::new());
            let access = Access::new(&world.message);
            Self { world, access }
        }

        /// "allowed by 0", "refused, wants a token" …
        fn ask(&mut self, from: Option<&str>, claims: Option<&Value>) -> String {
            let mut headers = HeaderMap::new();
            if let Some(claims) = claims {
                let token = self.world.token(claims);
                headers.insert("authorization", format!("Bearer {token}").parse().unwrap());
            }
            let now = SystemTime::UNIX_EPOCH + Duration::from_secs(NOW);
            let tokens = self.access.authenticate(8080, &mut headers, now, &mut self.world.cache);
            let identity: Option<SpiffeId> =
                from.map(|name| format!("spiffe://cluster.local/ns/shop/sa/{name}").parse().unwrap());
            self.decide(identity.as_ref(), Carries::Http(head(&headers, &tokens)))
        }

        fn decide(&self, identity: Option<&SpiffeId>, carries: Carries<'_>) -> String {
            let caller = Caller {
                identity,
                address: None,
            };
            let facts = Facts {
                port: 8080,
                caller,
                carries,
            };
            match self.access.decide(&facts).verdict {
                Verdict::Allowed(None) => "allowed".to_owned(),
                Verdict::Allowed(Some(by)) => format!("allowed by {}", by.rule),
                Verdict::Denied(by) => format!("denied by {}", by.rule),
                Verdict::Refused { wants_token: true, .. } => "refused, wants a token".to_owned(),
                Verdict::Refused { .. } => "refused".to_owned(),
                Verdict::InvalidToken { policy, provider, why } => format!("{policy} {provider}: {why:?}"),
            }
        }
    }

    #[test]
    fn a_rule_may_ask_for_a_workload_and_a_token() {
        let admin = token("login", &[("groups", "admin")], &["write"]);
        let mut asked = Asked::new(
            false,
            vec![
                vec![sources(&[workload("web")]), sources(from_ref(&admin))],
                vec![sources(&[token("login", &[], &["health"])])],
                vec![sources(&[token("nobody", &[], &[])])],
            ],
        );
        let mut good = with("groups", json!(["admin"]));
        good["scope"] = "read write".into();
        let mut other = good.clone();
        other["groups"] = "users".into();
        let (health, expired) = (with("scope", "health"), with("exp", NOW - 100));
        for (from, claims, expected) in [
            (Some("web"), Some(&good), "allowed by 0"),
            (Some("web"), Some(&other), "refused"),
            (Some("web"), None, "refused, wants a token"),
            (Some("pay"), Some(&good), "refused"),
            (None, Some(&good), "refused"),
            // A token for the second rule would do.
            (Some("pay"), None, "refused, wants a token"),
            (None, None, "refused, wants a token"),
            (None, Some(&health), "allowed by 1"),
            (Some("web"), Some(&expired), "shop/orders login: Expired"),
        ] {
            assert_eq!(asked.ask(from, claims), expected, "{from:?} {claims:?}");
        }
        assert_eq!(asked.decide(None, Carries::Bytes), "refused");

        // Where no token could change it, none is asked for.
        let mut asked = Asked::new(
            false,
            vec![vec![sources(&[workload("web")]), sources(from_ref(&admin))]],
        );
        assert_eq!(asked.ask(Some("pay"), None), "refused");
        assert_eq!(asked.ask(Some("web"), None), "refused, wants a token");
        let mut asked = Asked::new(false, vec![vec![sources(&[workload("web")])]]);
        assert_eq!(asked.ask(Some("pay"), None), "refused");
        // A bad one is refused also where a rule would let its bearer in.
        assert_eq!(asked.ask(Some("web"), None), "allowed by 0");
        assert_eq!(asked.ask(Some("web"), Some(&expired)), "shop/orders login: Expired");
    }

    /// What goes on is decided on again with the token that it began with.
    #[test]
    fn a_token_is_good_for_what_began_with_it_while_its_provider_is_the_same() {
        let mut asked = Asked::new(false, vec![vec![sources(&[token("login", &[("sub", "ada")], &[])])]]);
        let mut headers = headers(&[("authorization", &format!("Bearer {}", asked.world.token(&claims())))]);
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(NOW);
        let tokens = asked
            .access
            .authenticate(8080, &mut headers, now, &mut asked.world.cache);
        let mut decided = |change: &dyn Fn(&mut proto::Access)| {
            let mut message = asked.world.message.clone();
            change(&mut message);
            asked.access = Access::new(&message);
            asked.decide(None, Carries::Http(head(&headers, &tokens)))
        };
        let first = |message: &mut proto::Access| message.enforced[0].providers.remove(0);
        assert_eq!(decided(&|_| {}), "allowed by 0");
        // Its key has gone, and another provider has its number.
        let rotated = |message: &mut proto::Access| {
            let mut login = first(message);
            login.jwks = jwks(&[]);
            let other = provider("other", ISSUER, "orders", &[]);
            message.enforced[0].providers = vec![other, login];
        };
        assert_eq!(decided(&rotated), "allowed by 0");
        let other_rule = |message: &mut proto::Access| {
            message.enforced[0].rules[0].conditions = vec![sources(&[token("login", &[("sub", "bob")], &[])])];
        };
        assert_eq!(decided(&other_rule), "refused");
        let other_audience =
            |message: &mut proto::Access| message.enforced[0].providers[0].audiences = vec!["web".to_owned()];
        assert_eq!(decided(&other_audience), "refused, wants a token");
        let other_issuer = |message: &mut proto::Access| message.enforced[0].providers[0].issuer += "/";
        assert_eq!(decided(&other_issuer), "refused, wants a token");
        // One number, another provider.
        let swapped = |message: &mut proto::Access| {
            let login = first(message);
            message.enforced[0].providers = vec![provider("other", ISSUER, "orders", &[]), login];
            message.enforced[0].rules[0].conditions = vec![sources(&[token("other", &[], &[])])];
        };
        assert_eq!(decided(&swapped), "refused, wants a token");
    }

    #[test]
    fn a_rule_that_denies_is_met_by_its_token_and_by_what_hides_one() {
        let banned = token("login", &[("sub", "eve")], &[]);
        let mut asked = Asked::new(true, vec![vec![sources(from_ref(&banned))]]);
        assert_eq!(asked.ask(None, Some(&with("sub", "eve"))), "denied by 0");
        assert_eq!(asked.ask(None, Some(&claims())), "allowed");
        assert_eq!(asked.ask(None, None), "allowed");
        // Bytes may hide it.
        assert_eq!(asked.decide(None, Carries::Bytes), "denied by 0");
        // Faulty values match everybody in a rule that denies, and nobody in one that allows.
        let faulty = source::Kind::Jwt(proto::Jwt {
            provider: "login".to_owned(),
            claims: vec![proto::ClaimMatch::default()],
            scopes: Vec::new(),
            policy: String::new(),
        });
        let mut asked = Asked::new(true, vec![vec![sources(from_ref(&faulty))]]);
        assert_eq!(asked.ask(None, Some(&claims())), "denied by 0");
        let mut asked = Asked::new(false, vec![vec![sources(&[faulty])]]);
        assert_eq!(asked.ask(None, Some(&claims())), "refused");
    }
}
