//! One client: its lines are answered one after the other.

use std::io::{self, Read, Write};

use super::desk::{Desk, reply};
use super::lines::{Line, Lines};
use super::protocol::{Failure, MAX_REQUEST, code};

/// Answers what comes from `stream` until it ends or `is_over`, which is asked whenever reading
/// stops waiting.
///
/// # Errors
/// What reading or writing reports.
pub(super) fn serve(
    desk: &Desk,
    stream: &mut (impl Read + Write),
    is_over: impl Fn() -> bool,
) -> io::Result<()> {
    let mut lines = Lines::new(MAX_REQUEST);
    loop {
        let answer = match lines.next(stream) {
            Ok(Line::End) => return Ok(()),
            Ok(Line::TooLong) => Some(reply(
                serde_json::Value::Null,
                Err(Failure::new(
                    code::PARSE,
                    format!("a line has more than {MAX_REQUEST} bytes; send less"),
                )),
            )),
            Ok(Line::Whole(line)) if line.trim_ascii().is_empty() => None,
            Ok(Line::Whole(line)) => desk.answer(&line),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut if !is_over() => continue,
                io::ErrorKind::Interrupted => continue,
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => return Ok(()),
                _ => return Err(error),
            },
        };
        if let Some(mut line) = answer {
            line.push('\n');
            stream.write_all(line.as_bytes())?;
        }
        if is_over() {
            return Ok(());
        }
    }
}
