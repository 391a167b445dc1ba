//! Tokens as operators make, change, reset and rotate them. What joins wrote is theirs: no update takes a binding away.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::error::{OperatorError, refused, retry_on_conflict};
use super::{Operator, event};
use crate::store::{Change, Commit, Stored};
use boundkey_api::actor::Actor;
use boundkey_api::call::{Reset, Rotate, Unbound};
use boundkey_api::event::EventKind;
use boundkey_api::resource::{HIDDEN_SECRET, Kind, Lock, LockTarget, MIN_SECRET, Resource, ResourceId, Token};
use boundkey_join::server::record::Status;
use boundkey_join::{Id, Problem, ProblemType};
use boundkey_platform::time::{Random, Timestamp};

/// Tokens rotated in one commit: many, so that a fleet is quick; not all, so that joins seldom come between.
const ROTATED_TOGETHER: usize = 64;

/// Completes a new token. A status that came with it is kept: that is how a backup is restored.
pub(super) fn create(token: &mut Token, random: &dyn Random) -> Result<(), OperatorError> {
    let (spec, status) = (&token.spec.bound_keypair, &mut token.status.bound_keypair);
    let secrets = [&spec.onboarding.registration_secret, &status.registration_secret];
    if secrets.into_iter().flatten().any(|secret| secret == HIDDEN_SECRET) {
        let why = format!("token/{}: its registration secret is hidden; get the token with --with-secrets", token.metadata.name);
        return refused(ProblemType::BadRequest, why);
    }
    // A status brings what was stored before: that goes on as it was.
    if status.bound_public_key.is_none() && status.registration_secret.is_none() {
        check_secret(&token.metadata.name, spec.onboarding.registration_secret.as_deref())?;
    }
    if status.incarnation.is_none() {
        status.incarnation = Some(Id::random(random)?);
    }
    ensure_secret(token, random)
}

/// Completes the new form of `old`: its status stays, in every field.
pub(super) fn update(token: &mut Token, old: &Token, random: &dyn Random) -> Result<(), OperatorError> {
    if old.status.bound_keypair.bound_public_key.is_some() && token.is_for_bot() != old.is_for_bot() {
        let why = format!(
            "token/{}: a bot cannot become a host, nor a host a bot, while it is bound: reset it first",
            token.metadata.name
        );
        return refused(ProblemType::BadRequest, why);
    }
    token.status = old.status.clone();
    let secret = &mut token.spec.bound_keypair.onboarding.registration_secret;
    if secret.as_deref() == Some(HIDDEN_SECRET) {
        secret.clone_from(&old.spec.bound_keypair.onboarding.registration_secret);
    }
    if *secret != old.spec.bound_keypair.onboarding.registration_secret {
        check_secret(&token.metadata.name, secret.as_deref())?;
    }
    ensure_secret(token, random)
}

/// A secret that can be guessed is refused where it is chosen. One that is stored already goes on to work.
fn check_secret(token: &str, secret: Option<&str>) -> Result<(), OperatorError> {
    match secret {
        Some(secret) if secret.len() < MIN_SECRET => {
            let why = format!(
                "token/{token}: spec.bound_keypair.onboarding.registration_secret has {} characters and can be guessed: give it {MIN_SECRET} or \
                 more, or leave it out to have 128 random bits made",
                secret.chars().count()
            );
            refused(ProblemType::BadRequest, why)
        }
        _ => Ok(()),
    }
}

/// Gives a token that nothing could join with a secret: the fixed one, or 128 random bits.
fn ensure_secret(token: &mut Token, random: &dyn Random) -> Result<(), OperatorError> {
    let (spec, status) = (&token.spec.bound_keypair, &mut token.status.bound_keypair);
    let bound = status.bound_public_key.is_some();
    if bound || spec.onboarding.initial_public_key.is_some() || status.registration_secret.is_some() {
        return Ok(());
    }
    status.registration_secret = Some(match &spec.onboarding.registration_secret {
        Some(fixed) => {
            if fixed.len() < MIN_SECRET {
                log::warn!(
                    "token/{}: its registration secret of less than {MIN_SECRET} characters can be guessed",
                    token.metadata.name
                );
            }
            fixed.clone()
        }
        None => random_secret(random)?,
    });
    Ok(())
}

fn random_secret(random: &dyn Random) -> Result<String, OperatorError> {
    let mut bytes = [0; 16];
    random.fill(&mut bytes)?;
    Ok(bytes.iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}"); // a String takes it all
        hex
    }))
}

impl Operator {
    pub(crate) fn reset(&self, Reset { token: name }: Reset, actor: &Actor) -> Result<Unbound, OperatorError> {
        retry_on_conflict(|| {
            let Some(view) = self.store.join_view(&name, None)? else {
                return refused(ProblemType::NotFound, format!("there is no token/{name}"));
            };
            let now = self.clock.now();
            let Stored { resource: mut token, revision } = view.token;
            // A new life: join states and retired keys of the old one mean nothing.
            token.status.bound_keypair = Status { incarnation: Some(Id::random(&*self.random)?), ..Status::default() };
            ensure_secret(&mut token, &*self.random)?;
            self.store.commit(updated(vec![(token, revision)], "reset", actor, now))?;
            // Not those on the instance: the next one is another.
            let on_token = |lock: &Lock| !matches!(lock.spec.target, LockTarget::BotInstance(_) | LockTarget::Host(_));
            let locks = view.locks.into_iter().map(|stored| stored.resource);
            let locks = locks.filter(|lock| lock.in_force(now) && on_token(lock));
            Ok(Unbound { locks: locks.map(|lock| ResourceId::new(Kind::Lock, lock.metadata.name)).collect() })
        })
    }

    pub(crate) fn rotate(&self, which: Rotate, actor: &Actor) -> Result<Vec<ResourceId>, OperatorError> {
        let names = match which {
            Rotate::Token(name) => {
                self.token(&name)?;
                vec![name]
            }
            Rotate::All => self.bound_tokens(&BTreeMap::new())?,
            Rotate::Selector(labels) if labels.is_empty() => {
                return refused(ProblemType::BadRequest, "the selector is empty");
            }
            Rotate::Selector(labels) => self.bound_tokens(&labels)?,
        };
        for names in names.chunks(ROTATED_TOGETHER) {
            retry_on_conflict(|| {
                let now = self.clock.now();
                let mut tokens = Vec::with_capacity(names.len());
                for name in names {
                    // One deleted meanwhile has nothing to rotate.
                    if let Some(Stored { resource: Resource::Token(mut token), revision }) =
                        self.store.get(&ResourceId::new(Kind::Token, name))?
                    {
                        token.spec.bound_keypair.rotate_after = Some(now);
                        tokens.push((token, revision));
                    }
                }
                Ok(self.store.commit(updated(tokens, "rotation ordered", actor, now))?)
            })?;
        }
        Ok(names.into_iter().map(|name| ResourceId::new(Kind::Token, name)).collect())
    }

    /// Names of the bound tokens with these labels. The others get a fresh key at their first join as it is.
    fn bound_tokens(&self, labels: &BTreeMap<String, String>) -> Result<Vec<String>, OperatorError> {
        let wanted = |resource: Resource| match resource {
            Resource::Token(token) if token.status.bound_keypair.bound_public_key.is_some() => {
                let has = labels.iter().all(|(name, value)| token.metadata.labels.get(name) == Some(value));
                has.then_some(token.metadata.name)
            }
            _ => None,
        };
        Ok(self.store.list(Kind::Token)?.into_iter().filter_map(|stored| wanted(stored.resource)).collect())
    }

    pub(super) fn token(&self, name: &str) -> Result<Stored<Token>, OperatorError> {
        match self.stored(&ResourceId::new(Kind::Token, name))? {
            Stored { resource: Resource::Token(resource), revision } => Ok(Stored { resource, revision }),
            _ => Err(Problem::from(ProblemType::ServerError).into()),
        }
    }
}

fn updated(tokens: Vec<(Token, u64)>, why: &str, actor: &Actor, now: Timestamp) -> Commit {
    let mut commit = Commit::default();
    for (token, revision) in tokens {
        let resource = Resource::Token(token);
        let mut event = event(now, EventKind::ResourceUpdated, &resource, actor);
        event.reason = Some(why.into());
        commit.events.push(event);
        commit.changes.push(Change { id: resource.id(), expected: Some(revision), to: Some(resource) });
    }
    commit
}
