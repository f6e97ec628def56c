//! What policies would say of calls that are gone, of which not everything is known any more.
//!
//! It is decided as every call is, twice: once with all that nobody knows taken against the caller, which is how a decision takes what it
//! cannot judge, and once in its favour. Conditions are joined by AND and OR alone, so whatever it was lies between the two: where both
//! let it in, or neither does, that is what would have become of it.

use std::cell::Cell;
use std::fmt;

use outrigger_api::spiffe::SpiffeId;

use crate::effect::Effect;

/// Calls that have been let in, as they are counted.
#[derive(Clone, Copy, Debug)]
pub struct Remembered<'a> {
    /// The port of the pod, as the app listens on it.
    pub port: u16,
    /// The SPIFFE ID that the peers have proven.
    pub identity: Option<&'a SpiffeId>,
    /// What was sent.
    pub sent: Sent<'a>,
}

/// What was sent.
#[derive(Clone, Copy, Debug)]
pub enum Sent<'a> {
    /// Bytes that nobody has looked into.
    Bytes,
    /// Requests, of this method.
    Http(Option<&'a str>),
}

/// What would have become of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement<'a> {
    /// They are let in, whatever else they were.
    LetIn,
    /// They are refused, whatever else they were: by a Deny rule, or, without a rule, by an exclusive policy of which none is met.
    Refused {
        /// "namespace/name".
        policy: &'a str,
        /// As the policy names it, or its position.
        rule: Option<&'a str>,
    },
    /// It depends on what nobody remembers.
    Unknown(Forgotten),
}

/// What conditions are about that could not be judged. It is written as a list of words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Forgotten(u8);

/// Its bits, and what each is called.
const WORDS: [(u8, &str); 6] = [
    (Forgotten::METHOD.0, "method"),
    (Forgotten::PATH.0, "path"),
    (Forgotten::HEADER.0, "header"),
    (Forgotten::HOST.0, "host"),
    (Forgotten::ADDRESS.0, "address"),
    (Forgotten::TOKEN.0, "token"),
];

impl Forgotten {
    /// One that is none of those that are counted by name.
    pub const METHOD: Self = Self(1);
    /// Also that of a gRPC method.
    pub const PATH: Self = Self(2);
    /// Any header.
    pub const HEADER: Self = Self(4);
    /// Whom a request was for.
    pub const HOST: Self = Self(8);
    /// The TCP peer's.
    pub const ADDRESS: Self = Self(16);
    /// With its claims.
    pub const TOKEN: Self = Self(32);

    pub(crate) fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Display for Forgotten {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<&str> = WORDS
            .iter()
            .filter(|(bit, _)| self.0 & bit > 0)
            .map(|(_, word)| *word)
            .collect();
        f.write_str(&words.join(", "))
    }
}

/// How a call is looked at of which not everything is known.
#[derive(Debug)]
pub(crate) struct Memory {
    pub(crate) knows_method: bool,
    /// What nobody knows is taken so that it lets the caller in.
    pub(crate) in_favour: bool,
    met: Cell<Forgotten>,
}

impl Memory {
    pub(crate) fn new(knows_method: bool, in_favour: bool) -> Self {
        Self {
            knows_method,
            in_favour,
            met: Cell::default(),
        }
    }

    /// Whether a condition on what nobody knows counts as met.
    pub(crate) fn guess(&self, what: Forgotten, effect: Effect) -> bool {
        self.met.set(self.met.get().and(what));
        effect.of_unknown() != self.in_favour
    }

    /// All that had to be guessed.
    pub(crate) fn met(&self) -> Forgotten {
        self.met.get()
    }
}
