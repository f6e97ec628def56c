//! Load in HTTP/1.1 that no packaged tool makes: a constant rate with latency from the *intended* moment of each request,
//! a new connection for each request, connections that are held.
//!
//! Threads and blocking sockets: no runtime whose timers would round the moments of sending.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use nix::sys::prctl;
use nix::sys::time::{TimeSpec, TimeValLike};
use nix::time::{ClockId, ClockNanosleepFlags, clock_gettime, clock_nanosleep};
use serde::Serialize;

const TIMEOUT: Duration = Duration::from_secs(5);
const SECOND: f64 = 1e9;

#[derive(clap::Args)]
pub(crate) struct Rate {
    /// The app.
    #[arg(long)]
    addr: SocketAddr,
    /// Requests a second.
    #[arg(long)]
    rate: f64,
    /// Connections, a thread each.
    #[arg(long, default_value_t = 16)]
    connections: u32,
    /// Measures so long.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Sends before that, in seconds.
    #[arg(long, default_value_t = 1.0)]
    warmup: f64,
}

#[derive(clap::Args)]
pub(crate) struct Connect {
    /// The app.
    #[arg(long)]
    addr: SocketAddr,
    /// At a time.
    #[arg(long, default_value_t = 16)]
    connections: u32,
    /// So long.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
}

#[derive(clap::Args)]
pub(crate) struct Hold {
    /// The app.
    #[arg(long)]
    addr: SocketAddr,
    /// How many.
    #[arg(long)]
    connections: u32,
    /// Held so long after the last is open.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
}

#[derive(Serialize)]
struct Report {
    ok: usize,
    errors: u64,
    per_second: f64,
    latency_us: Latency,
}

#[derive(Serialize)]
struct Latency {
    p50: f64,
    p90: f64,
    p99: f64,
    p999: f64,
    max: f64,
}

fn report(mut nanoseconds: Vec<i64>, errors: u64, seconds: f64) -> Result<()> {
    nanoseconds.sort_unstable();
    let at = |percent: f64| {
        let rank = (nanoseconds.len() as f64 * percent / 100.0).ceil() as usize;
        nanoseconds
            .get(rank.saturating_sub(1))
            .map_or(f64::NAN, |ns| *ns as f64 / 1000.0)
    };
    let report = Report {
        ok: nanoseconds.len(),
        errors,
        per_second: nanoseconds.len() as f64 / seconds,
        latency_us: Latency {
            p50: at(50.0),
            p90: at(90.0),
            p99: at(99.0),
            p999: at(99.9),
            max: at(100.0),
        },
    };
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

fn now() -> Result<i64> {
    Ok(clock_gettime(ClockId::CLOCK_MONOTONIC)?.num_nanoseconds())
}

fn sleep_until(nanoseconds: i64) {
    let until = TimeSpec::nanoseconds(nanoseconds);
    let absolute = ClockNanosleepFlags::TIMER_ABSTIME;
    // Interrupted by a signal: it goes on.
    while clock_nanosleep(ClockId::CLOCK_MONOTONIC, absolute, &until).is_err() {}
}

/// One connection, made when it is needed.
struct Client {
    addr: SocketAddr,
    request: String,
    stream: Option<TcpStream>,
    buffer: Vec<u8>,
}

impl Client {
    fn new(addr: SocketAddr, close: bool) -> Self {
        let connection = if close { "Connection: close\r\n" } else { "" };
        Self {
            addr,
            request: format!("GET / HTTP/1.1\r\nHost: app.bench.svc.cluster.local\r\nAccept: */*\r\n{connection}\r\n"),
            stream: None,
            buffer: Vec::with_capacity(8192),
        }
    }

    /// Sends a request and reads the response. Whether it is a 200.
    fn get(&mut self) -> std::io::Result<bool> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => {
                let stream = TcpStream::connect_timeout(&self.addr, TIMEOUT)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(TIMEOUT))?;
                stream
            }
        };
        stream.write_all(self.request.as_bytes())?;
        let (ok, keep) = read_response(&mut stream, &mut self.buffer)?;
        if keep {
            self.stream = Some(stream);
        }
        Ok(ok)
    }
}

fn read_some(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> std::io::Result<()> {
    let mut chunk = [0; 16 * 1024];
    let read = stream.read(&mut chunk)?;
    if read == 0 {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    buffer.extend_from_slice(&chunk[..read]);
    Ok(())
}

/// Whether the status is 200, and whether the connection may be used again.
fn read_response(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> std::io::Result<(bool, bool)> {
    buffer.clear();
    let head = loop {
        if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        read_some(stream, buffer)?;
    };
    let text = String::from_utf8_lossy(&buffer[..head]).to_ascii_lowercase();
    let ok = text.split(' ').nth(1) == Some("200");
    let keep = !text.contains("connection: close");
    let length = text.lines().find_map(|line| line.strip_prefix("content-length:"));
    if let Some(length) = length.and_then(|value| value.trim().parse::<usize>().ok()) {
        while buffer.len() < head + length {
            read_some(stream, buffer)?;
        }
    } else if text.contains("transfer-encoding: chunked") {
        while !buffer[head..].ends_with(b"0\r\n\r\n") {
            read_some(stream, buffer)?;
        }
    } else {
        std::io::copy(stream, &mut std::io::sink())?;
        return Ok((ok, false));
    }
    Ok((ok, keep))
}

pub(crate) fn rate(options: &Rate) -> Result<()> {
    let start = now()? + 50_000_000;
    let measured = start + (options.warmup * SECOND) as i64;
    let end = measured + (options.seconds * SECOND) as i64;
    let step = SECOND / options.rate;
    let all = Mutex::new((Vec::new(), 0));
    std::thread::scope(|threads| {
        for which in 0..options.connections {
            let all = &all;
            threads.spawn(move || -> Result<()> {
                prctl::set_timerslack(1)?;
                let mut client = Client::new(options.addr, false);
                let (mut latency, mut errors) = (Vec::new(), 0);
                for turn in 0_u32.. {
                    let number = f64::from(turn) * f64::from(options.connections) + f64::from(which);
                    let intended = start + (number * step) as i64;
                    if intended >= end {
                        break;
                    }
                    sleep_until(intended);
                    let ok = client.get().unwrap_or(false);
                    if intended < measured {
                        continue;
                    }
                    if ok {
                        latency.push(now()? - intended);
                    } else {
                        errors += 1;
                    }
                }
                collect(all, latency, errors);
                Ok(())
            });
        }
    });
    let (latency, errors) = all.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    report(latency, errors, options.seconds)
}

fn collect(all: &Mutex<(Vec<i64>, u64)>, latency: Vec<i64>, errors: u64) {
    let mut all = all.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    all.0.extend(latency);
    all.1 += errors;
}

pub(crate) fn connect(options: &Connect) -> Result<()> {
    /// So many ports are there for one destination; the kernel keeps each for a while.
    const MOST: usize = 40_000;
    let began = now()?;
    let stop = AtomicBool::new(false);
    let all = Mutex::new((Vec::new(), 0));
    std::thread::scope(|threads| {
        for _ in 0..options.connections {
            let (all, stop) = (&all, &stop);
            threads.spawn(move || -> Result<()> {
                let (mut latency, mut errors) = (Vec::new(), 0);
                while !stop.load(Ordering::Relaxed)
                    && errors < 1000
                    && latency.len() < MOST / options.connections as usize
                {
                    let sent = now()?;
                    match Client::new(options.addr, true).get() {
                        Ok(true) => latency.push(now()? - sent),
                        _ => errors += 1,
                    }
                }
                collect(all, latency, errors);
                Ok(())
            });
        }
        std::thread::sleep(Duration::from_secs_f64(options.seconds));
        stop.store(true, Ordering::Relaxed);
    });
    let seconds = (now()? - began) as f64 / SECOND;
    let (latency, errors) = all.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    report(latency, errors, seconds)
}

pub(crate) fn hold(options: &Hold) -> Result<()> {
    let mut clients = Vec::new();
    let (mut latency, mut errors) = (Vec::new(), 0);
    for _ in 0..options.connections {
        let sent = now()?;
        let mut client = Client::new(options.addr, false);
        match client.get() {
            Ok(true) => latency.push(now()? - sent),
            _ => errors += 1,
        }
        clients.push(client);
    }
    // Said at once, so that who waits can look at the memory now.
    report(latency, errors, options.seconds)?;
    std::thread::sleep(Duration::from_secs_f64(options.seconds));
    drop(clients);
    Ok(())
}
