//! Case-insensitive comparison of names as integers: names are looked up for every request, and
//! comparing integers is cheap.

/// A line, or a word of it, with its first eight bytes as an integer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    text: &'a [u8],
    /// The first eight bytes, little-endian; zero beyond the end of the text.
    head: u64,
}

impl<'a> Line<'a> {
    /// Returns a line of this text.
    #[inline]
    pub fn new(text: &'a [u8]) -> Self {
        // Two loads; where they overlap, they put the same bytes in the same place.
        let head = if let Some(eight) = text.first_chunk() {
            u64::from_le_bytes(*eight)
        } else if let (Some(first), Some(last)) = (text.first_chunk(), text.last_chunk()) {
            u64::from(u32::from_le_bytes(*first))
                | u64::from(u32::from_le_bytes(*last)) << (8 * (text.len() - 4))
        } else if let (Some(first), Some(last)) = (text.first_chunk(), text.last()) {
            u64::from(u16::from_le_bytes(*first)) | u64::from(*last) << (8 * (text.len() - 1))
        } else {
            u64::from(text.first().copied().unwrap_or(0))
        };
        Line { text, head }
    }

    /// Returns a line of the first `length` bytes of `text`, given its first eight bytes as an
    /// integer, which the search for the end of the line has already loaded.
    #[inline]
    pub fn within_eight(text: &'a [u8], eight: u64, length: usize) -> Self {
        debug_assert!(length < 8);
        Line {
            text: &text[..length],
            head: eight & !(!0 << (8 * length)),
        }
    }

    /// Returns its bytes.
    #[inline]
    pub fn text(self) -> &'a [u8] {
        self.text
    }
}

/// The name of a command, prepared for comparison.
#[derive(Clone, Copy)]
pub(super) struct Key {
    name: &'static [u8],
    head: u64,
    /// All bits but the case bit of each letter of the name.
    mask: u64,
}

impl Key {
    /// Returns the key of `name`, which is in capital letters.
    pub fn new(name: &'static str) -> Self {
        let name = name.as_bytes();
        let mut mask = [0xff; 8];
        for (mask, byte) in mask.iter_mut().zip(name) {
            if byte.is_ascii_uppercase() {
                *mask = !0x20;
            }
        }
        Key {
            name,
            head: Line::new(name).head,
            mask: u64::from_le_bytes(mask),
        }
    }

    /// Returns whether `given` is this name, ignoring ASCII case.
    #[inline]
    pub fn is(&self, given: Line<'_>) -> bool {
        given.head & self.mask == self.head
            && given.text.len() == self.name.len()
            && (self.name.len() <= 8 || given.text.eq_ignore_ascii_case(self.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_found_in_whatever_case_and_nothing_else_is() {
        for name in [
            "A",
            "WHO",
            "LOG2",
            "AT@[`{",
            "EXACTLY8",
            "LONGER THAN EIGHT",
        ] {
            let key = Key::new(name);
            assert!(key.is(Line::new(name.as_bytes())));
            for position in 0..name.len() {
                for byte in 0..=u8::MAX {
                    let mut given = name.as_bytes().to_vec();
                    given[position] = byte;
                    assert_eq!(
                        key.is(Line::new(&given)),
                        given.eq_ignore_ascii_case(name.as_bytes()),
                        "{given:?}"
                    );
                }
            }
            let longer = [name.as_bytes(), b"\0"].concat();
            assert!(!key.is(Line::new(&longer)));
            assert!(!key.is(Line::new(&longer[..name.len() - 1])));
        }
    }

    #[test]
    fn a_line_is_the_same_whoever_has_loaded_its_head() {
        let buffer = *b"abcdefgh";
        for length in 0..8 {
            assert_eq!(
                Line::within_eight(&buffer, u64::from_le_bytes(buffer), length),
                Line::new(&buffer[..length])
            );
        }
    }
}
