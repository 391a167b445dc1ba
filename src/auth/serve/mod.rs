//! Serving devices: connections bounded in number, in time and in memory, shared fairly among those who come, drained on SIGTERM.
//!
//! What one connection can make the server keep: 64 KiB of a request's body, 16 KiB of its head or of what follows it, the records of
//! TLS in the making (16 KiB each way), and an answer, which is at most 128 KiB or a revocation list that all share.

mod connections;
mod log_limiter;
mod network;
mod turns;
mod watched;
mod work;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use rustls::ServerConfig;
use rustls::server::Acceptor;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use super::descriptors;
use super::http::device::serve_request;

pub use connections::Connection;
pub use log_limiter::LogLimiter;
pub use watched::{Answer, Request};
pub use work::{Kind, Work};

use connections::{Connections, Phase};
use turns::Turns;

/// Connections that the kernel keeps until they are accepted. It cuts this to `net.core.somaxconn`.
const BACKLOG: u32 = 4096;
/// Of a request, what is read ahead of its head's end and of its body: more than any head of this protocol.
const READ_AHEAD: usize = 16 * 1024;
/// Of an answer, what TLS keeps that the peer has not taken.
const WRITE_AHEAD: usize = 16 * 1024;
/// Time for connections to end after the order to stop.
const DRAIN: Duration = Duration::from_secs(10);

/// Listens on `address`.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A server that starts anew does not wait for the connections of the one before.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// What all connections share.
struct Shared {
    tls: Arc<ServerConfig>,
    router: Router,
    /// Turns at what a handshake computes. One processor is left for those who are through.
    handshakes: Arc<Turns>,
}

/// Serves `router` over TLS, on at most `limit` connections, until `stop` resolves; then waits for requests under way.
pub async fn serve(
    listener: TcpListener,
    limit: usize,
    tls: Arc<ServerConfig>,
    router: Router,
    stop: impl Future<Output = ()>,
) -> io::Result<()> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let shared = Arc::new(Shared { tls, router, handshakes: Turns::new(processors.saturating_sub(1).max(1)) });
    let connections = Connections::new(limit);
    let graceful = GracefulShutdown::new();
    let failures = LogLimiter::default();
    let mut stop = std::pin::pin!(stop);
    loop {
        let accept = async {
            let (stream, from) = listener.accept().await?;
            io::Result::Ok((stream, connections.admit(from).await))
        };
        let accepted = tokio::select! {
            () = &mut stop => break,
            accepted = accept => accepted,
        };
        match accepted {
            Ok((stream, connection)) => {
                tokio::spawn(attend(stream, connection, shared.clone(), graceful.watcher()));
            }
            Err(e) if is_of_the_peer(&e) => log::debug!("accept: {e}"),
            Err(e) => {
                if let Some(count) = failures.count() {
                    log::error!("accept: {} ({count} times since this was said last)", descriptors::explain(&e));
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    drop(listener);
    if timeout(DRAIN, graceful.shutdown()).await.is_err() {
        log::warn!("connections were still open {} s after the order to stop", DRAIN.as_secs());
    }
    Ok(())
}

/// Whether the peer was gone before it was accepted.
fn is_of_the_peer(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset)
}

/// One connection, from handshake to end.
async fn attend(stream: TcpStream, connection: Arc<Connection>, shared: Arc<Shared>, watcher: Watcher) {
    let from = connection.from;
    let _ = stream.set_nodelay(true); // latency only; nothing depends on it
    let work = async {
        let stream = handshake(stream, &connection, &shared).await.map_err(|e| format!("TLS handshake: {e}"))?;
        connection.enter(Phase::Head);
        let stream = watched::Stream::new(stream, connection.clone());
        let (router, connection) = (shared.router.clone(), connection.clone());
        let service = service_fn(move |request| serve_request(router.clone(), connection.clone(), request));
        // Times are kept by the watch on the connection.
        let http = http1::Builder::new()
            .header_read_timeout(None)
            .max_buf_size(READ_AHEAD)
            .serve_connection(TokioIo::new(stream), service);
        watcher.watch(http).await.map_err(|e| e.to_string())
    };
    match watched::watch(&connection, work).await {
        Ok(Ok(())) => {}
        Ok(Err(e)) => log::debug!("{from}: {e}"),
        Err(watched::Cut::TooSlow(phase)) => log::debug!("{from}: {phase} in time"),
        Err(watched::Cut::MadeRoom) => log::debug!("{from}: closed to make room"),
    }
}

/// Establishes TLS. What it computes waits for a turn, so that handshakes of one network do not keep others from theirs.
async fn handshake(stream: TcpStream, connection: &Connection, shared: &Shared) -> io::Result<TlsStream<TcpStream>> {
    let hello = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
    let answering = {
        let _turn = shared.handshakes.take(connection.network).await;
        hello.into_stream_with(shared.tls.clone(), |tls| tls.set_buffer_limit(Some(WRITE_AHEAD)))
    };
    answering.await
}
