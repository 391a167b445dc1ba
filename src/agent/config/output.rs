//! `outputs`: certificates for programs on the device, and where to put them.

use std::collections::HashSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde::Deserialize;

use super::error::Refusal;
use super::value::{AbsolutePath, DnsName, Mode, Span, UriName};
use boundkey_join::message::MAX_OUTPUTS;
use boundkey_platform::{from_fields, from_list, from_text};

from_fields!(DestinationFields => Destination, OutputFields => Output, ReloadFields => Reload);
from_list!(Output => Outputs);
from_text!(Account, DestinationType, KeyPlace, OutputType, SignalName);

/// A certificate for a program on the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// What logs and errors call it; the destination where the configuration names none. Unique.
    pub name: String,
    /// Where its files go. Unique.
    pub destination: Destination,
    /// What the certificate is.
    pub form: Form,
    /// DNS names in the certificate.
    pub dns_names: Vec<String>,
    /// URIs in the certificate.
    pub uris: Vec<String>,
    /// IP addresses in the certificate.
    pub ip_addresses: Vec<IpAddr>,
    /// Lifetime and renewal interval, where they are not those of the identity.
    pub lifetime: Option<Lifetime>,
    /// Where its private key lives.
    pub key: KeyPlace,
    /// Whether to keep the cluster's revocation list there too.
    pub crl: bool,
    /// What to do after a change.
    pub reload: Option<Reload>,
}

/// What a certificate is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Form {
    /// An SSH host certificate.
    SshHost {
        /// Names and addresses under which clients reach the host; at least one.
        principals: Vec<String>,
    },
    /// A certificate for TLS, by the other fields of [`Output`].
    X509,
}

/// Where the private key of an output lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyPlace {
    /// In a file of the destination, made anew for each certificate.
    #[default]
    File,
    /// In the device's key store, which is a TPM or a PKCS#11 token; made once.
    Keystore,
}

/// How long a certificate is to hold, and when to renew it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// `credential_ttl`
    pub credential_ttl: Duration,
    /// `renewal_interval`
    pub renewal_interval: Duration,
}

/// A directory for the files of an output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// The directory; made where it is missing.
    pub path: PathBuf,
    /// Permissions of the private key, 0600 unless configured. Certificates can always be read by all.
    pub mode: Mode,
    /// Owner of the files, where it is not the agent's user.
    pub owner: Option<Account>,
    /// Group of the files, where it is not the agent's.
    pub group: Option<Account>,
}

/// A user or a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Account {
    /// By number.
    Id(u32),
    /// By name, looked up when needed: it may be made after the agent starts.
    Name(String),
}

/// How a program learns of its new certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reload {
    /// Run this program, without a shell.
    Command {
        /// The program: a path, or a name to be found in `PATH`.
        program: String,
        /// Its arguments.
        args: Vec<String>,
    },
    /// Send a signal.
    Signal {
        /// The file with the process id.
        pid_file: PathBuf,
        /// The signal, SIGHUP unless configured.
        signal: Signal,
    },
}

/// All outputs: no two with one name or one destination.
pub(super) struct Outputs(pub(super) Vec<Output>);

impl TryFrom<Vec<Output>> for Outputs {
    type Error = Refusal;

    fn try_from(outputs: Vec<Output>) -> Result<Self, Refusal> {
        if outputs.len() > MAX_OUTPUTS {
            return Err(Refusal::new(
                format!("more than {MAX_OUTPUTS} outputs"),
                "remove some: one certificate can have many names",
            ));
        }
        let (mut names, mut paths) = (HashSet::new(), HashSet::new());
        for output in &outputs {
            if !paths.insert(&output.destination.path) {
                let what = format!("two outputs write to {}", output.destination.path.display());
                return Err(Refusal::new(what, "give each output a directory of its own"));
            }
            if !names.insert(&output.name) {
                return Err(Refusal::new(
                    format!("two outputs are named {:?}", output.name),
                    "give each output a name of its own",
                ));
            }
        }
        Ok(Self(outputs))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OutputFields {
    r#type: OutputType,
    name: Option<String>,
    destination: Destination,
    #[serde(default)]
    dns_names: Vec<DnsName>,
    #[serde(default)]
    uris: Vec<UriName>,
    #[serde(default)]
    ip_addresses: Vec<IpAddr>,
    #[serde(default)]
    principals: Vec<DnsName>,
    credential_ttl: Option<Span>,
    renewal_interval: Option<Span>,
    key: Option<KeyPlace>,
    #[serde(default)]
    crl: bool,
    reload: Option<Reload>,
}

impl TryFrom<OutputFields> for Output {
    type Error = Refusal;

    fn try_from(fields: OutputFields) -> Result<Self, Refusal> {
        let form = fields.form()?;
        let lifetime = match (fields.credential_ttl, fields.renewal_interval) {
            (Some(ttl), Some(interval)) => Some(Lifetime { credential_ttl: ttl.0, renewal_interval: interval.0 }),
            (None, None) => None,
            _ => {
                let what = "only one of `credential_ttl` and `renewal_interval` is set";
                return Err(Refusal::new(what, "set both for this output, or neither"));
            }
        };
        Ok(Self {
            name: fields.name.unwrap_or_else(|| fields.destination.path.display().to_string()),
            destination: fields.destination,
            dns_names: fields.dns_names.into_iter().map(|n| n.0).collect(),
            uris: fields.uris.into_iter().map(|u| u.0).collect(),
            ip_addresses: if form == Form::X509 { fields.ip_addresses } else { Vec::new() },
            form,
            lifetime,
            key: fields.key.unwrap_or_default(),
            crl: fields.crl,
            reload: fields.reload,
        })
    }
}

impl OutputFields {
    fn form(&self) -> Result<Form, Refusal> {
        if self.r#type == OutputType::X509 {
            return if self.principals.is_empty() {
                Ok(Form::X509)
            } else {
                Err(Refusal::new("`principals` go with type ssh_host", "write dns_names, or type: ssh_host"))
            };
        }
        let names = self.principals.iter().map(|name| name.0.clone());
        let principals: Vec<_> = names.chain(self.ip_addresses.iter().map(ToString::to_string)).collect();
        if !(self.dns_names.is_empty() && self.uris.is_empty()) || self.crl || principals.is_empty() {
            let advice = "name what clients call this host, in principals and ip_addresses, and nothing else";
            return Err(Refusal::new("type ssh_host takes `principals`, not `dns_names`, `uris` or `crl`", advice));
        }
        if self.key == Some(KeyPlace::Keystore) {
            return Err(Refusal::new("sshd reads its host key from a file", "write key: file, or leave it out"));
        }
        // sshd(8) does not use one that others can read.
        if self.destination.mode.0 & 0o077 != 0 {
            return Err(Refusal::new("sshd takes no host key that others can read", "leave `mode` out of the destination"));
        }
        Ok(Form::SshHost { principals })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum OutputType {
    SshHost,
    X509,
}

impl FromStr for OutputType {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        match text {
            "ssh_host" => Ok(Self::SshHost),
            "x509" => Ok(Self::X509),
            _ => Err(Refusal::new(format!("{text:?} is not a type of output known here"), "write type: x509, or ssh_host")),
        }
    }
}

impl FromStr for KeyPlace {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        match text {
            "file" => Ok(Self::File),
            "keystore" => Ok(Self::Keystore),
            _ => Err(Refusal::new(format!("{text:?} is not a place for a key"), "write key: file or key: keystore")),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DestinationFields {
    #[serde(rename = "type")]
    _type: DestinationType,
    path: AbsolutePath,
    mode: Option<Mode>,
    owner: Option<Account>,
    group: Option<Account>,
}

impl TryFrom<DestinationFields> for Destination {
    type Error = Refusal;

    fn try_from(fields: DestinationFields) -> Result<Self, Refusal> {
        if fields.path.0.parent().is_none() {
            return Err(Refusal::new("`path` is the root directory", "name a directory for this output alone"));
        }
        Ok(Self { path: fields.path.0, mode: fields.mode.unwrap_or(Mode(0o600)), owner: fields.owner, group: fields.group })
    }
}

pub(super) struct DestinationType;

impl FromStr for DestinationType {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        if text == "directory" {
            return Ok(Self);
        }
        Err(Refusal::new(format!("{text:?} is not a type known here"), "write type: directory"))
    }
}

impl FromStr for Account {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        let advice = "write a name such as mosquitto, or a number";
        match text.parse::<u32>() {
            // chown(2) takes it for "leave as it is".
            Ok(u32::MAX) => Err(Refusal::new(format!("{text:?} is not an account"), advice)),
            Ok(id) => Ok(Self::Id(id)),
            Err(_) if text.is_empty() || text.contains(|c: char| c.is_whitespace() || c.is_control() || ":/".contains(c)) => {
                Err(Refusal::new(format!("{text:?} is not an account"), advice))
            }
            Err(_) => Ok(Self::Name(text.to_owned())),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReloadFields {
    command: Option<Vec<String>>,
    pid_file: Option<AbsolutePath>,
    signal: Option<SignalName>,
}

impl TryFrom<ReloadFields> for Reload {
    type Error = Refusal;

    fn try_from(fields: ReloadFields) -> Result<Self, Refusal> {
        let advice = "write command: [PROGRAM, ARGUMENT, ...], or pid_file and signal";
        match (fields.command, fields.pid_file) {
            (Some(_), Some(_)) => Err(Refusal::new("`command` and `pid_file` are both set", advice)),
            (Some(_), None) if fields.signal.is_some() => {
                Err(Refusal::new("`signal` goes with `pid_file`, not `command`", advice))
            }
            (Some(command), None) => match command.split_first() {
                Some((program, args)) if !program.is_empty() => {
                    Ok(Self::Command { program: program.clone(), args: args.to_vec() })
                }
                _ => Err(Refusal::new("`command` names no program", advice)),
            },
            (None, Some(pid_file)) => {
                Ok(Self::Signal { pid_file: pid_file.0, signal: fields.signal.map_or(Signal::SIGHUP, |s| s.0) })
            }
            (None, None) => Err(Refusal::new("neither `command` nor `pid_file` is set", advice)),
        }
    }
}

struct SignalName(Signal);

impl FromStr for SignalName {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        let name = format!("SIG{}", text.strip_prefix("SIG").unwrap_or(text));
        name.parse().map(Self).map_err(|_| Refusal::new(format!("{text:?} is not a signal"), "write a name such as HUP or USR1"))
    }
}
