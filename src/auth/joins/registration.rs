//! First joins by secret, around the join itself: how often they may be tried, and what is said of a secret that is too short.

use std::net::{IpAddr, SocketAddr};

use super::{Joins, failed};
use crate::store::Commit;
use boundkey_api::event::{Event, EventKind};
use boundkey_api::resource::{Kind, MIN_SECRET, Resource, ResourceId, Token};
use boundkey_join::message::JoinAnswer;
use boundkey_join::server::request;
use boundkey_join::{JoinKind, Jws, Problem, ProblemType};

/// A first join by secret that may go on.
pub(crate) struct Registration {
    token: String,
    address: IpAddr,
    is_short: bool,
}

impl Joins {
    /// Counts a join that proves itself by a registration secret, and refuses it where such joins of its token fail too often. `None` for
    /// every other join. Nothing in `jws` is verified yet: it is asked only whether a secret will be looked at.
    pub(crate) fn registration(&self, jws: &Jws, from: SocketAddr) -> Result<Option<Registration>, Problem> {
        let request = request::peek(jws)?;
        if request.external_account_binding.is_none() {
            return Ok(None);
        }
        let stored = self.store.get(&ResourceId::new(Kind::Token, &request.token)).map_err(|e| failed(&e))?;
        let Some(Resource::Token(token)) = stored.map(|stored| stored.resource) else { return Ok(None) };
        let Some(secret) = token.secret_awaited() else { return Ok(None) };
        let now = self.clock.now();
        let Err(wait) = self.throttle.admit_registration(&token.metadata.name, from.ip(), now) else {
            return Ok(Some(Registration {
                address: from.ip(),
                is_short: secret.len() < MIN_SECRET,
                token: token.metadata.name,
            }));
        };
        let seconds = wait.as_secs().max(1);
        let detail = format!("registrations of this token failed too often: the next one may come in {seconds} s");
        let problem = Problem { retry_after: Some(seconds), ..Problem::new(ProblemType::RegistrationPaused, detail) };
        self.tell_of_pause(&token, &problem, from)?;
        Err(problem)
    }

    /// Notes how a registration ended.
    pub(crate) fn registered(&self, registration: Option<Registration>, answer: &Result<JoinAnswer, Problem>) {
        let Some(Registration { token, address, is_short }) = registration else { return };
        match answer {
            Ok(answer) if answer.kind == JoinKind::First => {}
            // All that a wrong secret leads to. That of a token which is locked, and whose challenge is stale, is told by the two answers
            // that there are then: neither is given back.
            Err(problem)
                if matches!(
                    problem.kind,
                    ProblemType::RegistrationRefused | ProblemType::ChallengeStale | ProblemType::Locked
                ) =>
            {
                return;
            }
            _ => return self.throttle.give_back_registration(&token, address, self.clock.now()),
        }
        self.throttle.registered(&token);
        if is_short {
            log::warn!(
                "token/{token} was registered by a secret of less than {MIN_SECRET} characters, which can be guessed: give it a longer one, or none"
            );
        }
    }

    /// Within the budget of strangers.
    fn tell_of_pause(&self, token: &Token, problem: &Problem, from: SocketAddr) -> Result<(), Problem> {
        let now = self.clock.now();
        let event = Event {
            token: Some(token.metadata.name.clone()),
            bot: token.spec.bot_name.clone(),
            success: false,
            reason: Some(problem.detail.clone()),
            remote_addr: Some(from.to_string()),
            ..Event::new(now, EventKind::JoinRefused)
        };
        let event = event.with("problem", problem.kind.name());
        let Some(unwritten) = self.throttle.admit(None, &event, now) else { return Ok(()) };
        let event = if unwritten > 0 { event.with("refusals_not_written", unwritten) } else { event };
        self.store.commit(Commit { events: vec![event], ..Commit::default() }).map_err(|e| failed(&e))
    }
}
