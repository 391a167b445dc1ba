//! Breadth-first search. Parts of a state are interned, and what the real code makes of them is remembered: the code runs once
//! for each distinct input, and states are compared and stored as a few numbers.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::rc::Rc;

use boundkey::join::message::{ChallengeAnswer, JoinAnswer};
use boundkey::join::server::decision::Refusal;
use boundkey::join::server::request::Verified;
use boundkey::join::{Id, JoinKind, ProblemType};

use super::holder::{self, Done, Request, Who};
use super::medium::Medium;
use super::server::{Server, Verdict, VerifiesBy};
use super::state::{Bounds, Move, State};

/// Numbers for things; the same thing has the same number.
pub struct Interned<T, K> {
    things: Vec<Rc<T>>,
    numbers: HashMap<K, u32>,
}

impl<T, K: Hash + Eq> Interned<T, K> {
    fn new() -> Self {
        Self { things: vec![], numbers: HashMap::new() }
    }

    /// The number of `thing`, which `key` tells from others.
    fn number(&mut self, thing: T, key: K) -> u32 {
        let next = u32::try_from(self.things.len()).expect("not that many");
        let number = *self.numbers.entry(key).or_insert(next);
        if number == next {
            self.things.push(Rc::new(thing));
        }
        number
    }

    pub fn get(&self, number: u32) -> Rc<T> {
        self.things[number as usize].clone()
    }
}

/// What became of a holder's work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Worked {
    pub medium: u32,
    pub calls: u8,
    pub outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Dead,
    Failed(String),
    /// The request made; nothing where an answer was taken.
    Done(u32),
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    pub server: u32,
    pub locked: bool,
    pub outcome: Result<Grant, ProblemType>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    pub kind: JoinKind,
    pub exempt: bool,
    pub by_code: bool,
    pub followed: bool,
    pub answer: u32,
}

/// A rule that does not hold, and the way there.
#[derive(Debug)]
pub struct Violation {
    pub rule: String,
    pub path: Vec<Move>,
}

/// What was explored.
#[derive(Debug)]
pub struct Explored {
    pub states: usize,
    pub transitions: usize,
    pub depth: usize,
    /// Runs of the real client, state file and decision.
    pub runs: usize,
    /// Whether nothing was left within the bounds.
    pub exhausted: bool,
    pub violation: Option<Violation>,
}

pub struct Explorer {
    pub bounds: Bounds,
    pub servers: Interned<Server, Vec<u8>>,
    pub mediums: Interned<Medium, Medium>,
    pub requests: Interned<Request, String>,
    pub answers: Interned<JoinAnswer, String>,
    challenges: Interned<ChallengeAnswer, String>,
    challenge_of: HashMap<(u32, Option<Id>), u32>,
    instance_of: HashMap<u32, Option<Id>>,
    prepared: HashMap<(u32, Who, u32, Option<u8>), Worked>,
    received: HashMap<(u32, Who, u32, u32, Option<u8>), Worked>,
    verified: HashMap<(u32, VerifiesBy), Result<Verified, Refusal>>,
    taken: HashMap<(u32, u32), Taken>,
    cuts: HashMap<u32, Rc<Vec<u32>>>,
}

impl Explorer {
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            servers: Interned::new(),
            mediums: Interned::new(),
            requests: Interned::new(),
            answers: Interned::new(),
            challenges: Interned::new(),
            challenge_of: HashMap::new(),
            instance_of: HashMap::new(),
            prepared: HashMap::new(),
            received: HashMap::new(),
            verified: HashMap::new(),
            taken: HashMap::new(),
            cuts: HashMap::new(),
        }
    }

    pub fn server(&mut self, server: Server) -> u32 {
        let content = server.content();
        self.servers.number(server, content)
    }

    pub fn medium(&mut self, medium: Medium) -> u32 {
        self.mediums.number(medium.clone(), medium)
    }

    fn challenge(&mut self, server: u32, medium: u32) -> u32 {
        let mediums = &self.mediums;
        let instance = *self.instance_of.entry(medium).or_insert_with(|| holder::instance(&mediums.get(medium)));
        if let Some(known) = self.challenge_of.get(&(server, instance)) {
            return *known;
        }
        let challenge = self.servers.get(server).challenge(instance, self.bounds.fault);
        let key = format!("{challenge:?}");
        let number = self.challenges.number(challenge, key);
        self.challenge_of.insert((server, instance), number);
        number
    }

    /// A holder's work up to its request.
    pub fn prepare(&mut self, medium: u32, who: Who, server: u32, dies_at: Option<u8>) -> Worked {
        let challenge = self.challenge(server, medium);
        let input = (medium, who, challenge, dies_at);
        if let Some(known) = self.prepared.get(&input) {
            return known.clone();
        }
        let (before, challenge) = (self.mediums.get(medium), self.challenges.get(challenge));
        let done = holder::prepare(&before, who, &challenge, dies_at.map(usize::from));
        let worked = self.worked(done, |all, request| {
            // Signatures are left out: they follow from the rest.
            let key = format!("{} {} {:?}", request.jws.protected, request.jws.payload, request.challenge);
            all.requests.number(request, key)
        });
        self.prepared.insert(input, worked.clone());
        worked
    }

    /// A holder's work from the answer on.
    pub fn receive(&mut self, medium: u32, who: Who, request: u32, answer: u32, dies_at: Option<u8>) -> Worked {
        let input = (medium, who, request, answer, dies_at);
        if let Some(known) = self.received.get(&input) {
            return known.clone();
        }
        let (before, sent, got) = (self.mediums.get(medium), self.requests.get(request), self.answers.get(answer));
        let done = holder::receive(&before, who, &sent, &got, dies_at.map(usize::from));
        let worked = self.worked(done, |_, ()| 0);
        self.received.insert(input, worked.clone());
        worked
    }

    fn worked<T>(&mut self, done: Done<T>, number: impl FnOnce(&mut Self, T) -> u32) -> Worked {
        let medium = self.medium(done.medium);
        let outcome = match done.outcome {
            None => Outcome::Dead,
            Some(Err(why)) => Outcome::Failed(why),
            Some(Ok(thing)) => Outcome::Done(number(self, thing)),
        };
        Worked { medium, calls: u8::try_from(done.calls).expect("few"), outcome }
    }

    /// The server's work.
    pub fn take(&mut self, server: u32, request: u32) -> Taken {
        if let Some(known) = self.taken.get(&(server, request)) {
            return *known;
        }
        let (now, sent, fault) = (self.servers.get(server), self.requests.get(request), self.bounds.fault);
        let verdict = match now.opened(&sent, fault) {
            Err(kind) => Verdict { server: (*now).clone(), outcome: Err(kind) },
            Ok(challenge) => {
                let by = now.verifies_by(&sent, challenge);
                let verified = self.verified.entry((request, by)).or_insert_with(|| now.verified(&sent, challenge));
                now.take(verified, fault)
            }
        };
        let taken = Taken {
            locked: !verdict.server.locks.is_empty(),
            server: self.server(verdict.server),
            outcome: verdict.outcome.map(|granted| {
                let key = serde_json::to_string(&granted.answer).expect("plain data");
                let answer = self.answers.number(granted.answer, key);
                let (kind, exempt, by_code) = (granted.kind, granted.exempt, granted.by_code);
                Grant { kind, exempt, by_code, followed: granted.followed, answer }
            }),
        };
        self.taken.insert((server, request), taken);
        taken
    }

    /// The device makes a key for a recovery code: its medium then, and the key's number in the pool.
    pub fn recovery_code(&mut self, medium: u32, who: Who) -> Result<(u32, u8), String> {
        let done = holder::recovery_code(&self.mediums.get(medium), who);
        let code = done.outcome.ok_or("it was to live")??;
        Ok((self.medium(done.medium), code))
    }

    /// The mediums that a power cut may leave.
    pub fn cuts(&mut self, medium: u32) -> Rc<Vec<u32>> {
        if let Some(known) = self.cuts.get(&medium) {
            return known.clone();
        }
        let left: Vec<_> = self.mediums.get(medium).cuts().into_iter().map(|left| self.medium(left)).collect();
        self.cuts.entry(medium).or_insert(Rc::new(left)).clone()
    }

    /// Explores all that can happen, nearest first.
    pub fn explore(&mut self) -> Explored {
        let first = self.first();
        let mut seen = HashSet::from([first]);
        // Each with where it came from.
        let mut found: Vec<(State, usize, Move)> = vec![(first, 0, Move::Time)];
        let (mut at, mut transitions, mut depth, mut level_ends) = (0, 0, 0, 1);
        let mut violation = None;
        while at < found.len() && found.len() < self.bounds.states {
            if at == level_ends {
                (depth, level_ends) = (depth + 1, found.len());
            }
            let mut next = vec![];
            let broken = self.moves(&found[at].0, &mut next).err();
            transitions += next.len();
            for (step, state) in next {
                if seen.insert(state) {
                    found.push((state, at, step));
                }
            }
            if let Some((step, rule)) = broken {
                let mut path = vec![step];
                let mut from = at;
                while from != 0 {
                    path.push(found[from].2);
                    from = found[from].1;
                }
                path.reverse();
                violation = Some(Violation { rule, path });
                break;
            }
            at += 1;
        }
        let runs = self.prepared.len() + self.received.len() + self.taken.len();
        Explored { states: found.len(), transitions, depth, runs, exhausted: at == found.len(), violation }
    }
}
