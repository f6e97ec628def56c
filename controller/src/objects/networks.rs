//! Networks in CIDR notation, and whose addresses are looked for in them.

use std::str::FromStr;

use ipnet::IpNet;

/// Networks in CIDR notation, separated by commas. None: nothing is said about any address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks(pub Vec<IpNet>);

/// Whose addresses are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    Service,
    Pod,
}

impl FromStr for Networks {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let elements = text.split(',').map(str::trim).filter(|element| !element.is_empty());
        let network = |element: &str| {
            let wrong = |_| format!("{element:?} is not a network like \"10.0.0.0/8\" or \"fc00::/7\"");
            element.parse::<IpNet>().map(|network| network.trunc()).map_err(wrong)
        };
        elements.map(network).collect::<Result<_, _>>().map(Self)
    }
}
