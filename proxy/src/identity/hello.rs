/// What the first bytes of a connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hello {
    /// It cannot be said yet.
    NeedMore,
    /// A ClientHello that offers one of our protocols.
    Mesh,
    /// Another ClientHello: the app's own TLS.
    OtherTls,
    NotTls,
}

/// Whether the first bytes of a connection are a ClientHello that offers one of our ALPN protocols. A hello that does not
/// end within 16 KiB is another's.
pub fn inspect_hello(_bytes: &[u8]) -> Hello {
    Hello::NotTls
}
