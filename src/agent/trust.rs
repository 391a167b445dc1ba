//! The CAs that the device trusts: those of the newest trust bundle on disk, or before there is one, the pins of the
//! configuration.
//!
//! The bundle takes the place of the pins: a CA that was retired is trusted no more, though the configuration still pins it. It counts
//! only while the configuration has the pin from which it came; a configuration with other pins begins anew from those.

use rustls::pki_types::CertificateDer;

use super::config::Config;
use super::error::AgentError;
use super::run::roots;
use super::tls::Roots;
use boundkey_join::trust::{CaCertificate, PIN, Pin, pin_text};
use boundkey_join::{TrustBundle, Trusted};
use boundkey_state::Storage;

/// Name of the file in the storage: the pin, and the bundle, a line each.
pub const TRUST_FILE: &str = "trust";

/// The CAs that a device trusts.
pub struct DeviceTrust {
    configured: Roots,
    pins: Vec<Pin>,
    /// The bundle, once there is one.
    pub trusted: Option<Trusted>,
}

impl DeviceTrust {
    /// What the configuration says, and what the storage has for it.
    ///
    /// # Errors
    /// Those of the configuration; [`AgentError::Storage`] where the medium does not let the file be read. A damaged one is not used, which
    /// is logged: the server sends every bundle again.
    pub fn load(config: &Config, storage: Option<&dyn Storage>) -> Result<Self, AgentError> {
        let configured = roots(config)?;
        let pins = configured.pins();
        let mut trust = Self { configured, pins, trusted: None };
        let failed = |e| AgentError::Storage(TRUST_FILE.into(), e);
        let read = storage.map(|storage| storage.read(TRUST_FILE)).transpose().map_err(failed)?;
        let Some(bytes) = read.flatten() else {
            return Ok(trust);
        };
        match parse(&bytes) {
            Some(trusted) if trust.pins.contains(&trusted.anchor) => trust.trusted = Some(trusted),
            Some(_) => {
                log::warn!("{TRUST_FILE} came from a pin that the configuration does not have: beginning anew from its pins");
            }
            None => log::warn!("{TRUST_FILE} is damaged and is not used: beginning anew from the pins of the configuration"),
        }
        Ok(trust)
    }

    /// What the certificate of the server is verified with.
    pub fn roots(&self) -> Roots {
        self.trusted.as_ref().map_or_else(|| self.configured.clone(), |trusted| Roots::of(&trusted.bundle))
    }

    /// Sequence number of the bundle at hand.
    pub fn sequence(&self) -> Option<u64> {
        self.trusted.as_ref().map(|trusted| trusted.bundle.sequence())
    }

    /// What the device will trust if it takes these bundles; nothing is stored.
    pub fn next(&self, texts: &[String]) -> Result<Trusted, boundkey_join::TrustError> {
        match &self.trusted {
            Some(trusted) => trusted.follow(texts),
            None => Trusted::begin(&self.pins, texts),
        }
    }

    /// Stores `trusted`, where it is another than the one at hand. Returns whether it was.
    pub fn take(&mut self, storage: &mut dyn Storage, trusted: Trusted) -> Result<bool, AgentError> {
        if self.trusted.as_ref() == Some(&trusted) {
            return Ok(false);
        }
        let text = format!("{}\n{}\n", pin_text(&trusted.anchor), trusted.bundle.text());
        storage.replace(TRUST_FILE, text.as_bytes()).map_err(|e| AgentError::Storage(TRUST_FILE.into(), e))?;
        self.trusted = Some(trusted);
        Ok(true)
    }
}

impl Roots {
    /// The CAs of a bundle.
    pub fn of(bundle: &TrustBundle) -> Self {
        let own = bundle.roots().iter().filter_map(|root| root.chain.first());
        Self::Certificates(own.map(|der| CertificateDer::from(der.clone())).collect())
    }

    /// SHA-256 of the SubjectPublicKeyInfo of each.
    fn pins(&self) -> Vec<Pin> {
        match self {
            Self::Pins(pins) => pins.clone(),
            Self::Certificates(all) => all.iter().filter_map(|der| Some(CaCertificate::read(der)?.pin())).collect(),
        }
    }
}

/// Reads the file.
pub fn parse(bytes: &[u8]) -> Option<Trusted> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (pin, bundle) = text.strip_suffix('\n')?.split_once('\n')?;
    let pin = pin.strip_prefix(PIN).filter(|pin| pin.len() == 64 && pin.is_ascii())?;
    let mut anchor = [0; 32];
    for (byte, at) in anchor.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(&pin[at..at + 2], 16).ok()?;
    }
    Some(Trusted { anchor, bundle: TrustBundle::open(bundle).ok()? })
}
