//! Cache lines that several workers touch and one of them writes to, found in what lackey traces.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io::BufRead;

/// Bytes of a cache line.
const LINE: u64 = 64;

/// What is known of the accesses between marks.
#[derive(Debug)]
pub struct Lines {
    /// Addresses of the marks: one for each worker, and one that says that none is at work.
    marks: u64,
    most: u64,
    /// Who is at work.
    worker: Option<u64>,
    /// Address of the instruction that accesses.
    instruction: u64,
    touched: BTreeMap<u64, Touched>,
}

/// Who touched a line.
#[derive(Debug, Default)]
struct Touched {
    /// Bits of the workers that accessed it, and of those that wrote to it.
    by: u64,
    written_by: u64,
    /// The first instruction of a worker that wrote to it.
    writer: u64,
    /// The first instruction of another worker than the first.
    other: u64,
}

impl Lines {
    /// For a program with marks at `marks`, of as many workers as it can have.
    pub fn new(marks: u64, most: u64) -> Self {
        Self {
            marks,
            most,
            worker: None,
            instruction: 0,
            touched: BTreeMap::new(),
        }
    }

    /// Takes in a trace (`--trace-mem=yes`).
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(&mut self, trace: impl BufRead) -> std::io::Result<()> {
        for line in trace.lines() {
            self.take(&line?);
        }
        Ok(())
    }

    /// Takes in one line: what is done, and at which address to how many bytes.
    fn take(&mut self, line: &str) {
        let Some((what, place)) = line.trim_start().split_once(' ') else {
            return;
        };
        let place = place.trim_start().split_once(',');
        let place = place.and_then(|(at, len)| {
            let at = u64::from_str_radix(at, 16).ok()?;
            Some((at, len.trim().parse::<u64>().ok()?))
        });
        let Some((at, len)) = place else { return };
        match what {
            "I" => self.instruction = at,
            "L" => self.access(at, len, false),
            "S" | "M" => self.access(at, len, true),
            _ => {}
        }
    }

    fn access(&mut self, at: u64, len: u64, writes: bool) {
        if let Some(mark) = at.checked_sub(self.marks).filter(|at| *at <= self.most) {
            self.worker = Some(mark).filter(|mark| *mark < self.most);
            return;
        }
        let Some(worker) = self.worker else { return };
        for line in at / LINE..=(at + len.max(1) - 1) / LINE {
            let touched = self.touched.entry(line).or_default();
            if touched.by & !(1 << worker) != 0 && touched.other == 0 {
                touched.other = self.instruction;
            }
            touched.by |= 1 << worker;
            if writes {
                if touched.written_by == 0 {
                    touched.writer = self.instruction;
                }
                touched.written_by |= 1 << worker;
            }
        }
    }

    /// How many lines there are that were accessed at all by each of so many workers.
    pub fn of_each(&self, workers: u64) -> Vec<usize> {
        let of = |worker: u64| {
            let touched = self.touched.values();
            touched.filter(|line| line.by & (1 << worker) != 0).count()
        };
        (0..workers).map(of).collect()
    }

    /// A line of text for each that one worker writes to and another touches.
    pub fn shared(&self) -> Vec<String> {
        let shared = self
            .touched
            .iter()
            .filter(|(_, touched)| touched.written_by != 0 && (touched.by & (touched.by - 1)) != 0);
        shared
            .map(|(line, touched)| {
                let mut text = format!("{:#x}: ", line * LINE);
                let _ = write!(
                    text,
                    "written to from {:#x}, touched by another worker from {:#x}",
                    touched.writer, touched.other
                );
                text
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(trace: &str) -> usize {
        let mut lines = Lines::new(0x1000, 2);
        lines.read(trace.as_bytes()).unwrap();
        lines.shared().len()
    }

    #[test]
    fn a_line_that_one_writes_to_and_another_reads_is_shared() {
        let one = " S 00001000,1\nI  00400000,4\n S 00002000,8\n S 00001002,1\n";
        let reads = |at: u64| format!(" S 00001001,1\nI  00400010,4\n L {at:08x},4\n");
        assert_eq!(shared(&format!("{one}{}", reads(0x203c))), 1);
        assert_eq!(shared(&format!("{one}{}", reads(0x2040))), 0);
        // One access of both lines.
        assert_eq!(shared(&format!("{one}{}", reads(0x1ffe))), 1);
    }

    #[test]
    fn lines_that_are_only_read_or_touched_by_nobody_at_work_are_not_shared() {
        let read = " S 00001000,1\n L 00002000,8\n S 00001001,1\n L 00002000,8\n";
        assert_eq!(shared(read), 0);
        let between = " S 00001000,1\n L 00002000,8\n S 00001002,1\n M 00002000,8\n";
        assert_eq!(shared(between), 0);
    }

    #[test]
    fn what_is_no_access_is_passed_over() {
        assert_eq!(shared("==1== Lackey\n\nS nothing\n S zz,1\n"), 0);
    }
}
