//! Makes the guide's pictures of the console, from the console itself at a World's appliance:
//! `cargo run -p vhost-pci-tests --example screenshots`.

mod svg;

use std::fs;
use std::io::{BufReader, Read, Write};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use appliance::console;
use tests::vm::store;
use tests::world::{BLOCK, Command as Request, Lun, MIB, Shape, Tenant, World, write10};

/// A terminal's size.
const ROWS: NonZero<u16> = NonZero::new(24).expect("some");
const COLUMNS: NonZero<u16> = NonZero::new(80).expect("some");
/// How long `top` is left to collect its figures: less than a command is given.
const FILL: Duration = Duration::from_secs(14);

/// A tenant that reads and writes its LUNs until it is stopped, in phases of different pace.
struct Busy {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Busy {
    fn start(mut tenant: Tenant, luns: u16, rest: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let start = Instant::now();
            while !stopped.load(Ordering::Relaxed) {
                for lun in 0..luns {
                    // A unit attention is met, and the next one is served.
                    let _ = tenant.initiator().write(lun, 128, &[7; 16 * BLOCK]);
                    let _ = tenant.initiator().read(lun, 64, 32);
                }
                let phase = u32::try_from(start.elapsed().as_secs() / 4 % 3).unwrap_or(0);
                thread::sleep(rest * phase);
            }
        });
        Self { stop, thread }
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the tenant ends");
    }
}

/// What the console shows in a terminal: after `keys`, and then `time`.
fn screen(control: &Path, words: &[&str], time: Duration) -> vt100::Parser {
    // `script` gives it a terminal, and `stty` that its size. The console is this program again.
    let program = std::env::current_exe().expect("this program");
    let said = format!(
        "stty rows {ROWS} cols {COLUMNS}; exec {} console {} {}",
        program.display(),
        control.display(),
        words.join(" ")
    );
    let mut script = Command::new("script");
    script.args(["-q", "-c", &said, "/dev/null"]);
    script.env("TERM", "xterm-256color");
    script.env_remove("NO_COLOR");
    script.stdin(std::process::Stdio::piped());
    script.stdout(std::process::Stdio::piped());
    let mut child = script.spawn().expect("util-linux has script");
    let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
    let reader = thread::spawn(move || {
        let mut parser = vt100::Parser::new(ROWS, COLUMNS, 0);
        let mut shown = None;
        let mut bytes = [0; 4096];
        while let Ok(length @ 1..) = output.read(&mut bytes) {
            parser.process(&bytes[..length]);
            if parser.screen().alternate_screen() {
                shown = Some(parser.screen().contents_formatted());
            }
        }
        // A full screen is gone when the program has ended: the last one is what was seen.
        if let Some(shown) = shown {
            parser = vt100::Parser::new(ROWS, COLUMNS, 0);
            parser.process(shown.as_bytes());
        }
        parser
    });
    if !time.is_zero() {
        thread::sleep(time);
        let mut input = child.stdin.take().expect("a pipe");
        input.write_all(b"q").expect("it listens");
    }
    child.wait().expect("it ends");
    reader.join().expect("a screen")
}

fn keep(name: &str, title: &str, screen: &vt100::Parser) {
    let path: PathBuf = store::workspace().join("appliance/docs").join(name);
    fs::write(&path, svg::picture(title, screen.screen())).expect("the documents are there");
    println!("{}", path.display());
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [console, socket, words @ ..] = &arguments[..]
        && console == "console"
    {
        return console::run(Path::new(socket), console::Options::default(), words);
    }
    let world = World::new()
        .lun(Lun::file(8 * MIB))
        .lun(Lun::file(8 * MIB).write_back())
        .another_hba()
        .lun(Lun::file(8 * MIB).gated())
        .another_hba()
        .lun(Lun::file(8 * MIB).read_only())
        .start();
    let control = world.control(None);
    let busy = Busy::start(
        world.tenant_of(0, Shape::default()),
        2,
        Duration::from_millis(2),
    );
    let mut stuck = world.tenant_of(1, Shape::default());
    while stuck.initiator().ready(0).is_err() {}
    keep(
        "status.svg",
        "appliance console status",
        &screen(control.path(), &["status"], Duration::ZERO),
    );

    // A disk that hangs.
    world.gate(2).close();
    let write = Request::new(0, &write10(0, 8)).data_out(&[1; 8 * BLOCK]);
    let task = stuck.initiator().submit(&write);
    keep(
        "top.svg",
        "appliance console top",
        &screen(control.path(), &["top"], FILL),
    );
    keep(
        "explain.svg",
        "appliance console explain lun2",
        &screen(control.path(), &["explain", "lun2"], Duration::ZERO),
    );
    world.gate(2).open();
    world.gate(2).let_write();
    let _ = stuck.initiator().wait_for(task, Duration::from_secs(30));
    busy.stop();
    ExitCode::SUCCESS
}
