//! What `ConsistentHash` goes by: a number for what is alike in requests, one for each endpoint, and the score of one for the other.
//! They are the same in every sidecar of every version: a mesh is upgraded pod by pod.
//!
//! Whoever sends requests chooses what is hashed, and may send all of them to one endpoint; `boundedLoad` is what limits that.

use std::net::{IpAddr, SocketAddr};

use http::header::COOKIE;
use http::request::Parts;

use super::affinity::Caller;
use super::route::query_value;
use crate::model::{Endpoint, HashKey, ServiceName};

/// FNV-1a, 64 bits.
struct Hash(u64);

impl Hash {
    const fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

/// What a request goes by. `None`: it has nothing of it.
pub fn key(on: &[HashKey], head: Option<&Parts>, caller: Caller) -> Option<u64> {
    let mut hash = Hash::new();
    let mut is_there = false;
    for part in on {
        let mut write = |value: &[u8]| {
            is_there = true;
            // What ends where is part of it: "ab" and "c" are not "a" and "bc".
            hash.write(&(value.len() as u64).to_le_bytes());
            hash.write(value);
        };
        match (part, head) {
            (HashKey::Caller, _) => write(&caller.number().to_le_bytes()),
            (_, None) => {}
            (HashKey::Header(name), Some(head)) => {
                head.headers
                    .get_all(name)
                    .iter()
                    .for_each(|value| write(value.as_bytes()));
            }
            (HashKey::Cookie(name), Some(head)) => cookies(head, name).next().into_iter().for_each(write),
            (HashKey::Query(name), Some(head)) => {
                let value = head.uri.query().and_then(|query| query_value(query, name));
                value.iter().for_each(|value| write(value));
            }
            (HashKey::Path, Some(head)) => Some(head.uri.path())
                .filter(|path| !path.is_empty())
                .into_iter()
                .for_each(|path| write(path.as_bytes())),
        }
        hash.write(b"\0");
    }
    is_there.then(|| mix(hash.0))
}

/// The values of all cookies of that name.
pub fn cookies<'a>(head: &'a Parts, name: &str) -> impl Iterator<Item = &'a [u8]> {
    let lines = head.headers.get_all(COOKIE).iter();
    let cookies = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b';'));
    cookies.filter_map(move |cookie| {
        let value = cookie.trim_ascii().strip_prefix(name.as_bytes())?;
        value.strip_prefix(b"=")
    })
}

/// Of an endpoint.
pub fn of_address(address: SocketAddr) -> u64 {
    let mut hash = Hash::new();
    match address.ip() {
        IpAddr::V4(ip) => hash.write(&ip.octets()),
        IpAddr::V6(ip) => hash.write(&ip.octets()),
    }
    hash.write(&address.port().to_le_bytes());
    mix(hash.0)
}

/// By what a session knows an endpoint: by its pod, which may have another address tomorrow, or by its address where there is no pod.
pub fn of_endpoint(endpoint: &Endpoint) -> u64 {
    let Some(pod) = &endpoint.pod else {
        return of_address(endpoint.address);
    };
    let mut hash = Hash::new();
    hash.write(b"pod\0");
    hash.write(pod.as_bytes());
    hash.write(b"\0");
    hash.write(&endpoint.address.port().to_le_bytes());
    mix(hash.0)
}

/// By what a session knows a backend.
pub fn of_service(name: &ServiceName) -> u64 {
    let mut hash = Hash::new();
    for part in [&name.namespace, &name.name] {
        hash.write(part.as_bytes());
        hash.write(b"\0");
    }
    hash.write(&name.port.to_le_bytes());
    mix(hash.0)
}

/// Of an endpoint for what is alike in requests: as good as random, and always the same.
pub fn score(key: u64, endpoint: u64) -> u64 {
    mix(key ^ endpoint.rotate_left(32))
}

/// Each bit of the result depends on each bit (the last step of MurmurHash3).
pub fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    bits = (bits ^ (bits >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    bits ^ (bits >> 33)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::slice::from_ref;

    use http::Request;

    use super::*;
    use crate::model::Workload;

    fn caller(pod: &str) -> Caller {
        Caller::new(&Workload {
            pod: pod.into(),
            ..Workload::default()
        })
    }

    fn of(on: &[HashKey], uri: &str, headers: &[(&str, &str)]) -> Option<u64> {
        let mut request = Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (head, ()) = request.body(()).unwrap().into_parts();
        key(on, Some(&head), caller("web-1"))
    }

    /// What was the same stays the same, in the next version too.
    #[test]
    fn numbers_that_sidecars_agree_on() {
        let on = [HashKey::Header("x-user".parse().unwrap())];
        let key = of(&on, "http://a/", &[("x-user", "7")]).unwrap();
        let endpoint = of_address("10.0.0.1:8080".parse().unwrap());
        assert_eq!((key, endpoint, score(key, endpoint)), NUMBERS);
    }

    const NUMBERS: (u64, u64, u64) = (0x9d50_1786_2b13_c80a, 0xea2a_aacd_f798_d50b, 0xbcfa_1072_2f2f_62d3);

    #[test]
    fn what_is_alike_is_equal_and_what_is_not_there_is_nothing() {
        let user = HashKey::Header("x-user".parse().unwrap());
        let (session, item) = (HashKey::Cookie("s".into()), HashKey::Query("item".into()));
        let user_and_session = [user.clone(), session.clone()];
        for (on, uri, headers, same) in [
            (
                &[user.clone()][..],
                "/b?c",
                &[("X-User", "7"), ("x-other", "1")][..],
                true,
            ),
            (from_ref(&user), "/a", &[("x-user", "8")], false),
            (from_ref(&session), "/", &[("cookie", "a=b; s=1")], true),
            (
                from_ref(&session),
                "/",
                &[("cookie", "a=b"), ("cookie", "s=1;t=2")],
                true,
            ),
            (from_ref(&session), "/", &[("cookie", "s=2; s=1")], false),
            (from_ref(&item), "/x?a=b&item=a%62", &[], true),
            (from_ref(&item), "/x?item=abc", &[], false),
            (&[HashKey::Path], "/a?x=y", &[], true),
            (&[HashKey::Path], "/a/", &[], false),
            (&user_and_session, "/", &[("cookie", "s=1"), ("x-user", "7")], true),
            (&user_and_session, "/", &[("x-user", "7")], false),
            (&user_and_session, "/", &[("x-user", "7s"), ("cookie", "s=1")], false),
        ] {
            let first = of(on, "/a?item=ab", &[("x-user", "7"), ("cookie", "s=1; t=1")]);
            let other = of(on, uri, headers);
            assert!(first.is_some() && other.is_some(), "{on:?}");
            assert_eq!(first == other, same, "{on:?} {uri} {headers:?}");
        }
        for on in [&[user][..], &[session], &[item]] {
            assert_eq!(of(on, "/?it=1", &[("cookie", "st=1; xs=1; s")]), None, "{on:?}");
            assert_eq!(key(on, None, caller("web-1")), None);
        }
        let by_caller = |pod| key(&[HashKey::Caller], None, caller(pod)).unwrap();
        assert_eq!(by_caller("web-1"), by_caller("web-1"));
        assert_ne!(by_caller("web-1"), by_caller("web-2"));
    }
}
