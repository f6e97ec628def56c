//! Messages in small pieces.
//!
//! HTTP/2 takes a whole piece of a body as soon as the peer's window has room for one byte of it, and keeps the rest. With a
//! window of one byte on each of thousands of streams, a peer would have the controller keep a whole message for each. So HTTP/2
//! is given little at a time, and the rest stays here, charged to the peer until it is taken.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tonic::Status;

use outrigger_issuer::share::Held;

/// What HTTP/2 may have of a stream at a time. It is part of what a stream is said to cost.
const PIECE: usize = 2 * 1024;

/// The charge for a message that is not all taken.
pub(crate) type Unread = Arc<Mutex<Option<Held>>>;

/// A body whose data comes in pieces.
pub(crate) struct Pieces<B> {
    body: B,
    rest: Bytes,
    unread: Unread,
}

impl<B> Pieces<B> {
    /// Each frame of `body` is a message, whose charge is in `unread`.
    pub(crate) fn new(body: B, unread: Unread) -> Self {
        Self {
            body,
            rest: Bytes::new(),
            unread,
        }
    }
}

impl<B: Body<Data = Bytes, Error = Status> + Unpin> Body for Pieces<B> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                end => return Poll::Ready(end),
            }
        }
        let length = self.rest.len().min(PIECE);
        let piece = self.rest.split_to(length);
        let piece = if self.rest.is_empty() {
            self.unread.lock().take();
            // A copy, so that the last piece does not keep the memory of the whole.
            let last = Bytes::copy_from_slice(&piece);
            self.rest = Bytes::new();
            last
        } else {
            piece
        };
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::IpAddr;

    use http_body_util::{BodyExt, Full};
    use outrigger_api::spiffe::SpiffeId;
    use outrigger_gate::Budget;
    use outrigger_issuer::share::Share;

    use super::*;

    #[tokio::test]
    async fn a_message_is_charged_until_its_last_piece_is_taken() {
        let budget = Budget::new(1 << 20);
        let id = SpiffeId::new("cluster.local", "shop", "orders").unwrap();
        let share = Share::new(&budget, &id, IpAddr::from([10, 0, 0, 1]));
        let message: Bytes = (0..=255).cycle().take(2 * PIECE + 100).collect::<Vec<u8>>().into();
        let unread: Unread = Arc::new(Mutex::new(Some(share.charge(5000).unwrap())));
        let body = Full::new(message.clone()).map_err(|never| match never {});
        let mut pieces = Pieces::new(body, unread);
        let mut seen = Vec::new();
        for (length, charged) in [(PIECE, 5000), (PIECE, 5000), (100, 0)] {
            let piece = pieces.frame().await.unwrap().unwrap().into_data().unwrap();
            assert_eq!((piece.len(), budget.used()), (length, charged));
            seen.extend_from_slice(&piece);
        }
        assert_eq!(seen, message);
        assert!(pieces.is_end_stream() && pieces.frame().await.is_none());
    }
}
