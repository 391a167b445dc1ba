//! JWS in both forms, and challenges: what anyone may send before any key is known.
//!
//! First byte: 0 a flattened JWS in JSON; 1 a compact one, which is also tried as join state and as challenge; 2 header and payload,
//! apart at the first line break, which are signed here.

use boundkey::join::server::challenge::SealingKey;
use boundkey::join::server::request::{challenge_of, peek, shown_certificate};
use boundkey::join::{Claims, Id, Jws, base64url};
use boundkey::platform::time::Timestamp;
use serde_json::Value;

use super::form::SECRET;
use super::keys::{BOUND, OTHER, SERVER};
use super::{Told, choice, refused};

/// The one payload that seeds carry under a real signature.
pub const SIGNED: &str = r#"{"iss":"joe"}"#;

pub fn run(data: &[u8]) -> Told {
    let (way, data) = choice(data);
    match (way % 3, std::str::from_utf8(data)) {
        (0, _) => match serde_json::from_slice::<Jws>(data) {
            Ok(jws) => found(&jws),
            Err(e) => refused(&e),
        },
        (_, Err(e)) => refused(&e),
        (1, Ok(text)) => compact(text),
        (_, Ok(text)) => signed(text.split_once('\n').unwrap_or((text, ""))),
    }
}

fn found(jws: &Jws) -> Told {
    let request = peek(jws);
    let shown = request.as_ref().ok().and_then(shown_certificate).is_some();
    let challenge = challenge_of(jws);
    let verified = jws.verify::<Value>(&BOUND.public);
    if let Ok(payload) = &verified {
        assert_eq!(payload.to_string(), SIGNED, "a signature over something that was never signed");
    }
    let told = jws.verify_hmac::<Value>(SECRET.as_bytes());
    format!("ok: {:?} {:?} {shown} {verified:?} {told:?}", request.err(), challenge.err())
}

fn compact(text: &str) -> Told {
    let open = SealingKey::new(&[7; 32]).open("t", Id([8; 16]), text, Timestamp::from_secs(1_800_000_000));
    let claims = Claims::verify(text, std::slice::from_ref(&SERVER.public));
    match Jws::from_compact(text) {
        Ok(jws) => {
            assert_eq!(jws.to_compact(), text);
            format!("{} {claims:?} {open:?}", found(&jws))
        }
        Err(e) => format!("refused: {e} {claims:?} {open:?}"),
    }
}

/// Signed by our own key: the payload comes out as it went in, for that key alone, and under a header that names its algorithm.
fn signed((header, payload): (&str, &str)) -> Told {
    let (protected, payload64) = (base64url::encode(header), base64url::encode(payload));
    let signature = BOUND.sign(format!("{protected}.{payload64}").as_bytes()).expect("a key in memory signs");
    let jws = Jws { protected, payload: payload64, signature: base64url::encode(signature.as_bytes()) };
    let verified = jws.verify::<Value>(&BOUND.public);
    let fits = jws.header().is_ok_and(|header| header.alg == "ES256");
    assert_eq!(verified.clone().ok(), serde_json::from_str(payload).ok().filter(|_| fits));
    assert!(jws.verify::<Value>(&OTHER.public).is_err(), "another key");
    let other = Jws { payload: base64url::encode(format!("{payload} ")), ..jws.clone() };
    assert!(other.verify::<Value>(&BOUND.public).is_err(), "another payload");
    assert!(jws.verify_hmac::<Value>(BOUND.public.as_bytes()).is_err(), "the public key is no secret");
    format!("ok: {:?} {:?} {:?}", verified.map(|v| v.is_object()), jws.header(), peek(&jws).err())
}
