//! The console alone, for tests of it: `console SOCKET [--json] [--allow-shell] [COMMAND ...]`.

use std::path::PathBuf;
use std::process::ExitCode;

use appliance::console::{self, Options};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).peekable();
    let socket = PathBuf::from(arguments.next().unwrap_or_default());
    let mut flag = |name: &str| arguments.next_if_eq(name).is_some();
    let options = Options {
        json: flag("--json"),
        allow_shell: flag("--allow-shell"),
    };
    let words: Vec<_> = arguments.collect();
    console::run(&socket, options, &words)
}
