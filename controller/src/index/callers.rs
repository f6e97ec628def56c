//! Which sidecars are told of a Service, and what they understand.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use outrigger_api::discovery::Feature;

use super::watches::Watches;
use crate::objects::ObjectName;
use crate::split::{Routes, service_of};
use crate::topology::TargetViews;

type Key = (SocketAddr, Arc<str>);

/// All sidecars that this controller tells of anything.
pub(crate) struct Callers<'a> {
    pub(super) sessions: &'a Watches<Key, Routes>,
    /// Of the version before the session, which understand nothing beyond it.
    pub(super) streams: &'a Watches<Key, TargetViews>,
}

/// How many there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) all: usize,
    /// Those that do not understand one of the features.
    pub(crate) lacking: usize,
}

impl Callers<'_> {
    /// Of those that are told of a Service's port that is meant, by its number and the namespace of the callers.
    pub(crate) fn count(&self, needs: &[Feature], meant: impl Fn(&ObjectName, u16, &str) -> bool) -> Count {
        let mut lacks = HashMap::new();
        for ((_, callers), topic) in self.sessions.iter() {
            let routes = topic.value();
            if routes
                .service()
                .is_some_and(|(service, port)| meant(service, *port, callers))
            {
                for inbox in topic.readers() {
                    let lacking = needs.iter().any(|feature| !inbox.understands(*feature));
                    lacks.insert(Arc::as_ptr(&inbox).addr(), lacking);
                }
            }
        }
        let mut streams = 0;
        for ((_, callers), topic) in self.streams.iter() {
            let service = service_of(topic.value().common());
            if service.is_some_and(|(service, port)| meant(&service, port, callers)) {
                streams += topic.watchers();
            }
        }
        let old = if needs.is_empty() { 0 } else { streams };
        Count {
            all: lacks.len() + streams,
            lacking: lacks.values().filter(|lacking| **lacking).count() + old,
        }
    }
}
