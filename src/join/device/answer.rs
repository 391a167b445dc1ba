//! What a device makes of the server's answer: its next memory, to be written before anything else is done.

use super::memory::{CertificateInfo, KnownKey, Memory};
use super::request::Prepared;
use crate::message::JoinAnswer;
use crate::{MAX_DETAIL, MAX_JOIN_STATE, Thumbprint, base64url};
use boundkey_platform::text;

/// Most warnings that are taken of an answer, each of at most [`MAX_DETAIL`] bytes.
const MAX_WARNINGS: usize = 16;

/// A device that has joined.
#[derive(Debug)]
pub struct Issued {
    /// What it remembers from now on.
    pub memory: Memory,
    /// Its identity certificate, DER.
    pub certificate: Vec<u8>,
    /// The answer, with all else that was issued.
    pub answer: JoinAnswer,
    /// Keys that [`Self::memory`] no longer has. They may be deleted once it is known that the answer is genuine.
    pub superseded: Vec<KnownKey>,
}

/// Why an answer that arrived whole cannot be used. Nothing of it may be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnswerError {
    /// A certificate that is not base64url.
    Certificate,
    /// A join state longer than [`MAX_JOIN_STATE`].
    JoinState,
    /// The server says that a key is bound which neither signed this join nor was to replace the one that did.
    OtherKey(Thumbprint),
    /// Another number of certificates than was asked for.
    Outputs,
    /// The server says that a key is bound which this device does not have (conformance C150).
    UnknownKey(Thumbprint),
}

impl std::fmt::Display for AnswerError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Certificate => f.write_str("the answer holds a certificate that is not base64url"),
            Self::JoinState => write!(f, "the answer holds a join state of more than {MAX_JOIN_STATE} bytes"),
            Self::OtherKey(key) => write!(f, "the answer says that key {key} is bound, which had no part in this join"),
            Self::Outputs => f.write_str("the answer holds another number of certificates than was asked for"),
            Self::UnknownKey(key) => write!(f, "the answer says that key {key} is bound, which this device does not have"),
        }
    }
}

impl std::error::Error for AnswerError {}

impl Prepared<'_> {
    /// Takes the answer; all but the time that it tells, which the caller judges by how the server showed itself.
    pub fn answered(self, mut answer: JoinAnswer) -> Result<Issued, AnswerError> {
        // They are kept for `boundkey status`, and go into the log, where a line feed begins a line of our own.
        answer.warnings.truncate(MAX_WARNINGS);
        for warning in &mut answer.warnings {
            *warning = text::brief(warning, MAX_DETAIL);
        }
        let certificate = base64url::decode(&answer.identity.certificate).map_err(|_| AnswerError::Certificate)?;
        if answer.join_state.len() > MAX_JOIN_STATE {
            return Err(AnswerError::JoinState);
        }
        if answer.outputs.len() != self.outputs {
            return Err(AnswerError::Outputs);
        }
        let mut memory = self.memory.clone();
        memory.bind(answer.key)?;
        if answer.key != self.signer && Some(answer.key) != self.successor {
            return Err(AnswerError::OtherKey(answer.key));
        }
        let superseded = memory.take_superseded(self.signer);
        let mut fingerprint = [0; 32];
        fingerprint.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, &certificate).as_ref());
        let memory = Memory {
            cluster: answer.cluster.clone(),
            incarnation: Some(answer.incarnation),
            step: Some(answer.step),
            join_state: Some(answer.join_state.clone()),
            attempt: None,
            certificate: Some(CertificateInfo {
                serial: answer.identity.serial.clone(),
                not_before: answer.identity.not_before,
                not_after: answer.identity.not_after,
                fingerprint,
            }),
            recoveries: Some(answer.recoveries),
            ..memory
        };
        Ok(Issued { memory, certificate, answer, superseded })
    }
}

impl Memory {
    /// Notes that `key` is the bound one. It comes before every key that was bound earlier.
    fn bind(&mut self, key: Thumbprint) -> Result<(), AnswerError> {
        let place = self.keys.iter().position(|k| k.thumbprint == key).ok_or(AnswerError::UnknownKey(key))?;
        self.keys[place].bound = true;
        if self.keys[..place].iter().any(|k| k.bound) {
            let key = self.keys.remove(place);
            self.keys.insert(0, key);
        }
        Ok(())
    }
}
