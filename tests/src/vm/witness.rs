//! What a tenant was promised of a disk, held against the disk itself.
//!
//! `src/bin/witness.rs` writes in the tenant and keeps the account.

use std::{fs::File, os::unix::fs::FileExt, time::Duration};

use super::agent::Job;
use super::disk::Disk;
use super::error::{Error, FileContext, Result};
use super::machine::Machine;
use crate::versions::{BLOCK, version};

/// Bytes that are written at a time.
pub const PAGE: usize = 4096;
/// Pages that are written to.
pub const PAGES: u64 = 512;
/// Writes under way at a time.
pub const THREADS: usize = 4;

/// Where the account is, in the tenant's RAM.
const LEDGER: &str = "/tmp/ledger";
/// How long the program may take to come to its end.
const END: Duration = Duration::from_secs(60);

/// The program, at work in a tenant.
#[derive(Debug)]
pub struct Witness {
    job: Job,
}

/// Versions of each page.
#[derive(Debug)]
struct Account {
    begun: Vec<u64>,
    acknowledged: Vec<u64>,
}

impl Witness {
    /// Starts it on the disk `device` of `tenant`; `program` is a disk of the tenant that holds it.
    pub fn start(tenant: &mut Machine, program: &str, device: &str) -> Result<Self> {
        tenant.sh(&format!(
            "dd if={program} of=/tmp/witness bs=1M iflag=direct status=none && \
             chmod +x /tmp/witness && \
             for name in begun acknowledged; do \
                 dd if=/dev/zero of={LEDGER}.$name bs=8 count={PAGES} status=none; \
             done"
        ))?;
        let job = tenant.start_sh(&format!("/tmp/witness {device} {LEDGER}"))?;
        Ok(Self { job })
    }

    /// Whether it has ended; it does not before it is told to, unless a write failed.
    pub fn is_done(&self) -> bool {
        self.job.is_done()
    }

    /// Holds what `tenant` was promised so far against `disk`; how many writes that were.
    ///
    /// Nothing may write to `disk` meanwhile: the storage VM is dead, or the program has ended.
    pub fn check(tenant: &mut Machine, disk: &Disk) -> Result<u64> {
        // In this order: what is acknowledged when it is looked at was begun before.
        let acknowledged = versions(tenant, "acknowledged")?;
        let begun = versions(tenant, "begun")?;
        let account = Account {
            begun,
            acknowledged,
        };
        let path = disk.path();
        let file = File::open(path).file("open", path)?;
        let mut page = [0; PAGE];
        for number in 0..PAGES {
            file.read_exact_at(&mut page, number * PAGE as u64)
                .file("read", path)?;
            account
                .check(number, &page)
                .map_err(|problem| Error::Unexpected {
                    what: format!("page {number} of {}", path.display()),
                    problem,
                })?;
        }
        Ok(account.writes())
    }

    /// Ends it, and gives how many writes it made.
    pub fn stop(self, tenant: &mut Machine) -> Result<String> {
        tenant.sh(&format!("touch {LEDGER}.stop"))?;
        self.job.succeed(END)
    }
}

fn versions(tenant: &mut Machine, name: &str) -> Result<Vec<u64>> {
    let text = tenant.sh(&format!("od -An -v -tu8 {LEDGER}.{name}"))?;
    let numbers = text.split_whitespace().map(str::parse);
    let numbers: Vec<u64> = numbers
        .collect::<std::result::Result<_, _>>()
        .map_err(|error| Error::Unexpected {
            what: format!("{LEDGER}.{name}"),
            problem: format!("{error}"),
        })?;
    if numbers.len() as u64 != PAGES {
        return Err(Error::Unexpected {
            what: format!("{LEDGER}.{name}"),
            problem: format!("has {} numbers, not {PAGES}", numbers.len()),
        });
    }
    Ok(numbers)
}

impl Account {
    /// Writes that were acknowledged: each thread numbers its own from 1 on.
    fn writes(&self) -> u64 {
        let of_thread = |thread| {
            let pages = self.acknowledged.iter().skip(thread);
            pages.step_by(THREADS).max().copied().unwrap_or(0)
        };
        (0..THREADS).map(of_thread).sum()
    }

    /// Each block of the page holds a version from the one acknowledged last to the one begun last.
    fn check(&self, number: u64, page: &[u8; PAGE]) -> std::result::Result<(), String> {
        let first = number * (PAGE / BLOCK) as u64;
        let page_at = usize::try_from(number).unwrap_or(usize::MAX);
        let (least, most) = (self.acknowledged[page_at], self.begun[page_at]);
        for (lba, block) in (first..).zip(page.chunks_exact(BLOCK)) {
            let Some(found) = version(lba, block) else {
                return Err(format!(
                    "block {lba} is no version, but something else or a mixture"
                ));
            };
            if found < least || found > most {
                return Err(format!(
                    "block {lba} has version {found}; {least} was acknowledged and {most} begun"
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::versions::content;

    fn page(number: u64, versions: [u64; PAGE / BLOCK]) -> [u8; PAGE] {
        let mut page = [0; PAGE];
        let lbas = number * 8..;
        for ((lba, version), block) in lbas.zip(versions).zip(page.chunks_exact_mut(BLOCK)) {
            block.copy_from_slice(&content(lba, version));
        }
        page
    }

    #[test]
    fn writes_are_counted_for_each_thread() {
        let account = Account {
            begun: vec![],
            acknowledged: vec![3, 0, 0, 1, 5, 2, 0, 0],
        };
        assert_eq!(account.writes(), 5 + 2 + 1);
    }

    #[test]
    fn versions_from_the_acknowledged_to_the_begun_one_are_right_and_no_others() {
        let account = Account {
            begun: vec![0, 9],
            acknowledged: vec![0, 7],
        };
        assert_eq!(account.check(0, &[0; PAGE]), Ok(()));
        assert_eq!(account.check(1, &page(1, [7; 8])), Ok(()));
        assert_eq!(account.check(1, &page(1, [7, 7, 8, 9, 9, 9, 8, 7])), Ok(()));
        for wrong in [page(1, [6; 8]), page(1, [10; 8]), page(2, [7; 8])] {
            account.check(1, &wrong).unwrap_err();
        }
        let mut torn = page(1, [7; 8]);
        torn[300..512].copy_from_slice(&page(1, [8; 8])[300..512]);
        account.check(1, &torn).unwrap_err();
    }
}
