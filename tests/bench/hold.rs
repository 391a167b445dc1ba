//! Slow connections by the thousand while devices renew: what `make hold` lets loose on a server.
//!
//! `boundkey-hold --server 127.0.0.1:PORT --ca-pin PIN --secret SECRET [--devices 1000] [--interval 10] [--connections 10000]
//! [--addresses 100] [--reconnects 2000] [--seconds 60]`: tokens `load-0`, `load-1` ... must exist, with SECRET as registration
//! secret. Each device has a loopback address of its own and renews once an interval; the connections come from `127.0.1.1` and the
//! addresses after it, and what the server closes is opened anew, so many a second. Then, without a flood, all devices come at one
//! moment and from one address, and try again as the daemon does. Prints one JSON object. Loopback only.

mod device;
mod slow;

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use boundkey::agent::tls::{Presented, Roots};
use boundkey::agent::transport::{Transport, TransportError};
use boundkey::platform::time::{Random as _, System, Timestamp};
use device::{Device, Failure, trust};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};
use socket2::{Domain, Socket, Type};

/// Devices that can be in the middle of a join at once.
const THREADS: usize = 64;
/// A device gives up after so long.
const PATIENCE: Duration = Duration::from_secs(45);

fn main() -> Result<(), Failure> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let options: HashMap<_, _> = arguments.chunks_exact(2).map(|pair| (pair[0].as_str(), pair[1].as_str())).collect();
    let option = |name: &str| options.get(name).copied().ok_or_else(|| format!("{name} is missing"));
    let number = |name: &str, default: u32| option(name).map_or(Ok(default), str::parse::<u32>);
    let server: SocketAddr = option("--server")?.parse()?;
    if !server.ip().is_loopback() {
        return Err("this is for a server on loopback alone".into());
    }
    let (secret, pin) = (option("--secret")?, option("--ca-pin")?);
    let (devices, interval) = (number("--devices", 1000)?, number("--interval", 10)?);
    let flood = slow::Flood {
        server,
        connections: number("--connections", 10_000)?.min(20_000),
        addresses: number("--addresses", 100)?.clamp(1, 250),
        reconnects: number("--reconnects", 2000)?.min(20_000),
        tls: trust(pin)?.client_config()?,
        opened: AtomicUsize::new(0),
    };
    let seconds = number("--seconds", 60)?.min(600);
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard.max(soft), hard)?;

    let fleet: Vec<_> =
        (0..devices).map(|n| Ok(Mutex::new(Device::new(&format!("load-{n}"), secret)?))).collect::<Result<_, Failure>>()?;
    let joined = |n: u32| -> (Duration, Option<String>) {
        let start = Instant::now();
        let done = join(&fleet[n as usize], address_of(n), server, pin);
        (start.elapsed(), done.err().map(|e| e.to_string()))
    };
    let first = all_at_once(devices, &joined);
    if let Some(failure) = first.iter().find_map(|(_, failure)| failure.clone()) {
        return Err(format!("a first join, without any flood: {failure}").into());
    }
    let stop = AtomicBool::new(false);
    let (results, stood) = std::thread::scope(|scope| {
        let standing = scope.spawn(|| flood.stand(&stop));
        while flood.is_rising() && !standing.is_finished() {
            std::thread::sleep(Duration::from_millis(50));
        }
        let results = renew(devices, interval, seconds, &joined);
        stop.store(true, Ordering::Relaxed);
        (results, standing.join())
    });
    let stood = stood.map_err(|_| "the flood ended by itself")?;
    let (storm, again) = storm(&fleet, server, pin)?;
    let mut times: Vec<_> = results.iter().map(|(time, _)| time.as_secs_f64() * 1e3).collect();
    times.sort_by(f64::total_cmp);
    let at =
        |share: usize| times.get((times.len() * share / 100).min(times.len().saturating_sub(1))).copied().unwrap_or_default();
    let failures: Vec<_> = results.into_iter().filter_map(|(_, failure)| failure).collect();
    let report = serde_json::json!({
        "joins": times.len(), "failed": failures.len(), "failures": &failures[..failures.len().min(5)],
        "p50_ms": at(50), "p99_ms": at(99), "max_ms": at(100),
        "storm_s": storm.as_secs_f64(), "storm_again": again,
        "held_least": stood.held_least, "opened": stood.opened, "closed": stood.closed,
    });
    println!("{report}");
    Ok(())
}

/// The address that device `n` comes from.
fn address_of(n: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(127, 1, 0, 1).to_bits() + n)
}

type Joined<'a> = &'a (dyn Fn(u32) -> (Duration, Option<String>) + Sync);

/// Every device once, [`THREADS`] at a time.
fn all_at_once(devices: u32, joined: Joined<'_>) -> Vec<(Duration, Option<String>)> {
    let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while let Ok(n) = u32::try_from(next.fetch_add(1, Ordering::Relaxed))
                    && n < devices
                {
                    let result = joined(n);
                    results.lock().expect("no thread panicked").push(result);
                }
            });
        }
    });
    results.into_inner().expect("no thread panicked")
}

/// Each device once an interval, spread over it, for so many seconds.
fn renew(devices: u32, interval: u32, seconds: u32, joined: Joined<'_>) -> Vec<(Duration, Option<String>)> {
    let start = Instant::now();
    let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while let Ok(n) = u32::try_from(next.fetch_add(1, Ordering::Relaxed)) {
                    let due = Duration::from_secs(interval.into()) * n / devices;
                    if due > Duration::from_secs(seconds.into()) {
                        break;
                    }
                    std::thread::sleep(due.saturating_sub(start.elapsed()));
                    let result = joined(n % devices);
                    results.lock().expect("no thread panicked").push(result);
                }
            });
        }
    });
    results.into_inner().expect("no thread panicked")
}

/// All devices at one moment, as many behind one address that are told to renew. Returns when the last one had joined, and how often one
/// had to try again.
fn storm(fleet: &[Mutex<Device>], server: SocketAddr, pin: &str) -> Result<(Duration, usize), Failure> {
    let again = AtomicUsize::new(0);
    let until_joined = |device: &Mutex<Device>| -> Result<(), Failure> {
        let mut failures = 0;
        while let Err(e) = join(device, Ipv4Addr::LOCALHOST, server, pin) {
            if again.fetch_add(1, Ordering::Relaxed) > fleet.len() * 20 {
                return Err(format!("a storm that does not end, the last failure: {e}").into());
            }
            std::thread::sleep(pause(failures)?);
            failures += 1;
        }
        Ok(())
    };
    let start = Instant::now();
    std::thread::scope(|scope| {
        let threads: Vec<_> = fleet.iter().map(|device| scope.spawn(|| until_joined(device))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| "a thread panicked")?)
    })?;
    Ok((start.elapsed(), again.into_inner()))
}

/// What a daemon waits that has no certificate that holds: from a tenth to all of 1, 2, 4 ... 60 seconds.
fn pause(failures: u32) -> Result<Duration, Failure> {
    let mut byte = [0];
    System.fill(&mut byte)?;
    let longest = Duration::from_secs(1 << failures.min(6)).min(Duration::from_secs(60));
    Ok((longest * u32::from(byte[0]) / 255).max(longest / 10))
}

fn join(device: &Mutex<Device>, from: Ipv4Addr, server: SocketAddr, pin: &str) -> Result<(), Failure> {
    let tls = ClientConnection::new(trust(pin)?.client_config()?, ServerName::from(server.ip()))?;
    let socket = connect(from, server)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    let mut link = Link(StreamOwned::new(tls, socket));
    device.lock().map_err(|_| "a thread panicked")?.join(&mut link, &server.to_string())
}

/// A connection from an address of choice.
fn connect(from: Ipv4Addr, server: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((IpAddr::from(from), 0)).into())?;
    socket.connect_timeout(&server.into(), PATIENCE)?;
    socket.set_tcp_nodelay(true)?;
    Ok(socket.into())
}

/// Requests over one connection. The agent's own transport lets the system choose the address that it comes from.
struct Link(StreamOwned<ClientConnection, TcpStream>);

impl Link {
    fn ask(&mut self, head: &str, body: &[u8]) -> io::Result<(u16, Vec<u8>)> {
        let message = [format!("{head}Host: x\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes(), body].concat();
        self.0.write_all(&message)?;
        let mut bytes = Vec::new();
        let mut buffer = [0; 16 * 1024];
        loop {
            let read = self.0.read(&mut buffer)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            bytes.extend_from_slice(&buffer[..read]);
            if let Some(answer) = answer(&bytes) {
                return Ok(answer);
            }
        }
    }
}

/// Status and body, once all of it has come.
fn answer(bytes: &[u8]) -> Option<(u16, Vec<u8>)> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&bytes[..end]).ok()?.to_ascii_lowercase();
    let length: usize = head.lines().find_map(|line| line.strip_prefix("content-length: "))?.parse().ok()?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    (bytes.len() >= end + length).then(|| (status, bytes[end..end + length].to_vec()))
}

impl Transport for Link {
    fn post(&mut self, path: &str, body: &[u8]) -> Result<Vec<u8>, TransportError> {
        let asked = self.ask(&format!("POST {path} HTTP/1.1\r\nContent-Type: application/json\r\n"), body);
        match asked.map_err(|e| TransportError::Unreachable(e.to_string()))? {
            (200, answer) => Ok(answer),
            (_, problem) => Err(match serde_json::from_slice(&problem) {
                Ok(problem) => TransportError::Refused(problem),
                Err(e) => TransportError::NotBoundkey(e.to_string()),
            }),
        }
    }

    fn get(&mut self, path: &str, _: &str, _: usize) -> Result<Vec<u8>, TransportError> {
        Err(TransportError::NotBoundkey(format!("nothing gets {path} here")))
    }

    fn presented(&self) -> Option<Presented> {
        None
    }

    fn holds_under(&self, _: &Roots) -> bool {
        false
    }

    fn note_server_time(&mut self, time: Timestamp) -> Result<Timestamp, Timestamp> {
        Ok(time)
    }
}
