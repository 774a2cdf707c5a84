//! Spreads as a picture: a bar for each, in groups.

use std::fmt::Display;
use std::path::Path;

use plotters::prelude::*;

use super::spread::Spread;

/// Pixels of a bar, of the space between groups, and beside the bars.
const BAR: i32 = 16;
const GAP: i32 = 14;
const NAMES: i32 = 270;
const WIDTH: i32 = 1000;
const TOP: i32 = 60;
const BOTTOM: i32 = 40;
const SCALE: i32 = WIDTH - NAMES - 120;

/// What bars are of: its name and its colour.
pub type Kind = (&'static str, RGBColor);

/// Bars under one name.
pub struct Group {
    pub name: String,
    pub bars: Vec<(RGBColor, Spread)>,
}

/// Draws them as an SVG: bars of the medians from the least to the greatest power of ten, with a
/// line from minimum to maximum; `title` says what they are of.
///
/// # Errors
/// Why it cannot be written.
pub fn draw(path: &Path, title: &str, kinds: &[Kind], groups: &[Group]) -> Result<(), String> {
    let spreads = || groups.iter().flat_map(|group| &group.bars);
    let least = spreads().map(|(_, s)| s.min).fold(f64::MAX, f64::min);
    let greatest = spreads().map(|(_, s)| s.max).fold(1.0, f64::max);
    let least = least.clamp(1.0, greatest).log10().floor();
    let greatest = greatest.log10().ceil().max(least + 1.0);
    let at = |value: f64| NAMES + pixels((value.max(1.0).log10() - least) / (greatest - least));

    let lines = groups.iter().map(|group| group.bars.len() as f64);
    let height: f64 = lines
        .map(|bars| bars * f64::from(BAR) + f64::from(GAP))
        .sum();
    let bottom = TOP + whole(height);
    let size = [WIDTH, bottom + BOTTOM].map(|side| u32::try_from(side).unwrap_or(0));
    let area = SVGBackend::new(path, (size[0], size[1])).into_drawing_area();
    area.fill(&WHITE).map_err(failed)?;
    let small = ("sans-serif", 12).into_font().color(&BLACK);
    let text = |at: (i32, i32), words: String| Text::new(words, at, small.clone());

    let title = format!("{title}: median, least and most of all rounds (log scale)");
    area.draw(&text((10, 8), title)).map_err(failed)?;
    let mut right = 10;
    for (name, color) in kinds {
        let shape = [(right, 30), (right + 12, 42)];
        let shape = Rectangle::new(shape, color.filled());
        area.draw(&shape).map_err(failed)?;
        area.draw(&text((right + 16, 30), (*name).to_owned()))
            .map_err(failed)?;
        right += 40 + 7 * i32::try_from(name.len()).unwrap_or(0);
    }
    let mut power = least;
    while power <= greatest {
        let x = at(10f64.powf(power));
        let line = PathElement::new([(x, TOP - 6), (x, bottom)], RGBColor(0xdd, 0xdd, 0xdd));
        area.draw(&line).map_err(failed)?;
        let label = short(10f64.powf(power));
        area.draw(&text((x - 10, bottom + 6), label))
            .map_err(failed)?;
        power += 1.0;
    }
    let mut y = TOP;
    for Group { name, bars } in groups {
        area.draw(&text((10, y), name.clone())).map_err(failed)?;
        for (color, spread) in bars {
            let shape = [(NAMES, y), (at(spread.median), y + BAR - 3)];
            let shape = Rectangle::new(shape, color.filled());
            area.draw(&shape).map_err(failed)?;
            let middle = y + BAR / 2 - 1;
            let line = [(at(spread.min), middle), (at(spread.max), middle)];
            area.draw(&PathElement::new(line, BLACK)).map_err(failed)?;
            let label = short(spread.median);
            let place = (at(spread.max) + 6, y);
            area.draw(&text(place, label)).map_err(failed)?;
            y += BAR;
        }
        y += GAP;
    }
    area.present().map_err(failed)
}

/// A part of the scale, in pixels.
fn pixels(part: f64) -> i32 {
    whole(part.clamp(0.0, 1.0) * f64::from(SCALE))
}

/// Of a figure that is small by construction.
fn whole(value: f64) -> i32 {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a picture has a few thousand pixels"
    )]
    let whole = value as i32;
    whole
}

fn short(value: f64) -> String {
    match value {
        1e6.. => format!("{:.2}M", value / 1e6),
        1e4.. => format!("{:.0}k", value / 1e3),
        1e3.. => format!("{:.1}k", value / 1e3),
        _ => format!("{value:.0}"),
    }
}

fn failed(error: impl Display) -> String {
    error.to_string()
}
