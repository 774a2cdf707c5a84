//! Methods for the log.

use serde::Deserialize;

use super::{Method, params, value};

pub(super) const LEVEL: Method = Method {
    name: "log.level",
    params: &[
        ("target?", "text", "a module, such as `appliance::worker`"),
        ("level?", "text", "off, error, warn, info, debug or trace"),
    ],
    result: "`LogLevel`",
    about: "Says what is logged, and changes that for one module until the program ends.",
    run: |desk, given| {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Level {
            target: Option<String>,
            level: Option<String>,
        }
        match params(given)? {
            Level {
                target: None,
                level: None,
            } => value(desk.logs.level()),
            Level { target, level } => {
                let (target, level) = (target.unwrap_or_default(), level.unwrap_or_default());
                value(desk.logs.set_level(&target, &level)?)
            }
        }
    },
};

pub(super) const READ: Method = Method {
    name: "log.read",
    params: &[
        (
            "after?",
            "number",
            "the number of the first line that is wanted; the last lines otherwise",
        ),
        (
            "most?",
            "number",
            "how many lines: 20 otherwise, 500 at most",
        ),
    ],
    result: "`LogPage`",
    about: "Gives lines of the log, of which the last 2000 are kept. To follow it, ask again and \
            again, with the `next` of the reply before.",
    run: |desk, given| {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Read {
            after: Option<u64>,
            most: Option<usize>,
        }
        let Read { after, most } = params(given)?;
        let most = most.unwrap_or(20);
        let last = || desk.logs.next().saturating_sub(most as u64);
        value(desk.logs.read(after.unwrap_or_else(last), most))
    },
};
