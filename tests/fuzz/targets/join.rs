//! A whole join on the server but for storage: verification and decision, of a request and on a token that are both fuzzed.
//!
//! The input is JSON with forms ([`super::form`]): `spec` and `status` as an operator's document has them, `locks`, and the `request`:
//! a JWS, most often a form. With `host` it is a host's, else a bot's. What does not read as such is replaced by [`bound_status`].

use boundkey::join::jws::Header;
use boundkey::join::message::JoinRequest;
use boundkey::join::server::challenge::Challenge;
use boundkey::join::server::decision::{Fresh, Grant, Refusal, Token, decide};
use boundkey::join::server::record::{LastStep, Spec, Status, rotation_due};
use boundkey::join::server::request::{Context, Holder, ShownCertificate, Verified, peek, shown_certificate, verify};
use boundkey::join::{Claims, Id, JoinKind, Jws, MAX_JOIN_STATE, RecoveryMode, SshKey, Step, Thumbprint};
use boundkey::time::Timestamp;
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
    let for_bot = part("host") != Value::Bool(true);
    let jws: Jws = match serde_json::from_value(part("request")) {
        Ok(jws) => jws,
        Err(e) => return refused(&e),
    };
    let context = Context {
        cluster: CLUSTER,
        token: TOKEN,
        for_bot,
        spec: &spec,
        status: &status,
        challenge: Challenge { revision: 1, rotate: rotation_due(&spec, &status, NOW), expires: NOW },
        join_state_keys: std::slice::from_ref(&SERVER.public),
        server_names: &["localhost".to_owned(), "::1".to_owned()],
        certificate: &certificate,
    };
    let (request, verified) = match verify(&jws, &context) {
        Ok(verified) => verified,
        Err(e) => return format!("refused: {:?} {e}", e.kind),
    };
    assert_eq!(peek(&jws).as_ref(), Ok(&request), "what is verified is what was looked up");
    assert!(verified.certificate.is_none() || shown_certificate(&request).is_some());
    let last = status.last_step.clone().filter(|_| request.ttl.is_some());
    let instance = verified.certificate.as_ref().and_then(|c| Some((c.holder.step.instance, last.as_ref()?)));
    let token = Token { for_bot, spec: &spec, status: &status, instance };
    let fresh = Fresh { instance: Id([5; 16]), now: NOW, not_after: NOW };
    match decide(token, &locks, &verified, fresh) {
        Ok(grant) => {
            assert!(locks.is_empty(), "granted under a lock");
            granted(&context, &request, &verified, &grant)
        }
        Err(refusal) => {
            stranger_locks_nobody(&status, &verified, &refusal);
            let kind = refusal.problem.kind;
            format!("refused: {kind:?} {} {:?}", refusal.problem, refusal.lock.is_some())
        }
    }
}

/// An identity certificate: here the JSON of what it says.
fn certificate(der: &[u8]) -> Result<ShownCertificate, String> {
    let (incarnation, step, host, not_after): (Id, Step, bool, Timestamp) =
        serde_json::from_slice(der).map_err(|e| e.to_string())?;
    let holder = Holder { cluster: CLUSTER.into(), token: TOKEN.into(), incarnation, host, step };
    Ok(ShownCertificate { holder, not_after, key: IDENTITY.public.clone() })
}

fn stranger_locks_nobody(status: &Status, verified: &Verified, refusal: &Refusal) {
    let print = Thumbprint::of(&verified.key);
    let bound = status.bound_public_key.as_ref().is_some_and(|bound| bound.0 == verified.key);
    let named = verified.presented.as_ref().and_then(|p| p.claims.as_ref().ok()).is_some_and(|claims| claims.jkt == print);
    assert!(refusal.lock.is_none() || bound || named, "a stranger's lock");
    assert_eq!(refusal.lock.is_some(), refusal.caught.is_some());
}

fn granted(context: &Context<'_>, request: &JoinRequest, verified: &Verified, grant: &Grant) -> Told {
    let Context { spec, status: before, .. } = context;
    let after = &grant.status;
    assert!(after.recovery_count >= before.recovery_count, "recoveries come back");
    assert_eq!(grant.attempt, request.attempt);
    let standard = spec.recovery.mode == RecoveryMode::Standard;
    match grant.kind {
        JoinKind::Replay => assert_eq!(after, *before, "a replay changes nothing"),
        JoinKind::First | JoinKind::Recovery if standard && grant.exemption.is_none() => {
            assert!(after.recovery_count <= spec.recovery.limit, "beyond the limit");
        }
        JoinKind::Renewal => assert!(verified.certificate.is_some(), "a renewal without a certificate"),
        _ => {}
    }
    assert_eq!(grant.rotated_from.is_some(), verified.rotate && !matches!(grant.kind, JoinKind::First | JoinKind::Replay));
    let stored = serde_json::to_string(after).expect("it is stored so");
    assert_eq!(serde_json::from_str::<Status>(&stored).as_ref().ok(), Some(after), "{stored}");
    let claims = Claims {
        iss: CLUSTER.into(),
        sub: TOKEN.into(),
        inc: Id([9; 16]),
        host: !context.for_bot,
        step: grant.step,
        jkt: Thumbprint::of(&grant.key),
        jti: grant.attempt,
        iat_ms: grant.issued_at_ms,
    };
    let state = claims.sign(&SERVER.public, |message| SERVER.sign(message)).expect("a key in memory signs");
    assert!(state.len() <= MAX_JOIN_STATE);
    assert_eq!(Claims::verify(&state, std::slice::from_ref(&SERVER.public)), Ok(claims));
    let header = Header::by_key(&grant.key);
    let (followed, exempt) = (grant.rolled_forward.is_some(), grant.exemption.is_some());
    format!("ok: {:?} {followed} {exempt} {} {}", grant.kind, grant.rotated_from.is_some(), header.alg)
}
