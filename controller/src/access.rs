//! What a sidecar is told of who may call its pod: encoded, and never more than a message holds.

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
use crate::split::encoded;

/// Stands for policies that no message holds together.
const TOO_LARGE: &str = "(too large)";

/// A pod as its sidecar says it is: its name, and the ServiceAccount of the SVID.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PodKey {
    /// Its own word.
    pub name: ObjectName,
    /// A pod of this name with another one is not this pod.
    pub service_account: Arc<str>,
}

/// The policies of one pod.
#[derive(Debug, PartialEq)]
pub struct Access {
    message: Bytes,
    /// There are conditions on tokens in it.
    tokens: bool,
    told: Told,
}

/// How much of the policies is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// All of them.
    All,
    /// Those in force, and none that is only audited.
    Enforced,
    /// None: all that they select is closed.
    Closed,
}

impl Access {
    /// All that is to be told; or as much as a message holds, and instead of the rest nobody is let in.
    pub fn new(access: proto::Access) -> Self {
        let tokens = has_tokens(&access);
        let message = |access: proto::Access| encoded(to_sidecar::Kind::Access(access));
        let closed = closed(&access.enforced);
        let enforced = proto::Access {
            enforced: access.enforced.clone(),
            audited: Vec::new(),
        };
        let mut told = Self {
            message: message(access),
            tokens,
            told: Told::All,
        };
        for (less, how) in [(enforced, Told::Enforced), (closed, Told::Closed)] {
            if told.message.len() <= MAX_DISCOVERY_MESSAGE {
                break;
            }
            told = Self {
                message: message(less),
                tokens,
                told: how,
            };
        }
        told
    }

    /// The message, to a sidecar that verifies tokens or does not.
    pub fn message(&self, verifies_tokens: bool) -> Bytes {
        match verifies_tokens || !self.tokens {
            true => self.message.clone(),
            false => without_tokens(self.message.clone()),
        }
    }

    /// What the message says.
    pub fn said(&self) -> Option<proto::Access> {
        match ToSidecar::decode(self.message.clone()).ok()?.kind? {
            to_sidecar::Kind::Access(access) => Some(access),
            _ => None,
        }
    }

    /// How much of it is told.
    pub fn told(&self) -> Told {
        self.told
    }
}

impl Default for Access {
    fn default() -> Self {
        Self::new(proto::Access::default())
    }
}

/// Nobody is let in where one of the policies may refuse somebody.
fn closed(policies: &[proto::Policy]) -> proto::Access {
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
    let ports = ports.map(|ports| proto::Ports {
        numbers: ports.into_iter().collect(),
    });
    proto::Access {
        enforced: vec![nobody(TOO_LARGE, ports)],
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

    /// A message that is too large would end the session, and the sidecar would go on with policies that are not in force any more.
    #[test]
    fn what_no_message_holds_lets_nobody_in() {
        let small = policy("small", None, 10);
        let all = proto::Access {
            enforced: vec![small.clone()],
            audited: vec![small.clone()],
        };
        let told = Access::new(all.clone());
        assert_eq!((read(&told), told.told()), (all.clone(), Told::All));

        let audited = proto::Access {
            audited: vec![policy("large", None, LARGE)],
            ..all.clone()
        };
        let told = Access::new(audited);
        assert_eq!(told.told(), Told::Enforced);
        let enforced = proto::Access {
            audited: Vec::new(),
            ..all
        };
        assert_eq!(read(&told), enforced);

        for (policies, ports) in [
            (vec![small.clone(), policy("large", Some(&[80]), LARGE)], None),
            (
                vec![policy("a", Some(&[90]), 1), policy("large", Some(&[80, 90]), LARGE)],
                Some(vec![80, 90]),
            ),
            // The order changes nothing.
            (vec![policy("large", Some(&[80]), LARGE), small], None),
        ] {
            let told = Access::new(proto::Access {
                enforced: policies,
                audited: Vec::new(),
            });
            assert_eq!(told.told(), Told::Closed);
            let closed = read(&told).enforced;
            assert_eq!((closed.len(), &*closed[0].name), (1, "(too large)"));
            assert!(closed[0].exclusive && closed[0].rules.is_empty());
            assert_eq!(closed[0].ports.as_ref().map(|ports| ports.numbers.clone()), ports);
        }
        // What only adds closes nothing by its absence.
        let adds = proto::Policy {
            exclusive: false,
            ..policy("adds", None, LARGE)
        };
        let told = Access::new(proto::Access {
            enforced: vec![adds],
            audited: Vec::new(),
        });
        assert_eq!((told.told(), read(&told)), (Told::Closed, proto::Access::default()));
    }
}
