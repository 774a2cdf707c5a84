//! Limits in a configuration's text.

use toml_edit::{ArrayOfTables, InlineTable, Item, Table, TableLike, Value};

use super::{Edit, refused};
use crate::control::protocol::Failure;

/// Parts of a limit that are to be others; 0 takes one away.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::control) struct Rates {
    pub iops: Option<u64>,
    pub bytes_per_second: Option<u64>,
    pub burst: Option<u64>,
}

impl Edit {
    /// Gives a LUN another limit.
    ///
    /// # Errors
    /// [`Failure`] if there is none of that name.
    pub fn limit_lun(&mut self, name: &str, rates: Rates) -> Result<(), Failure> {
        let place = self.place("lun", "LUN", name)?;
        match self.tables("lun")?.get_mut(place) {
            Some(lun) => limit(lun, rates),
            None => Ok(()),
        }
    }

    /// Gives an HBA another limit.
    ///
    /// # Errors
    /// [`Failure`] if there is none of that name.
    pub fn limit_hba(&mut self, name: &str, rates: Rates) -> Result<(), Failure> {
        let place = self.place("hba", "tenant", name)?;
        match self.tables("hba")?.get_mut(place) {
            Some(hba) => limit(hba, rates),
            None => Ok(()),
        }
    }

    /// Puts an HBA into another group, into none if that is empty, and gives it another weight.
    ///
    /// # Errors
    /// [`Failure`] if there is no such HBA.
    pub fn set_group(
        &mut self,
        name: &str,
        group: Option<&str>,
        weight: Option<u64>,
    ) -> Result<(), Failure> {
        let place = self.place("hba", "tenant", name)?;
        if let Some(hba) = self.tables("hba")?.get_mut(place) {
            match group {
                None => {}
                Some("") => drop(hba.remove("limit_group")),
                Some(group) => drop(hba.insert("limit_group", group.into())),
            }
            if let Some(weight) = weight {
                hba.insert("weight", number(weight).into());
            }
        }
        Ok(())
    }

    /// Gives a group another limit: makes it if it is not there, takes it out if nothing is left of
    /// its limit.
    ///
    /// # Errors
    /// [`Failure`] if one that is not there is to have none.
    pub fn limit_group(&mut self, name: &str, rates: Rates) -> Result<(), Failure> {
        let place = self.place("limit_group", "limit group", name);
        let groups = self.tables("limit_group")?;
        let place = match place {
            Ok(place) => place,
            Err(_) if sets(rates) => {
                let mut group = Table::new();
                group.insert("name", name.into());
                groups.push(group);
                groups.len() - 1
            }
            Err(unknown) => return Err(unknown),
        };
        if let Some(group) = groups.get_mut(place)
            && !set(group, rates)
        {
            check_burst(rates)?;
            groups.remove(place);
        }
        self.drop_if_empty("limit_group");
        Ok(())
    }

    /// Takes a list out in which nothing is left.
    fn drop_if_empty(&mut self, key: &str) {
        let tables = self.0.get(key).and_then(Item::as_array_of_tables);
        if tables.is_some_and(ArrayOfTables::is_empty) {
            self.0.remove(key);
        }
    }
}

/// Whether there is something in them to limit by.
fn sets(rates: Rates) -> bool {
    let given = [rates.iops, rates.bytes_per_second];
    given.into_iter().flatten().any(|rate| rate > 0)
}

/// Gives a LUN or an HBA another limit, or takes it from it.
fn limit(owner: &mut Table, rates: Rates) -> Result<(), Failure> {
    let is_there = owner.contains_key("limit");
    if !is_there && !sets(rates) {
        return check_burst(rates);
    }
    if !is_there {
        owner.insert("limit", Item::Value(Value::InlineTable(InlineTable::new())));
    }
    let limit = owner.get_mut("limit").and_then(Item::as_table_like_mut);
    let limit = limit.ok_or_else(|| refused("`limit` is no table; write { iops = … }".into()))?;
    if !set(limit, rates) {
        check_burst(rates)?;
        owner.remove("limit");
    }
    Ok(())
}

/// Checks that no burst alone is given to what has no limit. With a limit that is taken away, it goes.
fn check_burst(rates: Rates) -> Result<(), Failure> {
    match (rates.burst, rates.iops.or(rates.bytes_per_second)) {
        (None | Some(0), _) | (_, Some(_)) => Ok(()),
        (Some(_), None) => Err(refused(
            "`burst` limits nothing by itself; give `iops` or `bytes_per_second` with it".into(),
        )),
    }
}

/// Changes parts of a limit; whether something is left to limit by.
fn set(limit: &mut dyn TableLike, rates: Rates) -> bool {
    for (key, value) in [
        ("iops", rates.iops),
        ("bytes_per_second", rates.bytes_per_second),
        ("burst", rates.burst),
    ] {
        match value {
            None => {}
            Some(0) => drop(limit.remove(key)),
            Some(value) => drop(limit.insert(key, number(value).into())),
        }
    }
    limit.contains_key("iops") || limit.contains_key("bytes_per_second")
}

/// As TOML has it.
fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const TEXT: &str = "name = \"s\"\n[[lun]]\nname = \"a\"\nserial = \"a\"\n[lun.limit] # ours\n\
                        iops = 5\n[[lun]]\nname = \"b\"\nserial = \"b\"\n[[hba]]\nname = \
                        \"t\"\nuuid = \"2f0c4fd2-4f6c-4b3c-9d3b-111111111111\"\nluns = { \"0\" = \
                        \"a\" }\n";

    fn parse(edit: &Edit) -> crate::Config {
        crate::Config::parse(&edit.text(), Path::new("a")).unwrap()
    }

    fn iops(iops: u64) -> Rates {
        Rates {
            iops: Some(iops),
            ..Rates::default()
        }
    }

    #[test]
    fn a_limit_is_given_changed_and_taken_away() {
        let mut edit = Edit::new(TEXT).unwrap();
        let bytes = Rates {
            bytes_per_second: Some(4096),
            burst: Some(10),
            ..Rates::default()
        };
        edit.limit_lun("a", bytes).unwrap();
        edit.limit_lun("b", iops(7)).unwrap();
        assert!(edit.text().contains("# ours"), "{}", edit.text());
        let [a, b] = [0, 1].map(|lun| parse(&edit).luns[lun].limit);
        assert_eq!((a.iops, a.bytes_per_second), (Some(5), Some(4096)));
        assert_eq!(a.burst.as_millis(), 10);
        assert_eq!(b.iops, Some(7));
        edit.limit_lun("b", iops(0)).unwrap();
        // What is left of it limits nothing.
        edit.limit_lun(
            "a",
            Rates {
                bytes_per_second: Some(0),
                ..iops(0)
            },
        )
        .unwrap();
        assert!(parse(&edit).luns.iter().all(|lun| !lun.limit.is_set()));
        assert!(edit.limit_lun("c", iops(1)).is_err());
    }

    #[test]
    fn a_burst_of_what_has_no_limit_is_refused_with_what_it_needs() {
        let burst = Rates {
            burst: Some(10),
            ..Rates::default()
        };
        let mut edit = Edit::new(TEXT).unwrap();
        let failure = edit.limit_lun("b", burst).unwrap_err();
        let told = format!("{failure:?}");
        assert!(told.contains("give `iops` or `bytes_per_second`"), "{told}");
        assert!(edit.limit_hba("t", burst).is_err());
        edit.limit_lun("a", burst).unwrap();
        assert_eq!(parse(&edit).luns[0].limit.burst.as_millis(), 10);
        let last = Rates {
            iops: Some(0),
            bytes_per_second: Some(0),
            ..burst
        };
        edit.limit_lun("a", last).unwrap();
        assert!(!parse(&edit).luns[0].limit.is_set());
    }

    #[test]
    fn a_group_is_made_joined_and_taken_out() {
        let mut edit = Edit::new(TEXT).unwrap();
        assert!(edit.limit_group("gold", iops(0)).is_err());
        edit.limit_group("gold", iops(100)).unwrap();
        edit.set_group("t", Some("gold"), Some(3)).unwrap();
        edit.limit_hba("t", iops(50)).unwrap();
        let config = parse(&edit);
        assert_eq!(config.groups[0].limit.iops, Some(100));
        let hba = &config.hbas[0];
        assert_eq!((hba.limit_group.as_deref(), hba.weight), (Some("gold"), 3));
        assert_eq!(hba.limit.iops, Some(50));
        edit.set_group("t", Some(""), None).unwrap();
        edit.limit_group("gold", iops(0)).unwrap();
        let config = parse(&edit);
        assert!(config.groups.is_empty() && config.hbas[0].limit_group.is_none());
    }
}
