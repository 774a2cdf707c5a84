//! Two programs on one disk: the second serves nothing before the first is gone.

mod program;

use std::fs;
use std::time::Duration;

use program::{Folder, Program};

#[test]
fn a_program_waits_for_the_disk_of_one_that_is_killed() {
    let folder = Folder::new();
    let config = folder.0.join("appliance.toml");
    fs::write(&config, format!("name = \"a\"\n{}", folder.lun("disk"))).unwrap();
    let first = Program::run(&config);
    first.line_with("ready, 1 LUNs for 0 HBAs");

    let second = Program::run(&config);
    let line = second.line_with("waiting for its disk");
    assert!(line.contains("locked by another user"), "{line}");
    let more = second.log.recv_timeout(Duration::from_millis(300));
    assert!(more.is_err(), "it does not wait: {more:?}");

    first.signal("KILL");
    second.line_with("ready, 1 LUNs for 0 HBAs");
}
