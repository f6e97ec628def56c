//! The last words before the end of a connection.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy, sink};
use tokio::time::timeout;

/// How much the other end may still send, and for how long.
pub const LINGER_BYTES: usize = 1024 * 1024;
/// See [`LINGER_BYTES`].
pub const LINGER_TIME: Duration = Duration::from_secs(1);

/// Ends what is written, and drops what still comes: a connection that is closed with bytes unread is reset, and the other
/// end, which writes, hears of the reset before it reads the last words.
pub async fn linger<IO: AsyncRead + AsyncWrite + Unpin>(io: &mut IO) {
    let rest = async {
        io.shutdown().await?;
        copy(&mut io.take(LINGER_BYTES as u64), &mut sink()).await
    };
    // Best effort: it may be broken already.
    let _ = timeout(LINGER_TIME, rest).await;
}
