//! The tokens of requests: verified where a policy of the port has providers of them, kept by each worker while they are good, and
//! told to the app as the policies say.
//!
//! A signature is verified where the request is, and not on another thread: that takes 20 to 500 µs (RS256, ES512), about as long as
//! the handshake that anybody may ask for as often. What a stranger can make of it is bounded: the size of a token, of a key, how many
//! keys are tried, and one signature for all policies with the same keys. A token that was bad costs none when it comes again.

use std::cell::RefCell;

use http::HeaderMap;
use outrigger_access::jwt::Cache;
use outrigger_access::{Access, Tokens};

use crate::context::Process;
use crate::discovery::Discovery;
use crate::identity::Clock;

/// See the module. Of one worker.
pub(super) struct TokenRule {
    cache: RefCell<Cache>,
    clock: Clock,
    discovery: Discovery,
}

impl TokenRule {
    pub(super) fn new(process: &Process) -> Self {
        Self {
            cache: RefCell::default(),
            clock: process.identity.clock().clone(),
            discovery: process.discovery.clone(),
        }
    }

    /// Verifies the tokens of a request, and makes its headers those that the app is to get. Where no policy of the port has a
    /// provider, nothing is looked at, and the clock is not read.
    pub(super) fn authenticate(&self, access: &Access, port: u16, headers: &mut HeaderMap) -> Tokens {
        if !access.wants_tokens(port) {
            return Tokens::NONE;
        }
        let tokens = access.authenticate(port, headers, self.clock.now(), &mut self.cache.borrow_mut());
        if let Some((policy, provider)) = access.unknown_key(&tokens) {
            self.discovery.unknown_key(policy, provider);
        }
        tokens
    }
}
