//! Who issues the benchmark's token: an RSA key (most providers sign by RS256), its JWK Set, and a token for a day.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;

const LIFE: Duration = Duration::from_secs(24 * 3600);

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Where `jwks.json` and `token` go.
    #[arg(long)]
    out: PathBuf,
    /// The claim `iss`.
    #[arg(long)]
    issuer: String,
    /// The claim `aud`.
    #[arg(long)]
    audience: String,
    /// The claim `groups`.
    #[arg(long, value_delimiter = ',')]
    groups: Vec<String>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    std::fs::create_dir_all(&options.out)?;
    let key = KeyPair::generate(KeySize::Rsa2048).context("no RSA key")?;
    let public = key.public_key();
    let jwks = json!({"keys": [{
        "kty": "RSA", "kid": "1", "alg": "RS256", "use": "sig",
        "n": b64(public.modulus().big_endian_without_leading_zero()),
        "e": b64(public.exponent().big_endian_without_leading_zero()),
    }]});
    std::fs::write(options.out.join("jwks.json"), jwks.to_string())?;

    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    let header = json!({"alg": "RS256", "kid": "1", "typ": "JWT"});
    let claims = json!({
        "iss": options.issuer, "aud": options.audience, "sub": "ada", "groups": options.groups,
        "iat": now.as_secs(), "exp": (now + LIFE).as_secs(),
    });
    let message = format!("{}.{}", b64(header.to_string()), b64(claims.to_string()));
    let mut signature = vec![0; key.public_modulus_len()];
    key.sign(
        &RSA_PKCS1_SHA256,
        &SystemRandom::new(),
        message.as_bytes(),
        &mut signature,
    )
    .context("the token cannot be signed")?;
    std::fs::write(options.out.join("token"), format!("{message}.{}", b64(signature)))?;
    Ok(())
}

fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}
