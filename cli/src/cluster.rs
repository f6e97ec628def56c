//! The cluster, and the admin ports of its sidecars.

use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::client::UpgradeConnectionError;
use kube::{Api, Client};
use outrigger_api::ports;
use tokio::io::{AsyncRead, AsyncWrite};

/// One page.
const TIMEOUT: Duration = Duration::from_secs(10);
const MAX_PAGE: usize = 16 * 1024 * 1024;
/// Bytes of an answer that is no page.
const MAX_SAID: usize = 512;

/// # Errors
/// When there is neither a kubeconfig nor a cluster around this process.
pub(crate) async fn connect(context: Option<String>) -> anyhow::Result<Client> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default(); // an error: there is one already
    let options = kube::config::KubeConfigOptions {
        context,
        ..Default::default()
    };
    // Without a kubeconfig, as in a pod, the pod's own account is taken.
    let config = match kube::Config::from_kubeconfig(&options).await {
        Ok(config) => config,
        Err(error) if options.context.is_some() => return Err(error).context("kubeconfig"),
        Err(_) => kube::Config::infer()
            .await
            .context("neither a kubeconfig nor a cluster around this process")?,
    };
    Client::try_from(config).context("connecting to Kubernetes")
}

/// Reads a page of a sidecar that is for the pod itself: over the pod's loopback, as `kubectl port-forward` does, with the right to
/// `create` `pods/portforward`.
///
/// # Errors
/// When the user may not, there is no such pod, or nothing answers there.
pub(crate) async fn sidecar_page(client: &Client, namespace: &str, pod: &str, path: &str) -> anyhow::Result<Bytes> {
    let page = async {
        let pods = Api::<Pod>::namespaced(client.clone(), namespace);
        let mut forwarder = pods.portforward(pod, &[ports::ADMIN]).await.map_err(in_words)?;
        let stream = forwarder.take_stream(ports::ADMIN).context("no stream")?;
        let refused = forwarder.take_error(ports::ADMIN).context("no stream of errors")?;
        tokio::select! {
            biased;
            Some(why) = refused => Err(anyhow::anyhow!(why)),
            page = get(stream, path) => page,
        }
    };
    let asking = || {
        format!(
            "asking the sidecar of {namespace}/{pod} at its admin port, {}",
            ports::ADMIN
        )
    };
    let answer = tokio::time::timeout(TIMEOUT, page).await;
    answer
        .with_context(|| format!("it does not answer within {TIMEOUT:?}"))
        .flatten()
        .with_context(asking)
}

/// Of an upgrade that is refused, the library says a status and no more.
fn in_words(error: kube::Error) -> anyhow::Error {
    match error {
        kube::Error::UpgradeConnection(UpgradeConnectionError::ProtocolSwitch(StatusCode::NOT_FOUND)) => {
            anyhow!("the pod was not found")
        }
        kube::Error::UpgradeConnection(UpgradeConnectionError::ProtocolSwitch(StatusCode::FORBIDDEN)) => {
            anyhow!("you may not create pods/portforward there")
        }
        error => error.into(),
    }
}

/// What a cluster says, for a terminal: whoever writes objects, or answers in a sidecar's place, chooses it, and must not write lines of
/// ours or move the cursor.
pub(crate) fn printable(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_control() {
            true => safe.extend(c.escape_default()),
            false => safe.push(c),
        }
    }
    safe
}

async fn get(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, path: &str) -> anyhow::Result<Bytes> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::get(path)
        .header(header::HOST, "localhost")
        .body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_PAGE).collect().await;
    connection.abort();
    let body = body.map_err(|error| anyhow::anyhow!("{path}: {error}"))?.to_bytes();
    let said = String::from_utf8_lossy(&body[..body.len().min(MAX_SAID)]);
    ensure!(status.is_success(), "{path}: {status}: {}", printable(said.trim()));
    Ok(body)
}

#[cfg(test)]
mod tests;
