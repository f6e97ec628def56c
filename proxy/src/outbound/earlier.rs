//! What the attempt before came to, until there is an endpoint for the next one.
//!
//! A limit of endpoints (`limits.perEndpoint.maxRequests`) may leave none for another attempt. That one's `overloaded` would say that nothing of the
//! request was sent, though an attempt was: so its client gets what that attempt came to. A response that is kept holds its connection meanwhile,
//! which is no longer than the wait before the next attempt; so none is kept where no limit can refuse that one.

use outrigger_proxy_transport::error::{ProxyError, Reason};

use super::attempts::ServerResponse;

/// See the module.
pub struct Earlier {
    keeps: bool,
    // Boxed: few requests are sent again (`outbound::sizes`).
    kept: Option<Box<Result<ServerResponse, ProxyError>>>,
}

impl Earlier {
    /// Of no attempt. `keeps`: a limit may refuse the next one.
    pub fn new(keeps: bool) -> Self {
        Self { keeps, kept: None }
    }

    /// There is to be another attempt after this one.
    pub fn set(&mut self, came_to: Result<ServerResponse, ProxyError>) {
        match came_to {
            came_to if self.keeps => self.kept = Some(Box::new(came_to)),
            Ok(server) => server.discard(),
            Err(_) => {}
        }
    }

    /// The next attempt is made.
    pub fn discard(&mut self) {
        if let Some(Ok(server)) = self.kept.take().map(|kept| *kept) {
            server.discard();
        }
    }

    /// What the client gets where the next attempt is not made for this reason.
    ///
    /// # Errors
    /// That reason, or the failure of the attempt before.
    pub fn in_place_of(mut self, error: ProxyError) -> Result<ServerResponse, ProxyError> {
        if error.reason != Reason::Overloaded {
            self.discard();
        }
        self.kept.map_or(Err(error), |kept| *kept)
    }
}
