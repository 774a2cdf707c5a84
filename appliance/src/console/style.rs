//! Colours, where they are wanted: on a terminal, unless NO_COLOR is set.

use std::io::IsTerminal;

/// How to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Style {
    colour: bool,
}

/// What something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A heading.
    Heading,
    /// As it should be.
    Good,
    /// To be looked at.
    Warning,
    /// Wrong.
    Bad,
    /// Of less interest.
    Faint,
}

impl Style {
    /// Without colours.
    #[cfg(test)]
    pub const PLAIN: Self = Self { colour: false };

    /// For standard output.
    pub fn of_stdout() -> Self {
        // https://no-color.org: set, and not empty.
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self {
            colour: std::io::stdout().is_terminal() && !refused && !dumb,
        }
    }

    /// Whether there are colours.
    pub fn has_colour(self) -> bool {
        self.colour
    }

    /// The text in the colour of its kind.
    pub fn paint(self, kind: Kind, text: &str) -> String {
        let code = match kind {
            Kind::Heading => "1",
            Kind::Good => "32",
            Kind::Warning => "33",
            Kind::Bad => "1;31",
            Kind::Faint => "2",
        };
        if self.colour && !text.is_empty() {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}
