//! Connections as weapons: silent, slow and many. The server here has few descriptors, so that few connections are a flood.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustls::{ClientConnection, StreamOwned};
use socket2::{Domain, Socket, Type};

use super::support::{PATIENCE, Server, run, tool, wait_for, wrapped};
use super::{fails, tls_over};

/// Descriptors of the server: 128 of them are for connections of devices.
const DESCRIPTORS: &str = "256";

/// `command` with so many descriptors, `SOFT:HARD`.
fn limited(command: &Command, descriptors: &str) -> Command {
    let mut prlimit = Command::new(tool("prlimit", "util-linux"));
    prlimit.arg(format!("--nofile={descriptors}"));
    wrapped(prlimit, command)
}

/// A server with few descriptors.
fn small_server() -> Server {
    let mut server = Server::init(&[]);
    let command = limited(&server.command(), &format!("{DESCRIPTORS}:{DESCRIPTORS}"));
    assert!(server.run_as(command), "{}", server.log());
    server
}

/// A connection from `127.0.0.HOST`.
fn from(host: u8, server: &Server) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from((Ipv4Addr::new(127, 0, 0, host), 0)).into()).expect("an address of loopback");
    let to: SocketAddr = server.addr.parse().expect("an address");
    socket.connect(&to.into()).expect("connection");
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
    stream
}

/// Whether the other end has closed it.
fn is_closed(stream: &mut TcpStream) -> bool {
    stream.set_nonblocking(true).expect("non-blocking");
    let read = stream.read(&mut [0; 4096]);
    stream.set_nonblocking(false).expect("blocking");
    match read {
        Ok(read) => read == 0,
        Err(e) => e.kind() != ErrorKind::WouldBlock,
    }
}

/// A request whose body has begun.
fn unfinished_body(stream: TcpStream, server: &Server) -> StreamOwned<ClientConnection, TcpStream> {
    let mut tls = tls_over(stream, server);
    tls.write_all(b"POST /v1/join HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n{").expect("a head");
    tls
}

/// Keeps `count` silent connections of each of these hosts open while `work` goes on, new ones for those that are closed.
fn under_flood(server: &Server, hosts: &[u8], count: usize, work: impl FnOnce()) {
    let (stop, opened) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for host in hosts {
            let (stop, opened) = (&stop, &opened);
            scope.spawn(move || {
                let mut streams: Vec<_> = (0..count).map(|_| from(*host, server)).collect();
                opened.fetch_add(count, Ordering::Relaxed);
                while !stop.load(Ordering::Relaxed) {
                    for stream in &mut streams {
                        if is_closed(stream) {
                            *stream = from(*host, server);
                        }
                    }
                    std::thread::sleep(Duration::from_millis(20)); // so much of the machine is for the others
                }
            });
        }
        // A panic must not leave the threads running.
        let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_for("the flood", || opened.load(Ordering::Relaxed) == hosts.len() * count);
            work();
        }));
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = worked {
            std::panic::resume_unwind(panic);
        }
    });
}

/// With 1,024 descriptors, 1,010 silent connections made joins fail with `key store does not sign`, and the operator wait in vain.
#[test]
fn devices_and_operators_get_through_a_flood_of_silent_connections() {
    let server = small_server();
    let device = server.device("gw", 1);
    let start = Instant::now();
    under_flood(&server, &[2, 3, 4, 5, 6, 7, 8, 9], 50, || {
        for _ in 0..5 {
            device.join();
            assert_eq!(server.status("gw")["bound_bot_instance_id"], device.status()["instance_id"]);
        }
    });
    assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
    assert_eq!(server.events("gw").len(), 5);
    let log = server.log();
    assert!(!log.contains("does not sign") && !log.contains("Too many open files"), "{log}");
    // Hundreds of connections were closed to make room; the log tells so once a minute.
    let told = log.lines().filter(|line| line.contains("to let others in")).count();
    assert!((1..=2).contains(&told), "told {told} times: {log}");
}

/// Devices behind the address that holds all connections get in too: what is slow makes room, what moves on does not.
#[test]
fn unfinished_bodies_lock_nobody_out_not_even_their_own_address() {
    let server = small_server();
    let device = server.device("gw", 1);
    let held: Vec<_> = (0..300).map(|_| unfinished_body(from(1, &server), &server)).collect();
    let start = Instant::now();
    device.join();
    device.join();
    assert!(start.elapsed() < Duration::from_secs(8), "before any deadline: {:?}", start.elapsed());
    drop(held);
}

/// Each part of a connection has its time: a handshake, a request's head, its body.
#[test]
fn what_a_peer_waits_with_ends() {
    let server = Server::start();
    let mut silent = from(2, &server);
    let mut half_hello = from(3, &server);
    half_hello.write_all(&[22, 3, 1, 1, 0]).unwrap();
    let [idle, mut head] = [4, 5].map(|host| tls_over(from(host, &server), &server));
    head.write_all(b"GET /v1/ping HTTP/1.1\r\nX-Slow: ").unwrap();
    let mut body = unfinished_body(from(6, &server), &server);
    // Half of a connection closed, and the other half kept.
    let half_closed = unfinished_body(from(7, &server), &server);
    half_closed.sock.shutdown(std::net::Shutdown::Write).unwrap();
    let mut idle = idle;
    idle.write_all(b"GET /v1/ping HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let start = Instant::now();
    let (mut idle, mut half_closed) = (idle.sock, half_closed.sock);
    let mut ended = [None; 6];
    wait_for("all of them to be cut off", || {
        // What trickles has no more time than what is silent.
        let _ = (head.write_all(b"x"), body.write_all(b" "));
        let streams = [&mut silent, &mut half_hello, &mut idle, &mut head.sock, &mut body.sock, &mut half_closed];
        for (stream, ended) in streams.into_iter().zip(&mut ended) {
            if ended.is_none() && is_closed(stream) {
                *ended = Some(start.elapsed());
            }
        }
        ended.iter().all(Option::is_some)
    });
    assert!(ended.iter().flatten().all(|time| *time < Duration::from_secs(20)), "{ended:?}");
}

/// A flood of requests on one connection, whose answers nobody reads, is one connection's matter.
#[test]
fn a_connection_brings_so_many_requests_and_no_more() {
    let server = Server::start();
    let mut tls = tls_over(from(2, &server), &server);
    tls.write_all("GET /v1/ping HTTP/1.1\r\nHost: x\r\n\r\n".repeat(100).as_bytes()).unwrap();
    let mut answers = Vec::new();
    let _ = tls.read_to_end(&mut answers); // an end or a reset
    let answers = String::from_utf8_lossy(&answers);
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 32, "{answers}");
    assert!(answers.to_lowercase().contains("connection: close"));
}

#[test]
fn the_server_takes_the_descriptors_that_it_may_have() {
    let mut server = Server::init(&[]);
    let command = limited(&server.command(), "300:1000");
    assert!(server.run_as(command), "{}", server.log());
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.process().0.id())).unwrap();
    let files: Vec<_> = limits.lines().find(|line| line.starts_with("Max open files")).unwrap().split_whitespace().collect();
    assert_eq!(files[3..5], ["1000", "1000"], "{limits}");
    wait_for("the log", || server.log().contains("at most 872 connections"));
    server.kill();
    let said = fails(&run(&mut limited(&server.command(), "200:200")), 1);
    assert!(said.contains("may have 200 files open, and needs 256\n  raise the limit"), "{said}");
}

/// A daemon that kept its connection until the server closed it held a place for 15 s after each join.
#[test]
fn a_daemon_closes_its_connection_after_its_join() {
    let server = Server::start();
    let device = server.device("gw", 1);
    device.join();
    let port = server.addr.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok()).unwrap();
    // Local and remote address, then the state: 01 is ESTABLISHED (proc_net_tcp(5)).
    let established = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        words[1].ends_with(&format!(":{port:04X}")) && words[3] == "01"
    };
    let open = || std::fs::read_to_string("/proc/net/tcp").unwrap().lines().skip(1).filter(|line| established(line)).count();
    let daemon = device.daemon();
    wait_for("the daemon to renew", || device.status()["generation"] == 2 && server.was_heard(&device));
    let start = Instant::now();
    wait_for("its connection to close", || open() == 0);
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    drop(daemon);
}
