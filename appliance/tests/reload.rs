//! SIGHUP: the program reads its configuration again and says what came of it.

mod program;

use std::fs;

use program::{Folder, Program};

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

#[test]
fn sighup_moves_the_metrics_unless_a_flag_says_where_they_are() {
    let folder = Folder::new();
    let config = folder.0.join("appliance.toml");
    let write = |place: &str| {
        let metrics = format!("[metrics]\nlisten = {:?}\n", folder.0.join(place));
        fs::write(&config, format!("name = \"storage\"\n{metrics}")).unwrap();
    };
    let there = |place: &str| folder.0.join(place).exists();
    write("one");
    let mut program = Program::run(&config);
    program.line_with("metrics are served at");
    assert!(there("one"));

    write("other");
    program.signal("HUP");
    let line = program.line_with("was applied");
    assert!(line.contains("metrics are served at"), "{line}");
    assert!(there("other") && !there("one"));

    program.signal("TERM");
    assert!(program.child.wait().unwrap().success());
    assert!(!there("other"));

    let given = folder.0.join("given");
    let mut program = Program::run_with(&config, &["--metrics", given.to_str().unwrap()]);
    program.line_with("metrics are served at");
    write("one");
    program.signal("HUP");
    let line = program.line_with("was applied");
    assert!(line.contains("given still, as --metrics says"), "{line}");
    assert!(there("given") && !there("one"));
    program.signal("TERM");
    assert!(program.child.wait().unwrap().success());
}
