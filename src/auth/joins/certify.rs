//! What a grant brings: the identity certificate and the outputs, as far as roles allow.

use std::time::Duration;

use boundkey_hal::PublicKey;

use super::outstanding::Outstanding;
use super::{Joins, failed, no_key, server_name};
use crate::ca::{self, CaError, Issued, Profile};
use crate::store::JoinView;
use boundkey_api::names::{self, Subject, first_forbidden};
use boundkey_api::resource::{GREATEST_MAX_TTL, LEAST_MAX_TTL, NODE_ROLE, Token};
use boundkey_join::message::{JoinRequest, MAX_OUTPUTS, OutputRequest, SshHostRequest};
use boundkey_join::server::decision::Grant;
use boundkey_join::{Claims, Id, JoinKind, Problem, ProblemType};
use boundkey_platform::time::Timestamp;

/// Lifetime of a bot's certificates where none is asked for. A host is then given the longest that it may have.
const DEFAULT_TTL: Duration = Duration::from_secs(3600);
/// Longest lifetime where no role says otherwise, for bots.
const MAX_TTL: Duration = Duration::from_secs(24 * 3600);
/// The same for hosts.
const MAX_HOST_TTL: Duration = Duration::from_secs(30 * 24 * 3600);

/// The certificates of one join.
pub(super) struct Certified {
    pub(super) identity: Issued,
    pub(super) outputs: Vec<Issued>,
    /// What a person should know of the outputs.
    pub(super) warnings: Vec<String>,
}

impl Joins {
    /// Roles, then certificates.
    pub(super) fn certify(
        &self,
        request: &JoinRequest,
        grant: &Grant,
        claims: &Claims,
        view: &JoinView,
        outstanding: Outstanding,
        now: Timestamp,
    ) -> Result<Certified, Problem> {
        let token = &view.token.resource;
        let name = &token.metadata.name;
        let bot = token.spec.bot_name.as_deref();
        if let Some(bot_name) = bot.filter(|_| view.bot.is_none()) {
            let why = format!("bot {bot_name}, which the token is for, does not exist");
            return Err(Problem::new(ProblemType::TokenUnusable, why));
        }
        if request.outputs.len() > MAX_OUTPUTS {
            return Err(Problem::new(ProblemType::BadRequest, format!("more than {MAX_OUTPUTS} outputs")));
        }
        some_lifetime(request)?;
        let instance = grant.step.instance.to_string();
        let subject = Subject { bot, token: name, instance: &instance };
        let bad_csr = |why: String| Problem::new(ProblemType::BadRequest, why);
        let common_name = bot.unwrap_or(name);
        let not_of_server = |found: Option<String>| match found {
            Some(name) => Err(Problem::new(ProblemType::NameNotAllowed, server_name::refusal(&name))),
            None => Ok(()),
        };
        let is_of_server = server_name::is_of_server(common_name, &self.server_names);
        not_of_server(is_of_server.then(|| common_name.to_owned()))?;
        let key = ca::subject_key(&request.csr).map_err(bad_csr)?;
        let identity = self.issue(&key, common_name, &Profile::Identity(claims.subject()), (now, grant.not_after))?;
        let mut outputs = Vec::with_capacity(request.outputs.len());
        let mut warnings = Vec::new();
        // A replay gives what the lost answer gave, with the same ends. A step that a clock ahead made counts from now.
        let issued_at = match grant.kind {
            JoinKind::Replay => Timestamp::from_millis(grant.issued_at_ms).min(now),
            JoinKind::First | JoinKind::Recovery | JoinKind::Renewal => now,
        };
        for (index, wanted) in request.outputs.iter().enumerate() {
            names::check(wanted).map_err(|why| Problem::new(ProblemType::BadRequest, why))?;
            not_of_server(server_name::first_in(wanted, &self.server_names))?;
            if let Some(name) = first_forbidden(&view.roles, wanted, subject) {
                return Err(Problem::new(ProblemType::NameNotAllowed, not_allowed(&name, view)));
            }
            if view.roles.is_empty() {
                return Err(Problem::new(ProblemType::NameNotAllowed, not_allowed("any output", view)));
            }
            let (not_after, shortened) = match wanted.ttl {
                Some(ttl) => self.allowed_end(Some(ttl), view, issued_at)?,
                None => (grant.not_after, None),
            };
            warnings.extend(shortened.map(|why| format!("output {}: {why}", index + 1)));
            let times = (issued_at, outstanding.output_end(now, not_after));
            if let Some(ssh) = &wanted.ssh_host {
                outputs.push(self.issue_ssh(ssh, wanted, token, grant.step.instance, times)?);
                continue;
            }
            let profile = Profile::Output {
                dns_names: wanted.dns_names.clone(),
                uris: wanted.uris.clone(),
                ip_addresses: wanted.ip_addresses.clone(),
            };
            let key = ca::subject_key(&wanted.csr).map_err(bad_csr)?;
            outputs.push(self.issue(&key, common_name, &profile, times)?);
        }
        Ok(Certified { identity, outputs, warnings })
    }

    /// Last moment of a certificate of which `wanted` seconds are asked for, counted from `start`; and a warning where that is sooner.
    pub(super) fn allowed_end(
        &self,
        wanted: Option<u64>,
        view: &JoinView,
        start: Timestamp,
    ) -> Result<(Timestamp, Option<String>), Problem> {
        let (ttl, warning) = allowed_ttl(wanted, view);
        let (end, last) = (start.plus(ttl), self.authority.now().ends().map_err(|e| failed(&e))?);
        if end <= last {
            return Ok((end, warning));
        }
        if last <= start {
            // By a clock that is ahead, or truly. Devices judge by clocks of their own, so the certificate is made all the same.
            return Ok((end, Some(format!("the cluster's CA ends at {last}, and the server's clock is past that"))));
        }
        Ok((last, Some(format!("lifetime shortened: the cluster's CA ends at {last}, and all that it signed with it"))))
    }

    fn issue(
        &self,
        key: &PublicKey,
        common_name: &str,
        profile: &Profile,
        times: (Timestamp, Timestamp),
    ) -> Result<Issued, Problem> {
        self.authority.now().issue(key, common_name, profile, times, &*self.random).map_err(unissued)
    }

    fn issue_ssh(
        &self,
        ssh: &SshHostRequest,
        wanted: &OutputRequest,
        token: &Token,
        host: Id,
        times: (Timestamp, Timestamp),
    ) -> Result<Issued, Problem> {
        if !token.has_role(NODE_ROLE) {
            let why = format!("an SSH host certificate is not allowed: it is for tokens with role {NODE_ROLE}");
            return Err(Problem::new(ProblemType::NameNotAllowed, why));
        }
        if !(wanted.csr.is_empty() && wanted.dns_names.is_empty() && wanted.uris.is_empty() && wanted.ip_addresses.is_empty()) {
            return Err(Problem::new(ProblemType::BadRequest, "one output cannot be a certificate of SSH and one of X.509"));
        }
        let key_id = format!("token/{} host/{host}", token.metadata.name);
        self.authority.now().issue_ssh_host(&ssh.key.0, &key_id, &ssh.principals, times, &*self.random).map_err(unissued)
    }
}

/// Names that do not go into a certificate are the device's fault, all else is ours.
fn unissued(e: CaError) -> Problem {
    match e {
        CaError::Names(why) => Problem::new(ProblemType::BadRequest, why),
        CaError::Key(e) => no_key(&e),
        CaError::Certificate(_) | CaError::Chain(_) => failed(&e),
    }
}

/// A certificate for no time is a device's mistake, and would be reported as one that has expired.
fn some_lifetime(request: &JoinRequest) -> Result<(), Problem> {
    if request.outputs.iter().map(|wanted| wanted.ttl).chain([request.ttl]).any(|ttl| ttl == Some(0)) {
        let why = "a certificate that holds for 0 seconds: ask for a second or more, or leave the lifetime out";
        return Err(Problem::new(ProblemType::BadRequest, why));
    }
    Ok(())
}

/// What lifetime the bot or host gets of what it asks for, and a warning where that is less.
fn allowed_ttl(wanted: Option<u64>, view: &JoinView) -> (Duration, Option<String>) {
    let (default, max) = if view.token.resource.is_for_bot() { (DEFAULT_TTL, MAX_TTL) } else { (Duration::MAX, MAX_HOST_TTL) };
    let longest = view.roles.iter().filter_map(|role| role.spec.max_ttl).max().unwrap_or(max);
    // A role from before these bounds has another perhaps.
    let longest = longest.clamp(LEAST_MAX_TTL, GREATEST_MAX_TTL);
    let wanted = wanted.map_or_else(|| default.min(longest), Duration::from_secs);
    if wanted <= longest {
        return (wanted, None);
    }
    let text = humantime::format_duration;
    (longest, Some(format!("lifetime shortened from {} to {}, the longest allowed", text(wanted), text(longest))))
}

fn not_allowed(name: &str, view: &JoinView) -> String {
    let token = &view.token.resource;
    let whose = match &token.spec.bot_name {
        Some(bot) => format!("bot {bot}"),
        None => format!("token {}", token.metadata.name),
    };
    let roles: Vec<_> = view.roles.iter().map(|role| role.metadata.name.as_str()).collect();
    if roles.is_empty() {
        return format!("{name} is not allowed: {whose} has no role that says what it may have");
    }
    format!("{name} is not allowed by role {} of {whose}", roles.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lifetime_of_nothing_is_refused_and_none_is_not() {
        let request = |own: Option<u64>, output: Option<u64>| -> JoinRequest {
            let outputs = serde_json::json!([{ "ttl": output }]);
            let heartbeat = serde_json::json!({ "version": "", "hostname": "", "architecture": "", "keystore": "" });
            let attempt = "00112233-4455-6677-8899-aabbccddeeff";
            let request = serde_json::json!({
                "token": "t", "attempt": attempt, "csr": "", "ttl": own, "outputs": outputs, "heartbeat": heartbeat
            });
            serde_json::from_value(request).unwrap()
        };
        for (own, output) in [(Some(0), None), (None, Some(0)), (Some(1), Some(0))] {
            assert_eq!(some_lifetime(&request(own, output)).unwrap_err().kind, ProblemType::BadRequest);
        }
        assert!(some_lifetime(&request(None, None)).is_ok() && some_lifetime(&request(Some(1), Some(u64::MAX))).is_ok());
    }
}
