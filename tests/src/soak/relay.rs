//! The network between two processes, with its faults: a TCP relay that delays, stalls, resets or refuses.

use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::port::Port;

const BUFFER: usize = 16 * 1024;

/// What the network does to the bytes that pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Weather {
    Fine,
    /// Each chunk takes this much longer, in each direction.
    Delay(Duration),
    /// Nothing passes; what was sent comes later.
    Stall,
}

/// See the module. Dropped, it resets its connections and refuses new ones.
pub(super) struct Relay {
    port: Port,
    to: SocketAddr,
    weather: watch::Sender<Weather>,
    /// Counts the resets; a connection ends with the next one after its beginning.
    resets: watch::Sender<u64>,
    accepting: Mutex<AbortHandle>,
}

impl Relay {
    pub(super) fn start(to: SocketAddr) -> io::Result<Self> {
        let relay = Self {
            port: Port::reserve()?,
            to,
            weather: watch::Sender::new(Weather::Fine),
            resets: watch::Sender::new(0),
            accepting: Mutex::new(tokio::spawn(async {}).abort_handle()),
        };
        relay.accept()?;
        Ok(relay)
    }

    /// Where to connect instead.
    pub(super) fn address(&self) -> SocketAddr {
        self.port.address
    }

    pub(super) fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }

    /// Resets all connections that there are, in both directions.
    pub(super) fn reset(&self) {
        self.resets.send_modify(|resets| *resets += 1);
    }

    /// Accepts nothing any more; connections that there are stay.
    pub(super) fn refuse(&self) {
        self.accepting().abort();
    }

    /// Accepts again.
    pub(super) fn accept(&self) -> io::Result<()> {
        let task = accept(self.port.listen()?, self.to, self.weather.clone(), self.resets.clone());
        *self.accepting() = tokio::spawn(task).abort_handle();
        Ok(())
    }

    fn accepting(&self) -> MutexGuard<'_, AbortHandle> {
        self.accepting.lock().expect("nobody panics with it in hand")
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.refuse();
        self.reset();
    }
}

async fn accept(listener: TcpListener, to: SocketAddr, weather: watch::Sender<Weather>, resets: watch::Sender<u64>) {
    while let Ok((client, _)) = listener.accept().await {
        // Not a child of this task: a relay that refuses still carries what it took.
        tokio::spawn(carry(client, to, weather.subscribe(), resets.subscribe()));
    }
}

/// Ends as the two ends do: an end for an end, and a reset for a reset.
async fn carry(
    mut client: TcpStream,
    to: SocketAddr,
    weather: watch::Receiver<Weather>,
    mut resets: watch::Receiver<u64>,
) {
    let at = *resets.borrow();
    let reset = async move {
        // An error means that the relay is gone: that ends its connections, too.
        let _ = resets.wait_for(|now| *now != at).await;
    };
    tokio::pin!(reset);
    let connected = tokio::select! {
        connected = TcpStream::connect(to) => connected.ok(),
        () = &mut reset => None,
    };
    let Some(mut server) = connected else {
        return reset_on_drop(&client);
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ended_well = {
        let ((from_client, to_client), (from_server, to_server)) = (client.split(), server.split());
        tokio::select! {
            both = async { tokio::try_join!(
                copy(from_client, to_server, weather.clone()),
                copy(from_server, to_client, weather),
            ) } => both.is_ok(),
            () = &mut reset => false,
        }
    };
    if !ended_well {
        reset_on_drop(&client);
        reset_on_drop(&server);
    }
}

async fn copy(mut from: ReadHalf<'_>, mut to: WriteHalf<'_>, mut weather: watch::Receiver<Weather>) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = from.read(&mut buffer).await?;
        let delay = match *weather.borrow() {
            Weather::Delay(delay) => delay,
            Weather::Fine | Weather::Stall => Duration::ZERO,
        };
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        // An error means that the relay is gone.
        let _ = weather.wait_for(|now| *now != Weather::Stall).await;
        match read {
            0 => return to.shutdown().await,
            read => to.write_all(&buffer[..read]).await?,
        }
    }
}

fn reset_on_drop(stream: &TcpStream) {
    // It fails where the connection is gone already.
    let _ = stream.set_zero_linger();
}
