//! A program for a tenant that writes to a disk and keeps account of what it was promised.
//!
//! `witness DISK LEDGER` writes pages of `DISK` at random with O_DIRECT, in several threads, until
//! `LEDGER.stop` is there. `LEDGER.begun` and `LEDGER.acknowledged` hold a number of 64 bits for
//! each page: the version that it began to write last, and the one whose end it was told last.
//! They belong on another disk than that under test, or in RAM.

use std::env;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;

use tests::versions::{BLOCK, content};
use tests::vm::witness::{PAGE, PAGES, THREADS};

/// A page where O_DIRECT accepts it.
#[repr(align(4096))]
struct Page([u8; PAGE]);

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args_os().skip(1).map(PathBuf::from).collect();
    let [disk, ledger] = arguments.as_slice() else {
        eprintln!("usage: witness DISK LEDGER");
        return ExitCode::FAILURE;
    };
    let written = thread::scope(|scope| {
        let writers: Vec<_> = (0..THREADS)
            .map(|writer| scope.spawn(move || write(disk, ledger, writer)))
            .collect();
        let ends = writers.into_iter().map(|writer| writer.join());
        ends.map(|end| end.unwrap_or_else(|_| Err(io::Error::other("a writer panicked"))))
            .sum::<io::Result<u64>>()
    });
    match written {
        Ok(writes) => {
            println!("{writes} writes");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("{}: {error}", disk.display());
            ExitCode::FAILURE
        }
    }
}

/// Writes those pages that belong to `writer`; how many writes it were.
fn write(disk: &Path, ledger: &Path, writer: usize) -> io::Result<u64> {
    let disk = File::options()
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(disk)?;
    let account = |name| {
        let path = ledger.with_extension(name);
        File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
    };
    let (begun, acknowledged) = (account("begun")?, account("acknowledged")?);
    let stop = ledger.with_extension("stop");
    let mut page = Page([0; PAGE]);
    let (writer, writers) = (writer as u64, THREADS as u64);
    let mut random = 0x2545_f491_4f6c_dd1d ^ writer;
    let mut version = 0_u64;
    while !stop.exists() {
        version += 1;
        // Xorshift.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let number = random % (PAGES / writers) * writers + writer;
        let at = number * PAGE as u64;
        for (lba, block) in (at / BLOCK as u64..).zip(page.0.chunks_exact_mut(BLOCK)) {
            block.copy_from_slice(&content(lba, version));
        }
        begun.write_all_at(&version.to_le_bytes(), number * 8)?;
        disk.write_all_at(&page.0, at)?;
        acknowledged.write_all_at(&version.to_le_bytes(), number * 8)?;
    }
    Ok(version)
}
