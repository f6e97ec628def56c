//! The shop and its mesh as processes: started in order, until a first purchase goes through.

use std::fs::OpenOptions;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use nix::unistd::mkdtemp;
use outrigger_shop::load;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::metrics::{Admin, SidecarCounts};
use super::plan::{Plan, SERVICES, SIDECARS};
use super::processes::{Ended, Processes};

/// Starts, when somebody else takes a chosen port meanwhile.
const STARTS: usize = 3;
/// For everything to be ready; it takes less than a second.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// The running processes.
pub(super) struct Mesh {
    processes: Processes,
    admin: Admin,
    plan: Plan,
    shop_url: String,
    directory: Directory,
}

/// Removed with everything in it when the mesh is gone.
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        // Where it stays, it is in the way of nobody.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

enum NotStarted {
    AddressInUse(Ended),
    Other(anyhow::Error),
}

impl From<anyhow::Error> for NotStarted {
    fn from(error: anyhow::Error) -> Self {
        NotStarted::Other(error)
    }
}

impl Mesh {
    /// Starts all processes, and waits until a first purchase goes through. The sidecars send their spans to `otlp`.
    pub(super) async fn start(seed: Option<u64>, otlp: SocketAddr) -> anyhow::Result<Self> {
        let mut start = 1;
        loop {
            match Self::try_start(seed, otlp).await {
                Ok(mesh) => return Ok(mesh),
                Err(NotStarted::AddressInUse(_)) if start < STARTS => start += 1,
                Err(NotStarted::AddressInUse(ended)) => anyhow::bail!("{ended}"),
                Err(NotStarted::Other(error)) => return Err(error),
            }
        }
    }

    async fn try_start(seed: Option<u64>, otlp: SocketAddr) -> Result<Self, NotStarted> {
        let plan = Plan::new()?;
        let directory = configuration(&plan, otlp)?;
        let shop = plan.outbound("load", "web").context("the load has no sidecar")?;
        let mut mesh = Self {
            processes: Processes::new(),
            admin: Admin::new(),
            shop_url: format!("http://{shop}"),
            plan,
            directory,
        };
        mesh.spawn(seed)?;
        // The borrow ends before the processes are stopped.
        let failure = {
            let (ready, processes) = (ready(&mesh.admin, &mesh.plan, &mesh.shop_url), &mut mesh.processes);
            tokio::select! {
                ready = tokio::time::timeout(START_TIMEOUT, ready) => match ready {
                    Ok(()) => None,
                    Err(_) => Some(None),
                },
                ended = processes.ended() => Some(Some(ended)),
            }
        };
        match failure {
            None => Ok(mesh),
            Some(ended) => {
                let unready = mesh.unready().await;
                let stopped = mesh.stop().await;
                Err(match ended {
                    Some(ended) if ended.address_in_use() => NotStarted::AddressInUse(ended),
                    Some(ended) => NotStarted::Other(anyhow::anyhow!("{ended}")),
                    None => {
                        let details: Vec<_> = stopped.iter().map(ToString::to_string).collect();
                        NotStarted::Other(anyhow::anyhow!(
                            "the shop is not ready after {} s; {unready}\n{}",
                            START_TIMEOUT.as_secs(),
                            details.join("\n")
                        ))
                    }
                })
            }
        }
    }

    /// The shop's own page: through the customers' sidecar.
    pub(super) fn shop_url(&self) -> &str {
        &self.shop_url
    }

    /// What each sidecar counts, by its name.
    pub(super) async fn counts(&self) -> anyhow::Result<Vec<(&'static str, SidecarCounts)>> {
        let ask = self.plan.admins().map(async |(name, admin)| {
            let counts = self.admin.counts(admin).await;
            Ok((name, counts.with_context(|| format!("the sidecar of {name}"))?))
        });
        futures_util::future::try_join_all(ask).await
    }

    /// Waits for a process to end that nobody asked to. Cancel safe.
    pub(super) async fn ended(&mut self) -> Ended {
        self.processes.ended().await
    }

    /// Ends all processes, and tells which did not end as they should.
    pub(super) async fn stop(self) -> Vec<Ended> {
        self.processes.stop().await
    }

    fn spawn(&mut self, seed: Option<u64>) -> anyhow::Result<()> {
        let directory = self.directory.0.to_string_lossy().into_owned();
        let issuer = self.plan.issuer.to_string();
        let issuer = ["internal-issuer", "--listen", &issuer, "--directory", &directory].map(str::to_owned);
        self.processes.start("the issuer", issuer)?;
        for service in SERVICES {
            let arguments = self.plan.app_arguments(service, seed).into_iter();
            self.processes
                .start(service, std::iter::once("internal-shop".to_owned()).chain(arguments))?;
        }
        for sidecar in SIDECARS {
            let config = format!("{directory}/{sidecar}.yaml");
            let arguments = ["internal-proxy", "--", "run", "--config", &config].map(str::to_owned);
            self.processes.start(&format!("the sidecar of {sidecar}"), arguments)?;
        }
        Ok(())
    }

    /// Which sidecars are not ready, for the error.
    async fn unready(&self) -> String {
        let mut unready = Vec::new();
        for (name, admin) in self.plan.admins() {
            if !self.admin.ready(admin).await {
                unready.push(name);
            }
        }
        match unready.as_slice() {
            [] => "all sidecars are ready, and still no purchase goes through".to_owned(),
            names => format!("these sidecars are not: {}", names.join(", ")),
        }
    }
}

/// Waits until every sidecar is ready and a purchase goes through.
async fn ready(admin: &Admin, plan: &Plan, shop_url: &str) {
    for (_, sidecar) in plan.admins() {
        while !admin.ready(sidecar).await {
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }
    while !purchase(shop_url).await {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// One purchase of the load's own kind.
async fn purchase(shop_url: &str) -> bool {
    let settings = load::Settings {
        web_url: shop_url.to_owned(),
        rate: 1.0,
        seed: None,
    };
    let (tell, mut told) = mpsc::unbounded_channel();
    let enough = CancellationToken::new();
    let bought = enough.clone();
    let buy = load::buy(&settings, enough.cancelled(), move |outcome| {
        let _ = tell.send(outcome.result.is_ok()); // the receiver lives as long as this
        bought.cancel();
    });
    buy.await;
    told.recv().await == Some(true)
}

/// Writes the sidecars' files and tokens to a directory that only this user can read.
fn configuration(plan: &Plan, otlp: SocketAddr) -> anyhow::Result<Directory> {
    let directory = mkdtemp(&std::env::temp_dir().join("outrigger-demo-XXXXXX"))
        .map(Directory)
        .context("cannot make a directory for the sidecars' configuration")?;
    for name in SIDECARS {
        let token = format!("{:016x}{:016x}", rand::random::<u64>(), rand::random::<u64>());
        write(&directory.0, &format!("{name}.token"), &token)?;
        write(
            &directory.0,
            &format!("{name}.yaml"),
            &plan.sidecar_yaml(name, &directory.0, otlp)?,
        )?;
    }
    Ok(directory)
}

fn write(directory: &Path, name: &str, text: &str) -> anyhow::Result<()> {
    let path = directory.join(name);
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
    written.with_context(|| format!("cannot write {}", path.display()))
}
