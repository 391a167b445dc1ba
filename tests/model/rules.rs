//! The rules that hold in every state that was reached.

use boundkey::join::{JoinKind, ProblemType, RecoveryMode};

use super::explore::{Explorer, Grant, Outcome, Taken};
use super::moves::OPERATOR;
use super::server::Server;
use super::state::{DEVICE, NONE, State};

impl Explorer {
    /// Judges what became of a request of `who`.
    pub fn check(&mut self, s: &State, who: u8, request: u32, taken: Taken) -> Result<(), String> {
        self.locks_and_counters(s, request, taken)?;
        if !s.thief_acted && who == DEVICE {
            self.alone(s, request, taken)?;
        }
        self.two_holders(s, who, request, taken)?;
        // Where holders go on beside each other, each pays for itself.
        let beside = s.thief_acted && insecure(&self.servers.get(s.server));
        if who == DEVICE && s.lost[0] != NONE && !beside {
            self.lost_answer(s, request, taken)?;
        }
        Ok(())
    }

    fn locks_and_counters(&self, s: &State, request: u32, taken: Taken) -> Result<(), String> {
        let (before, after) = (self.servers.get(s.server), self.servers.get(taken.server));
        // There a certificate is all that tells holders apart.
        if insecure(&before) && after.locks.len() > before.locks.len() && !self.requests.get(request).has_certificate {
            return Err("a lock in mode insecure, and no certificate".into());
        }
        let Ok(grant) = taken.outcome else {
            let same = before.status.step() == after.status.step() && before.status.recovery_count == after.status.recovery_count;
            return if same { Ok(()) } else { Err("a refusal moves counters".into()) };
        };
        if !before.locks.is_empty() {
            return Err("a certificate is issued under a lock".into());
        }
        let recovers = matches!(grant.kind, JoinKind::First | JoinKind::Recovery) && !grant.exempt;
        if recovers && before.status.recoveries(&before.spec).remaining() == Some(0) {
            return Err("a recovery beyond the limit".into());
        }
        let replay = grant.kind == JoinKind::Replay;
        let moved = match (before.status.step(), after.status.step()) {
            (_, None) => false,
            (None, Some(_)) => !replay,
            (Some(old), Some(new)) if replay => old == new,
            // An instance other than that of the last recovery goes on by itself.
            (Some(old), Some(new)) if insecure(&before) => new.is_after(&old) || before.status == after.status,
            (Some(old), Some(new)) => new.is_after(&old),
        };
        if moved {
            Ok(())
        } else {
            Err(format!("counters after a {:?}: {:?}, before {:?}", grant.kind, after.status.step(), before.status.step()))
        }
    }

    /// A device alone is never locked out, and pays one recovery for each certificate that ran out.
    fn alone(&self, s: &State, request: u32, taken: Taken) -> Result<(), String> {
        let before = self.servers.get(s.server);
        let grant = match taken.outcome {
            Ok(grant) => grant,
            Err(ProblemType::Locked) if before.locks.iter().any(|lock| lock == OPERATOR) => return Ok(()),
            Err(ProblemType::NoRecoveriesLeft) if before.status.recoveries(&before.spec).remaining() == Some(0) => return Ok(()),
            Err(why) => return Err(format!("a device alone is refused: {why:?}")),
        };
        if grant.kind != JoinKind::Recovery {
            return Ok(());
        }
        let end = match &before.status.last_step {
            Some(last) if before.restores == 0 => last.not_after,
            // What a restored server forgot, only the device knows; and it may have died between certificate and memory, and so
            // have no certificate of the state it is at.
            _ if !self.requests.get(request).has_certificate => return Ok(()),
            _ => self.remembered(s)?.certificate.ok_or("a certificate of a device that never joined")?.not_after,
        };
        if before.now > end { Ok(()) } else { Err(format!("a recovery is consumed at {}, before {end}", before.now)) }
    }

    fn remembered(&self, s: &State) -> Result<boundkey::join::device::Memory, String> {
        super::holder::memory(&self.mediums.get(s.device))
    }

    /// Between two steps of different holders there is a lock: whoever did not make the last step, and was not given its
    /// answer, gets no further, and locks the token by trying. Beside a lock, only an exemption lets him in.
    fn two_holders(&self, s: &State, who: u8, request: u32, taken: Taken) -> Result<(), String> {
        let server = self.servers.get(s.server);
        if insecure(&server) {
            return Ok(());
        }
        let attempt = server.status.last_step.as_ref().map(|last| last.attempt);
        let sent = self.requests.get(request);
        // A copy taken with the attempt in flight shares the step that the attempt makes; on a restored server with its clock
        // behind, where the attempt makes the step again with the same stamp, that one too.
        let shares = attempt == Some(sent.attempt) || (self.bounds.clock_back && attempt.is_some() && attempt == sent.made_by);
        if s.last & who != 0 || shares {
            return Ok(());
        }
        match taken.outcome {
            Ok(Grant { kind: JoinKind::Replay, .. } | Grant { exempt: true, .. }) => Ok(()),
            // Where a restored server's clock is behind, the other holder is caught one step later.
            Ok(Grant { followed: true, .. }) if self.bounds.clock_back => Ok(()),
            Ok(grant) => Err(format!("two holders go on: {:?} of {who} after a step of {}", grant.kind, s.last)),
            // Without a join state nothing tells a thief from a device that lost it.
            Err(_) if taken.locked || !sent.has_state => Ok(()),
            Err(why) => Err(format!("two holders, and no lock: {who} is refused with {why:?} after a step of {}", s.last)),
        }
    }

    /// A lost answer costs what it would have cost had it arrived: here the device tries again; beside it, one that has the
    /// answer tries at the same time.
    fn lost_answer(&mut self, s: &State, request: u32, taken: Taken) -> Result<(), String> {
        let [lost, answer] = s.lost;
        if self.requests.get(lost).attempt != self.requests.get(request).attempt {
            return Ok(());
        }
        let who = self.device();
        let lucky = self.receive(s.device, who, lost, answer, None);
        let sent = self.prepare(lucky.medium, who, s.server, None);
        let Outcome::Done(sent) = sent.outcome else { return Ok(()) };
        let instead = self.take(s.server, sent);
        let cost = |taken: Taken| self.servers.get(taken.server).status.recovery_count;
        match (taken.outcome, instead.outcome) {
            (Err(why), Ok(_)) => Err(format!("a lost answer leads to {why:?}, the same answer received to a grant")),
            (Ok(_), Ok(_)) if cost(taken) > cost(instead) => Err("a lost answer costs more than the same answer received".into()),
            _ => Ok(()),
        }
    }
}

fn insecure(server: &Server) -> bool {
    server.spec.recovery.mode == RecoveryMode::Insecure
}

/// Whether the device may fail to make a request: only where a thief has changed what the server knows.
pub fn may_give_up(s: &State, why: &str) -> Result<(), String> {
    if s.thief_acted { Ok(()) } else { Err(format!("a device alone cannot make its request: {why}")) }
}
