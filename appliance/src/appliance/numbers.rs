//! Which HBA has which number: that of its target port group.

use std::collections::HashMap;

use uuid::Uuid;

use crate::config::HbaConfig;

/// An HBA that cannot have the `port` that the configuration says.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "`port` {port} of HBA {hba:?} is not free: it, or another HBA, has been given a number before; \
     take another, or restart the appliance"
)]
pub struct BadPort {
    /// Name of the HBA.
    pub hba: String,
    /// The number.
    pub port: u8,
}

/// The number of each HBA: that which it has already, or that of its `port`, or the first that is
/// free.
///
/// # Errors
/// [`BadPort`].
pub(super) fn numbers(
    hbas: &[HbaConfig],
    held: &HashMap<Uuid, u8>,
) -> Result<HashMap<Uuid, u8>, BadPort> {
    let held = hbas
        .iter()
        .filter_map(|hba| Some((hba.uuid, *held.get(&hba.uuid)?)));
    let mut numbers: HashMap<_, _> = held.collect();
    for hba in hbas {
        let Some(port) = hba.port else {
            continue;
        };
        let mut others = numbers.iter().filter(|(uuid, _)| **uuid != hba.uuid);
        let is_taken = others.any(|(_, number)| *number == port);
        if is_taken || *numbers.entry(hba.uuid).or_insert(port) != port {
            let hba = hba.name.clone();
            return Err(BadPort { hba, port });
        }
    }
    for hba in hbas {
        if !numbers.contains_key(&hba.uuid) {
            let free = (1..=u8::MAX).find(|free| numbers.values().all(|number| number != free));
            // A configuration has no more HBAs than there are numbers.
            numbers.insert(hba.uuid, free.unwrap_or(u8::MAX));
        }
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::config::{Poll, Workers};
    use crate::scsi::Access;

    fn hba(name: u8, port: Option<u8>) -> HbaConfig {
        HbaConfig {
            name: name.to_string(),
            uuid: Uuid::from_bytes([name; 16]),
            luns: BTreeMap::new(),
            access: Access::default(),
            port,
            poll: Poll::default(),
            limit: crate::config::Limit::default(),
            limit_group: None,
            weight: 1,
            coalesce: crate::config::Coalesce::default(),
            workers: Workers::default(),
        }
    }

    fn numbered(hbas: &[HbaConfig], held: &HashMap<Uuid, u8>) -> Result<Vec<u8>, BadPort> {
        let numbers = numbers(hbas, held)?;
        Ok(hbas.iter().map(|hba| numbers[&hba.uuid]).collect())
    }

    #[test]
    fn numbers_are_given_in_order_around_those_that_are_asked_for() {
        let hbas = [hba(1, None), hba(2, Some(1)), hba(3, None), hba(4, Some(9))];
        assert_eq!(numbered(&hbas, &HashMap::new()), Ok(vec![2, 1, 3, 9]));
    }

    #[test]
    fn an_hba_keeps_its_number_when_others_go() {
        let held = numbers(&[hba(1, None), hba(2, None)], &HashMap::new()).unwrap();
        assert_eq!(
            numbered(&[hba(2, None), hba(3, None)], &held),
            Ok(vec![2, 1])
        );
    }

    #[test]
    fn a_number_that_is_in_use_is_not_given_again() {
        let held = numbers(&[hba(1, None), hba(2, None)], &HashMap::new()).unwrap();
        for hbas in [
            [hba(1, None), hba(3, Some(1))],
            [hba(1, Some(3)), hba(2, None)],
        ] {
            assert!(numbered(&hbas, &held).is_err(), "{hbas:?}");
        }
        assert_eq!(
            numbered(&[hba(1, Some(1)), hba(3, Some(2))], &held),
            Ok(vec![1, 2])
        );
    }
}
