//! Running under systemd.

mod notify;

pub use notify::Notifier;
