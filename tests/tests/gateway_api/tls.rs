//! BackendTLSPolicy on a real cluster: a server of others, outside of the mesh, that speaks TLS with a certificate of ours.

use anyhow::{Context, Result, ensure};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use outrigger_tests::cluster::{Cluster, rolled_out};
use outrigger_tests::kube::{Kubectl, eventually};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use super::own::{Ask, NAMESPACE, SOON, Sees};

const HOST: &str = "pay.example.com";

/// One server in TLS, whose pod is not in the mesh, behind three Services: the policies of two of them cannot believe it.
const SERVER: &str = r#"
{apiVersion: v1, kind: List, items: [
{apiVersion: v1, kind: Service, metadata: {name: pay}, spec: {selector: {app: pay}, ports: [{port: 80, targetPort: 8443, appProtocol: http}]}},
{apiVersion: v1, kind: Service, metadata: {name: other-name}, spec: {selector: {app: pay}, ports: [{port: 80, targetPort: 8443, appProtocol: http}]}},
{apiVersion: v1, kind: Service, metadata: {name: no-ca}, spec: {selector: {app: pay}, ports: [{port: 80, targetPort: 8443, appProtocol: http}]}},
{apiVersion: apps/v1, kind: Deployment, metadata: {name: echo-v4}, spec: {selector: {matchLabels: {app: pay}}, template: {
  metadata: {labels: {app: pay, outrigger.dev/inject: disabled}}, spec: {terminationGracePeriodSeconds: 5,
  volumes: [{name: tls, secret: {secretName: pay}}],
  containers: [{name: echo, image: "registry.k8s.io/gateway-api/echo-advanced:v1.5.1", volumeMounts: [{name: tls, mountPath: /tls}],
  args: [--port=8443, --tls=8443, --crt=/tls/tls.crt, --key=/tls/tls.key]}]}}}},
]}
"#;

const POLICIES: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {name: pay}
spec:
  targetRefs: [{group: '', kind: Service, name: pay}]
  validation: {hostname: pay.example.com, caCertificateRefs: [{group: '', kind: ConfigMap, name: pay-ca}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {name: other-name}
spec:
  targetRefs: [{group: '', kind: Service, name: other-name}]
  validation: {hostname: other.example.com, caCertificateRefs: [{group: '', kind: ConfigMap, name: pay-ca}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {name: no-ca}
spec:
  targetRefs: [{group: '', kind: Service, name: no-ca}]
  validation: {hostname: pay.example.com, caCertificateRefs: [{group: '', kind: ConfigMap, name: not-there}]}
";

const ASKS: &[Ask] = &[
    Ask {
        client: "--count 20 http://pay/",
        sees: Sees::All("200 v4"),
    },
    Ask {
        client: "http://other-name/",
        sees: Sees::Has("503 -", &["Outrigger-Error:tls-failed"]),
    },
    Ask {
        client: "http://no-ca/",
        sees: Sees::Has("503 -", &["Outrigger-Error:tls-failed"]),
    },
];

pub(super) async fn all(cluster: &Cluster, routes: &Kubectl) -> Result<()> {
    for object in certificates()? {
        routes.apply(&object).await?;
    }
    routes.apply(SERVER).await?;
    rolled_out(routes, "deployment").await?;
    routes.apply(POLICIES).await?;
    for (policy, accepted, resolved) in [
        ("pay", "Accepted", "ResolvedRefs"),
        ("other-name", "Accepted", "ResolvedRefs"),
        ("no-ca", "NoValidCACertificate", "InvalidCACertificateRef"),
    ] {
        eventually(policy, SOON, async || {
            let object = routes.get(["backendtlspolicy", policy]).await?;
            super::own::conditions_are(&object, accepted, resolved)
        })
        .await?;
    }
    for ask in ASKS {
        eventually(ask.client, SOON, async || ask.is_answered(cluster, routes).await).await?;
    }
    // It was the policy that had them sent in TLS: the server answers what comes without with 400.
    routes.run(["delete", "backendtlspolicy", "pay"]).await?;
    let plaintext = Ask {
        client: "http://pay/",
        sees: Sees::All("200 v4"),
    };
    eventually("in plaintext again", SOON, async || {
        ensure!(
            plaintext.is_answered(cluster, routes).await.is_err(),
            "it is answered as before"
        );
        Ok(())
    })
    .await?;
    println!("holds: BackendTLSPolicy, in the namespace {NAMESPACE}");
    Ok(())
}

/// The server's Secret, and the ConfigMap of its CA.
fn certificates() -> Result<[String; 2]> {
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new(vec![HOST.to_owned()])?.signed_by(&key, &ca)?;
    let bytes = |text: String| ByteString(text.into_bytes());
    let mut secret = Secret {
        type_: Some("kubernetes.io/tls".to_owned()),
        data: Some(
            [
                ("tls.crt".to_owned(), bytes(certificate.pem())),
                ("tls.key".to_owned(), bytes(key.serialize_pem())),
            ]
            .into(),
        ),
        ..Secret::default()
    };
    secret.metadata.name = Some("pay".to_owned());
    let mut authority = ConfigMap {
        data: Some([("ca.crt".to_owned(), ca.pem())].into()),
        ..ConfigMap::default()
    };
    authority.metadata.name = Some("pay-ca".to_owned());
    Ok([
        serde_json::to_string(&secret).context("a Secret")?,
        serde_json::to_string(&authority).context("a ConfigMap")?,
    ])
}
