//! What a server says, on the device: challenge, answer, problem. The server is trusted; its bytes are read with the same care.
//!
//! The input is JSON with forms ([`super::form`]): `challenge` and `answer`, for a device that has joined, or with `new` for one that
//! has not. Anything else is read as a problem.

use boundkey::join::device::request::Parts;
use boundkey::join::device::{KnownKey, Memory, Start};
use boundkey::join::message::{ChallengeAnswer, Heartbeat, JoinAnswer, Ping};
use boundkey::join::{Id, Problem, Thumbprint};
use boundkey::state::StateFile;
use boundkey_hal::Algorithm;
use serde_json::Value;

use super::form::{SECRET, filled};
use super::keys::{BOUND, Key, OTHER, Store};
use super::state::Files;
use super::{Told, refused};

const TOKEN: &str = "t";

pub fn run(data: &[u8]) -> Told {
    let Ok(value) = serde_json::from_slice::<Value>(data).map(filled) else {
        return alone(data);
    };
    let challenge = match serde_json::from_value::<ChallengeAnswer>(value["challenge"].clone()) {
        Ok(challenge) => challenge,
        Err(e) => return format!("{} {}", refused(&e), alone(data)),
    };
    match joined(memory(value["new"].as_bool() == Some(true)), challenge, &value["answer"]) {
        Ok(told) => told,
        Err(why) => refused(&why),
    }
}

/// The answers that stand alone.
fn alone(data: &[u8]) -> Told {
    let problem = serde_json::from_slice::<Problem>(data).map(|problem| problem.kind);
    let ping = serde_json::from_slice::<Ping>(data).map(drop);
    format!("{} {problem:?} {ping:?}", if problem.is_ok() || ping.is_ok() { "ok:" } else { "refused:" })
}

fn known(id: &str, key: &Key, bound: bool) -> KnownKey {
    let thumbprint = Thumbprint::of(&key.public);
    KnownKey { id: id.into(), thumbprint, algorithm: Algorithm::EcdsaP256.into(), bound }
}

fn memory(new: bool) -> Memory {
    let memory = Memory { token: TOKEN.into(), attempt: Some(Id([1; 16])), ..Memory::default() };
    if new {
        return memory;
    }
    let keys = vec![known("bound-2", &OTHER, false), known("bound-1", &BOUND, true)];
    Memory { incarnation: Some(Id([9; 16])), join_state: Some("a.b.c".into()), keys, ..memory }
}

fn joined(mut memory: Memory, challenge: ChallengeAnswer, answer: &Value) -> Result<Told, String> {
    let keys = Store(vec![("bound-1", &BOUND), ("bound-2", &OTHER)]);
    let needed = Start::new(&memory, TOKEN).challenged(challenge.clone()).map_err(|e| format!("{e:?}"))?;
    let made = needed.new_key(&[Algorithm::EcdsaP256]).map_err(|e| format!("{e:?}"))?.is_some();
    if made {
        memory.add_key(KnownKey { id: "bound-1".into(), ..known("", &BOUND, false) }).expect("room");
    }
    let parts = Parts {
        url: "https://localhost/v1/join",
        attempt: Id([1; 16]),
        csr: String::new(),
        ttl: None,
        outputs: vec![],
        bundle: None,
        heartbeat: Heartbeat::default(),
        secret: Some(SECRET),
        identity: None,
    };
    let challenged = Start::new(&memory, TOKEN).challenged(challenge).map_err(|e| format!("{e:?}"))?;
    let prepared = challenged.prepare(&keys, parts).map_err(|e| e.to_string())?;
    let rotates = boundkey::join::server::request::peek(prepared.request()).expect("our own").rotation.is_some();
    let answer: JoinAnswer = serde_json::from_value(answer.clone()).map_err(|e| e.to_string())?;
    let issued = prepared.answered(answer).map_err(|e| e.to_string())?;
    assert_eq!(issued.memory.current_key().map(|key| key.thumbprint), Some(issued.answer.key), "the key bound is the one in use");
    assert_eq!(issued.memory.attempt, None);
    let stored = StateFile::open(Files::default()).map_err(|e| e.to_string())?.store(&issued.memory);
    Ok(format!("ok: {made} {rotates} {:?} {:?}", issued.answer.kind, stored.err().map(|e| e.to_string())))
}
