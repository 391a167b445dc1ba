//! The operators' routes: reads a call, has its actor authorized, does it, and writes its answer or a problem document.
//!
//! What the routes are reached through is not known here.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};

use crate::authorize::{Denied, authorize, authorize_connection};
use crate::http::device::ProblemResponse;
use crate::operator::{Operator, OperatorError};
use boundkey_api::actor::{Access, Actor};
use boundkey_api::call::{Audit, Call};
use boundkey_api::event::EventPage;
use boundkey_join::{PROBLEM_JSON, Problem, ProblemType};

/// Longest request: some ten thousand tokens at once.
const MAX_REQUEST: usize = 64 << 20;
/// Most events in one answer.
const PAGE: u32 = 1000;
/// Most bytes of events in one answer.
const PAGE_BYTES: usize = 512 * 1024;
/// Longest wait for events.
const MAX_WAIT: Duration = Duration::from_secs(20);
/// How often the store is asked while somebody waits: other servers may write to it too.
const POLL: Duration = Duration::from_millis(250);

/// The routes. Each request has its [`Actor`] as an extension, put there by the listener that it came through.
pub fn router(operator: Arc<Operator>) -> Router {
    let router = Router::new().route(Audit::PATH, post(audit));
    let router = on(router, Operator::apply);
    let router = on(router, Operator::ca_rotate);
    let router = on(router, Operator::ca_status);
    let router = on(router, Operator::cancel_exemption);
    let router = on(router, Operator::delete);
    let router = on(router, Operator::exempt);
    let router = on(router, Operator::get);
    let router = on(router, Operator::list);
    let router = on(router, Operator::put_lock);
    let router = on(router, Operator::replace);
    let router = on(router, Operator::reset);
    let router = on(router, Operator::rotate);
    router
        .fallback(async || {
            ProblemResponse(Problem::new(
                ProblemType::UnsupportedVersion,
                "this boundkey-auth does not know the command; it is of another version",
            ))
        })
        .layer(DefaultBodyLimit::max(MAX_REQUEST))
        .with_state(operator)
}

/// Routes a call to what answers it, on a thread that may block.
fn on<C: Call>(
    router: Router<Arc<Operator>>,
    answer: fn(&Operator, C, &Actor) -> Result<C::Answer, OperatorError>,
) -> Router<Arc<Operator>> {
    let handler =
        async move |State(operator): State<Arc<Operator>>, Caller(actor): Caller, body: Result<Bytes, BytesRejection>| {
            let call: C = read(&actor, body)?;
            let answer = blocking(move || answer(&operator, call, &actor)).await?;
            Ok::<_, Refusal>(Json(answer))
        };
    router.route(C::PATH, post(handler))
}

/// Reads a call, and refuses it unless its actor may do all that it needs.
fn read<C: Call>(actor: &Actor, body: Result<Bytes, BytesRejection>) -> Result<C, Refusal> {
    let bad = |why: String| Problem::new(ProblemType::BadRequest, why);
    let bytes = body.map_err(|e| bad(e.to_string()))?;
    let call: C = serde_json::from_slice(&bytes).map_err(|e| bad(e.to_string()))?;
    call.needs().iter().try_for_each(|Access { action, object }| authorize(actor, *action, object))?;
    Ok(call)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, OperatorError> + Send + 'static) -> Result<T, Problem> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(Problem::from),
        Err(e) => {
            log::error!("an operator's call died: {e}");
            Err(ProblemType::ServerError.into())
        }
    }
}

/// Answers with events, or waits for some.
async fn audit(
    State(operator): State<Arc<Operator>>,
    Caller(actor): Caller,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<EventPage>, Refusal> {
    let Audit { mut filter, wait } = read(&actor, body)?;
    filter.limit = Some(filter.limit.map_or(PAGE, |limit| limit.min(PAGE)));
    filter.max_bytes = Some(filter.max_bytes.map_or(PAGE_BYTES, |most| most.min(PAGE_BYTES)));
    let mut stopping = operator.stopping();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(wait).min(MAX_WAIT);
    loop {
        let (operator, asked) = (operator.clone(), filter.clone());
        let page = blocking(move || operator.events(&asked)).await?;
        let over = tokio::time::Instant::now() >= deadline;
        if !page.events.is_empty() || page.more || over || *stopping.borrow_and_update() {
            return Ok(Json(page));
        }
        filter.after = Some(page.cursor);
        tokio::select! {
            () = tokio::time::sleep(POLL) => {}
            _ = stopping.changed() => {}
        }
    }
}

/// The actor of a request, refused before the body is read if it may do nothing at all.
struct Caller(Actor);

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        let Some(actor) = parts.extensions.get::<Actor>().cloned() else {
            log::error!("a listener let a call pass without its actor");
            return Err(Problem::from(ProblemType::ServerError).into());
        };
        authorize_connection(&actor)?;
        Ok(Self(actor))
    }
}

/// Why a call was not done.
enum Refusal {
    Denied(Denied),
    Problem(Problem),
}

impl From<Denied> for Refusal {
    fn from(denied: Denied) -> Self {
        Self::Denied(denied)
    }
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

impl IntoResponse for Refusal {
    /// A denial has no problem type of its own: `about:blank` says that the HTTP status tells all (RFC 9457 section 4.2.1).
    fn into_response(self) -> Response {
        let denied = match self {
            Self::Denied(denied) => denied,
            Self::Problem(problem) => return ProblemResponse(problem).into_response(),
        };
        let document =
            serde_json::json!({ "type": "about:blank", "title": "Forbidden", "status": 403, "detail": denied.to_string() });
        (StatusCode::FORBIDDEN, [(header::CONTENT_TYPE, PROBLEM_JSON)], document.to_string()).into_response()
    }
}
