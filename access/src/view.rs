//! What policies come to, for people: who may call each port of a pod, and by which rule.
//!
//! It is read from what decides ([`crate::Access::view`]), so it shows what is in force and not what was meant: of a faulty condition there
//! is nothing to be seen but what it comes to.

use serde::{Deserialize, Serialize};

/// Who may call a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// The ports that policies or their rules name, in their order.
    pub ports: Vec<PortView>,
    /// All others.
    pub others: PortView,
    /// Whose tokens are looked at.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub providers: Vec<ProviderView>,
}

/// Who issues tokens, to one policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProviderView {
    /// "namespace/name".
    pub policy: String,
    /// Its name there.
    pub name: String,
    /// The claim `iss`.
    pub issuer: String,
    /// One of them is in `aud`.
    pub audiences: Vec<String>,
    /// How many keys of it can be used. 0: no token of it is good.
    pub keys: usize,
    /// The app gets the token too.
    pub forward: bool,
    /// Headers that the app gets from claims, and that nobody else sets.
    pub headers: Vec<String>,
}

/// Who may call a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortView {
    /// `None`: it stands for several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The policies that select it, those that deny first, in the order in which they are asked.
    pub enforced: Vec<PolicyView>,
    /// They take no part in the decision.
    pub audited: Vec<PolicyView>,
}

/// A policy, at one port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyView {
    /// "namespace/name".
    pub name: String,
    /// "Allow" or "Deny", as the policy has it.
    pub action: String,
    /// What no policy allows is refused.
    pub exclusive: bool,
    /// Without those that nobody meets at this port.
    pub rules: Vec<RuleView>,
}

/// Whom a rule is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleView {
    /// As the policy names it, or its position.
    pub name: String,
    /// Of each list one. None: whoever it is.
    pub sources: Vec<Vec<String>>,
    /// Which requests: one of them. None: all, and all bytes.
    pub http: Vec<String>,
}

/// The value of [`PolicyView::action`] of a policy that denies.
pub const DENY: &str = "Deny";
/// And of one that allows.
pub const ALLOW: &str = "Allow";

impl PortView {
    /// Policies that close the port to what no policy allows.
    pub fn exclusive(&self) -> impl Iterator<Item = &PolicyView> {
        self.enforced.iter().filter(|policy| policy.exclusive)
    }
}
