//! The program itself, in a process of its own.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::mesh::{Authority, Http, Sidecar, until};
use crate::netns::program;

/// Killed when it is dropped.
pub struct Program {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    admin: SocketAddr,
    pub inbound: Vec<SocketAddr>,
    pub outbound: Vec<SocketAddr>,
}

impl Program {
    /// Runs a sidecar with one worker. `limit`: the soft and the hard limit of open files.
    pub async fn start(name: &str, sidecar: Sidecar, authority: &Authority, limit: Option<(u64, u64)>) -> Self {
        let file = authority.directory().join(format!("{name}-program.yaml"));
        std::fs::write(&file, sidecar.with("workers: 1").file(authority)).unwrap();
        let limits = limit.map_or_else(String::new, |(soft, hard)| {
            format!("ulimit -Sn {soft} && ulimit -Hn {hard} && ")
        });
        let mut child = Command::new("sh")
            .args(["-c", &format!("{limits}exec \"$0\" run --config \"$1\"")])
            .arg(program("outrigger-proxy"))
            .arg(&file)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (lines, keep) = (BufReader::new(child.stderr.take().unwrap()), Arc::clone(&log));
        std::thread::spawn(move || {
            lines
                .lines()
                .map_while(Result::ok)
                .for_each(|line| keep.lock().unwrap().push(line))
        });
        let mut program = Self {
            child,
            log,
            admin: SocketAddr::from(([127, 0, 0, 1], 0)),
            inbound: Vec::new(),
            outbound: Vec::new(),
        };
        until("the program says where it listens", async || program.learn_addresses()).await;
        let admin = program.admin;
        until("the program is ready", async || {
            Http::one().get(admin, "/readyz").await.status == 200
        })
        .await;
        program
    }

    /// Does `what` while the program does not run, so that it finds all of that at once.
    ///
    /// # Panics
    /// When the program has ended.
    pub async fn while_stopped<T>(&self, what: impl Future<Output = T>) -> T {
        let pid = Pid::from_raw(self.child.id().try_into().unwrap());
        kill(pid, Signal::SIGSTOP).unwrap();
        until("every thread of the program stops", async || {
            let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
            threads.flatten().all(|thread| {
                let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
                stat.rsplit_once(") ").is_none_or(|(_, state)| state.starts_with('T'))
            })
        })
        .await;
        let done = what.await;
        kill(pid, Signal::SIGCONT).unwrap();
        done
    }

    fn learn_addresses(&mut self) -> bool {
        let log = self.log.lock().unwrap();
        let Some(line) = log.iter().find(|line| line.contains("the sidecar runs")) else {
            return false;
        };
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let addresses = |field: &str| -> Vec<SocketAddr> {
            let list = line[field].as_str().unwrap().trim_matches(['[', ']']);
            list.split(", ").filter_map(|address| address.parse().ok()).collect()
        };
        self.admin = line["admin"].as_str().unwrap().parse().unwrap();
        (self.inbound, self.outbound) = (addresses("inbound"), addresses("outbound"));
        true
    }

    /// How many lines of its log say so.
    pub fn said(&self, what: &str) -> usize {
        self.log
            .lock()
            .unwrap()
            .iter()
            .filter(|line| line.contains(what))
            .count()
    }

    /// What is resident, in KiB.
    pub fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        resident.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// The CPU time that it has spent (proc(5): `utime` and `stime`, in ticks of 10 ms).
    pub fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        let times = fields.split(' ').skip(11).take(2);
        Duration::from_millis(times.map(|ticks| ticks.parse::<u64>().unwrap() * 10).sum())
    }

    /// Its limits of open files, soft and hard.
    pub fn file_limits(&self) -> (u64, u64) {
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", self.child.id())).unwrap();
        let line = limits
            .lines()
            .find_map(|line| line.strip_prefix("Max open files"))
            .unwrap();
        let mut numbers = line.split_whitespace().map_while(|number| number.parse().ok());
        (numbers.next().unwrap(), numbers.next().unwrap())
    }

    /// How many files it has open, as it says itself: it lets nobody else look, but root.
    pub async fn files(&self) -> u64 {
        self.metric("process_open_fds ").await
    }

    /// The sum of its connections.
    pub async fn connections(&self, direction: &str) -> u64 {
        self.metric(&format!("outrigger_connections_open{{direction=\"{direction}\""))
            .await
    }

    /// The sum of all series that begin like this.
    async fn metric(&self, prefix: &str) -> u64 {
        let metrics = Http::one().get(self.admin, "/metrics").await;
        let metrics = String::from_utf8_lossy(&metrics.body).into_owned();
        let series = metrics.lines().filter(|line| line.starts_with(prefix));
        series
            .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
            .sum()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
