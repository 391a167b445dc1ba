//! What the copies of the device's medium do: each at any speed, in any manner, and beside each other.

use super::explore::{Explorer, Outcome};
use super::holder::{self, Client, Manner, Who};
use super::moves::Broken;
use super::rules::Sent;
use super::state::{COPIES, Copied, DEVICE, InFlight, Left, Move, NONE, State};

impl Explorer {
    /// The device's medium is copied, and copies join.
    pub fn copy(&mut self, s: &State, next: &mut Vec<(Move, State)>) -> Result<(), Broken> {
        self.copy_medium(s, next);
        for (i, copy) in s.copies.into_iter().enumerate().filter(|(_, copy)| copy.is_there()) {
            for (medium, from_original) in copy.mediums() {
                for manner in self.bounds.manners {
                    self.copy_joins(s, i, medium, *manner, from_original, next)?;
                }
            }
            if self.bounds.late_copy {
                self.keep_back(s, i, next);
                self.send_late(s, i, next)?;
            }
        }
        Ok(())
    }

    /// Whether a join that `i` makes now, in any manner, would be granted.
    pub fn copy_gets_in(&mut self, s: &State, i: usize) -> bool {
        let copy = s.copies[i];
        copy.mediums().into_iter().any(|(medium, _)| {
            self.bounds.manners.iter().any(|manner| {
                let worked = self.prepare(medium, who(&copy, i, *manner), s.server, None);
                matches!(worked.outcome, Outcome::Done(request) if self.take(s.server, request).outcome.is_ok())
            })
        })
    }

    fn copy_medium(&mut self, s: &State, next: &mut Vec<(Move, State)>) {
        let Some(copies) = s.left.copies.checked_sub(1).filter(|_| holder::has_key(&self.mediums.get(s.device))) else { return };
        let copied = self.mediums.get(s.device).copied();
        let medium = self.medium(copied);
        let secret = self.servers.get(s.server).resets;
        let place = s.copies.iter().position(|copy| !copy.is_there()).unwrap_or(0);
        let mut after = State { left: Left { copies, ..s.left }, ..*s };
        after.copies[place] = Copied { medium, original: medium, late: InFlight::NOTHING, code: s.code, secret };
        after.in_step &= !COPIES[place];
        if s.in_step & DEVICE != 0 {
            after.in_step |= COPIES[place];
        }
        (after.strangers, after.strangers_then) = (s.strangers & !COPIES[place], s.strangers_then & !COPIES[place]);
        next.push((Move::Copy, after));
    }

    fn copy_joins(
        &mut self,
        s: &State,
        i: usize,
        medium: u32,
        manner: Manner,
        from_original: bool,
        next: &mut Vec<(Move, State)>,
    ) -> Result<(), Broken> {
        let who = who(&s.copies[i], i, manner);
        let worked = self.prepare(medium, who, s.server, None);
        let Outcome::Done(request) = worked.outcome else { return Ok(()) };
        let step = |takes| Move::CopyJoins { copy: COPIES[i], manner, from_original, takes };
        let taken = self.take(s.server, request);
        self.check(s, who.holder, Sent::now(request), taken).map_err(|why| (step(false), why))?;
        let Some((mut sent, answer)) = self.after(s, who.holder, taken) else { return Ok(()) };
        sent.copies[i].medium = worked.medium;
        next.push((step(false), sent));
        if let Some(answer) = answer {
            let received = self.receive(worked.medium, who, request, answer, None);
            if received.outcome == Outcome::Done(0) {
                sent.copies[i].medium = received.medium;
                next.push((step(true), sent));
            }
        }
        Ok(())
    }

    /// A copy asks for a challenge, and waits with its request.
    fn keep_back(&mut self, s: &State, i: usize, next: &mut Vec<(Move, State)>) {
        let copy = s.copies[i];
        // One attempt of its own at most: each writes its state anew, so that no bound would end them.
        let manners: &[_] = if copy.late.request == NONE { &[Manner::Honest, Manner::NewAttempt] } else { &[Manner::Honest] };
        for manner in manners.iter().copied() {
            let worked = self.prepare(copy.medium, who(&copy, i, manner), s.server, None);
            let Outcome::Done(request) = worked.outcome else { continue };
            let mut after = *s;
            after.copies[i].medium = worked.medium;
            after.copies[i].late = InFlight { request, behind: self.is_behind(s, COPIES[i], request) };
            next.push((Move::CopyPrepares { copy: COPIES[i], manner }, after));
        }
    }

    fn send_late(&mut self, s: &State, i: usize, next: &mut Vec<(Move, State)>) -> Result<(), Broken> {
        let (copy, step) = (s.copies[i], Move::CopySends { copy: COPIES[i], takes: false });
        if copy.late.request == NONE {
            return Ok(());
        }
        let taken = self.take(s.server, copy.late.request);
        self.check(s, COPIES[i], Sent::earlier(copy.late), taken).map_err(|why| (step, why))?;
        let Some((after, answer)) = self.after(s, COPIES[i], taken) else { return Ok(()) };
        if let Some(answer) = answer {
            let who = who(&copy, i, Manner::Honest);
            let received = self.receive(copy.medium, who, copy.late.request, answer, None);
            if received.outcome == Outcome::Done(0) {
                // An answer is taken once: each writes the state anew, so that no bound would end them.
                let mut taken = after;
                taken.copies[i].medium = received.medium;
                taken.copies[i].late = InFlight::NOTHING;
                next.push((Move::CopySends { copy: COPIES[i], takes: true }, taken));
            }
        }
        next.push((step, after));
        Ok(())
    }
}

impl Copied {
    /// What it may join from: its medium as it is, and as it was copied.
    fn mediums(&self) -> Vec<(u32, bool)> {
        if self.medium == self.original { vec![(self.medium, false)] } else { vec![(self.medium, false), (self.original, true)] }
    }
}

fn who(copy: &Copied, i: usize, manner: Manner) -> Who {
    Who { holder: COPIES[i], manner, client: Client::Real, secret: copy.secret }
}
