//! An HTTP proxy as HTTPS_PROXY names it (RFC 9110 section 9.3.6), with what proxies do on bad days.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// What the proxy does when it is asked to connect.
#[derive(Clone, Debug)]
pub enum Mood {
    /// Connects where it is asked to.
    Connects,
    /// Connects to this address, whatever it is asked for.
    ConnectsTo(String),
    /// Takes the request and never answers.
    Hangs,
    /// Answers this, and ends the connection.
    Says(&'static str),
}

/// The proxy.
pub struct ConnectProxy {
    /// Where it listens.
    pub addr: String,
    state: Arc<Mutex<State>>,
}

struct State {
    mood: Mood,
    heads: Vec<String>,
    closed: bool,
    held: Vec<TcpStream>,
}

impl ConnectProxy {
    /// A proxy in this mood.
    pub fn new(mood: Mood) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let addr = listener.local_addr().expect("address").to_string();
        let state = Arc::new(Mutex::new(State { mood, heads: Vec::new(), closed: false, held: Vec::new() }));
        let shared = state.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if lock(&shared).closed {
                    return;
                }
                let shared = shared.clone();
                thread::spawn(move || serve(stream, &shared));
            }
        });
        Self { addr, state }
    }

    /// Changes its mood.
    pub fn set(&self, mood: Mood) {
        lock(&self.state).mood = mood;
    }

    /// The requests since the last call of this, as they came.
    pub fn take_requests(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.state).heads)
    }
}

impl Drop for ConnectProxy {
    fn drop(&mut self) {
        let mut state = lock(&self.state);
        state.closed = true;
        state.held.clear();
        drop(state);
        let _ = TcpStream::connect(&self.addr); // wakes the listener, which then ends
    }
}

/// A test that failed on another thread leaves the state as it is.
fn lock(state: &Mutex<State>) -> std::sync::MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(mut device: TcpStream, shared: &Mutex<State>) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(1) = device.read(&mut byte) else { return };
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let asked = head.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next()).unwrap_or_default().to_owned();
    let mut state = lock(shared);
    state.heads.push(head);
    let to = match state.mood.clone() {
        Mood::Connects => asked,
        Mood::ConnectsTo(addr) => addr,
        Mood::Hangs => return state.held.push(device),
        Mood::Says(what) => {
            let _ = device.write_all(what.as_bytes()); // a device that left needs no answer
            return;
        }
    };
    drop(state);
    let Ok(server) = TcpStream::connect(to) else { return };
    if device.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").is_err() {
        return;
    }
    let copy = |stream: &TcpStream| stream.try_clone().expect("a descriptor");
    let (from, to) = (copy(&device), copy(&server));
    thread::spawn(move || pass(from, to));
    pass(server, device);
}

fn pass(mut from: TcpStream, mut to: TcpStream) {
    let _ = std::io::copy(&mut from, &mut to); // ends with either connection
    let _ = to.shutdown(Shutdown::Write);
}
