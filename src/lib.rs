//! boundkey: device identity that lives in the device's own key, and comes back by itself.
//!
//! This package has the programs and the tests of them as they run. The code is in crates of their own, one for each folder (room) of `src`:
//!
//! | crate | what it has | stands on |
//! | --- | --- | --- |
//! | [`hal`] | the `KeyStore` trait and its backends | |
//! | [`platform`] | time, randomness, log, texts | |
//! | [`credential`] | keys in the shapes that certificates ask for | hal |
//! | [`join`] | the protocol, without I/O. [`join::server::decision`] is the heart. | hal, platform, credential |
//! | [`keystore`] | from a configuration to a backend of hal | hal, platform |
//! | `state` | what the device remembers, in a file that survives a power cut at any byte | hal, join |
//! | `agent` | the device program. `agent::join` is one join from end to end. | all above |
//! | `api` | what `ctl` and `auth` say to each other, data alone | join, platform |
//! | `auth` | the server program. `auth::joins` is the same join from the other side. | all above but state and agent |
//! | `ctl` | the operator's program | hal, api, join, platform |
//!
//! Time, randomness, transport and storage are handed in from `main`, so that tests run the real code on simulated ones.
#![forbid(unsafe_code)]

#[cfg(feature = "agent")]
pub use boundkey_agent as agent;
#[cfg(feature = "auth")]
pub use boundkey_api as api;
#[cfg(feature = "auth")]
pub use boundkey_auth as auth;
pub use boundkey_credential as credential;
#[cfg(feature = "auth")]
pub use boundkey_ctl as ctl;
pub use boundkey_hal as hal;
pub use boundkey_join as join;
pub use boundkey_keystore as keystore;
pub use boundkey_platform as platform;
#[cfg(feature = "agent")]
pub use boundkey_state as state;
