//! Files of the configuration that others can read, or may write.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use boundkey_hal::dir::{Dir, Exposed};
#[cfg(feature = "pkcs11")]
use boundkey_hal::pkcs11::PinSource;
#[cfg(feature = "tpm")]
use boundkey_hal::tpm::AuthSource;

use super::{Config, ConfigError, Keystore, SecretSource, TokenSource, Trust};

impl Config {
    /// Refuses a configuration that others may write: it says which commands run as the agent's user. Likewise a PKCS#11 module, whose
    /// code runs in the agent, and a CA file, which names the CA to trust.
    pub fn check_writers(&self) -> Result<(), ConfigError> {
        let ca_file = match &self.trust {
            Trust::File(path) => Some(("ca_file", &**path)),
            Trust::Pins(_) => None,
        };
        #[cfg(feature = "pkcs11")]
        let module = match &self.keystore {
            Keystore::Pkcs11(config) => Some(("the PKCS#11 module", &*config.module)),
            _ => None,
        };
        #[cfg(not(feature = "pkcs11"))]
        let module = None;
        for (what, path) in [("the configuration", &*self.path)].into_iter().chain(ca_file).chain(module) {
            if let Err(e) = Dir::check_file(path)
                && let Some(exposed) = Exposed::of(&e)
            {
                return Err(ConfigError::new(format!("{what} {} is not used: {exposed}", path.display()), exposed.advice()));
            }
        }
        Ok(())
    }

    pub(super) fn warn_of_exposure(&mut self) {
        // A file that was replaced since it was read is the next start's matter.
        let readers = |path: &Path| std::fs::metadata(path).map_or(0, |m| m.permissions().mode() & 0o044);
        if let Some(SecretSource::File(path)) = &self.onboarding.static_key
            && readers(path) != 0
        {
            let path = path.display();
            self.warnings.push(format!("{path} has a private key in it and others can read it; run chmod 600 {path}"));
        }
        if readers(&self.path) != 0 && matches!(self.onboarding.registration_secret, Some(SecretSource::Value(_))) {
            let path = self.path.display();
            self.warnings.push(format!(
                "{path} has a registration secret in it and others can read it; run chmod 600 {path}, or use registration_secret_path"
            ));
        }
        // A group may be that of the agent's user alone; a systemd credential shows one for its access list.
        if let Some(SecretSource::File(path)) = &self.onboarding.registration_secret
            && readers(path) & 0o004 != 0
        {
            let path = path.display();
            self.warnings.push(format!("{path} has a registration secret in it and others can read it; run chmod 600 {path}"));
        }
        for path in self.secret_files() {
            if let Err(e) = Dir::check_file(&path)
                && let Some(exposed) = Exposed::of(&e)
            {
                self.warnings.push(format!("{exposed}; {}", exposed.advice()));
            }
        }
        for output in self.outputs.iter().filter(|o| o.destination.mode.0 & 0o006 != 0) {
            self.warnings.push(format!(
                "{}: its mode gives the private key to every user of the device; use 0640 and a group",
                output.name
            ));
        }
    }

    /// Files with what others may not choose: the token's name, secrets, keys, PIN and auth value. (A wrong PIN locks a token.)
    fn secret_files(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        if let TokenSource::File(path) = &self.onboarding.token {
            files.push(path.clone());
        }
        for source in [&self.onboarding.static_key, &self.onboarding.registration_secret] {
            if let Some(SecretSource::File(path)) = source {
                files.push(path.clone());
            }
        }
        match &self.keystore {
            Keystore::File => {}
            #[cfg(feature = "pkcs11")]
            Keystore::Pkcs11(config) => {
                if let Some(PinSource::File(path)) = &config.pin {
                    files.push(path.clone());
                }
            }
            #[cfg(feature = "tpm")]
            Keystore::Tpm { auth, .. } => {
                if let Some(AuthSource::File(path)) = auth {
                    files.push(path.clone());
                }
            }
        }
        files
    }
}
