//! The controller as a whole.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use kube::Client;
use outrigger_api::spiffe::SpiffeId;
use outrigger_issuer::ca::Ca;
use outrigger_issuer::ca::rotation::Rotation;
use outrigger_issuer::server::{self, ServerTls};
use outrigger_issuer::service::Issuer;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rustls::RootCertStore;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::admin;
use crate::cluster::ca_secret::CaSecret;
use crate::cluster::token_review::TokenReviews;
use crate::cluster::{bundle, keys, status, watch as watches};
use crate::discovery::{self, Discover};
use crate::index::Index;
use crate::jwks::{self, Fetcher};
use crate::metrics::Metrics;
use crate::objects::networks::Networks;
use crate::room::Room;
use crate::session_keys::SessionSecret;

/// Between attempts to get a CA at the start.
const CA_RETRY: Duration = Duration::from_secs(2);

/// What the controller is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its own namespace: where the CA's Secret is.
    pub namespace: String,
    /// Its own pod.
    pub pod: String,
    /// Its own ServiceAccount.
    pub service_account: String,
    /// Of all SVIDs.
    pub trust_domain: String,
    /// The Secret with the CA.
    pub ca_secret: String,
    /// Where sidecars connect to.
    pub listen: SocketAddr,
    /// Where probes and metrics are served.
    pub admin: SocketAddr,
    /// The networks of the cluster's Services and pods, beside its ServiceCIDRs.
    pub cluster_networks: Networks,
    /// How long SVIDs live.
    pub svid_ttl: Duration,
    /// Whether a Service of the type ExternalName may be a route's backend.
    pub allow_external_names: bool,
    /// Whether a pod's token from the address of another pod is refused; else it is logged and counted.
    pub check_address: bool,
}

/// Runs until `shutdown` is cancelled.
///
/// # Errors
/// When a port cannot be bound, the controller's own name is not one for a SPIFFE ID, or serving fails as a whole. An
/// API server that cannot be reached is waited for.
pub async fn run(config: Config, client: Client, shutdown: CancellationToken) -> anyhow::Result<()> {
    // Whatever ends this function ends all that it started.
    let stop = shutdown.child_token();
    let _stop_all = stop.clone().drop_guard();
    let metrics = Arc::new(Metrics::default());
    let id = SpiffeId::new(&config.trust_domain, &config.namespace, &config.service_account)?;
    let listener = bind(config.listen).await?;
    let ready = watch::Sender::new(false);
    let mut tasks = JoinSet::new();
    let admin_listener = bind(config.admin).await?;
    tasks.spawn(admin::serve(
        admin_listener,
        metrics.clone(),
        ready.subscribe(),
        stop.clone(),
    ));

    let room = Room::within(outrigger_gate::memory_limit());
    let index = Index::within(room, &config.trust_domain, metrics.clone());
    index.set_cluster_networks(config.cluster_networks.clone());
    index.set_own(&config.namespace, &config.pod);
    index.set_external_names_allowed(config.allow_external_names);
    tasks.spawn(watches::run(client.clone(), index.clone(), stop.clone()));
    let world = keys::Cluster::new(client.clone(), index.clone());
    let roots = RootCertStore::from_iter(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    let fetcher = Fetcher::new(world, roots).context("TLS to fetch keys")?;
    tasks.spawn(jwks::run(
        index.clone(),
        fetcher,
        metrics.clone(),
        SmallRng::from_os_rng(),
    ));

    let secret = CaSecret::new(
        client.clone(),
        &config.namespace,
        &config.ca_secret,
        &config.trust_domain,
        config.svid_ttl,
    );
    let Some(first_ca) = stop.run_until_cancelled(first_ca(&secret, &metrics)).await else {
        return Ok(());
    };
    let ca = watch::Sender::new(first_ca.ca().clone());
    let trusted = ca.subscribe();
    set_session_secret(&index, &trusted.borrow());
    tasks.spawn(follow_session_secret(index.clone(), trusted.clone()));
    tasks.spawn(secret.follow(first_ca, ca, metrics.clone()));
    tasks.spawn(bundle::run(
        client.clone(),
        config.namespace,
        trusted.clone(),
        index.bundle_namespaces(),
    ));
    tasks.spawn(status::run(client.clone(), index.clone(), metrics.clone()));
    tasks.spawn(become_ready(index.synced(), ready));

    let issuer = Issuer::new(
        trusted.clone(),
        TokenReviews::new(client, index.clone(), metrics.clone(), config.check_address),
        config.trust_domain,
        config.svid_ttl,
        metrics.issuer(),
    );
    let discovery = discovery::routes(index, metrics.clone(), trusted.clone(), stop.clone());
    let tls = ServerTls {
        ca: trusted,
        id,
        ttl: config.svid_ttl,
        metrics: metrics.issuer(),
    };
    tokio::select! {
        served = server::serve(listener, tls, issuer, discovery, stop.clone()) => served,
        // None of them ends by itself. Without one of them the rest would go on with what gets older and older.
        ended = wait_for_one(&mut tasks, &stop) => bail!("a part of the controller ended: {ended}"),
    }
}

/// Sessions are sealed by what is derived from the CA that issues.
async fn follow_session_secret(index: Arc<Index>, mut ca: watch::Receiver<Arc<Ca>>) {
    while ca.changed().await.is_ok() {
        set_session_secret(&index, &ca.borrow_and_update());
    }
    // That task's end is seen by itself.
    std::future::pending::<()>().await;
}

fn set_session_secret(index: &Index, ca: &Ca) {
    match SessionSecret::of_ca(&ca.pem().key) {
        Some(secret) => index.set_session_secret(secret),
        None => tracing::error!(
            "no keys of sessions can be derived from the CA's key: sessionPersistence keeps no sessions"
        ),
    }
}

/// How the first of the tasks ended before the shutdown began.
async fn wait_for_one(tasks: &mut JoinSet<()>, stop: &CancellationToken) -> String {
    let ended = tasks.join_next().await;
    if stop.is_cancelled() {
        std::future::pending::<()>().await;
    }
    match ended {
        Some(Err(e)) => e.to_string(),
        Some(Ok(())) | None => "it returned".to_owned(),
    }
}

/// Ready once the index is complete; there is a CA already.
async fn become_ready(mut synced: watch::Receiver<bool>, ready: watch::Sender<bool>) {
    // The index outlives its readers.
    if synced.wait_for(|&synced| synced).await.is_ok() {
        ready.send_replace(true);
        tracing::info!("ready");
    }
    std::future::pending::<()>().await;
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let bound = match TcpListener::bind(address).await {
        // A node whose kernel has no IPv6.
        Err(_) if address.ip() == Ipv6Addr::UNSPECIFIED => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        bound => bound,
    };
    bound.with_context(|| format!("binding {address}"))
}

/// Tries until there is a CA: the operator may be about to put it there, or the API server may be starting.
async fn first_ca(secret: &CaSecret, metrics: &Metrics) -> Rotation {
    loop {
        match secret.read_or_make().await {
            Ok(ca) => return ca,
            Err(e) => {
                metrics.ca_error();
                tracing::error!(error = %format!("{e:#}"), "there is no CA yet; trying again");
                tokio::time::sleep(CA_RETRY).await;
            }
        }
    }
}
