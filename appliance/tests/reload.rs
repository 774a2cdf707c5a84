//! SIGHUP: the program reads its configuration again and says what came of it.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests do")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// How long the program may take to say something.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running appliance and its log.
struct Program {
    child: Child,
    log: mpsc::Receiver<String>,
}

impl Program {
    fn run(config: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_appliance"))
            .arg("run")
            .arg("--config")
            .arg(config)
            .env("RUST_LOG", "info")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (lines, log) = mpsc::channel();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if lines.send(line).is_err() {
                    break;
                }
            }
        });
        Self { child, log }
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        let kill = Command::new("kill").args(["-s", signal, &pid]).status();
        assert!(kill.unwrap().success());
    }

    /// The next line with `text` in it.
    fn line_with(&self, text: &str) -> String {
        loop {
            let line = self.log.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|_| panic!("the log says nothing of {text:?}"));
            if line.contains(text) {
                return line;
            }
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It has ended already, unless the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A folder of its own, gone with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("reload-{}", uuid::Uuid::new_v4()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// Makes a disk and returns its LUN.
    fn lun(&self, name: &str) -> String {
        let path = self.0.join(name);
        fs::write(&path, [0; 512]).unwrap();
        format!("[[lun]]\nname = {name:?}\npath = {path:?}\ncache = \"write-back\"\n")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn sighup_applies_the_file_or_says_where_it_is_wrong() {
    let folder = Folder::new();
    let config = folder.0.join("appliance.toml");
    let name = "name = \"storage\"\n";
    fs::write(&config, format!("{name}{}", folder.lun("a"))).unwrap();
    let mut program = Program::run(&config);
    program.line_with("ready, 1 LUNs for 0 HBAs");

    let hba = "[[hba]]\nname = \"t\"\nuuid = \"2f0c4fd2-4f6c-4b3c-9d3b-111111111111\"\n\
               luns = { \"1:7\" = \"b\" }\n";
    fs::write(&config, format!("{name}{}{hba}", folder.lun("b"))).unwrap();
    program.signal("HUP");
    let line = program.line_with("was applied");
    assert!(
        line.contains("LUNs added: b; LUNs removed: a; HBAs added: t"),
        "{line}"
    );

    fs::write(&config, format!("{name}colour = 1\n")).unwrap();
    program.signal("HUP");
    let line = program.line_with("ERROR");
    assert!(line.contains("appliance.toml:2: unknown field"), "{line}");
    assert!(line.contains("nothing was changed"), "{line}");

    program.signal("TERM");
    assert!(program.child.wait().unwrap().success());
}
