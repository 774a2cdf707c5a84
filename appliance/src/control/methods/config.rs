//! Methods for the configuration as a whole.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::look::Nothing;
use super::{Method, params, value};
use crate::config::Config;
use crate::control::desk::Desk;
use crate::control::diff::diff;
use crate::control::protocol::{Applied, Diff, Failure, Text, code};
use crate::roster;

const GIVEN: &[(&str, &str, &str)] = &[
    ("text?", "text", "the configuration (TOML)"),
    (
        "path?",
        "text",
        "a file of the appliance's machine with it; without both, the file that the appliance was \
         started with",
    ),
];

pub(super) const GET: Method = Method {
    name: "config.get",
    params: &[],
    result: "`Text`",
    about: "Gives the configuration that is in force.",
    run: |desk, given| {
        params::<Nothing>(given)?;
        let (text, saved) = desk.book.read();
        value(Text {
            text,
            file: desk.book.file().map(|file| file.display().to_string()),
            saved,
        })
    },
};

pub(super) const CHECK: Method = Method {
    name: "config.check",
    params: GIVEN,
    result: "object with `luns` and `hbas`, how many there are",
    about: "Checks a configuration without touching a disk: that it makes sense, and could be \
            applied while the appliance runs.",
    run: |desk, given| {
        let config = Given::of(given)?.read(desk)?.config;
        let checked = desk.appliance().check(&config);
        checked.map_err(|error| Failure::new(code::REFUSED, error.to_string()))?;
        value(serde_json::json!({
            "luns": config.luns.len(),
            "hbas": config.hbas.len(),
        }))
    },
};

pub(super) const DIFF: Method = Method {
    name: "config.diff",
    params: GIVEN,
    result: "`Diff`",
    about: "Says what would be different with another configuration.",
    run: |desk, given| {
        let config = Given::of(given)?.read(desk)?.config;
        let refused = desk.appliance().check(&config).err();
        value(Diff {
            changes: diff(&desk.appliance().configuration(), &config),
            refused: refused.map(|error| error.to_string()),
        })
    },
};

pub(super) const APPLY: Method = Method {
    name: "config.apply",
    params: GIVEN,
    result: "`Applied`",
    about: "Puts another configuration into force, all of it or nothing. Tenants are told of LUNs \
            that come and go; their other LUNs notice nothing.",
    run: |desk, given| {
        let read = Given::of(given)?.read(desk)?;
        let book = Arc::clone(&desk.book);
        let changed = desk.changes.run(move || {
            book.apply(read.text, read.path.as_deref())
                .map_err(Failure::from)
        })?;
        value(applied(desk, &changed))
    },
};

pub(super) const SAVE: Method = Method {
    name: "config.save",
    params: &[(
        "path?",
        "text",
        "another file than the one that the appliance was started with",
    )],
    result: "object with `path`, the file",
    about: "Writes the configuration that is in force into a file, whole or not at all.",
    run: |desk, given| {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Save {
            path: Option<PathBuf>,
        }
        let Save { path } = params(given)?;
        let book = Arc::clone(&desk.book);
        let saved = desk
            .changes
            .run(move || book.save(path.as_deref()).map_err(Failure::from))?;
        value(serde_json::json!({ "path": saved }))
    },
};

/// What came of a change.
pub(super) fn applied(desk: &Desk, applied: &roster::Applied) -> Applied {
    let (_, saved) = desk.book.read();
    let text = applied.to_string();
    Applied {
        changes: text.split("; ").map(str::to_owned).collect(),
        saved,
    }
}

/// A configuration that was given.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Given {
    text: Option<String>,
    path: Option<PathBuf>,
}

struct Read {
    config: Config,
    text: String,
    path: Option<PathBuf>,
}

impl Given {
    fn of(given: &Value) -> Result<Self, Failure> {
        let given: Self = params(given)?;
        if given.text.is_some() && given.path.is_some() {
            let message = "both `text` and `path` are given; give one";
            return Err(Failure::new(code::PARAMS, message));
        }
        Ok(given)
    }

    fn read(self, desk: &Desk) -> Result<Read, Failure> {
        let refused = |error: crate::config::ConfigError| {
            Failure::new(code::REFUSED, format!("{error}; nothing was changed"))
        };
        if let Some(text) = self.text {
            let config = Config::parse(&text, Path::new("configuration")).map_err(refused)?;
            return Ok(Read {
                config,
                text,
                path: None,
            });
        }
        let file = desk.book.file().map(Path::to_owned);
        let path = self.path.or(file).ok_or_else(|| {
            let message = "the appliance was started without a configuration file; give `text` or \
                           `path`";
            Failure::new(code::PARAMS, message)
        })?;
        let (config, text) = Config::read_with_text(&path).map_err(refused)?;
        Ok(Read {
            config,
            text,
            path: Some(path),
        })
    }
}
