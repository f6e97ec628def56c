//! The admin port: probes, metrics, what the sidecar believes, and switches that work from loopback only.

use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::telemetry::Telemetry;
use crate::telemetry::logging::LogFilter;

/// What the admin port shows and switches.
#[derive(Clone)]
pub struct AdminState {
    pub telemetry: Telemetry,
    /// `Err` says what the sidecar is waiting for.
    pub ready: Arc<dyn Fn() -> Result<(), String> + Send + Sync>,
    /// What it believes: configuration, targets, identity. Never a key or a token.
    pub config: Arc<dyn Fn() -> serde_json::Value + Send + Sync>,
    /// `None` where the process's log is not this sidecar's own.
    pub log: Option<LogFilter>,
    /// Cancelled by `POST /shutdown`.
    pub shutdown: CancellationToken,
}

/// Serves the admin port until the task is dropped.
pub async fn serve(_listener: TcpListener, _state: AdminState) {
    std::future::pending().await
}
