//! What a rule does, and so what unknown counts as in it.
//!
//! What is unknown whatever is asked is put in its place when a policy is compiled: in an Allow rule an alternative that is
//! [`Faulty`] is left out, and a condition that is takes the rule with it; in a Deny rule it is the other way round.
//!
//! What only limits how much comes is no lock: of it nothing is known where any of it is faulty. What is asked is read as by a Deny rule,
//! so that no way of writing a request goes round it.

/// What a rule does where it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    Allow,
    Deny,
    /// It counts.
    Limit,
}

/// Unknown whatever is asked: a kind that this version does not know, or what is not as it must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Faulty;

impl Effect {
    /// Whether a condition that cannot be judged counts as met.
    pub(crate) fn of_unknown(self) -> bool {
        self.is_wide()
    }

    /// Whether a condition is met by whatever may be meant.
    pub(crate) fn is_wide(self) -> bool {
        matches!(self, Self::Deny | Self::Limit)
    }

    /// Compiles alternatives, one of which is to hold. None is faulty.
    pub(crate) fn any_of<M, T>(
        self,
        messages: &[M],
        compile: impl FnMut(&M) -> Result<T, Faulty>,
    ) -> Result<Box<[T]>, Faulty> {
        match self {
            Self::Allow => known(messages, compile),
            Self::Deny | Self::Limit => each(messages, compile),
        }
    }

    /// Compiles conditions, all of which are to hold. None is faulty.
    pub(crate) fn all_of<M, T>(
        self,
        messages: &[M],
        compile: impl FnMut(&M) -> Result<T, Faulty>,
    ) -> Result<Box<[T]>, Faulty> {
        match self {
            Self::Allow | Self::Limit => each(messages, compile),
            Self::Deny => known(messages, compile),
        }
    }
}

fn known<M, T>(messages: &[M], compile: impl FnMut(&M) -> Result<T, Faulty>) -> Result<Box<[T]>, Faulty> {
    let all: Box<[T]> = messages.iter().map(compile).filter_map(Result::ok).collect();
    if all.is_empty() { Err(Faulty) } else { Ok(all) }
}

fn each<M, T>(messages: &[M], compile: impl FnMut(&M) -> Result<T, Faulty>) -> Result<Box<[T]>, Faulty> {
    let all = messages.iter().map(compile).collect::<Result<Box<[T]>, Faulty>>()?;
    if all.is_empty() { Err(Faulty) } else { Ok(all) }
}
