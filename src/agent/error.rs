//! What can go wrong with a join, in words for a person, and as the exit codes that scripts branch on.

use std::path::PathBuf;

use boundkey_hal::dir::Exposed;
use boundkey_hal::{Error as KeyError, ErrorKind};

use super::config::ConfigError;
use super::outputs::reload::ReloadError;
use super::recovery_code::RecoveryCodeFault;
use super::transport::TransportError;
use boundkey_join::device::TooManyKeys;
use boundkey_join::device::answer::AnswerError;
use boundkey_join::device::challenge::GiveUp;
use boundkey_join::{Problem, ProblemType, Thumbprint, TrustError};
use boundkey_platform::time::{NoRandomness, Timestamp};
use boundkey_state::LoadError;

/// [`AgentError::kind`] of what the key store could not do.
pub const KEYSTORE: &str = "keystore";
/// [`AgentError::kind`] of a program that could not be told of new files.
pub const RELOAD: &str = "reload";
const STORAGE: &str = "storage";

/// Why the agent did not do what it was to do. `Display` is what failed, [`AgentError::advice`] what to do next.
#[derive(Debug)]
#[non_exhaustive]
pub enum AgentError {
    /// An answer that cannot be used.
    Answer(AnswerError),
    /// Command line or configuration.
    Config(ConfigError),
    /// The server asks for what this device cannot do.
    GaveUp(GiveUp),
    /// The key store.
    Key(KeyError),
    /// Something of our own.
    Other(String),
    /// An output could not be written; the join itself succeeded.
    Output(String, String),
    /// `boundkey recovery-code` made no key.
    RecoveryCode(RecoveryCodeFault),
    /// A program that uses an output could not be told of new files.
    Reload(ReloadError),
    /// The storage is an old copy: why that is known.
    RolledBack(String),
    /// The server's certificate had expired at that time, by the server's own clock.
    ServerExpired(Timestamp),
    /// What a host with a static key cannot do.
    StaticKey(StaticKeyFault),
    /// The device's memory in this storage directory.
    State(PathBuf, LoadError),
    /// The storage directory.
    Storage(String, std::io::Error),
    /// Another agent runs on the storage directory.
    StorageInUse(String),
    /// No room for another key.
    TooManyKeys(TooManyKeys),
    /// No usable answer from the server.
    Transport(TransportError),
    /// A trust bundle that is not to be taken.
    Trust(TrustError),
}

/// What a host with a static key cannot do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StaticKeyFault {
    /// Join again after it has ended, with a token that asks for a join state.
    NotInsecure,
    /// Prove another key.
    OtherKey(Thumbprint),
    /// Replace its key.
    Rotation,
}

impl std::fmt::Display for StaticKeyFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotInsecure => {
                f.write_str("the token asks for the join state of the last join, which a host with a static key does not keep")
            }
            Self::OtherKey(key) => write!(f, "the server asks for proof of key {key}, which is not the static key of this host"),
            Self::Rotation => f.write_str("a rotation is due, and a static key cannot be replaced by the host"),
        }
    }
}

impl std::fmt::Display for AgentError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Answer(e) => e.fmt(f),
            Self::Config(e) => e.fmt(f),
            Self::GaveUp(GiveUp::UnknownKey(key)) => {
                write!(f, "the server asks for proof of key {key}, which this device does not have")
            }
            Self::GaveUp(GiveUp::NoCommonAlgorithm(theirs)) => {
                write!(f, "the key store makes none of the key types that the server takes ({})", theirs.join(", "))
            }
            Self::Key(e) if is_medium(e) => write!(f, "storage: {e}"),
            Self::Key(e) => write!(f, "key store: {e}"),
            Self::Other(what) | Self::Output(what, _) => f.write_str(what),
            Self::ServerExpired(end) => {
                write!(f, "the server's certificate expired at {end}, and the server's own clock is past it")
            }
            Self::RecoveryCode(fault) => fault.fmt(f),
            Self::Reload(e) => e.fmt(f),
            Self::StaticKey(fault) => fault.fmt(f),
            Self::State(dir, e) => write!(f, "{}/{e}", dir.display()),
            // It names the directory itself, which may be one on the way.
            Self::Storage(_, e) if Exposed::of(e).is_some() => write!(f, "storage: {e}"),
            Self::Storage(what, e) => write!(f, "storage: {what}: {e}"),
            Self::RolledBack(why) => write!(f, "what the storage directory holds is not used: {why}"),
            Self::TooManyKeys(e) => e.fmt(f),
            Self::StorageInUse(dir) => write!(f, "storage: {dir} is in use by another boundkey"),
            Self::Transport(TransportError::Refused(problem)) => match problem.kind {
                // Its detail is what an operator wrote, which need not speak of a lock.
                ProblemType::Locked => write!(f, "the server refused, locked: {problem}"),
                _ => write!(f, "the server refused: {problem}"),
            },
            Self::Transport(e) => e.fmt(f),
            Self::Trust(e) => e.fmt(f),
        }
    }
}

impl std::error::Error for AgentError {}

macro_rules! from {
    ($($variant:ident($error:ty)),*) => {
        $(impl From<$error> for AgentError {
            fn from(e: $error) -> Self {
                Self::$variant(e)
            }
        })*
    };
}

from!(
    Answer(AnswerError),
    Config(ConfigError),
    GaveUp(GiveUp),
    Key(KeyError),
    TooManyKeys(TooManyKeys),
    Transport(TransportError),
    Trust(TrustError)
);

impl From<NoRandomness> for AgentError {
    fn from(e: NoRandomness) -> Self {
        Self::Other(e.to_string())
    }
}

impl AgentError {
    /// The exit code of `--oneshot`.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) => 2,
            Self::Transport(TransportError::Refused(problem)) => match problem.kind {
                ProblemType::Locked | ProblemType::JoinStateMismatch => 4,
                ProblemType::NoRecoveriesLeft => 5,
                ProblemType::RegistrationRefused | ProblemType::KeyNotProven => 6,
                ProblemType::Busy => 3,
                _ => 1,
            },
            Self::ServerExpired(_) | Self::Transport(_) | Self::Trust(_) => 3,
            Self::Key(e) if is_medium(e) => 8,
            Self::Key(_) | Self::GaveUp(GiveUp::NoCommonAlgorithm(_)) | Self::TooManyKeys(_) => 7,
            Self::RolledBack(_) | Self::State(..) | Self::Storage(..) | Self::StorageInUse(_) => 8,
            Self::GaveUp(GiveUp::UnknownKey(_)) | Self::StaticKey(_) => 6,
            Self::RecoveryCode(fault) => fault.exit_code(),
            Self::Answer(_) | Self::Other(_) | Self::Output(..) | Self::Reload(_) => 1,
        }
    }

    /// A stable word for scripts: the problem's type where the server refused, else where it failed.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Answer(_) => "answer",
            Self::Config(_) => "config",
            Self::GaveUp(GiveUp::UnknownKey(_)) => "unknown-key",
            Self::Key(e) if is_medium(e) => STORAGE,
            Self::Key(_) | Self::GaveUp(_) => KEYSTORE,
            Self::Other(_) | Self::RecoveryCode(_) => "other",
            Self::Output(..) => "output",
            Self::Reload(_) => RELOAD,
            Self::ServerExpired(_) => "server-expired",
            Self::RolledBack(_) => "rolled-back",
            Self::StaticKey(_) => "static-key",
            Self::State(..) | Self::Storage(..) | Self::StorageInUse(_) => STORAGE,
            Self::TooManyKeys(_) => "too-many-keys",
            Self::Trust(_) => "trust-bundle",
            Self::Transport(e) => match e {
                TransportError::Refused(problem) => problem.kind.name(),
                TransportError::AnswerTooLong(_) | TransportError::NotBoundkey(_) => "not-boundkey",
                TransportError::CertificateExpired(_) => "server-expired",
                TransportError::CertificateName(_) => "wrong-name",
                TransportError::CertificatePurpose(..) => "not-auth-endpoint",
                TransportError::CutShort => "cut-short",
                TransportError::NotTrusted(_) => "not-trusted",
                TransportError::RevocationList(_) => "revocation-list",
                TransportError::TimedOut => "timed-out",
                TransportError::Proxy { .. } | TransportError::Tls(_) | TransportError::Unreachable(_) => "unreachable",
            },
        }
    }

    /// What to do next.
    pub fn advice(&self) -> String {
        match self {
            Self::Answer(_) => "nothing was stored; upgrade the agent or the server, so that both are of the same version".into(),
            Self::Trust(_) => {
                "nothing was stored; see that auth_server is the one of this device's cluster: `boundkeyctl ca status` shows its pins and the sequence of its trust bundle".into()
            }
            Self::Config(e) => e.advice().into(),
            Self::GaveUp(GiveUp::UnknownKey(_)) => {
                "check that onboarding.token is this device's own token; if its key was lost, run `boundkeyctl reset token/NAME` and register it again".into()
            }
            Self::GaveUp(_) => "choose another keystore type".into(),
            Self::Key(e) => key_advice(e.kind()).into(),
            Self::Other(_) => "try again; if it stays, report it with the log".into(),
            Self::Output(_, advice) => advice.clone(),
            Self::RecoveryCode(fault) => fault.advice(),
            Self::Reload(e) => e.advice(),
            Self::ServerExpired(_) | Self::Transport(TransportError::CertificateExpired(_)) => {
                "look at the server: it renews its certificate by itself while it runs; if this device's clock is ahead, set it".into()
            }
            Self::State(_, LoadError::Newer(_)) => "install the newer version of boundkey again".into(),
            Self::State(_, LoadError::Io(e)) | Self::Storage(_, e) => {
                Exposed::of(e).map_or_else(|| storage_advice(e).into(), Exposed::advice)
            }
            Self::State(_, LoadError::Unusable(_)) => {
                "nothing was overwritten; move the file `state` away and run `boundkeyctl exempt token/NAME`: the device then rejoins with its key".into()
            }
            Self::RolledBack(_) => {
                "find out who put it there; if the right one cannot be had back, move the file `state` away and run \
                 `boundkeyctl exempt token/NAME`: the device then rejoins with its key"
                    .into()
            }
            Self::StaticKey(StaticKeyFault::NotInsecure) => {
                "static keys take spec.bound_keypair.recovery.mode: insecure in the token (`boundkeyctl edit token/NAME`)".into()
            }
            Self::StaticKey(StaticKeyFault::OtherKey(_)) => {
                "give this host the key that the token trusts, or register its own: `boundkeyctl reset token/NAME`, then its public key \
                 as initial_public_key"
                    .into()
            }
            Self::StaticKey(StaticKeyFault::Rotation) => {
                "unset rotate_after of the token (`boundkeyctl edit token/NAME`); to replace the key, give the hosts another one".into()
            }
            Self::StorageInUse(_) => "stop the other agent, or give this one a storage.path of its own".into(),
            Self::TooManyKeys(_) => {
                "let the device join with a key that it has; if its token trusts none of them, move storage.path away, run `boundkeyctl reset token/NAME` and register it anew".into()
            }
            Self::Transport(e) => transport_advice(e).into(),
        }
    }
}

/// Key files stand in the storage directory: where its file system fails, it is the storage that needs mending.
fn is_medium(e: &KeyError) -> bool {
    e.kind() == ErrorKind::Medium
}

fn key_advice(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Busy | ErrorKind::Unreachable => {
            "see that the device, library or file is there and not in use, then try again"
        }
        ErrorKind::Corrupt => {
            "nothing was overwritten; restore the key, or, if it is gone for good, run `boundkey keypair create --overwrite` here and \
             `boundkeyctl reset token/NAME` on the server, and register the device anew"
        }
        ErrorKind::Denied => {
            "let the user that boundkey runs as use it: file mode, group (tss for a TPM); a PIN that was refused, correct"
        }
        ErrorKind::Exists => "use that key, or delete it first",
        ErrorKind::Locked => "wait until the lockout ends, or have the token's owner lift it; do not try again before",
        ErrorKind::Medium => {
            "make room on the file system of storage.path, mount it writable, or look at its medium (dmesg); nothing was lost"
        }
        ErrorKind::NotFound => "restore the key, or run `boundkeyctl reset token/NAME` and register the device anew",
        ErrorKind::Unsupported => "choose another keystore type or algorithm",
        _ => "mend the key store's fault, and try again",
    }
}

fn storage_advice(e: &std::io::Error) -> &'static str {
    use std::io::ErrorKind as Io;
    match e.kind() {
        Io::PermissionDenied => "run it as the user that boundkey runs as; let that user read and write storage.path",
        Io::StorageFull | Io::QuotaExceeded => "make room on the file system of storage.path; nothing was lost",
        Io::FileTooLarge => "lift the limit on the size of files (ulimit -f, LimitFSIZE= of the unit); nothing was lost",
        Io::ReadOnlyFilesystem => "mount the file system of storage.path writable, or choose another storage.path",
        Io::NotFound => "create the directory, or correct storage.path",
        _ => "check the medium of storage.path (dmesg tells of I/O errors)",
    }
}

fn transport_advice(e: &TransportError) -> &'static str {
    match e {
        TransportError::AnswerTooLong(_) | TransportError::NotBoundkey(_) => {
            "check auth_server; if a proxy or another version of boundkey-auth answers there, mend that"
        }
        TransportError::CertificateExpired(_) => "look at the server's certificate, and at this device's clock",
        TransportError::CertificateName(_) => "use a name that was given to `boundkey-auth init --name`, or correct auth_server",
        TransportError::CertificatePurpose(..) => {
            "nothing was sent: a device may be posing as the server, so look at it, and at proxy and name service on the way; if it is \
             the server, run a boundkey-auth there that is as new as this agent"
        }
        TransportError::CutShort => {
            "nothing was lost: the next try gets the same answer; if it stays, look at what is between device and server"
        }
        TransportError::NotTrusted(_) => {
            "compare ca_pins (or ca_file) with what `boundkey-auth init` printed; do not go on if they differ"
        }
        TransportError::Proxy { .. } => {
            "check the proxy that the environment names (HTTPS_PROXY), or except the server by NO_PROXY; the daemon keeps trying"
        }
        TransportError::Refused(problem) => refusal_advice(problem),
        TransportError::RevocationList(_) => {
            "nothing was written; upgrade the agent or the server, so that both are of the same version"
        }
        TransportError::TimedOut | TransportError::Tls(_) | TransportError::Unreachable(_) => {
            "check the network, auth_server and that boundkey-auth runs; the daemon keeps trying"
        }
    }
}

fn refusal_advice(problem: &Problem) -> &'static str {
    match problem.kind {
        ProblemType::Busy => "nothing: the daemon tries again by itself; if it stays, see why boundkey-auth is slow",
        ProblemType::BadRequest => "correct the configuration, or upgrade the agent or the server",
        ProblemType::ChallengeExpired | ProblemType::ChallengeStale | ProblemType::ServerError => {
            "try again; if it stays, look at the log of boundkey-auth"
        }
        ProblemType::FirstJoinWithCredentials => "the token is not bound; `boundkeyctl get token/NAME` shows its state",
        ProblemType::Locked => {
            "`boundkeyctl get locks` tells who locked it and why; `boundkeyctl rm lock/ID` lifts an operator's lock, and after two holders \
             of one key `boundkey recovery-code` here tells how `boundkeyctl exempt token/NAME` lets in this device alone"
        }
        ProblemType::JoinStateMismatch => {
            "find out whether the key was copied; if it was, `boundkey recovery-code` here tells how to let in this device alone, else run \
             `boundkeyctl exempt token/NAME`"
        }
        ProblemType::JoinStateRequired => {
            "this device lost its join state; run `boundkeyctl exempt token/NAME` to let it back in"
        }
        ProblemType::KeyNotProven => {
            "check that onboarding.token is this device's own token, and that its key is the registered one"
        }
        ProblemType::KeyReused => "restart the agent: it makes another key",
        ProblemType::NameNotAllowed => {
            "correct outputs, or allow the name in a role of the bot (`boundkeyctl edit role/NAME`); a name of the server itself is never allowed"
        }
        ProblemType::NoRecoveriesLeft => {
            "raise recovery.limit of the token, or run `boundkeyctl exempt token/NAME`; the device needs nothing"
        }
        ProblemType::NotFound => "check onboarding.token, or create the token with `boundkeyctl create`",
        ProblemType::PaceExceeded => {
            "nothing: the agent tries again when it was told to; if it stays, see who else joins with this token (`boundkeyctl audit --token NAME`)"
        }
        ProblemType::RegistrationPaused => {
            "nothing: the agent tries again when it was told to; if it stays, somebody else tries secrets of this token (`boundkeyctl audit --token \
             NAME` has the addresses): give the token this device's key (initial_public_key), or the device a token of another name"
        }
        ProblemType::RegistrationRefused => {
            "check the registration secret and the token's must_register_before; `boundkeyctl get token/NAME --with-secrets` shows both"
        }
        ProblemType::RotationRequired => "upgrade the agent",
        ProblemType::TokenUnusable => "have an operator mend the token",
        ProblemType::UnsupportedVersion => "upgrade the agent or the server, so that both speak the same API version",
        _ => "upgrade the agent: this refusal is newer than it",
    }
}
