//! The appliance's configuration, as the harness writes it.

use std::collections::BTreeMap;

use serde::Serialize;
use uuid::Uuid;

use super::disk::Disk;

/// One appliance's configuration.
#[derive(Debug, Clone, Serialize)]
pub struct ApplianceConfig {
    name: String,
    #[serde(rename = "lun")]
    luns: Vec<Lun>,
    #[serde(rename = "hba")]
    hbas: Vec<Hba>,
    /// TOML that the types here cannot say, for the tests of bad configurations.
    #[serde(skip)]
    extra: String,
}

#[derive(Debug, Clone, Serialize)]
struct Lun {
    name: String,
    serial: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache: Option<&'static str>,
    read_only: bool,
}

#[derive(Debug, Clone, Serialize)]
struct Hba {
    name: String,
    uuid: Uuid,
    luns: BTreeMap<String, String>,
}

impl ApplianceConfig {
    /// An appliance without LUNs.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            luns: Vec::new(),
            hbas: Vec::new(),
            extra: String::new(),
        }
    }

    /// With the HBA `name`, which sees `disks` as LUN 0, 1, ….
    pub fn hba(mut self, name: &str, disks: &[&Disk]) -> Self {
        let serials = disks.iter().map(|disk| disk.serial().to_owned());
        let luns = serials
            .clone()
            .enumerate()
            .map(|(lun, name)| (lun.to_string(), name));
        let luns = luns.collect();
        self.luns.extend(serials.map(|serial| Lun {
            name: serial.clone(),
            serial,
            size: None,
            cache: None,
            read_only: false,
        }));
        self.hbas.push(Hba {
            name: name.to_owned(),
            uuid: Uuid::new_v4(),
            luns,
        });
        self
    }

    /// With the LUN on the disk `serial` stated to be of `size` bytes.
    pub fn with_lun_size(mut self, serial: &str, size: u64) -> Self {
        self.lun(serial).size = Some(size);
        self
    }

    /// With the LUN on the disk `serial` buffered in the storage VM's memory.
    pub fn with_write_back(mut self, serial: &str) -> Self {
        self.lun(serial).cache = Some("write-back");
        self
    }

    /// With the LUN on the disk `serial` protected from writing.
    pub fn with_read_only(mut self, serial: &str) -> Self {
        self.lun(serial).read_only = true;
        self
    }

    fn lun(&mut self, serial: &str) -> &mut Lun {
        let lun = self.luns.iter_mut().find(|lun| lun.serial == serial);
        lun.expect("a disk of one of the HBAs")
    }

    /// With `toml` before everything else.
    pub fn with(mut self, toml: &str) -> Self {
        self.extra.push_str(toml);
        self.extra.push('\n');
        self
    }

    /// The UUID of the HBA `name`, if there is one.
    pub fn uuid(&self, name: &str) -> Option<Uuid> {
        self.hbas
            .iter()
            .find(|hba| hba.name == name)
            .map(|hba| hba.uuid)
    }

    /// The file's text.
    pub fn to_toml(&self) -> String {
        let typed = toml::to_string(self).expect("strings and tables can be written as TOML");
        format!("{}{typed}", self.extra)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_without_luns_still_names_the_appliance() {
        let text = ApplianceConfig::new("storage-1")
            .with("colour = \"blue\"")
            .to_toml();
        assert!(
            text.starts_with("colour = \"blue\"\nname = \"storage-1\"\n"),
            "{text}"
        );
    }
}
