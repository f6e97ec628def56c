use serde_json::{Value, json};

use super::super::testing::{Signer, b64, jwks};
use super::*;

/// Appendix A.2 to A.4 of RFC 7515, and appendix A.4 of RFC 8037: keys and signatures that others made.
const RFC_CLAIMS: &str =
    "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
const RFC_RSA: &str = "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-p\
     CgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9k\
     G4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ";
const RFC_RS256: &str = "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dn\
     ZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1p\
     hCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw";
const RFC_ES256: &str = "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
const RFC_ES512: &str = "AdwMgeerwtHoh-l192l60hp9wAHZFVJbLfD_UxMi70cwnZOYaRI1bKPWROc-mZZqwqT2SI-KGDKB34XO0aw_7XdtAG8GaSwFKdCAPZgoXD2YBJZCPEX3\
     xKpRwcdOO8KpEHwJjyqOgzDO7iKvU8vcnwNrmxYbSW9ERBXukOXolLzeO_Jn";
const RFC_EDDSA: &str = "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";

fn keys(set: &[Value], algorithms: &[Algorithm]) -> Keys {
    Keys::new(jwks(set).as_bytes(), algorithms)
}

#[test]
fn what_others_signed_is_verified_and_nothing_else() {
    let claims = format!("eyJhbGciOiJSUzI1NiJ9.{RFC_CLAIMS}");
    for (algorithm, key, message, signature) in [
        (
            Algorithm::Rs256,
            json!({"kty": "RSA", "n": RFC_RSA, "e": "AQAB"}),
            claims,
            RFC_RS256,
        ),
        (
            Algorithm::Es256,
            json!({
                "kty": "EC", "crv": "P-256",
                "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
            }),
            format!("eyJhbGciOiJFUzI1NiJ9.{RFC_CLAIMS}"),
            RFC_ES256,
        ),
        (
            Algorithm::Es512,
            json!({
                "kty": "EC", "crv": "P-521",
                "x": "AekpBQ8ST8a8VcfVOTNl353vSrDCLLJXmPk06wTjxrrjcBpXp5EOnYG_NjFZ6OvLFV1jSfS9tsz4qUxcWceqwQGk",
                "y": "ADSmRA43Z1DSNx_RvcLI87cdL07l6jQyyBXMoxVg_l2Th-x3S1WDhjDly79ajL4Kkd0AZMaZmh9ubmf63e3kyMj2",
            }),
            "eyJhbGciOiJFUzUxMiJ9.UGF5bG9hZA".to_owned(),
            RFC_ES512,
        ),
        (
            Algorithm::EdDsa,
            json!({"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}),
            "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc".to_owned(),
            RFC_EDDSA,
        ),
    ] {
        let keys = keys(&[key], &Algorithm::ALL);
        let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
        let name = algorithm.name();
        assert_eq!(
            keys.verify(None, algorithm, message.as_bytes(), &signature),
            Ok(()),
            "{name}"
        );
        let mut other = signature.clone();
        other[10] ^= 1;
        for (message, signature) in [
            (message.as_str(), &*other),
            (&message[1..], &*signature),
            (&message, &signature[1..]),
            (&message, &[]),
        ] {
            let refused = keys.verify(None, algorithm, message.as_bytes(), signature);
            assert_eq!(refused, Err(NotVerified::NoKey), "{name}");
        }
        for other in Algorithm::ALL.into_iter().filter(|other| *other != algorithm) {
            let refused = keys.verify(None, other, message.as_bytes(), &signature);
            assert!(refused.is_err(), "{name} as {}", other.name());
        }
    }
}

#[test]
fn each_algorithm_is_verified_with_a_key_of_its_kind() {
    for algorithm in Algorithm::ALL {
        let signer = Signer::new(algorithm);
        let signature = signer.sign(algorithm, b"message");
        let mut key = signer.jwk("k");
        let verify = |key: &Value, allowed: &[Algorithm]| {
            keys(std::slice::from_ref(key), allowed).verify(Some("k"), algorithm, b"message", &signature)
        };
        assert_eq!(verify(&key, &Algorithm::ALL), Ok(()), "{}", algorithm.name());
        assert_eq!(verify(&key, &[]), Err(NotVerified::WrongKey));
        key["alg"] = algorithm.name().into();
        assert_eq!(verify(&key, &[algorithm]), Ok(()));
        // A key is for the algorithm that it says, and for that alone (RFC 7517 section 4.4).
        let other = Algorithm::ALL.into_iter().find(|other| *other != algorithm).unwrap();
        key["alg"] = other.name().into();
        assert!(verify(&key, &Algorithm::ALL).is_err());
    }
    assert_eq!(Algorithm::named("Ed25519"), Some(Algorithm::EdDsa));
    for none in [
        "none", "None", "", "HS256", "HS512", "rs256", "RS1", "ES256K", "RSA-OAEP", "Ed448",
    ] {
        assert_eq!(Algorithm::named(none), None, "{none}");
    }
}

#[test]
fn what_is_wrong_with_a_key_is_said_and_the_others_are_used() {
    let good = Signer::new(Algorithm::Es256).jwk("good");
    let weak = json!({"kty": "RSA", "kid": "weak", "n": b64([0xff; 128]), "e": "AQAB"});
    let huge = json!({"kty": "RSA", "kid": "huge", "n": b64([0xff; 1025]), "e": "AQAB"});
    let padded =
        json!({"kty": "RSA", "kid": "padded", "n": b64([vec![0; 200], vec![0xff; 128]].concat()), "e": "AQAB"});
    let rsa = |kid: &str, e: &[u8]| json!({"kty": "RSA", "kid": kid, "n": b64([0xff; 256]), "e": b64(e)});
    let with = |kid: &str, name: &str, value: Value| {
        let mut key = good.clone();
        (key["kid"], key[name]) = (kid.into(), value);
        key
    };
    let set = [
        with("encrypts", "use", "enc".into()),
        with("ops", "key_ops", json!(["sign"])),
        with("shared", "alg", "HS256".into()),
        with("other", "alg", "RS256".into()),
        with("curve", "crv", "secp256k1".into()),
        with("short", "x", b64([1; 31]).into()),
        with("off", "x", b64([1; 32]).into()),
        with("text", "x", "=?".into()),
        with("typed", "x", 5.into()),
        with("listed", "alg", json!(["ES256"])),
        with("untold", "key_ops", json!([{}, "verify"])),
        with("bell\u{7}", "crv", "P-256".into()),
        json!({"kty": "oct", "kid": "secret", "k": b64([1; 32])}),
        json!({"kty": "OKP", "kid": "448", "crv": "Ed448", "x": b64([1; 57])}),
        json!({"kid": "bare"}),
        json!("no object"),
        with(&"k".repeat(MAX_KID + 1), "crv", "P-256".into()),
        weak,
        huge,
        padded,
        rsa("even", &[2]),
        rsa("one", &[0, 1]),
        rsa("zero", &[]),
        rsa("large", &[0xff; 9]),
        good.clone(),
    ];
    let reading = KeySet::read(jwks(&set).as_bytes()).unwrap();
    let why = reading.unusable.join("\n");
    assert_eq!(reading.usable.len(), 1, "{why}");
    for part in [
        "key \"encrypts\": its use is not sig",
        "key \"ops\": its key_ops have no verify",
        "key \"shared\": its alg is \"HS256\"",
        "key \"other\": no algorithm is left for it",
        "key \"curve\": its crv is \"secp256k1\"",
        "key \"short\": its x has 31 bytes and not 32",
        "key \"off\": it is no valid key",
        "key \"text\": its x is not base64url",
        "key \"typed\": a member of it has the wrong type",
        "key \"listed\": a member of it has the wrong type",
        "key \"untold\": a member of it has the wrong type",
        "its kid has control characters",
        "key \"secret\": its kty is \"oct\"",
        "key \"448\": its crv is \"Ed448\"",
        "key \"bare\": its kty is \"\"",
        "key 15: a member of it has the wrong type",
        "its kid is longer than 256 bytes",
        "key \"weak\": an RSA key of 1024 bits; it must have 2048 to 8192",
        "key \"huge\": an RSA key of 8200 bits",
        "key \"padded\": an RSA key of 1024 bits",
        "key \"even\": its e is no exponent of RSA",
        "key \"one\": its e is no exponent of RSA",
        "key \"zero\": its e is no exponent of RSA",
        "key \"large\": its e is no exponent of RSA",
    ] {
        assert!(why.contains(part), "{part} is not in\n{why}");
    }
    assert_eq!(reading.unusable.len(), 24, "{why}");
    // What goes to sidecars is what can be used, without what is said beside it.
    let mut said = good;
    said["x5c"] = json!(["…"]);
    let reading = KeySet::read(jwks(&[said]).as_bytes()).unwrap();
    let sent = reading.usable.to_json();
    assert!(!sent.contains("x5c"));
    assert_eq!(KeySet::read(sent.as_bytes()), Ok(reading));
}

#[test]
fn what_is_no_set_of_keys_is_refused_as_a_whole() {
    let key = Signer::new(Algorithm::EdDsa).jwk("k");
    let too_many: Vec<Value> = vec![key.clone(); MAX_KEYS + 1];
    assert_eq!(
        KeySet::read(jwks(&too_many[1..]).as_bytes()).unwrap().usable.len(),
        MAX_KEYS
    );
    let deep = format!("{{\"keys\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    for (json, why) in [
        (jwks(&too_many), "65 keys"),
        (jwks(&[]), "no keys"),
        (
            jwks(&[json!({"kty": "oct"})]),
            "none of its keys can be used: key 0: its kty is \"oct\"",
        ),
        ("<html>".to_owned(), "no JWK Set (line 1, column 1)"),
        (String::new(), "no JWK Set"),
        ("{}".to_owned(), "no JWK Set"),
        (key.to_string(), "no JWK Set"),
        ("{\"keys\": {}}".to_owned(), "no JWK Set"),
        (
            deep,
            "none of its keys can be used: key 0: a member of it has the wrong type",
        ),
        ("{\"keys\": []} more".to_owned(), "no JWK Set"),
        ("{\"keys\": [], \"keys\": []}".to_owned(), "no JWK Set"),
        (
            format!("{{\"keys\": [{}0]}}", "{\"\":0},".repeat(MAX_ELEMENTS)),
            "257 keys, usable or not",
        ),
        (
            format!("{{\"keys\": [], \"more\": \"{}\"}}", "x".repeat(MAX_JWKS)),
            "larger than",
        ),
    ] {
        let error = KeySet::read(json.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
        assert!(Keys::new(json.as_bytes(), &Algorithm::ALL).0.is_empty());
    }
}

/// What sidecars are told, and hold, is bounded by the keys and not by what is around them.
#[test]
fn of_a_usable_key_nothing_is_kept_that_it_does_not_need() {
    let long = "A".repeat(20_000);
    let mut ec = Signer::new(Algorithm::Es256).jwk("ec");
    ec["use"] = "sig".into();
    ec["alg"] = "ES256".into();
    let ed = Signer::new(Algorithm::EdDsa).jwk("ed");
    let n = [vec![0; 3_000], vec![0xff; 1024]].concat();
    let rsa =
        json!({"kty": "RSA", "kid": "\"".repeat(MAX_KID), "alg": "RS256", "n": b64(n), "e": b64([0, 0, 1, 0, 1])});
    let mut canonical = vec![ec.clone(), ed.clone(), rsa.clone()];
    canonical[2]["n"] = b64([0xff; 1024]).into();
    canonical[2]["e"] = "AQAB".into();
    let mut padded = [ec, ed, rsa];
    for (name, keys) in [("n", 0..2), ("e", 0..2), ("y", 1..3), ("x", 2..3), ("crv", 2..3)] {
        padded[keys].iter_mut().for_each(|key| key[name] = long.as_str().into());
    }
    for key in &mut padded {
        key["key_ops"] = json!(["verify", long]);
        key["d"] = long.as_str().into();
    }
    let usable = KeySet::read(jwks(&padded).as_bytes()).unwrap().usable;
    let sent: Value = serde_json::from_str(&usable.to_json()).unwrap();
    assert_eq!(sent, json!({"keys": canonical}));
    // The longest that there can be.
    let full = vec![padded[2].clone(); MAX_KEYS];
    let mut largest = 0;
    for set in full.chunks(8) {
        largest += KeySet::read(jwks(set).as_bytes()).unwrap().usable.to_json().len();
    }
    assert!(largest < 128 * 1024, "{largest}");
}

#[test]
fn a_name_picks_the_key_and_without_one_a_few_are_tried() {
    let signers: Vec<Signer> = (0..MAX_TRIES + 1).map(|_| Signer::new(Algorithm::EdDsa)).collect();
    let named = |n: usize| signers[n].jwk(&n.to_string());
    let set: Vec<Value> = (0..signers.len()).map(named).collect();
    let keys = keys(&set, &Algorithm::ALL);
    let verify = |kid: Option<&str>, signer: usize| {
        let signature = signers[signer].sign(Algorithm::EdDsa, b"m");
        keys.verify(kid, Algorithm::EdDsa, b"m", &signature)
    };
    assert_eq!(verify(Some("3"), 3), Ok(()));
    assert_eq!(verify(Some("3"), 2), Err(NotVerified::Signature));
    assert_eq!(verify(Some("new"), 2), Err(NotVerified::NoKey));
    assert_eq!(verify(None, MAX_TRIES - 1), Ok(()));
    assert_eq!(verify(None, MAX_TRIES), Err(NotVerified::NoKey));
    assert_eq!(verify(Some("8"), MAX_TRIES), Ok(()));
}
