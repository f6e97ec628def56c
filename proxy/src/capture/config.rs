//! What is captured, and what is not, from the environment.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;
use outrigger_api::labels::parse_ports;

/// Elements in each list: all rules go to the kernel in one message, which must fit into a socket's buffer.
const MAX_ELEMENTS: usize = 100;

/// What is not captured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CaptureConfig {
    /// Ports of the app at which connections arrive untouched.
    pub skip_inbound_ports: Vec<RangeInclusive<u16>>,
    /// Ports to which connections leave untouched.
    pub skip_outbound_ports: Vec<RangeInclusive<u16>>,
    /// Addresses to which connections leave untouched.
    pub skip_outbound_cidrs: Vec<IpNet>,
    /// Users whose connections leave untouched, besides the sidecar's own.
    pub skip_uids: Vec<u32>,
}

impl CaptureConfig {
    /// Reads `OUTRIGGER_SKIP_INBOUND_PORTS`, `OUTRIGGER_SKIP_OUTBOUND_PORTS`, `OUTRIGGER_SKIP_OUTBOUND_CIDRS` and
    /// `OUTRIGGER_SKIP_UIDS`: comma-separated lists, each of at most 100 elements, that may be absent or empty.
    ///
    /// # Errors
    /// All mistakes together, each with the variable's name.
    pub fn from_env(get: impl Fn(&str) -> Option<String>) -> Result<Self, Vec<String>> {
        let mut errors = Vec::new();
        let config = Self {
            skip_inbound_ports: list(&get, "OUTRIGGER_SKIP_INBOUND_PORTS", parse_ports, &mut errors),
            skip_outbound_ports: list(&get, "OUTRIGGER_SKIP_OUTBOUND_PORTS", parse_ports, &mut errors),
            skip_outbound_cidrs: list(&get, "OUTRIGGER_SKIP_OUTBOUND_CIDRS", cidrs, &mut errors),
            skip_uids: list(&get, "OUTRIGGER_SKIP_UIDS", uids, &mut errors),
        };
        if errors.is_empty() { Ok(config) } else { Err(errors) }
    }
}

fn list<T>(
    get: impl Fn(&str) -> Option<String>,
    name: &str,
    parse: fn(&str) -> Result<Vec<T>, String>,
    errors: &mut Vec<String>,
) -> Vec<T> {
    let parsed = parse(&get(name).unwrap_or_default()).and_then(|list| match list.len() {
        0..=MAX_ELEMENTS => Ok(list),
        more => Err(format!(
            "{more} elements are more than {MAX_ELEMENTS}; join ports to ranges, and networks to larger ones"
        )),
    });
    parsed.unwrap_or_else(|error| {
        errors.push(format!("{name}: {error}"));
        Vec::new()
    })
}

fn elements(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim).filter(|element| !element.is_empty())
}

fn cidrs(list: &str) -> Result<Vec<IpNet>, String> {
    let cidr = |element: &str| {
        let network = element.parse::<IpNet>();
        let network = network.or_else(|_| element.parse::<IpAddr>().map(IpNet::from));
        let network =
            network.map_err(|_| format!("{element:?} is neither an address nor a network like 10.0.0.0/8"))?;
        Ok(network.trunc())
    };
    elements(list).map(cidr).collect()
}

fn uids(list: &str) -> Result<Vec<u32>, String> {
    let uid = |element: &str| match element.parse() {
        // The kernel's "no user".
        Ok(u32::MAX) | Err(_) => Err(format!("{element:?} is not a numeric user ID")),
        Ok(uid) => Ok(uid),
    };
    elements(list).map(uid).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::CaptureConfig;

    fn config(lines: &[(&str, &str)]) -> Result<CaptureConfig, Vec<String>> {
        CaptureConfig::from_env(|name| {
            let line = lines.iter().find(|(known, _)| *known == name)?;
            Some(line.1.to_owned())
        })
    }

    #[test]
    fn nothing_is_skipped_unless_said() {
        assert_eq!(config(&[]).unwrap(), CaptureConfig::default());
        assert_eq!(
            config(&[("OUTRIGGER_SKIP_UIDS", " , ")]).unwrap(),
            CaptureConfig::default()
        );
    }

    #[test]
    fn lists() {
        let config = config(&[
            ("OUTRIGGER_SKIP_INBOUND_PORTS", "22"),
            ("OUTRIGGER_SKIP_OUTBOUND_PORTS", "25, 9000-9010"),
            ("OUTRIGGER_SKIP_OUTBOUND_CIDRS", "10.1.2.3/8, fd00::/8,169.254.169.254"),
            ("OUTRIGGER_SKIP_UIDS", "0,1000"),
        ]);
        let config = config.unwrap();
        assert_eq!(config.skip_inbound_ports, [22..=22]);
        assert_eq!(config.skip_outbound_ports, [25..=25, 9000..=9010]);
        let cidrs: Vec<String> = config.skip_outbound_cidrs.iter().map(ToString::to_string).collect();
        assert_eq!(cidrs, ["10.0.0.0/8", "fd00::/8", "169.254.169.254/32"]);
        assert_eq!(config.skip_uids, [0, 1000]);
    }

    #[test]
    fn all_mistakes_together() {
        let many = (1..=101).map(|port| port.to_string()).collect::<Vec<_>>().join(",");
        let errors = config(&[
            ("OUTRIGGER_SKIP_INBOUND_PORTS", "http"),
            ("OUTRIGGER_SKIP_OUTBOUND_PORTS", &many),
            ("OUTRIGGER_SKIP_OUTBOUND_CIDRS", "10.0.0.0/33"),
            ("OUTRIGGER_SKIP_UIDS", "root"),
        ]);
        let errors = errors.unwrap_err();
        assert_eq!(errors.len(), 4);
        assert!(errors[0].starts_with("OUTRIGGER_SKIP_INBOUND_PORTS: \"http\""));
        assert!(errors[1].contains("101 elements"));
        assert!(errors[2].contains("10.0.0.0/33") && errors[3].contains("root"));
        assert!(config(&[("OUTRIGGER_SKIP_UIDS", "4294967295")]).is_err());
        assert!(config(&[("OUTRIGGER_SKIP_UIDS", "-1")]).is_err());
    }
}
