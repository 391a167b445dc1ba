//! A connection under watch: what it does is known from what passes, and it is ended when it takes too long, or has to make room.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, HttpBody};
use hyper::body::{Bytes, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::sleep_until;

use super::connections::{Connection, Phase};

/// How a connection ended that did not end by itself.
#[derive(Debug)]
pub enum Cut {
    /// It made room for another one.
    MadeRoom,
    /// This phase took too long.
    TooSlow(Phase),
}

/// Goes on with `work` until it is done, its connection has to make room, or a phase takes too long. `work` changes the phase in its
/// own turns alone.
pub async fn watch<T>(connection: &Connection, work: impl Future<Output = T>) -> Result<T, Cut> {
    let mut work = pin!(work);
    let mut told_to_close = pin!(connection.told_to_close());
    let mut sleep = pin!(sleep_until(connection.deadline()));
    std::future::poll_fn(|context| {
        if let Poll::Ready(done) = work.as_mut().poll(context) {
            return Poll::Ready(Ok(done));
        }
        if told_to_close.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(Cut::MadeRoom));
        }
        let deadline = connection.deadline();
        if sleep.deadline() != deadline {
            sleep.as_mut().reset(deadline);
        }
        sleep.as_mut().poll(context).map(|()| Err(Cut::TooSlow(connection.phase())))
    })
    .await
}

/// A stream whose connection awaits the next request once an answer has gone out.
pub struct Stream<S> {
    stream: S,
    connection: Arc<Connection>,
}

impl<S> Stream<S> {
    /// The stream of `connection`.
    pub fn new(stream: S, connection: Arc<Connection>) -> Self {
        Self { stream, connection }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Stream<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Stream<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        if matches!(flushed, Poll::Ready(Ok(()))) {
            self.connection.flushed();
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// The body of a request: once it is whole, it is worked on.
pub struct Request<B> {
    body: B,
    connection: Arc<Connection>,
}

impl<B: HttpBody> Request<B> {
    /// The body of a request that came over `connection`.
    pub fn new(body: B, connection: Arc<Connection>) -> Self {
        connection.enter(if body.is_end_stream() { Phase::Working } else { Phase::Body });
        Self { body, connection }
    }
}

impl<B: HttpBody<Data = Bytes> + Unpin> HttpBody for Request<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        let is_whole = matches!(frame, Poll::Ready(None)) || self.body.is_end_stream();
        if is_whole && self.connection.phase() == Phase::Body {
            self.connection.enter(Phase::Working);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of an answer. It is dropped once all of it is in the hands of the stream.
pub struct Answer {
    body: Body,
    connection: Arc<Connection>,
}

impl Answer {
    /// An answer to a request that came over `connection`. All answers of this server are whole in memory, so their length is known.
    pub fn new(body: Body, connection: Arc<Connection>) -> Self {
        connection.enter(Phase::Answer(body.size_hint().lower()));
        Self { body, connection }
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.connection.answer_written();
    }
}

#[cfg(test)]
mod tests {
    use super::super::connections::Connections;
    use super::*;
    use axum::body::to_bytes;

    async fn connection() -> Arc<Connection> {
        Connections::new(8).admit(([192, 0, 2, 1], 1).into()).await
    }

    /// A stream whose peer reads or does not.
    struct Peer {
        reads: bool,
    }

    impl AsyncWrite for Peer {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            if self.reads { Poll::Ready(Ok(())) } else { Poll::Pending }
        }

        fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.poll_flush(context)
        }
    }

    /// A peer that does not read keeps its connection in the phase of its answer, whose time is bounded.
    #[tokio::test]
    async fn an_answer_lasts_until_the_stream_has_passed_it_on() {
        let connection = connection().await;
        let mut stream = Stream::new(Peer { reads: true }, connection.clone());
        let mut flush = |reads| {
            stream.stream.reads = reads;
            Pin::new(&mut stream).poll_flush(&mut Context::from_waker(std::task::Waker::noop())).is_ready()
        };
        let answer = Answer::new(Body::from("answer"), connection.clone());
        assert!(flush(true));
        assert_eq!(connection.phase(), Phase::Answer(6), "its head alone is gone");
        drop(answer);
        assert!(!flush(false));
        assert_eq!(connection.phase(), Phase::Answer(6));
        assert!(flush(true));
        assert_eq!(connection.phase(), Phase::Head);
    }

    #[tokio::test]
    async fn a_request_is_worked_on_once_its_body_is_whole() {
        let connection = connection().await;
        let request = Request::new(Body::from("whole"), connection.clone());
        assert_eq!(connection.phase(), Phase::Body);
        to_bytes(Body::new(request), 100).await.unwrap();
        assert_eq!(connection.phase(), Phase::Working);
        let _bodiless = Request::new(Body::empty(), connection.clone());
        assert_eq!(connection.phase(), Phase::Working);
    }

    #[tokio::test]
    async fn what_takes_too_long_is_cut() {
        let connection = connection().await;
        assert_eq!(watch(&connection, async { 7 }).await.unwrap(), 7);
        let cut = watch(&connection, async {
            connection.end_phase();
            std::future::pending::<()>().await;
        });
        assert!(matches!(cut.await, Err(Cut::TooSlow(Phase::Handshake))));
    }
}
