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

#[derive(Debug, Clone, Default, Serialize)]
struct Lun {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    serial: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache: Option<&'static str>,
    read_only: bool,
    shared: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    threshold: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    protection: Option<&'static str>,
}

#[derive(Debug, Clone, Serialize)]
struct Hba {
    name: String,
    uuid: Uuid,
    #[serde(skip_serializing_if = "Option::is_none")]
    access: Option<&'static str>,
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

    /// With the HBA `name`, which sees `disks` as LUN 0, 1, …; a disk of two HBAs is shared.
    pub fn hba(mut self, name: &str, disks: &[&Disk]) -> Self {
        self.hbas.push(Hba {
            name: name.to_owned(),
            uuid: Uuid::new_v4(),
            access: None,
            luns: BTreeMap::new(),
        });
        (0..).zip(disks).fold(self, |config, (number, disk)| {
            config.with_lun(name, number, disk)
        })
    }

    /// With `disk` as one more LUN of the HBA `name`.
    pub fn with_lun(mut self, name: &str, number: u16, disk: &Disk) -> Self {
        let serial = disk.serial();
        match self.luns.iter_mut().find(|lun| lun.name == serial) {
            Some(lun) => lun.shared = true,
            None => self.luns.push(Lun {
                name: serial.to_owned(),
                serial: Some(serial.to_owned()),
                ..Lun::default()
            }),
        }
        self.number(name, number, serial)
    }

    /// With the storage VM's file `path` as one more LUN of the HBA `name`, called `lun`.
    pub fn with_file_lun(mut self, name: &str, number: u16, lun: &str, path: &str) -> Self {
        self.luns.push(Lun {
            name: lun.to_owned(),
            path: Some(path.to_owned()),
            ..Lun::default()
        });
        self.number(name, number, lun)
    }

    /// Without the LUN `lun`, which one HBA has seen.
    pub fn without_lun(mut self, lun: &str) -> Self {
        self.luns.retain(|known| known.name != lun);
        for hba in &mut self.hbas {
            hba.luns.retain(|_, name| name != lun);
        }
        self
    }

    fn number(mut self, name: &str, number: u16, lun: &str) -> Self {
        let hba = self.hbas.iter_mut().find(|hba| hba.name == name);
        let luns = &mut hba.expect("one of the HBAs").luns;
        luns.insert(number.to_string(), lun.to_owned());
        self
    }

    /// With the HBA `name` as such a way to LUNs that are shared.
    pub fn with_access(mut self, name: &str, access: &'static str) -> Self {
        let hba = self.hbas.iter_mut().find(|hba| hba.name == name);
        hba.expect("one of the HBAs").access = Some(access);
        self
    }

    /// With the LUN `name` stated to be of `size` bytes.
    pub fn with_lun_size(mut self, name: &str, size: u64) -> Self {
        self.lun(name).size = Some(size);
        self
    }

    /// With the LUN `name` buffered in the storage VM's memory.
    pub fn with_write_back(mut self, name: &str) -> Self {
        self.lun(name).cache = Some("write-back");
        self
    }

    /// With the LUN `name` protected from writing.
    pub fn with_read_only(mut self, name: &str) -> Self {
        self.lun(name).read_only = true;
        self
    }

    /// With tenants of the LUN `name` told when `percent` of what it can occupy is used.
    pub fn with_threshold(mut self, name: &str, percent: u8) -> Self {
        self.lun(name).threshold = Some(percent);
        self
    }

    /// With protection information of this type on the LUN `name`.
    pub fn with_protection(mut self, name: &str, protection: &'static str) -> Self {
        self.lun(name).protection = Some(protection);
        self
    }

    fn lun(&mut self, name: &str) -> &mut Lun {
        let lun = self.luns.iter_mut().find(|lun| lun.name == name);
        lun.expect("a LUN of one of the HBAs")
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
