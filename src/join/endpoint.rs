//! What tells an auth endpoint's certificate from every other certificate of the cluster's CA.
//!
//! A device's output may be a TLS server's certificate under the same CA. A device must not take its holder for the auth endpoint, so
//! the auth endpoint's certificate carries an extended key usage that is issued to nothing else.

/// `id-kp-authEndpoint`, an extended key usage (RFC 5280 section 4.2.1.12): the contents of its DER encoding (ITU-T X.690 section 8.19).
///
/// `1.2.840.113556.1.8000.2554.3298.31019.29964.17333.36085.13256552.7251085.1.1`. The arc is made from UUID
/// `0ce2792b-750c-43b5-8cf5-ca47686ea48d`; why not under 2.25, decision 0021 says.
pub const AUTH_ENDPOINT: &[u8] = &[
    0x2a, 0x86, 0x48, 0x86, 0xf7, 0x14, 0x01, 0xbe, 0x40, 0x93, 0x7a, 0x99, 0x62, 0x81, 0xf2, 0x2b, 0x81, 0xea, 0x0c, 0x81, 0x87,
    0x35, 0x82, 0x99, 0x75, 0x86, 0xa9, 0x8e, 0x68, 0x83, 0xba, 0xc9, 0x0d, 0x01, 0x01,
];

#[cfg(test)]
mod tests {
    use super::*;

    /// The arc as Microsoft's generator of OIDs makes it of a UUID: five numbers of 16 bits, then two of 24 bits.
    #[test]
    fn the_usage_is_the_one_that_is_written_down() {
        let uuid = "0ce2792b750c43b58cf5ca47686ea48d";
        let number = |(from, to): (usize, usize)| u32::from_str_radix(&uuid[from..to], 16).expect("hexadecimal");
        let of_uuid = [(0, 4), (4, 8), (8, 12), (12, 16), (16, 20), (20, 26), (26, 32)].map(number);
        let arcs = [&[840, 113_556, 1, 8000, 2554][..], &of_uuid, &[1, 1]].concat();
        let mut der = vec![42];
        for arc in arcs {
            let groups = (0..5).rev().map(|n| (arc >> (7 * n)) & 0x7f).skip_while(|group| *group == 0).collect::<Vec<_>>();
            let last = groups.len() - 1;
            der.extend(
                groups.iter().enumerate().map(|(n, group)| u8::try_from(*group).expect("7 bits") | u8::from(n < last) << 7),
            );
        }
        assert_eq!(der, AUTH_ENDPOINT);
        let text = "1.2.840.113556.1.8000.2554.3298.31019.29964.17333.36085.13256552.7251085";
        let written = of_uuid.iter().fold("1.2.840.113556.1.8000.2554".to_owned(), |text, arc| format!("{text}.{arc}"));
        assert_eq!(written, text);
    }
}
