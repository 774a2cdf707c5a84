//! The comparison as a picture: requests per second by each way under each load.

use std::path::Path;

use clap::ValueEnum;
use plotters::style::RGBColor;

use super::bars::{self, Group, Kind};
use super::compare::{Compared, Row};
use super::error::{Error, Result};
use super::way::Way;

fn color(way: Way) -> RGBColor {
    match way {
        Way::VhostPci => RGBColor(0x1b, 0x7a, 0x43),
        Way::Iscsi => RGBColor(0xd9, 0x6b, 0x1f),
        Way::NvmeTcp => RGBColor(0x3b, 0x6f, 0xb6),
        Way::Qemu => RGBColor(0x8a, 0x8a, 0x8a),
    }
}

/// Draws it as an SVG.
///
/// # Errors
/// It cannot be written.
pub fn draw(path: &Path, all: &[Compared]) -> Result<()> {
    let bar = |row: &Row| Some((color(row.way), row.spread(|sample| sample.iops)?));
    let group = |compared: &Compared| Group {
        name: compared.load.name(),
        bars: compared.rows.iter().filter_map(bar).collect(),
    };
    let groups: Vec<_> = all.iter().map(group).collect();
    let kinds: Vec<Kind> = Way::value_variants()
        .iter()
        .map(|&way| (way.name(), color(way)))
        .collect();
    let title = "random requests of 4096 bytes per second in a tenant VM";
    bars::draw(path, title, &kinds, &groups).map_err(Error::Plot)
}
