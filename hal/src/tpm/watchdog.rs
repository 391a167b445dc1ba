//! A time limit for conversations with a TPM: libtss2 waits for an answer for ever, and no call can be broken off from outside.
//!
//! So each conversation has a thread of its own. One that hangs is left behind with all it holds, and remembered: until it
//! ends, nothing new is said to the same TPM, so stuck threads do not pile up.

use std::string::{String, ToString as _};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;
use std::vec::Vec;

use crate::{Error, ErrorKind};

/// One list for the process, for a new store on the same TPM must know of it too.
static HANGING: Mutex<Vec<Hanging>> = Mutex::new(Vec::new());

struct Hanging {
    tpm: String,
    what: &'static str,
    worker: JoinHandle<()>,
}

/// The result of `work`, if it comes within `limit`. `what` names it, `tpm` is the TPM that it talks to.
pub(super) fn run<T: Send + 'static>(
    tpm: &str,
    what: &'static str,
    limit: Duration,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    refuse_while_hanging(tpm)?;
    let (report, answer) = mpsc::sync_channel(1);
    let worker = Builder::new()
        .name("tpm".to_string())
        // Nobody listens any more to one that was given up; there is nobody to tell.
        .spawn(move || drop(report.send(work())))
        .map_err(|e| Error::new(ErrorKind::Busy, format_args!("no thread to talk to the TPM: {e}")))?;
    match answer.recv_timeout(limit) {
        Ok(result) => result,
        Err(RecvTimeoutError::Timeout) => {
            let mut hanging = HANGING.lock().unwrap_or_else(PoisonError::into_inner);
            hanging.push(Hanging { tpm: tpm.to_string(), what, worker });
            let told = format_args!("the TPM gave no answer within {limit:?} when asked to {what}; given up ({tpm})");
            Err(Error::new(ErrorKind::Unreachable, told))
        }
        Err(RecvTimeoutError::Disconnected) => {
            Err(Error::new(ErrorKind::Other, format_args!("the thread that asked the TPM to {what} broke off")))
        }
    }
}

fn refuse_while_hanging(tpm: &str) -> Result<(), Error> {
    let mut hanging = HANGING.lock().unwrap_or_else(PoisonError::into_inner);
    hanging.retain(|h| !h.worker.is_finished());
    match hanging.iter().find(|h| h.tpm == tpm) {
        None => Ok(()),
        Some(h) => {
            let told = format_args!("the TPM is still hanging since it was asked to {}; not asked again ({tpm})", h.what);
            Err(Error::new(ErrorKind::Unreachable, told))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(50);
    /// For what is not to be given up, however slow the machine.
    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_stuck_worker_holds_off_the_next_one_until_it_ends() {
        let (release, wait) = mpsc::channel::<()>();
        let stuck = run("here", "sign", SHORT, move || Ok(wait.recv().is_ok()));
        assert!(stuck.expect_err("too late").to_string().contains("no answer within 50ms when asked to sign"));
        let next = run("here", "sign", SHORT, || Ok(()));
        assert!(next.expect_err("held off").to_string().contains("still hanging"));
        run("elsewhere", "sign", LONG, || Ok(())).expect("another TPM is not concerned");
        release.send(()).expect("release");
        // The thread ends soon after; until then the answer is the same, then the TPM is asked again.
        let again = (0..1000).any(|_| {
            std::thread::sleep(SHORT / 10);
            run("here", "sign", LONG, || Ok(())).is_ok()
        });
        assert!(again, "still held off after the worker ended");
    }

    #[test]
    fn a_panic_is_an_error() {
        let broken = run::<()>("panics", "sign", LONG, || panic!("for the test"));
        assert_eq!(broken.expect_err("panicked").kind(), ErrorKind::Other);
    }
}
