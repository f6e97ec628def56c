//! What a decision is made from.

use std::cell::{Cell, OnceCell};
use std::net::IpAddr;
use std::sync::Arc;

use http::HeaderMap;
use outrigger_api::spiffe::SpiffeId;

use crate::effect::Effect;
use crate::jwt::{Providers, Tokens};
use crate::path::RequestPath;
use crate::remembered::{Forgotten, Memory};

/// A request, or a connection that carries something else than HTTP.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The port of the pod, as the app listens on it.
    pub port: u16,
    /// Who calls.
    pub caller: Caller<'a>,
    /// What is sent.
    pub carries: Carries<'a>,
}

/// Who calls.
#[derive(Clone, Copy, Debug, Default)]
pub struct Caller<'a> {
    /// The SPIFFE ID that the peer has proven.
    pub identity: Option<&'a SpiffeId>,
    /// The address of the TCP peer, which no header changes. `None`: there is none, or it is not known.
    pub address: Option<IpAddr>,
}

/// What is sent.
#[derive(Clone, Copy, Debug)]
pub enum Carries<'a> {
    /// Bytes that nobody looks into: opaque ones, and the app's own TLS.
    Bytes,
    /// A request of HTTP/1 or HTTP/2.
    Http(Head<'a>),
}

/// The head of a request, as the app will get it.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// As it came.
    pub method: &'a str,
    /// As it came, without the query. Empty: CONNECT, which has none.
    pub path: &'a str,
    /// Whom the request is for, with or without its port; an IPv6 address has its brackets. Empty: it does not say.
    pub host: &'a str,
    /// Those that the app gets.
    pub headers: &'a HeaderMap,
    /// What was verified of its tokens.
    pub tokens: &'a Tokens,
}

/// Facts while they are looked at.
pub(crate) struct Call<'a> {
    pub(crate) facts: &'a Facts<'a>,
    pub(crate) providers: &'a Arc<Providers>,
    path: OnceCell<RequestPath<'a>>,
    met_ambiguity: Cell<bool>,
    /// What if there were a token of each provider of which there is none, whatever it says?
    pub(crate) would_bring_tokens: bool,
    /// Of a call that is gone.
    pub(crate) memory: Option<Memory>,
}

impl<'a> Call<'a> {
    pub(crate) fn new(facts: &'a Facts<'a>, providers: &'a Arc<Providers>) -> Self {
        Self {
            facts,
            providers,
            path: OnceCell::new(),
            met_ambiguity: Cell::new(false),
            would_bring_tokens: false,
            memory: None,
        }
    }

    /// Of which more is not known than the caller's identity, the port, and, perhaps, the method.
    pub(crate) fn remembered(facts: &'a Facts<'a>, providers: &'a Arc<Providers>, memory: Memory) -> Self {
        Self {
            memory: Some(memory),
            ..Self::new(facts, providers)
        }
    }

    /// All that had to be guessed.
    pub(crate) fn forgotten(&self) -> Forgotten {
        self.memory.as_ref().map(Memory::met).unwrap_or_default()
    }

    /// How a condition on this counts, where nobody remembers it.
    pub(crate) fn guess(&self, what: Forgotten, effect: Effect) -> Option<bool> {
        self.memory.as_ref().map(|memory| memory.guess(what, effect))
    }

    /// The same with tokens of which nothing is known.
    pub(crate) fn with_tokens(&self) -> Self {
        Self {
            would_bring_tokens: true,
            ..Self::new(self.facts, self.providers)
        }
    }

    /// `None`: bytes.
    pub(crate) fn head(&self) -> Option<&'a Head<'a>> {
        match &self.facts.carries {
            Carries::Bytes => None,
            Carries::Http(head) => Some(head),
        }
    }

    /// The path of the head, read once for all conditions. Bytes have none.
    pub(crate) fn path(&self) -> &RequestPath<'a> {
        self.path
            .get_or_init(|| RequestPath::new(self.head().map_or("", |head| head.path)))
    }

    /// A condition was judged by more than one reading of the path, or by none.
    pub(crate) fn meets_ambiguity(&self) {
        self.met_ambiguity.set(true);
    }

    pub(crate) fn met_ambiguity(&self) -> bool {
        self.met_ambiguity.get()
    }
}
