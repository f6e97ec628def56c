//! The sidecar's own log: JSON lines on standard error, with a filter that can be changed while it runs.

use std::sync::Arc;

use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::Registry;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

/// Changes the log's filter.
#[derive(Clone)]
pub struct LogFilter(Arc<reload::Handle<EnvFilter, Registry>>);

impl LogFilter {
    /// Installs the process's log.
    ///
    /// # Errors
    /// When `filter` is not one ("info", "outrigger_proxy=debug,info"), or a log is installed already.
    pub fn install(filter: &str) -> Result<Self, String> {
        let (layer, handle) = reload::Layer::new(parse(filter)?);
        let lines = tracing_subscriber::fmt::layer()
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .with_writer(std::io::stderr);
        tracing_subscriber::registry()
            .with(layer)
            .with(lines)
            .try_init()
            .map_err(|error| format!("the log could not be installed: {error}"))?;
        Ok(Self(Arc::new(handle)))
    }

    /// The filter now.
    pub fn current(&self) -> String {
        self.0.with_current(ToString::to_string).unwrap_or_default()
    }

    /// Replaces the filter.
    ///
    /// # Errors
    /// When `filter` is not one; the old one goes on.
    pub fn set(&self, filter: &str) -> Result<(), String> {
        self.0.reload(parse(filter)?).map_err(|error| error.to_string())
    }
}

fn parse(filter: &str) -> Result<EnvFilter, String> {
    EnvFilter::try_new(filter)
        .map_err(|error| format!("{filter:?} is not a log filter like \"info\" or \"outrigger_proxy=debug\": {error}"))
}

#[cfg(test)]
mod tests {
    use tracing::Level;
    use tracing_subscriber::layer::SubscriberExt;
    use tracing_subscriber::registry::Registry;

    use super::parse;

    #[test]
    fn a_filter_for_the_proxy_holds_for_its_transport() {
        let enabled = |filter: &str| {
            let subscriber = Registry::default().with(parse(filter).unwrap_or_default());
            tracing::subscriber::with_default(subscriber, || {
                let proxy = tracing::enabled!(target: "outrigger_proxy::outbound", Level::DEBUG);
                let transport = tracing::enabled!(target: "outrigger_proxy_transport::client::pool", Level::DEBUG);
                (proxy, transport)
            })
        };
        assert_eq!(enabled("warn,outrigger_proxy=debug"), (true, true));
        assert_eq!(enabled("info"), (false, false));
        let of_transport = std::any::type_name::<outrigger_proxy_transport::net::Stream>();
        assert!(
            of_transport.starts_with("outrigger_proxy_transport::"),
            "{of_transport}"
        );
    }
}
