//! What can happen in a state to the device, its messages and the time; `copies.rs` and `operator.rs` have the rest.
//!
//! Some orders of events are left out, as they differ in nothing: what a holder does between the challenge's coming and the
//! request's leaving touches no one else, so it is one move.

use std::time::Duration;

use boundkey::join::JoinKind;
use boundkey::join::server::decision::pace;

use super::explore::{Explorer, Outcome, Taken};
use super::holder::{Manner, Who};
use super::medium::Medium;
use super::rules::{Sent, may_give_up};
use super::server::{ALLOWED, Server, WHILE};
use super::state::{COPIES, Copied, DEVICE, InFlight, Left, Move, NONE, State};

/// A move that breaks a rule, and the rule.
pub type Broken = (Move, String);

impl Explorer {
    /// A new device, and a token that nobody has joined with.
    pub fn first(&mut self) -> State {
        let server = self.server(Server::new(self.bounds.limit, self.bounds.mode, self.bounds.pace));
        let device = self.medium(Medium::default());
        State {
            server,
            backup: NONE,
            device,
            waiting: NONE,
            network: [InFlight::NOTHING; 2],
            answer: NONE,
            copies: [Copied::NONE; 2],
            lost: [NONE; 2],
            in_step: DEVICE,
            unsettled: false,
            strangers: 0,
            strangers_then: 0,
            acted: 0,
            code: 0,
            waiver: false,
            allowed: if self.bounds.pace { ALLOWED } else { 0 },
            left: self.bounds.left,
        }
    }

    /// The device, which operators tell each new registration secret.
    pub fn device(&self, s: &State) -> Who {
        let secret = self.servers.get(s.server).resets;
        Who { holder: DEVICE, manner: Manner::Honest, client: self.bounds.client, secret }
    }

    /// Every next state, or the rule that a move breaks.
    pub fn moves(&mut self, s: &State, next: &mut Vec<(Move, State)>) -> Result<(), Broken> {
        self.send(s, next).map_err(|why| (Move::Send, why))?;
        for (i, in_flight) in s.network.into_iter().enumerate().filter(|(_, sent)| sent.request != NONE) {
            let step = Move::Arrive(u8::from(i == 1));
            let arrived = self.arrive(s, in_flight).map_err(|why| (step, why))?;
            next.extend(arrived.map(|state| (step, state)));
        }
        if s.answer != NONE {
            next.push((Move::LoseAnswer, State { waiting: NONE, answer: NONE, ..*s }));
            self.take_answer(s, next).map_err(|why| (Move::Receive, why))?;
        }
        self.make_code(s, next).map_err(|why| (Move::RecoveryCode, why))?;
        self.cut_power(s, next);
        self.copy(s, next)?;
        self.pass_time(s, next);
        self.operate(s, next);
        Ok(())
    }

    fn send(&mut self, s: &State, next: &mut Vec<(Move, State)>) -> Result<(), String> {
        let who = self.device(s);
        let worked = self.prepare(s.device, who, s.server, None);
        match worked.outcome {
            Outcome::Done(request) => {
                // What becomes of it where nothing comes between.
                let taken = self.take(s.server, request);
                self.check(s, DEVICE, Sent::now(request), taken)?;
                self.shut_out(s, request, taken)?;
                let sent = InFlight { request, behind: self.is_behind(s, DEVICE, request) };
                let state = State { device: worked.medium, waiting: request, answer: NONE, ..*s };
                let [newest, older] = s.network;
                if newest.request == request {
                    next.push((Move::Send, State { network: [sent, older], ..state }));
                } else if self.bounds.late {
                    next.push((Move::Send, State { network: [sent, newest], ..state }));
                    if older.request != NONE {
                        next.push((Move::SendKeepingOlder, State { network: [sent, older], ..state }));
                    }
                } else {
                    next.push((Move::Send, State { network: [sent, InFlight::NOTHING], ..state }));
                }
            }
            Outcome::Failed(why) => may_give_up(s, &why)?,
            Outcome::Dead => unreachable!("it was to live"),
        }
        let Some(deaths) = s.left.deaths.checked_sub(1) else { return Ok(()) };
        let left = Left { deaths, ..s.left };
        for call in 0..worked.calls {
            let medium = self.prepare(s.device, who, s.server, Some(call)).medium;
            next.push((Move::DieSending(call), State { device: medium, waiting: NONE, answer: NONE, left, ..*s }));
        }
        Ok(())
    }

    /// A request of the device reaches the server, and may do so again. `None` where a bound ends it.
    fn arrive(&mut self, s: &State, in_flight: InFlight) -> Result<Option<State>, String> {
        let request = in_flight.request;
        let taken = self.take(s.server, request);
        self.check(s, DEVICE, Sent::earlier(in_flight), taken)?;
        let Some((mut after, answer)) = self.after(s, DEVICE, taken) else { return Ok(None) };
        match answer {
            Some(answer) => {
                if s.waiting == request {
                    after.answer = answer;
                }
                after.lost = [request, answer];
            }
            None if s.waiting == request && s.answer == NONE => after.waiting = NONE,
            None => {}
        }
        Ok(Some(after))
    }

    fn take_answer(&mut self, s: &State, next: &mut Vec<(Move, State)>) -> Result<(), String> {
        let who = self.device(s);
        let worked = self.receive(s.device, who, s.waiting, s.answer, None);
        if let Outcome::Failed(why) = &worked.outcome {
            return Err(format!("the device cannot take its answer: {why}"));
        }
        let gone = State { waiting: NONE, answer: NONE, ..*s };
        next.push((Move::Receive, State { device: worked.medium, lost: [NONE; 2], ..gone }));
        let Some(deaths) = s.left.deaths.checked_sub(1) else { return Ok(()) };
        for call in 0..worked.calls {
            let medium = self.receive(s.device, who, s.waiting, s.answer, Some(call)).medium;
            let left = Left { deaths, ..s.left };
            next.push((Move::DieReceiving(call), State { device: medium, left, ..gone }));
        }
        Ok(())
    }

    /// No daemon runs beside it: the command takes the lock of the storage directory.
    fn make_code(&mut self, s: &State, next: &mut Vec<(Move, State)>) -> Result<(), String> {
        let Some(codes) = s.left.codes.checked_sub(1).filter(|_| super::holder::has_joined(&self.mediums.get(s.device))) else {
            return Ok(());
        };
        let (device, code) = self.recovery_code(s.device, self.device(s))?;
        let left = Left { codes, ..s.left };
        next.push((Move::RecoveryCode, State { device, code, waiting: NONE, answer: NONE, left, ..*s }));
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

    fn pass_time(&mut self, s: &State, next: &mut Vec<(Move, State)>) {
        let server = self.servers.get(s.server);
        if let Some(time) = s.left.time.checked_sub(1) {
            let later = self.server(server.later(WHILE));
            let allowed = if self.bounds.pace { u8::try_from(pace::BURST).expect("few") } else { 0 };
            let state = State { server: later, allowed, left: Left { time, ..s.left }, ..*s };
            next.push((Move::Time, self.without_expired(state)));
        }
        if let Some(ticks) = s.left.ticks.checked_sub(1) {
            let later = self.server(server.later(Duration::from_millis(pace::INTERVAL_MS)));
            let allowed = s.allowed + u8::from(self.bounds.pace);
            next.push((Move::Tick, State { server: later, allowed, left: Left { ticks, ..s.left }, ..*s }));
        }
    }

    /// Without the requests whose challenge holds no more: of these the server looks at nothing else, now or later.
    pub fn without_expired(&self, mut state: State) -> State {
        let server = self.servers.get(state.server);
        let holds = |in_flight: InFlight| {
            let is_there = in_flight.request != NONE;
            is_there && server.opened(&self.requests.get(in_flight.request), self.bounds.fault).is_ok()
        };
        let kept = |in_flight| if holds(in_flight) { in_flight } else { InFlight::NOTHING };
        state.network = state.network.map(kept);
        state.copies = state.copies.map(|copy| Copied { late: kept(copy.late), ..copy });
        if state.answer == NONE && state.network[0].request != state.waiting {
            state.waiting = NONE;
        }
        state
    }
}

impl Explorer {
    /// What a request of `who` makes of the state, and the answer. `None` where a bound ends it.
    pub fn after(&self, s: &State, who: u8, taken: Taken) -> Option<(State, Option<u32>)> {
        let mut after = State { server: taken.server, ..*s };
        if who != DEVICE && (taken.outcome.is_ok() || taken.server != s.server) {
            after.acted |= who;
        }
        let Ok(grant) = taken.outcome else { return Some((after, None)) };
        if grant.kind == JoinKind::Replay {
            after.in_step |= who;
            after.strangers &= !who;
            // There a replay writes the instance, so that there is no end of other revisions.
            if self.servers.get(s.server).is_insecure() {
                after.left.steps = s.left.steps.checked_sub(1)?;
            }
        } else {
            after.left.steps = s.left.steps.checked_sub(1)?;
            after.allowed = s.allowed.saturating_sub(1);
            after.in_step = who;
            after.unsettled = false;
        }
        if grant.by_code {
            let code = self.servers.get(s.server).code;
            after.strangers |= s.without_code(code);
        }
        if grant.by_code || (grant.exempt && s.waiver) {
            after.let_in();
        }
        after.waiver = false;
        Some((after, Some(grant.answer)))
    }
}

impl State {
    /// The copies that were taken before the key was made that `code` names.
    fn without_code(&self, code: u8) -> u8 {
        let without = |(copy, set): (&Copied, u8)| if copy.is_there() && copy.code != code { set } else { 0 };
        self.copies.iter().zip(COPIES).map(without).sum()
    }

    /// Somebody was let in beyond the join state: who had asked for a challenge before may have been in step then.
    fn let_in(&mut self) {
        let excused = |in_flight: InFlight| InFlight { behind: false, ..in_flight };
        self.network = self.network.map(excused);
        self.copies = self.copies.map(|copy| Copied { late: excused(copy.late), ..copy });
    }
}
