//! Connections of a listener, each when it has a place.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;

use tokio::net::TcpStream;

use super::{GRACE, Room, Seat};
use crate::net::listen::Listener;

/// Connections that were accepted and have no place, because their address has many. They are not read, so each costs a
/// socket; those behind them in the kernel's queue do not wait for them.
const MAX_WAITING: usize = 64;

/// See the module.
pub struct Arrivals {
    room: Rc<Room>,
    listener: Listener,
    waiting: VecDeque<(TcpStream, SocketAddr)>,
}

impl Arrivals {
    /// Takes connections from the listener.
    pub fn new(room: Rc<Room>, listener: Listener) -> Self {
        Self {
            room,
            listener,
            waiting: VecDeque::new(),
        }
    }

    /// The next connection, with its place. While there is none to be had, nothing is accepted.
    pub async fn next(&mut self) -> (TcpStream, SocketAddr, Seat) {
        let room = Rc::clone(&self.room);
        loop {
            let changed = room.changed.notified();
            if let Some(found) = self.first_with_place() {
                return found;
            }
            let has_place = room.has_place();
            let waits = !has_place || !self.waiting.is_empty();
            room.waited_for.set(room.waited_for.get() || waits);
            tokio::select! {
                biased;
                (stream, client) = self.listener.accept(), if has_place => {
                    match room.enter(client.ip()) {
                        Some(seat) => return (stream, client, seat),
                        None => self.wait(stream, client),
                    }
                }
                // After the grace, others may have to go.
                _ = tokio::time::timeout(GRACE, changed), if waits => {}
            }
        }
    }

    /// Of those that wait.
    fn first_with_place(&mut self) -> Option<(TcpStream, SocketAddr, Seat)> {
        for i in 0..self.waiting.len() {
            let Some(seat) = self.room.enter(self.waiting[i].1.ip()) else {
                continue;
            };
            let (stream, client) = self.waiting.remove(i)?;
            return Some((stream, client, seat));
        }
        None
    }

    /// Where too many wait, the one that has waited longest is reset: its client knows at once.
    fn wait(&mut self, stream: TcpStream, client: SocketAddr) {
        if self.waiting.len() >= MAX_WAITING
            && let Some((oldest, client)) = self.waiting.pop_front()
        {
            self.room.observer.connection_crowded_out();
            tracing::debug!(%client, "a connection is reset: its address has too many");
            let _ = oldest.set_zero_linger();
        }
        self.waiting.push_back((stream, client));
    }
}
