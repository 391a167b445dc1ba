//! How many file descriptors this process may have, and what of them is for connections of devices.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Most connections of devices at once, however many descriptors there are: what bounds the server's memory.
pub const MAX_CONNECTIONS: usize = 8192;
/// Descriptors that connections of devices leave alone: 56 for connections to the operator's socket; some 40 that database, key store,
/// runtime and log have open; the rest for files that are opened in between.
const RESERVE: usize = 128;
/// Fewer than this leave too little for devices.
const LEAST: usize = 256;

/// Raises the soft limit to the hard one, and returns how many connections of devices there may be.
///
/// The soft limit of most systems, 1,024, is low for the sake of select(2), which nothing here uses. Where the limit cannot be raised
/// the server goes by the one that it has. The error says what the limit is.
pub fn connections() -> Result<usize, TooFew> {
    let limit = raised().unwrap_or_else(|e| {
        log::warn!("the limit of open files could not be raised ({e}); set LimitNOFILE= in the unit");
        getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft)
    });
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    if limit < LEAST { Err(TooFew(limit)) } else { Ok(MAX_CONNECTIONS.min(limit - RESERVE)) }
}

fn raised() -> nix::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

/// The hard limit of open files is too low for a server.
#[derive(Debug)]
pub struct TooFew(usize);

impl std::fmt::Display for TooFew {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "this process may have {} files open, and needs {LEAST}", self.0)
    }
}

impl std::error::Error for TooFew {}

/// What a failure to accept a connection means to an operator.
pub fn explain(e: &std::io::Error) -> String {
    use nix::errno::Errno;
    match e.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EMFILE) => format!("{e}: this process is at its limit of open files; raise it (LimitNOFILE= in the unit)"),
        Some(Errno::ENFILE) => format!("{e}: the whole system is at its limit of open files (sysctl fs.file-max)"),
        _ => e.to_string(),
    }
}
