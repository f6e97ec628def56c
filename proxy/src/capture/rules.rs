//! The rules themselves, as plain data: what they are is decided here, and how they are written in [`super::nftables`].

use std::ops::RangeInclusive;

use ipnet::IpNet;
use outrigger_api::ports;

use super::CaptureConfig;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chain {
    Outbound,
    Inbound,
}

impl Chain {
    pub(super) const ALL: [Chain; 2] = [Chain::Outbound, Chain::Inbound];
}

/// All matches of a rule must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Match {
    /// The user of the process that opened the connection.
    Uid(u32),
    /// Leaves through loopback: to this pod itself.
    ToLoopback,
    FromLoopback,
    Tcp,
    /// TCP to one of these ports.
    Port(RangeInclusive<u16>),
    Address(IpNet),
    /// To an address that this network namespace has.
    ToThisPod,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Not captured.
    Return,
    Drop,
    /// To a port of this pod.
    Redirect(u16),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) chain: Chain,
    pub(super) matches: Vec<Match>,
    pub(super) verdict: Verdict,
    /// `nft list table inet outrigger` shows it.
    pub(super) comment: &'static str,
}

/// In their order: the first whose matches hold decides. `fib`: whether the kernel can say which addresses are its own; where
/// it cannot, the sidecar alone refuses what is for other hosts.
pub(super) fn plan(config: &CaptureConfig, fib: bool) -> Vec<Rule> {
    let mut rules = Vec::new();
    let mut outbound = |matches: Match, verdict, comment| rules.push(rule(Chain::Outbound, matches, verdict, comment));
    // Before everything else: what the sidecar sends must never come back to it.
    outbound(Match::Uid(ports::PROXY_UID), Verdict::Return, "the sidecar itself");
    for uid in &config.skip_uids {
        outbound(Match::Uid(*uid), Verdict::Return, "excluded user");
    }
    outbound(Match::ToLoopback, Verdict::Return, "the pod to itself");
    for range in &config.skip_outbound_ports {
        outbound(Match::Port(range.clone()), Verdict::Return, "excluded port");
    }
    for network in &config.skip_outbound_cidrs {
        outbound(Match::Address(*network), Verdict::Return, "excluded address");
    }
    outbound(Match::Tcp, Verdict::Redirect(ports::OUTBOUND), "captured");

    let mut inbound = |matches: Match, verdict, comment| rules.push(rule(Chain::Inbound, matches, verdict, comment));
    inbound(Match::FromLoopback, Verdict::Return, "the pod to itself");
    inbound(
        Match::Port(ports::ADMIN..=ports::ADMIN),
        Verdict::Return,
        "probes and metrics",
    );
    for port in [ports::INBOUND, ports::OUTBOUND] {
        inbound(Match::Port(port..=port), Verdict::Drop, "not reachable from outside");
    }
    for range in &config.skip_inbound_ports {
        inbound(Match::Port(range.clone()), Verdict::Return, "excluded port");
    }
    let captured = if fib { Match::ToThisPod } else { Match::Tcp };
    inbound(captured, Verdict::Redirect(ports::INBOUND), "captured");
    if fib {
        // A route or a raw frame brings it here. Redirected, it would go on under this pod's address.
        inbound(Match::Tcp, Verdict::Drop, "for another host");
    }
    rules
}

fn rule(chain: Chain, only: Match, verdict: Verdict, comment: &'static str) -> Rule {
    let matches = match only {
        // The kernel looks for a port in TCP's header only if it knows that there is one.
        Match::Port(_) => vec![Match::Tcp, only],
        Match::ToThisPod => vec![only, Match::Tcp],
        other => vec![other],
    };
    Rule {
        chain,
        matches,
        verdict,
        comment,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use outrigger_api::ports;

    use super::{Chain, Match, Verdict, plan};
    use crate::capture::CaptureConfig;

    #[test]
    fn the_sidecar_is_first_and_the_capture_last() {
        let config = CaptureConfig {
            skip_inbound_ports: vec![22..=22, 14143..=14143],
            skip_outbound_ports: vec![25..=25, 9000..=9010],
            skip_outbound_cidrs: vec!["10.0.0.0/8".parse().unwrap()],
            skip_uids: vec![0],
        };
        let rules = plan(&config, true);
        let of = |chain| rules.iter().filter(move |rule| rule.chain == chain);
        let (first, last) = (
            of(Chain::Outbound).next().unwrap(),
            of(Chain::Outbound).next_back().unwrap(),
        );
        assert_eq!(first.matches, [Match::Uid(ports::PROXY_UID)]);
        assert_eq!(last.verdict, Verdict::Redirect(ports::OUTBOUND));
        assert_eq!(of(Chain::Outbound).count(), 7);
        let [captured, rest] = of(Chain::Inbound).skip(6).collect::<Vec<_>>()[..] else {
            panic!("not eight rules");
        };
        assert_eq!(captured.verdict, Verdict::Redirect(ports::INBOUND));
        assert_eq!(captured.matches, [Match::ToThisPod, Match::Tcp]);
        assert_eq!((rest.verdict, &rest.matches[..]), (Verdict::Drop, &[Match::Tcp][..]));
        let without = plan(&config, false);
        assert_eq!(without.len(), rules.len() - 1);
        assert!(without.iter().all(|rule| !rule.matches.contains(&Match::ToThisPod)));
        // An exclusion does not open the listeners either.
        let at = |verdict, port| {
            let matches = [Match::Tcp, Match::Port(port..=port)];
            rules
                .iter()
                .position(|rule| rule.chain == Chain::Inbound && rule.verdict == verdict && rule.matches == matches)
        };
        assert!(at(Verdict::Drop, ports::INBOUND).unwrap() < at(Verdict::Return, ports::INBOUND).unwrap());
    }
}
