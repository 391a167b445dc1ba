//! Tells the agent when it was built: no device's clock is right if it is earlier (`SOURCE_DATE_EPOCH` makes builds repeatable).

use std::env;
use std::time::{SystemTime, UNIX_EPOCH};

#[allow(clippy::disallowed_methods, reason = "the time of the build, not of the program")]
fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=SOURCE_DATE_EPOCH");
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let built = env::var("SOURCE_DATE_EPOCH").ok().and_then(|text| text.parse().ok()).unwrap_or_else(now);
    println!("cargo:rustc-env=BOUNDKEY_BUILD_EPOCH={built}");
}
