//! `sessionAffinity: ClientIP`: requests of one pod go to one endpoint, as long as it works.
//!
//! The endpoints are ranked for each pod by a hash of both addresses (rendezvous hashing, Thaler and Ravishankar 1998): the
//! first is called, and the next while that one is left out. When endpoints come and go, only those pods move whose first one
//! is concerned. Nothing is remembered and nothing expires, so `sessionAffinityConfig.timeoutSeconds` has no meaning here;
//! workers, and a sidecar that starts again, choose the same.
//!
//! Where a route splits the requests to such a Service by weight, a pod stays with one of the backends as well: the weights
//! are shares of the pods (compare GEP-1619).

use std::cmp::Reverse;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use rand::SeedableRng;
use rand::rngs::SmallRng;

use crate::model::Workload;
use crate::model::{Endpoint, ServiceName};

/// The pod that calls.
#[derive(Clone, Copy, Debug)]
pub struct Caller(u64);

impl Caller {
    /// Known by its first address, or by its name outside Kubernetes, where it has none of its own.
    pub fn new(workload: &Workload) -> Self {
        Self(match workload.pod_ips.first() {
            Some(address) => hash(address),
            None => hash(&workload.pod),
        })
    }

    /// The endpoints in the order in which this pod prefers them. Ports count only among endpoints of one address, so that a
    /// pod finds the same endpoint behind all ports of a Service.
    pub fn ranked(self, endpoints: &[Arc<Endpoint>]) -> Vec<Arc<Endpoint>> {
        let mut ranked = endpoints.to_vec();
        ranked.sort_by_cached_key(|endpoint| {
            let (ip, port) = (endpoint.address.ip(), endpoint.address.port());
            Reverse((hash(&(self.0, ip)), hash(&(self.0, ip, port))))
        });
        ranked
    }

    /// The same for all requests of the pod.
    pub fn number(self) -> u64 {
        self.0
    }

    /// Draws the same numbers for each request to the Service.
    pub fn draws(self, service: &ServiceName) -> SmallRng {
        SmallRng::seed_from_u64(hash(&(self.0, &service.namespace, &service.name)))
    }
}

/// Without a random key: the same in each process of one version.
fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::cell::RefCell;
    use std::collections::HashMap;
    use std::net::{IpAddr, Ipv4Addr, SocketAddr};

    use rand::Rng;
    use tokio::time::Instant;

    use super::*;
    use crate::outbound::balance::{Balancer, Pick};
    use crate::outbound::health::Answer;
    use crate::outbound::testing::NO_RULES;

    fn caller(n: u16) -> Caller {
        let [high, low] = n.to_be_bytes();
        Caller(hash(&IpAddr::from(Ipv4Addr::new(10, 244, high, low))))
    }

    fn endpoint(n: u8, port: u16) -> Arc<Endpoint> {
        Arc::new(Endpoint {
            address: SocketAddr::from(([10, 245, 0, n], port)),
            identity: None,
            zone: None,
            pod: None,
            remote: false,
        })
    }

    fn endpoints(numbers: impl IntoIterator<Item = u8>) -> Vec<Arc<Endpoint>> {
        numbers.into_iter().map(|n| endpoint(n, 8080)).collect()
    }

    #[test]
    fn pods_are_spread_evenly_over_the_endpoints() {
        let endpoints = endpoints(0..10);
        let mut first: HashMap<SocketAddr, u32> = HashMap::new();
        for n in 0..10_000 {
            *first.entry(caller(n).ranked(&endpoints)[0].address).or_default() += 1;
        }
        assert_eq!(first.len(), 10);
        // Five standard deviations of a binomial distribution.
        assert!(first.values().all(|count| (850..=1150).contains(count)), "{first:?}");
    }

    #[test]
    fn only_pods_of_an_endpoint_that_goes_move_and_each_to_its_second() {
        let all = endpoints(0..10);
        let fewer = endpoints((0..10).filter(|n| *n != 3));
        for n in 0..1000 {
            let before = caller(n).ranked(&all);
            let after = caller(n).ranked(&fewer);
            let expected: Vec<_> = before.iter().filter(|e| **e != all[3]).cloned().collect();
            assert_eq!(after, expected);
        }
    }

    #[test]
    fn neither_the_order_of_the_list_nor_the_port_counts() {
        let http = endpoints(0..10);
        let backwards: Vec<_> = http.iter().rev().cloned().collect();
        let admin: Vec<_> = (0..10).map(|n| endpoint(n, 9090)).collect();
        for n in 0..100 {
            let ranked = caller(n).ranked(&http);
            assert_eq!(ranked, caller(n).ranked(&backwards));
            let ips = |list: &[Arc<Endpoint>]| list.iter().map(|e| e.address.ip()).collect::<Vec<_>>();
            assert_eq!(ips(&ranked), ips(&caller(n).ranked(&admin)));
        }
    }

    #[test]
    fn endpoints_of_one_address_are_told_apart_by_their_ports() {
        let endpoints: Vec<_> = (0..4).map(|n| endpoint(1, 8080 + n)).collect();
        let mut first: HashMap<SocketAddr, u32> = HashMap::new();
        for n in 0..1000 {
            *first.entry(caller(n).ranked(&endpoints)[0].address).or_default() += 1;
        }
        assert!(
            first.len() == 4 && first.values().all(|count| *count > 150),
            "{first:?}"
        );
    }

    #[test]
    fn an_ejected_endpoint_is_left_for_the_next_and_come_back_to() {
        let mut now = Instant::now();
        let ranked = caller(1).ranked(&endpoints(0..5));
        let mut balancer = Balancer::default();
        balancer.update(&endpoints(0..5), Some(caller(1)), now);
        let rng = RefCell::new(SmallRng::seed_from_u64(1));
        let picked = |tried: &[_], now| {
            let pick = || {
                balancer
                    .pick(&Pick {
                        tried,
                        now,
                        rng: &rng,
                        rules: &NO_RULES,
                        key: None,
                        session: None,
                        limit: None,
                    })
                    .unwrap()
            };
            let first = pick();
            for _ in 0..50 {
                assert_eq!(pick().endpoint, first.endpoint);
            }
            first
        };
        let first = picked(&[], now);
        assert_eq!(first.endpoint, ranked[0]);
        // A retry goes to the second, and so does everything while the first is ejected.
        assert_eq!(picked(std::slice::from_ref(&first), now).endpoint, ranked[1]);
        first.take(&NO_RULES, now).end(Answer::Unreachable, now);
        let second = picked(&[], now);
        assert_eq!(second.endpoint, ranked[1]);
        second.take(&NO_RULES, now).end(Answer::Unreachable, now);
        assert_eq!(picked(&[], now).endpoint, ranked[2]);
        now += NO_RULES.ejection().base;
        assert_eq!(picked(&[], now).endpoint, ranked[0]);
    }

    #[test]
    fn draws_are_the_same_each_time_and_spread_over_pods() {
        let service = ServiceName {
            namespace: "shop".into(),
            name: "orders".into(),
            port: 80,
        };
        let drawn = |n| caller(n).draws(&service).random_range(0..100);
        let below_ten = (0..10_000).filter(|n| drawn(*n) < 10).count();
        assert!((850..=1150).contains(&below_ten), "{below_ten}");
        assert!((0..100).all(|n| drawn(n) == drawn(n)));
        // Ports of one Service agree.
        let other_port = ServiceName {
            port: 81,
            ..service.clone()
        };
        assert!((0..100).all(|n| caller(n).draws(&other_port).random_range(0..100) == drawn(n)));
    }
}
