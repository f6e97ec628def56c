//! What answers may take of the controller's memory.
//!
//! How many answers there are is up to who asks, and is charged to them (`discovery/service.rs`). How large they are is up to who
//! writes the objects: one Service has ten thousand ports at a time, and one route, or one list of endpoints, is in the answer for
//! each of them. So what an answer takes beyond [`SMALL`] is charged to the namespace that makes it large, for as long as the answer
//! exists, whoever holds on to it. Of what is free, a namespace has at most half: whoever makes more of it takes the room from his
//! own Services, and what does not fit is refused to who asks for it.

use std::sync::Arc;

use outrigger_gate::{Budget, Charge, Holder};

/// What each answer may take without a charge, in bytes: who asks for it has paid so much.
pub(crate) const SMALL: usize = 2 * 1024;
/// What an answer takes for each thing that it depends on, in bytes. A dozen are for nothing: every answer has so many.
const DEPENDENCE: usize = 256;
const FEW: usize = 12;
/// Where nobody says how much there is, in bytes.
const TOTAL: u64 = 128 << 20;

/// Memory for all answers together. Its clones are the same.
#[derive(Clone, Debug)]
pub struct Room {
    budget: Arc<Budget<Arc<str>>>,
    /// See [`Self::instead_of`].
    instead: u64,
}

/// Who pays for an answer. The default pays nothing.
#[derive(Clone, Debug, Default)]
pub struct Payer(Option<Account>);

#[derive(Clone, Debug)]
struct Account {
    room: Room,
    holders: Arc<[Holder<Arc<str>>]>,
}

/// Memory that is charged until this is dropped.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    charge: Option<Charge<Arc<str>>>,
}

/// An answer that there was no room for, and that is waited for.
#[derive(Debug)]
pub(crate) struct Waiting {
    payer: Payer,
    bytes: usize,
}

/// Why something cannot be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No message can hold it.
    TooLarge,
    /// There is no room for it.
    NoRoom,
}

/// What an answer takes because it depends on so many things, in bytes.
pub(crate) fn depending(things: usize) -> usize {
    things.saturating_sub(FEW) * DEPENDENCE
}

impl Room {
    /// So many bytes.
    pub fn new(total: u64) -> Self {
        Self {
            budget: Budget::new(total),
            instead: 0,
        }
    }

    /// For an answer that takes the place of one that was charged so many bytes: they count as free.
    pub(crate) fn instead_of(&self, bytes: u64) -> Self {
        Self {
            budget: Arc::clone(&self.budget),
            instead: bytes,
        }
    }

    /// An eighth of what the container may have: half of it is for what sidecars hold, and the objects themselves need the most
    /// of the rest.
    pub fn within(limit: Option<u64>) -> Self {
        Self::new(limit.map_or(TOTAL, |limit| limit / 8))
    }

    /// The namespace as who pays.
    pub(crate) fn payer(&self, namespace: &Arc<str>) -> Payer {
        let holder = Holder {
            key: Arc::clone(namespace),
            divisor: 1,
        };
        Payer(Some(Account {
            room: self.clone(),
            holders: Arc::new([holder]),
        }))
    }

    /// Bytes that are charged.
    pub(crate) fn used(&self) -> u64 {
        self.budget.used()
    }

    /// How often there was no room, since the start.
    pub(crate) fn refused(&self) -> u64 {
        self.budget.refused()
    }
}

impl Default for Room {
    fn default() -> Self {
        Self::new(TOTAL)
    }
}

impl Payer {
    /// Charges what an answer of so many bytes takes.
    pub(crate) fn take(&self, bytes: usize) -> Result<Taken, Refusal> {
        let more = bytes.saturating_sub(SMALL) as u64;
        let charge = match &self.0 {
            Some(Account { room, holders }) if more > 0 => {
                Some(room.budget.charge_instead(holders, more, room.instead))
            }
            _ => None,
        };
        let charge = charge.transpose().map_err(|_| Refusal::NoRoom)?;
        Ok(Taken { charge })
    }

    /// The same for what somebody goes on without: it is made again when there is room.
    pub(crate) fn take_or_wait(&self, bytes: usize) -> Result<Taken, Waiting> {
        self.take(bytes).map_err(|_| Waiting {
            payer: self.clone().afterwards(),
            bytes,
        })
    }

    /// Who pays for what comes after the answer itself, which takes nothing's place.
    pub(crate) fn afterwards(mut self) -> Self {
        if let Some(account) = &mut self.0 {
            account.room.instead = 0;
        }
        self
    }
}

impl Waiting {
    /// Whether there is room now.
    pub(crate) fn has_room(&self) -> bool {
        let more = self.bytes.saturating_sub(SMALL) as u64;
        let account = self.payer.0.as_ref();
        account.is_none_or(|Account { room, holders }| room.budget.has_room(holders, more))
    }
}

impl Taken {
    /// Bytes that are charged.
    pub(crate) fn bytes(&self) -> u64 {
        self.charge.as_ref().map_or(0, Charge::bytes)
    }
}

impl Refusal {
    /// In words, for who asks.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::TooLarge => "its routes are more than a message can hold",
            Self::NoRoom => {
                "the namespace whose routes or endpoints these are takes as much of the controller's memory as it may: fewer or \
                 smaller routes, or more memory for the controller (controller.resources)"
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_small_is_free_and_one_namespace_leaves_room_to_others() {
        let room = Room::new(64 << 10);
        let [evil, other]: [Arc<str>; 2] = ["evil", "other"].map(Arc::from);
        let evil = room.payer(&evil);
        let taken: Vec<_> = std::iter::from_fn(|| evil.take(SMALL + 1024).ok()).collect();
        assert_eq!((taken.len(), room.used()), (32, 32 << 10));
        assert_eq!(evil.take(SMALL + 1024).unwrap_err(), Refusal::NoRoom);
        assert!(evil.take(SMALL).is_ok());
        let others = room.payer(&other).take(16 << 10).unwrap();
        drop((taken, others));
        assert_eq!((room.used(), room.refused()), (0, 2));
    }
}
