//! A line of the console as words.

/// The words of a line: separated by spaces, with quotes around those that have some.
///
/// # Errors
/// What is wrong with the line.
pub(super) fn split(line: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for letter in line.chars() {
        match (quote, letter) {
            (Some(open), letter) if letter == open => quote = None,
            (Some(_), letter) => word.get_or_insert_default().push(letter),
            (None, '"' | '\'') => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (None, letter) if letter.is_whitespace() => words.extend(word.take()),
            (None, letter) => word.get_or_insert_default().push(letter),
        }
    }
    if let Some(open) = quote {
        return Err(format!("a {open} has no other that closes it"));
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_what_spaces_separate_unless_they_are_quoted() {
        let words = split("lun add  x path='/a b/c' 'say \"hi\"' \"\"").unwrap();
        assert_eq!(words, ["lun", "add", "x", "path=/a b/c", "say \"hi\"", ""]);
        assert!(split("   ").unwrap().is_empty());
        assert!(split("it's").is_err());
    }
}
