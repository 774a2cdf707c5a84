//! What the pages and completions of a program lack, beside its own `--help`: for its tests.

use std::fs;
use std::path::Path;
use std::process::Command;

/// Has `program` write its pages and completions into `directory`; gives each flag of its `--help`
/// that one of them lacks.
///
/// # Panics
/// If the program fails, lists no flags, or leaves a file out.
pub fn missing(program: &Path, directory: &Path) -> Vec<String> {
    let directory_name = directory.to_str().expect("a name that is text");
    said(program, &["manual", directory_name]);
    let name = program.file_name().and_then(|name| name.to_str());
    let name = name.expect("a name that is text");
    let read = |file: String| {
        let path = directory.join(&file);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{file}: {error}"))
    };
    let bash = read(format!("bash/{name}.bash"));
    let zsh = read(format!("zsh/_{name}"));
    let fish = read(format!("fish/{name}.fish"));
    let mut seen = 0;
    let mut missing = Vec::new();
    for command in commands(&said(program, &["--help"])) {
        // In roff, a hyphen that is to stay one is escaped.
        let page = read(format!("man1/{name}-{command}.1")).replace("\\-", "-");
        for flag in flags(&said(program, &[&command, "--help"])) {
            seen += 1;
            let fish_flag = format!("-l {}", flag.trim_start_matches('-'));
            for (place, has) in [
                ("the page", page.contains(&flag)),
                ("bash", bash.contains(&flag)),
                ("zsh", zsh.contains(&flag)),
                ("fish", fish.contains(&fish_flag)),
            ] {
                if !has {
                    missing.push(format!("{name} {command} {flag}: {place}"));
                }
            }
        }
    }
    assert!(seen > 0, "{name} lists no flags");
    missing
}

fn said(program: &Path, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.expect("the program starts");
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

/// The commands in the `--help` of a program.
fn commands(help: &str) -> Vec<String> {
    let list = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let list = list.take_while(|line| !line.is_empty());
    // A command stands two columns in; what goes on about it, further.
    let names = list.filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    let names = names.filter(|name| !name.is_empty() && *name != "help");
    names.map(str::to_owned).collect()
}

/// The flags in the `--help` of a command, as `--flag`.
fn flags(help: &str) -> Vec<String> {
    let lines = help.lines().map(str::trim_start);
    let options = lines.filter(|line| line.starts_with('-'));
    let words = options.flat_map(|line| line.split([' ', ',', '=']).take(4));
    let flags = words.filter(|word| word.starts_with("--"));
    flags.map(str::to_owned).collect()
}
