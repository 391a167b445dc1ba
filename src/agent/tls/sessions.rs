//! TLS sessions that may be resumed (RFC 8446 section 2.2): without another look at the server's certificate, so only as long as that
//! look would end as the first one did.

use std::time::Duration;

use rustls::NamedGroup;
use rustls::client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::pki_types::ServerName;

use super::Trust;
use crate::clock::since_boot;
use boundkey_platform::time::Clock as _;

/// How long after a handshake in which the certificate was judged its sessions may be resumed.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// The newest session with the server whose certificate was judged last. There is one server, and it sends one ticket.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    ticket: Option<Tls13ClientSessionValue>,
    /// When the certificate was judged, in time since boot.
    judged: Duration,
}

impl Sessions {
    /// Drops what was kept: a certificate is judged now.
    pub(super) fn forget(&mut self) {
        *self = Self { ticket: None, judged: since_boot() };
    }
}

impl ClientSessionStore for Trust {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    /// There is one group.
    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        self.seen().sessions.ticket = Some(ticket);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        let now = self.clock.now();
        let mut seen = self.seen();
        let holds = seen.presented.as_ref().is_some_and(|(presented, _)| !presented.is_doubtful && now <= presented.not_after);
        let is_young = since_boot().saturating_sub(seen.sessions.judged) < LIFETIME;
        seen.sessions.ticket.take().filter(|_| holds && is_young)
    }
}
