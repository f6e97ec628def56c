//! The way to the controller: TLS 1.3 to exactly its SPIFFE ID, by a resolver of our own.

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use outrigger_api::spiffe::SpiffeId;
use outrigger_proxy_transport::error::{ProxyError, Reason};
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};

use super::clock::Clock;
use super::credentials::connect_as;
use crate::dns::{HostPort, Resolver};

const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// A controller that went away without a word is noticed after both together.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Who is called, and how.
#[derive(Clone)]
pub(crate) struct Dialer {
    pub(crate) address: HostPort,
    pub(crate) id: SpiffeId,
    pub(crate) resolver: Resolver,
    pub(crate) clock: Clock,
}

impl Dialer {
    /// A channel that connects when it is used, and again after it was lost.
    pub(crate) fn channel(&self, tls: Arc<ClientConfig>) -> Channel {
        let dialer = self.clone();
        // The name is never resolved: the connector below knows where to go.
        Endpoint::from_static("http://outrigger-controller")
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .connect_with_connector_lazy(tower::service_fn(move |_| {
                let (dialer, tls) = (dialer.clone(), tls.clone());
                async move { dialer.dial(&tls).await.map(TokioIo::new) }
            }))
    }

    async fn dial(&self, tls: &Arc<ClientConfig>) -> Result<TlsStream<TcpStream>, ProxyError> {
        let failed = |reason, words: String| ProxyError::new(reason, format!("controller {}: {words}", self.address));
        let connect = async {
            let addresses = self.resolver.resolve(&self.address.host).await;
            let addresses = addresses.map_err(|error| failed(Reason::ConnectFailed, error))?;
            let mut last = failed(Reason::ConnectFailed, "its name has no address".to_owned());
            for ip in addresses {
                match TcpStream::connect(SocketAddr::new(ip, self.address.port)).await {
                    Ok(tcp) => {
                        tcp.set_nodelay(true).ok();
                        return Ok(connect_as(tls, tcp, ip, &self.id, &self.clock).await?);
                    }
                    Err(error) => {
                        last = failed(
                            Reason::ConnectFailed,
                            format!("{ip} cannot be connected: {error}: check that its pods run and are ready"),
                        );
                    }
                }
            }
            Err(last)
        };
        let late = || failed(Reason::ConnectTimeout, format!("no connection within {DIAL_TIMEOUT:?}"));
        timeout(DIAL_TIMEOUT, connect).await.unwrap_or_else(|_| Err(late()))
    }
}

/// What a call to the controller failed with: tonic hides the cause in the sources.
pub(crate) fn status_words(status: &tonic::Status) -> String {
    let mut words = match status.message() {
        "" => format!("{:?}", status.code()),
        message => message.to_owned(),
    };
    let mut source = status.source();
    while let Some(error) = source {
        let text = error.to_string();
        // Some wrap an error only to say the same again.
        if !words.contains(&text) {
            words = format!("{words}: {text}");
        }
        source = error.source();
    }
    words
}
