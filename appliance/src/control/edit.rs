//! Single changes of a configuration's text, which leave the rest as its author wrote it.

mod limits;

use std::str::FromStr;

use toml_edit::{ArrayOfTables, DocumentMut, InlineTable, Item, Table, TableLike, Value};

pub(super) use self::limits::Rates;
use super::protocol::{Failure, code};

/// A configuration's text that is being changed.
pub(super) struct Edit(DocumentMut);

/// The failure for something that is not there; `known` is what is.
pub(super) fn unknown<'a>(
    what: &str,
    name: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Failure {
    let known: Vec<_> = known.into_iter().collect();
    let known = if known.is_empty() {
        "there is none".to_owned()
    } else {
        format!("there are {}", known.join(", "))
    };
    Failure::new(
        code::UNKNOWN,
        format!("no {what} is named {name:?}; {known}"),
    )
}

fn refused(message: String) -> Failure {
    Failure::new(code::REFUSED, format!("{message}; nothing was changed"))
}

impl Edit {
    /// Of this text.
    ///
    /// # Errors
    /// [`Failure`] if it is no TOML.
    pub fn new(text: &str) -> Result<Self, Failure> {
        let document = DocumentMut::from_str(text);
        document
            .map(Self)
            .map_err(|error| refused(error.message().to_owned()))
    }

    /// The text now.
    pub fn text(&self) -> String {
        self.0.to_string()
    }

    /// Adds a LUN with these keys.
    ///
    /// # Errors
    /// [`Failure`] for a key whose value TOML does not have.
    pub fn add_lun(
        &mut self,
        name: &str,
        keys: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<(), Failure> {
        let mut table = Table::new();
        table.insert("name", name.into());
        for (key, value) in keys {
            table.insert(key, Item::Value(toml_value(key, value)?));
        }
        self.tables("lun")?.push(table);
        Ok(())
    }

    /// Adds a LUN that has the keys of another, but for its place and who may use it how.
    ///
    /// # Errors
    /// [`Failure`] if there is none of that name, or its place is no file.
    pub fn clone_lun(
        &mut self,
        name: &str,
        new: &str,
        path: &std::path::Path,
    ) -> Result<(), Failure> {
        let path = path
            .to_str()
            .ok_or_else(|| refused(format!("{} is no UTF-8; give another path", path.display())))?;
        let place = self.place("lun", "LUN", name)?;
        let tables = self.tables("lun")?;
        let mut table = tables.get(place).cloned().unwrap_or_default();
        // Comments are about the other one.
        table.decor_mut().clear();
        for (mut key, value) in table.iter_mut() {
            key.leaf_decor_mut().clear();
            if let Some(value) = value.as_value_mut() {
                value.decor_mut().clear();
            }
        }
        for key in ["serial", "kind", "shared", "read_only"] {
            table.remove(key);
        }
        table.insert("name", new.into());
        table.insert("path", path.into());
        // Otherwise it would keep its place in the text.
        table.set_position(None);
        tables.push(table);
        Ok(())
    }

    /// Takes a LUN out, and from everyone who sees it.
    ///
    /// # Errors
    /// [`Failure`] if there is none of that name.
    pub fn remove_lun(&mut self, name: &str) -> Result<(), Failure> {
        let place = self.place("lun", "LUN", name)?;
        self.hide_lun(name)?;
        self.tables("lun")?.remove(place);
        Ok(())
    }

    /// Takes a LUN from everyone who sees it; returns where it was seen: HBA and LUN number, as
    /// the text has it.
    ///
    /// # Errors
    /// [`Failure`] if the text is not as it should be.
    pub fn hide_lun(&mut self, name: &str) -> Result<Vec<(String, String)>, Failure> {
        let mut seen = Vec::new();
        for hba in self.tables("hba")?.iter_mut() {
            let owner = name_of(hba).unwrap_or_default().to_owned();
            let Some(luns) = hba.get_mut("luns").and_then(Item::as_table_like_mut) else {
                continue;
            };
            let numbers = luns.iter();
            let numbers = numbers.filter(|(_, lun)| lun.as_str() == Some(name));
            let numbers: Vec<_> = numbers.map(|(number, _)| number.to_owned()).collect();
            for number in numbers {
                luns.remove(&number);
                seen.push((owner.clone(), number));
            }
        }
        Ok(seen)
    }

    /// Shows a LUN to an HBA, at `at` or as the next of target 0; returns where.
    ///
    /// # Errors
    /// [`Failure`] if there is no such HBA, or the place is taken.
    pub fn show_lun(&mut self, name: &str, hba: &str, at: Option<&str>) -> Result<String, Failure> {
        let place = self.place("hba", "tenant", hba)?;
        let hbas = self.tables("hba")?;
        let table = hbas.get_mut(place).and_then(|hba| hba.get_mut("luns"));
        let luns = table
            .and_then(Item::as_table_like_mut)
            .ok_or_else(|| refused(format!("tenant {hba:?} has no luns")))?;
        let at = at.map_or_else(|| next_number(luns), str::to_owned);
        if let Some(there) = luns.get(&at) {
            let there = there.as_str().unwrap_or("?");
            return Err(refused(format!(
                "tenant {hba:?} has LUN {at} already, which is {there:?}; give another number"
            )));
        }
        luns.insert(&at, name.into());
        Ok(at)
    }

    /// Gives a LUN another size.
    ///
    /// # Errors
    /// [`Failure`] if there is none of that name.
    pub fn set_size(&mut self, name: &str, bytes: u64) -> Result<(), Failure> {
        let place = self.place("lun", "LUN", name)?;
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        if let Some(lun) = self.tables("lun")?.get_mut(place) {
            lun.insert("size", bytes.into());
        }
        Ok(())
    }

    /// Adds an HBA that sees nothing yet.
    ///
    /// # Errors
    /// [`Failure`] for a key whose value TOML does not have.
    pub fn add_hba(
        &mut self,
        name: &str,
        uuid: &str,
        keys: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<(), Failure> {
        let mut table = Table::new();
        table.insert("name", name.into());
        table.insert("uuid", uuid.into());
        table.insert("luns", Item::Value(Value::InlineTable(InlineTable::new())));
        for (key, value) in keys {
            table.insert(key, Item::Value(toml_value(key, value)?));
        }
        self.tables("hba")?.push(table);
        Ok(())
    }

    /// Takes an HBA out.
    ///
    /// # Errors
    /// [`Failure`] if there is none of that name.
    pub fn remove_hba(&mut self, name: &str) -> Result<(), Failure> {
        let place = self.place("hba", "tenant", name)?;
        self.tables("hba")?.remove(place);
        Ok(())
    }

    /// The tables of that name.
    fn tables(&mut self, key: &str) -> Result<&mut ArrayOfTables, Failure> {
        let none = || Item::ArrayOfTables(ArrayOfTables::new());
        let item = self.0.entry(key).or_insert_with(none);
        // `lun = [{ ... }]` means the same as `[[lun]]`.
        if let Some(array) = item.as_array() {
            let tables = array.iter().filter_map(Value::as_inline_table);
            let tables = tables.map(|table| table.clone().into_table()).collect();
            *item = Item::ArrayOfTables(tables);
        }
        let tables = item.as_array_of_tables_mut();
        tables.ok_or_else(|| refused(format!("`{key}` is no list; write [[{key}]]")))
    }

    /// Which of the tables of that key has the name.
    fn place(&mut self, key: &str, what: &str, name: &str) -> Result<usize, Failure> {
        let tables = self.tables(key)?;
        let place = tables.iter().position(|table| name_of(table) == Some(name));
        place.ok_or_else(|| unknown(what, name, tables.iter().filter_map(name_of)))
    }
}

fn name_of(table: &Table) -> Option<&str> {
    table.get("name")?.as_str()
}

/// The first LUN number of target 0 that is free.
fn next_number(luns: &dyn TableLike) -> String {
    let taken: Vec<String> = luns
        .iter()
        .map(|(at, _)| at.strip_prefix("0:").unwrap_or(at).to_owned())
        .collect();
    let mut numbers = (0_u32..).map(|number| number.to_string());
    let free = numbers.find(|number| !taken.contains(number));
    free.unwrap_or_default()
}

fn toml_value(key: &str, value: &serde_json::Value) -> Result<Value, Failure> {
    use serde_json::Value as Json;
    match value {
        Json::Bool(value) => Ok((*value).into()),
        Json::String(value) => Ok(value.as_str().into()),
        Json::Number(value) if value.is_i64() => Ok(value.as_i64().unwrap_or_default().into()),
        // As `limit` is.
        Json::Object(keys) => {
            let mut table = InlineTable::new();
            for (key, value) in keys {
                table.insert(key, toml_value(key, value)?);
            }
            Ok(table.into())
        }
        other => Err(Failure::new(
            code::PARAMS,
            format!(
                "`{key}` cannot be {other}; give a text, a whole number, true or false, or an \
                 object of these"
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# ours\nname = \"s\"\n\n[[lun]]\nname = \"a\" # boots\nserial = \"a\"\n\n\
                        [[hba]]\nname = \"t\"\nuuid = \"2f0c4fd2-4f6c-4b3c-9d3b-111111111111\"\n\
                        luns = { \"0\" = \"a\" }\n";

    fn keys(text: &str) -> serde_json::Map<String, serde_json::Value> {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_lun_is_added_shown_and_removed_and_comments_stay() {
        let mut edit = Edit::new(TEXT).unwrap();
        let given = keys("{\"path\": \"/b\", \"read_only\": true, \"timeout\": 7}");
        edit.add_lun("b", &given).unwrap();
        assert_eq!(edit.show_lun("b", "t", None), Ok("1".into()));
        let text = edit.text();
        assert!(
            text.starts_with("# ours\n") && text.contains("# boots"),
            "{text}"
        );
        assert!(
            text.contains("1 = \"b\"") && text.contains("timeout = 7"),
            "{text}"
        );
        edit.remove_lun("b").unwrap();
        let parse = |text: &str| crate::Config::parse(text, std::path::Path::new("a")).unwrap();
        assert_eq!(parse(&edit.text()), parse(TEXT));
        assert!(edit.text().contains("# boots"));
    }

    #[test]
    fn a_lun_is_added_with_its_limit() {
        let mut edit = Edit::new(TEXT).unwrap();
        let given = keys("{\"path\": \"/b\", \"limit\": {\"iops\": 500, \"burst\": 100}}");
        edit.add_lun("b", &given).unwrap();
        let text = edit.text();
        assert!(
            text.contains("\nlimit = { burst = 100, iops = 500 }\n"),
            "{text}"
        );
        let config = crate::Config::parse(&text, std::path::Path::new("a")).unwrap();
        assert_eq!(config.luns[1].limit.iops, Some(500));
        for wrong in ["{\"limit\": [5]}", "{\"limit\": {\"iops\": null}}"] {
            let failure = edit.add_lun("c", &keys(wrong)).unwrap_err();
            assert_eq!(failure.code, code::PARAMS);
        }
    }

    #[test]
    fn a_clone_has_the_keys_of_the_other_lun_and_a_place_of_its_own() {
        let text = TEXT.replace(
            "serial = \"a\"\n",
            "path = \"/a\"\nshared = true\ncache = \"write-back\"\n",
        );
        let mut edit = Edit::new(&text).unwrap();
        edit.clone_lun("a", "b", std::path::Path::new("/b"))
            .unwrap();
        let text = edit.text();
        let (_, added) = text.rsplit_once("[[lun]]\n").unwrap();
        assert!(
            added.starts_with("name = \"b\"\npath = \"/b\"\ncache = \"write-back\"\n"),
            "{text}"
        );
        assert!(
            text.contains("# boots") && !added.contains("boots"),
            "{text}"
        );
        let config = crate::Config::parse(&text, std::path::Path::new("a")).unwrap();
        assert_eq!(config.luns.len(), 2);
        let failure = edit.clone_lun("c", "d", std::path::Path::new("/d"));
        assert_eq!(failure.unwrap_err().code, code::UNKNOWN);
    }

    #[test]
    fn a_lun_is_taken_from_all_who_see_it() {
        let mut edit = Edit::new(TEXT).unwrap();
        assert_eq!(edit.hide_lun("a").unwrap(), [("t".into(), "0".into())]);
        assert!(edit.hide_lun("a").unwrap().is_empty());
        edit.show_lun("a", "t", Some("1:7")).unwrap();
        assert!(edit.text().contains("\"1:7\" = \"a\""), "{}", edit.text());
    }

    #[test]
    fn what_is_not_there_is_told_with_what_is() {
        let mut edit = Edit::new(TEXT).unwrap();
        let failure = edit.remove_lun("b").unwrap_err();
        assert_eq!(failure.message, "no LUN is named \"b\"; there are a");
        let failure = edit.show_lun("a", "u", None).unwrap_err();
        assert_eq!(failure.message, "no tenant is named \"u\"; there are t");
        let failure = edit.show_lun("a", "t", Some("0")).unwrap_err();
        assert!(failure.message.contains("has LUN 0 already"), "{failure}");
    }

    #[test]
    fn a_configuration_without_luns_or_tenants_gets_its_first() {
        let mut edit = Edit::new("name = \"s\"\n").unwrap();
        edit.add_hba("t", "2f0c4fd2-4f6c-4b3c-9d3b-111111111111", &keys("{}"))
            .unwrap();
        edit.add_lun("a", &keys("{\"serial\": \"a\"}")).unwrap();
        edit.show_lun("a", "t", None).unwrap();
        assert!(crate::Config::parse(&edit.text(), std::path::Path::new("a")).is_ok());
    }
}
