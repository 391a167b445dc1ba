//! Files of the configuration that others can read, or may write.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use boundkey_hal::dir::{Dir, Exposed};
#[cfg(feature = "pkcs11")]
use boundkey_hal::pkcs11::PinSource;
#[cfg(feature = "tpm")]
use boundkey_hal::tpm::AuthSource;

use super::{Config, ConfigError, ConfigWarning, Keystore, SecretKind, SecretSource, TokenSource, Trust};

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
        let exposed_secret = |path: &Path, secret, is_configuration| ConfigWarning::ExposedSecret {
            path: path.to_path_buf(),
            secret,
            is_configuration,
        };
        let mut warnings = Vec::new();
        if let Some(SecretSource::File(path)) = &self.onboarding.static_key
            && readers(path) != 0
        {
            warnings.push(exposed_secret(path, SecretKind::PrivateKey, false));
        }
        if readers(&self.path) != 0 && matches!(self.onboarding.registration_secret, Some(SecretSource::Value(_))) {
            warnings.push(exposed_secret(&self.path, SecretKind::RegistrationSecret, true));
        }
        // A group may be that of the agent's user alone; a systemd credential shows one for its access list.
        if let Some(SecretSource::File(path)) = &self.onboarding.registration_secret
            && readers(path) & 0o004 != 0
        {
            warnings.push(exposed_secret(path, SecretKind::RegistrationSecret, false));
        }
        for path in self.secret_files() {
            if let Err(e) = Dir::check_file(&path)
                && let Some(exposed) = Exposed::of(&e)
            {
                warnings.push(ConfigWarning::ExposedFile(exposed.clone()));
            }
        }
        let exposed_outputs = self.outputs.iter().filter(|output| output.destination.mode.0 & 0o006 != 0);
        warnings.extend(exposed_outputs.map(|output| ConfigWarning::ExposedOutput(output.name.clone())));
        self.warnings.extend(warnings);
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
