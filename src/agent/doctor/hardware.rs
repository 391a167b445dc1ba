//! Which places for keys this system has, whatever the configuration says.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};

use super::Report;

/// Where libraries are; below `/usr/lib` also in a directory by the architecture's name.
const LIBRARY_DIRS: [&str; 4] = ["/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/local/lib64"];
/// Modules that are not in a directory of their own kind.
const MODULES: [&str; 8] = [
    "libsofthsm2.so",
    "libtpm2_pkcs11.so",
    "opensc-pkcs11.so",
    "libykcs11.so",
    "libckteec.so",
    "libcryptoauth.so",
    "libeToken.so",
    "libCryptoki2_64.so",
];
/// Directories of modules.
const MODULE_DIRS: [&str; 2] = ["pkcs11", "softhsm"];

/// Says what is there.
pub fn check(report: &mut Report) {
    let nodes = tpm_nodes();
    if nodes.is_empty() {
        report.ok("hardware", "no TPM device (/dev/tpmrm0, /dev/tpm0)");
    }
    for node in nodes {
        let place = node.display();
        let managed = if is_managed(&node) { "TPM with the kernel's resource manager" } else { "TPM for one program at a time" };
        if access(&node, AccessFlags::R_OK | AccessFlags::W_OK).is_ok() {
            report.ok("hardware", format!("{place}: {managed}{}", built_with(cfg!(feature = "tpm"))));
        } else {
            let advice = "for a TPM key store add the user to group tss: usermod -aG tss USER";
            report.warn("hardware", format!("{place}: {managed}, but no permission on it"), advice);
        }
    }
    let broker = ["/usr/sbin/tpm2-abrmd", "/usr/local/sbin/tpm2-abrmd"].into_iter().find(|path| Path::new(path).exists());
    if let Some(broker) = broker {
        report.ok("hardware", format!("{broker}: resource manager, for tcti: \"tabrmd:\""));
    }
    let modules = modules();
    if modules.is_empty() {
        report.ok("hardware", "no PKCS#11 module in the usual places");
    }
    for module in modules {
        report.ok("hardware", format!("{}: PKCS#11 module{}", module.display(), built_with(cfg!(feature = "pkcs11"))));
    }
}

fn built_with(feature: bool) -> &'static str {
    if feature { "" } else { " (this boundkey is built without support for it)" }
}

fn is_managed(node: &Path) -> bool {
    node.file_name().is_some_and(|name| name.to_string_lossy().starts_with("tpmrm"))
}

/// Device nodes of TPMs.
fn tpm_nodes() -> Vec<PathBuf> {
    let is_tpm = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let number = name.strip_prefix("tpmrm").or(name.strip_prefix("tpm")).unwrap_or_default();
        !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())
    };
    let mut nodes: Vec<_> = entries(Path::new("/dev")).filter(is_tpm).collect();
    nodes.sort();
    nodes
}

/// PKCS#11 modules in the usual places.
pub fn modules() -> Vec<PathBuf> {
    // By what a name leads to: distributions link to one module from several places.
    let mut found = BTreeMap::new();
    for dir in library_dirs() {
        let named = MODULES.iter().map(|name| dir.join(name)).filter(|path| path.exists());
        let housed = MODULE_DIRS.iter().flat_map(|house| entries(&dir.join(house))).filter(|path| is_module(path));
        for path in named.chain(housed) {
            if let Ok(target) = path.canonicalize() {
                found.entry(target).or_insert(path);
            }
        }
    }
    found.into_values().collect()
}

/// A shared library, but none of those that only pass on what others offer, or keep passwords.
fn is_module(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let other = ["gnome-keyring", "onepin-", "p11-kit-", "pkcs11-spy"].iter().any(|other| name.starts_with(other));
    path.extension().is_some_and(|e| e == "so") && !other
}

fn library_dirs() -> Vec<PathBuf> {
    let mut dirs: Vec<_> = LIBRARY_DIRS.iter().map(PathBuf::from).collect();
    let by_architecture = entries(Path::new("/usr/lib")).filter(|dir| dir.to_string_lossy().contains("-linux-"));
    dirs.extend(by_architecture);
    dirs
}

/// What is in a directory; nothing where it cannot be read.
fn entries(dir: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path())
}
