//! What a unit's mode parameters are in the file in which they outlive the appliance.

use serde::{Deserialize, Serialize};

use super::settings::Settings;
use crate::scsi::state_file::Kept;

/// What the file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    pub settings: Settings,
}

impl Kept for Saved {
    const WHAT: &'static str = "mode parameters";
    const WITHOUT: &'static str = "the unit has its defaults until it is mended or removed, or an \
                                   initiator saves others";
    const MAX_LEN: u64 = 4096;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::state_file::StateFile;
    use crate::scsi::testing::Scratch;
    use crate::scsi::threshold::Threshold;

    const SAVED: Saved = Saved {
        settings: Settings {
            write_cache: false,
            descriptor_sense: true,
            write_protect: false,
            threshold: Threshold {
                enabled: true,
                count: 7,
            },
        },
    };

    fn error(text: &[u8]) -> String {
        let scratch = Scratch::new();
        let path = scratch.path().join("state");
        std::fs::write(&path, text).unwrap();
        let error = StateFile::<Saved>::new(path, "a").read().unwrap_err();
        error.to_string()
    }

    #[test]
    fn what_is_saved_is_read_again() {
        let scratch = Scratch::new();
        let file = StateFile::<Saved>::new(scratch.path().join("state"), "a");
        assert_eq!(file.read().unwrap(), None);
        file.write(&Saved {
            settings: Settings::default(),
        })
        .unwrap();
        file.write(&SAVED).unwrap();
        assert_eq!(file.read().unwrap(), Some(SAVED));
        let names: Vec<_> = std::fs::read_dir(scratch.path()).unwrap().collect();
        assert_eq!(names.len(), 1, "{names:?}");
    }

    #[test]
    fn a_file_of_version_1_is_understood_for_ever() {
        let scratch = Scratch::new();
        let path = scratch.path().join("state");
        let text = "version = 1\nunit = \"a\"\n\n[settings]\nwrite_cache = false\n\
                    descriptor_sense = true\nwrite_protect = false\n\n\
                    [settings.threshold]\nenabled = true\ncount = 7\n";
        std::fs::write(&path, text).unwrap();
        let file = StateFile::<Saved>::new(path.clone(), "a");
        assert_eq!(file.read().unwrap(), Some(SAVED));
        file.write(&SAVED).unwrap();
        let sealed = std::fs::read_to_string(path).unwrap();
        assert_eq!(sealed.split_once('\n').unwrap().1, text);
    }

    #[test]
    fn a_damaged_file_is_named_with_what_is_wrong() {
        assert!(error(b"version = 1\nunit = 3").contains("state: makes no sense"));
        assert!(error(b"version = 2\nunit = \"a\"").contains("has version 2"));
        assert!(error(b"\xff\xfe").contains("makes no sense"));
        assert!(error(b"").contains("makes no sense"));
        assert!(error(&[b'#'; 5000]).contains("has more than 4096 bytes"));
        let other = "version = 1\nunit = \"b\"\n[settings]\nwrite_cache = true\n\
                     descriptor_sense = true\nwrite_protect = false\n\
                     [settings.threshold]\nenabled = true\ncount = 7\n";
        assert!(error(other.as_bytes()).contains("is about the unit \"b\""));
        let sealed = format!("checksum = \"00000000\"\n{other}");
        assert!(error(sealed.as_bytes()).contains("is not as it was written"));
    }
}
