//! The devices' API over HTTPS: seven calls, all of them small, none of them trusted.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Extension, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::joins::{Joins, algorithms};
use crate::join::message::{
    CA_PATH, CHALLENGE_PATH, CRL_PATH, CRL_TYPE, ChallengeRequest, JOIN_PATH, MAX_REQUEST, PING_PATH, Ping, SSH_HOST_CA_PATH,
    SSH_HOST_CRL_PATH,
};
use crate::join::server::request;
use crate::join::{Jws, PROBLEM_JSON, Problem, ProblemType};

/// Version of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// As long as this server's own memory of the list ([`super::revocation::FRESH`]).
const CRL_CACHING: &str = "max-age=5";

/// The routes.
pub fn router(joins: Arc<Joins>) -> Router {
    Router::new()
        .route(PING_PATH, get(ping))
        .route(CA_PATH, get(ca))
        .route(SSH_HOST_CA_PATH, get(ssh_host_ca))
        .route(CRL_PATH, get(crl))
        .route(SSH_HOST_CRL_PATH, get(ssh_host_crl))
        .route(CHALLENGE_PATH, post(challenge))
        .route(JOIN_PATH, post(join))
        .fallback(async || -> Problem { ProblemType::UnsupportedVersion.into() })
        .method_not_allowed_fallback(async || Problem::new(ProblemType::BadRequest, "no such method on this path"))
        .layer(DefaultBodyLimit::max(MAX_REQUEST))
        .with_state(joins)
}

async fn ping(State(joins): State<Arc<Joins>>) -> Json<Ping> {
    let (cluster, version) = (joins.cluster.clone(), VERSION.to_owned());
    Json(Ping { cluster, version, algorithms: algorithms(), time: joins.clock.now() })
}

async fn ca(State(joins): State<Arc<Joins>>) -> Response {
    match joins.ca_certificates() {
        Ok(pem) => ([(header::CONTENT_TYPE, "application/pem-certificate-chain")], pem).into_response(),
        Err(problem) => problem.into_response(),
    }
}

/// What stands behind `@cert-authority` and its patterns in `known_hosts` (sshd(8)).
async fn ssh_host_ca(State(joins): State<Arc<Joins>>) -> String {
    let authority = joins.authority.now();
    let lines: Vec<_> = authority.ssh_host_keys().map(|key| format!("{key} {}\n", joins.cluster)).collect();
    lines.concat()
}

async fn crl(State(joins): State<Arc<Joins>>) -> Response {
    list(CRL_TYPE, move || joins.revocation_list()).await
}

async fn ssh_host_crl(State(joins): State<Arc<Joins>>) -> Response {
    list("application/octet-stream", move || joins.ssh_revocation_list()).await
}

async fn list(kind: &'static str, made: impl FnOnce() -> Result<Bytes, Problem> + Send + 'static) -> Response {
    let headers = [(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, CRL_CACHING)];
    match blocking(made).await {
        Ok(bytes) => (headers, bytes).into_response(),
        Err(problem) => problem.into_response(),
    }
}

async fn challenge(
    State(joins): State<Arc<Joins>>,
    Extension(from): Extension<SocketAddr>,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    respond(body, move |request: ChallengeRequest| {
        joins.challenge(&request).inspect_err(|problem| note_unknown(&joins, problem, from, || Some(request.token)))
    })
    .await
}

async fn join(
    State(joins): State<Arc<Joins>>,
    Extension(from): Extension<SocketAddr>,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    respond(body, move |jws: Jws| {
        let token = || Some(request::peek(&jws).ok()?.token);
        joins.join(&jws, from).inspect_err(|problem| note_unknown(&joins, problem, from, token))
    })
    .await
}

/// Counts a request that names no token of ours.
fn note_unknown(joins: &Joins, problem: &Problem, from: SocketAddr, token: impl FnOnce() -> Option<String>) {
    if let Some(token) = (problem.kind == ProblemType::NotFound).then(token).flatten() {
        joins.throttle.note_unknown(&token, &from.ip().to_string());
    }
}

/// Reads the request, answers it on a thread that may block, and writes the answer or the problem.
async fn respond<Q, A>(
    body: Result<Bytes, BytesRejection>,
    answer: impl FnOnce(Q) -> Result<A, Problem> + Send + 'static,
) -> Response
where
    Q: DeserializeOwned + Send + 'static,
    A: Serialize + Send + 'static,
{
    let request = body.map_err(|e| Problem::new(ProblemType::BadRequest, e.to_string())).and_then(|bytes| {
        serde_json::from_slice(&bytes).map_err(|e| Problem::new(ProblemType::BadRequest, format!("not the JSON expected: {e}")))
    });
    let answered = match request {
        Ok(request) => blocking(move || answer(request)).await,
        Err(problem) => Err(problem),
    };
    match answered {
        Ok(answer) => Json(answer).into_response(),
        Err(problem) => problem.into_response(),
    }
}

/// Runs `answer` on a thread that may block.
async fn blocking<A: Send + 'static>(answer: impl FnOnce() -> Result<A, Problem> + Send + 'static) -> Result<A, Problem> {
    tokio::task::spawn_blocking(answer).await.unwrap_or_else(|e| {
        log::error!("a request died: {e}");
        Err(ProblemType::ServerError.into())
    })
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let retry_after = self.retry_after;
        let mut response = (status, Json(self)).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        if let Some(seconds) = retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

/// One connection's service: the router, knowing where the connection comes from.
pub(super) async fn serve_request(
    mut router: Router,
    from: SocketAddr,
    mut request: axum::http::Request<hyper::body::Incoming>,
) -> Result<Response<Body>, Infallible> {
    use tower_service::Service as _;
    request.extensions_mut().insert(from);
    router.call(request.map(Body::new)).await
}
