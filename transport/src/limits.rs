//! Bounds that several parts of HTTP keep to. What only one part keeps to stands there.

/// The limit of a header section on every path, request and response, HTTP/1 and HTTP/2: bytes of names, values and, as
/// HTTP/2 counts (RFC 9113 section 10.5.1), 32 for each field.
pub const MAX_HEADER_BYTES: usize = 64 * 1024;
/// What hyper may buffer of an HTTP/1 message, and h2 of a header section, in bytes. Larger than the header limit, so that this
/// sidecar answers 431 with a reason itself; what does not even fit here gets a bare 431 of the library.
pub const MAX_BUFFER: usize = 2 * MAX_HEADER_BYTES;
/// Bytes in flight that an HTTP/2 peer may send before it is read, for one stream.
pub const STREAM_WINDOW: u32 = 256 * 1024;
/// The same for all streams of a connection. It is much larger, so that a few streams that nobody reads do not stop the
/// others; and half of it is what h2 lets the unread small frames of a connection cost (256 bytes each), so that a stream of
/// short messages to a slow reader does not end it.
pub const CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;
