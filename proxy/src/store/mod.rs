//! The stores in which pods count together (RateLimitPolicies of the scope `Global`): who asks them, and what is done where they do not
//! answer. What is asked, and what an answer means, is [`outrigger_limits::store`]'s.
//!
//! A policy says which address is called, and with how much patience. It is of the pod's own namespace, or of Outrigger's; all the same an address that means
//! something else to each pod (its own loopback, its node's metadata service, the pod itself) is never called for one.

mod link;
mod resp;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use futures_util::future::join_all;
use outrigger_limits::store::{Answer, Ask, Store};

use self::link::Link;
pub(crate) use self::link::Permitted;
use crate::dns::Resolver;
use crate::telemetry::Metrics;

/// Of one worker. Each has a connection and at most some 1.3 MB; a store that knows no script, and has 1,024 questions, 2.4 MB more until these are sent.
const MOST_STORES: usize = 16;

/// The stores of one worker.
pub(crate) struct Stores {
    links: RefCell<HashMap<Arc<str>, Rc<Link>>>,
    resolver: Resolver,
    permitted: Permitted,
    metrics: Arc<Metrics>,
}

impl Stores {
    pub(crate) fn new(resolver: Resolver, permitted: Permitted, metrics: Arc<Metrics>) -> Self {
        Self {
            links: RefCell::default(),
            resolver,
            permitted,
            metrics,
        }
    }

    /// Connects to these, and to no others.
    pub(crate) fn follow(&self, stores: &[Store]) {
        let mut links = self.links.borrow_mut();
        links.retain(|address, _| stores.iter().any(|store| store.address == *address));
        for store in stores {
            if let Some(link) = links.get(&store.address) {
                link.set_patience(store.timeout);
            } else if links.len() < MOST_STORES {
                let (resolver, permitted) = (self.resolver.clone(), Rc::clone(&self.permitted));
                let link = Link::start(
                    &store.address,
                    store.timeout,
                    resolver,
                    permitted,
                    Arc::clone(&self.metrics),
                );
                links.insert(Arc::clone(&store.address), Rc::new(link));
            } else {
                tracing::warn!(
                    store = &*store.address,
                    "there are {MOST_STORES} stores already: no more are asked"
                );
            }
        }
    }

    /// What each of them says; all at the same time.
    pub(crate) async fn ask(&self, asks: &[Ask]) -> Vec<Answer> {
        join_all(asks.iter().map(async |ask| {
            let link = self.link(&ask.store)?;
            link.ask(&ask.entries, ask.store.timeout).await
        }))
        .await
    }

    /// The same, where nobody waits for the answer.
    pub(crate) fn tell(&self, asks: &[Ask]) {
        for ask in asks {
            if let Some(link) = self.link(&ask.store) {
                link.tell(&ask.entries);
            }
        }
    }

    fn link(&self, store: &Store) -> Option<Rc<Link>> {
        self.links.borrow().get(&store.address).cloned()
    }
}
