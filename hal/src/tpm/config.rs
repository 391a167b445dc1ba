//! Which TPM to talk to, how, and where the key files are.

use std::fmt;
use std::path::{Path, PathBuf};
use std::string::{String, ToString as _};
use std::time::Duration;

use super::public_area::Name;
use super::secret::AuthSource;
use crate::{Error, ErrorKind};

/// How long one conversation with the TPM may take unless the configuration says otherwise.
pub const DEFAULT_TIME_LIMIT: Duration = Duration::from_secs(30);

/// Variables that name a TCTI, the first one that is set counts (tpm2-tools and tpm2-tss read the same).
const VARIABLES: [&str; 2] = ["TPM2TOOLS_TCTI", "TCTI"];

/// What a [`super::TpmStore`] needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// Directory of the key files; it must exist by the time a key is made.
    pub dir: PathBuf,
    /// The way to the TPM.
    pub tcti: Tcti,
    /// Where the auth value of keys made here comes from. `None`: every user who may talk to the TPM and read the file can use
    /// the keys.
    pub auth: Option<AuthSource>,
    /// The storage key this device was enrolled with. Another one is an error; see [`super::TpmStore::storage_key_name`].
    pub storage_key: Option<Name>,
    /// Whether sessions are salted to the storage key as it is derived anew from the owner seed. That needs an empty owner password.
    /// `false` is for TPMs that have one, and a storage key at 0x81000001; it then rests on that key's public half being read unaltered.
    pub derive_storage_key: bool,
    /// Whether the storage key may be made persistent at 0x81000001 where nothing is there yet.
    pub persist_storage_key: bool,
    /// How long one conversation with the TPM may take, waits for a busy TPM included.
    pub time_limit: Duration,
}

impl Config {
    /// Key files in `dir`, the TPM behind `tcti`, defaults for the rest.
    pub fn new(dir: impl Into<PathBuf>, tcti: Tcti) -> Self {
        Self {
            dir: dir.into(),
            tcti,
            auth: None,
            storage_key: None,
            derive_storage_key: true,
            persist_storage_key: true,
            time_limit: DEFAULT_TIME_LIMIT,
        }
    }
}

/// The way to a TPM, in the notation of tpm2-tss: `device:/dev/tpmrm0`, `tabrmd:bus_type=session`, `swtpm:host=127.0.0.1,port=2321`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tcti(Kind);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Device(PathBuf),
    /// A simulator: `swtpm` or `mssim`, host and port.
    Network(&'static str, String, u16),
    /// tpm2-abrmd: bus name and bus type.
    Broker(String, &'static str),
}

impl Tcti {
    /// The kernel's resource manager, which is what a device normally has.
    pub fn kernel() -> Self {
        Self(Kind::Device(PathBuf::from("/dev/tpmrm0")))
    }

    /// `configured` if there is one, else what the environment names (`TPM2TOOLS_TCTI`, `TCTI`), else [`Tcti::kernel`].
    pub fn configured(configured: Option<&str>) -> Result<Self, Error> {
        if let Some(text) = configured {
            return Self::parse(text);
        }
        for variable in VARIABLES {
            match std::env::var(variable) {
                Ok(text) if !text.is_empty() => {
                    return Self::parse(&text).map_err(|e| Error::new(e.kind(), format_args!("{variable}: {e}")));
                }
                Err(std::env::VarError::NotUnicode(_)) => return Err(invalid(variable, "is not text")),
                _ => {}
            }
        }
        Ok(Self::kernel())
    }

    /// Reads the notation above. Strict, for tss-esapi takes what it does not know for the default: `swtpm:path=X` would be port 2321 of this host.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let (name, options) = text.split_once(':').unwrap_or((text, ""));
        match name {
            "device" if options.is_empty() => Ok(Self::kernel()),
            "device" if options.starts_with('/') => Ok(Self(Kind::Device(PathBuf::from(options)))),
            "device" => Err(invalid(text, "names no absolute path; write device:/dev/tpmrm0")),
            "swtpm" => Self::parse_network(text, "swtpm", options),
            "mssim" => Self::parse_network(text, "mssim", options),
            "tabrmd" => Self::parse_broker(text, options),
            _ => Err(invalid(
                text,
                "is not a TCTI known here; use device:PATH, tabrmd:, swtpm:host=H,port=P or mssim:host=H,port=P",
            )),
        }
    }

    fn parse_network(text: &str, name: &'static str, options: &str) -> Result<Self, Error> {
        let (mut host, mut port) = (None, None);
        for (key, value) in pairs(text, options)? {
            match key {
                "host" if host.is_none() && is_host(value) => host = Some(value.to_string()),
                "port" if port.is_none() => port = value.parse().ok(),
                "path" => {
                    return Err(invalid(text, "names a Unix socket, which is not supported; start swtpm with --server type=tcp"));
                }
                _ => return Err(invalid(text, format_args!("is not understood at {key}"))),
            }
        }
        match (host, port) {
            (Some(host), Some(port)) => Ok(Self(Kind::Network(name, host, port))),
            // No default port: talking to the wrong TPM is worse than not talking.
            _ => Err(invalid(text, format_args!("needs host and port, as in {name}:host=127.0.0.1,port=2321"))),
        }
    }

    fn parse_broker(text: &str, options: &str) -> Result<Self, Error> {
        let (mut bus_name, mut bus_type) = (None, None);
        for (key, value) in pairs(text, options)? {
            match (key, value) {
                ("bus_name", _) if bus_name.is_none() && is_bus_name(value) => bus_name = Some(value.to_string()),
                ("bus_type", "system") if bus_type.is_none() => bus_type = Some("system"),
                ("bus_type", "session") if bus_type.is_none() => bus_type = Some("session"),
                _ => return Err(invalid(text, format_args!("is not understood at {key}"))),
            }
        }
        let bus_name = bus_name.unwrap_or_else(|| "com.intel.tss2.Tabrmd".to_string());
        Ok(Self(Kind::Broker(bus_name, bus_type.unwrap_or("system"))))
    }

    /// The device node, where there is one.
    pub(super) fn node(&self) -> Option<&Path> {
        match &self.0 {
            Kind::Device(path) => Some(path),
            _ => None,
        }
    }

    /// Whether this is tpm2-abrmd.
    pub(super) fn is_broker(&self) -> bool {
        matches!(self.0, Kind::Broker(..))
    }

    /// Whether a resource manager keeps one program's objects and sessions from another's, and flushes them when a program ends.
    pub(super) fn has_resource_manager(&self) -> bool {
        match &self.0 {
            Kind::Device(path) => path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("tpmrm")),
            Kind::Network(..) => false,
            Kind::Broker(..) => true,
        }
    }
}

impl fmt::Display for Tcti {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Device(path) => write!(f, "device:{}", path.display()),
            Kind::Network(name, host, port) => write!(f, "{name}:host={host},port={port}"),
            Kind::Broker(name, bus) => write!(f, "tabrmd:bus_name={name},bus_type={bus}"),
        }
    }
}

/// The `key=value` pairs of a comma-separated list.
fn pairs<'a>(text: &str, options: &'a str) -> Result<std::vec::Vec<(&'a str, &'a str)>, Error> {
    options
        .split(',')
        .filter(|o| !o.is_empty())
        .map(|o| o.split_once('=').ok_or_else(|| invalid(text, format_args!("is not understood at {o}"))))
        .collect()
}

fn is_host(value: &str) -> bool {
    !value.is_empty() && value.bytes().all(|b| b.is_ascii_alphanumeric() || b".-:".contains(&b))
}

fn is_bus_name(value: &str) -> bool {
    value.contains('.') && value.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

fn invalid(text: &str, why: impl fmt::Display) -> Error {
    Error::new(ErrorKind::Unsupported, format_args!("the TCTI {text} {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tcti_is_read_and_written_the_same() {
        for text in [
            "device:/dev/tpm0",
            "swtpm:host=127.0.0.1,port=2321",
            "mssim:host=::1,port=1",
            "tabrmd:bus_name=a.b,bus_type=session",
        ] {
            assert_eq!(Tcti::parse(text).expect(text).to_string(), text);
        }
        assert_eq!(Tcti::parse("device").expect("device"), Tcti::kernel());
        assert_eq!(Tcti::parse("tabrmd:").expect("tabrmd").to_string(), "tabrmd:bus_name=com.intel.tss2.Tabrmd,bus_type=system");
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for text in [
            "",
            "tpm",
            "device:tpm0",
            "swtpm",
            "swtpm:port=1",
            "swtpm:host=a",
            "swtpm:host=a,port=65536",
            "swtpm:host=,port=1",
            "swtpm:host=a,port=1,port=2",
            "swtpm:host=a,port=1,x=y",
            "swtpm:host=a b,port=1",
            "tabrmd:bus_type=both",
            "cmd:tpm2_send",
            "libtss2-tcti-device.so:/dev/tpm0",
        ] {
            assert_eq!(Tcti::parse(text).expect_err(text).kind(), ErrorKind::Unsupported, "{text}");
        }
    }

    #[test]
    fn a_unix_socket_is_refused_by_name() {
        let error = Tcti::parse("swtpm:path=/run/swtpm.sock").expect_err("not supported");
        assert!(error.to_string().contains("Unix socket"), "{error}");
    }

    #[test]
    fn resource_managers_are_known() {
        let managed = |text: &str| Tcti::parse(text).expect(text).has_resource_manager();
        assert!(managed("device:/dev/tpmrm0") && managed("tabrmd"));
        assert!(!managed("device:/dev/tpm0") && !managed("swtpm:host=localhost,port=1"));
    }
}
