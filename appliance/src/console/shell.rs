//! A shell on the console's own terminal, where whoever started the console allows one.

use std::ffi::OsString;
use std::io::{IsTerminal, stdin};
use std::process::Command;

use super::interrupt;
use super::session::{Session, Trouble, print};

/// Runs a shell until it is left. The appliance has no part in it.
///
/// # Errors
/// [`Trouble`].
pub(super) fn run(session: &Session) -> Result<(), Trouble> {
    if !session.allow_shell {
        return Err(Trouble::Usage(
            "no shell is allowed at this console; it is where the console is started with \
             --allow-shell, as on the serial console of the storage VM's image"
                .into(),
        ));
    }
    if !stdin().is_terminal() {
        return Err(Trouble::Usage("shell needs a terminal".into()));
    }
    let shell = shell(std::env::var_os("SHELL"));
    print("This is a shell of the machine that the console runs on; exit leads back.\n");
    // Its Ctrl-C is not ours.
    interrupt::take();
    let ended = Command::new(&shell).status();
    // How it ended says how its last command did, which was seen.
    ended.map(drop).map_err(|error| {
        let shell = shell.display();
        Trouble::Io(format!(
            "{shell} cannot be started: {error}; set SHELL to another"
        ))
    })
}

/// What to run for a user whose environment has `given` as SHELL.
fn shell(given: Option<OsString>) -> OsString {
    let given = given.filter(|given| !given.is_empty());
    given.unwrap_or_else(|| "/bin/sh".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shell_is_the_users_or_else_that_which_each_system_has() {
        assert_eq!(shell(Some("/bin/zsh".into())), "/bin/zsh");
        assert_eq!(shell(Some("".into())), "/bin/sh");
        assert_eq!(shell(None), "/bin/sh");
    }
}
