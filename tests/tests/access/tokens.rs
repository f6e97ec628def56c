//! Tokens: who calls, by more than its sidecar's word.

use http::{HeaderMap, HeaderValue, Method};
use outrigger_proxy::app::RunningProxy;
use outrigger_tests::mesh::{Authority, Http, Seen, Sidecar, heard, metric, request};
use outrigger_tests::program::Program;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::issuer::{Issuer, at, claims, with};
use super::scene::{NAMES, Scene, Witness, policies_of};
use super::{DAY, soon, until};

const NOBODYS: &str = r#"Bearer realm="outrigger""#;

/// Whoever has a token of the group may read; `more` are fields of the provider.
fn policy(issuer: &Issuer, more: &str) -> String {
    format!(
        "{{name: devs, spec: {{jwt: {{providers: [{}]}}, \
         rules: [{{name: read, sources: [{{type: JWT, jwt: {{provider: login, claims: [{{name: groups, values: [dev]}}]}}}}]}}]}}}}",
        issuer.provider(more)
    )
}

#[derive(Clone, Copy, Debug)]
enum Tongue {
    One,
    Two,
    Grpc,
}

async fn call(tongue: Tongue, by: &RunningProxy, lines: &[(&'static str, String)]) -> Seen {
    let (http, method) = match tongue {
        Tongue::One => (Http::one(), Method::GET),
        Tongue::Two => (Http::two(), Method::GET),
        Tongue::Grpc => (Http::two(), Method::POST),
    };
    let mut asks = request(method, by.outbound[0], "/shop.Orders/Get", "");
    for (name, value) in lines {
        asks.headers_mut().append(*name, value.parse().unwrap());
    }
    if matches!(tongue, Tongue::Grpc) {
        asks.headers_mut()
            .insert("content-type", HeaderValue::from_static("application/grpc"));
    }
    http.send(asks).await.unwrap()
}

fn bearer(token: &str) -> Vec<(&'static str, String)> {
    vec![("authorization", format!("Bearer {token}"))]
}

fn value<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).map(|value| value.to_str().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_no_good_token_hears_what_to_do_and_nothing_of_policies() {
    let (scene, issuer, other) = (Scene::new().await, Issuer::new("k1"), Issuer::new("k1"));
    scene.enforces(&format!("[{}]", policy(&issuer, ""))).await;
    let good = issuer.token(&claims());
    let (_, signature) = good.rsplit_once('.').unwrap();
    let none = issuer.token_with(&serde_json::json!({"alg": "none"}), &claims());
    let none = format!("{}.", none.rsplit_once('.').unwrap().0);
    let unknown = issuer.token_with(&serde_json::json!({"alg": "ES256", "kid": "k2"}), &claims());
    let other_algorithm = issuer.token_with(&serde_json::json!({"alg": "RS256", "kid": "k1"}), &claims());
    let invalid =
        |told: &str| format!(r#"Bearer realm="outrigger", error="invalid_token", error_description="{told}""#);
    let not_here = invalid("the token is not valid here");
    let twice = [bearer(&good), bearer(&good)].concat();
    let spliced = format!(
        "{}.{signature}",
        issuer.token(&with("sub", "eve")).rsplit_once('.').unwrap().0
    );
    for (what, lines, status, challenge, reason) in [
        ("no token", vec![], 401, NOBODYS, "token-required"),
        (
            "no scheme",
            vec![("authorization", good.clone())],
            401,
            NOBODYS,
            "token-required",
        ),
        (
            "another issuer's",
            bearer(&issuer.token(&with("iss", "https://evil.test"))),
            401,
            NOBODYS,
            "token-required",
        ),
        (
            "a huge one",
            bearer(&issuer.token(&with("more", "x".repeat(20_000)))),
            401,
            NOBODYS,
            "token-required",
        ),
        (
            "for others",
            bearer(&issuer.token(&with("aud", "web"))),
            401,
            &not_here,
            "token-audience",
        ),
        (
            "another key's",
            bearer(&other.token(&claims())),
            401,
            &not_here,
            "token-signature",
        ),
        ("changed", bearer(&spliced), 401, &not_here, "token-signature"),
        ("none", bearer(&none), 401, &not_here, "token-algorithm"),
        (
            "the public key as a secret",
            bearer(&issuer.with_the_public_key(&claims())),
            401,
            &not_here,
            "token-algorithm",
        ),
        (
            "another algorithm",
            bearer(&other_algorithm),
            401,
            &not_here,
            "token-algorithm",
        ),
        ("another key", bearer(&unknown), 401, &not_here, "token-unknown-key"),
        (
            "ended",
            bearer(&issuer.token(&with("exp", at(-100)))),
            401,
            &invalid("the token has expired"),
            "token-expired",
        ),
        (
            "not begun",
            bearer(&issuer.token(&with("nbf", at(300)))),
            401,
            &invalid("the token is not valid yet"),
            "token-early",
        ),
        (
            "two",
            twice,
            401,
            &invalid("there is more than one token"),
            "token-ambiguous",
        ),
        (
            "of no group",
            bearer(&issuer.token(&with("groups", "ops"))),
            403,
            "",
            "",
        ),
        ("good", bearer(&good), 200, "", ""),
    ] {
        for tongue in [Tongue::One, Tongue::Two, Tongue::Grpc] {
            let case = format!("{what}, {tongue:?}");
            let labels = ["denied", "shop/devs", &format!("reason=\"{reason}\"")];
            let labels = if reason.is_empty() { &labels[..2] } else { &labels };
            let counted = || metric(&scene.orders, "outrigger_access_total", labels);
            let (before, seen_before) = (counted(), scene.app.seen().1);
            let seen = call(tongue, &scene.web, &lines).await;
            let said = format!("{:?} {}", seen.headers, String::from_utf8_lossy(&seen.body));
            assert!(!said.contains("devs") && !said.contains("login"), "{case}: {said}");
            match tongue {
                Tongue::Grpc => {
                    let grpc = match status {
                        401 => "16",
                        403 => "7",
                        _ => "0",
                    };
                    assert_eq!(
                        (seen.status, value(&seen.headers, "grpc-status")),
                        (200, Some(grpc)),
                        "{case}"
                    );
                }
                Tongue::One | Tongue::Two => {
                    assert_eq!(seen.status, status, "{case}");
                    let told = value(&seen.headers, "www-authenticate").unwrap_or_default();
                    assert_eq!(told, challenge, "{case}");
                }
            }
            let code = match (status, challenge) {
                (200, _) => None,
                (403, _) => Some("access-denied"),
                (_, NOBODYS) => Some("token-required"),
                _ => Some("token-invalid"),
            };
            assert_eq!(seen.error(), code, "{case}");
            assert_eq!(counted() - before, u64::from(status != 200), "{case}: {reason}");
            assert_eq!(scene.app.seen().1 - seen_before, usize::from(status == 200), "{case}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_app_hears_verified_claims_and_no_forged_ones() {
    let (scene, issuer) = (Scene::new().await, Issuer::new("k1"));
    let told = ", claimToHeaders: [{claim: sub, header: X-User}, {claim: groups, header: x-groups}]";
    let open = "{name: open, spec: {exclusive: false, rules: [{sources: [{type: Any}]}]}}";
    let heard = async |lines: Vec<(&'static str, String)>| {
        assert_eq!(call(Tongue::One, &scene.web, &lines).await.status, 200);
        let heard = scene.app.heard();
        ["x-user", "x_user", "x-groups", "authorization"].map(|name| {
            let lines: Vec<&str> = heard.get_all(name).iter().map(|line| line.to_str().unwrap()).collect();
            lines.join("|")
        })
    };
    let forged = || {
        let names = ["x-user", "x-user", "x_user", "x-groups"];
        names.map(|name| (name, "root".to_owned())).to_vec()
    };
    let of = |claims: &serde_json::Value| [forged(), bearer(&issuer.token(claims))].concat();
    let (good, split) = (claims(), with("sub", "ada\r\nx-admin: 1"));
    for forward in [true, false] {
        let more = format!("{told}, forward: {forward}");
        scene.enforces(&format!("[{}, {open}]", policy(&issuer, &more))).await;
        let token = |claims: &serde_json::Value| {
            if forward {
                of(claims)[4].1.clone()
            } else {
                String::new()
            }
        };
        let lines = of(&good);
        let sent = if forward { lines[4].1.clone() } else { String::new() };
        assert_eq!(heard(lines).await, ["ada", "", "dev", &sent], "forward: {forward}");
        // A value that would be another header is left out, and so is what came in.
        let seen = heard(of(&split)).await;
        assert_eq!(seen[..3], ["", "", "dev"], "forward: {forward}");
        assert_eq!(seen[3].is_empty(), token(&split).is_empty(), "forward: {forward}");
        // Without a token, they are taken away all the same.
        assert_eq!(heard(forged()).await, ["", "", "", ""], "forward: {forward}");
        // What is for this hop alone does not take away what the sidecar says.
        let mut lines = of(&good);
        lines.push(("connection", "x-user, x-groups".to_owned()));
        assert_eq!(heard(lines).await[..3], ["ada", "", "dev"], "forward: {forward}");
        // Nobody's token is not ours to keep from the app.
        let foreign = issuer.token(&with("iss", "https://evil.test"));
        assert_eq!(heard(bearer(&foreign)).await[3], format!("Bearer {foreign}"));
    }

    // In Audit mode the app hears what came, and no token is asked for.
    let audited = policy(&issuer, &format!("{told}, forward: false")).replacen("spec: {", "spec: {mode: Audit, ", 1);
    scene.enforces(&format!("[{audited}]")).await;
    let counted = || metric(&scene.orders, "outrigger_access_total", &["audited", "shop/devs"]);
    for (lines, refuses) in [
        (forged(), 1),
        (of(&good), 0),
        (of(&with("exp", at(-100))), 1),
        (of(&with("groups", "ops")), 1),
    ] {
        let (before, token) = (counted(), lines.get(4).map(|line| line.1.clone()).unwrap_or_default());
        assert_eq!(heard(lines).await, ["root|root", "root", "root", &token]);
        assert_eq!(counted() - before, refuses);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_may_ask_for_a_workload_and_a_token() {
    let (scene, issuer) = (Scene::new().await, Issuer::new("k1"));
    let both = format!(
        "[{{name: both, spec: {{jwt: {{providers: [{}]}}, rules: [{{\
         sources: [{{type: ServiceAccount, serviceAccount: {{name: web}}}}], \
         requires: [{{type: JWT, jwt: {{provider: login, scopes: [read]}}}}]}}]}}}}]",
        issuer.provider("")
    );
    scene.enforces(&both).await;
    let (good, other) = (
        issuer.token(&with("scope", "read write")),
        issuer.token(&with("scope", "write")),
    );
    for (by, lines, status) in [
        (&scene.web, bearer(&good), 200),
        (&scene.web, bearer(&other), 403),
        (&scene.web, vec![], 401),
        (&scene.jobs, bearer(&good), 403),
        // No token would help.
        (&scene.jobs, vec![], 403),
        (&scene.jobs, bearer("a.b.c"), 403),
    ] {
        assert_eq!(call(Tongue::One, by, &lines).await.status, status, "{lines:?}");
    }
    // Bytes have no token.
    soon(heard(scene.web.outbound[1], b"\0word", 1)).await.unwrap_err();
}

/// The head of a tunnel's request is asked about again when policies change, with the token that it began with.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_keys_are_for_the_next_request() {
    let (scene, old, new) = (Scene::new().await, Issuer::new("k1"), Issuer::new("k2"));
    scene.enforces(&format!("[{}]", policy(&old, ""))).await;
    let (of_old, of_new) = (old.token(&claims()), new.token(&claims()));
    let config = String::from_utf8(Http::one().get(scene.orders.admin, "/config").await.body.into()).unwrap();
    let shown: serde_json::Value = serde_json::from_str(&config).unwrap();
    let provider = &shown["targets"]["access"]["providers"][0];
    assert_eq!(
        (provider["name"].as_str(), provider["keys"].as_u64()),
        (Some("login"), Some(1))
    );
    assert!(!config.contains("P-256"), "keys are not shown");
    let status = async |token: &str| call(Tongue::Two, &scene.web, &bearer(token)).await.status;
    assert_eq!((status(&of_old).await, status(&of_new).await), (200, 401));
    let mut chat = TcpStream::connect(scene.web.outbound[0]).await.unwrap();
    let asks = format!(
        "GET /chat HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {of_old}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
    );
    chat.write_all(asks.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(soon(chat.read_u8()).await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
    scene.enforces(&format!("[{}]", policy(&new, ""))).await;
    assert_eq!((status(&of_old).await, status(&of_new).await), (401, 200));
    chat.write_all(b"\0word").await.unwrap();
    soon(chat.read_exact(&mut [0; 5])).await.unwrap();
    // Another rule is another matter.
    let ops = policy(&new, "").replace("values: [dev]", "values: [ops]");
    scene.enforces(&format!("[{ops}]")).await;
    assert!(matches!(soon(chat.read(&mut [0; 1])).await, Ok(0) | Err(_)));
}

/// It was restarted, and where the keys are nobody answers just now.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_that_has_no_keys_yet_takes_none_away() {
    let (scene, issuer) = (Scene::new().await, Issuer::new("k1"));
    let told = |jwks: &str, place: &str| {
        let mut access = policies_of(&format!("[{}]", policy(&issuer, "")));
        let provider = &mut access.enforced[0].providers[0];
        (provider.jwks, provider.jwks_place) = (jwks.to_owned(), place.to_owned());
        scene.is_told(access)
    };
    let token = issuer.token(&claims());
    let keys = issuer.jwks();
    for (jwks, place, status) in [
        ("", "a", 401),
        (&*keys, "a", 200),
        ("", "a", 200),
        ("", "a", 200),
        // Of another place, and of none that is fetched, it knows nothing; nor of this one any more.
        ("", "b", 401),
        ("", "a", 401),
        (&*keys, "a", 200),
        ("", "", 401),
        ("", "a", 401),
    ] {
        told(jwks, place).await;
        for tongue in [Tongue::One, Tongue::Two] {
            let seen = call(tongue, &scene.web, &bearer(&token)).await;
            assert_eq!(seen.status, status, "{place:?}, {} bytes", jwks.len());
        }
    }
}

/// A key that a provider has begun to use is asked for, and no more often than once in ten seconds for a provider.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_unknown_keys_is_told_to_the_controller_once() {
    let (scene, issuer) = (Scene::new().await, Issuer::new("k1"));
    scene.enforces(&format!("[{}]", policy(&issuer, ""))).await;
    let began = std::time::Instant::now();
    for n in 0..200 {
        let header = serde_json::json!({"alg": "ES256", "kid": format!("k{n}-")});
        let seen = call(Tongue::One, &scene.web, &bearer(&issuer.token_with(&header, &claims()))).await;
        assert_eq!(seen.status, 401);
    }
    until("it is told", async || !scene.script.unknown_keys().is_empty()).await;
    let told = scene.script.unknown_keys();
    let most = 1 + began.elapsed().as_secs() as usize / 10;
    assert!((1..=most).contains(&told.len()), "{told:?}");
    assert_eq!((&*told[0].policy, &*told[0].provider), ("shop/devs", "login"));
}

/// Ten thousand different ones, with a key that is not known and with one that is: the sidecar's memory is bounded, and others are served.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_bad_tokens_leaves_nothing_behind() {
    const FLOOD: usize = 10_000;
    let authority = Authority::start(&NAMES, DAY).await;
    let (app, issuer) = (Witness::start().await, Issuer::new("k1"));
    let policies = format!("accessPolicies: [{}]", policy(&issuer, ""));
    let orders = Sidecar::new("orders").protects(app.address).with(&policies);
    let orders = Program::start("orders", orders, &authority, None).await;
    let good = format!("Bearer {}", issuer.token(&claims()));
    let http = Http::one();
    let works = async || {
        let mut asks = request(Method::GET, orders.inbound[0], "/", "");
        asks.headers_mut().insert("authorization", good.parse().unwrap());
        assert_eq!(http.send(asks).await.unwrap().status, 200);
    };
    let flood = async |times: usize, begin: usize| {
        let mut stream = TcpStream::connect(orders.inbound[0]).await.unwrap();
        let mut answer = vec![0; 4096];
        for n in begin..begin + times {
            let kid = if n % 2 == 0 { "k1".to_owned() } else { format!("k{n}") };
            let header = serde_json::json!({"alg": "ES256", "kid": kid});
            let token = issuer.token_with(&header, &with("n", n));
            let (message, signature) = token.rsplit_once('.').unwrap();
            let changed: String = signature.chars().rev().collect();
            let asks = format!("GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {message}.{changed}\r\n\r\n");
            stream.write_all(asks.as_bytes()).await.unwrap();
            let read = soon(stream.read(&mut answer)).await.unwrap();
            assert!(answer[..read].starts_with(b"HTTP/1.1 401 "), "{n}");
        }
    };
    works().await;
    flood(1_000, 0).await;
    let before = orders.memory();
    let began = std::time::Instant::now();
    flood(FLOOD, 1_000).await;
    println!("{FLOOD} in {:?}", began.elapsed());
    works().await;
    let grown = orders.memory().saturating_sub(before);
    println!("{grown} KiB more");
    assert!(grown < 8 * 1024, "{grown} KiB more");
    assert_eq!(app.seen().1, 2);
}

#[test]
fn a_file_of_a_standalone_sidecar_may_have_keys() {
    let issuer = Issuer::new("k1");
    let access = policies_of(&format!("[{}]", policy(&issuer, "")));
    let provider = &access.enforced[0].providers[0];
    assert_eq!((&*provider.name, &provider.jwks), ("login", &issuer.jwks()));
}
