//! DER (ITU-T X.690) that is taken apart element by element, without allocation and without trust in it.

/// `BOOLEAN`
pub const BOOLEAN: u8 = 0x01;
/// `INTEGER`
pub const INTEGER: u8 = 0x02;
/// `BIT STRING`
pub const BIT_STRING: u8 = 0x03;
/// `OCTET STRING`
pub const OCTET_STRING: u8 = 0x04;
/// `OBJECT IDENTIFIER`
pub const OBJECT_IDENTIFIER: u8 = 0x06;
/// `UTCTime`
pub const UTC_TIME: u8 = 0x17;
/// `GeneralizedTime`
pub const GENERALIZED_TIME: u8 = 0x18;
/// `SEQUENCE`
pub const SEQUENCE: u8 = 0x30;

/// The tag of `[number]`, constructed, context-specific; `number` is at most 30.
pub const fn context(number: u8) -> u8 {
    0xa0 | number
}

/// What is yet to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Der<'a>(pub &'a [u8]);

impl<'a> Der<'a> {
    /// Contents of the next element, if it has this tag and a length as DER writes it (section 10.1: the shortest form), below 16 MiB.
    /// Else nothing is read.
    pub fn take(&mut self, tag: u8) -> Option<&'a [u8]> {
        let rest = self.0.strip_prefix(&[tag])?;
        let (length, rest) = match *rest {
            [length @ 0..=0x7f, ref rest @ ..] | [0x81, length @ 0x80..=0xff, ref rest @ ..] => (usize::from(length), rest),
            [0x82, high @ 1..=0xff, low, ref rest @ ..] => (usize::from(u16::from_be_bytes([high, low])), rest),
            [0x83, high @ 1..=0xff, mid, low, ref rest @ ..] => {
                (usize::from(high) << 16 | usize::from(u16::from_be_bytes([mid, low])), rest)
            }
            _ => return None,
        };
        let (contents, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some(contents)
    }

    /// Whether all was read.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use super::*;

    #[test]
    fn each_length_is_read_in_its_shortest_form_alone() {
        for length in [0, 1, 0x7f, 0x80, 0xff, 0x100, 0xffff, 0x1_0000] {
            let bytes = u32::try_from(length).expect("small").to_be_bytes();
            let forms: [&[u8]; 4] = [
                &bytes[3..],
                &[&[0x81], &bytes[3..]].concat(),
                &[&[0x82], &bytes[2..]].concat(),
                &[&[0x83], &bytes[1..]].concat(),
            ];
            let shortest = [0x80, 0x100, 0x1_0000].iter().filter(|bound| length >= **bound).count();
            for (n, form) in forms.iter().enumerate() {
                let whole: Vec<u8> = [&[SEQUENCE][..], form, &std::vec![7; length], &[9]].concat();
                let mut der = Der(&whole);
                let taken = der.take(SEQUENCE).filter(|contents| contents.len() == length);
                assert_eq!(taken.is_some(), n == shortest, "{length} in form {n}");
                if n == shortest {
                    assert_eq!(der, Der(&[9]));
                }
            }
        }
    }

    #[test]
    fn what_is_cut_short_or_another_is_left_alone() {
        for bytes in [&[][..], &[SEQUENCE], &[SEQUENCE, 1], &[SEQUENCE, 0x82, 1], &[SEQUENCE, 0x80, 0, 0], &[INTEGER, 0]] {
            let mut der = Der(bytes);
            assert_eq!((der.take(SEQUENCE), der), (None, Der(bytes)));
        }
    }
}
