//! Addresses that no backend of a Service may have. Whoever may write a route, a Service or an EndpointSlice in one namespace
//! says where the sidecars of others connect to, so an address must not mean something else to each of them: its own loopback,
//! its node's metadata service.

use std::net::IpAddr;

/// Why the address can be no backend's; `None`: it can. Kubernetes refuses most of them in an EndpointSlice
/// (`ValidateEndpointIP`), and none in what a name resolves to.
pub fn why_no_backend(ip: IpAddr) -> Option<&'static str> {
    match ip.to_canonical() {
        IpAddr::V4(ip) if ip.is_loopback() => Some("a loopback address"),
        // RFC 1122 section 3.2.1.3: "this host on this network". Linux takes 0.0.0.0 for loopback.
        IpAddr::V4(ip) if ip.octets()[0] == 0 => Some("an unspecified address"),
        // RFC 3927; 169.254.169.254 is the metadata service of most clouds.
        IpAddr::V4(ip) if ip.is_link_local() => Some("a link-local address"),
        IpAddr::V4(ip) if ip.is_multicast() => Some("a multicast address"),
        IpAddr::V4(ip) if ip.is_broadcast() => Some("the broadcast address"),
        IpAddr::V6(ip) if ip.is_loopback() => Some("a loopback address"),
        IpAddr::V6(ip) if ip.is_unspecified() => Some("an unspecified address"),
        IpAddr::V6(ip) if ip.is_unicast_link_local() => Some("a link-local address"),
        IpAddr::V6(ip) if ip.is_multicast() => Some("a multicast address"),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::why_no_backend;

    #[test]
    fn which_addresses_can_be_a_backends() {
        for no in [
            "127.0.0.1",
            "127.255.255.254",
            "0.0.0.0",
            "0.1.2.3",
            "169.254.169.254",
            "169.254.0.1",
            "224.0.0.1",
            "239.255.255.255",
            "255.255.255.255",
            "::1",
            "::",
            "fe80::1",
            "febf::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::ffff:0.0.0.0",
            "::ffff:224.0.0.1",
            "::ffff:255.255.255.255",
        ] {
            assert!(why_no_backend(no.parse().unwrap()).is_some(), "{no}");
        }
        for yes in [
            "10.244.0.7",
            "192.168.1.1",
            "100.64.0.1",
            "8.8.8.8",
            "168.254.0.1",
            "fd00::7",
            "2001:db8::1",
            "fec0::1",
            "::ffff:10.0.0.1",
        ] {
            assert_eq!(why_no_backend(yes.parse().unwrap()), None, "{yes}");
        }
    }
}
