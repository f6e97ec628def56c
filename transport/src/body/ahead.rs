//! A request's body that is read before the request is sent on, because somebody has to see it first.
//!
//! It is read once, into memory that all such bodies share ([`AheadRoom`]), and then read again from there, as if it came from the client
//! just then: whoever keeps or copies it finds nothing changed. Its bytes count until nobody holds them any more.

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes that are handed on together, as they would come from a client: copies and retries keep them apart by that.
const PIECE: usize = 16 * 1024;

/// Memory for bodies that are read ahead.
pub struct AheadRoom(Arc<Semaphore>);

/// Why a body was not read ahead. What was read of it is gone.
#[derive(Debug)]
pub enum NotRead {
    /// It is larger than it may be.
    TooLarge,
    /// There is no room for it, because others take it.
    NoRoom,
    /// The client broke off.
    Broken(hyper::Error),
}

/// A body that grows.
pub(super) struct Growing {
    bytes: Vec<u8>,
    limit: usize,
    room: Arc<Semaphore>,
    share: Option<OwnedSemaphorePermit>,
}

/// All of a body.
pub(super) struct Ahead {
    pub(super) data: Bytes,
    pub(super) trailers: Option<HeaderMap>,
}

/// Bytes, with their share of the room.
struct Counted {
    bytes: Vec<u8>,
    _share: Option<OwnedSemaphorePermit>,
}

impl AheadRoom {
    /// For so many bytes.
    pub fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes)))
    }
}

impl Growing {
    pub(super) fn new(limit: usize, room: &AheadRoom) -> Self {
        Self {
            bytes: Vec::new(),
            limit,
            room: Arc::clone(&room.0),
            share: None,
        }
    }

    pub(super) fn add(&mut self, data: &[u8]) -> Result<(), NotRead> {
        if data.len() > self.limit - self.bytes.len() {
            return Err(NotRead::TooLarge);
        }
        let length = u32::try_from(data.len()).map_err(|_| NotRead::TooLarge)?;
        let room = Arc::clone(&self.room);
        let more = room.try_acquire_many_owned(length).map_err(|_| NotRead::NoRoom)?;
        match &mut self.share {
            Some(share) => share.merge(more),
            none => *none = Some(more),
        }
        self.bytes.extend_from_slice(data);
        Ok(())
    }

    pub(super) fn end(self, trailers: Option<HeaderMap>) -> Ahead {
        let mut bytes = self.bytes;
        bytes.shrink_to_fit();
        Ahead {
            data: Bytes::from_owner(Counted {
                bytes,
                _share: self.share,
            }),
            trailers,
        }
    }
}

impl Ahead {
    pub(super) fn next(&mut self) -> Option<Frame<Bytes>> {
        if !self.data.is_empty() {
            return Some(Frame::data(self.data.split_to(self.data.len().min(PIECE))));
        }
        self.trailers.take().map(Frame::trailers)
    }

    pub(super) fn is_end(&self) -> bool {
        self.data.is_empty() && self.trailers.is_none()
    }
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{AheadRoom, Growing, NotRead, PIECE};
    use http::{HeaderMap, HeaderValue};

    const ROOM: usize = 4 * PIECE;

    fn free(room: &AheadRoom) -> usize {
        room.0.available_permits()
    }

    #[test]
    fn it_is_read_again_in_pieces_with_its_trailers_and_counts_until_nobody_holds_it() {
        let room = AheadRoom::new(ROOM);
        let mut growing = Growing::new(ROOM, &room);
        let sent: Vec<u8> = (0..PIECE + 5).map(|n| (n % 251) as u8).collect();
        sent.chunks(1000).for_each(|chunk| growing.add(chunk).unwrap());
        let trailers = HeaderMap::from_iter([("x-sum".parse().unwrap(), HeaderValue::from_static("1"))]);
        let mut ahead = growing.end(Some(trailers));
        assert_eq!(free(&room), ROOM - sent.len());
        let (mut read, mut ends) = (Vec::new(), Vec::new());
        while let Some(frame) = ahead.next() {
            match frame.into_data() {
                Ok(data) => {
                    assert!(data.len() <= PIECE && !ahead.is_end());
                    read.extend_from_slice(&data);
                    ends.push(data);
                }
                Err(frame) => assert_eq!(frame.into_trailers().unwrap()["x-sum"], "1"),
            }
        }
        assert!(read == sent && ahead.is_end());
        drop(ahead);
        assert_eq!(free(&room), ROOM - sent.len(), "a retry may hold it");
        drop(ends);
        assert_eq!(free(&room), ROOM);
    }

    #[test]
    fn what_is_too_large_or_has_no_room_takes_none() {
        let room = AheadRoom::new(ROOM);
        let mut growing = Growing::new(5, &room);
        assert!(growing.add(b"12345").is_ok());
        assert!(matches!(growing.add(b"6"), Err(NotRead::TooLarge)));
        drop(growing);
        let mut others = Growing::new(ROOM, &room);
        others.add(&[0; ROOM - 1]).unwrap();
        let mut growing = Growing::new(5, &room);
        assert!(growing.add(b"1").is_ok());
        assert!(matches!(growing.add(b"2"), Err(NotRead::NoRoom)));
        drop((growing, others));
        assert_eq!(free(&room), ROOM);
    }
}
