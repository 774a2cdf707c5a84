//! Any text as the appliance's configuration.

use std::path::Path;

use appliance::Config;
use appliance::scsi::Address;

pub(super) fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    match Config::parse(text, Path::new("appliance.toml")) {
        Ok(config) => check(&config),
        Err(error) => {
            let said = error.to_string();
            assert!(said.starts_with("appliance.toml"), "{said:?} names no file");
            assert!(!said.contains('\n'), "{said:?} is more than a line");
            let lines = text.split('\n').count();
            assert!(
                error.line.is_none_or(|line| (1..=lines).contains(&line)),
                "{said}"
            );
        }
    }
}

/// What the rest of the appliance relies on.
fn check(config: &Config) {
    let names: Vec<_> = config.luns.iter().map(|lun| &lun.name).collect();
    for (n, name) in names.iter().enumerate() {
        assert!(!names[..n].contains(name), "two LUNs are named {name:?}");
    }
    for lun in &config.luns {
        assert!(matches!(lun.block_size, 512 | 4096));
    }
    for hba in &config.hbas {
        for (address, lun) in &hba.luns {
            assert!(names.contains(&lun), "{lun:?} is no LUN");
            assert!(address.lun <= Address::MAX_LUN);
        }
    }
    let state = config.state.as_ref();
    assert!(state.is_none_or(|state| state.is_absolute()));
}
