//! TLSRoutes and TCPRoutes: where connections go that are carried as bytes.

use std::sync::Arc;

use outrigger_api::discovery as proto;

use super::{Filters, HostnameMatch, WeightedBackend};

/// The rule of a TLSRoute or TCPRoute.
#[derive(Debug)]
pub struct ByteRoute {
    /// "namespace/name/rule-index".
    pub name: Arc<str>,
    /// Any of them. None: every connection.
    pub server_names: Vec<HostnameMatch>,
    /// Without filters.
    pub backends: Vec<WeightedBackend>,
}

impl ByteRoute {
    pub(super) fn from_proto(message: &proto::ByteRoute, backend: impl Fn(u32) -> Option<usize>) -> Self {
        let weighted = |weighted: &proto::WeightedBackend| WeightedBackend {
            backend: backend(weighted.backend),
            weight: weighted.weight,
            filters: Filters::default(),
        };
        Self {
            name: message.name.as_str().into(),
            server_names: message
                .hostnames
                .iter()
                .map(|name| HostnameMatch::parse(name))
                .collect(),
            backends: message.backends.iter().map(weighted).collect(),
        }
    }

    /// How well the route fits a connection that asks for this server: the greater, the better. `None`: not at all.
    pub fn fits(&self, server: Option<&str>) -> Option<usize> {
        if self.server_names.is_empty() {
            return Some(0);
        }
        let server = server?;
        let fitting = self.server_names.iter().filter(|name| name.is(server));
        fitting.map(HostnameMatch::rank).max()
    }

    /// Whether the name of a server has to be known.
    pub fn asks_for_name(&self) -> bool {
        !self.server_names.is_empty()
    }
}
