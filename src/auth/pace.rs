//! The paces that are kept in memory: of replays, which leave the token as it is, and of hosts that share a key in mode `insecure`.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};

use boundkey_api::resource::Token;
use boundkey_join::server::decision::pace;
use boundkey_join::{Id, JoinKind, Problem, RecoveryMode};
use boundkey_platform::time::Timestamp;

/// Most paces remembered. Beyond it those that have recovered are forgotten first, and then the others: 10 MB at the most.
const MAX_PACES: usize = 100_000;
/// Joins of hosts with one key from one address at once, in mode `insecure`: those of a plant after a power cut.
const HOSTS_AT_ONCE: u64 = 200;

/// Whose pace a join spends.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Payer {
    /// Hosts that join in mode `insecure`, from one address: what one place does leaves the others alone.
    Address(String, IpAddr),
    /// An instance that renews in mode `insecure`.
    Instance(Id),
    /// Replays of a token. An instance that goes on by itself has its own.
    Replay(String, Option<Id>),
}

impl Payer {
    /// Whose paces a join of this kind spends that brings `instance` on, beside the token's own.
    ///
    /// A key that hosts share makes a new instance with each recovery, so that instances alone would bound nothing: each step spends the
    /// pace of the address that it comes from too.
    pub fn of(token: &Token, kind: JoinKind, instance: Id, from: SocketAddr) -> Vec<Self> {
        let name = &token.metadata.name;
        let shared = token.spec.bound_keypair.recovery.mode == RecoveryMode::Insecure;
        let address = || Self::Address(name.clone(), place(from.ip()));
        match kind {
            JoinKind::Replay => vec![Self::Replay(name.clone(), shared.then_some(instance))],
            JoinKind::Renewal if shared => vec![Self::Instance(instance), address()],
            JoinKind::First | JoinKind::Recovery if shared => vec![address()],
            JoinKind::First | JoinKind::Recovery | JoinKind::Renewal => vec![],
        }
    }
}

/// An address as far as one subscriber has it: all of IPv4, the first 64 bits of IPv6 (RFC 6177).
fn place(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) >> 64 << 64).into()),
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// The paces of this server.
#[derive(Debug, Default)]
pub struct Paces(Mutex<HashMap<Payer, u64>>);

impl Paces {
    /// Spends one join of `payer`.
    ///
    /// # Errors
    /// [`boundkey_join::ProblemType::PaceExceeded`], with the time to wait.
    pub fn spend(&self, payer: Payer, now: Timestamp) -> Result<(), Problem> {
        let mut paces = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let burst = match &payer {
            Payer::Address(..) => HOSTS_AT_ONCE,
            Payer::Instance(_) | Payer::Replay(..) => pace::BURST,
        };
        let spent = pace::spend(burst, paces.get(&payer).copied(), now).map_err(pace::exceeded)?;
        if paces.len() >= MAX_PACES && !paces.contains_key(&payer) {
            paces.retain(|_, until| *until > now.millis());
            if paces.len() >= MAX_PACES {
                paces.clear();
            }
        }
        paces.insert(payer, spent);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    fn admitted(paces: &Paces, payer: &Payer, now: Timestamp) -> u64 {
        (0..1000).filter(|_| paces.spend(payer.clone(), now).is_ok()).count() as u64
    }

    #[test]
    fn each_payer_has_a_burst_and_then_one_in_a_while() {
        let paces = Paces::default();
        let replays = Payer::Replay("t".into(), None);
        assert_eq!(admitted(&paces, &replays, NOW), pace::BURST);
        assert_eq!(admitted(&paces, &Payer::Replay("u".into(), None), NOW), pace::BURST, "another token");
        let next = Timestamp::from_millis(NOW.millis() + pace::INTERVAL_MS);
        assert_eq!(admitted(&paces, &replays, next), 1);
        let address = |text: &str| Payer::Address("t".into(), place(text.parse().unwrap()));
        assert_eq!(admitted(&paces, &address("192.0.2.1"), NOW), HOSTS_AT_ONCE);
        assert_eq!(admitted(&paces, &address("::ffff:192.0.2.1"), NOW), 0, "the same address");
        assert_eq!(admitted(&paces, &address("192.0.2.1"), next), 1);
        assert_eq!(admitted(&paces, &address("2001:db8::1"), NOW), HOSTS_AT_ONCE);
        assert_eq!(admitted(&paces, &address("2001:db8::2"), NOW), 0, "the same subscriber");
    }

    /// A key that hosts share makes a new instance with each recovery, so instances alone would bound nothing.
    #[test]
    fn in_mode_insecure_every_step_spends_the_pace_of_its_address() {
        let from: SocketAddr = "192.0.2.1:4711".parse().unwrap();
        let instance = Id([7; 16]);
        let address = Payer::Address("gw".into(), from.ip());
        let of = |mode, kind| {
            let spec = json!({"roles": ["Bot"], "bot_name": "gw", "join_method": "bound_keypair", "bound_keypair": {}});
            let mut token: Token = serde_json::from_value(json!({"metadata": {"name": "gw"}, "spec": spec})).unwrap();
            token.spec.bound_keypair.recovery.mode = mode;
            Payer::of(&token, kind, instance, from)
        };
        for kind in [JoinKind::First, JoinKind::Recovery] {
            assert_eq!(of(RecoveryMode::Insecure, kind), std::slice::from_ref(&address));
        }
        assert_eq!(of(RecoveryMode::Insecure, JoinKind::Renewal), [Payer::Instance(instance), address]);
        assert_eq!(of(RecoveryMode::Insecure, JoinKind::Replay), [Payer::Replay("gw".into(), Some(instance))]);
        for mode in [RecoveryMode::Relaxed, RecoveryMode::Standard] {
            assert_eq!(of(mode, JoinKind::Replay), [Payer::Replay("gw".into(), None)]);
            for kind in [JoinKind::First, JoinKind::Recovery, JoinKind::Renewal] {
                assert_eq!(of(mode, kind), [], "the token has its own pace");
            }
        }
    }

    #[test]
    fn a_clock_that_was_set_back_makes_nobody_wait_longer() {
        let paces = Paces::default();
        let replays = Payer::Replay("t".into(), None);
        assert_eq!(admitted(&paces, &replays, NOW), pace::BURST);
        let back = NOW.minus(std::time::Duration::from_secs(86_400));
        assert_eq!(admitted(&paces, &replays, back), pace::BURST);
    }

    #[test]
    fn the_memory_is_bounded() {
        let paces = Paces::default();
        for number in 0..u128::try_from(MAX_PACES).unwrap() + 10 {
            paces.spend(Payer::Instance(Id(number.to_be_bytes())), NOW).unwrap();
        }
        assert!(paces.0.lock().unwrap().len() <= MAX_PACES);
    }
}
