//! HTTP/2 frame by frame (RFC 9113 section 4.1), for what no library sends.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};

use super::soon;

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const ACK: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// `:status: 200`, from HPACK's static table.
pub(crate) const STATUS_200: &[u8] = &[0x88];

/// A frame that was received.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    /// A number of four bytes in the payload: an error code, for instance.
    pub(crate) fn number(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }
}

/// A connection.
pub(crate) struct Raw {
    pub(crate) read: ReadHalf<TcpStream>,
    pub(crate) write: WriteHalf<TcpStream>,
}

/// The bytes of a frame.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend_from_slice(&[kind, flags]);
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// The header block of a request: method from the static table, `http`, path `/`, and an authority.
pub(crate) fn request(post: bool) -> Vec<u8> {
    let mut block = vec![if post { 0x83 } else { 0x82 }, 0x86, 0x84, 0x41, 6];
    block.extend_from_slice(b"orders");
    block
}

/// A field of a header block, without HPACK's tables (RFC 7541 section 6.2.2).
pub(crate) fn field(name: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    [vec![0], text(name), text(value)].concat()
}

impl Raw {
    /// Connects as a client, and sends the preface with these SETTINGS.
    pub(crate) async fn connect(to: SocketAddr, settings: &[u8]) -> Self {
        let mut raw = Self::of(TcpStream::connect(to).await.unwrap());
        raw.send(PREFACE).await;
        raw.send(&frame(SETTINGS, 0, 0, settings)).await;
        raw
    }

    /// Accepts a client, and reads its preface.
    pub(crate) async fn accept(listener: &TcpListener) -> Self {
        let mut raw = Self::of(soon(listener.accept()).await.unwrap().0);
        let mut preface = [0; 24];
        soon(raw.read.read_exact(&mut preface)).await.unwrap();
        assert_eq!(preface, PREFACE);
        raw.send(&frame(SETTINGS, 0, 0, &[])).await;
        raw
    }

    fn of(tcp: TcpStream) -> Self {
        let (read, write) = tokio::io::split(tcp);
        Self { read, write }
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        soon(self.write.write_all(bytes)).await.unwrap();
    }

    /// The next frame; `None`: the connection has ended.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        soon(self.read.read_exact(&mut head)).await.ok()?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        soon(self.read.read_exact(&mut payload)).await.ok()?;
        Some(Frame {
            kind: head[3],
            flags: head[4],
            stream: u32::from_be_bytes(head[5..9].try_into().unwrap()),
            payload,
        })
    }

    /// The next frame of this kind that is no acknowledgement, if there is one before the end.
    pub(crate) async fn until(&mut self, kind: u8) -> Option<Frame> {
        loop {
            let frame = self.next().await?;
            if frame.kind == kind && (kind == DATA || kind == HEADERS || frame.flags & ACK == 0) {
                return Some(frame);
            }
        }
    }
}
