//! Calls to the server: HTTP over its Unix socket.

use std::path::PathBuf;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use super::Failure;
use boundkey_api::call::Call;
use boundkey_join::{Problem, ProblemType};

/// Longest wait for an answer: longer than any wait for events, and than the rotation of a large fleet.
const TIMEOUT: Duration = Duration::from_secs(300);

/// The server, as an operator reaches it.
pub(super) struct Client {
    socket: PathBuf,
    runtime: tokio::runtime::Runtime,
}

/// Why a call was not answered.
pub(super) enum CallError {
    Refused(Problem),
    Unreachable(String),
}

impl Client {
    pub(super) fn new(socket: PathBuf) -> Result<Self, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|e| Failure::new(format!("cannot start: {e}"), "free some memory and file descriptors"))?;
        Ok(Self { socket, runtime })
    }

    /// Does a call, and turns every failure into words.
    pub(super) fn send<C: Call>(&self, call: &C) -> Result<C::Answer, Failure> {
        self.call(call).map_err(|error| self.failure(error))
    }

    /// Does a call.
    pub(super) fn call<C: Call>(&self, call: &C) -> Result<C::Answer, CallError> {
        let other = |e: serde_json::Error| CallError::Refused(Problem::new(ProblemType::Unknown, e.to_string()));
        let body = serde_json::to_vec(call).map_err(other)?;
        let (status, answer) = self
            .runtime
            .block_on(async {
                let exchange = tokio::time::timeout(TIMEOUT, self.exchange(C::PATH, body)).await;
                exchange.unwrap_or_else(|_| Err(format!("no answer within {} s", TIMEOUT.as_secs())))
            })
            .map_err(CallError::Unreachable)?;
        if status.is_success() {
            return serde_json::from_slice(&answer).map_err(other);
        }
        let problem = serde_json::from_slice(&answer);
        Err(CallError::Refused(
            problem.unwrap_or_else(|_| Problem::new(ProblemType::Unknown, format!("the server answered {status}"))),
        ))
    }

    async fn exchange(&self, path: &str, body: Vec<u8>) -> Result<(StatusCode, Bytes), String> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|e| e.to_string())?;
        let words = |e: hyper::Error| format!("the connection broke: {e}");
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(words)?;
        let request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header(HOST, "operator")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| e.to_string())?;
        let asked = async {
            let answer = sender.send_request(request).await.map_err(words)?;
            let status = answer.status();
            Ok((status, answer.into_body().collect().await.map_err(words)?.to_bytes()))
        };
        tokio::pin!(asked);
        tokio::select! {
            answered = &mut asked => answered,
            ended = connection => match ended {
                Ok(()) => asked.await,
                Err(e) => Err(words(e)),
            },
        }
    }

    pub(super) fn failure(&self, error: CallError) -> Failure {
        let socket = self.socket.display();
        match error {
            CallError::Unreachable(why) => Failure {
                code: 3,
                ..Failure::new(
                    format!("cannot reach the server: {why}"),
                    format!("is boundkey-auth running, and is {socket} its socket? --data-dir or --socket names another"),
                )
            },
            CallError::Refused(problem) => Failure::new(&problem.detail, advice(problem.kind)),
        }
    }
}

fn advice(kind: ProblemType) -> &'static str {
    match kind {
        ProblemType::BadRequest => "nothing was changed; mend what is named, and try again",
        ProblemType::Conflict => "nothing was changed; look at it with get, and try again",
        ProblemType::NotFound => "boundkeyctl get KIND lists what there is",
        ProblemType::ServerError => "nothing was changed; the log of boundkey-auth may say more",
        ProblemType::UnsupportedVersion => "use the boundkeyctl that came with the server",
        _ => "run it as root, or as the user that boundkey-auth runs as",
    }
}
