//! What operators do, in every order.

use std::collections::BTreeSet;
use std::time::Duration;

use boundkey::join::RecoveryMode;
use boundkey::join::server::record::Recovery;
use boundkey::platform::time::Timestamp;

use super::explore::Explorer;
use super::server::{FOR_CODE, OPERATOR, TWO_HOLDERS};
use super::state::{COPIES, Copied, DEVICE, Left, Move, NONE, State};

impl Explorer {
    pub fn operate(&mut self, s: &State, next: &mut Vec<(Move, State)>) {
        let now = self.servers.get(s.server);
        if let Some(rotations) = s.left.rotations.checked_sub(1) {
            let server = self.server(now.rotate());
            next.push((Move::Rotate, State { server, left: Left { rotations, ..s.left }, ..*s }));
        }
        self.restore(s, next);
        self.edit(s, next);
        self.exempt(s, next);
        self.lock(s, next);
        if let Some(resets) = s.left.resets.checked_sub(1) {
            // The new secret is told to the device alone.
            let strangers = all_copies(s);
            let server = self.server(now.reset());
            let state = State { server, strangers, in_step: DEVICE, lost: [NONE; 2], waiver: false, unsettled: false, ..*s };
            next.push((Move::Reset, State { left: Left { resets, ..s.left }, ..state }));
        }
    }

    fn exempt(&mut self, s: &State, next: &mut Vec<(Move, State)>) {
        let now = self.servers.get(s.server);
        if let Some(exemptions) = s.left.exemptions.checked_sub(1) {
            let server = self.server(now.exempt(None, self.bounds.fault));
            next.push((Move::Exempt, State { server, waiver: true, left: Left { exemptions, ..s.left }, ..*s }));
        }
        let can_name = s.code != 0 && now.takes_code(s.code);
        if let Some(keyed) = s.left.keyed.checked_sub(1).filter(|_| can_name) {
            let server = self.server(now.exempt(Some(s.code), self.bounds.fault));
            next.push((Move::ExemptKey, State { server, waiver: false, left: Left { keyed, ..s.left }, ..*s }));
        }
        if let Some((cancels, cancelled)) = s.left.cancels.checked_sub(1).zip(now.without_exemption()) {
            let server = self.server(cancelled);
            next.push((Move::CancelExemption, State { server, waiver: false, left: Left { cancels, ..s.left }, ..*s }));
        }
    }

    fn lock(&mut self, s: &State, next: &mut Vec<(Move, State)>) {
        let now = self.servers.get(s.server);
        if let Some(locks) = s.left.locks.checked_sub(1) {
            let server = self.server(now.locked(OPERATOR));
            next.push((Move::Lock, State { server, left: Left { locks, ..s.left }, ..*s }));
        }
        for which in [OPERATOR, FOR_CODE, TWO_HOLDERS].into_iter().filter(|which| now.locks.contains(which)) {
            let unlocks = if which == OPERATOR { Some(s.left.unlocks) } else { s.left.unlocks.checked_sub(1) };
            let Some(unlocks) = unlocks else { continue };
            let server = self.server(now.unlocked(which));
            next.push((Move::Unlock(which), State { server, left: Left { unlocks, ..s.left }, ..*s }));
        }
    }

    fn restore(&mut self, s: &State, next: &mut Vec<(Move, State)>) {
        if s.backup == NONE && s.left.restores > 0 {
            next.push((Move::Backup, State { backup: s.server, strangers_then: s.strangers, ..*s }));
        }
        let Some(restores) = s.left.restores.checked_sub(1).filter(|_| s.backup != NONE) else { return };
        let back = self.bounds.clock_back;
        let clock = |now: Timestamp| if back { now.minus(Duration::from_secs(600)) } else { now.plus(Duration::from_secs(1)) };
        let restored = self.servers.get(s.server).restored(&self.servers.get(s.backup), clock);
        let waiver = restored.status.exemption.is_some() && restored.code == 0;
        let server = self.server(restored);
        // Who comes first is followed.
        let (in_step, unsettled) = (DEVICE | all_copies(s), all_copies(s) != 0);
        let strangers = s.strangers & s.strangers_then;
        let left = Left { restores, ..s.left };
        let state =
            State { server, backup: NONE, strangers, strangers_then: 0, in_step, unsettled, waiver, lost: [NONE; 2], left, ..*s };
        next.push((Move::Restore, self.without_expired(state)));
    }

    /// Limit and mode, changed at any time. Either makes challenges stale, and no more.
    fn edit(&mut self, s: &State, next: &mut Vec<(Move, State)>) {
        let now = self.servers.get(s.server);
        let Recovery { limit, mode } = now.spec.recovery.clone();
        if let Some(limits) = s.left.limits.checked_sub(1) {
            let left = Left { limits, ..s.left };
            // None, what is used up by now, one more, and plenty.
            let count = now.status.recovery_count;
            for limit in BTreeSet::from([0, count, count + 1, 9]).into_iter().filter(|other| *other != limit) {
                let server = self.server(now.with_recovery(Recovery { limit, mode }));
                next.push((Move::Limit(limit), State { server, left, ..*s }));
            }
        }
        if let Some(modes) = s.left.modes.checked_sub(1) {
            let left = Left { modes, ..s.left };
            let all = [RecoveryMode::Standard, RecoveryMode::Relaxed, RecoveryMode::Insecure];
            for mode in all.into_iter().filter(|other| *other != now.spec.recovery.mode) {
                let server = self.server(now.with_recovery(Recovery { limit, mode }));
                let mut state = State { server, left, ..*s };
                // Holders that were both let in: who comes first goes on, and which answers were lost by then is not known.
                if all_copies(s) != 0 && now.is_insecure() {
                    state = State { in_step: DEVICE | all_copies(s), unsettled: true, lost: [NONE; 2], ..state };
                }
                next.push((Move::Mode(mode), state));
            }
        }
    }
}

fn all_copies(s: &State) -> u8 {
    let there = |(copy, set): (&Copied, u8)| if copy.is_there() { set } else { 0 };
    s.copies.iter().zip(COPIES).map(there).sum()
}
