//! The operators' Unix socket: who connects, and how many at once.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::Request;
use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::SocketAddr;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep};

use crate::authorize::authorize_connection;
use crate::descriptors;
use crate::operator::Operator;
use crate::serve::LogLimiter;
use boundkey_api::actor::Actor;

/// Most connections of operators at once; more wait. Each may follow the audit log.
const OPERATORS: usize = 48;
/// Most connections of others, who are told that they are not operators; more are closed. The socket's mode keeps all but root away
/// from it unless somebody changed that.
const OTHERS: usize = 8;

/// A connection over which nothing passes for so long is closed, so that programs that leave theirs open do not take all places. No
/// call takes as long.
const IDLE: Duration = Duration::from_secs(300);

/// Time for calls to end after the order to stop.
const DRAIN: Duration = Duration::from_secs(10);

/// Serves operators until `stop` resolves.
pub async fn serve(
    operator: Arc<Operator>,
    listener: UnixListener,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let mut stopped = operator.stopping();
    let stopping = operator.clone();
    let stop = async move {
        stop.await;
        stopping.stop();
    };
    let drained = async move {
        // The sender lives in `operator`, which the router holds.
        let _ = stopped.wait_for(|stopping| *stopping).await;
        tokio::time::sleep(DRAIN).await;
    };
    let router = super::operator::router(operator).layer(middleware::from_fn(identify));
    let service = router.into_make_service_with_connect_info::<Peer>();
    tokio::select! {
        ended = axum::serve(LocalListener::from(listener), service).with_graceful_shutdown(stop).into_future() => ended,
        () = drained => {
            log::warn!("operators' calls were still open {} s after the order to stop", DRAIN.as_secs());
            Ok(())
        }
    }
}

/// Tells the router who calls.
async fn identify(ConnectInfo(Peer(actor)): ConnectInfo<Peer>, mut request: Request, next: Next) -> Response {
    request.extensions_mut().insert(actor);
    next.run(request).await
}

/// Listens for operators.
struct LocalListener {
    listener: UnixListener,
    own_places: Arc<Semaphore>,
    other_places: Arc<Semaphore>,
    failures: LogLimiter,
}

impl From<UnixListener> for LocalListener {
    fn from(listener: UnixListener) -> Self {
        let places = |count| Arc::new(Semaphore::new(count));
        Self { listener, own_places: places(OPERATORS), other_places: places(OTHERS), failures: LogLimiter::default() }
    }
}

impl LocalListener {
    /// The next connection that there is a place for. An error is about its peer.
    async fn next(&self) -> io::Result<Option<(Held, Peer)>> {
        let (stream, _) = self.listener.accept().await?;
        let actor = Actor::Local(stream.peer_cred()?.uid());
        let place = if authorize_connection(&actor).is_ok() {
            self.own_places.clone().acquire_owned().await.ok()
        } else {
            self.other_places.clone().try_acquire_owned().ok()
        };
        Ok(place.map(|place| (Held { stream, idle: Box::pin(sleep(IDLE)), _place: place }, Peer(actor))))
    }
}

impl Listener for LocalListener {
    type Io = Held;
    type Addr = Peer;

    async fn accept(&mut self) -> (Held, Peer) {
        loop {
            match self.next().await {
                Ok(Some(accepted)) => return accepted,
                Ok(None) => log::debug!("closed a connection to the operator's socket: too many that are not operators"),
                Err(e) => {
                    if let Some(count) = self.failures.count() {
                        let why = descriptors::explain(&e);
                        log::error!("operator's socket: {why} ({count} times since this was said last)");
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<Peer> {
        let _: SocketAddr = self.listener.local_addr()?;
        Ok(Peer(Actor::Local(nix::unistd::geteuid().as_raw())))
    }
}

/// The other end of a connection, as the kernel reports it (`SO_PEERCRED`, unix(7)).
#[derive(Clone, Debug)]
struct Peer(Actor);

impl Connected<IncomingStream<'_, LocalListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, LocalListener>) -> Self {
        stream.remote_addr().clone()
    }
}

/// A connection that holds its place.
struct Held {
    stream: UnixStream,
    idle: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

impl Held {
    /// Sees from what has just been tried whether something passes, and fails when nothing did for too long.
    fn watch<T>(&mut self, tried: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if tried.is_ready() {
            self.idle.as_mut().reset(Instant::now() + IDLE);
        } else if self.idle.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        tried
    }
}

impl AsyncRead for Held {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let tried = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.watch(tried, context)
    }
}

impl AsyncWrite for Held {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let tried = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch(tried, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let tried = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.watch(tried, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
