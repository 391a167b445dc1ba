//! A link between a device and its server that counts what passes, and breaks where a test wants.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

/// Most bytes kept for [`Proxy::seen`], each way.
const KEPT: usize = 1 << 20;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the device to the server.
    Up,
    /// From the server to the device.
    Down,
}

/// The link. Devices connect to [`Proxy::addr`].
pub struct Proxy {
    /// Where it listens.
    pub addr: String,
    link: Arc<Mutex<Link>>,
}

type Hook = dyn Fn() + Send + Sync;

#[derive(Default)]
struct Link {
    server: String,
    /// Bytes passed since the link was mended last.
    passed: [u64; 2],
    seen: [Vec<u8>; 2],
    cut_after: Option<(Way, u64)>,
    before_each: Option<(Way, Arc<Hook>)>,
    broken: bool,
    closed: bool,
    connections: u64,
    open: Vec<TcpStream>,
}

impl Proxy {
    /// A whole link to `server`.
    pub fn to(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let addr = listener.local_addr().expect("address").to_string();
        let link = Arc::new(Mutex::new(Link { server: server.into(), ..Link::default() }));
        let shared = link.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if lock(&shared).closed {
                    return;
                }
                connect(stream, &shared);
            }
        });
        Self { addr, link }
    }

    /// Breaks the link, open connections included, once `bytes` have passed this way, counted from the last [`Proxy::mend`].
    pub fn cut_after(&self, way: Way, bytes: u64) {
        lock(&self.link).cut_after = Some((way, bytes));
    }

    /// Runs `hook` before each piece that passes this way from now on, which waits for it.
    pub fn before_each(&self, way: Way, hook: impl Fn() + Send + Sync + 'static) {
        lock(&self.link).before_each = Some((way, Arc::new(hook)));
    }

    /// Mends the link, and counts anew.
    pub fn mend(&self) {
        let mut link = lock(&self.link);
        link.break_connections();
        let fresh = Link { server: std::mem::take(&mut link.server), ..Link::default() };
        *link = fresh;
    }

    /// Lets one `join` pass whole, then cuts each answer before the last `missing` bytes that this one had.
    pub fn cut_answers_of(&self, join: impl FnOnce(), missing: u64) {
        self.mend();
        join();
        let whole = self.passed(Way::Down);
        self.mend();
        self.cut_after(Way::Down, whole - missing);
    }

    /// Bytes that passed this way since the last [`Proxy::mend`].
    pub fn passed(&self, way: Way) -> u64 {
        lock(&self.link).passed[way as usize]
    }

    /// The bytes themselves, up to a megabyte.
    pub fn seen(&self, way: Way) -> Vec<u8> {
        lock(&self.link).seen[way as usize].clone()
    }

    /// Connections made since the last [`Proxy::mend`].
    pub fn connections(&self) -> u64 {
        lock(&self.link).connections
    }

    /// Whether the link broke where it was to.
    pub fn is_broken(&self) -> bool {
        lock(&self.link).broken
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let mut link = lock(&self.link);
        link.closed = true;
        link.break_connections();
        drop(link);
        let _ = TcpStream::connect(&self.addr); // wakes the listener, which then ends
    }
}

impl Link {
    fn break_connections(&mut self) {
        for stream in self.open.drain(..) {
            let _ = stream.shutdown(Shutdown::Both); // the peer may have gone first
        }
    }
}

/// A test that failed on another thread leaves the link as it is.
fn lock(link: &Mutex<Link>) -> MutexGuard<'_, Link> {
    link.lock().unwrap_or_else(PoisonError::into_inner)
}

fn connect(device: TcpStream, shared: &Arc<Mutex<Link>>) {
    let mut link = lock(shared);
    if link.broken {
        return;
    }
    // Where no server listens the device sees a connection that ends at once.
    let Ok(server) = TcpStream::connect(&link.server) else { return };
    for stream in [&device, &server] {
        stream.set_nodelay(true).expect("nodelay");
    }
    let copy = |stream: &TcpStream| stream.try_clone().expect("a descriptor");
    link.connections += 1;
    link.open.extend([copy(&device), copy(&server)]);
    for (from, to, way) in [(copy(&device), copy(&server), Way::Up), (server, device, Way::Down)] {
        let shared = shared.clone();
        thread::spawn(move || pass(from, to, way, &shared));
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, way: Way, shared: &Mutex<Link>) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        let hook = lock(shared).before_each.clone().filter(|(of, _)| *of == way);
        if let Some((_, hook)) = hook {
            hook();
        }
        let mut link = lock(shared);
        if link.broken {
            return;
        }
        let passed = link.passed[way as usize];
        let room = link.cut_after.filter(|cut| cut.0 == way).map_or(u64::MAX, |cut| cut.1.saturating_sub(passed));
        let allowed = read.min(usize::try_from(room).unwrap_or(usize::MAX));
        if to.write_all(&buffer[..allowed]).is_err() {
            break;
        }
        link.passed[way as usize] += allowed as u64;
        let seen = &mut link.seen[way as usize];
        let kept = allowed.min(KEPT.saturating_sub(seen.len()));
        seen.extend(&buffer[..kept]);
        if allowed as u64 == room {
            link.broken = true;
            link.break_connections();
            return;
        }
    }
    let _ = to.shutdown(Shutdown::Write); // the other way may go on
}
