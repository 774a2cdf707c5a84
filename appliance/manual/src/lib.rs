//! A program's man pages and shell completions, made from its command line.
//!
//! Both programs have a hidden command `manual DIR` that does [`write()`]; packages carry the result.

pub mod check;

use std::fs;
use std::io;
use std::path::Path;

use clap::Command;
use clap_complete::Shell;

/// The shells that completions are made for.
const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Zsh, Shell::Fish];

/// Writes a page for the program and for each of its commands into `man1` in `directory`, and
/// completions into `bash`, `zsh` and `fish` there. Hidden commands have none.
///
/// # Errors
/// What making a folder or file reports.
pub fn write(mut program: Command, directory: &Path) -> io::Result<()> {
    let pages = directory.join("man1");
    fs::create_dir_all(&pages)?;
    // `help run` has nothing that the page of `run` has not.
    clap_mangen::generate_to(program.clone().disable_help_subcommand(true), &pages)?;
    let name = program.get_name().to_owned();
    for shell in SHELLS {
        let folder = directory.join(shell.to_string());
        fs::create_dir_all(&folder)?;
        clap_complete::generate_to(shell, &mut program, &name, &folder)?;
    }
    Ok(())
}
