//! Ports whose server speaks first although nobody declared it: NATS, SMTP or MySQL on a port of its own.
//!
//! Nobody can tell such a server from one that waits, so its first connection waits for the client's bytes until the limit
//! of detection, and for the server's only then. What came of it is remembered: later connections wait for both at once,
//! and whoever speaks first decides. So the memory changes who is waited for, and never what a connection is taken for:
//! a client of HTTP that speaks is still understood, and has the port forgotten.
//!
//! Read without a lock: connections ask, and few of them have something new to say.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::time::Instant;

/// How long a port is remembered after its server was last heard first.
const KEEP: Duration = Duration::from_secs(600);
/// A port is written down again only when this much of [`KEEP`] has gone.
const REFRESH: Duration = Duration::from_secs(60);
/// Ports that are remembered at a time. Beyond it, the one goes that was heard longest ago.
pub const MAX_PORTS: usize = 256;
/// A server that speaks first does so at once. What comes later is something else, the complaint of an HTTP server about a
/// request that does not come for instance.
pub const PROMPT: Duration = Duration::from_secs(1);

/// See the module. `P` names a port.
pub struct ServerFirst<P> {
    /// When the server was last heard first.
    heard: ArcSwap<HashMap<P, Instant>>,
    /// Taken to change `heard`.
    changing: Mutex<()>,
}

impl<P: Clone + Eq + Hash + Ord> ServerFirst<P> {
    /// Whether the server may be the first to speak.
    pub fn contains(&self, port: &P, now: Instant) -> bool {
        self.heard.load().get(port).is_some_and(|heard| is_fresh(*heard, now))
    }

    /// These were the first bytes of a server whose client had said nothing; they came `after` it was connected to.
    pub fn observe(&self, port: &P, greeting: &[u8], after: Duration, now: Instant) {
        if greeting.is_empty() || greeting.starts_with(b"HTTP/") || after > PROMPT {
            return;
        }
        let known = self.heard.load().get(port).copied();
        if known.is_some_and(|heard| now.saturating_duration_since(heard) < REFRESH) {
            return;
        }
        self.change(now, |heard| {
            let oldest = || {
                heard
                    .iter()
                    .min_by_key(|(_, heard)| **heard)
                    .map(|(port, _)| port.clone())
            };
            if !heard.contains_key(port)
                && heard.len() >= MAX_PORTS
                && let Some(oldest) = oldest()
            {
                heard.remove(&oldest);
            }
            heard.insert(port.clone(), now);
        });
    }

    /// A client spoke HTTP: its server does not speak first.
    pub fn forget(&self, port: &P, now: Instant) {
        if self.heard.load().contains_key(port) {
            self.change(now, |heard| _ = heard.remove(port));
        }
    }

    /// What is remembered, in order: for metrics.
    pub fn ports(&self, now: Instant) -> Vec<P> {
        let heard = self.heard.load();
        let fresh = heard.iter().filter(|(_, heard)| is_fresh(**heard, now));
        let mut ports: Vec<P> = fresh.map(|(port, _)| port.clone()).collect();
        ports.sort_unstable();
        ports
    }

    fn change(&self, now: Instant, change: impl FnOnce(&mut HashMap<P, Instant>)) {
        let _changing = self.changing.lock();
        let mut heard = HashMap::clone(&self.heard.load());
        heard.retain(|_, heard| is_fresh(*heard, now));
        change(&mut heard);
        self.heard.store(heard.into());
    }
}

impl<P> Default for ServerFirst<P> {
    fn default() -> Self {
        Self {
            heard: ArcSwap::default(),
            changing: Mutex::default(),
        }
    }
}

fn is_fresh(heard: Instant, now: Instant) -> bool {
    now.saturating_duration_since(heard) < KEEP
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT_ONCE: Duration = Duration::from_millis(2);

    #[test]
    fn a_port_is_remembered_while_its_server_is_heard_first() {
        let (ports, begin) = (ServerFirst::default(), Instant::now());
        assert!(!ports.contains(&4222, begin));
        ports.observe(&4222, b"INFO {}", AT_ONCE, begin);
        assert!(ports.contains(&4222, begin + KEEP / 2));
        assert!(!ports.contains(&4223, begin));
        // Heard again: it stays for longer.
        ports.observe(&4222, b"INFO {}", AT_ONCE, begin + KEEP / 2);
        assert!(ports.contains(&4222, begin + KEEP));
        assert_eq!(ports.ports(begin + KEEP), [4222]);
        assert!(!ports.contains(&4222, begin + KEEP + KEEP / 2));
        assert_eq!(ports.ports(begin + KEEP + KEEP / 2), [] as [i32; 0]);
    }

    #[test]
    fn what_does_not_speak_first_is_not_remembered() {
        let (ports, now) = (ServerFirst::default(), Instant::now());
        for (said, after) in [
            (&b""[..], AT_ONCE),
            (b"HTTP/1.1 408 Request Timeout\r\n", AT_ONCE),
            (b"ERROR idle", PROMPT + AT_ONCE),
        ] {
            ports.observe(&80, said, after, now);
            assert!(!ports.contains(&80, now), "{said:?}");
        }
    }

    #[test]
    fn a_client_of_http_has_its_port_forgotten() {
        let (ports, now) = (ServerFirst::default(), Instant::now());
        for port in [1, 2] {
            ports.observe(&port, b"220", AT_ONCE, now);
        }
        ports.forget(&1, now);
        ports.forget(&3, now);
        assert_eq!(ports.ports(now), [2]);
    }

    #[test]
    fn the_one_heard_longest_ago_makes_room() {
        let (ports, begin) = (ServerFirst::default(), Instant::now());
        let mut now = begin;
        for port in 0..=MAX_PORTS {
            now += AT_ONCE;
            ports.observe(&port, b"220", AT_ONCE, now);
        }
        let known = ports.ports(now);
        assert_eq!(known.len(), MAX_PORTS);
        assert!(!known.contains(&0) && known.contains(&MAX_PORTS), "{known:?}");
    }
}
