//! The sidecar's own log: JSON lines on standard error, with a filter that can be changed while it runs.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::Registry;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

/// Lines of one kind that a worker writes in a [`PERIOD`], whatever strangers do.
const LINES: u32 = 20;
const PERIOD: Duration = Duration::from_secs(10);

/// Bounds how often a worker says a thing that strangers can make it say.
#[derive(Debug, Default)]
pub struct LogLimit {
    since: Cell<Option<Instant>>,
    lines: Cell<u32>,
    left_out: Cell<u64>,
}

impl LogLimit {
    /// Writes a line, which is told how many were left out before it; or leaves it out.
    pub fn log(&self, now: Instant, line: impl FnOnce(u64)) {
        let goes_on = |since: Instant| now.saturating_duration_since(since) < PERIOD;
        if !self.since.get().is_some_and(goes_on) {
            self.since.set(Some(now));
            self.lines.set(0);
        }
        if self.lines.get() < LINES {
            self.lines.set(self.lines.get() + 1);
            line(self.left_out.take());
        } else {
            self.left_out.set(self.left_out.get() + 1);
        }
    }
}

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

    use std::cell::Cell;
    use std::time::Duration;

    use tokio::time::Instant;

    use super::{LINES, LogLimit, PERIOD, parse};

    #[test]
    fn what_strangers_make_it_say_is_bounded_and_counted() {
        let (limit, said, left_out) = (LogLimit::default(), Cell::new(0), Cell::new(0));
        let begin = Instant::now();
        let log = |at: Duration| {
            limit.log(begin + at, |before| {
                said.set(said.get() + 1);
                left_out.set(left_out.get() + before);
            });
        };
        for n in 0..10_000 {
            log(PERIOD.mul_f64(f64::from(n) / 20_000.0));
        }
        assert_eq!((said.get(), left_out.get()), (LINES, 0));
        log(PERIOD);
        assert_eq!((said.get(), left_out.get()), (LINES + 1, 10_000 - u64::from(LINES)));
        log(PERIOD);
        assert_eq!((said.get(), left_out.get()), (LINES + 2, 10_000 - u64::from(LINES)));
    }

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
