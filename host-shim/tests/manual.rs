//! The man pages and completions that packages carry.

use std::path::Path;

#[test]
fn every_flag_is_in_the_man_pages_and_completions() {
    let directory = std::env::temp_dir().join(format!("manual-{}", uuid::Uuid::new_v4()));
    let program = Path::new(env!("CARGO_BIN_EXE_host-shim"));
    let missing = manual::check::missing(program, &directory);
    assert_eq!(missing, [""; 0]);
    std::fs::remove_dir_all(directory).expect("it was made");
}
