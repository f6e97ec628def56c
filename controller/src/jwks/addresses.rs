//! Addresses that a policy must not make the controller call. The controller stands where tenants do not: on its own loopback are
//! its admin port and whatever shares its pod, and link-local addresses are the node's and the cloud's, which give credentials to
//! who asks.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Services of clouds for the machine itself that are not at link-local addresses.
const METADATA: [IpNet; 4] = [
    // Alibaba Cloud.
    v4([100, 100, 100, 200], 32),
    // Azure's WireServer.
    v4([168, 63, 129, 16], 32),
    // Oracle Cloud.
    v4([192, 0, 0, 192], 32),
    // AWS, over IPv6: instance metadata (::254) and the credentials of EKS pods (::23).
    v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0], 32),
];

/// Addresses of IPv6 in which others are written, and at which byte. What a router makes of them is the other one.
const EMBEDDING: [(Ipv6Net, usize); 5] = [
    // IPv4-compatible (RFC 4291 section 2.5.5.1), with :: and ::1.
    (net6([0, 0, 0, 0, 0, 0, 0, 0], 96), 12),
    // IPv4-mapped (RFC 4291 section 2.5.5.2).
    (net6([0, 0, 0, 0, 0, 0xffff, 0, 0], 96), 12),
    // IPv4-translated (RFC 7915).
    (net6([0, 0, 0, 0, 0xffff, 0, 0, 0], 96), 12),
    // NAT64 (RFC 6052).
    (net6([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96), 12),
    // 6to4 (RFC 3056).
    (net6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16), 2),
];

/// Where the other one cannot be told: NAT64 of a network's own (RFC 8215), and Teredo (RFC 4380).
const UNCLEAR: [Ipv6Net; 2] = [
    net6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48),
    net6([0x2001, 0, 0, 0, 0, 0, 0, 0], 32),
];

/// Whether a policy may have keys fetched from there.
pub fn may_be_called(address: IpAddr) -> bool {
    let is_metadata = METADATA.iter().any(|network| network.contains(&address));
    !is_metadata
        && match address {
            IpAddr::V4(address) => is_unicast_v4(address),
            IpAddr::V6(address) => is_unicast_v6(address),
        }
}

fn is_unicast_v4(address: Ipv4Addr) -> bool {
    // 0.0.0.0/8 is this host (RFC 1122 section 3.2.1.3), and what is above multicast is reserved, with the broadcast address.
    let of_this_host = address.octets()[0] == 0 || address.is_loopback() || address.is_link_local();
    !of_this_host && address.octets()[0] < 224
}

fn is_unicast_v6(address: Ipv6Addr) -> bool {
    if address.is_unspecified() || address.is_loopback() || address.is_multicast() || address.is_unicast_link_local() {
        return false;
    }
    // fec0::/10 was for sites (RFC 3879), and is nobody's now.
    if address.segments()[0] & 0xffc0 == 0xfec0 || UNCLEAR.iter().any(|network| network.contains(&address)) {
        return false;
    }
    written_in(address).is_none_or(|inner| may_be_called(inner.into()))
}

/// The address that is written in another one.
pub(crate) fn written_in(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let (_, at) = EMBEDDING.iter().find(|(network, _)| network.contains(&address))?;
    let octets = address.octets();
    Some(Ipv4Addr::new(
        octets[*at],
        octets[at + 1],
        octets[at + 2],
        octets[at + 3],
    ))
}

const fn v4(octets: [u8; 4], length: u8) -> IpNet {
    let [a, b, c, d] = octets;
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length))
}

const fn v6(segments: [u16; 8], length: u8) -> IpNet {
    IpNet::V6(net6(segments, length))
}

const fn net6(segments: [u16; 8], length: u8) -> Ipv6Net {
    let [a, b, c, d, e, f, g, h] = segments;
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, e, f, g, h), length)
}

#[cfg(test)]
mod tests {
    use super::may_be_called;

    #[test]
    fn own_and_link_local_addresses_are_never_called_however_they_are_written() {
        for address in [
            "127.0.0.1",
            "127.8.9.10",
            "0.0.0.0",
            "0.1.2.3",
            "169.254.169.254",
            "169.254.170.2",
            "169.254.0.1",
            "224.0.0.1",
            "239.255.255.250",
            "240.0.0.1",
            "255.255.255.255",
            "100.100.100.200",
            "168.63.129.16",
            "192.0.0.192",
            "::",
            "::1",
            "fe80::1",
            "febf::1",
            "fec0::1",
            "ff02::1",
            "fd00:ec2::254",
            "fd00:ec2::23",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::ffff:0.0.0.0",
            "::127.0.0.1",
            "::169.254.169.254",
            "::ffff:0:127.0.0.1",
            "64:ff9b::127.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::a9fe:a9fe",
            "2002:7f00:1::",
            "2002:a9fe:a9fe::1",
            "2002:6464:64c8::1",
            "2001:0:4136:e378:8000:63bf:5601:5601",
        ] {
            assert!(!may_be_called(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn others_may_be() {
        for address in [
            "10.96.0.10",
            "172.16.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "192.0.0.191",
            "8.8.8.8",
            "223.255.255.255",
            "2606:4700::1",
            "fd00::10",
            "fd00:ec3::254",
            "::ffff:10.0.0.1",
            "64:ff9b::808:808",
            "2002:808:808::1",
            "2001:db8::1",
        ] {
            assert!(may_be_called(address.parse().unwrap()), "{address}");
        }
    }
}
