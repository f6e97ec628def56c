//! The life of the process: ask the cluster what it has, bind, keep the certificate, serve, drain.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use kube::Client;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::admin;
use crate::certs::{Profile, Serving};
use crate::metrics::Metrics;
use crate::roots;
use crate::rotation::{Places, Rotation};
use crate::settings::Settings;
use crate::webhook::Webhook;

/// How the process runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the webhook listens; port 0 takes a free one.
    pub webhook: SocketAddr,
    /// Where the admin port is.
    pub admin: SocketAddr,
    /// What is put into pods.
    pub settings: Settings,
    /// The webhook's certificates.
    pub profile: Profile,
    /// Where they are kept.
    pub places: Places,
    /// How long new connections are still accepted after the injector has said that it is not ready any more: kube-proxy
    /// needs a moment to learn it.
    pub linger: Duration,
}

impl Options {
    /// As in the cluster, with the ports and names of the chart.
    pub fn new(settings: Settings, webhook: SocketAddr, admin: SocketAddr) -> Self {
        const NAME: &str = "outrigger-injector";
        Self {
            webhook,
            admin,
            profile: Profile::of_service(NAME, &settings.namespace),
            places: Places {
                namespace: settings.namespace.clone(),
                secret: "outrigger-injector-tls".to_owned(),
                webhook_configuration: NAME.to_owned(),
            },
            settings,
            linger: Duration::from_secs(5),
        }
    }
}

/// An injector that runs.
#[derive(Debug)]
pub struct Running {
    /// Where the webhook listens.
    pub webhook: SocketAddr,
    /// Where the admin port is.
    pub admin: SocketAddr,
    tasks: JoinSet<()>,
}

impl Running {
    /// Waits until the injector has ended, which it does after the token that [`start`] was given is cancelled.
    pub async fn ended(mut self) {
        while self.tasks.join_next().await.is_some() {}
    }
}

/// The first minor version of Kubernetes 1 that has native sidecars without a feature gate.
const NATIVE_SIDECARS_SINCE: u32 = 29;

/// Starts it. Cancelling `shutdown` ends it after a drain.
///
/// # Errors
/// When an address cannot be bound.
pub async fn start(mut options: Options, client: Client, shutdown: CancellationToken) -> anyhow::Result<Running> {
    let bind = async |addr: SocketAddr| {
        let listener = TcpListener::bind(addr)
            .await
            .with_context(|| format!("listening on {addr}"))?;
        let addr = listener.local_addr()?;
        anyhow::Ok((listener, addr))
    };
    let (admin_listener, admin) = bind(options.admin).await?;
    let (webhook_listener, webhook_addr) = bind(options.webhook).await?;
    let metrics = Arc::new(Metrics::default());
    let serving = Arc::new(Serving::default());
    let trusted = Arc::new(AtomicBool::new(false));
    let known = Arc::new(AtomicBool::new(false));
    let (say_roots, roots) = watch::channel(None);
    let mut tasks = JoinSet::new();

    let readiness = {
        let (serving, trusted, known, shutdown) = (serving.clone(), trusted.clone(), known.clone(), shutdown.clone());
        let roots = roots.clone();
        move || match () {
            () if shutdown.is_cancelled() => Err("ending"),
            () if !known.load(Ordering::Acquire) => Err("the version of the cluster is not known yet"),
            () if !serving.is_ready() => Err("there is no certificate yet"),
            () if !trusted.load(Ordering::Acquire) => Err("the webhook configuration has no CA bundle yet"),
            () if roots.borrow().is_none() => Err("the controller has not written the trust bundle yet"),
            () => Ok(()),
        }
    };
    // It outlives the rest: /livez answers during the drain.
    let served = CancellationToken::new();
    tasks.spawn(admin::serve(admin_listener, metrics.clone(), readiness, served.clone()));
    tasks.spawn(roots::follow(
        client.clone(),
        options.settings.namespace.clone(),
        say_roots,
        shutdown.clone(),
    ));
    let rotation = Rotation::new(
        &client,
        options.places,
        options.profile,
        serving.clone(),
        metrics.clone(),
        trusted.clone(),
    );
    tasks.spawn(rotation.run(shutdown.clone()));
    tasks.spawn(async move {
        let native = tokio::select! {
            () = shutdown.cancelled() => false,
            native = has_native_sidecars(&client) => native,
        };
        options.settings.native_sidecars &= native;
        known.store(true, Ordering::Release);
        let webhook = Arc::new(Webhook::new(options.settings, Box::new(client), roots, metrics));
        let close = CancellationToken::new();
        let closing = {
            let close = close.clone();
            async move {
                shutdown.cancelled().await;
                tokio::time::sleep(options.linger).await;
                close.cancel();
            }
        };
        tokio::join!(webhook.serve(webhook_listener, serving, close), closing);
        served.cancel();
    });
    Ok(Running {
        webhook: webhook_addr,
        admin,
        tasks,
    })
}

/// Asks until there is an answer: a guess would be wrong for every pod until the next restart.
async fn has_native_sidecars(client: &Client) -> bool {
    let mut wait = Duration::from_secs(1);
    loop {
        match client.apiserver_version().await {
            Ok(version) => {
                let native = is_native(&version.major, &version.minor);
                tracing::info!(version = version.git_version, native_sidecars = native, "the cluster");
                return native;
            }
            Err(error) => {
                tracing::warn!(%error, "asking kube-apiserver for its version failed; trying again in {wait:?}");
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(Duration::from_secs(30));
            }
        }
    }
}

/// Minor versions of some clusters have a "+" behind the number.
fn is_native(major: &str, minor: &str) -> bool {
    let number = |text: &str| {
        text.trim_end_matches(|c: char| !c.is_ascii_digit())
            .parse::<u32>()
            .unwrap_or(0)
    };
    number(major) > 1 || (number(major) == 1 && number(minor) >= NATIVE_SIDECARS_SINCE)
}

#[cfg(test)]
mod tests {
    use super::is_native;

    #[test]
    fn native_since_1_29() {
        assert!(is_native("1", "29") && is_native("1", "34+") && is_native("2", "0"));
        assert!(!is_native("1", "28+") && !is_native("1", "") && !is_native("", ""));
    }
}
