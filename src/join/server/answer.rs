//! From a grant to its answer: everything is signed, then the effects are made durable, and only then the answer leaves.

use super::decision::Grant;
use super::effects::Effects;
use super::request::Verified;
use super::view::TokenView;
use crate::message::{IssuedCertificate, JoinAnswer};
use crate::{Claims, Recoveries};
use boundkey_platform::time::Timestamp;

/// A grant, with everything that was signed for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    grant: Grant,
    claims: Claims,
    signed: Signed,
    recoveries: Recoveries,
}

/// What the cluster's CA signs for a grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// The join state: [`Grant::claims`], signed.
    pub join_state: String,
    /// The identity certificate, of the subject that the same claims name.
    pub identity: IssuedCertificate,
    /// The other certificates, in the order asked for.
    pub outputs: Vec<IssuedCertificate>,
}

/// What the answer tells beside the step.
#[derive(Clone, Debug, Default)]
pub struct Notices {
    /// Trust bundles that the device lacks, oldest first.
    pub bundles: Vec<String>,
    /// What a person should know, one sentence each.
    pub warnings: Vec<String>,
}

impl Issued {
    /// `signed` is what was signed for `grant` of `token`, from these `claims`.
    pub fn new(grant: Grant, claims: Claims, signed: Signed, token: &TokenView<'_>) -> Self {
        let recoveries = grant.status.recoveries(token.spec);
        Self { grant, claims, signed, recoveries }
    }

    /// The grant.
    pub fn grant(&self) -> &Grant {
        &self.grant
    }

    /// Every certificate that was issued.
    pub fn certificates(&self) -> impl Iterator<Item = &IssuedCertificate> {
        self.signed.outputs.iter().chain([&self.signed.identity])
    }

    /// What is to be made durable before the answer is sent.
    pub fn effects(&self, token: &TokenView<'_>, request: &Verified) -> Effects {
        Effects::of_issued(self, token, request)
    }

    /// The answer, once [`Self::effects`] are durable.
    pub fn answer(self, notices: Notices, now: Timestamp) -> JoinAnswer {
        let Notices { bundles, mut warnings } = notices;
        warnings.extend(self.few_recoveries_left());
        let Self { grant, claims, signed, recoveries } = self;
        JoinAnswer {
            kind: grant.kind,
            cluster: claims.iss,
            incarnation: claims.inc,
            step: grant.step,
            key: claims.jkt,
            join_state: signed.join_state,
            recoveries,
            identity: signed.identity,
            outputs: signed.outputs,
            bundle: Some(bundles).filter(|bundles| !bundles.is_empty()),
            warnings,
            time: now,
        }
    }

    fn few_recoveries_left(&self) -> Option<String> {
        let left = match self.recoveries.remaining()? {
            0 => "no recovery is",
            1 => "one recovery is",
            _ => return None,
        };
        let token = &self.claims.sub;
        Some(format!(
            "{left} left: raise spec.bound_keypair.recovery.limit of token {token} before this device loses its certificate"
        ))
    }
}
