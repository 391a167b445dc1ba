//! Resources for a person: a table, or one token in full. What follows from a resource is said by the server; here it is put in words.

use super::{Failure, print};
use boundkey_api::call::Entry;
use boundkey_api::resource::{Instance, Kind, Lock, Resource, Role, Token};
use boundkey_api::view::{BotView, Bound, DeviceView, InstanceView, LockView, RecoveriesView, TokenView, View};
use boundkey_join::RecoveryMode;
use boundkey_join::server::record::Exemption;
use boundkey_platform::text;
use boundkey_platform::time::Timestamp;

/// One resource in words: a token in full, another as a table of one row.
pub(super) fn one(entry: &Entry) -> Result<String, Failure> {
    match (&entry.resource, &entry.view) {
        (Resource::Token(token), Some(View::Token(view))) => Ok(token_in_full(token, view)),
        (resource, _) => Ok(table(header(resource.kind()), vec![row(entry)?])),
    }
}

/// The columns of a table of a kind.
pub(super) fn header(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Bot => &["NAME", "ROLES", "LOCKED", "LABELS"],
        Kind::BotInstance => {
            &["ID", "BOT", "TOKEN", "GENERATION", "LOCKED", "LAST JOIN", "CERTIFICATE ENDS", "AGENT", "HOSTNAME"]
        }
        Kind::Host => &["ID", "TOKEN", "GENERATION", "LOCKED", "LAST JOIN", "CERTIFICATE ENDS", "AGENT", "HOSTNAME"],
        Kind::Lock => &["ID", "TARGET", "BY", "EXPIRES", "MESSAGE"],
        Kind::Role => &["NAME", "ALLOWS", "LONGEST TTL"],
        Kind::Token => &[
            "NAME",
            "BOT",
            "BOUND",
            "RECOVERIES",
            "MODE",
            "LOCKED",
            "EXPIRED",
            "LAST JOIN",
            "CERTIFICATE ENDS",
            "AGENT",
            "LABELS",
        ],
    }
}

/// The row of a resource under [`header`].
pub(super) fn row(entry: &Entry) -> Result<Vec<String>, Failure> {
    let labels = || labels(&entry.resource);
    match (&entry.resource, &entry.view) {
        (Resource::Bot(bot), Some(View::Bot(BotView { locked, .. }))) => {
            Ok(vec![bot.metadata.name.clone(), listed(&bot.spec.roles), yes(*locked), labels()])
        }
        (Resource::Instance(instance), Some(View::Instance(view))) => Ok(instance_row(instance, view)),
        (Resource::Lock(lock), Some(View::Lock(view))) => Ok(lock_row(lock, *view)),
        (Resource::Role(role), None) => Ok(role_row(role)),
        (Resource::Token(token), Some(View::Token(view))) => Ok(token_row(token, view, labels())),
        (resource, _) => {
            let what = format!("the server does not say of {} what a table shows", resource.id());
            Err(Failure::new(what, "use the boundkeyctl that came with the server"))
        }
    }
}

fn token_row(token: &Token, view: &TokenView, labels: String) -> Vec<String> {
    let RecoveriesView { used, limit, mode, .. } = view.recoveries;
    let limit = limit.map_or_else(dash, |limit| limit.to_string());
    vec![
        token.metadata.name.clone(),
        or_dash(token.spec.bot_name.as_deref()),
        bound(view.bound).into(),
        format!("{used}/{limit}"),
        mode_name(mode).into(),
        yes(view.locked),
        yes(view.expired),
        time(view.device.last_join),
        time(view.device.certificate_ends),
        or_dash(view.device.agent_version.as_deref()),
        labels,
    ]
}

fn bound(bound: Bound) -> &'static str {
    match bound {
        Bound::No => "no",
        Bound::Waiting => "waiting",
        Bound::Yes => "yes",
    }
}

fn mode_name(mode: RecoveryMode) -> &'static str {
    match mode {
        RecoveryMode::Insecure => "insecure",
        RecoveryMode::Relaxed => "relaxed",
        RecoveryMode::Standard => "standard",
    }
}

fn instance_row(instance: &Instance, view: &InstanceView) -> Vec<String> {
    let DeviceView { last_join, certificate_ends, agent_version, hostname } = &view.device;
    let mut row = vec![instance.metadata.name.clone()];
    row.extend(instance.spec.bot_name.clone());
    row.extend([
        instance.spec.token.clone(),
        instance.status.generation.to_string(),
        yes(view.locked),
        time(*last_join),
        time(*certificate_ends),
        or_dash(agent_version.as_deref()),
        or_dash(hostname.as_deref()),
    ]);
    row
}

fn lock_row(lock: &Lock, view: LockView) -> Vec<String> {
    let spec = &lock.spec;
    let expires = match view.ends {
        Some(end) if view.in_force => end.to_string(),
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

fn token_in_full(token: &Token, view: &TokenView) -> String {
    let (spec, status) = (&token.spec.bound_keypair, &token.status.bound_keypair);
    let mut lines = Lines::default();
    lines.add("token", &token.metadata.name);
    if let Some(bot) = &token.spec.bot_name {
        lines.add("bot", bot);
    } else {
        lines.add("roles", listed(&token.spec.roles));
        lines.add("allowed by", listed(&token.spec.host.roles));
    }
    if !token.metadata.labels.is_empty() {
        lines.add("labels", labels_of(token.metadata.labels.iter()));
    }
    if let Some(end) = token.metadata.expires {
        lines.add(if view.expired { "expired" } else { "expires" }, end);
    }
    lines.add("bound", bound(view.bound));
    lines.add_some("key", status.bound_public_key.as_ref().or(spec.onboarding.initial_public_key.as_ref()));
    lines.add_some("secret", status.registration_secret.as_ref());
    lines.add_some("register before", spec.onboarding.must_register_before);
    if let (Some(instance), Some(generation)) = (&view.instance, view.generation) {
        let name = if instance.kind == Kind::Host { "host" } else { "instance" };
        lines.add(name, format!("{}, generation {generation}", instance.name));
    }
    let DeviceView { last_join, certificate_ends, agent_version, hostname } = &view.device;
    lines.add_some("last join", *last_join);
    lines.add_some("certificate ends", *certificate_ends);
    lines.add_some("agent", agent_version.as_ref());
    lines.add_some("hostname", hostname.as_ref());
    lines.add("recoveries", recoveries(view.recoveries));
    lines.add_some("last recovery", status.last_recovered_at);
    lines.add_some("last rotation", status.last_rotated_at);
    if view.rotation_due {
        lines.add("rotation", "a new key at the next join");
    }
    lines.add_some("exemption", view.exemption.as_ref().map(exemption));
    for lock in &view.locks {
        lines.add("locked by", format!("{} on {}: {}", lock.lock, lock.target, lock.message));
    }
    lines.text()
}

fn recoveries(RecoveriesView { used, limit, remaining, mode, .. }: RecoveriesView) -> String {
    let used = match (limit, remaining) {
        (Some(limit), Some(left)) => format!("{used} used of {limit}, {left} left"),
        _ => format!("{used} used, no limit"),
    };
    format!("{used} (mode {})", mode_name(mode))
}

fn exemption(exemption: &Exemption) -> String {
    let reason = exemption.reason.as_ref().map_or(String::new(), |reason| format!(" ({reason})"));
    let waiver = if exemption.waive_join_state { ", one join without matching join state" } else { "" };
    let recoveries = print::counted(exemption.recoveries, "recovery", "recoveries");
    let what = match &exemption.key {
        Some(code) => format!("only for the device with key {code}"),
        None => format!("{recoveries}{waiver}"),
    };
    format!("{what}, until {}{reason}", exemption.expires)
}

/// Names and values, one pair a line.
#[derive(Default)]
struct Lines(Vec<(&'static str, String)>);

impl Lines {
    fn add(&mut self, name: &'static str, value: impl ToString) {
        self.add_some(name, Some(value));
    }

    fn add_some(&mut self, name: &'static str, value: Option<impl ToString>) {
        self.0.extend(value.map(|value| (name, value.to_string())));
    }

    fn text(&self) -> String {
        let width = self.0.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
        self.0.iter().fold(String::new(), |text, (name, value)| text + &format!("{name:width$}  {}\n", text::line(value)))
    }
}

/// Columns as wide as their widest cell. What devices and operators wrote is escaped: it must not steer the terminal.
pub(super) fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let header = header.iter().map(ToString::to_string).collect();
    let all: Vec<Vec<String>> =
        std::iter::once(header).chain(rows).map(|row| row.iter().map(|cell| text::line(cell).into_owned()).collect()).collect();
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

fn labels(resource: &Resource) -> String {
    let labels = &resource.metadata().labels;
    if labels.is_empty() { dash() } else { labels_of(labels.iter()) }
}

fn labels_of<'a>(labels: impl Iterator<Item = (&'a String, &'a String)>) -> String {
    let labels: Vec<_> = labels.map(|(name, value)| format!("{name}={value}")).collect();
    labels.join(", ")
}

fn time(time: Option<Timestamp>) -> String {
    time.map_or_else(dash, |time| time.to_string())
}

fn dash() -> String {
    "-".into()
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
