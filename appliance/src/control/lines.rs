//! Lines of bounded length out of a stream that brings whatever it brings.

use std::io::{self, Read};

/// Bytes read at a time.
const PIECE: usize = 16 << 10;

/// What came.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// A line, without its end.
    Whole(Vec<u8>),
    /// The end of a line that was too long to be kept.
    TooLong,
    /// The stream has ended.
    End,
}

/// The lines of a stream.
#[derive(Debug)]
pub(super) struct Lines {
    most: usize,
    /// Bytes that are no whole line yet.
    bytes: Vec<u8>,
    /// How many of them are known to hold no end of a line.
    looked_at: usize,
    /// The line that they belong to is too long.
    too_long: bool,
}

impl Lines {
    /// Lines of `most` bytes.
    pub fn new(most: usize) -> Self {
        Self {
            most,
            bytes: Vec::new(),
            looked_at: 0,
            too_long: false,
        }
    }

    /// The next line.
    ///
    /// # Errors
    /// What reading reports; what was read before is kept, so that one may go on.
    pub fn next(&mut self, from: &mut impl Read) -> io::Result<Line> {
        loop {
            let unseen = &self.bytes[self.looked_at..];
            if let Some(end) = unseen.iter().position(|byte| *byte == b'\n') {
                let rest = self.bytes.split_off(self.looked_at + end + 1);
                let mut line = std::mem::replace(&mut self.bytes, rest);
                self.looked_at = 0;
                line.pop();
                let too_long = std::mem::take(&mut self.too_long) || line.len() > self.most;
                return Ok(if too_long {
                    Line::TooLong
                } else {
                    Line::Whole(line)
                });
            }
            if self.bytes.len() > self.most {
                self.too_long = true;
                self.bytes.clear();
            }
            self.looked_at = self.bytes.len();
            let mut piece = [0; PIECE];
            let len = from.read(&mut piece)?;
            if len == 0 {
                // What has no end is no line.
                return Ok(Line::End);
            }
            self.bytes.extend_from_slice(&piece[..len]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives its pieces one by one.
    struct Pieces(Vec<&'static [u8]>);

    impl Read for Pieces {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() {
                return Ok(0);
            }
            let piece = self.0.remove(0);
            if piece == b"wait" {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            buffer[..piece.len()].copy_from_slice(piece);
            Ok(piece.len())
        }
    }

    fn whole(text: &str) -> Line {
        Line::Whole(text.into())
    }

    #[test]
    fn lines_come_whole_however_the_stream_is_cut() {
        let mut pieces = Pieces(vec![b"one\ntw", b"o\n", b"\nth", b"ree\nhalf"]);
        let mut lines = Lines::new(10);
        let all: Vec<_> = (0..5).map(|_| lines.next(&mut pieces).unwrap()).collect();
        let expected = [
            whole("one"),
            whole("two"),
            whole(""),
            whole("three"),
            Line::End,
        ];
        assert_eq!(all, expected);
    }

    #[test]
    fn a_line_that_is_too_long_is_let_go_and_the_next_is_heard() {
        let mut pieces = Pieces(vec![
            b"12345",
            b"678",
            b"90\nnext\n",
            b"123456789\n",
            b"12345678\n",
        ]);
        let mut lines = Lines::new(8);
        assert_eq!(lines.next(&mut pieces).unwrap(), Line::TooLong);
        assert_eq!(lines.next(&mut pieces).unwrap(), whole("next"));
        assert_eq!(lines.next(&mut pieces).unwrap(), Line::TooLong);
        assert_eq!(lines.next(&mut pieces).unwrap(), whole("12345678"));
    }

    #[test]
    fn nothing_is_lost_when_reading_fails_for_now() {
        let mut pieces = Pieces(vec![b"ab", b"wait", b"c\n"]);
        let mut lines = Lines::new(8);
        assert!(lines.next(&mut pieces).is_err());
        assert_eq!(lines.next(&mut pieces).unwrap(), whole("abc"));
    }
}
