//! Labels whose values are ours.

/// How a TLS handshake ended, between sidecars or with a server outside of the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handshake {
    Ok,
    /// The peer is somebody else than discovery or a policy named, or of another trust domain.
    IdentityMismatch,
    NoCertificate,
    Expired,
    NotYetValid,
    UnknownIssuer,
    /// The certificate is no SVID: no SPIFFE ID, two, or something that is none.
    MalformedIdentity,
    /// The peers have no ALPN protocol in common.
    NoProtocol,
    NotTls,
    /// The peer sent an alert: its log says why.
    RefusedByPeer,
    /// The connection ended in the middle.
    Closed,
    Timeout,
    Other,
}

impl Handshake {
    /// The label's values, in the order of the enum.
    pub(super) const NAMES: [&str; 13] = [
        "ok",
        "identity-mismatch",
        "no-certificate",
        "expired",
        "not-yet-valid",
        "unknown-issuer",
        "malformed-identity",
        "no-protocol",
        "not-tls",
        "refused-by-peer",
        "closed",
        "timeout",
        "other",
    ];
}

/// Why a connection is closed before anything of it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Its address has too many connections, and too many of them wait.
    Crowded,
    /// It wanted to go to an address that is not the pod's.
    NotThisPod,
}

impl Refused {
    /// The label's values, in the order of the enum.
    pub(super) const NAMES: [&str; 2] = ["crowded", "not-this-pod"];
}

/// Why a connection between sidecars ends that would go on by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The peer's certificate has ended.
    Expired,
    /// The root of the peer's certificate is not trusted any more.
    Untrusted,
}

impl Ended {
    /// The label's values, in the order of the enum.
    pub(super) const NAMES: [&str; 2] = ["expired", "untrusted"];
}

/// Why a request that was to be mirrored is not, or not whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotMirrored {
    /// It asks for another protocol.
    Upgrade,
    /// As many as may be are under way.
    TooMany,
    /// The mirror does not take the body as fast as it comes.
    TooSlow,
    /// The body broke, or was not read to its end.
    Incomplete,
    /// The mirror cannot be called, or does not answer.
    Failed,
}

impl NotMirrored {
    /// The label's values, in the order of the enum.
    pub(super) const NAMES: [&str; 5] = ["upgrade", "too-many", "too-slow", "incomplete", "failed"];
}

/// What has become of an endpoint that fails.
#[derive(Clone, Copy, Debug)]
pub enum Ejected {
    /// It is left out: it cannot be connected to.
    Absent,
    /// It is left out for what it answers.
    Failing,
    /// More of them fail than may be left out: from now on all are used.
    TooMany,
}

impl Ejected {
    /// The label's values, in the order of the enum.
    pub(super) const NAMES: [&str; 3] = ["unreachable", "failing", "too-many"];

    /// The word for it, in logs too.
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }
}

/// Which limit of a TrafficPolicy leaves no place for something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtLimit {
    Requests,
    Pending,
    Connections,
    EndpointRequests,
    EndpointConnections,
}

impl AtLimit {
    /// The label's values, in the order of the enum: the fields of `limits`.
    pub(super) const NAMES: [&str; 5] = [
        "maxRequests",
        "maxPendingRequests",
        "maxConnections",
        "perEndpoint.maxRequests",
        "perEndpoint.maxConnections",
    ];

    /// Its field of `limits`.
    pub fn field(self) -> &'static str {
        Self::NAMES[self as usize]
    }
}
