//! The cluster's CAs, as an operator sees and replaces them.

use super::Operator;
use super::error::{OperatorError, refused};
use crate::rotation::{Rotation, RotationError, RotationRequest};
use boundkey_api::actor::Actor;
use boundkey_api::call::{CaReport, CaRotate, CaRotated, CaStatus};
use boundkey_join::{Problem, ProblemType};

impl Operator {
    pub(crate) fn ca_status(&self, _: CaStatus, _: &Actor) -> Result<CaReport, OperatorError> {
        Ok(self.rotation()?.report(self.clock.now())?)
    }

    pub(crate) fn ca_rotate(&self, call: CaRotate, actor: &Actor) -> Result<CaRotated, OperatorError> {
        let CaRotate { to: target, cancel, yes, compromised } = call;
        if cancel && target.is_some() {
            return refused(ProblemType::BadRequest, "a CA is withdrawn, or a step is made: not both");
        }
        Ok(self.rotation()?.rotate(RotationRequest { target, cancel, yes, compromised }, actor)?)
    }

    fn rotation(&self) -> Result<&Rotation, OperatorError> {
        let none = || Problem::new(ProblemType::ServerError, "this server does not replace CAs");
        self.rotation.as_deref().ok_or_else(|| none().into())
    }
}

impl From<RotationError> for OperatorError {
    fn from(error: RotationError) -> Self {
        let kind = match error {
            RotationError::Refused(_) => ProblemType::BadRequest,
            RotationError::DataDir(_) | RotationError::Tls(_) => {
                log::error!("{error}");
                ProblemType::ServerError
            }
        };
        Self::Refused(Problem::new(kind, error.to_string()))
    }
}
