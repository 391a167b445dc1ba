//! Resources for a person: a table, or one token in full.

use std::collections::HashMap;

use super::client::Client;
use super::{Failure, print};
use crate::api::call::Get;
use crate::api::resource::{Instance, Kind, Lock, LockTarget, Resource, ResourceId, Role, Token};
use crate::join::RecoveryMode;
use crate::join::server::record::rotation_due;
use crate::text;
use crate::time::{Clock as _, System, Timestamp};

/// The resources in words; `one`: there is one, and all of it is wanted.
pub(super) fn show(client: &Client, kind: Kind, resources: &[Resource], one: bool) -> Result<String, Failure> {
    let now = System.now();
    let locks = if matches!(kind, Kind::Bot | Kind::Token) { Locks::read(client, now)? } else { Locks(HashMap::new()) };
    if let ([Resource::Token(token)], true) = (resources, one) {
        return Ok(token_in_full(token, &locks, now));
    }
    let rows = resources.iter().map(|resource| match resource {
        Resource::Bot(bot) => {
            let locked = !locks.on(&LockTarget::Bot(bot.metadata.name.clone())).is_empty();
            vec![bot.metadata.name.clone(), listed(&bot.spec.roles), yes(locked)]
        }
        Resource::Instance(instance) => instance_row(instance),
        Resource::Lock(lock) => lock_row(lock, now),
        Resource::Role(role) => role_row(role),
        Resource::Token(token) => token_row(token, &locks, now),
    });
    Ok(table(header(kind), rows.collect()))
}

fn header(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Bot => &["NAME", "ROLES", "LOCKED"],
        Kind::BotInstance => &["ID", "BOT", "TOKEN", "GENERATION", "LAST JOIN", "HOSTNAME"],
        Kind::Host => &["ID", "TOKEN", "GENERATION", "LAST JOIN", "HOSTNAME"],
        Kind::Lock => &["ID", "TARGET", "BY", "EXPIRES", "MESSAGE"],
        Kind::Role => &["NAME", "ALLOWS", "LONGEST TTL"],
        Kind::Token => &["NAME", "BOT", "BOUND", "RECOVERIES", "MODE", "LOCKED"],
    }
}

/// The locks in force, by what they stop: one look-up for each row, however many locks there are.
struct Locks(HashMap<ResourceId, Vec<Lock>>);

impl Locks {
    fn read(client: &Client, now: Timestamp) -> Result<Self, Failure> {
        let mut by_target: HashMap<ResourceId, Vec<Lock>> = HashMap::new();
        for entry in client.send(&Get { kind: Kind::Lock, name: None, with_secrets: false })? {
            if let Resource::Lock(lock) = entry.resource
                && lock.in_force(now)
            {
                by_target.entry(lock.spec.target.id()).or_default().push(lock);
            }
        }
        Ok(Self(by_target))
    }

    fn on(&self, target: &LockTarget) -> &[Lock] {
        self.0.get(&target.id()).map_or(&[], Vec::as_slice)
    }

    /// The locks that stop a token: on itself, its bot, or its instance.
    fn on_token<'a>(&'a self, token: &Token) -> impl Iterator<Item = &'a Lock> {
        let itself = Some(LockTarget::Token(token.metadata.name.clone()));
        let bot = token.spec.bot_name.clone().map(LockTarget::Bot);
        let instance = token.status.bound_keypair.bound_instance().map(|id| token.instance(id));
        [itself, bot, instance].into_iter().flatten().flat_map(|target| self.on(&target))
    }
}

fn token_row(token: &Token, locks: &Locks, now: Timestamp) -> Vec<String> {
    let status = &token.status.bound_keypair;
    let recoveries = status.recoveries(&token.spec.bound_keypair);
    let limit = if recoveries.mode == RecoveryMode::Standard { recoveries.limit.to_string() } else { "-".into() };
    vec![
        token.metadata.name.clone(),
        or_dash(token.spec.bot_name.as_deref()),
        bound(token, now).into(),
        format!("{}/{limit}", recoveries.count),
        mode(recoveries.mode).into(),
        yes(locks.on_token(token).next().is_some()),
    ]
}

/// Whether a device holds the token, or can.
fn bound(token: &Token, now: Timestamp) -> &'static str {
    let (spec, status) = (&token.spec.bound_keypair, &token.status.bound_keypair);
    let in_time = spec.onboarding.must_register_before.is_none_or(|deadline| now < deadline);
    if status.bound_public_key.is_some() {
        "yes"
    } else if spec.onboarding.initial_public_key.is_some() || (status.registration_secret.is_some() && in_time) {
        "waiting"
    } else {
        "no"
    }
}

fn mode(mode: RecoveryMode) -> &'static str {
    match mode {
        RecoveryMode::Insecure => "insecure",
        RecoveryMode::Relaxed => "relaxed",
        RecoveryMode::Standard => "standard",
    }
}

fn instance_row(instance: &Instance) -> Vec<String> {
    let status = &instance.status;
    let mut row = vec![instance.metadata.name.clone()];
    row.extend(instance.spec.bot_name.clone());
    row.extend([
        instance.spec.token.clone(),
        status.generation.to_string(),
        status.authentications.back().map_or("-".into(), |last| last.time.to_string()),
        status.heartbeats.back().map_or("-".into(), |last| last.heartbeat.hostname.clone()),
    ]);
    row
}

fn lock_row(lock: &Lock, now: Timestamp) -> Vec<String> {
    let spec = &lock.spec;
    let expires = match spec.expires {
        Some(end) if lock.in_force(now) => end.to_string(),
        Some(_) => "ended".into(),
        None => "never".into(),
    };
    vec![
        lock.metadata.name.clone(),
        spec.target.id().to_string(),
        if spec.automatic { "server" } else { "operator" }.into(),
        expires,
        spec.message.clone(),
    ]
}

fn role_row(role: &Role) -> Vec<String> {
    let allow = &role.spec.allow;
    let all: Vec<_> =
        [&allow.dns_names, &allow.uris, &allow.ip_addresses, &allow.ssh_principals].into_iter().flatten().cloned().collect();
    let ttl = role.spec.max_ttl.map(|ttl| humantime::format_duration(ttl).to_string());
    vec![role.metadata.name.clone(), listed(&all), or_dash(ttl.as_deref())]
}

fn token_in_full(token: &Token, locks: &Locks, now: Timestamp) -> String {
    let (spec, status) = (&token.spec.bound_keypair, &token.status.bound_keypair);
    let mut lines = vec![("token", token.metadata.name.clone())];
    if let Some(bot) = &token.spec.bot_name {
        lines.push(("bot", bot.clone()));
    } else {
        lines.push(("roles", listed(&token.spec.roles)));
        lines.push(("allowed by", listed(&token.spec.host.roles)));
    }
    let labels: Vec<_> = token.metadata.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    if !labels.is_empty() {
        lines.push(("labels", labels.join(", ")));
    }
    if let Some(end) = token.metadata.expires {
        lines.push(("expires", end.to_string()));
    }
    lines.push(("bound", bound(token, now).into()));
    if let Some(key) = status.bound_public_key.as_ref().or(spec.onboarding.initial_public_key.as_ref()) {
        lines.push(("key", key.to_string()));
    }
    if let Some(secret) = &status.registration_secret {
        lines.push(("secret", secret.clone()));
    }
    if let Some(deadline) = spec.onboarding.must_register_before {
        lines.push(("register before", deadline.to_string()));
    }
    if let Some(step) = status.step() {
        let name = if token.is_for_bot() { "instance" } else { "host" };
        lines.push((name, format!("{}, generation {}", step.instance, step.generation)));
    }
    let recoveries = status.recoveries(spec);
    let used = match recoveries.remaining() {
        Some(left) => format!("{} used of {}, {left} left", recoveries.count, recoveries.limit),
        None => format!("{} used, no limit", recoveries.count),
    };
    lines.push(("recoveries", format!("{used} (mode {})", mode(recoveries.mode))));
    if let Some(last) = status.last_recovered_at {
        lines.push(("last recovery", last.to_string()));
    }
    if let Some(last) = status.last_rotated_at {
        lines.push(("last rotation", last.to_string()));
    }
    if rotation_due(spec, status, now) {
        lines.push(("rotation", "a new key at the next join".into()));
    }
    if let Some(exemption) = status.exemption.as_ref().filter(|exemption| exemption.expires > now) {
        let reason = exemption.reason.as_ref().map_or(String::new(), |reason| format!(" ({reason})"));
        let waiver = if exemption.waive_join_state { ", one join without matching join state" } else { "" };
        let recoveries = print::counted(exemption.recoveries, "recovery", "recoveries");
        let what = match &exemption.key {
            Some(code) => format!("only for the device with key {code}"),
            None => format!("{recoveries}{waiver}"),
        };
        lines.push(("exemption", format!("{what}, until {}{reason}", exemption.expires)));
    }
    for lock in locks.on_token(token) {
        lines.push(("locked by", format!("lock/{} on {}: {}", lock.metadata.name, lock.spec.target.id(), lock.spec.message)));
    }
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    lines.iter().fold(String::new(), |text, (name, value)| text + &format!("{name:width$}  {}\n", plain(value)))
}

pub(super) fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let header = header.iter().map(ToString::to_string).collect();
    let all: Vec<Vec<String>> =
        std::iter::once(header).chain(rows).map(|row| row.iter().map(|cell| plain(cell)).collect()).collect();
    let mut widths = vec![0; all[0].len()];
    for row in &all {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for row in &all {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
    }
    text
}

/// What devices and operators wrote must not steer the terminal.
fn plain(text: &str) -> String {
    text::line(text).into_owned()
}

fn listed(names: &[String]) -> String {
    if names.is_empty() { "-".into() } else { names.join(", ") }
}

fn or_dash(text: Option<&str>) -> String {
    text.unwrap_or("-").into()
}

fn yes(is: bool) -> String {
    if is { "yes" } else { "no" }.into()
}
