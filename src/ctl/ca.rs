//! `boundkeyctl ca`: the cluster's CAs, and the steps by which one replaces another.

use clap::ArgMatches;

use super::client::Client;
use super::{Failure, print, say, table};
use boundkey_api::ca::{Phase, Share, Step, Target};
use boundkey_api::call::{CaReport, CaRotate, CaRotated, CaState, CaStatus};
use boundkey_platform::logging;

/// Runs one of its commands.
pub(super) fn ca(client: &Client, matches: &ArgMatches) -> Result<(), Failure> {
    match matches.subcommand() {
        Some(("rotate", matches)) => rotate(client, matches),
        Some(("status", matches)) => {
            let report = client.send(&CaStatus {})?;
            if is_json(matches) { json(&report) } else { show(&report) }
        }
        _ => Err(Failure::usage("no command given", "boundkeyctl ca --help lists them")),
    }
}

fn rotate(client: &Client, matches: &ArgMatches) -> Result<(), Failure> {
    let to = match matches.get_one::<String>("to").map(String::as_str) {
        Some("announced") => Some(Target::Announced),
        Some("active") => Some(Target::Active),
        Some("retired") => Some(Target::Retired),
        _ => None,
    };
    let flag = |name| matches.get_flag(name);
    let done = client.send(&CaRotate { to, cancel: flag("cancel"), yes: flag("yes"), compromised: flag("compromised") })?;
    if is_json(matches) {
        return json(&done);
    }
    let CaRotated { step, number, report } = &done;
    say(format_args!("{}", outcome(*step, *number)))?;
    logging::print("make a backup now: one from before this step does not know it");
    show(report)
}

/// What is so now, and what comes next.
fn outcome(step: Step, number: u32) -> String {
    match step {
        Step::Activate => {
            format!("CA {number} signs from now on; once devices have joined, `boundkeyctl ca rotate --to retired`")
        }
        Step::Announce => {
            format!("CA {number} is made and announced; once devices know it, `boundkeyctl ca rotate --to active`")
        }
        Step::Restore => format!("CA {number} counts again; `boundkeyctl ca rotate --to announced` has it sign again"),
        Step::Retire => format!("CA {number} is retired: nothing that it signs counts for devices that have joined since"),
        Step::Return => format!("CA {number} signs again, and the one that took over is announced"),
        Step::Withdraw => format!("CA {number} is withdrawn"),
    }
}

fn show(report: &CaReport) -> Result<(), Failure> {
    let rows = report.cas.iter().map(|ca| {
        vec![
            ca.number.to_string(),
            phase(ca),
            ca.since.to_string(),
            ca.not_after.to_string(),
            ca.known.map_or_else(|| "-".into(), share),
            ca.root_pin.clone().unwrap_or_else(|| ca.pin.clone()),
        ]
    });
    super::print(&table::table(&["CA", "PHASE", "SINCE", "ENDS", "KNOWN TO", "PIN"], rows.collect()))?;
    say(format_args!("cluster {}; trust bundle {}, which {} tokens have", report.cluster, report.sequence, share(report.newest)))
}

fn phase(CaState { phase, compromised, .. }: &CaState) -> String {
    if *phase == Phase::Retired && *compromised { "retired, compromised".into() } else { phase.to_string() }
}

fn share(Share { tokens, have }: Share) -> String {
    format!("{have} of {tokens}")
}

fn is_json(matches: &ArgMatches) -> bool {
    matches.get_one::<String>("format").is_some_and(|format| format == "json")
}

fn json(answer: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(answer).map_err(|e| print::unprintable(&e))?;
    super::print(&(text + "\n"))
}
