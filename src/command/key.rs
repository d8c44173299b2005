//! A name as a number: names are looked up for every request, and a number is compared at once.

/// A name's first eight bytes, in capital letters, and its length. Two names of up to eight bytes have the same key if
/// and only if they differ in nothing but the case of ASCII letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    bytes: u64,
    length: usize,
}

/// The same number in each byte.
const fn each(byte: u8) -> u64 {
    u64::from_ne_bytes([byte; 8])
}

impl Key {
    /// The key of `name`.
    #[inline]
    pub fn of(name: &[u8]) -> Self {
        // Two loads that may overlap: which bytes they repeat depends on the length alone.
        let bytes = if let Some(eight) = name.first_chunk() {
            u64::from_le_bytes(*eight)
        } else if let (Some(first), Some(last)) = (name.first_chunk(), name.last_chunk()) {
            u64::from(u32::from_le_bytes(*first)) | u64::from(u32::from_le_bytes(*last)) << 32
        } else if let (Some(first), Some(last)) = (name.first_chunk(), name.last()) {
            u64::from(u16::from_le_bytes(*first)) | u64::from(*last) << 16
        } else {
            u64::from(name.first().copied().unwrap_or(0))
        };
        Key {
            bytes: capitals(bytes),
            length: name.len(),
        }
    }
}

/// Eight bytes with their small ASCII letters made capital, all at once: a byte's highest bit tells whether it is one.
#[inline]
fn capitals(bytes: u64) -> u64 {
    let low = bytes & each(0x7f);
    let from_a = low + each(0x80 - b'a');
    let beyond_z = low + each(0x7f - b'z');
    let small = !bytes & from_a & !beyond_z & each(0x80);
    bytes ^ small >> 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_byte_is_made_capital_as_std_does_it() {
        for byte in 0..=u8::MAX {
            for position in 0..8 {
                let mut name = *b"aZ{[@`z9";
                name[position] = byte;
                let capital = name.to_ascii_uppercase();
                assert_eq!(
                    capitals(u64::from_le_bytes(name)).to_le_bytes(),
                    *capital,
                    "{name:?}"
                );
            }
        }
    }

    #[test]
    fn names_have_the_same_key_if_they_differ_in_case_alone() {
        let bytes = [b'a', b'A', b'b', 0, b' ', 0xe1, b'\n'];
        let mut names: Vec<Vec<u8>> = vec![Vec::new()];
        for length in 0..4 {
            let longer: Vec<Vec<u8>> = names
                .iter()
                .filter(|name| name.len() == length)
                .flat_map(|name| bytes.map(|byte| [&name[..], &[byte]].concat()))
                .collect();
            names.extend(longer);
        }
        for tail in ["5", "56", "567", "5678"] {
            names.push([b"AaAa", tail.as_bytes()].concat());
            names.push([b"aAaa", tail.as_bytes()].concat());
        }
        for name in &names {
            for other in &names {
                assert_eq!(
                    Key::of(name) == Key::of(other),
                    name.eq_ignore_ascii_case(other),
                    "{name:?} {other:?}"
                );
            }
        }
    }
}
