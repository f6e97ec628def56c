//! Spans on their way to the collector.
use std::sync::Arc;
use std::time::Duration;

use super::{ExportSettings, Metrics, Resource, SpanRecord};

pub(super) struct Exporter {}

impl Exporter {
    pub(super) fn start(_export: &ExportSettings, _resource: &Resource, _metrics: Arc<Metrics>) -> Result<Self, String> {
        Ok(Self {})
    }
    pub(super) fn record(&self, _span: SpanRecord) {}
    pub(super) async fn flush(&self, _limit: Duration) {}
}
