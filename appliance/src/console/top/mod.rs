//! Live figures of every LUN, full screen.

mod samples;
mod screen;

use std::io::{IsTerminal, stdout};
use std::time::{Duration, Instant};

use ratatui::crossterm::event::{self, Event, KeyCode, KeyModifiers};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{Clear, ClearType, EnterAlternateScreen, window_size};
use ratatui::layout::Rect;
use ratatui::{DefaultTerminal, TerminalOptions, Viewport};
use serde_json::{Value, json};

use self::samples::Samples;
use super::interrupt;
use super::session::{Session, Trouble, print};
use crate::control::protocol::Tenant;

/// Time between two looks.
const PERIOD: Duration = Duration::from_secs(1);
/// What a terminal whose size is not known has at least.
const SERIAL: Rect = Rect::new(0, 0, 80, 24);

/// Shows figures once a second: full screen until q, or as JSON until Ctrl-C.
///
/// # Errors
/// [`Trouble`].
pub(super) fn run(session: &mut Session) -> Result<(), Trouble> {
    if session.json {
        return lines(session);
    }
    if !stdout().is_terminal() {
        return Err(Trouble::Usage(
            "top needs a terminal; with --json it gives its figures once a second".into(),
        ));
    }
    let trouble = |error: std::io::Error| Trouble::Io(format!("the terminal: {error}"));
    let mut terminal = terminal().map_err(trouble)?;
    let shown = show(session, &mut terminal);
    ratatui::restore();
    shown
}

/// The terminal. A serial line does not know the size of what is at its other end.
fn terminal() -> std::io::Result<DefaultTerminal> {
    if window_size().is_ok_and(|size| size.columns > 0 && size.rows > 0) {
        return ratatui::try_init();
    }
    let terminal = ratatui::try_init_with_options(TerminalOptions {
        viewport: Viewport::Fixed(SERIAL),
    })?;
    // Not by `clear` of the terminal, which asks it where its cursor is: not all can tell.
    execute!(stdout(), EnterAlternateScreen, Clear(ClearType::All))?;
    Ok(terminal)
}

fn show(session: &mut Session, terminal: &mut DefaultTerminal) -> Result<(), Trouble> {
    let trouble = |error: std::io::Error| Trouble::Io(format!("the terminal: {error}"));
    let name = session.client.hello().name.clone();
    let colour = session.style.has_colour();
    let mut samples = Samples::default();
    loop {
        let tenants: Vec<Tenant> = session.client.call("hbas", &Value::Null)?;
        samples.take(&tenants, Instant::now());
        let drawn = |frame: &mut ratatui::Frame<'_>| screen::draw(frame, &name, &samples, colour);
        terminal.draw(drawn).map_err(trouble)?;
        let next = Instant::now() + PERIOD;
        loop {
            let left = next.saturating_duration_since(Instant::now());
            if !event::poll(left).map_err(trouble)? {
                break;
            }
            match event::read().map_err(trouble)? {
                Event::Key(key) => match key.code {
                    KeyCode::Char('q') | KeyCode::Esc => return Ok(()),
                    KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => {
                        return Ok(());
                    }
                    _ => {}
                },
                Event::Resize(..) => {
                    terminal
                        .draw(|frame| screen::draw(frame, &name, &samples, colour))
                        .map_err(trouble)?;
                }
                _ => {}
            }
        }
    }
}

fn lines(session: &mut Session) -> Result<(), Trouble> {
    interrupt::take();
    let mut samples = Samples::default();
    loop {
        let tenants: Vec<Tenant> = session.client.call("hbas", &Value::Null)?;
        samples.take(&tenants, Instant::now());
        print(&format!("{}\n", json!(samples.rows())));
        if !interrupt::rest(PERIOD) {
            return Ok(());
        }
    }
}
