//! A name as a number: names are looked up for every request, and a number is compared at once.

/// A line, or a word of it, with its first bytes as a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    text: &'a [u8],
    /// The first eight bytes, the first of them lowest; zero beyond the end of the text.
    head: u64,
}

impl<'a> Line<'a> {
    /// This text.
    #[inline]
    pub fn new(text: &'a [u8]) -> Self {
        // Two loads that may overlap, and then repeat the same bytes in the same place.
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

    /// The first `length` of these eight bytes, which are the beginning of `text` as a number. Whoever looked for the end
    /// of the line has it already.
    #[inline]
    pub fn within_eight(text: &'a [u8], eight: u64, length: usize) -> Self {
        debug_assert!(length < 8);
        Line {
            text: &text[..length],
            head: eight & !(!0 << (8 * length)),
        }
    }

    /// Its bytes.
    #[inline]
    pub fn text(self) -> &'a [u8] {
        self.text
    }
}

/// A command's name, ready to be compared.
#[derive(Clone, Copy)]
pub(super) struct Key {
    name: &'static [u8],
    head: u64,
    /// Without the bits that tell small letters from capital ones, where the name has a letter.
    mask: u64,
}

impl Key {
    /// The key of `name`, which is in capital letters.
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

    /// Whether `given` is this name, in whatever case.
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
