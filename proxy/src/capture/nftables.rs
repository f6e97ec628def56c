//! The kernel's language for nftables: messages of netlink attributes (include/uapi/linux/netfilter/nf_tables.h and
//! nfnetlink.h). Only what the rules of [`super::rules`] need.

use std::net::IpAddr;

use ipnet::IpNet;

use super::netlink::Message;
use super::rules::{Chain, Match, Rule, Verdict};

const TABLE: &str = "outrigger";

/// nfnetlink's messages around a transaction, and its subsystem for nftables.
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const SUBSYSTEM: u16 = 10;

const NEW_TABLE: u16 = SUBSYSTEM << 8;
const DELETE_TABLE: u16 = SUBSYSTEM << 8 | 2;
const NEW_CHAIN: u16 = SUBSYSTEM << 8 | 3;
const NEW_RULE: u16 = SUBSYSTEM << 8 | 6;
const GET_RULE: u16 = SUBSYSTEM << 8 | 7;

/// `nfgenmsg.nfgen_family`.
const UNSPECIFIED: u8 = 0;
const INET: u8 = 1;

const FLAG_CREATE: u16 = 0x400;
const FLAG_APPEND: u16 = 0x800;
const FLAG_ACK: u16 = 0x4;
const FLAG_DUMP: u16 = 0x300;

/// `NFTA_TABLE_NAME`, and the attribute that names the table in every other message.
const TABLE_NAME: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const RULE_USERDATA: u16 = 7;

/// The table with these rules, in place of one that may be there: one transaction. It is made before it is deleted,
/// because a delete of what is not there fails. The kernel answers the last message, and each that it refuses.
pub(super) fn replace_table(rules: &[Rule]) -> Vec<Message> {
    let table = |kind, flags| {
        let mut message = Message::new(kind, flags, INET, 0);
        message.string(TABLE_NAME, TABLE);
        message
    };
    let mut batch = vec![
        Message::new(BATCH_BEGIN, 0, UNSPECIFIED, SUBSYSTEM),
        table(NEW_TABLE, FLAG_CREATE),
        table(DELETE_TABLE, 0),
        table(NEW_TABLE, FLAG_CREATE),
    ];
    batch.extend(Chain::ALL.map(chain));
    let last = rules.len().saturating_sub(1);
    batch.extend(rules.iter().enumerate().map(|(i, rule)| {
        let ack = if i == last { FLAG_ACK } else { 0 };
        write_rule(rule, FLAG_CREATE | FLAG_APPEND | ack)
    }));
    batch.push(Message::new(BATCH_END, 0, UNSPECIFIED, SUBSYSTEM));
    batch
}

/// Asks for all rules of the table.
pub(super) fn list_rules() -> Message {
    let mut message = Message::new(GET_RULE, FLAG_DUMP, INET, 0);
    message.string(TABLE_NAME, TABLE);
    message
}

/// Whether a message is a rule of the table: an old kernel lists those of every table.
pub(super) fn is_our_rule(kind: u16, attributes: &[u8]) -> bool {
    let mut name = TABLE.as_bytes().to_vec();
    name.push(0);
    kind == NEW_RULE && super::netlink::attribute(attributes, TABLE_NAME) == Some(&name[..])
}

fn name(chain: Chain) -> &'static str {
    match chain {
        Chain::Outbound => "outbound",
        Chain::Inbound => "inbound",
    }
}

fn chain(chain: Chain) -> Message {
    const NAME: u16 = 3;
    const HOOK: u16 = 4;
    const HOOK_NUMBER: u16 = 1;
    const HOOK_PRIORITY: u16 = 2;
    const POLICY: u16 = 5;
    const TYPE: u16 = 7;
    const ACCEPT: u32 = 1;
    /// NF_IP_PRI_NAT_DST
    const DSTNAT: i32 = -100;
    let hook: u32 = match chain {
        Chain::Outbound => 3, // NF_INET_LOCAL_OUT
        Chain::Inbound => 0,  // NF_INET_PRE_ROUTING
    };
    let mut message = Message::new(NEW_CHAIN, FLAG_CREATE, INET, 0);
    message.string(TABLE_NAME, TABLE);
    message.string(NAME, name(chain));
    message.string(TYPE, "nat");
    message.nested(HOOK, |hook_attributes| {
        hook_attributes.bytes(HOOK_NUMBER, &hook.to_be_bytes());
        hook_attributes.bytes(HOOK_PRIORITY, &DSTNAT.to_be_bytes());
    });
    message.bytes(POLICY, &ACCEPT.to_be_bytes());
    message
}

fn write_rule(rule: &Rule, flags: u16) -> Message {
    let mut message = Message::new(NEW_RULE, flags, INET, 0);
    message.string(TABLE_NAME, TABLE);
    message.string(RULE_CHAIN, name(rule.chain));
    message.nested(RULE_EXPRESSIONS, |expressions| {
        for condition in &rule.matches {
            write_match(condition, expressions);
        }
        write_verdict(rule.verdict, expressions);
    });
    // libnftnl's form of a comment: type 0, length, text with its zero.
    let mut comment = vec![0, u8::try_from(rule.comment.len() + 1).unwrap_or(0)];
    comment.extend_from_slice(rule.comment.as_bytes());
    comment.push(0);
    message.bytes(RULE_USERDATA, &comment);
    message
}

/// `enum nft_meta_keys`.
#[derive(Clone, Copy)]
enum Meta {
    InputName = 6,
    OutputName = 7,
    Uid = 10,
    Family = 15,
    Protocol = 16,
}

/// `enum nft_cmp_ops`.
#[derive(Clone, Copy)]
enum Compare {
    Equal = 0,
    AtMost = 3,
    AtLeast = 5,
}

/// `enum nft_payload_bases`.
#[derive(Clone, Copy)]
enum Header {
    Network = 1,
    Transport = 2,
}

/// The one register that the rules use; its 16 bytes hold an IPv6 address.
const REGISTER: u32 = 1;

fn write_match(condition: &Match, to: &mut Message) {
    const TCP: u8 = 6;
    match condition {
        Match::Uid(uid) => {
            meta(Meta::Uid, to);
            // The one number that the kernel keeps in its own byte order.
            compare(Compare::Equal, &uid.to_ne_bytes(), to);
        }
        Match::ToLoopback | Match::FromLoopback => {
            let key = if *condition == Match::ToLoopback {
                Meta::OutputName
            } else {
                Meta::InputName
            };
            // Interface names are compared with all of their 16 bytes.
            let mut loopback = [0; 16];
            loopback[..2].copy_from_slice(b"lo");
            meta(key, to);
            compare(Compare::Equal, &loopback, to);
        }
        Match::Tcp => {
            meta(Meta::Protocol, to);
            compare(Compare::Equal, &[TCP], to);
        }
        Match::Port(range) => {
            const DESTINATION_PORT: u32 = 2;
            payload(Header::Transport, DESTINATION_PORT, 2, to);
            let (low, high) = (range.start().to_be_bytes(), range.end().to_be_bytes());
            if low == high {
                compare(Compare::Equal, &low, to);
            } else {
                compare(Compare::AtLeast, &low, to);
                compare(Compare::AtMost, &high, to);
            }
        }
        Match::Address(network) => address(*network, to),
        Match::ToThisPod => destination_is_local(to),
    }
}

/// What `fib daddr type local` is.
fn destination_is_local(to: &mut Message) {
    const REGISTER_ATTRIBUTE: u16 = 1;
    const RESULT: u16 = 2;
    const FLAGS: u16 = 3;
    const RESULT_ADDRESS_TYPE: u32 = 3;
    const OF_DESTINATION: u32 = 1 << 1;
    /// `RTN_LOCAL` (include/uapi/linux/rtnetlink.h).
    const LOCAL: u32 = 2;
    expression("fib", to, |fib| {
        fib.bytes(REGISTER_ATTRIBUTE, &REGISTER.to_be_bytes());
        fib.bytes(RESULT, &RESULT_ADDRESS_TYPE.to_be_bytes());
        fib.bytes(FLAGS, &OF_DESTINATION.to_be_bytes());
    });
    // The kernel writes it in its own byte order.
    compare(Compare::Equal, &LOCAL.to_ne_bytes(), to);
}

fn address(network: IpNet, to: &mut Message) {
    const NFPROTO_IPV4: u8 = 2;
    const NFPROTO_IPV6: u8 = 10;
    let bytes = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    // Where the destination is in the header.
    let (family, offset) = match network {
        IpNet::V4(_) => (NFPROTO_IPV4, 16),
        IpNet::V6(_) => (NFPROTO_IPV6, 24),
    };
    let (value, mask) = (bytes(network.network()), bytes(network.netmask()));
    let length = u32::from(network.max_prefix_len()) / 8;
    meta(Meta::Family, to);
    compare(Compare::Equal, &[family], to);
    payload(Header::Network, offset, length, to);
    bitwise_and(&mask, to);
    compare(Compare::Equal, &value, to);
}

fn write_verdict(verdict: Verdict, to: &mut Message) {
    const DESTINATION: u16 = 1;
    const DATA: u16 = 2;
    const DATA_VALUE: u16 = 1;
    const DATA_VERDICT: u16 = 2;
    const VERDICT_CODE: u16 = 1;
    const VERDICT_REGISTER: u32 = 0;
    const NFT_RETURN: i32 = -5;
    const NF_DROP: i32 = 0;
    let code = match verdict {
        Verdict::Return => NFT_RETURN,
        Verdict::Drop => NF_DROP,
        Verdict::Redirect(port) => {
            expression("immediate", to, |immediate| {
                immediate.bytes(DESTINATION, &REGISTER.to_be_bytes());
                immediate.nested(DATA, |data| data.bytes(DATA_VALUE, &port.to_be_bytes()));
            });
            expression("redir", to, |redirect| {
                const PORT_REGISTER: u16 = 1;
                const FLAGS: u16 = 3;
                const PORT_SPECIFIED: u32 = 2;
                redirect.bytes(PORT_REGISTER, &REGISTER.to_be_bytes());
                redirect.bytes(FLAGS, &PORT_SPECIFIED.to_be_bytes());
            });
            return;
        }
    };
    expression("immediate", to, |immediate| {
        immediate.bytes(DESTINATION, &VERDICT_REGISTER.to_be_bytes());
        immediate.nested(DATA, |data| {
            data.nested(DATA_VERDICT, |verdict| verdict.bytes(VERDICT_CODE, &code.to_be_bytes()));
        });
    });
}

fn meta(key: Meta, to: &mut Message) {
    expression("meta", to, |meta| {
        meta.bytes(2, &(key as u32).to_be_bytes());
        meta.bytes(1, &REGISTER.to_be_bytes());
    });
}

fn compare(operator: Compare, value: &[u8], to: &mut Message) {
    expression("cmp", to, |compare| {
        compare.bytes(1, &REGISTER.to_be_bytes());
        compare.bytes(2, &(operator as u32).to_be_bytes());
        compare.nested(3, |data| data.bytes(1, value));
    });
}

fn payload(header: Header, offset: u32, length: u32, to: &mut Message) {
    expression("payload", to, |payload| {
        payload.bytes(1, &REGISTER.to_be_bytes());
        payload.bytes(2, &(header as u32).to_be_bytes());
        payload.bytes(3, &offset.to_be_bytes());
        payload.bytes(4, &length.to_be_bytes());
    });
}

fn bitwise_and(mask: &[u8], to: &mut Message) {
    #[expect(clippy::cast_possible_truncation, reason = "4 or 16")]
    let length = mask.len() as u32;
    expression("bitwise", to, |bitwise| {
        bitwise.bytes(1, &REGISTER.to_be_bytes());
        bitwise.bytes(2, &REGISTER.to_be_bytes());
        bitwise.bytes(3, &length.to_be_bytes());
        bitwise.nested(4, |data| data.bytes(1, mask));
        bitwise.nested(5, |data| data.bytes(1, &vec![0; mask.len()]));
    });
}

fn expression(name: &str, to: &mut Message, data: impl FnOnce(&mut Message)) {
    const LIST_ELEMENT: u16 = 1;
    const NAME: u16 = 1;
    const DATA: u16 = 2;
    to.nested(LIST_ELEMENT, |element| {
        element.string(NAME, name);
        element.nested(DATA, data);
    });
}
