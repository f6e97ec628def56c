//! Which addresses are to be asked for, and what the controller has not heard of that yet.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// See the module. As many words wait as there are addresses that are wanted, and that the controller thinks are.
#[derive(Default)]
pub(super) struct Wants {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    /// By how many: one that has gone may not have let go yet when the next one comes.
    wanted: HashMap<SocketAddr, usize>,
    /// What the controller has been told.
    said: HashSet<SocketAddr>,
    unsaid: HashSet<SocketAddr>,
}

/// An address is wanted until this is dropped.
pub(super) struct Want {
    wants: Arc<Wants>,
    address: SocketAddr,
}

/// What is to be said to the controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// Also where it is wanted already: then it is told again.
    Want(SocketAddr),
    Drop(SocketAddr),
}

impl Wants {
    pub(super) fn want(self: &Arc<Self>, address: SocketAddr) -> Want {
        let mut state = self.state.lock();
        *state.wanted.entry(address).or_insert(0) += 1;
        state.unsaid.insert(address);
        self.changed.notify_one();
        Want {
            wants: Arc::clone(self),
            address,
        }
    }

    pub(super) fn contains(&self, address: SocketAddr) -> bool {
        self.state.lock().wanted.contains_key(&address)
    }

    /// Nothing has been said to a controller that is new.
    pub(super) fn begin(&self) {
        let State { wanted, said, unsaid } = &mut *self.state.lock();
        said.clear();
        unsaid.clear();
        unsaid.extend(wanted.keys());
    }

    /// Says once more what is wanted of these.
    pub(super) fn again(&self, addresses: impl IntoIterator<Item = SocketAddr>) {
        let State { wanted, unsaid, .. } = &mut *self.state.lock();
        unsaid.extend(addresses.into_iter().filter(|address| wanted.contains_key(address)));
        self.changed.notify_one();
    }

    /// Waits for something to say. It counts as said.
    pub(super) async fn word(&self) -> Word {
        loop {
            if let Some(word) = self.state.lock().next() {
                return word;
            }
            self.changed.notified().await;
        }
    }
}

impl State {
    fn next(&mut self) -> Option<Word> {
        let address = *self.unsaid.iter().next()?;
        self.unsaid.remove(&address);
        if self.wanted.contains_key(&address) {
            self.said.insert(address);
            return Some(Word::Want(address));
        }
        // Only what was said is dropped, so this is one that was.
        self.said.remove(&address);
        Some(Word::Drop(address))
    }
}

impl Drop for Want {
    fn drop(&mut self) {
        let state = &mut *self.wants.state.lock();
        let Some(number) = state.wanted.get_mut(&self.address) else {
            return;
        };
        *number -= 1;
        if *number > 0 {
            return;
        }
        state.wanted.remove(&self.address);
        if state.said.contains(&self.address) {
            state.unsaid.insert(self.address);
            self.wants.changed.notify_one();
        } else {
            state.unsaid.remove(&self.address);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn said(wants: &Wants) -> Vec<Word> {
        let mut said: Vec<_> = std::iter::from_fn(|| wants.state.lock().next()).collect();
        said.sort_by_key(|word| format!("{word:?}"));
        said
    }

    fn address(n: u16) -> SocketAddr {
        ([10, 96, 0, 1], n).into()
    }

    #[test]
    fn each_change_is_said_once_and_a_new_controller_hears_all() {
        let wants = Arc::new(Wants::default());
        let (one, two) = (wants.want(address(1)), wants.want(address(2)));
        assert_eq!(said(&wants), [Word::Want(address(1)), Word::Want(address(2))]);
        assert_eq!(said(&wants), []);
        drop(two);
        assert_eq!(said(&wants), [Word::Drop(address(2))]);
        // Let go and taken again before anybody was told: it is told again, whichever comes first.
        let again = wants.want(address(1));
        drop(one);
        assert_eq!(said(&wants), [Word::Want(address(1))]);
        drop(again);
        let again = wants.want(address(1));
        assert_eq!(said(&wants), [Word::Want(address(1))]);
        // What nobody was told of is not dropped.
        drop(wants.want(address(3)));
        assert_eq!(said(&wants), []);
        wants.again([address(1), address(2)]);
        assert_eq!(said(&wants), [Word::Want(address(1))]);
        wants.begin();
        assert_eq!(said(&wants), [Word::Want(address(1))]);
        drop(again);
        wants.begin();
        assert_eq!(said(&wants), []);
    }

    #[test]
    fn words_do_not_pile_up_while_nobody_hears() {
        let wants = Arc::new(Wants::default());
        for n in 0..10_000 {
            drop(wants.want(address(n)));
        }
        assert!(wants.state.lock().unsaid.is_empty());
    }
}
