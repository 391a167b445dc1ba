//! Forms: JSON in which some objects stand for what only a key holder can make, so that mutations get past the signatures.
//!
//! | form | becomes |
//! | --- | --- |
//! | `{"by": KEY, "header": H, "payload": P}` | a JWS of P under H, signed by the key; by `secret`: an HMAC |
//! | the same with `"compact": true` | the same, as text |
//! | `{"jwk": KEY}`, `{"jkt": KEY}`, `{"ssh": KEY}` | the key's public half, its thumbprint, its line of `authorized_keys` |
//! | `{"base64": V}`, `{"base64url": V}` | V's JSON, or its text where it is text, encoded |
//!
//! KEY is a name in [`keys::named`].

use base64::Engine as _;
use boundkey::join::{Jwk, Jws, SshKey, Thumbprint, base64url};
use ring::hmac;
use serde_json::{Map, Value, json};

use super::keys;

/// The registration secret of the fuzzed world.
pub const SECRET: &str = "s3cret";

/// The value with every form in it filled in. What is no form stays as it is.
pub fn filled(value: Value) -> Value {
    match value {
        Value::Array(values) => values.into_iter().map(filled).collect(),
        Value::Object(members) => {
            let members: Map<_, _> = members.into_iter().map(|(name, value)| (name, filled(value))).collect();
            form(&members).unwrap_or(Value::Object(members))
        }
        plain => plain,
    }
}

fn form(members: &Map<String, Value>) -> Option<Value> {
    if let (Some(by), Some(payload)) = (members.get("by"), members.get("payload")) {
        let jws = signed(by.as_str()?, members.get("header").unwrap_or(&json!({})), payload)?;
        let compact = members.get("compact") == Some(&Value::Bool(true));
        return if compact { Some(jws.to_compact().into()) } else { serde_json::to_value(jws).ok() };
    }
    let (name, value) = members.iter().next().filter(|_| members.len() == 1)?;
    let key = || keys::named(value.as_str()?);
    match name.as_str() {
        "base64" => Some(base64::engine::general_purpose::STANDARD.encode(bytes(value)).into()),
        "base64url" => Some(base64url::encode(bytes(value)).into()),
        "jkt" => Some(Thumbprint::of(&key()?.public).to_string().into()),
        "jwk" => serde_json::to_value(Jwk::from(&key()?.public)).ok(),
        "ssh" => Some(SshKey(key()?.public.clone()).to_string().into()),
        _ => None,
    }
}

/// A JWS over header and payload as they stand; text stands for its bytes.
pub fn signed(by: &str, header: &Value, payload: &Value) -> Option<Jws> {
    let (protected, payload) = (base64url::encode(bytes(header)), base64url::encode(bytes(payload)));
    let input = format!("{protected}.{payload}");
    let signature = if by == "secret" {
        base64url::encode(hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes()), input.as_bytes()))
    } else {
        base64url::encode(keys::named(by)?.sign(input.as_bytes()).expect("a key in memory signs").as_bytes())
    };
    Some(Jws { protected, payload, signature })
}

fn bytes(value: &Value) -> Vec<u8> {
    value.as_str().map_or_else(|| value.to_string().into_bytes(), |text| text.as_bytes().to_vec())
}
