//! The cache of fetched and built things, under `target/vm`.
//!
//! A thing is kept in a directory named after it and a hash of its recipe, so an edited recipe
//! builds anew. It is built beside its place and renamed into it, so an interrupted build is
//! never taken for a whole one; a file lock keeps two processes from building it twice.

use std::{
    env,
    ffi::OsStr,
    fs::{self, File, Permissions},
    hash::{DefaultHasher, Hash, Hasher},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use super::error::{FileContext, Result};

/// The directory of everything the harness keeps: `VPCI_CACHE`, or `target/vm`.
pub fn directory() -> PathBuf {
    env::var_os("VPCI_CACHE").map_or_else(|| workspace().join("target/vm"), PathBuf::from)
}

/// The top of the source tree.
pub fn workspace() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_owned()
}

/// The thing `name`, built by `build` into the directory it is given, unless it is there already.
pub fn keep(
    name: &str,
    recipe: impl Hash,
    build: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let mut hasher = DefaultHasher::new();
    recipe.hash(&mut hasher);
    let place = directory().join(format!("{name}-{:016x}", hasher.finish()));
    let _lock = lock(name)?;
    if place.exists() {
        return Ok(place);
    }
    remove_others(name)?;
    let building = directory().join(format!("{name}.building"));
    fs::create_dir_all(&building).file("create", &building)?;
    build(&building)?;
    fs::rename(&building, &place).file("put in place", &place)?;
    Ok(place)
}

/// Takes the lock called `name`, waiting for whoever has it; dropping the file gives it back.
pub fn lock(name: &str) -> Result<File> {
    fs::create_dir_all(directory()).file("create", directory())?;
    let path = directory().join(format!("{name}.lock"));
    let file = File::create(&path).file("create", &path)?;
    file.lock().file("lock", &path)?;
    Ok(file)
}

/// Writes `text` as an executable file.
pub fn write_program(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).file("write", path)?;
    fs::set_permissions(path, Permissions::from_mode(0o755)).file("make executable", path)
}

/// Removes what older recipes or interrupted builds of `name` left.
fn remove_others(name: &str) -> Result<()> {
    let directory = directory();
    for entry in fs::read_dir(&directory).file("list", &directory)?.flatten() {
        if entry.path().is_dir() && is_version_of(name, &entry.file_name()) {
            fs::remove_dir_all(entry.path()).file("remove", entry.path())?;
        }
    }
    Ok(())
}

fn is_version_of(name: &str, entry: &OsStr) -> bool {
    let rest = entry.to_str().and_then(|entry| entry.strip_prefix(name));
    rest.is_some_and(|rest| {
        let hash = rest.strip_prefix('-').filter(|hash| hash.len() == 16);
        rest == ".building" || hash.is_some_and(|h| h.bytes().all(|b| b.is_ascii_hexdigit()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_versions_of_the_same_thing_are_replaced() {
        assert!(is_version_of("qemu", OsStr::new("qemu-0123456789abcdef")));
        assert!(is_version_of("qemu", OsStr::new("qemu.building")));
        assert!(!is_version_of("qemu", OsStr::new("qemu.lock")));
        assert!(!is_version_of(
            "storage",
            OsStr::new("storage-image-0123456789abcdef")
        ));
    }
}
