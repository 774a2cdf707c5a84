//! What the fuzz targets do with their bytes.
//!
//! Each target is one function that takes any bytes, drives the product's public interfaces with
//! them, and panics if a promise is broken. The fuzzer that finds the bytes is in `tests/fuzz/`,
//! beside the seeds; the suite `fuzz_seeds` runs every seed and everything that ever failed
//! without a fuzzer.

mod appliance_memory;
mod cdb;
mod chain;
mod config;
mod in_flight;
mod patience;
mod reservations_file;
mod residue;
mod scripted;
mod shim_memory;
mod state_file;
mod vfio_user;
mod vhost_user;
mod world;

/// A target: its name, and what it does.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 11] = [
    ("cdb", cdb::run),
    ("chain", chain::run),
    ("vfio_user", vfio_user::run),
    ("vhost_user", vhost_user::run),
    ("shim_memory", shim_memory::run),
    ("appliance_memory", appliance_memory::run),
    ("config", config::run),
    ("state_file", state_file::run),
    ("reservations_file", reservations_file::run),
    ("in_flight", in_flight::run),
    ("world", world::run),
];

/// Runs the target `name` on `bytes`.
///
/// # Panics
/// If there is no such target, or it finds something.
pub fn run(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|(known, _)| *known == name);
    target.expect("a target of this name").1(bytes);
}

/// The value that `bytes` stand for; `None` if they are too few.
fn parse<'a, T: arbitrary::Arbitrary<'a>>(bytes: &'a [u8]) -> Option<T> {
    T::arbitrary_take_rest(arbitrary::Unstructured::new(bytes)).ok()
}

/// As many values as the bytes are enough for: a history does not end where a byte is even.
fn until_empty<'a, T: arbitrary::Arbitrary<'a>>(
    bytes: &mut arbitrary::Unstructured<'a>,
) -> arbitrary::Result<Vec<T>> {
    let mut values = Vec::new();
    while !bytes.is_empty() {
        values.push(bytes.arbitrary()?);
    }
    Ok(values)
}

/// Up to 255 bytes, with their number before them.
fn counted(bytes: &mut arbitrary::Unstructured<'_>) -> arbitrary::Result<Vec<u8>> {
    let count: u8 = bytes.arbitrary()?;
    let count = usize::from(count).min(bytes.len());
    Ok(bytes.bytes(count)?.to_vec())
}
