//! The command line of `outrigger-proxy`.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use nix::sys::prctl::set_dumpable;
use outrigger_api::ports;
use outrigger_proxy_transport::room::Budget;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::app;
use crate::capture::{self, CaptureConfig};
use crate::config::Config;
use crate::telemetry::logging::LogFilter;

/// The exit code for a configuration that is wrong.
const WRONG_CONFIGURATION: u8 = 2;
/// Between two looks at `/readyz`.
const WAIT_INTERVAL: Duration = Duration::from_millis(100);
const WAIT_ANSWER: Duration = Duration::from_secs(1);

/// Outrigger's sidecar.
#[derive(Parser, Debug)]
#[command(name = "outrigger-proxy", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Carries the pod's traffic until SIGTERM.
    Run {
        /// A standalone sidecar's file. Without it, the environment says everything, as the injector writes it.
        #[arg(long)]
        config: Option<PathBuf>,
    },
    /// Redirects the pod's connections to the sidecar, and exits. Needs NET_ADMIN.
    Init,
    /// Waits until the sidecar of this pod is ready.
    Wait {
        /// When to give up: "90s", "2m".
        #[arg(long, default_value = "60s", value_parser = outrigger_api::duration::parse)]
        timeout: Duration,
        /// The sidecar's admin port.
        #[arg(long, default_value_t = SocketAddr::from(([127, 0, 0, 1], ports::ADMIN)))]
        admin: SocketAddr,
    },
}

/// Runs the command that `args` (the program's name first) ask for.
pub fn main<I, A>(args: I) -> ExitCode
where
    I: IntoIterator<Item = A>,
    A: Into<OsString> + Clone,
{
    let arguments = match Arguments::try_parse_from(args) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are errors in clap's eyes; it knows where to print them. A closed pipe is no reason to fail.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(WRONG_CONFIGURATION));
        }
    };
    match arguments.command {
        Command::Run { config } => run(config),
        Command::Init => init(),
        Command::Wait { timeout, admin } => wait(admin, timeout),
    }
}

fn run(file: Option<PathBuf>) -> ExitCode {
    let hidden = hide();
    let config = match &file {
        None => Config::from_env(|name| std::env::var(name).ok()),
        Some(path) => match std::fs::read_to_string(path) {
            Ok(text) => Config::from_yaml(&path.to_string_lossy(), &text),
            Err(error) => Err(vec![format!("{}: {error}", path.display())]),
        },
    };
    let mut config = match config {
        Ok(config) => config,
        Err(errors) => return wrong_configuration(&errors),
    };
    config.budget = Budget::of(outrigger_gate::memory_limit());
    let log = match LogFilter::install(&config.log) {
        Ok(log) => log,
        Err(error) => return wrong_configuration(&[error]),
    };
    if let Err(error) = hidden {
        tracing::warn!(%error, "other processes of this user can read the memory of this one, and its files");
    }
    app::run(config, log).unwrap_or_else(|error| {
        tracing::error!(error = format!("{error:#}"), "the sidecar failed");
        ExitCode::FAILURE
    })
}

/// What this process will hold (a key, a token) is not for other processes of its user, which there may be where an app runs as root
/// and the containers of the pod see one another's processes: without the capability SYS_PTRACE, they have no access to the memory, the
/// environment, the open files and the root directory of a process that may not be dumped (ptrace(2), proc_pid(5)).
fn hide() -> nix::Result<()> {
    set_dumpable(false)
}

fn init() -> ExitCode {
    let config = match CaptureConfig::from_env(|name| std::env::var(name).ok()) {
        Ok(config) => config,
        Err(errors) => return wrong_configuration(&errors),
    };
    match capture::apply(&config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("outrigger-proxy init: {error}");
            ExitCode::FAILURE
        }
    }
}

fn wait(admin: SocketAddr, limit: Duration) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let until_ready = async {
        while !is_ready(admin).await {
            sleep(WAIT_INTERVAL).await;
        }
    };
    let waited = runtime.map(|runtime| runtime.block_on(async { timeout(limit, until_ready).await }));
    match waited {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(_)) => {
            eprintln!(
                "outrigger-proxy wait: the sidecar is not ready after {limit:?}; see its log, and GET {admin}/readyz"
            );
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("outrigger-proxy wait: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn is_ready(admin: SocketAddr) -> bool {
    let ask = async {
        let mut connection = TcpStream::connect(admin).await?;
        let request = "GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        connection.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        connection.take(64).read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer.starts_with(b"HTTP/1.1 200 "))
    };
    matches!(timeout(WAIT_ANSWER, ask).await, Ok(Ok(true)))
}

/// Before there is a log: everything that is wrong, a line each.
fn wrong_configuration(errors: &[String]) -> ExitCode {
    for error in errors {
        eprintln!("outrigger-proxy: {error}");
    }
    ExitCode::from(WRONG_CONFIGURATION)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{Arguments, wait};
    use clap::CommandFactory;
    use std::io::{Read, Write};
    use std::process::ExitCode;
    use std::time::Duration;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn waiting_ends_with_readiness_or_with_patience() {
        let admin = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = admin.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            for status in ["503 Service Unavailable", "200 OK"] {
                let (mut asked, _) = admin.accept().unwrap();
                let _ = asked.read(&mut [0; 1024]).unwrap();
                let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
                asked.write_all(answer.as_bytes()).unwrap();
            }
        });
        assert_eq!(wait(address, Duration::from_secs(10)), ExitCode::SUCCESS);
        server.join().unwrap();
        assert_eq!(wait(address, Duration::from_millis(50)), ExitCode::FAILURE);
    }
}
