//! Connections that do as little as they can, each kind in its own way, and come back when they are closed.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};
use socket2::{Domain, Socket, Type};

/// Threads that look after the connections.
const THREADS: usize = 4;
/// How often each connection is looked after.
const ROUND: Duration = Duration::from_millis(250);

/// What the flood is to be.
pub struct Flood {
    pub server: SocketAddr,
    pub connections: u32,
    pub addresses: u32,
    /// Connections made a second, at most.
    pub reconnects: u32,
    pub tls: Arc<ClientConfig>,
    /// Connections that were made.
    pub opened: AtomicUsize,
}

/// What the flood was.
pub struct Stood {
    pub opened: usize,
    pub closed: usize,
    /// Fewest connections that the server held at once, once all were there.
    pub held_least: usize,
}

/// What a connection does once it is there.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// TLS is established, and nothing follows.
    Established,
    /// A part of a ClientHello.
    HalfHello,
    /// Nothing at all.
    Silent,
    /// A request's head, a byte a second.
    TrickledHead,
    /// A request's body that does not end.
    UnfinishedBody,
    /// Requests whose answers are not read.
    Unread,
}

/// Of 20 connections.
const KINDS: [Kind; 20] = {
    use Kind::{Established, HalfHello, Silent, TrickledHead, UnfinishedBody, Unread};
    [
        Silent,
        Silent,
        Silent,
        Silent,
        Silent,
        Silent,
        Silent,
        Silent,
        Silent,
        Silent,
        HalfHello,
        HalfHello,
        HalfHello,
        HalfHello,
        Established,
        Established,
        TrickledHead,
        UnfinishedBody,
        UnfinishedBody,
        Unread,
    ]
};

impl Flood {
    /// Whether not all connections have been made once.
    pub fn is_rising(&self) -> bool {
        self.opened.load(Ordering::Relaxed) < self.connections as usize
    }

    /// Keeps the connections up until told to stop.
    pub fn stand(&self, stop: &AtomicBool) -> Stood {
        let (closed, held) = (AtomicUsize::new(0), [const { AtomicUsize::new(0) }; THREADS]);
        let mut held_least = usize::MAX;
        std::thread::scope(|scope| {
            for (thread, held) in held.iter().enumerate() {
                let closed = &closed;
                scope.spawn(move || self.look_after(thread, held, closed, stop));
            }
            while !stop.load(Ordering::Relaxed) {
                std::thread::sleep(ROUND);
                if !self.is_rising() {
                    held_least = held_least.min(held.iter().map(|held| held.load(Ordering::Relaxed)).sum());
                }
            }
        });
        Stood { opened: self.opened.load(Ordering::Relaxed), closed: closed.into_inner(), held_least }
    }

    fn look_after(&self, thread: usize, held: &AtomicUsize, closed: &AtomicUsize, stop: &AtomicBool) {
        let mine = (0..self.connections).filter(|n| *n as usize % THREADS == thread);
        let mut places: Vec<(u32, Option<Slow>)> = mine.map(|n| (n, None)).collect();
        let in_a_round = (self.reconnects as usize / THREADS / 4).max(1); // a round is a quarter of a second
        while !stop.load(Ordering::Relaxed) {
            let (begin, mut left) = (Instant::now(), in_a_round);
            for (n, place) in &mut places {
                if place.as_mut().is_some_and(|slow| !slow.go_on()) {
                    *place = None;
                    closed.fetch_add(1, Ordering::Relaxed);
                }
                if place.is_none() && left > 0 {
                    left -= 1;
                    *place = Slow::open(self, *n);
                    self.opened.fetch_add(usize::from(place.is_some()), Ordering::Relaxed);
                }
            }
            held.store(places.iter().filter(|(_, place)| place.is_some()).count(), Ordering::Relaxed);
            std::thread::sleep(ROUND.saturating_sub(begin.elapsed()));
        }
    }
}

/// One connection, which never blocks.
struct Slow {
    kind: Kind,
    stream: TcpStream,
    tls: Option<ClientConnection>,
    begun: bool,
    round: u32,
}

impl Slow {
    fn open(flood: &Flood, n: u32) -> Option<Self> {
        let kind = KINDS[n as usize / flood.addresses as usize % KINDS.len()];
        let from = Ipv4Addr::from_bits(Ipv4Addr::new(127, 0, 1, 1).to_bits() + n % flood.addresses);
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).ok()?;
        socket.set_nonblocking(true).ok()?;
        if kind == Kind::Unread {
            socket.set_recv_buffer_size(4096).ok()?;
        }
        socket.bind(&SocketAddr::from((IpAddr::from(from), 0)).into()).ok()?;
        match socket.connect(&flood.server.into()) {
            Err(e) if e.raw_os_error() != Some(nix::errno::Errno::EINPROGRESS as i32) => return None,
            _ => {}
        }
        let tls = match kind {
            Kind::HalfHello | Kind::Silent => None,
            _ => Some(ClientConnection::new(flood.tls.clone(), ServerName::from(flood.server.ip())).ok()?),
        };
        Some(Self { kind, stream: socket.into(), tls, begun: false, round: 0 })
    }

    /// Does what can be done at once. Returns whether the connection stands.
    fn go_on(&mut self) -> bool {
        self.round += 1;
        let Some(tls) = &mut self.tls else {
            if self.kind == Kind::HalfHello && !self.begun {
                self.begun = self.stream.write(&[22, 3, 1, 1, 0]).is_ok();
            }
            return stands(self.stream.read(&mut [0; 64]));
        };
        let reads = self.kind != Kind::Unread || tls.is_handshaking();
        if reads && !stands(tls.read_tls(&mut self.stream)) {
            return false;
        }
        if tls.process_new_packets().is_err() {
            return false;
        }
        if !tls.is_handshaking() && (!self.begun || (self.kind == Kind::TrickledHead && self.round.is_multiple_of(4))) {
            let what: &[u8] = match (self.kind, self.begun) {
                (Kind::TrickledHead, false) => b"GET /v1/ping HTTP/1.1\r\nX-Slow: ",
                (Kind::TrickledHead, true) => b"x",
                (Kind::UnfinishedBody, _) => b"POST /v1/join HTTP/1.1\r\nHost: x\r\nContent-Length: 65000\r\n\r\n{",
                (Kind::Unread, _) => b"GET /v1/ca HTTP/1.1\r\nHost: x\r\n\r\nGET /v1/crl HTTP/1.1\r\nHost: x\r\n\r\n",
                _ => b"",
            };
            if tls.writer().write_all(what).is_err() {
                return false;
            }
            self.begun = true;
        }
        while tls.wants_write() {
            match tls.write_tls(&mut self.stream) {
                Ok(_) => {}
                Err(e) if is_pending(&e) => break,
                Err(_) => return false,
            }
        }
        // What does not read does not learn of the end; it goes after a minute.
        self.kind != Kind::Unread || self.round < 240
    }
}

/// Whether a connection stands of which this was read.
fn stands(read: std::io::Result<usize>) -> bool {
    match read {
        Ok(read) => read > 0,
        Err(e) => is_pending(&e),
    }
}

fn is_pending(e: &std::io::Error) -> bool {
    matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::NotConnected | ErrorKind::WouldBlock)
}
