//! Telling systemd how the daemon is: sd_notify(3), as a datagram of `NAME=VALUE` lines.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use boundkey_platform::text::is_graphic;

/// Longest status in characters; systemd shows one line.
const MAX_STATUS: usize = 200;
/// A service manager that does not read must not stop the daemon.
const WRITE_LIMIT: Duration = Duration::from_secs(1);

/// The way to the service manager; without one, nothing happens.
#[derive(Debug, Default)]
pub struct Notifier {
    socket: Option<UnixDatagram>,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// What the service manager offers in the environment of this process.
    pub fn from_env() -> Self {
        Self::new(&|name| std::env::var(name).ok(), std::process::id())
    }

    /// What the service manager offers in `env` to the process `pid`.
    pub fn new(env: &dyn Fn(&str) -> Option<String>, pid: u32) -> Self {
        let socket = env("NOTIFY_SOCKET").and_then(|address| match connect(&address) {
            Ok(socket) => Some(socket),
            Err(e) => {
                log::warn!("systemd cannot be told how the daemon is: NOTIFY_SOCKET {address}: {e}");
                None
            }
        });
        // Without WATCHDOG_PID the watchdog is for every process that has the variables.
        let ours = env("WATCHDOG_PID").is_none_or(|text| text.parse() == Ok(pid));
        let micros = env("WATCHDOG_USEC").and_then(|text| text.parse().ok()).filter(|micros| ours && *micros > 0);
        Self { socket, watchdog: micros.map(Duration::from_micros) }
    }

    /// The daemon is up, and this is what it does.
    pub fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={}", one_line(status)));
    }

    /// What the daemon does, in a line for `systemctl status`.
    pub fn status(&self, status: &str) {
        self.send(&format!("STATUS={}", one_line(status)));
    }

    /// The daemon is about to end.
    pub fn stopping(&self) {
        self.send("STOPPING=1");
    }

    /// The daemon is alive.
    pub fn watchdog(&self) {
        if self.watchdog.is_some() {
            self.send("WATCHDOG=1");
        }
    }

    /// How often to call [`Notifier::watchdog`] at least: half of what systemd waits for, as sd_watchdog_enabled(3) advises.
    pub fn watchdog_period(&self) -> Option<Duration> {
        self.watchdog.map(|limit| limit / 2)
    }

    fn send(&self, state: &str) {
        if let Some(socket) = &self.socket
            && let Err(e) = socket.send(state.as_bytes())
        {
            log::debug!("systemd was not told {state:?}: {e}");
        }
    }
}

/// A path, or with `@` a name in the abstract namespace (unix(7)).
fn connect(address: &str) -> std::io::Result<UnixDatagram> {
    let address = match address.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(address)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    socket.set_write_timeout(Some(WRITE_LIMIT))?;
    Ok(socket)
}

/// A status with a line feed in it would be more than a status.
fn one_line(text: &str) -> String {
    text.chars().take(MAX_STATUS).map(|c| if is_graphic(c) { c } else { ' ' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 1024];
        let n = socket.recv(&mut buffer).expect("datagram");
        String::from_utf8_lossy(&buffer[..n]).into_owned()
    }

    fn notifier(address: &str, more: &[(&str, &str)]) -> Notifier {
        let env = |name: &str| match name {
            "NOTIFY_SOCKET" => Some(address.to_owned()),
            _ => more.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned()),
        };
        Notifier::new(&env, 42)
    }

    #[test]
    fn states_are_told_at_a_path_and_at_an_abstract_name() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("notify").display().to_string();
        let name = format!("@boundkey-test-{}", std::process::id());
        let abstract_address = SocketAddr::from_abstract_name(&name[1..]).expect("address");
        for (address, server) in [
            (&path, UnixDatagram::bind(&path).expect("socket")),
            (&name, UnixDatagram::bind_addr(&abstract_address).expect("socket")),
        ] {
            let notifier = notifier(address, &[("WATCHDOG_USEC", "6000000"), ("WATCHDOG_PID", "42")]);
            notifier.ready("starting");
            assert_eq!(received(&server), "READY=1\nSTATUS=starting");
            notifier.status("refused\nMAINPID=1");
            assert_eq!(received(&server), "STATUS=refused MAINPID=1");
            notifier.watchdog();
            assert_eq!(received(&server), "WATCHDOG=1");
            notifier.stopping();
            assert_eq!(received(&server), "STOPPING=1");
            assert_eq!(notifier.watchdog_period(), Some(Duration::from_secs(3)));
        }
    }

    #[test]
    fn without_systemd_nothing_happens() {
        let none = Notifier::new(&|_| None, 42);
        none.ready("starting");
        none.watchdog();
        assert_eq!(none.watchdog_period(), None);
        // The variables of a parent that has a watchdog itself.
        let other = notifier("/nonexistent/notify", &[("WATCHDOG_USEC", "6000000"), ("WATCHDOG_PID", "41")]);
        other.ready("starting");
        assert_eq!(other.watchdog_period(), None);
    }
}
