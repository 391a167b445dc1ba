//! Tells the agent when it was built: no device's clock is right if it is earlier. `SOURCE_DATE_EPOCH` makes builds repeatable, and so does
//! `BOUNDKEY_BUILD_EPOCH`, which goes before it: crates that compile C are built anew whenever the former changes.

use std::env;
use std::time::{SystemTime, UNIX_EPOCH};

#[allow(clippy::disallowed_methods, reason = "the time of the build, not of the program")]
fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=BOUNDKEY_BUILD_EPOCH");
    println!("cargo:rerun-if-env-changed=SOURCE_DATE_EPOCH");
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let told = |name: &str| env::var(name).ok().and_then(|text| text.parse().ok());
    let built = told("BOUNDKEY_BUILD_EPOCH").or_else(|| told("SOURCE_DATE_EPOCH")).unwrap_or_else(now);
    println!("cargo:rustc-env=BOUNDKEY_BUILD_EPOCH={built}");
}
