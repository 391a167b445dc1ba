//! Conformance to the reference's behaviour: one test for each row of `docs/conformance.md` that is proven here, named by its id.
//! Rows that other tests prove are named there.
#![cfg(all(feature = "agent", feature = "auth"))]

#[path = "conformance/challenge.rs"]
mod challenge;
#[path = "conformance/hosts.rs"]
mod hosts;
#[path = "conformance/onboarding.rs"]
mod onboarding;
#[path = "conformance/programs.rs"]
mod programs;
#[path = "conformance/recovery.rs"]
mod recovery;
#[path = "conformance/renewal.rs"]
mod renewal;
#[path = "conformance/rotation.rs"]
mod rotation;
mod support;
mod world;

use std::time::Duration;

use boundkey::join::message::JoinAnswer;
use boundkey::join::{JoinKind, Problem, ProblemType, SshKey};
use boundkey_hal::KeyStore as _;
use world::{Device, World};

/// More than a certificate lasts.
const EXPIRY: Duration = Duration::from_secs(2 * 3600);
const MINUTE: Duration = Duration::from_secs(60);

fn kind(answer: Result<JoinAnswer, Problem>) -> JoinKind {
    answer.expect("granted").kind
}

/// A join that must be refused without moving anything; whether it locks is the caller's matter.
fn refusal(device: &mut Device, world: &mut World) -> ProblemType {
    let before = world.status.clone();
    let problem = device.join(world).expect_err("refused");
    assert_eq!(before, world.status, "a refusal changes nothing");
    problem.kind
}

/// The same, with the one lock that it calls for.
fn locking(device: &mut Device, world: &mut World) -> ProblemType {
    let locks = world.locks.len();
    let kind = refusal(device, world);
    assert_eq!(world.locks.len(), locks + 1, "one lock");
    kind
}

/// The same, without a lock.
fn harmless(device: &mut Device, world: &mut World) -> ProblemType {
    let locks = world.locks.len();
    let kind = refusal(device, world);
    assert_eq!(world.locks.len(), locks, "no lock");
    kind
}

/// A device that has joined a token that allows `limit` recoveries.
fn joined(limit: u32) -> (World, Device) {
    let (mut world, mut device) = (World::new(limit), Device::new(0));
    assert_eq!(kind(device.join(&mut world)), JoinKind::First);
    (world, device)
}

/// A token with a preregistered key and nothing else, and its device.
fn preregistered(limit: u32) -> (World, Device) {
    let (mut world, mut device) = (World::new(limit), Device::new(0));
    world.status.registration_secret = None;
    world.spec.onboarding.initial_public_key = Some(own_key(&mut device, &world));
    (world, device)
}

/// The key that a device makes when it is asked for one.
fn own_key(device: &mut Device, world: &World) -> SshKey {
    device.prepare(&world.challenge()).expect("makes a key");
    let id = device.memory.keys[0].id.parse().expect("a name");
    SshKey(device.keys.public_key(&id).expect("the key"))
}

/// A device with a key, state and certificate of another token, that signs with them whatever it is asked for.
fn stranger() -> Device {
    let mut stranger = Device::new(50);
    stranger.join(&mut World::new(1)).expect("another token's device");
    stranger
}

/// What the server says to a join of `device` by its own key, whichever key the server asks for.
fn by_own_key(device: &mut Device, world: &mut World) -> Problem {
    let mut challenge = world.challenge();
    challenge.key = Some(device.memory.keys[0].thumbprint);
    let (locks, before) = (world.locks.clone(), world.status.clone());
    let sent = device.prepare(&challenge).expect("prepared");
    let problem = world.join(&sent.jws).expect_err("refused");
    assert_eq!((&world.locks, &world.status), (&locks, &before), "nothing changes");
    problem
}

/// The request inside.
fn request(sent: &world::InFlight) -> boundkey::join::message::JoinRequest {
    boundkey::join::server::request::peek(&sent.jws).expect("our own")
}
