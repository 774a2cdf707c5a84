//! Which files a process may still reach by their names: Landlock's rules.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd,
    RestrictionStatus, Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetStatus,
    Scope,
};

use super::SandboxError;

/// What is taken away, as of Linux 6.15. A kernel that knows less takes away what it knows.
const HANDLED: ABI = ABI::V7;

/// This program, whatever became of its file.
const OWN_PROGRAM: &str = "/proc/self/exe";
/// What this program is mapped from.
const OWN_MAPS: &str = "/proc/self/maps";
/// Where the dynamic loader looks libraries up; where it may not, it searches its folders.
const LOADER_CACHE: &str = "/etc/ld.so.cache";

/// The folders of a supervisor.
#[derive(Debug, Default)]
pub struct Places<'a> {
    /// Where it removes its sockets and their lock files.
    pub sockets: Vec<&'a Path>,
    /// Where it makes and removes lock files.
    pub locks: Vec<&'a Path>,
}

/// How far Landlock confines a process. Seccomp does in either case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confinement {
    /// As far as the kernel can.
    Files,
    /// Not at all: the kernel has no Landlock, or not switched on.
    CallsOnly,
}

impl From<RestrictionStatus> for Confinement {
    fn from(status: RestrictionStatus) -> Self {
        match status.ruleset {
            RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced => Self::Files,
            RulesetStatus::NotEnforced => Self::CallsOnly,
        }
    }
}

/// No file at all.
pub(super) fn allow_none() -> Result<Confinement, SandboxError> {
    Ok(nothing()?.restrict_self()?.into())
}

/// The files of a supervisor.
pub(super) fn allow(places: &Places<'_>) -> Result<Confinement, SandboxError> {
    let mut rules = nothing()?;
    for folder in &places.sockets {
        rules = open(rules, folder, AccessFs::RemoveFile.into())?;
    }
    let lock_files = AccessFs::MakeReg | AccessFs::WriteFile | AccessFs::RemoveFile;
    for folder in &places.locks {
        rules = open(rules, folder, lock_files)?;
    }
    // By its inode, so that a program that was replaced can still be started. The kernel reads
    // what it executes.
    let execute = AccessFs::Execute | AccessFs::ReadFile;
    rules = open(rules, Path::new(OWN_PROGRAM), execute)?;
    let libraries = library_folders()?;
    for folder in &libraries {
        rules = open(rules, folder, execute)?;
    }
    if !libraries.is_empty() && Path::new(LOADER_CACHE).exists() {
        rules = open(rules, Path::new(LOADER_CACHE), AccessFs::ReadFile.into())?;
    }
    Ok(rules.restrict_self()?.into())
}

/// Rules that allow nothing yet: no file, no network, no signal to anybody outside.
fn nothing() -> Result<RulesetCreated, SandboxError> {
    Ok(Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(HANDLED))?
        .handle_access(AccessNet::from_all(HANDLED))?
        .scope(Scope::from_all(HANDLED))?
        .create()?)
}

/// Adds `access` to `path` and what is beneath it.
fn open(
    rules: RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, SandboxError> {
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    Ok(rules.add_rule(PathBeneath::new(PathFd::new(path)?, access))?)
}

/// Where the shared libraries and the dynamic loader of this process are; a relay needs them
/// once more. None where the program is linked statically.
fn library_folders() -> Result<BTreeSet<PathBuf>, SandboxError> {
    let at = |path| move |error| SandboxError::Proc { path, error };
    let maps = fs::read_to_string(OWN_MAPS).map_err(at(OWN_MAPS))?;
    let program = fs::read_link(OWN_PROGRAM).map_err(at(OWN_PROGRAM))?;
    Ok(folders_of_code(&maps, &program))
}

/// The folders of the files in the text of a `maps` file that have code, apart from `program`.
fn folders_of_code(maps: &str, program: &Path) -> BTreeSet<PathBuf> {
    maps.lines()
        .filter(|line| {
            let rights = line.split_whitespace().nth(1);
            rights.is_some_and(|rights| rights.contains('x'))
        })
        .filter_map(|line| Some(Path::new(&line[line.find('/')?..])))
        .filter(|file| *file != program)
        .filter_map(|file| Some(file.parent()?.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DYNAMIC: &str = "\
55c063479000-55c06367e000 r--p 00000000 fe:00 12 /usr/bin/host-shim
55c06367e000-55c063a00000 r-xp 00205000 fe:00 12 /usr/bin/host-shim
7f36bc9cd000-7f36bc9f3000 r--p 00000000 fe:00 13 /usr/lib/x86_64-linux-gnu/libc.so.6
7f36bc9f3000-7f36bcb49000 r-xp 00026000 fe:00 13 /usr/lib/x86_64-linux-gnu/libc.so.6
7f36bcbda000-7f36bcbff000 r-xp 00001000 fe:00 14 /usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2
7f36bcc13000-7f36bcc15000 rw-s 00000000 00:01 15 /memfd:vhost-pci-session (deleted)
7ffe166b1000-7ffe166b3000 r-xp 00000000 00:00 0 [vdso]
";

    #[test]
    fn a_dynamic_program_needs_the_folder_of_its_libraries() {
        let folders = folders_of_code(DYNAMIC, Path::new("/usr/bin/host-shim"));
        let libraries = PathBuf::from("/usr/lib/x86_64-linux-gnu");
        assert_eq!(folders, BTreeSet::from([libraries]));
    }

    #[test]
    fn a_static_program_needs_no_folder() {
        let maps = &DYNAMIC[..DYNAMIC.find("7f36bc9cd000").unwrap()];
        assert!(folders_of_code(maps, Path::new("/usr/bin/host-shim")).is_empty());
        let upgraded = maps.replace("host-shim", "host-shim (deleted)");
        let program = Path::new("/usr/bin/host-shim (deleted)");
        assert!(folders_of_code(&upgraded, program).is_empty());
    }
}
