//! A whole join on the server but for storage: verification and decision, of a request and on a token that are both fuzzed.
//!
//! The input is JSON with forms ([`super::form`]): `spec` and `status` as an operator's document has them, `locks`, and the `request`:
//! a JWS, most often a form. With `host` it is a host's, else a bot's; with `stale` its
//! challenge is stale; with `instance` the bound instance goes on from a step of its own. What does not read as such is replaced by [`bound_status`].

use boundkey::join::identity::{IdentitySubject, InstanceKind};
use boundkey::join::jws::Header;
use boundkey::join::message::{IssuedCertificate, JoinRequest};
use boundkey::join::server::answer::{Issued, Notices, Signed};
use boundkey::join::server::challenge::Challenge;
use boundkey::join::server::decision::{Fresh, Grant, Refusal, decide};
use boundkey::join::server::effects::LockChange;
use boundkey::join::server::record::{LastStep, Spec, Status};
use boundkey::join::server::request::{Cluster, Opened, ShownCertificate, Verified, peek, shown_certificate};
use boundkey::join::server::view::{InstanceView, LockInForce, TokenView};
use boundkey::join::{Claims, Id, JoinKind, Jws, MAX_JOIN_STATE, ProblemType, RecoveryMode, SshKey, Step, Thumbprint};
use boundkey::platform::time::Timestamp;
use serde_json::Value;

use super::form::{SECRET, filled};
use super::keys::{BOUND, IDENTITY, SERVER};
use super::{Told, refused};

pub const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);
const CLUSTER: &str = "c";
const TOKEN: &str = "t";

/// A token that a device has joined with.
pub fn bound_status() -> Status {
    Status {
        registration_secret: Some(SECRET.into()),
        bound_public_key: Some(SshKey(BOUND.public.clone())),
        bound_bot_instance_id: Some(Id([7; 16])),
        recovery_count: 1,
        incarnation: Some(Id([9; 16])),
        last_step: Some(LastStep {
            generation: 3,
            issued_at_ms: NOW.millis() - 1000,
            attempt: Id([1; 16]),
            from: None,
            not_after: NOW,
        }),
        ..Status::default()
    }
}

pub fn run(data: &[u8]) -> Told {
    let Ok(Value::Object(mut parts)) = serde_json::from_slice(data).map(filled) else {
        return "refused: no JSON object".into();
    };
    let mut part = |name| parts.remove(name).unwrap_or_default();
    let spec: Spec = serde_json::from_value(part("spec")).unwrap_or_default();
    let status: Status = serde_json::from_value(part("status")).unwrap_or_else(|_| bound_status());
    let locks: Vec<String> = serde_json::from_value(part("locks")).unwrap_or_default();
    let kind = InstanceKind::from(part("host") == Value::Bool(true));
    let is_stale = part("stale") == Value::Bool(true);
    let shares_instance = part("instance") == Value::Bool(true);
    let jws: Jws = match serde_json::from_value(part("request")) {
        Ok(jws) => jws,
        Err(e) => return refused(&e),
    };
    let locks: Vec<_> = locks.into_iter().map(|message| LockInForce { instance: None, opened_by_code: false, message }).collect();
    let instances = Vec::from_iter(status.last_step.clone().filter(|_| shares_instance).map(|last_step| InstanceView {
        id: Id([7; 16]),
        revision: 1,
        last_step,
    }));
    let token = TokenView {
        name: TOKEN,
        kind,
        spec: &spec,
        status: &status,
        trust_bundle: None,
        revision: 1,
        epoch: Id([8; 16]),
        locks: &locks,
        instances: &instances,
    };
    let cluster = Cluster {
        name: CLUSTER,
        join_state_keys: std::slice::from_ref(&SERVER.public),
        server_names: &["localhost".to_owned(), "::1".to_owned()],
        certificate: &certificate,
    };
    let mut challenge = Challenge::new(&token, Some(Id([7; 16])), NOW);
    if is_stale {
        challenge.anchor.revision += 1;
    }
    let (request, verified) = match Opened::new(&jws, &cluster, token, challenge).verify() {
        Ok(verified) => verified,
        Err(e) => return format!("refused: {:?} {e}", e.kind),
    };
    assert_eq!(peek(&jws).as_ref(), Ok(&request), "what is verified is what was looked up");
    assert!(verified.certificate.is_none() || shown_certificate(&request).is_some());
    let fresh = Fresh { instance: Id([5; 16]), now: NOW, not_after: NOW };
    match decide(&token, &verified, fresh) {
        Ok(grant) => {
            assert!(locks.is_empty(), "granted under a lock");
            assert!(!verified.stale, "granted on a stale challenge");
            granted(&token, &request, &verified, &grant)
        }
        Err(refusal) => {
            stranger_locks_nobody(&status, &verified, &refusal);
            refused_changes_nothing_else(&token, &verified, &refusal);
            let kind = refusal.problem.kind;
            let told = matches!(kind, ProblemType::ChallengeStale | ProblemType::JoinStateMismatch | ProblemType::Locked);
            assert!(!verified.stale || told, "a stale request is told {kind:?}");
            format!("refused: {kind:?} {} {:?}", refusal.problem, refusal.lock_reason().is_some())
        }
    }
}

/// What is written tells what was granted, and the answer does.
fn issued(token: &TokenView<'_>, verified: &Verified, grant: &Grant, claims: Claims, join_state: String) {
    let identity =
        IssuedCertificate { certificate: String::new(), serial: "1".into(), not_before: NOW, not_after: grant.not_after };
    let signed = Signed { join_state, identity, outputs: vec![] };
    let issued = Issued::new(grant.clone(), claims, signed, token);
    let effects = issued.effects(token, verified);
    let written = effects.token.map_or_else(|| token.status.clone(), |record| record.status);
    assert_eq!(written, grant.status);
    assert_eq!(effects.locks, if grant.by_code { LockChange::LiftOwn } else { LockChange::None });
    let record = effects.instance.expect("of every grant");
    assert_eq!((record.id, record.generation), (grant.step.instance, grant.step.generation));
    assert_eq!(effects.issued.len(), 1);
    let answer = issued.answer(Notices::default(), NOW);
    assert_eq!((answer.step, answer.key), (grant.step, Thumbprint::of(&grant.key)));
    assert_eq!(answer.recoveries.count, grant.status.recovery_count);
}

/// An identity certificate: here the JSON of what it says.
fn certificate(der: &[u8]) -> Result<ShownCertificate, String> {
    let (incarnation, step, kind, not_after): (Id, Step, InstanceKind, Timestamp) =
        serde_json::from_slice(der).map_err(|e| e.to_string())?;
    let subject = IdentitySubject { cluster: CLUSTER.into(), token: TOKEN.into(), incarnation, kind, step };
    Ok(ShownCertificate { subject, not_after, key: IDENTITY.public.clone() })
}

fn stranger_locks_nobody(status: &Status, verified: &Verified, refusal: &Refusal) {
    let print = Thumbprint::of(&verified.key);
    let bound = status.bound_public_key.as_ref().is_some_and(|bound| bound.0 == verified.key);
    let named = verified.presented.as_ref().and_then(|p| p.claims.as_ref().ok()).is_some_and(|claims| claims.jkt == print);
    assert!(refusal.lock_reason().is_none() || bound || named, "a stranger's lock");
}

/// A refusal leaves the token as it is, and locks it only for two holders.
fn refused_changes_nothing_else(token: &TokenView<'_>, verified: &Verified, refusal: &Refusal) {
    let effects = refusal.effects(token, Some(verified));
    let locks = matches!(effects.locks, LockChange::Add(_));
    assert_eq!(locks, refusal.lock_reason().is_some());
    assert_eq!(effects.token.is_some(), locks, "what runs beside a lock does not hold");
    assert!(effects.token.is_none_or(|record| record.status == *token.status));
    assert!(effects.instance.is_none() && effects.issued.is_empty());
}

fn granted(token: &TokenView<'_>, request: &JoinRequest, verified: &Verified, grant: &Grant) -> Told {
    let TokenView { spec, status: before, .. } = token;
    let after = &grant.status;
    assert!(after.recovery_count >= before.recovery_count, "recoveries come back");
    assert_eq!(grant.attempt, request.attempt);
    let standard = spec.recovery.mode == RecoveryMode::Standard;
    match grant.kind {
        JoinKind::Replay => {
            let kept = Status { exemption: before.exemption.clone(), ..after.clone() };
            assert_eq!(&kept, *before, "a replay changes nothing but the waiver");
        }
        JoinKind::First | JoinKind::Recovery if standard && !grant.exemption.is_some_and(|used| used.paid) => {
            assert!(after.recovery_count <= spec.recovery.limit, "beyond the limit");
        }
        JoinKind::Renewal => assert!(verified.certificate.is_some(), "a renewal without a certificate"),
        _ => {}
    }
    assert_eq!(
        grant.rotated_from.is_some(),
        verified.challenge.rotate && !matches!(grant.kind, JoinKind::First | JoinKind::Replay)
    );
    let stored = serde_json::to_string(after).expect("it is stored so");
    assert_eq!(serde_json::from_str::<Status>(&stored).as_ref().ok(), Some(after), "{stored}");
    let Ok(claims) = grant.claims(CLUSTER, token) else { return "refused: no incarnation".into() };
    let state = claims.sign(&SERVER.public, |message| SERVER.sign(message)).expect("a key in memory signs");
    assert!(state.len() <= MAX_JOIN_STATE);
    assert_eq!(Claims::verify(&state, std::slice::from_ref(&SERVER.public)).as_ref(), Ok(&claims));
    issued(token, verified, grant, claims, state);
    let header = Header::by_key(&grant.key);
    let (followed, exempt) = (grant.rolled_forward.is_some(), grant.exemption.is_some());
    format!("ok: {:?} {followed} {exempt} {} {}", grant.kind, grant.rotated_from.is_some(), header.alg)
}
