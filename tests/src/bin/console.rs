//! The console alone, for tests of it: `console SOCKET [COMMAND ...]`.

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let socket = PathBuf::from(arguments.next().unwrap_or_default());
    let words: Vec<_> = arguments.collect();
    match words.split_first() {
        Some((json, words)) if json == "--json" => appliance::console::run(&socket, true, words),
        _ => appliance::console::run(&socket, false, &words),
    }
}
