//! Fuzz target for the replies of Redis: the redis crate parses any bytes to the same values in
//! whatever pieces they come, within the stack of a thread.
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

/// All values of a stream, one after the other, as text: not every number equals itself.
fn values(data: &[u8], size: usize) -> Vec<String> {
    let mut pieces = Pieces { rest: data, size, is_late: false };
    let (mut parser, mut values) = (Parser::new(), Vec::new());
    loop {
        match parser.parse_value(&mut pieces) {
            Ok(value) => values.push(format!("{value:?}")),
            Err(error) if error.is_timeout() => {}
            Err(_) => return values,
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let whole = values(data, usize::MAX);
    for size in [1, 2, 7] {
        assert_eq!(values(data, size), whole);
    }
});
