//! What callgrind wrote: which source file each instruction comes from.

use std::collections::BTreeMap;

/// Instructions by the source file of their lines, and by that of the function that they are in.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Profile(BTreeMap<Place, u64>);

/// Where instructions come from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// File of the line; of a function that was inlined, that one's.
    pub file: String,
    /// File of the function that is really there.
    pub function_file: String,
    /// Name of that function.
    pub function: String,
}

/// Names that are written once, with a number that stands for them from then on.
#[derive(Debug, Default)]
struct Names(BTreeMap<String, String>);

impl Names {
    fn resolve(&mut self, text: &str) -> String {
        let Some((number, name)) = text.split_once(')') else {
            return text.to_owned();
        };
        let name = name.trim_start();
        if name.is_empty() {
            return self.0.get(number).cloned().unwrap_or_default();
        }
        self.0.insert(number.to_owned(), name.to_owned());
        name.to_owned()
    }
}

impl Profile {
    /// Reads a callgrind profile; of calls, only what the caller itself does counts.
    pub fn parse(text: &str) -> Self {
        let (mut files, mut functions) = (Names::default(), Names::default());
        let mut place = Place {
            file: String::new(),
            function_file: String::new(),
            function: String::new(),
        };
        let mut all = BTreeMap::new();
        let mut is_of_callee = false;
        for line in text.lines() {
            if let Some((key, value)) = line.split_once('=') {
                match key {
                    "fl" => {
                        place.file = files.resolve(value);
                        place.function_file.clone_from(&place.file);
                    }
                    "fi" | "fe" => place.file = files.resolve(value),
                    "fn" => place.function = functions.resolve(value),
                    "cfi" | "cfl" => drop(files.resolve(value)),
                    "cfn" => drop(functions.resolve(value)),
                    "calls" => is_of_callee = true,
                    _ => {}
                }
            } else if line
                .starts_with(|first: char| "+-*".contains(first) || first.is_ascii_digit())
            {
                // The line after "calls" is the callee's.
                if std::mem::take(&mut is_of_callee) {
                    continue;
                }
                let cost = line.split_whitespace().nth(1);
                if let Some(cost) = cost.and_then(|cost| cost.parse::<u64>().ok()) {
                    *all.entry(place.clone()).or_default() += cost;
                }
            }
        }
        Self(all)
    }

    /// Each place with its instructions.
    pub fn iter(&self) -> impl Iterator<Item = (&Place, u64)> {
        self.0.iter().map(|(place, cost)| (place, *cost))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inlined_lines_count_for_their_own_file_and_calls_for_the_callee() {
        let profile = Profile::parse(
            "events: Ir\n\
             fl=(1) /w/appliance/src/worker.rs\n\
             fn=(1) turn\n\
             10 5\n\
             +2 3\n\
             fi=(2) /w/appliance/src/rings.rs\n\
             20 7\n\
             fe=(1)\n\
             cfi=(3) memcpy.S\n\
             cfn=(2) memcpy\n\
             calls=2 0\n\
             12 100\n\
             * 1\n\
             \n\
             fl=(3)\n\
             fn=(2)\n\
             0 100\n\
             totals: 116\n",
        );
        let costs: Vec<_> = profile
            .iter()
            .map(|(place, cost)| (place.file.as_str(), place.function.as_str(), cost))
            .collect();
        assert_eq!(
            costs,
            [
                ("/w/appliance/src/rings.rs", "turn", 7),
                ("/w/appliance/src/worker.rs", "turn", 9),
                ("memcpy.S", "memcpy", 100),
            ]
        );
    }
}
