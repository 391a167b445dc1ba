//! `boundkey start`: one join, or a daemon that renews until it is told to end.
//!
//! The daemon never gives up: refused, offline or without its TPM it tries again with backoff, for the other side may change its
//! mind. It ends only by a signal, or for what no retry mends: its configuration, or another agent on the same storage.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::backoff::{Backoff, jittered};
use super::clock::{DeviceClock, since_boot};
use super::config::{Config, ConfigError, DEFAULT_RENEWAL_INTERVAL, Trust as TrustConfig};
use super::contention::{self, Contention};
use super::crl_refresh::CrlRefresh;
use super::device::{Device, Pinning};
use super::error::{AgentError, KEYSTORE, RELOAD};
use super::failure_log::FailureLog;
use super::join::{Joined, Joiner};
use super::outputs::{self, Reloads};
use super::recovery_code;
use super::report::Reporter;
use super::static_key;
use super::systemd::Notifier;
use super::tls::{Roots, Trust};
use super::transport::Https;
use super::trust::DeviceTrust;
use super::wait::{self, Waiter, Wake};
use boundkey_join::JoinKind;
use boundkey_join::message::{IssuedCertificate, JOIN_PATH};
use boundkey_platform::time::{Clock, Random, Timestamp};

/// Longest backoff while there is no certificate that holds.
const CAP_WITHOUT_CERTIFICATE: Duration = Duration::from_secs(60);
/// Longest backoff while there is one.
const CAP_WITH_CERTIFICATE: Duration = Duration::from_secs(300);
/// How long the daemon may go on once it was told to end.
const GRACE: Duration = Duration::from_secs(1);
/// How long the daemon hurries for a recovery code, from its making or from the daemon's start.
const HURRY: Duration = Duration::from_secs(1800);
/// Longest wait in that time.
const HURRIED_WAIT: Duration = Duration::from_secs(30);
/// Soonest renewal on account of an output that ends.
const SOONEST_RENEWAL: Duration = Duration::from_secs(5);

/// A running agent.
pub struct Agent {
    config: Config,
    clock: Arc<DeviceClock>,
    random: Arc<dyn Random>,
    https: Https,
    trust: DeviceTrust,
    device: Device,
    reporter: Reporter,
    reloads: Reloads,
    crl_refresh: CrlRefresh,
    /// Until when it hurries for a recovery code, in time since boot.
    hurry_until: Duration,
}

/// What the daemon knows of its last tries.
#[derive(Default)]
struct Tries {
    backoff: Backoff,
    failures: FailureLog,
    contention: Contention,
}

impl Agent {
    /// Opens what the configuration names.
    pub fn open(config: &Config, system: &Arc<dyn Clock>, random: &Arc<dyn Random>) -> Result<Self, AgentError> {
        let device = open_device(config)?;
        let clock = Arc::new(DeviceClock::new(system.clone(), device.state.memory().last_known_time));
        let trust = DeviceTrust::load(config, Some(device.state.stored()))?;
        let https = Https::new(&config.auth_server.to_string(), Trust::new(trust.roots(), clock.clone()))?;
        let reporter = reporter(config);
        let reloads = Reloads::default();
        let crl_refresh = CrlRefresh::new(config.crl_interval, random.clone());
        let (config, random) = (config.clone(), random.clone());
        let hurry_until = since_boot() + HURRY;
        Ok(Self { config, clock, random, https, trust, device, reporter, reloads, crl_refresh, hurry_until })
    }

    /// Joins once and installs the outputs. Returns how long to wait before the next renewal.
    fn join(&mut self) -> Result<(Joined, Duration), AgentError> {
        if recovery_code::serve(&mut self.device, &self.config) {
            self.hurry_until = since_boot() + HURRY;
        }
        let url = self.https.url(JOIN_PATH);
        let (config, clock, random) = (&self.config, &self.clock, &*self.random);
        let before = self.trust.sequence();
        let (transport, trust) = (&mut self.https, &mut self.trust);
        let joined = Joiner { config, transport, trust, clock, random, url }.join(&mut self.device);
        if self.trust.sequence() != before {
            // Connections and sessions of the old trust end with it.
            self.https = Https::new(&self.config.auth_server.to_string(), Trust::new(self.trust.roots(), self.clock.clone()))?;
        }
        let joined = joined?;
        let answer = &joined.answer;
        let what = match answer.kind {
            JoinKind::First => "joined for the first time",
            JoinKind::Recovery => "recovered",
            JoinKind::Renewal => "renewed",
            JoinKind::Replay => "took up the answer that was lost",
        };
        let (step, end) = (answer.step, answer.identity.not_after);
        log::info!("{what}: instance {}, generation {}, certificate until {end}", step.instance, step.generation);
        for warning in &answer.warnings {
            log::warn!("the server says: {warning}");
        }
        if let Some(warning) = static_key::warning(answer).filter(|_| self.device.is_static) {
            log::warn!("{warning}");
        }
        let lifetime = |issued: &IssuedCertificate| issued.not_after.since(answer.time);
        let shortest_output = answer.outputs.iter().map(lifetime).min();
        let wait = interval(&self.config, lifetime(&answer.identity), shortest_output);
        Ok((joined, wait))
    }

    /// Joins once, and waits its turn where others join with the same token.
    fn join_among_others(&mut self) -> Result<(Joined, Duration), AgentError> {
        let mut contention = Contention::default();
        loop {
            let joined = self.join();
            let Err(e) = &joined else { return joined };
            self.https.close();
            match contention.pause(e, since_boot(), &*self.random)? {
                Some(pause) => std::thread::sleep(pause),
                None => return joined,
            }
        }
    }

    /// Writes every output; those that changed are to be reloaded.
    fn install(&mut self, joined: Joined) -> Result<(), AgentError> {
        let Joined { answer, requested, left_out, bundle } = joined;
        let mut fresh = outputs::attach(requested, &answer)?;
        for fresh in &mut fresh {
            fresh.trust_hosts_of(bundle.ssh_host());
        }
        let outcome = self.crl_refresh.install(&mut self.https, fresh, bundle, &mut self.reloads);
        if let (Err(e), Err(_)) = (&left_out, &outcome) {
            log::error!("{e}\n{}", e.advice());
        }
        outcome.and(left_out.map_err(AgentError::from))
    }

    /// Keeps the revocation lists of outputs fresh. Returns when to come back, in time since boot.
    fn refresh_crls(&mut self) -> Duration {
        self.crl_refresh.run_due(&mut self.https, &mut self.reloads, &mut self.reporter)
    }

    /// Does a reload that is due. Returns when to come back, in time since boot. A failure shows in `boundkey status` until the
    /// program was told, but not in place of a join's, which weighs more.
    fn run_reloads(&mut self) -> Option<Duration> {
        let due = self.reloads.run_due(since_boot());
        match self.reloads.take_failure() {
            Some(e) if self.reporter.report().last_error.as_ref().is_none_or(|last| last.r#type == RELOAD) => {
                self.reporter.failed_after_join(&e.into(), self.clock.now());
            }
            _ if !self.reloads.is_failing() => self.reporter.mended(RELOAD),
            _ => {}
        }
        due
    }

    /// Notes a success, and says so where the last try failed for the key store: someone may be on their way to it.
    fn note_success(&mut self, next_renewal: Option<Timestamp>, warnings: Vec<String>) {
        if self.reporter.report().last_error.as_ref().is_some_and(|e| e.r#type == KEYSTORE) {
            log::info!("the key store works again");
        }
        self.reporter.succeeded(next_renewal, warnings);
    }

    /// How long to wait, where it would be `wait` if nobody stood before this device: while an operator is about to let it in by a recovery
    /// code, it asks often.
    fn hurried(&self, wait: Duration) -> Duration {
        let awaited = since_boot() < self.hurry_until && self.device.state.memory().recovery_code().is_some();
        if awaited { wait.min(HURRIED_WAIT) } else { wait }
    }

    fn has_certificate(&self) -> bool {
        let now = self.clock.now();
        self.device.state.memory().certificate.as_ref().is_some_and(|certificate| certificate.not_after > now)
    }
}

/// One join. Outputs are installed and what uses them is reloaded, else it is an error.
pub fn oneshot(config: &Config, system: &Arc<dyn Clock>, random: &Arc<dyn Random>) -> Result<(), AgentError> {
    let mut agent = Agent::open(config, system, random).inspect_err(|e| report_unopened(config, system, e))?;
    let done = agent.join_among_others().and_then(|(joined, _)| {
        agent.note_success(None, joined.answer.warnings.clone());
        let installed = agent.install(joined);
        let reloaded = agent.reloads.run_all();
        installed.and(reloaded)
    });
    if let Err(e) = &done {
        agent.reporter.failed(e, agent.clock.now());
    }
    done
}

fn open_device(config: &Config) -> Result<Device, AgentError> {
    match static_key::open(config)? {
        Some(device) => Ok(device),
        None => open_stored(config),
    }
}

#[cfg(feature = "tpm")]
pub(super) fn open_stored(config: &Config) -> Result<Device, AgentError> {
    let mut device = Device::open(&config.storage, &config.keystore, Pinning::Keep)?;
    if config.rollback_protection {
        device.guard = super::rollback::RollbackGuard::new(&config.keystore, &config.storage, device.state.memory())?;
    }
    Ok(device)
}

#[cfg(not(feature = "tpm"))]
pub(super) fn open_stored(config: &Config) -> Result<Device, AgentError> {
    Device::open(&config.storage, &config.keystore, Pinning::Keep)
}

/// Where `boundkey status` looks; nowhere on a host without storage.
fn reporter(config: &Config) -> Reporter {
    if config.onboarding.static_key.is_some() { Reporter::default() } else { Reporter::open(&config.storage) }
}

/// Leaves for `boundkey status` why there is not even an agent. Another agent's report is left alone.
fn report_unopened(config: &Config, system: &Arc<dyn Clock>, e: &AgentError) {
    if !matches!(e, AgentError::StorageInUse(_)) {
        reporter(config).failed(e, DeviceClock::new(system.clone(), Timestamp::default()).now());
    }
}

/// Renews until SIGTERM or SIGINT.
pub fn daemon(config: &Config, system: &Arc<dyn Clock>, random: &Arc<dyn Random>) -> Result<(), AgentError> {
    let failed = |e: nix::errno::Errno| AgentError::Other(format!("waiting: {e}"));
    let mut waiter = Waiter::new().map_err(failed)?;
    let shutdown = wait::exit_after(GRACE, report_stopping).map_err(|e| AgentError::Other(format!("starting a thread: {e}")))?;
    let mut notifier = Notifier::from_env();
    notifier.ready("starting");
    let mut agent = None;
    let mut tries = Tries::default();
    loop {
        notifier.watchdog();
        let wait = turn(&mut agent, config, system, random, &mut tries, &mut notifier)?;
        match wait_for(wait, &mut waiter, agent.as_mut(), &mut notifier).map_err(failed)? {
            Wake::Stop => break,
            Wake::Renew => log::info!("told to renew"),
            Wake::Time => {}
        }
    }
    shutdown.finish();
    Ok(())
}

fn report_stopping() {
    Notifier::from_env().stopping();
    log::info!("stopped");
}

/// One turn of the daemon: open if need be, join, install. Returns how long to wait. Fails only for what no retry mends.
fn turn(
    agent: &mut Option<Agent>,
    config: &Config,
    system: &Arc<dyn Clock>,
    random: &Arc<dyn Random>,
    tries: &mut Tries,
    notifier: &mut Notifier,
) -> Result<Duration, AgentError> {
    let opened = match agent {
        Some(agent) => Ok(agent),
        None => Agent::open(config, system, random).map(|opened| agent.insert(opened)),
    };
    let agent = match opened {
        Ok(agent) => agent,
        Err(e @ (AgentError::Config(_) | AgentError::StorageInUse(_))) => return Err(e),
        Err(e) => {
            tries.failures.failed(&e, since_boot());
            report_unopened(config, system, &e);
            notifier.status(&e.to_string());
            return Ok(tries.backoff.next(CAP_WITHOUT_CERTIFICATE, &**random)?);
        }
    };
    match agent.join() {
        Ok((joined, wait)) => {
            tries.backoff.reset();
            tries.failures.succeeded();
            tries.contention.end();
            let wait = agent.hurried(jittered(wait, &**random)?);
            let next = agent.clock.now().plus(wait);
            let end = joined.answer.identity.not_after;
            agent.note_success(Some(next), joined.answer.warnings.clone());
            notifier.status(&format!("certificate until {end}; next renewal {next}"));
            if let Err(e) = agent.install(joined) {
                log::error!("{e}\n{}", e.advice());
                agent.reporter.failed_after_join(&e, agent.clock.now());
            }
            Ok(wait)
        }
        Err(e) => {
            agent.https.close();
            if let Some(pause) = tries.contention.pause(&e, since_boot(), &**random)? {
                return Ok(pause);
            }
            let is_news = tries.failures.failed(&e, since_boot());
            agent.crl_refresh.join_failed();
            agent.reporter.failed(&e, agent.clock.now());
            notifier.status(&e.to_string());
            let with = CAP_WITH_CERTIFICATE.min(config.renewal_interval.unwrap_or(CAP_WITH_CERTIFICATE));
            let cap = if agent.has_certificate() { with } else { CAP_WITHOUT_CERTIFICATE };
            let requested = contention::requested_wait(&e).unwrap_or_default();
            let wait = agent.hurried(tries.backoff.next(cap, &**random)?).max(requested);
            if is_news {
                log::info!("trying again in {}", humantime::format_duration(Duration::from_secs(wait.as_secs().max(1))));
            }
            Ok(wait)
        }
    }
}

/// Waits out `wait`, keeping the watchdog quiet and repeating reloads that failed.
fn wait_for(
    wait: Duration,
    waiter: &mut Waiter,
    mut agent: Option<&mut Agent>,
    notifier: &mut Notifier,
) -> Result<Wake, nix::errno::Errno> {
    let end = since_boot() + wait;
    loop {
        notifier.watchdog();
        let mut until = end;
        if let Some(agent) = agent.as_mut() {
            until = until.min(agent.refresh_crls());
            until = agent.run_reloads().map_or(until, |due| until.min(due));
        }
        if let Some(period) = notifier.watchdog_period() {
            until = until.min(since_boot() + period);
        }
        match waiter.until(until)? {
            Wake::Time if since_boot() < end => {}
            wake => return Ok(wake),
        }
    }
}

/// Time between joins: the shortest interval asked for, but before a third of the life is left that the server gave to the identity or to
/// an output: it may be less than was asked for. Where neither an interval nor a lifetime is configured, a third of the identity's life,
/// which for an hour is the interval that is the default.
fn interval(config: &Config, lifetime: Duration, shortest_output: Option<Duration>) -> Duration {
    let outputs = config.outputs.iter().filter_map(|output| Some(output.lifetime?.renewal_interval));
    let own = config.renewal_interval.unwrap_or_else(|| match config.credential_ttl {
        Some(_) => DEFAULT_RENEWAL_INTERVAL,
        None => DEFAULT_RENEWAL_INTERVAL.max(lifetime / 3),
    });
    // An output of a lost answer may have ended by the time that the answer came.
    let given = shortest_output.map(|shortest| (shortest * 2 / 3).max(SOONEST_RENEWAL));
    outputs.chain(given).fold(own.min(lifetime * 2 / 3), Duration::min)
}

/// The CAs that the configuration trusts.
pub(super) fn roots(config: &Config) -> Result<Roots, AgentError> {
    let path = match &config.trust {
        TrustConfig::Pins(pins) => return Ok(Roots::Pins(pins.iter().map(|pin| pin.0).collect())),
        TrustConfig::File(path) => path,
    };
    let unusable = |why: String| {
        ConfigError::new(format!("ca_file {}: {why}", path.display()), "give a PEM file with the CA certificate, or use ca_pins")
    };
    let pem = std::fs::read(path).map_err(|e| unusable(e.to_string()))?;
    let certificates =
        CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>().map_err(|e| unusable(e.to_string()))?;
    if certificates.is_empty() {
        return Err(unusable("it holds no certificate".into()).into());
    }
    Ok(Roots::Certificates(certificates))
}
