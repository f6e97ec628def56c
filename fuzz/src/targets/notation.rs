//! Durations and lists of ports, as policies, annotations and variables have them.

use std::sync::LazyLock;
use std::time::Duration;

use outrigger_api::{duration, labels};
use regex::Regex;

static DURATION: LazyLock<Regex> = LazyLock::new(|| Regex::new(duration::PATTERN).expect("a pattern"));
/// Five digits of hours, four times.
const LONGEST: Duration = Duration::from_secs(4 * 99_999 * 3600);

/// Any text.
pub fn run(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let parsed = duration::parse(&text);
    assert_eq!(parsed.is_ok(), DURATION.is_match(&text), "{text:?}: {parsed:?}");
    if let Ok(duration) = &parsed {
        assert!(*duration <= LONGEST);
    }
    if let Ok(ports) = labels::parse_ports(&text) {
        assert!(
            ports
                .iter()
                .all(|range| 0 < *range.start() && range.start() <= range.end())
        );
        let written: Vec<String> = ports.iter().map(|r| format!("{}-{}", r.start(), r.end())).collect();
        assert_eq!(labels::parse_ports(&written.join(",")), Ok(ports));
    }
}
