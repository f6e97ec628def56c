//! Whether a ClientHello offers the mesh's protocols: the first bytes of anybody who calls a pod.

use outrigger_proxy::identity::{Hello, MeshProtocol, inspect_hello};
use rustls::server::Acceptor;

/// A hello that is longer is another's.
const MAX_HELLO: usize = 16 * 1024;

/// Any first bytes.
pub fn run(bytes: &[u8]) {
    let whole = inspect_hello(bytes);
    let step = 1 + bytes.len() / 50;
    for end in (0..bytes.len()).step_by(step) {
        let part = inspect_hello(&bytes[..end]);
        assert!(
            part == Hello::NeedMore || part == whole,
            "{part:?} at {end}, and {whole:?}"
        );
    }
    if bytes.len() >= MAX_HELLO {
        assert_ne!(whole, Hello::NeedMore);
    }
    // What rustls understands is understood here in the same way.
    if bytes.len() < MAX_HELLO
        && let Some(offered) = alpn(bytes)
    {
        let ours = MeshProtocol::ALL
            .iter()
            .any(|p| offered.iter().any(|name| name == p.alpn()));
        assert_eq!(whole, if ours { Hello::Mesh } else { Hello::OtherTls }, "{offered:?}");
    }
}

/// The protocols that a whole ClientHello offers.
fn alpn(bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut acceptor = Acceptor::default();
    let mut rest = bytes;
    while !rest.is_empty() {
        acceptor.read_tls(&mut rest).ok()?;
        if let Some(accepted) = acceptor.accept().ok()? {
            let hello = accepted.client_hello();
            return Some(hello.alpn().into_iter().flatten().map(<[u8]>::to_vec).collect());
        }
    }
    None
}
