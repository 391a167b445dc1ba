//! Why an operator's call was not done.

use crate::store::StoreError;
use boundkey_join::{Problem, ProblemType};
use boundkey_platform::time::NoRandomness;

/// Times that a change is tried again while joins change what it is about.
const MAX_TRIES: u32 = 20;

/// A refusal, or what the store said.
#[derive(Debug)]
pub(crate) enum OperatorError {
    Refused(Problem),
    Store(StoreError),
}

/// Does `attempt` again while what it read changes under it: operators do not wait for devices to be quiet.
pub(super) fn retry_on_conflict<T>(mut attempt: impl FnMut() -> Result<T, OperatorError>) -> Result<T, OperatorError> {
    let mut tries = 1;
    loop {
        match attempt() {
            Err(OperatorError::Store(StoreError::Conflict(_))) if tries < MAX_TRIES => tries += 1,
            done => return done,
        }
    }
}

pub(super) fn refused<T>(kind: ProblemType, why: impl Into<String>) -> Result<T, OperatorError> {
    Err(OperatorError::Refused(Problem::new(kind, why)))
}

impl From<Problem> for OperatorError {
    fn from(problem: Problem) -> Self {
        Self::Refused(problem)
    }
}

impl From<StoreError> for OperatorError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<NoRandomness> for OperatorError {
    fn from(error: NoRandomness) -> Self {
        Self::Refused(Problem::new(ProblemType::ServerError, error.to_string()))
    }
}

impl From<OperatorError> for Problem {
    /// Operators are told the cause: they are the ones to mend it.
    fn from(error: OperatorError) -> Self {
        match error {
            OperatorError::Refused(problem) => problem,
            OperatorError::Store(error @ StoreError::Conflict(_)) => Self::new(ProblemType::Conflict, error.to_string()),
            OperatorError::Store(error @ StoreError::UnknownCursor) => Self::new(ProblemType::BadRequest, error.to_string()),
            OperatorError::Store(error @ StoreError::Failed(_)) => {
                log::error!("{error}");
                Self::new(ProblemType::ServerError, error.to_string())
            }
        }
    }
}
