//! Which LUNs there are in a World and which HBA sees which, as the appliance's configuration.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io;
use std::path::PathBuf;

use appliance::config::Poll;
use uuid::Uuid;

use super::lun::{Image, Lun};

/// What the appliance's configuration says.
pub(super) struct Map {
    directory: PathBuf,
    /// Those that were removed are kept, so that the others keep their numbers.
    images: Vec<Image>,
    hbas: Vec<Hba>,
    /// Whether the appliance has a folder for what is to outlive it.
    keeps_state: bool,
}

struct Hba {
    uuid: Uuid,
    /// How good a way it is to LUNs that are shared, if that is said.
    access: Option<String>,
    /// What it sees: target and LUN, and the number of the image.
    luns: BTreeMap<(u8, u16), usize>,
    /// How it polls, as TOML.
    poll: String,
    /// How its calls are held back, as TOML.
    coalesce: String,
    workers: usize,
    gone: bool,
}

impl Map {
    /// Nothing yet; images are made in `directory`.
    pub(super) fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            images: Vec::new(),
            hbas: Vec::new(),
            keeps_state: false,
        }
    }

    /// One more HBA.
    pub(super) fn add_hba(&mut self, uuid: Uuid) {
        self.hbas.push(Hba {
            uuid,
            access: None,
            luns: BTreeMap::new(),
            poll: Poll::USUAL.to_string(),
            coalesce: String::new(),
            workers: 1,
            gone: false,
        });
    }

    /// The appliance has a folder for what is to outlive it.
    pub(super) fn keep_state(&mut self) {
        self.keeps_state = true;
    }

    /// The HBA is such a way to LUNs that are shared.
    pub(super) fn set_access(&mut self, hba: usize, access: &str) {
        self.hbas[hba].access = Some(access.to_owned());
    }

    /// Takes an HBA out of the configuration, or puts it in again.
    pub(super) fn hide_hba(&mut self, hba: usize, hidden: bool) {
        self.hbas[hba].gone = hidden;
    }

    /// The HBA polls as this TOML says.
    pub(super) fn set_poll(&mut self, hba: usize, poll: &str) {
        poll.clone_into(&mut self.hbas[hba].poll);
    }

    /// The HBA's calls are held back as these lines of TOML say.
    pub(super) fn set_coalesce(&mut self, hba: usize, coalesce: &str) {
        coalesce.clone_into(&mut self.hbas[hba].coalesce);
    }

    /// The HBA has so many workers.
    pub(super) fn set_workers(&mut self, hba: usize, workers: usize) {
        self.hbas[hba].workers = workers;
    }

    /// Makes an image; returns its number.
    pub(super) fn make(&mut self, lun: &Lun) -> io::Result<usize> {
        let name = format!("lun{}", self.images.len());
        self.images.push(lun.make(&self.directory, &name)?);
        Ok(self.images.len() - 1)
    }

    /// The HBA sees the image there.
    pub(super) fn show(&mut self, hba: usize, at: (u8, u16), image: usize) {
        self.hbas[hba].luns.insert(at, image);
    }

    /// The HBA sees nothing there.
    pub(super) fn hide(&mut self, hba: usize, at: (u8, u16)) {
        self.hbas[hba].luns.remove(&at);
    }

    /// The next LUN of target 0 that the HBA has not.
    pub(super) fn next_lun(&self, hba: usize) -> u16 {
        let last = self.hbas[hba].luns.keys().rfind(|(target, _)| *target == 0);
        last.map_or(0, |(_, lun)| lun + 1)
    }

    /// An image.
    pub(super) fn image(&self, index: usize) -> &Image {
        &self.images[index]
    }

    /// The configuration. LUNs that nobody sees are not in it.
    pub(super) fn toml(&self) -> String {
        let mut text = String::from("name = \"world\"\n");
        if self.keeps_state {
            let state = self.directory.join("state");
            writeln!(text, "state = {state:?}").expect("memory");
        }
        let hbas = || self.hbas.iter().enumerate().filter(|(_, hba)| !hba.gone);
        for (number, image) in self.images.iter().enumerate() {
            if hbas().any(|(_, hba)| hba.luns.values().any(|seen| *seen == number)) {
                text += &image.toml();
            }
        }
        for (h, hba) in hbas() {
            let luns = hba.luns.iter().map(|((target, lun), image)| {
                let name = &self.images[*image].name;
                if *target == 0 {
                    format!("\"{lun}\" = {name:?}")
                } else {
                    format!("\"{target}:{lun}\" = {name:?}")
                }
            });
            let luns: Vec<_> = luns.collect();
            writeln!(
                text,
                "[[hba]]\nname = \"hba{h}\"\nuuid = \"{}\"\nluns = {{ {} }}\npoll = {}",
                hba.uuid,
                luns.join(", "),
                hba.poll
            )
            .expect("memory");
            text += &hba.coalesce;
            if hba.workers != 1 {
                writeln!(text, "workers = {}", hba.workers).expect("memory");
            }
            if let Some(access) = &hba.access {
                writeln!(text, "access = {access:?}").expect("memory");
            }
        }
        text
    }
}
