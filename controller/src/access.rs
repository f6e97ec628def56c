//! What a sidecar is told of who may call its pod: encoded, and never more than there is room for.

mod tokens;

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use outrigger_api::MAX_DISCOVERY_MESSAGE;
use outrigger_api::access as proto;
use outrigger_api::discovery::{ToSidecar, to_sidecar};
use prost::Message;

use self::tokens::{has_tokens, without_tokens};
use crate::objects::ObjectName;
use crate::room::{Payer, Taken, Waiting};
use crate::split::encoded;

/// Of policies in a message, which has a few bytes around them.
const LARGEST: usize = MAX_DISCOVERY_MESSAGE - 16;
/// Stand for policies that no message holds together, and for those that there is no room for.
const TOO_LARGE: &str = "(too large)";
const NO_ROOM: &str = "(no room)";
/// Of what more ports there are, all ports are closed: what is told instead must be small.
const MOST_PORTS: usize = 256;

/// A pod as its sidecar says it is: its name, and the ServiceAccount of the SVID.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PodKey {
    /// Its own word.
    pub name: ObjectName,
    /// A pod of this name with another one is not this pod.
    pub service_account: Arc<str>,
}

/// The policies of one pod.
#[derive(Debug)]
pub struct Access {
    message: Bytes,
    /// There are conditions on tokens in it.
    tokens: bool,
    told: Told,
    /// What is told instead takes next to nothing.
    taken: Result<Taken, Waiting>,
}

/// How much of the policies is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// All of them.
    All,
    /// Those in force, and none that is only audited.
    Enforced,
    /// None, because no message holds them: all that they select is closed.
    TooLarge,
    /// None, because their namespace takes as much of the controller's memory as it may: the same.
    NoRoom,
}

impl Access {
    /// All that is to be told; or as much as there is room for, and instead of the rest nobody is let in.
    pub(crate) fn new(mut access: proto::Access, payer: &Payer) -> Self {
        let (mut told, mut size) = (Told::All, access.encoded_len());
        if size > LARGEST && !access.audited.is_empty() {
            access.audited.clear();
            (told, size) = (Told::Enforced, access.encoded_len());
        }
        if size > LARGEST {
            access = closed(TOO_LARGE, &access);
            (told, size) = (Told::TooLarge, access.encoded_len());
        }
        let taken = payer.take_or_wait(size);
        if taken.is_err() {
            access = closed(NO_ROOM, &access);
            told = Told::NoRoom;
        }
        Self {
            tokens: has_tokens(&access),
            message: encoded(to_sidecar::Kind::Access(access)),
            told,
            taken,
        }
    }

    /// The message, to a sidecar that verifies tokens or does not.
    pub fn message(&self, verifies_tokens: bool) -> Bytes {
        match verifies_tokens || !self.tokens {
            true => self.message.clone(),
            false => self.said().map(without_tokens).unwrap_or_default(),
        }
    }

    /// The message to a pod that has no room to be told of its policies: it is small.
    pub(crate) fn closed(&self) -> Bytes {
        let access = self.said().unwrap_or_default();
        encoded(to_sidecar::Kind::Access(closed(NO_ROOM, &access)))
    }

    /// What the message says.
    pub fn said(&self) -> Option<proto::Access> {
        match ToSidecar::decode(self.message.clone()).ok()?.kind? {
            to_sidecar::Kind::Access(access) => Some(access),
            _ => None,
        }
    }

    /// Whether there was no room for it, and there is now.
    pub(crate) fn has_room_now(&self) -> bool {
        self.taken.as_ref().is_err_and(Waiting::has_room)
    }

    /// Bytes that are charged for it.
    pub(crate) fn charged(&self) -> u64 {
        self.taken.as_ref().map_or(0, Taken::bytes)
    }

    /// How much of it is told.
    pub fn told(&self) -> Told {
        self.told
    }
}

impl Default for Access {
    /// No policy.
    fn default() -> Self {
        Self::new(proto::Access::default(), &Payer::default())
    }
}

impl PartialEq for Access {
    fn eq(&self, other: &Self) -> bool {
        (&self.message, self.told) == (&other.message, other.told)
    }
}

/// Nobody is let in where one of the policies may refuse somebody.
fn closed(name: &str, access: &proto::Access) -> proto::Access {
    let policies = &access.enforced;
    let mut ports = Some(BTreeSet::new());
    let mut refusing = policies
        .iter()
        .filter(|policy| policy.deny || policy.exclusive)
        .peekable();
    if refusing.peek().is_none() {
        return proto::Access::default();
    }
    for policy in refusing {
        match &policy.ports {
            Some(more) => ports.iter_mut().for_each(|ports| ports.extend(&more.numbers)),
            None => ports = None,
        }
    }
    let ports = ports.filter(|ports| ports.len() <= MOST_PORTS);
    let ports = ports.map(|ports| proto::Ports {
        numbers: ports.into_iter().collect(),
    });
    proto::Access {
        enforced: vec![nobody(name, ports)],
        audited: Vec::new(),
    }
}

/// A policy that lets nobody in. Its name is none that an object has.
pub(crate) fn nobody(name: &str, ports: Option<proto::Ports>) -> proto::Policy {
    proto::Policy {
        name: name.to_owned(),
        exclusive: true,
        ports,
        ..proto::Policy::default()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::room::Room;

    fn read(access: &Access) -> proto::Access {
        access.said().unwrap()
    }

    fn policy(name: &str, ports: Option<&[u32]>, bytes: usize) -> proto::Policy {
        let rule = proto::Rule {
            name: "x".repeat(bytes),
            conditions: Vec::new(),
        };
        proto::Policy {
            name: name.to_owned(),
            exclusive: true,
            ports: ports.map(|ports| proto::Ports {
                numbers: ports.to_vec(),
            }),
            rules: vec![rule],
            ..proto::Policy::default()
        }
    }

    const LARGE: usize = MAX_DISCOVERY_MESSAGE;

    fn told(access: proto::Access) -> Access {
        let told = Access::new(access, &Payer::default());
        assert!(told.message(true).len() <= MAX_DISCOVERY_MESSAGE);
        told
    }

    /// A message that is too large would end the session, and the sidecar would go on with policies that are not in force any more.
    #[test]
    fn what_no_message_holds_lets_nobody_in() {
        let small = policy("small", None, 10);
        let first = |most: u32| (1..=most).collect::<Vec<_>>();
        let all = proto::Access {
            enforced: vec![small.clone()],
            audited: vec![small.clone()],
        };
        let whole = told(all.clone());
        assert_eq!((read(&whole), whole.told()), (all.clone(), Told::All));

        let audited = proto::Access {
            audited: vec![policy("large", None, LARGE)],
            ..all.clone()
        };
        let less = told(audited);
        assert_eq!(less.told(), Told::Enforced);
        let enforced = proto::Access {
            audited: Vec::new(),
            ..all
        };
        assert_eq!(read(&less), enforced);

        for (policies, ports) in [
            (vec![small.clone(), policy("large", Some(&[80]), LARGE)], None),
            (
                vec![policy("a", Some(&[90]), 1), policy("large", Some(&[80, 90]), LARGE)],
                Some(vec![80, 90]),
            ),
            // The order changes nothing.
            (vec![policy("large", Some(&[80]), LARGE), small], None),
            // Of more ports than are told, all.
            (
                vec![
                    policy("a", Some(&first(255)), 1),
                    policy("large", Some(&[1, 256]), LARGE),
                ],
                Some(first(256)),
            ),
            (
                vec![policy("a", Some(&first(256)), 1), policy("large", Some(&[257]), LARGE)],
                None,
            ),
        ] {
            let none = told(proto::Access {
                enforced: policies,
                audited: Vec::new(),
            });
            assert_eq!(none.told(), Told::TooLarge);
            let closed = read(&none).enforced;
            assert_eq!((closed.len(), &*closed[0].name), (1, "(too large)"));
            assert!(closed[0].exclusive && closed[0].rules.is_empty());
            assert_eq!(closed[0].ports.as_ref().map(|ports| ports.numbers.clone()), ports);
        }
        // What only adds closes nothing by its absence.
        let adds = proto::Policy {
            exclusive: false,
            ..policy("adds", None, LARGE)
        };
        let none = told(proto::Access {
            enforced: vec![adds],
            audited: Vec::new(),
        });
        assert_eq!((none.told(), read(&none)), (Told::TooLarge, proto::Access::default()));
    }

    /// There may be a pod for each of a thousand such messages.
    #[test]
    fn what_there_is_no_room_for_lets_nobody_in() {
        let room = Room::new(64 << 10);
        let payer = room.payer(&"shop".into());
        let of_size = |bytes| proto::Access {
            enforced: vec![policy("p", Some(&[80]), bytes)],
            audited: Vec::new(),
        };
        let all: Vec<_> = std::iter::repeat_with(|| Access::new(of_size(10 << 10), &payer))
            .take(10)
            .collect();
        let told: Vec<_> = all.iter().map(Access::told).collect();
        let fitting = told.iter().filter(|told| **told == Told::All).count();
        assert!((3..=4).contains(&fitting), "{told:?}");
        assert_eq!(told[9], Told::NoRoom);
        let closed = read(&all[9]).enforced;
        assert_eq!((closed.len(), &*closed[0].name), (1, "(no room)"));
        // What is small has room always.
        assert_eq!(Access::new(of_size(1 << 10), &payer).told(), Told::All);
        drop(all);
        assert_eq!(Access::new(of_size(10 << 10), &payer).told(), Told::All);
    }
}
