//! Fuzz target for the replies of Redis: the redis crate parses whole values in whatever pieces they
//! come, and any bytes without a panic. Bytes that are no value, it may refuse sooner or later.
#![no_main]

use std::io::{self, Read};

use libfuzzer_sys::fuzz_target;
use redis::Parser;

/// A stream that has one more piece at each read after a time-out, as a slow one has.
struct Pieces<'a> {
    rest: &'a [u8],
    size: usize,
    is_late: bool,
}

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.is_late = !self.is_late;
        if self.is_late {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let size = self.size.min(buffer.len());
        (&mut self.rest).take(size as u64).read(buffer)
    }
}

/// All values of a stream, one after the other, as text: not every number equals itself. Also
/// whether the stream ended as one may, and not because of bytes that are no value.
fn values(data: &[u8], size: usize) -> (Vec<String>, bool) {
    let mut pieces = Pieces {
        rest: data,
        size,
        is_late: false,
    };
    let (mut parser, mut values) = (Parser::new(), Vec::new());
    loop {
        match parser.parse_value(&mut pieces) {
            Ok(value) => values.push(format!("{value:?}")),
            Err(error) if error.is_timeout() => {}
            Err(error) => return (values, error.is_io_error()),
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let whole = values(data, usize::MAX);
    for size in [1, 2, 7] {
        let pieces = values(data, size);
        assert!(!whole.1 || pieces == whole, "{pieces:?}, not {whole:?}");
    }
});
