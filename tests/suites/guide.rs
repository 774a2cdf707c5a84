//! Every line of the console in the operator's guide, said to an appliance in its order.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests do")]

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use appliance::{Appliance, Config};
use rexpect::session::PtySession;
use tests::world::{Control, MIB};

const GUIDE: &str = include_str!("../../appliance/docs/guide.md");
const PROMPT: &str = "storage-1> ";

/// A line said, and the lines of the answer that the guide shows.
struct Exchange<'a> {
    said: &'a str,
    answer: Vec<&'a str>,
}

/// What is in the guide's ```console blocks.
fn exchanges(guide: &str) -> Vec<Exchange<'_>> {
    let mut exchanges: Vec<Exchange<'_>> = Vec::new();
    let mut inside = false;
    for line in guide.lines().map(str::trim_end) {
        match (line, line.strip_prefix(PROMPT)) {
            ("```console", _) => inside = true,
            ("```", _) => inside = false,
            (_, Some(said)) if inside => exchanges.push(Exchange {
                said,
                answer: Vec::new(),
            }),
            _ if inside => {
                let asked = exchanges.last_mut().expect("a prompt comes first");
                asked.answer.push(line);
            }
            _ => {}
        }
    }
    exchanges
}

/// The guide's paths, below `folder`.
fn placed(text: &str, folder: &Path) -> String {
    let below = |path: &str| format!("{}{path}", folder.display());
    text.replace("/srv/", &below("/srv/"))
        .replace("/etc/vhost-pci/", &below("/etc/vhost-pci/"))
}

/// An appliance as the guide's reader has it: one tenant, with a disk to boot from.
fn appliance(folder: &Path) -> Control {
    for directory in ["srv", "etc/vhost-pci"] {
        fs::create_dir_all(folder.join(directory)).unwrap();
    }
    for image in ["tenant1.img", "tenant2.img", "new.img"] {
        let file = File::create(folder.join("srv").join(image)).unwrap();
        file.set_len(MIB).unwrap();
    }
    let text = placed(
        r#"name = "storage-1"
[[lun]]
name = "tenant1-root"
path = "/srv/tenant1.img"
[[hba]]
name = "tenant1"
uuid = "2f0c4fd2-4f6c-4b3c-9d3b-111111111111"
luns = { "0" = "tenant1-root" }
"#,
        folder,
    );
    let file = folder.join("etc/vhost-pci/appliance.toml");
    fs::write(&file, &text).unwrap();
    let config = Config::parse(&text, &file).unwrap();
    let appliance = Arc::new(Appliance::new(config).unwrap());
    Control::start(appliance, text, Some(&file))
}

/// What the console answers to `line`.
fn answer(terminal: &mut PtySession, line: &str) -> String {
    terminal.send_line(line).unwrap();
    if line == "top" {
        terminal.exp_string("leaves").unwrap();
        terminal.send("q").unwrap();
        terminal.flush().unwrap();
    }
    let answer = terminal.exp_string(PROMPT);
    answer.unwrap_or_else(|error| panic!("{line}: {error}"))
}

#[test]
fn the_console_answers_each_line_of_the_guide_as_the_guide_shows() {
    let folder = tempfile::tempdir().unwrap();
    let control = appliance(folder.path());
    let mut program = Command::new(env!("CARGO_BIN_EXE_console"));
    program
        .arg(control.path())
        .env("TERM", "dumb")
        .env("NO_COLOR", "1")
        .env("HOME", folder.path());
    let mut terminal = rexpect::session::spawn_command(program, Some(60_000)).unwrap();
    terminal.exp_string(PROMPT).unwrap();
    let exchanges = exchanges(GUIDE);
    assert!(exchanges.len() > 10);

    for Exchange {
        said,
        answer: shown,
    } in exchanges
    {
        let answer = answer(&mut terminal, &placed(said, folder.path()));

        println!("{PROMPT}{said}\n{answer}");
        for refused in ["there is no", "say:", "say one of", "no LUN is named"] {
            assert!(!answer.contains(refused), "{said}: {answer}");
        }
        for line in shown {
            // What follows "..." differs from time to time.
            let line = line.split("...").next().unwrap_or_default();
            let line = placed(line, folder.path());
            assert!(answer.contains(&line), "{said}: no {line:?} in {answer}");
        }
    }
}
