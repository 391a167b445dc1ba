//! `boundkey recovery-code`: a key made now, and the code that names it, by which an operator lets in this device and no copy of it.
//!
//! Where an agent runs on the storage directory, it alone writes there and uses the key store. It is asked by a file:
//!
//! ```text
//!  command: recovery-code.request ─▶ SIGUSR1 ─▶ waits until the state names a key of this request ─▶ code
//!  agent, before each try:           removes the request ─▶ key, durable ─▶ state, durable
//! ```
//! A power cut loses the request or leaves a key that nobody was told of: the command is then run once more. It prints a code only when
//! its key is durable and in front of all others.

use std::fmt;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use boundkey_hal::dir::Dir;
use boundkey_hal::{Algorithm, durable};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Pid, Uid, User, geteuid};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::config::{Config, ConfigError};
use super::device::{self, Device};
use super::error::AgentError;
use super::join::algorithms;
use super::run;
use boundkey_join::device::{KnownKey, Memory};
use boundkey_join::{Id, RecoveryCode};
use boundkey_platform::time::Random;
use boundkey_state::{DirStorage, STATE_FILE, StateFile, Storage as _};

/// Asks the agent that runs for a key.
const REQUEST_FILE: &str = "recovery-code.request";
/// Why that agent could not make one.
const FAILURE_FILE: &str = "recovery-code.failed";
const REQUEST_MODE: u32 = 0o644;
/// Longest wait for the agent that runs: the timeouts of one join, and a slow key store.
const DAEMON_TIMEOUT: Duration = Duration::from_secs(120);
/// How often the state is read meanwhile.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// What [`FAILURE_FILE`] holds.
#[derive(Serialize, Deserialize)]
struct Failure {
    message: String,
    advice: String,
    exit_code: u8,
}

/// Makes a key; returns what to print.
pub fn create(config: &Config, random: &dyn Random, as_json: bool) -> Result<String, AgentError> {
    if config.onboarding.static_key.is_some() {
        let advice = "a copy of a static key cannot be told from it: give the hosts another key";
        return Err(ConfigError::new("a host with a static key makes no other key, so there is no recovery code", advice).into());
    }
    let dir = &config.storage;
    let token = check_joined(&remembered(dir)?, config)?;
    // One at a time, so that none replaces the request of another one.
    let turn = File::open(dir).and_then(|turn| turn.lock().map(|()| turn));
    let _turn = turn.map_err(|e| AgentError::Storage(dir.display().to_string(), e))?;
    let request = Id::random(random)?;
    let start = Instant::now();
    let key = loop {
        let made = if device::is_in_use(dir)? { ask(config, request, start)? } else { make_here(config, request)? };
        if let Some(key) = made {
            break key;
        }
    };
    Ok(render(&token, &key, as_json))
}

/// Makes the key that `boundkey recovery-code` asked a running agent for; returns whether it did. Where it fails, that command is told, and
/// the agent goes on.
pub fn serve(device: &mut Device, config: &Config) -> bool {
    if device.is_static {
        return false;
    }
    let made = match take_request(&config.storage) {
        Ok(None) => return false,
        Ok(Some(request)) => make(device, config, request),
        Err(e) => Err(e),
    };
    match made {
        Ok(key) => {
            log::info!("made key {} for a recovery code", key.id);
            true
        }
        Err(e) => {
            log::error!("no key for a recovery code: {e}\n{}", e.advice());
            let failure = Failure { message: e.to_string(), advice: e.advice(), exit_code: e.exit_code() };
            let written = serde_json::to_vec(&failure)
                .map_err(std::io::Error::from)
                .and_then(|json| durable::replace(&config.storage.join(FAILURE_FILE), &json, durable::PRIVATE_FILE));
            if let Err(e) = written {
                log::warn!("{FAILURE_FILE}: {e}");
            }
            false
        }
    }
}

/// The request that waits, which is removed first: one that came back with each try would make a key each time.
fn take_request(dir: &Path) -> Result<Option<Id>, AgentError> {
    let failed = |e| AgentError::Storage(REQUEST_FILE.into(), e);
    let content = match DirStorage::open(dir).read(REQUEST_FILE) {
        Ok(None) => return Ok(None),
        Ok(Some(content)) => Ok(content),
        Err(e) => Err(failed(e)),
    };
    remove(dir, REQUEST_FILE)?;
    let request = std::str::from_utf8(&content?).ok().and_then(|text| text.parse().ok());
    request.map(Some).ok_or_else(|| failed(ErrorKind::InvalidData.into()))
}

/// Makes a key in front of all others. The device must know a key that it can replace, and must not be an old copy of itself.
fn make(device: &mut Device, config: &Config, request: Id) -> Result<KnownKey, AgentError> {
    device.verify()?;
    check_joined(device.state.memory(), config)?;
    let offered = algorithms(config, device)?;
    // What the server took before, it takes again.
    let used = device.state.memory().current_key().map(|key| Algorithm::from(key.algorithm));
    let algorithm = used.filter(|used| offered.contains(used)).or(offered.first().copied());
    device.make_recovery_key(algorithm.ok_or_else(|| AgentError::Other("a key store without algorithms".into()))?, request)
}

/// The token that this device joined with.
fn check_joined(memory: &Memory, config: &Config) -> Result<String, AgentError> {
    let token = config.onboarding.token.read()?;
    if memory.step.is_none() || memory.token != token {
        return Err(AgentError::RecoveryCode(RecoveryCodeFault::NeverJoined(token)));
    }
    Ok(token)
}

fn remembered(dir: &Path) -> Result<Memory, AgentError> {
    let state = StateFile::open(DirStorage::open(dir)).map_err(|e| AgentError::State(dir.into(), e))?;
    Ok(state.memory().clone())
}

/// Where no agent runs; `None` where one has started meanwhile.
fn make_here(config: &Config, request: Id) -> Result<Option<KnownKey>, AgentError> {
    check_owner(&config.storage)?;
    let mut device = match run::open_stored(config) {
        Err(AgentError::StorageInUse(_)) => return Ok(None),
        device => device?,
    };
    // One that a command left behind would have the next agent make a newer key, and this code void.
    remove(&config.storage, REQUEST_FILE)?;
    match device.state.memory().made_for(request) {
        Some(key) => unused(key).map(Some),
        None => make(&mut device, config, request).map(Some),
    }
}

/// Files that root makes in a directory of the agent's user are not that user's to read: the device would be dead then.
fn check_owner(dir: &Path) -> Result<(), AgentError> {
    let failed = |e| AgentError::Storage(dir.display().to_string(), e);
    let owner = Uid::from_raw(std::fs::metadata(dir).map_err(failed)?.uid());
    if owner == geteuid() {
        return Ok(());
    }
    let name = User::from_uid(owner).ok().flatten().map_or_else(|| format!("#{owner}"), |user| user.name);
    Err(AgentError::RecoveryCode(RecoveryCodeFault::OtherOwner { dir: dir.into(), owner: name }))
}

/// Has the agent that runs make the key; `None` where it ended instead.
fn ask(config: &Config, request: Id, start: Instant) -> Result<Option<KnownKey>, AgentError> {
    let dir = &config.storage;
    let request_file = dir.join(REQUEST_FILE);
    remove(dir, FAILURE_FILE)?;
    // Not secret, and the agent may run as another user: the caller's umask must not keep that user out.
    umask(Mode::from_bits_truncate(0o022));
    // The directory is the agent's, who has no reason to lead us elsewhere, and cannot: no link in it is followed.
    Dir::to_read(dir)
        .and_then(|dir| dir.replace(REQUEST_FILE, request.to_string().as_bytes(), REQUEST_MODE))
        .map_err(|e| AgentError::Storage(request_file.display().to_string(), e))?;
    if let Err(why) = wake(dir) {
        log::warn!(
            "the agent that runs could not be woken ({why}), and makes the key at its next try: `systemctl reload boundkey` has it try now"
        );
    }
    while start.elapsed() < DAEMON_TIMEOUT {
        std::thread::sleep(POLL_INTERVAL);
        let memory = remembered(dir)?;
        if let Some(key) = memory.made_for(request) {
            // It may have been written and not be durable yet.
            DirStorage::open(dir).sync(STATE_FILE).map_err(|e| AgentError::Storage(STATE_FILE.into(), e))?;
            return unused(key).map(Some);
        }
        if let Some(fault) = failure(dir)? {
            return Err(fault);
        }
        if !device::is_in_use(dir)? {
            return Ok(None);
        }
    }
    remove(dir, REQUEST_FILE)?;
    Err(AgentError::RecoveryCode(RecoveryCodeFault::NoAnswer(dir.clone())))
}

/// A key that the server has not taken yet, so that its code lets somebody in.
fn unused(key: &KnownKey) -> Result<KnownKey, AgentError> {
    if key.bound { Err(AgentError::RecoveryCode(RecoveryCodeFault::Bound)) } else { Ok(key.clone()) }
}

fn failure(dir: &Path) -> Result<Option<AgentError>, AgentError> {
    let read = DirStorage::open(dir).read(FAILURE_FILE).map_err(|e| AgentError::Storage(FAILURE_FILE.into(), e))?;
    let Some(json) = read else { return Ok(None) };
    remove(dir, FAILURE_FILE)?;
    let fault = match serde_json::from_slice(&json) {
        Ok(Failure { message, advice, exit_code }) => RecoveryCodeFault::Failed { message, advice, exit_code },
        Err(e) => RecoveryCodeFault::Failed {
            message: format!("{FAILURE_FILE} cannot be read: {e}"),
            advice: "the log of the agent that runs says why it made no key".into(),
            exit_code: 1,
        },
    };
    Ok(Some(AgentError::RecoveryCode(fault)))
}

/// Removes a file of the storage directory `dir`, which may have gone already.
fn remove(dir: &Path, name: &str) -> Result<(), AgentError> {
    let removed = Dir::to_read(dir).and_then(|dir| {
        dir.remove_if_there(name)?;
        dir.sync()
    });
    removed.map_err(|e| AgentError::Storage(dir.join(name).display().to_string(), e))
}

/// Has the daemon try at once.
fn wake(dir: &Path) -> Result<(), String> {
    let pid = device::holder(dir).ok_or("its process is not to be seen from here")?;
    // One that joins once ends by itself; the signal would end it sooner, in the middle of its join.
    if !waits_for_signals(pid) {
        return Ok(());
    }
    let pid = i32::try_from(pid).map_err(|e| e.to_string())?;
    kill(Pid::from_raw(pid), Signal::SIGUSR1).map_err(|e| e.desc().to_owned())
}

/// Whether the process keeps SIGUSR1 from ending it, as the daemon does (proc_pid_status(5)).
fn waits_for_signals(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let blocked = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigBlk:")?.trim(), 16).ok());
    blocked.is_some_and(|mask| mask >> (Signal::SIGUSR1 as u32 - 1) & 1 == 1)
}

fn render(token: &str, key: &KnownKey, as_json: bool) -> String {
    let code = RecoveryCode::of(&key.thumbprint);
    let command = command(token, &code);
    if as_json {
        let thumbprint = key.thumbprint.to_string();
        return json!({ "code": code, "token": token, "key": key.id, "thumbprint": thumbprint, "command": command }).to_string()
            + "\n";
    }
    format!(
        "recovery code  {code}\n\n\
         Read it to an operator, who types:\n  {command}\n\n\
         This device, and no copy of it, is let in then, at its next try. A daemon tries within half a minute for the next half hour;\n\
         `systemctl reload boundkey` has it try at once. `boundkey status` shows the code until it was used.\n"
    )
}

/// What an operator types to let in the device with this key.
pub fn command(token: &str, code: &RecoveryCode) -> String {
    format!("boundkeyctl exempt token/{token} --key {code}")
}

/// Why there is no recovery code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecoveryCodeFault {
    /// A rotation was due, and the server took the new key at once.
    Bound,
    /// The agent that runs failed to make a key.
    Failed {
        /// What failed.
        message: String,
        /// What to do next.
        advice: String,
        /// [`AgentError::exit_code`] of it.
        exit_code: u8,
    },
    /// There is no key that another one could replace: no join with this token is remembered.
    NeverJoined(String),
    /// The agent that runs on this storage directory made no key in time.
    NoAnswer(PathBuf),
    /// No agent runs, and the storage directory belongs to this other user.
    OtherOwner {
        /// The storage directory.
        dir: PathBuf,
        /// Its owner's name, or number.
        owner: String,
    },
    /// The device remembers as many keys as it can.
    TooManyKeys,
}

impl fmt::Display for RecoveryCodeFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bound => {
                f.write_str("a rotation was due, and the server took the new key at once: this device is not kept out")
            }
            Self::Failed { message, .. } => f.write_str(message),
            Self::NeverJoined(token) => {
                write!(f, "this device remembers no join with token {token}: it has no key that a recovery code could replace")
            }
            Self::NoAnswer(dir) => write!(f, "the agent that runs on {} made no key in time", dir.display()),
            Self::OtherOwner { dir, owner } => {
                write!(f, "{} belongs to user {owner}, who could not read the files of another user there", dir.display())
            }
            Self::TooManyKeys => f.write_str("there is no room for the key of another recovery code"),
        }
    }
}

impl RecoveryCodeFault {
    /// [`AgentError::exit_code`] of it.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Failed { exit_code, .. } => *exit_code,
            Self::OtherOwner { .. } => 8,
            Self::Bound | Self::NeverJoined(_) | Self::NoAnswer(_) | Self::TooManyKeys => 1,
        }
    }

    /// What to do next.
    pub fn advice(&self) -> String {
        match self {
            Self::Bound => "nothing, if it is let in; if a copy of it is about, run `boundkey recovery-code` once more".into(),
            Self::Failed { advice, .. } => advice.clone(),
            Self::NeverJoined(_) => {
                "start the agent; a device that lost its state is let back in by `boundkeyctl exempt token/NAME`".into()
            }
            Self::NoAnswer(_) => "look at its log, restart it, and try again".into(),
            Self::OtherOwner { owner, .. } => {
                format!("start the agent and try again, or run it as that user: `runuser -u {owner} -- boundkey recovery-code`")
            }
            Self::TooManyKeys => {
                "have the device rotate its key by a usual join (`boundkeyctl rotate token/NAME`), which makes room".into()
            }
        }
    }
}
