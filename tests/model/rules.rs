//! The rules that hold in every state that was reached. Their numbers are those of `docs/model.md`.

use boundkey::join::{JoinKind, ProblemType};

use super::explore::{Explorer, Grant, Outcome, Taken};
use super::server::{OPERATOR, Server};
use super::state::{COPIES, DEVICE, InFlight, NONE, State};

/// A request that arrives.
#[derive(Clone, Copy)]
pub struct Sent {
    request: u32,
    /// Whether nothing came between its challenge and its arrival.
    now: bool,
    behind: bool,
}

impl Sent {
    /// A request whose challenge was made at this moment.
    pub fn now(request: u32) -> Self {
        Self { request, now: true, behind: false }
    }

    /// One that left earlier.
    pub fn earlier(in_flight: InFlight) -> Self {
        Self { request: in_flight.request, now: false, behind: in_flight.behind }
    }
}

impl Explorer {
    /// Judges what became of a request of `who`.
    pub fn check(&mut self, s: &State, who: u8, sent: Sent, taken: Taken) -> Result<(), String> {
        self.locks_and_counters(s, who, sent, taken)?;
        if s.acted == 0 && who == DEVICE {
            self.alone(s, sent, taken)?;
        }
        if s.strangers & who != 0 {
            return self.stranger(s, who, sent, taken);
        }
        self.in_step(s, who, sent, taken)?;
        self.two_holders(s, who, sent, taken)?;
        // Where holders go on beside each other, each pays for itself.
        let beside = s.acted != 0 && self.servers.get(s.server).is_insecure();
        if who == DEVICE && sent.now && s.lost[0] != NONE && !beside {
            self.lost_answer(s, sent.request, taken)?;
        }
        Ok(())
    }

    fn locks_and_counters(&self, s: &State, who: u8, sent: Sent, taken: Taken) -> Result<(), String> {
        let (before, after) = (self.servers.get(s.server), self.servers.get(taken.server));
        // There a certificate is all that tells holders apart.
        if before.is_insecure() && after.locks.len() > before.locks.len() && !self.requests.get(sent.request).has_certificate {
            return Err("a lock in mode insecure, and no certificate".into());
        }
        let Ok(grant) = taken.outcome else {
            let same = before.status == after.status;
            return if same { Ok(()) } else { Err("a refusal changes the token".into()) };
        };
        if grant.by_code && !self.has_code(s, who) {
            return Err(format!("{who} passes by a recovery code that it never had"));
        }
        let opened = |lock: &&str| grant.by_code && **lock != *OPERATOR;
        if !before.locks.iter().all(opened) {
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
            (Some(old), Some(new)) if before.is_insecure() => new.is_after(&old) || old == new,
            (Some(old), Some(new)) => new.is_after(&old),
        };
        if moved {
            Ok(())
        } else {
            Err(format!("counters after a {:?}: {:?}, before {:?}", grant.kind, after.status.step(), before.status.step()))
        }
    }

    /// Whether `who` has the key that the pending recovery code names.
    fn has_code(&self, s: &State, who: u8) -> bool {
        let pending = self.servers.get(s.server).code;
        let copied = s.copies.iter().zip(COPIES).any(|(copy, set)| set == who && copy.code == pending);
        pending != 0 && (who == DEVICE || copied)
    }

    /// A device alone is never locked out, and pays one recovery for each certificate that ran out.
    fn alone(&self, s: &State, sent: Sent, taken: Taken) -> Result<(), String> {
        let before = self.servers.get(s.server);
        let named = self.requests.get(sent.request).challenge.key;
        let grant = match taken.outcome {
            Ok(grant) => grant,
            Err(_) if self.gains_lock(s, taken) => return Err("a device alone is locked".into()),
            // Its answer comes, or the next challenge.
            Err(ProblemType::ChallengeStale) if !sent.now => return Ok(()),
            Err(ProblemType::Locked) if !sent.now && before.awaits_code() => return Ok(()),
            // Where hosts share a key, a challenge does not tell whether it was rotated away since.
            Err(ProblemType::KeyNotProven) if !sent.now && before.is_insecure() && before.bound() != named => return Ok(()),
            Err(why) if self.may_refuse(s, why) => return Ok(()),
            Err(why) => return Err(format!("a device alone is refused: {why:?}")),
        };
        // Where hosts share a key, a request that names no instance is tied to no revision: repeated, it may recover once more.
        let repeated = before.is_insecure() && !sent.now;
        if grant.kind != JoinKind::Recovery || grant.by_code || repeated {
            return Ok(());
        }
        let end = match &before.status.last_step {
            Some(last) if before.restores == 0 => last.not_after,
            // What a restored server forgot, only the device knows; and it may have died between certificate and memory, and so
            // have no certificate of the state it is at.
            _ if !self.requests.get(sent.request).has_certificate => return Ok(()),
            _ => self.remembered(s)?.certificate.ok_or("a certificate of a device that never joined")?.not_after,
        };
        if before.now > end { Ok(()) } else { Err(format!("a recovery is consumed at {}, before {end}", before.now)) }
    }

    fn remembered(&self, s: &State) -> Result<boundkey::join::device::Memory, String> {
        super::holder::memory(&self.mediums.get(s.device))
    }

    fn gains_lock(&self, s: &State, taken: Taken) -> bool {
        self.servers.get(taken.server).locks.len() > self.servers.get(s.server).locks.len()
    }

    /// What may keep out a device that is in step: an operator, the limit, and a pace that steps have used up.
    fn may_refuse(&self, s: &State, why: ProblemType) -> bool {
        let server = self.servers.get(s.server);
        match why {
            // A recovery code opens the server's own locks; one for another key, or that was never used, keeps it out.
            ProblemType::Locked => {
                !server.locks.is_empty() && !Self::opens(s, &server) || server.awaits_code() && s.code != server.code
            }
            ProblemType::NoRecoveriesLeft => server.status.recoveries(&server.spec).remaining() == Some(0),
            ProblemType::PaceExceeded => self.bounds.pace && s.allowed == 0,
            _ => false,
        }
    }

    /// Whether the device has the pending code, and no operator stops it.
    fn opens(s: &State, server: &Server) -> bool {
        server.awaits_code() && s.code == server.code && !server.locks.contains(&OPERATOR)
    }

    /// The device in step is let in, however late its messages are, and never locks; and so is the one with the code.
    fn in_step(&self, s: &State, who: u8, sent: Sent, taken: Taken) -> Result<(), String> {
        let server = self.servers.get(s.server);
        if who != DEVICE || server.is_insecure() || s.unsettled || self.bounds.clock_back {
            return Ok(());
        }
        let Err(why) = taken.outcome else { return Ok(()) };
        let fits = Self::opens(s, &server);
        if s.in_step & DEVICE == 0 && !fits {
            return Ok(());
        }
        if self.gains_lock(s, taken) {
            return Err("a holder in step is locked by its own request".into());
        }
        if sent.now && !self.may_refuse(s, why) {
            let which = if fits { "with the code" } else { "in step" };
            return Err(format!("a holder {which} is refused: {why:?}"));
        }
        Ok(())
    }

    /// After a recovery code or a reset a copy from before gets nothing, and locks nobody.
    fn stranger(&self, s: &State, who: u8, sent: Sent, taken: Taken) -> Result<(), String> {
        match taken.outcome {
            // A reset leaves the device its attempt in flight, and a key that was never bound: a copy that has both shares the step.
            Ok(Grant { kind: JoinKind::Replay, .. }) if self.shares(s, sent.request) => Ok(()),
            Ok(grant) => Err(format!("a stranger is let in: {:?} of {who}", grant.kind)),
            Err(_) if self.gains_lock(s, taken) => Err(format!("a stranger locks: {who}")),
            Err(_) => Ok(()),
        }
    }

    /// Whether `who` does not know the last step, and can only lock.
    pub fn is_behind(&self, s: &State, who: u8, request: u32) -> bool {
        // Hosts that share a key go on beside each other: none is behind.
        let beside = self.servers.get(s.server).is_insecure();
        !beside && s.in_step & who == 0 && !self.shares(s, request)
    }

    /// A copy taken with the attempt in flight shares the step that the attempt makes; on a restored server with its clock behind,
    /// where the attempt makes the step again with the same stamp, that one too.
    fn shares(&self, s: &State, request: u32) -> bool {
        let (server, sent) = (self.servers.get(s.server), self.requests.get(request));
        let Some(last) = &server.status.last_step else { return false };
        let same_key = server.bound().is_some_and(|key| key.to_string() == sent.key);
        let same = last.attempt == sent.attempt && same_key;
        same || (self.bounds.clock_back && sent.made_by == Some(last.attempt))
    }

    /// Whether the request is of a holder that has nothing from after the last step by a recovery code, and whether a copy was taken
    /// after the key for the code was made, which has as much.
    fn shares_code(&self, s: &State, request: u32) -> bool {
        let trusted_from = self.servers.get(s.server).status.trusted_from_ms;
        let is_older = self.requests.get(request).issued_ms < trusted_from;
        is_older && s.copies.iter().any(|copy| copy.is_there() && copy.code != 0 && copy.code == s.code)
    }

    /// Between two steps of different holders there is a lock: a holder that did not make the last step, and was not given its
    /// answer, gets no further, and locks the token by trying. Beside a lock, only an exemption lets it in.
    fn two_holders(&self, s: &State, who: u8, sent: Sent, taken: Taken) -> Result<(), String> {
        let server = self.servers.get(s.server);
        if !self.is_behind(s, who, sent.request) {
            return Ok(());
        }
        let request = self.requests.get(sent.request);
        match taken.outcome {
            Ok(Grant { kind: JoinKind::Replay, .. } | Grant { by_code: true, .. }) => Ok(()),
            Ok(Grant { exempt: true, .. }) if s.waiver => Ok(()),
            // Where a restored server's clock is behind, the other holder is caught one step later.
            Ok(Grant { followed: true, .. }) if self.bounds.clock_back => Ok(()),
            Ok(grant) => Err(format!("two holders go on: {:?} of {who} after a step of {}", grant.kind, s.in_step)),
            // Without a join state nothing tells a copy from a device that lost it.
            Err(_) if taken.locked || server.awaits_code() || !request.has_state => Ok(()),
            // What was trusted before the code is no more, and the key of the code may have been rotated away since.
            Err(ProblemType::KeyNotProven) if self.shares_code(s, sent.request) => Ok(()),
            // An exemption would let it in, and waits for it.
            Err(ProblemType::ChallengeStale) if s.waiver => Ok(()),
            Err(ProblemType::PaceExceeded) if s.waiver && s.allowed == 0 => Ok(()),
            Err(ProblemType::ChallengeStale) if !sent.now => {
                // It may miss once: its challenge was made before the step. And once more for each order to rotate, where the other
                // follows the order between this holder's challenge and its request.
                let rotated = server.bound() != request.challenge.key;
                // Stamps made by a clock that is behind tell nothing, until it has caught up.
                if sent.behind && !rotated && !self.bounds.clock_back {
                    return Err(format!(
                        "two holders, and no lock: {who} was out of step and had asked for its challenge after that"
                    ));
                }
                Ok(())
            }
            Err(why) => Err(format!("two holders, and no lock: {who} is refused with {why:?} after a step of {}", s.in_step)),
        }
    }

    /// Never is a copy in and the device out, without a lock: where the device's next try is refused, that of no copy is granted.
    pub fn shut_out(&mut self, s: &State, request: u32, taken: Taken) -> Result<(), String> {
        let server = self.servers.get(s.server);
        let Err(why) = taken.outcome else { return Ok(()) };
        let copies = (0..COPIES.len()).filter(|i| s.copies[*i].is_there()).collect::<Vec<_>>();
        // Out of recoveries, the device knows why; without a join state it is as the copy from before the first answer.
        let known = self.shares_code(s, request)
            || !self.requests.get(request).has_state
            || (s.in_step & DEVICE != 0 && self.may_refuse(s, why));
        if copies.is_empty() || server.is_insecure() || taken.locked || server.awaits_code() || known {
            return Ok(());
        }
        match copies.into_iter().find(|i| self.copy_gets_in(s, *i)) {
            Some(i) => Err(format!("copy {} in, device out with {why:?}, and no lock", COPIES[i])),
            None => Ok(()),
        }
    }

    /// A lost answer costs what it would have cost had it arrived: here the device tries again; beside it, one that has the
    /// answer tries at the same time.
    fn lost_answer(&mut self, s: &State, request: u32, taken: Taken) -> Result<(), String> {
        let [lost, answer] = s.lost;
        if self.requests.get(lost).attempt != self.requests.get(request).attempt {
            return Ok(());
        }
        let who = self.device(s);
        let lucky = self.receive(s.device, who, lost, answer, None);
        let sent = self.prepare(lucky.medium, who, s.server, None);
        let Outcome::Done(sent) = sent.outcome else { return Ok(()) };
        let instead = self.take(s.server, sent);
        let cost = |taken: Taken| self.servers.get(taken.server).status.recovery_count;
        match (taken.outcome, instead.outcome) {
            (Err(why), Ok(_)) => Err(format!("a lost answer leads to {why:?}, the same answer received to a grant")),
            // A device that comes by a code makes a step whatever it has lost; the exemption pays.
            (Ok(grant), Ok(_)) if cost(taken) > cost(instead) && !grant.by_code => {
                Err("a lost answer costs more than the same answer received".into())
            }
            _ => Ok(()),
        }
    }
}

/// Whether the device may fail to make a request: only where a copy has changed what the server knows.
pub fn may_give_up(s: &State, why: &str) -> Result<(), String> {
    if s.acted != 0 { Ok(()) } else { Err(format!("a device alone cannot make its request: {why}")) }
}
