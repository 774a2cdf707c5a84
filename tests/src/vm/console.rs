//! A guest's serial console on the terminal of the person who runs the demo.

use std::{
    io::{self, Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    process::{Command, Stdio},
    thread,
};

use super::error::{FileContext, Result};
use super::machine::Machine;

/// The key that leaves the console: Ctrl-].
const LEAVE: u8 = 0x1d;

/// Joins the terminal and `machine`'s console until the person leaves or the machine ends.
pub fn attach(machine: &Machine) -> Result<()> {
    let socket = machine.console_socket();
    let mut to_guest = UnixStream::connect(socket).file("connect to", socket)?;
    let mut from_guest = to_guest.try_clone().file("open", socket)?;
    println!("The console of {}; Ctrl-] leaves it.", machine.name());
    let _raw = RawTerminal::enter();
    // The shell has shown its prompt already; ask for another.
    to_guest.write_all(b"\r").file("write to", socket)?;
    let output = thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(length @ 1..) = from_guest.read(&mut bytes) {
            let mut terminal = io::stdout().lock();
            if terminal
                .write_all(&bytes[..length])
                .and_then(|()| terminal.flush())
                .is_err()
            {
                break;
            }
        }
    });
    for byte in io::stdin().lock().bytes() {
        match byte {
            Ok(LEAVE) | Err(_) => break,
            Ok(byte) if to_guest.write_all(&[byte]).is_err() => break,
            Ok(_) => {}
        }
    }
    // Ends the other thread, unless the machine has done so.
    let _ = to_guest.shutdown(Shutdown::Both);
    let _ = output.join();
    Ok(())
}

/// The terminal without echo, line editing or signals; as it was when dropped.
struct RawTerminal {
    before: Option<String>,
}

impl RawTerminal {
    fn enter() -> Self {
        let before = stty(&["-g"]);
        if before.is_some() {
            stty(&["raw", "-echo"]);
        }
        Self { before }
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            stty(&[before]);
        }
    }
}

/// Runs `stty`; gives what it prints, unless the standard input is no terminal.
fn stty(arguments: &[&str]) -> Option<String> {
    let mut stty = Command::new("stty");
    let output = stty.args(arguments).stdin(Stdio::inherit()).output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
