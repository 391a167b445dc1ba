//! What can happen in a state.
//!
//! Some orders of events are left out, as they differ in nothing: a holder's own work between its challenge and its request
//! touches no one else, so it is one move; a thief's request that arrives late is the same as one made late.

use std::collections::BTreeSet;
use std::time::Duration;

use boundkey::join::server::record::Recovery;
use boundkey::join::{JoinKind, RecoveryMode};

use super::explore::{Explorer, Outcome, Taken};
use super::holder::{Manner, Who};
use super::medium::Medium;
use super::rules::may_give_up;
use super::server::Server;
use super::state::{DEVICE, Left, Move, NONE, State, THIEF};

/// A move that breaks a rule, and the rule.
pub type Broken = (Move, String);

const MANNERS: [Manner; 4] = [Manner::Honest, Manner::NewAttempt, Manner::NoCertificate, Manner::NoJoinState];

impl Explorer {
    /// A new device, and a token that nobody has joined with.
    pub fn first(&mut self) -> State {
        let server = self.server(Server::new(self.bounds.limit, self.bounds.mode));
        let device = self.medium(Medium::default());
        State {
            server,
            backup: NONE,
            device,
            waiting: NONE,
            network: [NONE; 2],
            answer: NONE,
            thief: NONE,
            copy: NONE,
            lost: [NONE; 2],
            last: DEVICE,
            thief_acted: false,
            left: self.bounds.left,
        }
    }

    pub fn device(&self) -> Who {
        Who { holder: DEVICE, manner: Manner::Honest, client: self.bounds.client }
    }

    /// Every next state, or the rule that a move breaks.
    pub fn moves(&mut self, s: &State, next: &mut Vec<(Move, State)>) -> Result<(), Broken> {
        self.send(s, next).map_err(|why| (Move::Send, why))?;
        for (i, request) in s.network.into_iter().enumerate().filter(|(_, request)| *request != NONE) {
            let step = Move::Arrive(u8::from(i == 1));
            let arrived = self.arrive(s, request).map_err(|why| (step, why))?;
            next.extend(arrived.map(|state| (step, state)));
        }
        if s.answer != NONE {
            next.push((Move::LoseAnswer, State { waiting: NONE, answer: NONE, ..*s }));
            self.take_answer(s, next).map_err(|why| (Move::Receive, why))?;
        }
        self.cut_power(s, next);
        self.steal(s, next)?;
        self.pass_time(s, next);
        self.operate(s, next);
        Ok(())
    }

    fn send(&mut self, s: &State, next: &mut Vec<(Move, State)>) -> Result<(), String> {
        let worked = self.prepare(s.device, self.device(), s.server, None);
        match worked.outcome {
            Outcome::Done(request) => {
                let network = if s.network.contains(&request) { s.network } else { [request, s.network[0]] };
                let state = State { device: worked.medium, waiting: request, network, answer: NONE, ..*s };
                next.push((Move::Send, state));
            }
            Outcome::Failed(why) => may_give_up(s, &why)?,
            Outcome::Dead => unreachable!("it was to live"),
        }
        let Some(deaths) = s.left.deaths.checked_sub(1) else { return Ok(()) };
        let left = Left { deaths, ..s.left };
        for call in 0..worked.calls {
            let medium = self.prepare(s.device, self.device(), s.server, Some(call)).medium;
            next.push((Move::DieSending(call), State { device: medium, waiting: NONE, answer: NONE, left, ..*s }));
        }
        Ok(())
    }

    /// A request of the device reaches the server. `None` where a bound ends it.
    fn arrive(&mut self, s: &State, request: u32) -> Result<Option<State>, String> {
        let taken = self.take(s.server, request);
        self.check(s, DEVICE, request, taken)?;
        let Some((mut after, answer)) = after(s, DEVICE, taken) else { return Ok(None) };
        match answer {
            Some(answer) => {
                let awaited = s.waiting == request;
                (after.waiting, after.answer) = if awaited { (request, answer) } else { (NONE, NONE) };
                after.lost = [request, answer];
            }
            None if s.waiting == request => after.waiting = NONE,
            None => {}
        }
        if after.server == s.server && answer.is_none() {
            after.network = s.network.map(|other| if other == request { NONE } else { other });
        }
        Ok(Some(after))
    }

    fn take_answer(&mut self, s: &State, next: &mut Vec<(Move, State)>) -> Result<(), String> {
        let worked = self.receive(s.device, self.device(), s.waiting, s.answer, None);
        if let Outcome::Failed(why) = &worked.outcome {
            return Err(format!("the device cannot take its answer: {why}"));
        }
        let gone = State { waiting: NONE, answer: NONE, ..*s };
        next.push((Move::Receive, State { device: worked.medium, lost: [NONE; 2], ..gone }));
        let Some(deaths) = s.left.deaths.checked_sub(1) else { return Ok(()) };
        for call in 0..worked.calls {
            let medium = self.receive(s.device, self.device(), s.waiting, s.answer, Some(call)).medium;
            let left = Left { deaths, ..s.left };
            next.push((Move::DieReceiving(call), State { device: medium, left, ..gone }));
        }
        Ok(())
    }

    fn cut_power(&mut self, s: &State, next: &mut Vec<(Move, State)>) {
        let Some(cuts) = s.left.cuts.checked_sub(1) else { return };
        let left = Left { cuts, ..s.left };
        for (i, medium) in self.cuts(s.device).iter().enumerate() {
            let state = State { device: *medium, waiting: NONE, answer: NONE, left, ..*s };
            next.push((Move::PowerCut(u8::try_from(i).expect("few")), state));
        }
    }

    fn steal(&mut self, s: &State, next: &mut Vec<(Move, State)>) -> Result<(), Broken> {
        if let Some(copies) = s.left.copies.checked_sub(1).filter(|_| super::holder::has_key(&self.mediums.get(s.device))) {
            let copied = self.mediums.get(s.device).copied();
            let copy = self.medium(copied);
            let left = Left { copies, ..s.left };
            next.push((Move::Copy, State { thief: copy, copy, last: DEVICE | THIEF, left, ..*s }));
        }
        if s.thief == NONE {
            return Ok(());
        }
        let mediums = if s.thief == s.copy { vec![(s.thief, false)] } else { vec![(s.thief, false), (s.copy, true)] };
        for (medium, from_copy) in mediums {
            for manner in MANNERS {
                let who = Who { holder: THIEF, manner, client: super::holder::Client::Real };
                let worked = self.prepare(medium, who, s.server, None);
                let Outcome::Done(request) = worked.outcome else { continue };
                let step = |takes| Move::Steal { manner, from_copy, takes };
                let taken = self.take(s.server, request);
                self.check(s, THIEF, request, taken).map_err(|why| (step(false), why))?;
                let Some((after, answer)) = after(s, THIEF, taken) else { continue };
                let sent = State { thief: worked.medium, ..after };
                next.push((step(false), sent));
                if let Some(answer) = answer {
                    let received = self.receive(worked.medium, who, request, answer, None);
                    if received.outcome == Outcome::Done(0) {
                        next.push((step(true), State { thief: received.medium, ..sent }));
                    }
                }
            }
        }
        Ok(())
    }

    fn pass_time(&mut self, s: &State, next: &mut Vec<(Move, State)>) {
        let Some(time) = s.left.time.checked_sub(1) else { return };
        let mut server = (*self.servers.get(s.server)).clone();
        server.now = server.now.plus(Duration::from_secs(40 * 60));
        // Requests under way stay: a certificate may run out between its request's leaving and its arrival.
        let state = State { server: self.server(server), left: Left { time, ..s.left }, ..*s };
        next.push((Move::Time, state));
    }

    fn operate(&mut self, s: &State, next: &mut Vec<(Move, State)>) {
        let now = self.servers.get(s.server);
        let stale = State { network: [NONE; 2], waiting: NONE, answer: NONE, ..*s };
        if let Some(rotations) = s.left.rotations.checked_sub(1) {
            let server = self.server(now.rotate());
            next.push((Move::Rotate, State { server, left: Left { rotations, ..s.left }, ..stale }));
        }
        if s.backup == NONE && s.left.restores > 0 {
            next.push((Move::Backup, State { backup: s.server, ..*s }));
        }
        if let Some(restores) = s.left.restores.checked_sub(1).filter(|_| s.backup != NONE) {
            let back = self.bounds.clock_back;
            let clock = |now: boundkey::time::Timestamp| {
                if back { now.minus(Duration::from_secs(600)) } else { now.plus(Duration::from_secs(1)) }
            };
            let restored = now.restored(&self.servers.get(s.backup), clock);
            let server = self.server(restored);
            let left = Left { restores, ..s.left };
            // Whoever comes first is followed.
            let last = if s.thief == NONE { DEVICE } else { DEVICE | THIEF };
            next.push((Move::Restore, State { server, backup: NONE, last, lost: [NONE; 2], left, ..stale }));
        }
        self.edit(s, stale, next);
        if let Some(exemptions) = s.left.exemptions.checked_sub(1) {
            let server = self.server(now.exempt());
            next.push((Move::Exempt, State { server, left: Left { exemptions, ..s.left }, ..stale }));
        }
        if let Some(locks) = s.left.locks.checked_sub(1) {
            let mut locked = (*now).clone();
            locked.locks.push(OPERATOR.into());
            next.push((Move::Lock, State { server: self.server(locked), left: Left { locks, ..s.left }, ..*s }));
        }
        if now.locks.iter().any(|lock| lock == OPERATOR) {
            let mut free = (*now).clone();
            free.locks.retain(|lock| lock != OPERATOR);
            next.push((Move::Unlock, State { server: self.server(free), ..*s }));
        }
    }
}

impl Explorer {
    /// Limit and mode, changed at any time. Either makes challenges stale, and no more.
    fn edit(&mut self, s: &State, stale: State, next: &mut Vec<(Move, State)>) {
        let now = self.servers.get(s.server);
        let Recovery { limit, mode } = now.spec.recovery.clone();
        if let Some(limits) = s.left.limits.checked_sub(1) {
            let left = Left { limits, ..s.left };
            // None, what is used up by now, one more, and plenty.
            let count = now.status.recovery_count;
            for limit in BTreeSet::from([0, count, count + 1, 9]).into_iter().filter(|other| *other != limit) {
                let server = self.server(now.with_recovery(Recovery { limit, mode }));
                next.push((Move::Limit(limit), State { server, left, ..stale }));
            }
        }
        if let Some(modes) = s.left.modes.checked_sub(1) {
            let left = Left { modes, ..s.left };
            let all = [RecoveryMode::Standard, RecoveryMode::Relaxed, RecoveryMode::Insecure];
            for mode in all.into_iter().filter(|other| *other != now.spec.recovery.mode) {
                let server = self.server(now.with_recovery(Recovery { limit, mode }));
                // Two that were both let in: whoever comes first goes on, and which answers were lost by then is not known.
                let beside = s.thief != NONE && now.spec.recovery.mode == RecoveryMode::Insecure;
                let (last, lost) = if beside { (DEVICE | THIEF, [NONE; 2]) } else { (s.last, s.lost) };
                next.push((Move::Mode(mode), State { server, lost, last, left, ..stale }));
            }
        }
    }
}

/// An operator's own lock.
pub const OPERATOR: &str = "operator";

/// What a request of `who` makes of the state, and the answer. What changes the token makes all other requests stale.
fn after(s: &State, who: u8, taken: Taken) -> Option<(State, Option<u32>)> {
    let mut after = State { server: taken.server, ..*s };
    let changed = taken.outcome.is_ok() || taken.server != s.server;
    if changed {
        (after.network, after.waiting, after.answer) = ([NONE; 2], NONE, NONE);
        after.thief_acted |= who == THIEF;
    }
    let Ok(grant) = taken.outcome else { return Some((after, None)) };
    if grant.kind == JoinKind::Replay {
        after.last |= who;
    } else {
        after.left.steps = s.left.steps.checked_sub(1)?;
        after.last = who;
    }
    Some((after, Some(grant.answer)))
}
