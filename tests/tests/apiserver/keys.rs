//! The keys of tokens: a controller with the rights that the chart gives it fetches them where policies say.

use std::net::{IpAddr, UdpSocket};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use outrigger_tests::kube::{Kubectl, eventually};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::{namespace, run};

const SOON: Duration = Duration::from_secs(30);

/// A provider of tokens on an address of this machine that is not loopback, which no policy may name.
struct Provider {
    child: Child,
    /// "https://10.0.0.1:8443/".
    issuer: String,
    /// PEM.
    ca: String,
    _files: TempDir,
}

impl Provider {
    async fn start() -> Result<Self> {
        let address = own_address()?;
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate()?)?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.subject_alt_names.push(SanType::IpAddress(address));
        let key = KeyPair::generate()?;
        let files = tempfile::tempdir()?;
        let (cert, private) = (files.path().join("cert.pem"), files.path().join("key.pem"));
        std::fs::write(&cert, params.signed_by(&key, &ca)?.pem())?;
        std::fs::write(&private, key.serialize_pem())?;
        let mut child = Command::new("oidc-provider")
            .args(["-listen", &format!("{address}:0")])
            .arg("-cert")
            .arg(cert)
            .arg("-key")
            .arg(private)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("oidc-provider is not on the PATH: tests/cluster/build oidc")?;
        let stdout = child.stdout.take().context("no output")?;
        let mut issuer = String::new();
        BufReader::new(stdout).read_line(&mut issuer).await?;
        Ok(Self {
            child,
            issuer: issuer.trim().to_owned(),
            ca: ca.pem(),
            _files: files,
        })
    }
}

/// The one that this machine would call others from.
fn own_address() -> Result<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    // Nothing is sent.
    socket
        .connect("192.0.2.1:9")
        .context("this machine has no address but loopback")?;
    Ok(socket.local_addr()?.ip())
}

/// A policy that lets in whoever has a token of this provider.
fn policy(jwks: Value) -> Value {
    json!({
        "apiVersion": "outrigger.dev/v1alpha1", "kind": "AccessPolicy", "metadata": {"name": "p"},
        "spec": {
            "targetRefs": [{"kind": "Pod", "selector": {}}],
            "rules": [{"sources": [{"type": "JWT", "jwt": {"provider": "login"}}]}],
            "jwt": {"providers": [{"name": "login", "issuer": "https://i", "audiences": ["orders"], "jwks": jwks}]},
        },
    })
}

/// Waits for the words in what is said of the policy.
async fn is_said(shop: &Kubectl, words: &str) -> Result<()> {
    eventually(words, SOON, async || {
        let policy = shop.get(["accesspolicy", "p"]).await?;
        let conditions = policy
            .pointer("/status/ancestors/0/conditions")
            .context("no status yet")?;
        let current = conditions[1]["observedGeneration"] == policy["metadata"]["generation"];
        let message = conditions[1]["message"].as_str().unwrap_or_default();
        ensure!(current && message.contains(words), "{conditions:#}");
        ensure!(conditions[0]["status"] == "True", "{conditions:#}");
        Ok(())
    })
    .await
}

const ALL: &str = "All that it says is in force";

#[test]
#[ignore = "needs a kube-apiserver"]
fn the_keys_of_a_policys_providers_are_fetched_where_it_says() -> Result<()> {
    run(async |plane| {
        let shop = namespace(&plane.admin, "keys", false).await?;
        let mut provider = Provider::start().await?;
        let controller = plane.controller().await?;

        shop.apply(&policy(json!({"configMapRef": {"name": "keys"}})).to_string())
            .await?;
        is_said(&shop, "there is no ConfigMap keys").await?;
        let key = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
        let keys = format!(r#"{{"keys": [{{"kty": "OKP", "crv": "Ed25519", "kid": "1", "x": "{key}"}}]}}"#);
        let map = |name: &str, data: Value| {
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}).to_string()
        };
        shop.apply(&map("keys", json!({"jwks.json": keys}))).await?;
        is_said(&shop, ALL).await?;

        let loopback = policy(json!({"remote": {"url": "https://127.0.0.1:6443/openid/v1/jwks"}}));
        shop.apply(&loopback.to_string()).await?;
        is_said(&shop, "127.0.0.1 is not called").await?;
        let localhost = policy(json!({"remote": {"url": "https://localhost/keys"}}));
        shop.apply(&localhost.to_string()).await?;
        is_said(&shop, " is not called").await?;

        let url = format!("{}keys", provider.issuer);
        let with = |ca: Option<&str>| {
            let mut remote = json!({"url": url, "cacheDuration": "10s"});
            if let Some(ca) = ca {
                remote["caConfigMapRef"] = json!({"name": ca});
            }
            policy(json!({"remote": remote})).to_string()
        };
        shop.apply(&with(None)).await?;
        is_said(&shop, "its certificate is not of an authority that is trusted").await?;
        shop.apply(&map("login-ca", json!({"ca.crt": provider.ca}))).await?;
        shop.apply(&with(Some("login-ca"))).await?;
        is_said(&shop, ALL).await?;
        provider.child.kill().await?;
        is_said(&shop, "are the last that could be fetched").await?;
        controller.stop().await
    })
}
