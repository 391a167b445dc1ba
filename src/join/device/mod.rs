//! The device's side of a join: one value per state, so that a wrong order does not compile.
//!
//! [`Start`] asks for a challenge; [`challenge::Challenged`] knows which key to prove and whether to make one;
//! [`request::Prepared`] holds every key that it needs and makes the request; [`answer::Issued`] is what came of it. Between
//! them the caller makes durable what must be: new keys and the attempt before the request, the new [`Memory`] after the answer.

pub mod answer;
pub mod challenge;
mod memory;
pub mod request;

pub use challenge::Start;
pub use memory::{CertificateInfo, KEPT_KEYS, KnownKey, MAX_KEYS, Memory, RecoveryKey, TooManyKeys};
