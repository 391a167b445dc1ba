//! The operator's API, on a Unix socket in the data directory.
//!
//! Who may connect is root, or the user that the server runs as: the kernel says who it is (`SO_PEERCRED`). Every change tells the
//! audit log in the transaction that makes it.

mod apply;
mod ca;
mod error;
mod exempt;
mod listener;
mod lock;
mod token;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::connect_info::ConnectInfo;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use tokio::net::UnixListener;
use tokio::sync::watch;

use super::rotation::Rotation;
use super::store::{Change, Commit, Store, Stored};
use crate::api::call::{Audit, Call, Delete, Deleted, Entry, Get};
use crate::api::event::{Event, EventKind};
use crate::api::resource::{Kind, LockTarget, Resource, ResourceId};
use crate::join::{PROBLEM_JSON, Problem, ProblemType};
use crate::time::{Clock, Random, Timestamp};
use error::{OperatorError, retry_on_conflict};
use listener::{Operators, Peer};

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
/// Time for calls to end after the order to stop.
const DRAIN: Duration = Duration::from_secs(10);

/// What operators can do.
pub struct Operator {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
    rotation: Option<Arc<Rotation>>,
    /// Ends the waits of followers.
    stopping: watch::Sender<bool>,
}

/// Serves operators until `stop` resolves.
pub async fn serve(
    operator: Arc<Operator>,
    listener: UnixListener,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let stopping = operator.stopping.clone();
    let mut stopped = stopping.subscribe();
    let stop = async move {
        stop.await;
        stopping.send_replace(true);
    };
    let patience = async move {
        // The sender lives in `operator`, which the router holds.
        let _ = stopped.wait_for(|stopping| *stopping).await;
        tokio::time::sleep(DRAIN).await;
    };
    let service = router(operator).into_make_service_with_connect_info::<Peer>();
    tokio::select! {
        ended = axum::serve(Operators::from(listener), service).with_graceful_shutdown(stop).into_future() => ended,
        () = patience => {
            log::warn!("operators' calls were still open {} s after the order to stop", DRAIN.as_secs());
            Ok(())
        }
    }
}

fn router(operator: Arc<Operator>) -> Router {
    let router = Router::new().route(Audit::PATH, post(audit));
    let router = on(router, Operator::apply);
    let router = on(router, Operator::ca_rotate);
    let router = on(router, Operator::ca_status);
    let router = on(router, Operator::cancel_exemption);
    let router = on(router, Operator::delete);
    let router = on(router, Operator::exempt);
    let router = on(router, Operator::get);
    let router = on(router, Operator::put_lock);
    let router = on(router, Operator::replace);
    let router = on(router, Operator::reset);
    let router = on(router, Operator::rotate);
    router
        .fallback(async || {
            Problem::new(
                ProblemType::UnsupportedVersion,
                "this boundkey-auth does not know the command; it is of another version",
            )
        })
        .layer(DefaultBodyLimit::max(MAX_REQUEST))
        .with_state(operator)
}

/// Routes a call to what answers it, on a thread that may block.
fn on<C: Call>(
    router: Router<Arc<Operator>>,
    answer: fn(&Operator, C, Who) -> Result<C::Answer, OperatorError>,
) -> Router<Arc<Operator>> {
    let handler = async move |State(operator): State<Arc<Operator>>, who: Who, body: Result<Bytes, BytesRejection>| {
        let call = read(body)?;
        blocking(move || answer(&operator, call, who)).await.map(Json)
    };
    router.route(C::PATH, post(handler))
}

fn read<C: Call>(body: Result<Bytes, BytesRejection>) -> Result<C, Problem> {
    let bad = |why: String| Problem::new(ProblemType::BadRequest, why);
    let bytes = body.map_err(|e| bad(e.to_string()))?;
    serde_json::from_slice(&bytes).map_err(|e| bad(e.to_string()))
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
    _: Who,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Vec<(u64, Event)>>, Problem> {
    let Audit { mut filter, wait } = read(body)?;
    filter.limit = Some(filter.limit.map_or(PAGE, |limit| limit.min(PAGE)));
    filter.max_bytes = Some(filter.max_bytes.map_or(PAGE_BYTES, |most| most.min(PAGE_BYTES)));
    let mut stopping = operator.stopping.subscribe();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(wait).min(MAX_WAIT);
    loop {
        let (store, filter) = (operator.store.clone(), filter.clone());
        let events = blocking(move || Ok(store.events(&filter)?)).await?;
        let over = tokio::time::Instant::now() >= deadline;
        if !events.is_empty() || over || *stopping.borrow_and_update() {
            return Ok(Json(events));
        }
        tokio::select! {
            () = tokio::time::sleep(POLL) => {}
            _ = stopping.changed() => {}
        }
    }
}

impl Operator {
    /// The operator's part of a server.
    pub fn new(store: Arc<dyn Store>, clock: Arc<dyn Clock>, random: Arc<dyn Random>) -> Self {
        Self { store, clock, random, rotation: None, stopping: watch::Sender::new(false) }
    }

    /// The same, of a server that replaces its CAs.
    #[must_use]
    pub fn replacing(self, rotation: Arc<Rotation>) -> Self {
        Self { rotation: Some(rotation), ..self }
    }

    fn get(&self, call: Get, _: Who) -> Result<Vec<Entry>, OperatorError> {
        let found = match call.name {
            Some(name) => vec![self.stored(&ResourceId::new(call.kind, name))?],
            None => self.store.list(call.kind)?,
        };
        let shown = |resource: Resource| if call.with_secrets { resource } else { resource.without_secrets() };
        Ok(found.into_iter().map(|Stored { resource, revision }| Entry { resource: shown(resource), revision }).collect())
    }

    /// Locks stay, those that the server made too: a token that is made again out of a backup is the one that two held. They go by
    /// `rm lock/ID` or `exempt`, which the audit log tells of.
    fn delete(&self, Delete { id }: Delete, who: Who) -> Result<Deleted, OperatorError> {
        retry_on_conflict(|| {
            let Stored { resource, revision } = self.stored(&id)?;
            let kind = if id.kind == Kind::Lock { EventKind::LockRemoved } else { EventKind::ResourceDeleted };
            let events = vec![event(self.clock.now(), kind, &resource, who)];
            let changes = vec![Change { id: id.clone(), expected: Some(revision), to: None }];
            self.store.commit(Commit { changes, events, ..Commit::default() })?;
            Ok(Deleted { locks: self.locks_in_force_on(&id)?, id: id.clone() })
        })
    }

    /// Locks that stop the resource of this name, whether it is there or not.
    fn locks_in_force_on(&self, id: &ResourceId) -> Result<Vec<ResourceId>, OperatorError> {
        let Some(target) = LockTarget::of(id) else { return Ok(Vec::new()) };
        let now = self.clock.now();
        let locks = self.store.locks_on(&target)?.into_iter().filter(|lock| lock.in_force(now));
        Ok(locks.map(|lock| ResourceId::new(Kind::Lock, lock.metadata.name)).collect())
    }

    fn stored(&self, id: &ResourceId) -> Result<Stored<Resource>, OperatorError> {
        self.store.get(id)?.ok_or_else(|| Problem::new(ProblemType::NotFound, format!("there is no {id}")).into())
    }
}

/// An event of `kind` about `resource`.
fn event(now: Timestamp, kind: EventKind, resource: &Resource, who: Who) -> Event {
    let mut event = Event { remote_addr: Some(who.to_string()), ..Event::new(now, kind) };
    match resource {
        Resource::Bot(bot) => event.bot = Some(bot.metadata.name.clone()),
        Resource::Instance(instance) => {
            let id = Some(instance.metadata.name.clone());
            let named = if instance.spec.bot_name.is_some() { &mut event.instance_id } else { &mut event.host_id };
            *named = id;
            event.bot.clone_from(&instance.spec.bot_name);
            event.token = Some(instance.spec.token.clone());
        }
        Resource::Lock(lock) => {
            let target = match &lock.spec.target {
                LockTarget::Bot(_) => &mut event.bot,
                LockTarget::BotInstance(_) => &mut event.instance_id,
                LockTarget::Host(_) => &mut event.host_id,
                LockTarget::Token(_) => &mut event.token,
            };
            *target = Some(lock.spec.target.name().into());
            event.reason = Some(lock.spec.message.clone()).filter(|message| !message.is_empty());
        }
        Resource::Role(_) => {}
        Resource::Token(token) => {
            event.token = Some(token.metadata.name.clone());
            event.bot.clone_from(&token.spec.bot_name);
        }
    }
    match (kind, resource) {
        (EventKind::LockCreated | EventKind::LockRemoved, Resource::Lock(lock)) => {
            event.with("lock", lock.metadata.name.as_str()).with("automatic", lock.spec.automatic)
        }
        (EventKind::ResourceCreated | EventKind::ResourceUpdated | EventKind::ResourceDeleted, _) => {
            event.with("resource", resource.id().to_string())
        }
        _ => event,
    }
}

/// An operator who may do what he asks.
#[derive(Clone, Copy, Debug)]
struct Who {
    uid: u32,
}

impl std::fmt::Display for Who {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "uid {}", self.uid)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Who {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Response> {
        let peer = parts.extensions.get::<ConnectInfo<Peer>>().map(|info| info.0);
        match peer.filter(|peer| peer.operates()).and_then(|peer| peer.uid) {
            Some(uid) => Ok(Self { uid }),
            None => Err(forbidden(peer.and_then(|peer| peer.uid))),
        }
    }
}

/// No type of its own: `about:blank` says that the HTTP status tells all (RFC 9457 section 4.2.1).
fn forbidden(uid: Option<u32>) -> Response {
    let who = uid.map_or_else(|| "someone".into(), |uid| format!("uid {uid}"));
    let detail = format!("{who} is neither root nor the user that boundkey-auth runs as");
    let document = serde_json::json!({ "type": "about:blank", "title": "Forbidden", "status": 403, "detail": detail });
    (StatusCode::FORBIDDEN, [(header::CONTENT_TYPE, PROBLEM_JSON)], document.to_string()).into_response()
}
