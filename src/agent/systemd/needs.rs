//! What the agent needs of the system: all else, the unit takes from it.

use std::path::{Path, PathBuf};

use crate::config::{Config, DEFAULT_STORAGE, Output, Reload, SecretSource, TokenSource, Trust};

/// Where a package's outputs go, so that systemd can make the directory.
const RUNTIME_DIR: &str = "/run/boundkey";
/// The TPM behind the kernel's resource manager.
const TPM: &str = "/dev/tpmrm0";

/// What the agent needs of the system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Whether it runs commands after a change.
    pub commands: bool,
    /// Files that the configuration names.
    pub files: Vec<PathBuf>,
    /// The users that it gives outputs to.
    pub gives: Gives,
    /// Directories of the outputs.
    pub outputs: Vec<PathBuf>,
    /// Whether it signals the processes of others.
    pub signals: bool,
    /// Directory of the state.
    pub storage: PathBuf,
    /// The device node of the TPM; none behind a broker or in a simulator.
    pub tpm: Option<PathBuf>,
    /// Whether it talks to a TPM, wherever that is.
    pub tss: bool,
}

/// The users that outputs are given to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gives {
    /// To any user and group, which takes a capability.
    Anyone,
    /// To groups that the agent's user is in, which takes none.
    OwnGroups,
    /// To nobody: they are the agent's.
    Nobody,
}

impl Needs {
    /// What `config` needs, and no more.
    pub fn of(config: &Config) -> Self {
        let destinations = || config.outputs.iter().map(|Output { destination, .. }| destination);
        let reloads = || config.outputs.iter().filter_map(|output| output.reload.as_ref());
        let given = destinations().any(|d| d.owner.is_some() || d.group.is_some());
        Self {
            commands: reloads().any(|reload| matches!(reload, Reload::Command { .. })),
            files: files(config),
            gives: if given { Gives::Anyone } else { Gives::Nobody },
            outputs: destinations().map(|d| d.path.clone()).collect(),
            signals: reloads().any(|reload| matches!(reload, Reload::Signal { .. })),
            storage: config.storage.clone(),
            tpm: tpm_device(config),
            tss: config.keystore.kind() == "tpm",
        }
    }

    /// What a package grants, which does not know the configuration: what most devices need and a user without powers may have.
    pub fn of_package() -> Self {
        Self {
            commands: true,
            files: Vec::new(),
            gives: Gives::OwnGroups,
            outputs: vec![RUNTIME_DIR.into()],
            signals: false,
            storage: DEFAULT_STORAGE.into(),
            tpm: Some(TPM.into()),
            tss: true,
        }
    }

    /// Whether a file or directory of these is in one of `places`.
    pub fn are_in(&self, places: &[&str]) -> bool {
        let mut paths = self.files.iter().chain(&self.outputs).chain([&self.storage]);
        paths.any(|path| places.iter().any(|place| path.starts_with(place)))
    }
}

fn files(config: &Config) -> Vec<PathBuf> {
    let mut files: Vec<&Path> = Vec::new();
    if let Trust::File(path) = &config.trust {
        files.push(path);
    }
    if let TokenSource::File(path) = &config.onboarding.token {
        files.push(path);
    }
    if let Some(SecretSource::File(path)) = &config.onboarding.registration_secret {
        files.push(path);
    }
    files.extend(config.outputs.iter().filter_map(|output| match &output.reload {
        Some(Reload::Signal { pid_file, .. }) => Some(&**pid_file),
        _ => None,
    }));
    files.into_iter().map(Path::to_path_buf).collect()
}

#[cfg(feature = "tpm")]
fn tpm_device(config: &Config) -> Option<PathBuf> {
    use crate::config::Keystore;

    match &config.keystore {
        Keystore::Tpm { tcti: None, .. } => Some(TPM.into()),
        Keystore::Tpm { tcti: Some(tcti), .. } => tcti.to_string().strip_prefix("device:").map(PathBuf::from),
        _ => None,
    }
}

#[cfg(not(feature = "tpm"))]
fn tpm_device(_: &Config) -> Option<PathBuf> {
    None
}
