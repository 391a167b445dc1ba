//! The unit: everything that the agent does not need is taken from it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::needs::{Gives, Needs};

/// How long the daemon may be silent: two commands that take all their time, and the timeouts of one join.
const WATCHDOG: &str = "3min";

/// A unit to be written.
#[derive(Clone, Debug)]
pub struct Unit<'a> {
    /// Name of the service.
    pub name: &'a str,
    /// The program: an absolute path.
    pub program: &'a Path,
    /// The configuration file: an absolute path.
    pub config_path: &'a Path,
    /// The user to run as; root without its powers where there is none.
    pub user: Option<&'a str>,
    /// The kind of installation that it is made for.
    pub installation: Installation,
    /// What it grants.
    pub needs: &'a Needs,
}

/// The kind of installation that a unit is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Installation {
    /// For one configuration, which is there.
    Configuration,
    /// For every device that a package is installed on, most of them before they are configured.
    Package,
}

impl Unit<'_> {
    /// The text of the unit file.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for section in [self.head(), self.service(), self.directories(), self.privileges(), self.sandbox(), self.credentials()] {
            text.push_str(&section);
            text.push('\n');
        }
        text.push_str("[Install]\nWantedBy=multi-user.target\n");
        text
    }

    fn head(&self) -> String {
        let config = self.config_path.display();
        let (origin, condition) = match self.installation {
            Installation::Configuration => (format!("# Made by `boundkey install systemd` from {config}.\n"), String::new()),
            Installation::Package => (
                "# For keys in files and in a TPM, and outputs below /run/boundkey. A unit that allows what a configuration needs,\n\
                 # and no more, is written by: boundkey install systemd --write\n"
                    .into(),
                format!(
                    "Documentation=man:boundkey(1)\n# Not configured yet is not failed.\nConditionPathExists={}\n",
                    quoted(self.config_path)
                ),
            ),
        };
        format!(
            "{origin}\
             # Changes belong into a drop-in: systemctl edit {}\n\
             [Unit]\n\
             Description=Device identity agent (boundkey)\n\
             {condition}\
             Wants=network-online.target\n\
             After=network-online.target\n\
             # A device that nobody can reach must come back by itself, however often it failed.\n\
             StartLimitIntervalSec=0\n",
            self.name
        )
    }

    fn service(&self) -> String {
        let mut text = format!(
            "[Service]\n\
             Type=notify\n\
             NotifyAccess=main\n\
             ExecStart={} start -c {}\n\
             # Renews at once.\n\
             ExecReload=kill -HUP $MAINPID\n\
             WatchdogSec={WATCHDOG}\n\
             Restart=always\n\
             RestartSec=5\n\
             # From 5 seconds to 5 minutes; before systemd 254 it stays at 5 seconds, and the next two lines are ignored.\n\
             RestartSteps=6\n\
             RestartMaxDelaySec=5min\n",
            argument(self.program),
            argument(self.config_path)
        );
        if self.needs.tss {
            text.push_str(
                "# The library reports every expected refusal of the TPM as an error; the agent's own log says what matters.\n",
            );
            text.push_str("Environment=TSS2_LOG=all+none\n");
        }
        text
    }

    fn directories(&self) -> String {
        let mut text =
            String::from("# The only places it can write to: its storage, and the outputs' directories.\nProtectSystem=strict\n");
        let storage = &self.needs.storage;
        if let Some(state) = under(storage, "/var/lib") {
            let _ = writeln!(text, "StateDirectory={}\nStateDirectoryMode=0700", quoted(&state));
        } else {
            text.push_str(&self.writable(storage, "mkdir -p -m 0700"));
        }
        let outputs = &self.needs.outputs;
        let runtime: Vec<_> = outputs.iter().filter_map(|path| under(path, "/run")).map(|path| quoted(&path)).collect();
        if !runtime.is_empty() {
            let _ = writeln!(text, "RuntimeDirectory={}", runtime.join(" "));
            text.push_str("# Certificates outlive a restart of the agent: others use them.\nRuntimeDirectoryPreserve=yes\n");
        }
        for path in outputs.iter().filter(|path| under(path, "/run").is_none()) {
            text.push_str(&self.writable(path, "sh -c 'umask 022; mkdir -p \"$$0\"'"));
        }
        let home = self.uses(&["/home", "/root", "/run/user"]);
        let _ = writeln!(text, "ProtectHome={}", if home { "read-only" } else { "yes" });
        if self.uses(&["/tmp", "/var/tmp"]) {
            text.push_str("# The configuration names files in the shared /tmp.\nPrivateTmp=no\n");
        } else {
            text.push_str("PrivateTmp=yes\n");
        }
        text.push_str("UMask=0077\n# A core dump would hold keys.\nLimitCORE=0\n");
        text
    }

    /// A directory that systemd has no setting to make. Without a user of its own, the service makes it by `make`.
    fn writable(&self, path: &Path, make: &str) -> String {
        let prepare = match self.user {
            Some(user) => format!("# Must be there before the start, for {user} to write to."),
            None => format!("ExecStartPre=+{make} {}", argument(path)),
        };
        format!("{prepare}\nReadWritePaths={}\n", quoted(path))
    }

    fn privileges(&self) -> String {
        let mut text = String::new();
        let capabilities = [
            ("CAP_CHOWN", self.needs.gives == Gives::Anyone, "to give outputs to their `owner` and `group`"),
            ("CAP_KILL", self.needs.signals, "to signal the processes of `pid_file`, which are other users'"),
        ];
        let needed: Vec<_> = capabilities.iter().filter(|(_, needed, _)| *needed).collect();
        for (name, _, why) in &needed {
            let _ = writeln!(text, "# {name}: {why}.");
        }
        let names = needed.iter().map(|(name, ..)| *name).collect::<Vec<_>>().join(" ");
        if let Some(user) = self.user {
            let _ = writeln!(text, "User={user}\nAmbientCapabilities={names}\nRemoveIPC=yes");
            // A package puts its user into the group, for commands that a person runs; without TPM there may be no such group.
            if self.needs.tpm.is_some() && self.installation != Installation::Package {
                text.push_str("SupplementaryGroups=tss\n");
            }
            if self.needs.commands {
                let _ = writeln!(
                    text,
                    "# For `reload` by systemctl, {user} needs a polkit rule: org.freedesktop.systemd1.manage-units."
                );
            }
        } else {
            text.push_str("# Root without its powers: it owns its files, and may ask systemd to reload other units.\n");
        }
        let _ = writeln!(text, "CapabilityBoundingSet={names}\nNoNewPrivileges=yes");
        text
    }

    fn sandbox(&self) -> String {
        let mut text = String::new();
        if let Some(device) = &self.needs.tpm {
            let _ = writeln!(text, "DevicePolicy=closed\nDeviceAllow={} rw", quoted(device));
        } else {
            text.push_str(
                "# A PKCS#11 module that opens a device itself needs PrivateDevices=no and DeviceAllow= in a drop-in.\n",
            );
            text.push_str("PrivateDevices=yes\n");
        }
        if self.needs.commands {
            text.push_str("# The `reload` commands run in this sandbox too; they may look for other processes.\n");
        } else if self.needs.signals {
            text.push_str("# Whose process a `pid_file` names has to be seen.\nProcSubset=pid\n");
        } else {
            text.push_str("ProtectProc=invisible\nProcSubset=pid\n");
        }
        text.push_str(
            "ProtectClock=yes\n\
             ProtectControlGroups=yes\n\
             ProtectHostname=yes\n\
             ProtectKernelLogs=yes\n\
             ProtectKernelModules=yes\n\
             ProtectKernelTunables=yes\n\
             PrivateMounts=yes\n\
             RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX\n\
             RestrictNamespaces=yes\n\
             RestrictRealtime=yes\n\
             RestrictSUIDSGID=yes\n\
             LockPersonality=yes\n\
             MemoryDenyWriteExecute=yes\n\
             KeyringMode=private\n\
             SystemCallArchitectures=native\n\
             SystemCallFilter=@system-service\n\
             SystemCallFilter=~@privileged @resources\n",
        );
        if self.needs.gives != Gives::Nobody {
            text.push_str("SystemCallFilter=@chown\n");
        }
        text.push_str("SystemCallErrorNumber=EPERM\n");
        text
    }

    fn credentials(&self) -> String {
        format!(
            "# Secrets can come from systemd, which can keep them encrypted (systemd-creds(1)). For the registration secret:\n\
             #LoadCredential=registration-secret:/etc/boundkey/registration-secret\n\
             # and in the configuration: registration_secret_path: /run/credentials/{0}.service/registration-secret\n\
             # For a PIN or auth value of the key store: LoadCredential=pin:/etc/boundkey/pin, and pin_credential or auth_credential: pin\n",
            self.name
        )
    }

    /// Whether a file of the agent is in one of `places`.
    fn uses(&self, places: &[&str]) -> bool {
        self.needs.are_in(places)
            || places.iter().any(|place| self.program.starts_with(place) || self.config_path.starts_with(place))
    }
}

/// `path` from `base` on, where systemd can make it. It takes a colon for the start of a link's name.
fn under(path: &Path, base: &str) -> Option<PathBuf> {
    let rest = path.strip_prefix(base).ok()?;
    let plain = rest.to_str().is_some_and(|text| !text.is_empty() && !text.contains(':'));
    (plain && !rest.starts_with("user")).then(|| rest.to_path_buf())
}

/// A path as a word of a setting (systemd.syntax(7)).
fn quoted(path: &Path) -> String {
    let text = path.display().to_string().replace('%', "%%");
    let plain = |c: char| c.is_alphanumeric() || "/._-+@%".contains(c);
    if text.chars().all(plain) {
        return text;
    }
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// A path as a word of a command line, where `$` would begin a variable.
fn argument(path: &Path) -> String {
    quoted(path).replace('$', "$$")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_quoted_for_systemd() {
        for (path, expected) in [
            ("/usr/bin/boundkey", "/usr/bin/boundkey"),
            ("/a b/\"c\"\\d", "\"/a b/\\\"c\\\"\\\\d\""),
            ("/50%/$HOME", "\"/50%%/$$HOME\""),
        ] {
            assert_eq!(argument(Path::new(path)), expected);
        }
    }

    #[test]
    fn systemd_makes_what_is_under_its_directories() {
        assert_eq!(under(Path::new("/run/boundkey/mqtt"), "/run"), Some("boundkey/mqtt".into()));
        for path in ["/run", "/etc/x", "/run/a:b", "/run/user/1000/x"] {
            assert_eq!(under(Path::new(path), "/run"), None, "{path}");
        }
    }
}
