//! Replacing a CA by the next one, in steps that can be taken back: who comes next is announced, takes over, and the old one is retired.

use super::issue::{cross_certify, self_signed};
use super::set::{Ca, CaSet, KeyNames};
use super::{Authority, CaError, SharedKeys};
use boundkey_api::ca::{Phase, Step, Target};
use boundkey_platform::time::{Random, Timestamp};

/// Most CAs of a cluster, retired ones counted; beyond them the oldest retired one is forgotten. A chain from the oldest to the newest is
/// as long as webpki follows one (its `MAX_SUB_CA_COUNT` is 6).
pub const MAX_CAS: usize = 6;

impl CaSet {
    fn in_phase(&self, phase: Phase) -> Option<&Ca> {
        self.cas.iter().find(|ca| ca.phase == phase)
    }

    /// The CA that would count again.
    fn retired_last(&self) -> Option<&Ca> {
        let retired = self.cas.iter().filter(|ca| ca.phase == Phase::Retired && ca.has_signed && !ca.compromised);
        retired.max_by_key(|ca| (ca.since, ca.number))
    }

    /// The step that leads to `target`, or on where none is given; or why there is none.
    pub fn step_to(&self, target: Option<Target>) -> Result<Step, String> {
        let (announced, superseded) = (self.in_phase(Phase::Announced), self.in_phase(Phase::Superseded));
        match (target, announced, superseded) {
            (None | Some(Target::Announced), None, None) => match self.in_phase(Phase::Active) {
                Some(active) if active.chain.len() > 1 => Err(format!(
                    "CA {} stands under another's root, and so would the next one have to, which this version cannot ask for",
                    active.number
                )),
                _ => Ok(Step::Announce),
            },
            (Some(Target::Announced), None, Some(_)) => Ok(Step::Return),
            (None | Some(Target::Announced), Some(next), _) => Err(format!(
                "CA {} is announced: `boundkeyctl ca rotate --to active` is next, and --cancel withdraws it",
                next.number
            )),
            (None | Some(Target::Active), None, Some(old)) => Err(format!(
                "CA {} still counts beside the active one: `boundkeyctl ca rotate --to retired` is next, and --to announced takes the \
                 last step back",
                old.number
            )),
            (Some(Target::Active), Some(_), _) => Ok(Step::Activate),
            (Some(Target::Active), None, None) if self.retired_last().is_some() => Ok(Step::Restore),
            (Some(Target::Active), None, None) => Err("no CA is announced: `boundkeyctl ca rotate` makes the next one".into()),
            (Some(Target::Retired), _, Some(_)) => Ok(Step::Retire),
            (Some(Target::Retired), Some(next), None) => Err(format!(
                "CA {} is announced, and does not sign yet: `boundkeyctl ca rotate --to active` comes first, and --cancel withdraws it",
                next.number
            )),
            (Some(Target::Retired), None, None) => Err("no CA is superseded: there is none to retire".into()),
        }
    }

    /// The step that withdraws the announced CA.
    pub fn step_back(&self) -> Result<Step, String> {
        match self.in_phase(Phase::Announced) {
            Some(_) => Ok(Step::Withdraw),
            None => Err("no CA is announced: there is none to withdraw".into()),
        }
    }

    /// The number of the CA that `step` is about.
    pub fn subject(&self, step: Step) -> Option<u32> {
        let ca = match step {
            Step::Announce => return self.cas.iter().map(|ca| ca.number + 1).max(),
            Step::Activate | Step::Withdraw => self.in_phase(Phase::Announced),
            Step::Restore => self.retired_last(),
            Step::Retire | Step::Return => self.in_phase(Phase::Superseded),
        };
        ca.map(|ca| ca.number)
    }

    /// The trust bundle that devices should have before this step: its sequence number. `None` where it does not matter.
    ///
    /// A device that tells of the newest bundle has joined since, so its certificates are of the CA that signed that bundle.
    pub fn needed_for(&self, step: Step, newest: u64) -> Option<u64> {
        match step {
            Step::Announce | Step::Restore => None,
            Step::Activate => self.in_phase(Phase::Announced).map(|ca| ca.known_since),
            Step::Retire => Some(newest),
            Step::Return => self.in_phase(Phase::Superseded).map(|ca| ca.known_since),
            Step::Withdraw => self.in_phase(Phase::Announced).filter(|ca| ca.has_signed).map(|_| newest),
        }
    }

    fn move_to(&mut self, from: Phase, to: Phase, now: Timestamp) -> Result<&mut Ca, CaError> {
        let ca = self.cas.iter_mut().find(|ca| ca.phase == from);
        let ca = ca.ok_or_else(|| CaError::Certificate(format!("no CA is {from}")))?;
        (ca.phase, ca.since) = (to, now);
        ca.has_signed |= to == Phase::Active;
        Ok(ca)
    }

    /// Has the CA that was active certify the one that signs again, for devices that know only the former. Not before it has to
    /// be: an attacker who has this certificate and the old CA's keys is believed by all that trust the next CA, also after the
    /// old one was retired.
    fn vouch_back(&mut self, keys: &SharedKeys, random: &dyn Random) -> Result<(), CaError> {
        let active = self.active()?.clone();
        let Some(next) = self.cas.iter_mut().find(|ca| ca.phase == Phase::Announced && ca.follows == Some(active.number)) else {
            return Ok(());
        };
        if next.cross.len() == 1 {
            let by_next = cross_certify(&active, next, keys, random)?;
            next.cross.push(by_next);
        }
        Ok(())
    }

    /// Forgets the oldest retired CAs beyond [`MAX_CAS`], and what they signed.
    fn forget_oldest(&mut self) {
        while self.cas.len() > MAX_CAS {
            let Some(at) = self.cas.iter().position(|ca| ca.phase == Phase::Retired) else { return };
            let forgotten = self.cas.remove(at);
            self.forget_bundles_of(&forgotten);
        }
    }
}

impl Authority {
    /// The authority after `step`. Nothing is written down but new keys, which are taken up again if this has to be repeated.
    ///
    /// `compromised`, with [`Step::Retire`] and [`Step::Withdraw`]: nothing that this CA signed counts from then on, join states and
    /// identities among it.
    pub fn after(&self, step: Step, compromised: bool, random: &dyn Random, now: Timestamp) -> Result<Self, CaError> {
        let (cluster, keys) = (self.cluster.as_str(), &self.keys);
        let mut set = self.set.clone();
        let mut known = None;
        match step {
            Step::Announce => {
                let next = next_ca(&set, cluster, keys, random, now)?;
                known = Some(next.number);
                set.cas.push(next);
                set.forget_oldest();
            }
            Step::Activate => {
                set.move_to(Phase::Active, Phase::Superseded, now)?;
                set.move_to(Phase::Announced, Phase::Active, now)?;
            }
            Step::Return => {
                set.move_to(Phase::Active, Phase::Announced, now)?;
                set.move_to(Phase::Superseded, Phase::Active, now)?;
                set.vouch_back(keys, random)?;
            }
            Step::Retire => set.move_to(Phase::Superseded, Phase::Retired, now)?.compromised = compromised,
            Step::Withdraw => set.move_to(Phase::Announced, Phase::Retired, now)?.compromised = compromised,
            Step::Restore => {
                known = set.retired_last().map(|ca| ca.number);
                let restored = set.cas.iter_mut().find(|ca| Some(ca.number) == known);
                let restored = restored.ok_or_else(|| CaError::Certificate("no CA was retired".into()))?;
                (restored.phase, restored.since) = (Phase::Superseded, now);
            }
        }
        let sequence = set.sign_bundle(cluster, keys, now)?;
        for ca in set.cas.iter_mut().filter(|ca| Some(ca.number) == known) {
            ca.known_since = sequence;
        }
        Self::of(cluster, keys.clone(), set)
    }
}

/// The CA that comes after the active one, with its keys.
fn next_ca(set: &CaSet, cluster: &str, keys: &SharedKeys, random: &dyn Random, now: Timestamp) -> Result<Ca, CaError> {
    let active = set.active()?;
    let number = set.cas.iter().map(|ca| ca.number).max().unwrap_or(0) + 1;
    super::make_keys(&*keys.0, number)?;
    let names = KeyNames::of(number)?;
    // A key that was made before and does not sign, such as a TPM's after it was cleared, shows before anything relies on it.
    for id in [&names.x509, &names.join_state, &names.ssh_host] {
        let key = keys.public_key(id)?;
        let signature = keys.sign(id, super::PROBE)?;
        boundkey_hal::verify::checked(&key, super::PROBE, signature)?;
    }
    let certificate = self_signed(cluster, number, keys, random, now)?;
    let mut next = Ca::open(number, Phase::Announced, vec![certificate], keys, now)?;
    next.follows = Some(active.number);
    next.cross = vec![cross_certify(&next, active, keys, random)?];
    Ok(next)
}
