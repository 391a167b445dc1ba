//! What went wrong in a conversation with a TPM, and how to say it to a technician.
//!
//! Codes are those of tpm2-tss: the layer in the upper half (0 is the TPM itself), the TPM's own code in the lower
//! (TPM 2.0 part 2, section 6.6).

use std::boxed::Box;
use std::format_args as f;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use super::config::Tcti;
use crate::{Error, ErrorKind};

/// No object or NV index has the handle (the first of the command).
pub(super) const NO_SUCH_HANDLE: u32 = 0x18b;
/// An NV index was never written.
pub(super) const NV_UNWRITTEN: u32 = 0x14a;
/// The attributes of an NV index do not let this authorization use it.
const NV_AUTHORIZATION: u32 = 0x149;
/// Neither do they let it use an auth value at all.
const AUTH_UNAVAILABLE: u32 = 0x12f;
/// The handle of an NV index or persistent object is taken.
pub(super) const NV_DEFINED: u32 = 0x14c;

/// A TPM that asks for patience: RETRY, TESTING, YIELDED.
const TRY_AGAIN: [u32; 3] = [0x922, 0x90a, 0x908];
/// No room for another object or session, or no handle for one.
const OUT_OF_SLOTS: [u32; 5] = [0x902, 0x903, 0x904, 0x905, 0x906];
const LOCKOUT: u32 = 0x921;

const TPM_LAYERS: [u32; 2] = [0, 11]; // 11: tpm2-abrmd answering in the TPM's stead
const ESYS_LAYER: u32 = 7;
const TCTI_LAYER: u32 = 10;
const HMAC_WRONG: u32 = 0x7_001b;

/// A failure, as far as the conversation knows it.
#[derive(Debug)]
pub(super) enum Fault {
    /// A code of the TPM or of a layer on the way to it.
    Code(u32),
    /// Known well enough to be said.
    Told(Box<Error>),
}

impl Fault {
    pub(super) fn told(kind: ErrorKind, what: impl core::fmt::Display) -> Self {
        Error::new(kind, what).into()
    }

    /// Whether the same command may well pass in a moment.
    pub(super) fn is_try_again(&self) -> bool {
        self.is_one_of(&TRY_AGAIN)
    }

    /// Whether objects or sessions of others fill the TPM.
    pub(super) fn is_out_of_slots(&self) -> bool {
        self.is_one_of(&OUT_OF_SLOTS)
    }

    pub(super) fn is_lockout(&self) -> bool {
        self.is_one_of(&[LOCKOUT])
    }

    /// Whether the TPM did not accept an auth value, or has the hierarchy switched off.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self, Self::Code(code) if tpm_code(*code).is_some_and(|c| [AUTH_FAIL, BAD_AUTH, HIERARCHY].contains(&base(c))))
    }

    /// Whether the TPM refused an NV index to the authorization that was given for it.
    pub(super) fn is_refused_by_index(&self) -> bool {
        self.is_one_of(&[NV_AUTHORIZATION, AUTH_UNAVAILABLE])
    }

    /// Whether libtss2 or the way to the TPM failed: its context is then of no use any more, not even for flushing.
    pub(super) fn is_broken_line(&self) -> bool {
        matches!(self, Self::Code(code) if tpm_code(*code).is_none())
    }

    /// Whether the TPM itself said no.
    pub(super) fn is_from_tpm(&self) -> bool {
        matches!(self, Self::Code(code) if tpm_code(*code).is_some())
    }

    /// The error to hand on; `tcti` is the way that was taken.
    pub(super) fn explain(self, tcti: &Tcti) -> Error {
        let code = match self {
            Self::Told(error) => return *error,
            Self::Code(code) => code,
        };
        match (tpm_code(code), code >> 16) {
            (Some(tpm), _) => explain_tpm(tpm),
            (None, TCTI_LAYER) => unreachable(tcti, code),
            (None, _) if code == HMAC_WRONG => Error::new(
                ErrorKind::Corrupt,
                "the TPM's answer fails its HMAC: altered on its way; look for a device between this board and its TPM",
            ),
            (None, ESYS_LAYER | 8 | 9) => {
                Error::new(ErrorKind::Corrupt, f!("the TPM's answer was cut short, altered or not understood (code {code:#x})"))
            }
            (None, _) => Error::new(ErrorKind::Other, f!("the TPM software failed with code {code:#x}")),
        }
    }

    fn is_one_of(&self, codes: &[u32]) -> bool {
        matches!(self, Self::Code(code) if tpm_code(*code).is_some_and(|c| codes.contains(&c)))
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Told(Box::new(error))
    }
}

/// A TPM in dictionary-attack lockout. `next_try` is how many seconds it takes it to forget one failed try, where it told.
pub(super) fn locked(next_try: Option<u32>) -> Error {
    match next_try {
        Some(seconds) => Error::new(
            ErrorKind::Locked,
            f!(
                "the TPM is in dictionary-attack lockout: next try in up to {seconds} s (or reset: tpm2_dictionarylockout --clear-lockout)"
            ),
        ),
        None => Error::new(ErrorKind::Locked, "the TPM is in dictionary-attack lockout and does not tell for how long"),
    }
}

/// Refuses a device node that is none, before anything is written to it.
pub(super) fn check_node(tcti: &Tcti) -> Result<(), Fault> {
    let Some(node) = tcti.node() else { return Ok(()) };
    match std::fs::metadata(node) {
        Ok(meta) if meta.file_type().is_char_device() => Ok(()),
        Ok(_) => Err(Fault::told(ErrorKind::Unsupported, f!("{} is not a device node", node.display()))),
        Err(e) => Err(explain_node(node, &e).into()),
    }
}

// Format-one codes without the bits that say which parameter, handle or session.
const HIERARCHY: u32 = 0x85;
const AUTH_FAIL: u32 = 0x8e;
const INTEGRITY: u32 = 0x9f;
const POLICY_FAIL: u32 = 0x9d;
const BAD_AUTH: u32 = 0xa2;

/// The TPM's own code, where the TPM answered.
fn tpm_code(code: u32) -> Option<u32> {
    TPM_LAYERS.contains(&(code >> 16)).then_some(code & 0xffff)
}

fn base(code: u32) -> u32 {
    if code & 0x80 == 0 { code } else { code & 0xbf }
}

fn explain_tpm(code: u32) -> Error {
    let (kind, text) = match (code, base(code)) {
        (_, INTEGRITY) => (
            ErrorKind::Corrupt,
            "the key does not fit this TPM: TPM cleared or replaced, or key of another TPM; re-enrol the device",
        ),
        (_, AUTH_FAIL) => (ErrorKind::Denied, "the TPM refused the auth value (PIN); its lockout counter went up"),
        (_, BAD_AUTH) => (ErrorKind::Denied, "the TPM refused the auth value"),
        (_, HIERARCHY) => (ErrorKind::Denied, "the TPM's owner hierarchy is switched off, in firmware setup or by its platform"),
        (_, POLICY_FAIL) | (0x12f, _) => (ErrorKind::Denied, "the TPM refused the key's policy: boot state changed"),
        (LOCKOUT, _) => return locked(None),
        (0x922 | 0x90a | 0x908, _) => (ErrorKind::Busy, "the TPM is busy (self-test or another command) and stayed so"),
        (0x902..=0x906, _) => {
            (ErrorKind::Busy, "the TPM's memory is full of objects or sessions of other programs; use /dev/tpmrm0")
        }
        (0x920, _) => (ErrorKind::Busy, "the TPM limits how often its memory is written; try again later"),
        (0x923, _) => (ErrorKind::Busy, "the TPM's memory cannot be written now; try again later"),
        (0x100, _) => (ErrorKind::Unreachable, "the TPM was not started (TPM2_Startup is the firmware's task)"),
        (0x101, _) => (ErrorKind::Other, "the TPM is in failure mode; a power cycle may help, else it is broken"),
        (NO_SUCH_HANDLE, _) => (ErrorKind::Corrupt, "the TPM does not have the object any more: TPM cleared or replaced"),
        (0x14b, _) => (ErrorKind::Busy, "the TPM's non-volatile memory is full; remove what is not needed (tpm2_nvundefine)"),
        _ => return Error::new(ErrorKind::Other, f!("the TPM answered with code {code:#x} (tpm2_rc_decode explains it)")),
    };
    Error::new(kind, text)
}

/// Why the TPM was not reached. libtss2 does not say, so look.
fn unreachable(tcti: &Tcti, code: u32) -> Error {
    if let Some(node) = tcti.node() {
        // libtss2 has closed it again by now; opening it sends nothing.
        return match OpenOptions::new().read(true).write(true).open(node) {
            Ok(_) => Error::new(ErrorKind::Unreachable, f!("{} broke off the conversation (code {code:#x})", node.display())),
            Err(e) => explain_node(node, &e),
        };
    }
    let hint = if tcti.is_broker() {
        "is tpm2-abrmd running, and libtss2-tcti-tabrmd0 installed"
    } else {
        "is the simulator running on this port and the next"
    };
    Error::new(ErrorKind::Unreachable, f!("the TPM at {tcti} is not reachable (code {code:#x}): {hint}"))
}

fn explain_node(node: &Path, e: &io::Error) -> Error {
    let node = node.display();
    match e.kind() {
        io::ErrorKind::NotFound => Error::new(
            ErrorKind::Unreachable,
            f!("no TPM: {node} does not exist; is the TPM on in firmware setup and its driver loaded"),
        ),
        io::ErrorKind::PermissionDenied => {
            Error::new(ErrorKind::Denied, f!("no permission on {node}: add the user to group tss (usermod -aG tss USER)"))
        }
        io::ErrorKind::ResourceBusy => {
            Error::new(ErrorKind::Busy, f!("another program holds {node}; use device:/dev/tpmrm0, which can be shared"))
        }
        _ => Error::new(ErrorKind::Unreachable, f!("{node}: {e}")),
    }
}

#[cfg(test)]
mod tests {
    use std::string::ToString as _;

    use super::*;

    fn explained(code: u32) -> Error {
        Fault::Code(code).explain(&Tcti::parse("swtpm:host=127.0.0.1,port=2321").expect("a TCTI"))
    }

    #[test]
    fn codes_that_were_seen_have_their_kind() {
        use ErrorKind::{Busy, Corrupt, Denied, Locked, Other, Unreachable};
        for (code, kind) in [
            (0xa_000a, Unreachable),
            (0xa_0008, Unreachable),
            (0x7_001b, Corrupt),
            (0x7_0007, Corrupt),
            (0x902, Busy),
            (0x903, Busy),
            (0xb_0902, Busy),
            (0x922, Busy),
            (0x90a, Busy),
            (0x908, Busy),
            (0x921, Locked),
            (0x98e, Denied),
            (0x9a2, Denied),
            (0x12f, Denied),
            (0x99d, Denied),
            (0x1df, Corrupt),
            (0x100, Unreachable),
            (0x101, Other),
            (0x920, Busy),
            (0x923, Busy),
            (0x185, Denied),
            (0x2c4, Other),
            (0xffff_ffff, Other),
        ] {
            let error = explained(code);
            assert_eq!(error.kind(), kind, "{code:#x}: {error}");
            assert!(error.to_string().len() < crate::MAX_DETAIL, "{code:#x} is cut: {error}");
        }
    }

    #[test]
    fn a_lockout_tells_how_long() {
        assert!(locked(Some(1000)).to_string().contains("1000 s"));
    }

    #[test]
    fn a_node_that_is_none_is_not_written_to() {
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        let tcti = |path: &Path| Tcti::parse(&std::format!("device:{}", path.display())).expect("a TCTI");
        let error = check_node(&tcti(file.path())).expect_err("a file").explain(&tcti(file.path()));
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        let missing = tcti(Path::new("/nonexistent/tpmrm0"));
        let error = check_node(&missing).expect_err("nothing").explain(&missing);
        assert!(error.kind() == ErrorKind::Unreachable && error.to_string().contains("does not exist"), "{error}");
    }
}
