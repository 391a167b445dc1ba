//! The agent's configuration, and the systemd unit that follows from it.

use std::path::Path;
use std::time::Duration;

use boundkey::agent::config::Config;
use boundkey::agent::systemd::{Installation, Needs, Unit};

use super::{Told, refused, said};

thread_local! {
    static DIR: tempfile::TempDir = tempfile::tempdir().expect("a directory");
}

/// No span is longer: times are added up from these.
const AGE: Duration = Duration::from_secs(200 * 366 * 86_400);

pub fn run(data: &[u8]) -> Told {
    let path = DIR.with(|dir| dir.path().join("boundkey.yaml"));
    // Made anew: some file systems sync a file that is cut to nothing and written again.
    let _ = std::fs::remove_file(&path);
    std::fs::write(&path, data).expect("written");
    match Config::load(&path, &|_| None) {
        Ok(config) => accepted(&config),
        Err(e) => {
            said(&e, e.advice());
            refused(&e.to_string().replace(&*path.to_string_lossy(), ""))
        }
    }
}

fn accepted(config: &Config) -> Told {
    let spans = [config.credential_ttl, config.renewal_interval, Some(config.crl_interval)];
    assert!(spans.iter().flatten().all(|span| *span < AGE), "{spans:?}");
    let (installation, needs) = (Installation::Configuration, &Needs::of(config));
    let unit =
        Unit { name: "boundkey", program: Path::new("/p"), config_path: Path::new("/c"), user: None, installation, needs }.text();
    // What comes from the configuration stays in its own line: a path cannot add a directive.
    let starts = |line: &&str| line.contains('=') || line.starts_with(['[', '#']) || line.is_empty();
    assert!(unit.lines().all(|line| starts(&line)), "{unit}");
    assert_eq!(unit.lines().filter(|line| line.starts_with("ExecStart=")).count(), 1, "{unit}");
    let warnings = config.warnings.len() + config.daemon_warnings().len();
    format!("ok: {} {} outputs, {warnings} warnings", config.keystore.kind(), config.outputs.len().min(3))
}
