//! The comparison as a picture: requests per second of each server under each load.

use std::path::Path;

use plotters::style::RGBColor;

use super::bars::{self, Group, Kind};
use super::compare::{Compared, Row};
use super::error::{Error, Result};
use super::peers::Server;

fn color(server: Server) -> RGBColor {
    match server {
        Server::Ours => RGBColor(0x1b, 0x7a, 0x43),
        Server::InPlace => RGBColor(0x8f, 0xc7, 0x9f),
        Server::Qsd => RGBColor(0xd9, 0x6b, 0x1f),
        Server::VhostDeviceScsi => RGBColor(0x3b, 0x6f, 0xb6),
        Server::Floor => RGBColor(0xb5, 0xb5, 0xb5),
        Server::Raw => RGBColor(0x8a, 0x8a, 0x8a),
    }
}

/// Draws it as an SVG; `title` says what the bars are of.
///
/// # Errors
/// It cannot be written.
pub fn draw(path: &Path, title: &str, all: &[Compared]) -> Result<()> {
    let bar = |row: &Row| Some((color(row.server), row.spread(|s| s.iops)?));
    let group = |compared: &Compared| Group {
        name: compared.case.name(),
        bars: compared.rows.iter().filter_map(bar).collect(),
    };
    let groups: Vec<_> = all.iter().map(group).collect();
    let groups: Vec<_> = groups
        .into_iter()
        .filter(|group| !group.bars.is_empty())
        .collect();
    let kinds: Vec<Kind> = [
        Server::Ours,
        Server::InPlace,
        Server::Qsd,
        Server::VhostDeviceScsi,
        Server::Floor,
        Server::Raw,
    ]
    .map(|server| (server.name(), color(server)))
    .into();
    bars::draw(path, &format!("{title} per second"), &kinds, &groups).map_err(Error::Plot)
}
