//! A strict reader of the OpenMetrics 1.0 text format, as far as the appliance uses it.

use std::collections::{BTreeMap, BTreeSet};

/// A family of metrics.
#[derive(Debug, Default)]
pub struct Family {
    /// "counter", "gauge" or "histogram".
    pub kind: String,
    /// What it says.
    pub help: String,
    /// Its unit, if it has one.
    pub unit: String,
    /// Its samples in their order.
    pub samples: Vec<Sample>,
}

/// One line with a value.
#[derive(Debug)]
pub struct Sample {
    /// What follows the name of the family.
    pub suffix: String,
    /// The labels.
    pub labels: BTreeMap<String, String>,
    /// The value.
    pub value: f64,
}

/// The families of a text by their names.
///
/// # Errors
/// What is wrong with which line.
pub fn read(text: &str) -> Result<BTreeMap<String, Family>, String> {
    let body = text
        .strip_suffix("# EOF\n")
        .ok_or("it does not end with # EOF")?;
    if !body.is_empty() && !body.ends_with('\n') {
        return Err("the line before # EOF has no end".into());
    }
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let mut current = String::new();
    for line in body.lines() {
        let wrong = |why: &str| format!("{why}: {line}");
        if let Some(about) = line.strip_prefix("# ") {
            let mut words = about.splitn(3, ' ');
            let mut word = || words.next().ok_or_else(|| wrong("too short"));
            let (key, name, rest) = (word()?, word()?, word()?);
            if name != current {
                is_name(name)
                    .then_some(())
                    .ok_or_else(|| wrong("no name"))?;
                let before = families.insert(name.into(), Family::default());
                before
                    .is_none()
                    .then_some(())
                    .ok_or_else(|| wrong("twice"))?;
                name.clone_into(&mut current);
            }
            let family = families.get_mut(name).ok_or_else(|| wrong("no family"))?;
            let field = match key {
                "HELP" => &mut family.help,
                "TYPE" if ["counter", "gauge", "histogram"].contains(&rest) => &mut family.kind,
                "UNIT" if name.ends_with(&format!("_{rest}")) => &mut family.unit,
                _ => return Err(wrong("not understood")),
            };
            if !field.is_empty() || !family.samples.is_empty() {
                return Err(wrong("twice or too late"));
            }
            rest.clone_into(field);
            continue;
        }
        let family = families
            .get_mut(&current)
            .ok_or_else(|| wrong("no family"))?;
        let end = line.find(['{', ' ']).ok_or_else(|| wrong("no value"))?;
        let (name, rest) = line.split_at(end);
        let suffix = name
            .strip_prefix(&*current)
            .ok_or_else(|| wrong("another family"))?;
        let fits: &[&str] = match &*family.kind {
            "counter" => &["_total"],
            "gauge" => &[""],
            "histogram" => &["_bucket", "_sum", "_count"],
            _ => return Err(wrong("no TYPE")),
        };
        if !fits.contains(&suffix) {
            return Err(wrong("no name of its kind"));
        }
        let (labels, value) = labels(rest).ok_or_else(|| wrong("labels"))?;
        let value = value
            .strip_prefix(' ')
            .and_then(|value| value.parse::<f64>().ok());
        let value = value.ok_or_else(|| wrong("no number"))?;
        if family.kind != "gauge" && !(value >= 0.0 && value.is_finite()) {
            return Err(wrong("no count"));
        }
        let suffix = suffix.to_owned();
        family.samples.push(Sample {
            suffix,
            labels,
            value,
        });
    }
    for (name, family) in &families {
        check(family).map_err(|why| format!("{name}: {why}"))?;
    }
    Ok(families)
}

fn is_name(text: &str) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.chars().all(is_part) && !text.starts_with(|c: char| c.is_ascii_digit()) && !text.is_empty()
}

/// The labels that a text begins with, and the rest.
fn labels(text: &str) -> Option<(BTreeMap<String, String>, &str)> {
    let mut labels = BTreeMap::new();
    let Some(mut rest) = text.strip_prefix('{') else {
        return Some((labels, text));
    };
    loop {
        if let Some(after) = rest.strip_prefix('}') {
            return Some((labels, after));
        }
        let (name, value) = rest.split_once("=\"")?;
        let mut unescaped = String::new();
        let mut chars = value.char_indices();
        let end = loop {
            match chars.next()? {
                (at, '"') => break at + 1,
                (_, '\\') => match chars.next()?.1 {
                    'n' => unescaped.push('\n'),
                    c @ ('"' | '\\') => unescaped.push(c),
                    _ => return None,
                },
                (_, c) => unescaped.push(c),
            }
        };
        if !is_name(name) || labels.insert(name.to_owned(), unescaped).is_some() {
            return None;
        }
        rest = &value[end..];
        rest = match rest.strip_prefix(',') {
            Some(more) if !more.starts_with('}') => more,
            None if rest.starts_with('}') => rest,
            _ => return None,
        };
    }
}

/// Checks that no series is there twice, and that histograms are cumulative.
fn check(family: &Family) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    let mut counts: BTreeMap<BTreeMap<String, String>, [f64; 3]> = BTreeMap::new();
    for sample in &family.samples {
        if !seen.insert((&sample.suffix, &sample.labels)) {
            return Err(format!("{:?} is there twice", sample.labels));
        }
        let mut of = sample.labels.clone();
        let bound = of.remove("le").map(|le| le.parse::<f64>());
        let [last_bound, last, count] = counts.entry(of).or_insert([f64::NEG_INFINITY, 0.0, 0.0]);
        match (&*sample.suffix, bound) {
            ("_bucket", Some(Ok(bound))) if bound > *last_bound && sample.value >= *last => {
                (*last_bound, *last) = (bound, sample.value);
            }
            ("_count", None) => *count = sample.value,
            ("" | "_total" | "_sum", None) => {}
            _ => return Err(format!("{} {:?}", sample.suffix, sample.labels)),
        }
    }
    let is_whole = |[bound, last, count]: &[f64; 3]| *bound == f64::INFINITY && last == count;
    if family.kind == "histogram" && !counts.values().all(is_whole) {
        return Err("a histogram without a bucket for all".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "\
# HELP a_seconds Time.
# TYPE a_seconds histogram
# UNIT a_seconds seconds
a_seconds_sum{x=\"1\"} 0.5
a_seconds_count{x=\"1\"} 2
a_seconds_bucket{le=\"0.1\",x=\"1\"} 1
a_seconds_bucket{le=\"+Inf\",x=\"1\"} 2
# HELP b Things.
# TYPE b counter
b_total{x=\"a\\\"b\",y=\"\"} 7
# EOF
";

    #[test]
    fn what_is_right_is_read() {
        let families = read(GOOD).unwrap();
        assert_eq!(families["a_seconds"].unit, "seconds");
        let sample = &families["b"].samples[0];
        assert_eq!((sample.labels["x"].as_str(), sample.value), ("a\"b", 7.0));
    }

    #[test]
    fn what_is_wrong_is_refused() {
        for (right, wrong) in [
            ("# EOF\n", "# EOF"),
            ("# EOF\n", "\n# EOF\n"),
            ("# UNIT a_seconds seconds", "# UNIT a_seconds bytes"),
            ("# TYPE b counter", "# TYPE b info"),
            ("# TYPE b counter\n", ""),
            ("# HELP b", "# HELP a_seconds"),
            ("b_total{", "b{"),
            ("b_total{", "c_total{"),
            ("y=\"\"", "x=\"\""),
            ("y=\"\"", "y=\"\","),
            ("\\\"b", "\\b"),
            (" 7", " -7"),
            (" 7", " many"),
            (" 7", "7"),
            ("le=\"+Inf\"", "le=\"1\""),
            ("le=\"0.1\",x=\"1\"} 1", "le=\"0.1\",x=\"1\"} 3"),
            ("_count{x=\"1\"} 2", "_count{x=\"1\"} 3"),
            ("# HELP b Things.", "# HELP b Things.\n# HELP b Things."),
        ] {
            assert!(GOOD.contains(right), "{right}");
            let text = GOOD.replacen(right, wrong, 1);
            assert!(read(&text).is_err(), "{right} → {wrong}");
        }
    }
}
