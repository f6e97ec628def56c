//! The demo's children: started together, watched, and ended together, whatever happens to the demo itself.
//!
//! A child ends with the demo in one of three ways: it gets SIGTERM, and SIGKILL if that does not help; it is killed when
//! its handle is dropped (an error, a panic); and the kernel kills it when the demo was killed ([`super::internal`]).

use std::collections::VecDeque;
use std::fmt;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use parking_lot::Mutex;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// The environment variable that tells a child whose child it must be.
pub(super) const PARENT: &str = "OUTRIGGER_DEMO_PARENT";

const LOG_LINES: usize = 20;
const LOG_LINE_BYTES: usize = 512;
/// Longer than a sidecar drains.
const GRACE: Duration = Duration::from_secs(5);

/// All children.
pub(super) struct Processes {
    running: JoinSet<Ended>,
    stop: watch::Sender<bool>,
}

/// A child that is no more.
#[derive(Debug)]
pub(super) struct Ended {
    name: String,
    status: String,
    last_lines: Vec<String>,
    /// It had to be killed, or it ended without being asked.
    pub(super) badly: bool,
}

impl Ended {
    /// Whether an address was taken by somebody else in the meantime.
    pub(super) fn address_in_use(&self) -> bool {
        self.last_lines.iter().any(|line| line.contains("in use"))
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ended unexpectedly ({})", self.name, self.status)?;
        if self.last_lines.is_empty() {
            return write!(f, ", and had said nothing");
        }
        write!(f, "; its last lines:")?;
        self.last_lines.iter().try_for_each(|line| write!(f, "\n    {line}"))
    }
}

impl Processes {
    pub(super) fn new() -> Self {
        Self {
            running: JoinSet::new(),
            stop: watch::Sender::new(false),
        }
    }

    /// Starts this very program with other arguments. It must be called on the main thread: the kernel ends a child
    /// with the thread that started it.
    pub(super) fn start(&mut self, name: &str, arguments: impl IntoIterator<Item = String>) -> anyhow::Result<()> {
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let mut child = Command::new(&program)
            .args(arguments)
            .env(PARENT, std::process::id().to_string())
            .process_group(0) // Ctrl-C is for the demo, which then ends its children in order
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let log = Log::default();
        if let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) {
            tokio::spawn(log.clone().follow(stdout));
            tokio::spawn(log.clone().follow(stderr));
        }
        self.running
            .spawn(watch_over(name.to_owned(), child, log, self.stop.subscribe()));
        Ok(())
    }

    /// Waits until a child ends that nobody asked to. Cancel safe.
    pub(super) async fn ended(&mut self) -> Ended {
        match self.running.join_next().await {
            Some(Ok(ended)) => ended,
            // A task that watches a child does not panic, and there is always a child while the demo runs.
            Some(Err(_)) | None => std::future::pending().await,
        }
    }

    /// Ends all children, and tells which did not end as they should.
    pub(super) async fn stop(mut self) -> Vec<Ended> {
        self.stop.send_replace(true);
        let mut badly = Vec::new();
        while let Some(ended) = self.running.join_next().await {
            badly.extend(ended.ok().filter(|ended| ended.badly));
        }
        badly
    }
}

async fn watch_over(name: String, mut child: Child, log: Log, mut stop: watch::Receiver<bool>) -> Ended {
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw);
    let (status, badly) = tokio::select! {
        status = child.wait() => (status, true),
        () = asked(&mut stop) => {
            // The child is not reaped yet, so the number is its own.
            let _ = pid.map(|pid| kill(pid, Signal::SIGTERM));
            match tokio::time::timeout(GRACE, child.wait()).await {
                Ok(status) => {
                    let failed = !matches!(&status, Ok(status) if status.success());
                    (status, failed)
                }
                Err(_) => {
                    let _ = child.kill().await;
                    log.line(format!("(did not end within {} s of SIGTERM, and was killed)", GRACE.as_secs()));
                    (child.wait().await, true)
                }
            }
        }
    };
    if badly {
        tokio::time::sleep(Duration::from_millis(50)).await; // for its last words to arrive
    }
    let status = status.map_or_else(|error| error.to_string(), |status: ExitStatus| status.to_string());
    Ended {
        name,
        status,
        last_lines: log.0.lock().iter().cloned().collect(),
        badly,
    }
}

/// Waits until the children are to end.
async fn asked(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await; // or until nobody can ask any more, which is an end too
}

/// The last lines that a child wrote.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<VecDeque<String>>>);

impl Log {
    async fn follow(self, output: impl AsyncRead + Unpin) {
        let mut lines = BufReader::new(output).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            self.line(line);
        }
    }

    fn line(&self, mut line: String) {
        line.truncate(line.floor_char_boundary(LOG_LINE_BYTES));
        let mut lines = self.0.lock();
        if lines.len() == LOG_LINES {
            lines.pop_front();
        }
        lines.push_back(line);
    }
}

#[cfg(test)]
mod tests {
    use super::{Ended, LOG_LINES, Log};

    #[test]
    fn the_last_lines_are_kept_and_shown() {
        let log = Log::default();
        (0..2 * LOG_LINES).for_each(|n| log.line(format!("line {n}")));
        let last_lines: Vec<_> = log.0.lock().iter().cloned().collect();
        assert_eq!(last_lines.len(), LOG_LINES);
        let ended = Ended {
            name: "orders".to_owned(),
            status: "exit status: 1".to_owned(),
            last_lines,
            badly: true,
        };
        let text = ended.to_string();
        assert!(
            text.starts_with("orders ended unexpectedly (exit status: 1); its last lines:\n"),
            "{text}"
        );
        assert!(text.ends_with("\n    line 39"), "{text}");
        assert!(!ended.address_in_use());
    }
}
