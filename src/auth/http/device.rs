//! The devices' API over HTTPS: eight calls, all of them small, none of them trusted.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Extension, Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::joins::Joins;
use crate::serve::{Answer, Connection, Kind, Request, Work};
use boundkey_api::VERSION;
use boundkey_join::message::{
    CA_PATH, CHALLENGE_PATH, CRL_PATH, CRL_TYPE, ChallengeRequest, JOIN_PATH, MAX_REQUEST, PING_PATH, Ping, SSH_HOST_CA_PATH,
    SSH_HOST_CRL_PATH,
};
use boundkey_join::server::challenge::algorithms;
use boundkey_join::server::request;
use boundkey_join::{Jws, PROBLEM_JSON, Problem, ProblemType};

/// As long as this server's own memory of the list ([`crate::revocation::FRESH`]).
const CRL_CACHING: &str = "max-age=5";

/// What the calls work on.
struct Api {
    joins: Arc<Joins>,
    work: Work,
}

/// The routes.
pub fn router(joins: Arc<Joins>) -> Router {
    let api = Api { joins, work: Work::default() };
    Router::new()
        .route(PING_PATH, get(ping))
        .route(CA_PATH, get(ca))
        .route(SSH_HOST_CA_PATH, get(ssh_host_ca))
        .route(CRL_PATH, get(crl))
        .route(&format!("{CRL_PATH}/{{pin}}"), get(crl_of))
        .route(SSH_HOST_CRL_PATH, get(ssh_host_crl))
        .route(CHALLENGE_PATH, post(challenge))
        .route(JOIN_PATH, post(join))
        .fallback(async || ProblemResponse(ProblemType::UnsupportedVersion.into()))
        .method_not_allowed_fallback(async || {
            ProblemResponse(Problem::new(ProblemType::BadRequest, "no such method on this path"))
        })
        .layer(DefaultBodyLimit::max(MAX_REQUEST))
        .with_state(Arc::new(api))
}

async fn ping(State(api): State<Arc<Api>>) -> Json<Ping> {
    let (cluster, version) = (api.joins.cluster.clone(), VERSION.to_owned());
    Json(Ping { cluster, version, algorithms: algorithms(), time: api.joins.clock.now() })
}

async fn ca(State(api): State<Arc<Api>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/pem-certificate-chain")], api.joins.ca_certificates())
}

/// What stands behind `@cert-authority` and its patterns in `known_hosts` (sshd(8)).
async fn ssh_host_ca(State(api): State<Arc<Api>>) -> String {
    let authority = api.joins.authority.now();
    let lines: Vec<_> = authority.ssh_host_keys().map(|key| format!("{key} {}\n", api.joins.cluster)).collect();
    lines.concat()
}

async fn crl(State(api): State<Arc<Api>>, Extension(connection): Extension<Arc<Connection>>) -> Response {
    list(&api, &connection, CRL_TYPE, |joins| joins.revocation_list(None)).await
}

/// That of one CA, named by its pin.
async fn crl_of(
    State(api): State<Arc<Api>>,
    Extension(connection): Extension<Arc<Connection>>,
    Path(pin): Path<String>,
) -> Response {
    list(&api, &connection, CRL_TYPE, move |joins| joins.revocation_list(Some(&pin))).await
}

async fn ssh_host_crl(State(api): State<Arc<Api>>, Extension(connection): Extension<Arc<Connection>>) -> Response {
    list(&api, &connection, "application/octet-stream", Joins::ssh_revocation_list).await
}

async fn list(
    api: &Api,
    connection: &Connection,
    kind: &'static str,
    made: impl FnOnce(&Joins) -> Result<Bytes, Problem> + Send + 'static,
) -> Response {
    let headers = [(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, CRL_CACHING)];
    let joins = api.joins.clone();
    match api.work.run(Kind::List, connection, move || made(&joins)).await {
        Ok(bytes) => (headers, bytes).into_response(),
        Err(problem) => ProblemResponse(problem).into_response(),
    }
}

async fn challenge(
    State(api): State<Arc<Api>>,
    Extension(connection): Extension<Arc<Connection>>,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let (joins, from) = (api.joins.clone(), connection.from);
    let answer = move |request: ChallengeRequest| {
        joins.challenge(&request).inspect_err(|problem| note_unknown(&joins, problem, from, || Some(request.token)))
    };
    api.respond(Kind::Challenge, &connection, body, answer).await
}

async fn join(
    State(api): State<Arc<Api>>,
    Extension(connection): Extension<Arc<Connection>>,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let (joins, from) = (api.joins.clone(), connection.from);
    let answer = move |jws: Jws| {
        let token = || Some(request::peek(&jws).ok()?.token);
        let registration = joins.registration(&jws, from)?;
        let answer = joins.join(&jws, from).inspect_err(|problem| note_unknown(&joins, problem, from, token));
        joins.registered(registration, &answer);
        answer
    };
    api.respond(Kind::Join, &connection, body, answer).await
}

/// Counts a request that names no token of ours.
fn note_unknown(joins: &Joins, problem: &Problem, from: SocketAddr, token: impl FnOnce() -> Option<String>) {
    if let Some(token) = (problem.kind == ProblemType::NotFound).then(token).flatten() {
        joins.throttle.note_unknown(&token, &from.ip().to_string());
    }
}

impl Api {
    /// Reads the request, answers it on a thread that may block, and writes the answer or the problem.
    async fn respond<Q, A>(
        &self,
        kind: Kind,
        connection: &Connection,
        body: Result<Bytes, BytesRejection>,
        answer: impl FnOnce(Q) -> Result<A, Problem> + Send + 'static,
    ) -> Response
    where
        Q: DeserializeOwned + Send + 'static,
        A: Serialize + Send + 'static,
    {
        let request = body.map_err(|e| Problem::new(ProblemType::BadRequest, e.to_string())).and_then(|bytes| {
            serde_json::from_slice(&bytes)
                .map_err(|e| Problem::new(ProblemType::BadRequest, format!("not the JSON expected: {e}")))
        });
        let answered = match request {
            Ok(request) => self.work.run(kind, connection, move || answer(request)).await,
            Err(problem) => Err(problem),
        };
        match answered {
            Ok(answer) => Json(answer).into_response(),
            Err(problem) => ProblemResponse(problem).into_response(),
        }
    }
}

/// A problem as an HTTP response (RFC 9457 section 3).
pub struct ProblemResponse(
    /// The problem.
    pub Problem,
);

impl IntoResponse for ProblemResponse {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let retry_after = self.0.retry_after;
        let mut response = (status, Json(self.0)).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        if let Some(seconds) = retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

/// One connection's service: the router, knowing the connection.
pub(crate) async fn serve_request(
    mut router: Router,
    connection: Arc<Connection>,
    request: axum::http::Request<hyper::body::Incoming>,
) -> Result<Response<Answer>, Infallible> {
    use tower_service::Service as _;
    let is_last = connection.count_request();
    let mut request = request.map(|body| Body::new(Request::new(body, connection.clone())));
    request.extensions_mut().insert(connection.clone());
    let mut response = router.call(request).await?;
    if is_last {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response.map(|body| Answer::new(body, connection)))
}
