//! Key revocation lists of OpenSSH (its PROTOCOL.krl). Not signed: who fetches one knows the server.

use super::crl::serial_bytes;
use super::{Authority, CaError};
use boundkey_credential::ssh::put;
use boundkey_platform::time::Timestamp;

/// `KRL_MAGIC` and `KRL_FORMAT_VERSION`
const HEAD: &[u8] = b"SSHKRL\n\0\0\0\0\x01";
/// `KRL_SECTION_CERTIFICATES`
const CERTIFICATES: u8 = 1;
/// `KRL_SECTION_CERT_SERIAL_LIST`
const SERIALS: u8 = 0x20;

impl Authority {
    /// The list of revoked SSH host certificates, named by their serial numbers in hexadecimal. `number` rises with every list.
    pub fn ssh_revocation_list(&self, number: u64, serials: &[String], now: Timestamp) -> Result<Vec<u8>, CaError> {
        let mut list = HEAD.to_vec();
        list.extend(number.to_be_bytes());
        list.extend(now.secs().to_be_bytes());
        list.extend(0_u64.to_be_bytes()); // flags
        put(&mut list, b""); // reserved
        put(&mut list, self.cluster.as_bytes());
        if serials.is_empty() {
            return Ok(list);
        }
        let mut numbers = Vec::with_capacity(serials.len() * 8);
        for serial in serials {
            numbers.extend(serial_bytes(serial)?);
        }
        for authority in self.ssh_host_blobs() {
            let mut section = Vec::new();
            put(&mut section, &authority);
            put(&mut section, b""); // reserved
            section.push(SERIALS);
            put(&mut section, &numbers);
            list.push(CERTIFICATES);
            put(&mut list, &section);
        }
        Ok(list)
    }
}
