//! Accepting connections, and ending well: bounded in number and time, drained on SIGTERM.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::api::serve_request;

/// Most connections at once.
const MAX_CONNECTIONS: usize = 1024;
/// Time for a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Time for the head of a request; also how long an idle connection is kept.
const HEAD: Duration = Duration::from_secs(15);
/// Time for a whole connection: two requests of a device on a slow link.
const CONNECTION: Duration = Duration::from_secs(120);
/// Time for connections to end after the order to stop.
const DRAIN: Duration = Duration::from_secs(10);

/// Serves `router` over TLS until `stop` resolves, then waits for requests under way.
pub async fn serve(listener: TcpListener, tls: TlsAcceptor, router: Router, stop: impl Future<Output = ()>) -> io::Result<()> {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let graceful = GracefulShutdown::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        let accept = async {
            let place = places.clone().acquire_owned().await.map_err(io::Error::other)?;
            let (stream, from) = listener.accept().await?;
            io::Result::Ok((place, stream, from))
        };
        let accepted = tokio::select! {
            () = &mut stop => break,
            accepted = accept => accepted,
        };
        let (place, stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(e) => {
                // Out of descriptors, or a peer that is gone already: neither ends the server.
                log::warn!("accept: {e}");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (tls, router, watcher) = (tls.clone(), router.clone(), graceful.watcher());
        tokio::spawn(async move {
            let _place = place;
            let _ = stream.set_nodelay(true); // latency only; nothing depends on it
            let stream = match timeout(HANDSHAKE, tls.accept(stream)).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(e)) => return log::debug!("{from}: TLS handshake: {e}"),
                Err(_) => return log::debug!("{from}: TLS handshake took more than {} s", HANDSHAKE.as_secs()),
            };
            let service = service_fn(move |request| serve_request(router.clone(), from, request));
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD)
                .max_buf_size(64 * 1024)
                .serve_connection(TokioIo::new(stream), service);
            match timeout(CONNECTION, watcher.watch(connection)).await {
                Ok(Ok(())) => {}
                Ok(Err(e)) => log::debug!("{from}: {e}"),
                Err(_) => log::debug!("{from}: connection took more than {} s", CONNECTION.as_secs()),
            }
        });
    }
    drop(listener);
    if timeout(DRAIN, graceful.shutdown()).await.is_err() {
        log::warn!("connections were still open {} s after the order to stop", DRAIN.as_secs());
    }
    Ok(())
}
