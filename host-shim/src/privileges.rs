//! The shim is nobody special: never root, and nothing it starts can become more than it is.

use std::fs;
use std::io;
use std::os::unix::fs::lchown;
use std::path::Path;

use rustix::process::{DumpableBehavior, Gid, Uid};

/// Why the shim does not go on.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    /// Started as root without --user.
    #[error(
        "host-shim does not run as root: start it as an unprivileged user, or give --user NAME (or \
         UID:GID) to become"
    )]
    Root,
    /// --user without being root.
    #[error("--user {0} needs root to start with; leave it out, host-shim is unprivileged already")]
    NotRoot(String),
    /// --user names nobody.
    #[error("--user {0}: no such user in /etc/passwd (a name, or UID:GID, not root)")]
    NoSuchUser(String),
    /// The system refused.
    #[error("cannot give up privileges: {0}")]
    Io(#[from] io::Error),
}

/// Whom to become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    uid: Uid,
    gid: Gid,
}

/// Whom to become, if anybody: nobody else when the process is unprivileged already.
///
/// # Errors
/// [`PrivilegeError`] if root would stay root.
pub fn identity(user: Option<&str>) -> Result<Option<Identity>, PrivilegeError> {
    let root = rustix::process::geteuid().is_root() || rustix::process::getuid().is_root();
    decide(root, user, || fs::read_to_string("/etc/passwd"))
}

fn decide(
    root: bool,
    user: Option<&str>,
    passwd: impl FnOnce() -> io::Result<String>,
) -> Result<Option<Identity>, PrivilegeError> {
    match (root, user) {
        (false, None) => Ok(None),
        (false, Some(user)) => Err(PrivilegeError::NotRoot(user.to_owned())),
        (true, None) => Err(PrivilegeError::Root),
        (true, Some(user)) => find(user, &passwd()?)
            .map(Some)
            .ok_or_else(|| PrivilegeError::NoSuchUser(user.to_owned())),
    }
}

/// The user in `UID:GID` or in the text of a passwd file; never root.
fn find(user: &str, passwd: &str) -> Option<Identity> {
    let (uid, gid) = match user.split_once(':') {
        Some((uid, gid)) => (uid.parse().ok()?, gid.parse().ok()?),
        None => passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let uid: u32 = fields.nth(1)?.parse().ok()?;
            let gid: u32 = fields.next()?.parse().ok()?;
            (name == user).then_some((uid, gid))
        })?,
    };
    // 2^32-1 means "no change" to the kernel.
    let fits = |id: u32| id != 0 && id != u32::MAX;
    (fits(uid) && fits(gid)).then(|| Identity {
        uid: Uid::from_raw(uid),
        gid: Gid::from_raw(gid),
    })
}

impl Identity {
    /// Gives `path` to this user; a symbolic link that somebody put in its place is not followed.
    ///
    /// # Errors
    /// What `lchown` gave.
    pub fn own(&self, path: &Path) -> io::Result<()> {
        lchown(path, Some(self.uid.as_raw()), Some(self.gid.as_raw()))
    }

    /// Becomes this user, for good. Only while the process has a single thread: the calls
    /// change the thread alone.
    ///
    /// # Errors
    /// What the system refused.
    pub fn assume(&self) -> io::Result<()> {
        rustix::thread::set_thread_groups(&[])?;
        rustix::thread::set_thread_res_gid(self.gid, self.gid, self.gid)?;
        rustix::thread::set_thread_res_uid(self.uid, self.uid, self.uid)?;
        Ok(())
    }
}

/// From here on no program that this process starts gains privileges, and no other process of
/// this user, as a relay that a tenant has taken over, can look into this one or steer it.
///
/// # Errors
/// What `prctl` gave.
pub fn keep_unprivileged() -> io::Result<()> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(rustix::thread::set_no_new_privs(true)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nshim:x:107:112::/:/usr/sbin/nologin\n";

    #[test]
    fn users_are_found_by_name_or_numbers() {
        let shim = Identity {
            uid: Uid::from_raw(107),
            gid: Gid::from_raw(112),
        };
        assert_eq!(find("shim", PASSWD), Some(shim));
        assert_eq!(find("107:112", ""), Some(shim));
        assert_eq!(find("nobody", PASSWD), None);
    }

    // covers: VPCI-SEC-7
    #[test]
    fn root_is_refused_unless_it_names_another_user() {
        let decide = |root, user| decide(root, user, || Ok(PASSWD.to_owned()));
        assert!(matches!(decide(true, None), Err(PrivilegeError::Root)));
        for root in ["root", "0:0", "1000:0"] {
            let refused = decide(true, Some(root));
            assert!(matches!(refused, Err(PrivilegeError::NoSuchUser(_))));
        }
        assert!(decide(true, Some("shim")).unwrap().is_some());
        assert!(decide(false, None).unwrap().is_none());
        let needless = decide(false, Some("shim"));
        assert!(matches!(needless, Err(PrivilegeError::NotRoot(_))));
    }

    #[test]
    fn root_is_nobody_to_become() {
        assert_eq!(find("root", PASSWD), None);
        assert_eq!(find("0:0", PASSWD), None);
        assert_eq!(find("1000:0", PASSWD), None);
        assert_eq!(find("4294967295:1000", PASSWD), None);
    }
}
