//! Whom sidecars trust, from the CA's Secret to the handshake.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use outrigger_api::spiffe::SpiffeId;
use outrigger_issuer::ca::Ca;
use outrigger_proxy::config::Config;
use outrigger_proxy::identity::{Clock, Credentials, FirstRoots, MeshProtocol, Svid, Trust, TrustBundle};
use outrigger_tests::control_plane::{ControlPlane, trust_bundle};
use outrigger_tests::kube::{Kubectl, eventually};
use serde_json::{Value, json};

use super::{dry_run, namespace, pod, run};

const DAY: Duration = Duration::from_secs(86_400);

/// What a pod that is made now is told of roots, and where its sidecar would look for more.
async fn of_new_pod(shop: &Kubectl) -> Result<(Vec<(String, String)>, Value)> {
    let created = dry_run(shop, &pod("app", json!({}))).await?;
    let init = created["spec"]["initContainers"].as_array().into_iter().flatten();
    let mut proxy = init.filter(|container| container["name"] == "outrigger-proxy");
    let env = proxy.next().context("no sidecar")?["env"].clone();
    let env = env.as_array().into_iter().flatten();
    let env = env.filter_map(|env| Some((env["name"].as_str()?.to_owned(), env["value"].as_str()?.to_owned())));
    Ok((env.collect(), created["spec"]["volumes"].clone()))
}

/// The roots in the CA's Secret.
async fn roots_of_ca(plane: &ControlPlane) -> Result<String> {
    let template = "-o=go-template={{index .data \"ca.crt\" | base64decode}}";
    let install = plane.admin.namespace("outrigger");
    install.run(["get", "secret", "outrigger-ca", template]).await
}

async fn set_roots_of_ca(plane: &ControlPlane, pem: &str) -> Result<()> {
    let patch = json!({"stringData": {"ca.crt": pem}}).to_string();
    let install = plane.admin.namespace("outrigger");
    let arguments = ["patch", "secret", "outrigger-ca", "--type", "merge", "-p", &patch];
    install.run(arguments).await.map(drop)
}

/// Somebody with an SVID of this CA in the sidecar's own name, who would talk to whoever is below either root.
fn peer(ca: &Ca, id: &SpiffeId, real: &str) -> Result<Credentials> {
    let svid = ca.issue(id, DAY)?;
    let svid = Svid::new(svid.chain, svid.key).map_err(anyhow::Error::msg)?;
    let both = TrustBundle::from_pem(format!("{}{real}", ca.bundle_pem()).as_bytes()).map_err(anyhow::Error::msg)?;
    let trust = Trust::new(&both, id.trust_domain(), 1).map_err(anyhow::Error::msg)?;
    Credentials::new(&svid, &Arc::new(trust), 1, &Clock::system()).map_err(anyhow::Error::msg)
}

/// What the sidecar says when this peer comes.
async fn knocks(at: &Credentials, peer: &Credentials) -> Result<(), String> {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let connecting = peer.connect(near, [10, 0, 0, 7].into(), &at.id, MeshProtocol::Http1);
    let (_, accepted) = tokio::join!(connecting, at.accept(far));
    accepted.map(drop).map_err(|error| error.to_string())
}

/// A tenant writes a root of his own into the ConfigMap of a namespace before any pod is there, and goes on when the controller
/// mends it.
#[test]
#[ignore = "needs a kube-apiserver"]
fn a_forged_root_in_a_config_map_lets_nobody_in() -> Result<()> {
    run(async |plane| {
        let controller = plane.controller().await?;
        let injector = plane.injector(|_| {}).await?;
        let shop = namespace(&plane.admin, "forged", true).await?;
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "web"}});
        shop.apply(&account.to_string()).await?;
        let forged = Ca::generate("cluster.local")?;
        let forge = async || shop.apply(&trust_bundle(&forged.bundle_pem())).await;
        forge().await?;

        let real = roots_of_ca(&plane).await?;
        // The test's injector began with other roots: it follows the controller's ConfigMap.
        let env = eventually("a pod has the CA's roots", Duration::from_secs(10), async || {
            let (env, volumes) = of_new_pod(&shop).await?;
            let roots = env.iter().find(|(name, _)| name == "OUTRIGGER_TRUST_BUNDLE");
            ensure!(roots.is_some_and(|(_, roots)| *roots == real), "{roots:?}");
            let read = volumes.as_array().into_iter().flatten();
            let mut read = read.filter(|volume| volume["name"] == "outrigger-trust");
            ensure!(
                read.next().is_some_and(|v| v["emptyDir"]["medium"] == "Memory"),
                "{volumes}"
            );
            Ok(env)
        })
        .await?;

        let config = Config::from_env(|name| match name {
            "OUTRIGGER_NAMESPACE" => Some(shop.current_namespace().to_owned()),
            "OUTRIGGER_POD" => Some("web-1".to_owned()),
            "OUTRIGGER_SERVICE_ACCOUNT" => Some("web".to_owned()),
            "OUTRIGGER_POD_IPS" => Some("10.0.0.1".to_owned()),
            _ => env
                .iter()
                .find(|(known, _)| known == name)
                .map(|(_, value)| value.clone()),
        });
        let FirstRoots::Given { roots, .. } = config.map_err(|e| anyhow::anyhow!("{e:?}"))?.identity.roots else {
            anyhow::bail!("a sidecar of the webhook reads a file");
        };
        let kept = tempfile::tempdir()?;
        let kept = kept.path().join("roots.der");
        let first = FirstRoots::Given {
            roots,
            kept: kept.clone(),
        };
        let sidecar = plane
            .sidecar_with(&controller, &shop, "web", "outrigger", first)
            .await?;
        let ready = tokio::time::timeout(Duration::from_secs(10), sidecar.identity.ready()).await;
        let credentials = ready.with_context(|| sidecar.identity.problem().unwrap_or_default())?;
        let evil = peer(&forged, &credentials.id, &real)?;
        forge().await?;
        let refused = knocks(&credentials, &evil).await.err().context("it was let in")?;
        ensure!(refused.contains("no root trusted here signed that"), "{refused}");
        ensure!(kept.exists(), "the controller's word is not kept");

        // The platform's own new root is another thing: running sidecars and new pods have it at once.
        let next = Ca::generate("cluster.local")?;
        let both = format!("{real}{}", next.bundle_pem());
        set_roots_of_ca(&plane, &both).await?;
        let mut identity = sidecar.identity.subscribe();
        let told = identity.wait_for(|now| now.as_ref().is_some_and(|now| now.trust.not_after.len() == 2));
        let told = tokio::time::timeout(Duration::from_secs(20), told).await;
        let told = told
            .context("the sidecar is not told")??
            .clone()
            .context("no credentials")?;
        ensure!(told.not_after == credentials.not_after, "only with another SVID");
        knocks(&told, &peer(&next, &told.id, &real)?)
            .await
            .map_err(anyhow::Error::msg)?;
        ensure!(knocks(&told, &evil).await.is_err(), "the forged root came with it");
        eventually("a new pod has both roots", Duration::from_secs(10), async || {
            let (env, _) = of_new_pod(&shop).await?;
            let roots = env.iter().find(|(name, _)| name == "OUTRIGGER_TRUST_BUNDLE");
            ensure!(roots.is_some_and(|(_, roots)| *roots == both), "{roots:?}");
            Ok(())
        })
        .await?;
        set_roots_of_ca(&plane, &real).await?;
        injector.stop().await;
        controller.stop().await
    })
}
