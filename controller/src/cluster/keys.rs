//! What fetching keys needs of the cluster: names, ConfigMaps and Services.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use hickory_resolver::TokioResolver;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};
use tokio::net::TcpStream;

use crate::index::Index;
use crate::jwks::{Failure, World, may_be_called, written_in};
use crate::objects::ObjectName;

/// See the module.
pub struct Cluster {
    client: Client,
    index: Arc<Index>,
    /// None: the system's name servers cannot be read. All but keys at URLs goes on without.
    resolver: Option<TokioResolver>,
}

impl Cluster {
    /// Needs `get` on ConfigMaps.
    pub fn new(client: Client, index: Arc<Index>) -> Self {
        let resolver = TokioResolver::builder_tokio().and_then(|builder| builder.build());
        if let Err(e) = &resolver {
            tracing::error!(error = %e, "which name servers there are cannot be read: no keys of tokens are fetched by a name");
        }
        Self {
            client,
            index,
            resolver: resolver.ok(),
        }
    }

    async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, String> {
        // With a dot at its end it is a full name: else "login.com" would be the Service login of the namespace com.
        let full = format!("{}.", host.trim_end_matches('.'));
        let resolver = self.resolver.as_ref();
        let resolver = resolver.ok_or("which name servers there are cannot be read: the controller's log says why")?;
        let found = resolver.lookup_ip(full).await;
        let found = found.map_err(|e| match e.is_no_records_found() {
            true => format!("the name {host} has no address"),
            false => format!("the name {host} cannot be resolved: no name server answers as it should"),
        })?;
        Ok(found.iter().collect())
    }

    async fn value(&self, map: ObjectName, key: &str) -> Result<String, Failure> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), &map.namespace);
        let read = api.get_opt(&map.name).await;
        let read = read.map_err(|e| format!("the ConfigMap {} cannot be read: {e}", map.name))?;
        let read = read.ok_or_else(|| Failure::gone(format!("there is no ConfigMap {}", map.name)))?;
        let value = read.data.and_then(|mut data| data.remove(key));
        value.ok_or_else(|| Failure::gone(format!("the ConfigMap {} has no key {key}", map.name)))
    }
}

impl World for Cluster {
    type Stream = TcpStream;

    fn resolve<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Result<Vec<IpAddr>, String>> {
        self.addresses(host).boxed()
    }

    fn forbidden(&self, address: IpAddr) -> Option<IpAddr> {
        if !may_be_called(address) {
            return Some(address);
        }
        let inner = match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => written_in(address).map(IpAddr::V4),
        };
        let mut services = [Some(address), inner].into_iter().flatten();
        services.find_map(|service| self.index.endpoint_behind(service, |endpoint| !may_be_called(endpoint)))
    }

    fn connect(&self, address: SocketAddr) -> BoxFuture<'_, io::Result<TcpStream>> {
        TcpStream::connect(address).boxed()
    }

    fn config_map<'a>(&'a self, map: ObjectName, key: &'a str) -> BoxFuture<'a, Result<String, Failure>> {
        self.value(map, key).boxed()
    }

    fn service(&self, service: ObjectName, port: u16) -> Result<SocketAddr, String> {
        self.index.service_address(&service, port)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::convert::Infallible;

    use super::*;
    use crate::testing;

    /// What is sent to a Service's address goes where its slices say, which a tenant may have written.
    #[tokio::test]
    async fn a_service_is_no_way_to_what_policies_must_not_reach() {
        let cluster = testing::Cluster::new();
        cluster.add_service("keycloak", 1);
        let service = tower::service_fn(|request: http::Request<kube::client::Body>| async move {
            Ok::<_, Infallible>(http::Response::new(request.into_body()))
        });
        let world = Cluster::new(Client::new(service, "outrigger"), Arc::clone(&cluster.index));
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(world.forbidden(ip("10.96.0.1")), None);
        assert_eq!(world.forbidden(ip("127.0.0.1")), Some(ip("127.0.0.1")));
        for address in ["100.100.100.200", "169.254.169.254", "127.0.0.1"] {
            cluster.apply(&format!(
                "
kind: EndpointSlice
metadata: {{namespace: shop, name: by-hand, labels: {{kubernetes.io/service-name: keycloak}}}}
addressType: IPv4
ports: [{{name: http, port: 80}}]
endpoints: [{{addresses: ['{address}']}}]
"
            ));
            // However it is written: the system connects to the same.
            for service in ["10.96.0.1", "::ffff:10.96.0.1", "64:ff9b::10.96.0.1"] {
                assert_eq!(world.forbidden(ip(service)), Some(ip(address)), "{service}");
            }
            assert_eq!(world.forbidden(ip("10.96.0.2")), None, "no Service has that address");
        }
    }
}
