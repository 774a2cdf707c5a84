//! The `scsi` bench program: it drives our server and checks its data, and says what is wrong with
//! a server that is missing, dies or cannot do what is asked.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests do")]

#[path = "../benches/scsi/program/mod.rs"]
mod program;

use std::fs;
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use appliance::sockets::Sockets;
use appliance::vhost_user::{Options as ServerOptions, Socket};
use appliance::{Appliance, Config, OnlyHba};
use clap::Parser;
use program::Options;

fn run(arguments: &[&str]) -> Result<(), String> {
    let all = ["scsi"].iter().chain(arguments);
    let options = Options::try_parse_from(all).map_err(|error| error.to_string())?;
    program::run(&options).map_err(|error| error.to_string())
}

/// A server at a socket that does `serve` with its only client.
fn served(serve: impl FnOnce(UnixStream) + Send + 'static, test: impl FnOnce(&str)) {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("vhost");
    let listener = UnixListener::bind(&socket).unwrap();
    let server = thread::spawn(move || serve(listener.accept().unwrap().0));
    test(socket.to_str().unwrap());
    server.join().unwrap();
}

/// What a test's server answers to a message: its reply's payload, or that it hangs up.
type Answer = Option<u64>;

/// Answers each message that `answer` knows; others have no reply.
fn answering(mut stream: UnixStream, answer: impl Fn(u32) -> Option<Answer>) {
    use std::io::{Read, Write};
    let mut header = [0; 12];
    while stream.read_exact(&mut header).is_ok() {
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
        let mut payload = vec![0; word(8) as usize];
        stream.read_exact(&mut payload).unwrap();
        match answer(word(0)) {
            None => {}
            Some(None) => return,
            Some(Some(value)) => {
                let mut reply = Vec::new();
                // Version 1, and that it is a reply.
                for word in [word(0), 0b101, 8] {
                    reply.extend(word.to_le_bytes());
                }
                reply.extend(value.to_le_bytes());
                stream.write_all(&reply).unwrap();
            }
        }
    }
}

const GET_FEATURES: u32 = 1;
const VERSION_1: u64 = 1 << 32;
const INDIRECT: u64 = 1 << 28;
const EVENT_IDX: u64 = 1 << 29;

#[test]
fn a_server_that_is_not_there_is_named() {
    let error = run(&["drive", "/nowhere/vhost", "--kind", "scsi"]).unwrap_err();
    assert!(error.contains("no server at /nowhere/vhost"), "{error}");
}

#[test]
fn a_server_without_event_index_is_refused_with_the_mend() {
    let features = |request| (request == GET_FEATURES).then_some(Some(VERSION_1 | INDIRECT));
    served(
        move |stream| answering(stream, features),
        |socket| {
            let error = run(&["drive", socket, "--kind", "scsi"]).unwrap_err();
            assert!(error.contains("does not offer EVENT_IDX"), "{error}");
            assert!(error.contains("--no-event-idx"), "{error}");
        },
    );
}

#[test]
fn a_legacy_server_is_refused() {
    let features = |request| (request == GET_FEATURES).then_some(Some(INDIRECT | EVENT_IDX));
    served(
        move |stream| answering(stream, features),
        |socket| {
            let error = run(&["drive", socket, "--kind", "blk"]).unwrap_err();
            assert!(error.contains("does not offer VERSION_1"), "{error}");
        },
    );
}

#[test]
fn a_server_that_hangs_up_during_setup_is_an_error() {
    served(
        |stream| answering(stream, |request| (request == GET_FEATURES).then_some(None)),
        |socket| {
            let error = run(&["drive", socket, "--kind", "scsi"]).unwrap_err();
            assert!(error.contains("did not take GET_FEATURES"), "{error}");
        },
    );
}

#[test]
fn a_server_that_dies_while_it_is_driven_is_an_error() {
    // After the memory table and two queues more comes the last message of the setup, which is
    // GET_FEATURES once more; then nobody serves the rings.
    let asked = std::cell::Cell::new(0);
    served(
        move |stream| {
            let hang_up = stream.try_clone().unwrap();
            answering(stream, |request| {
                if request != GET_FEATURES {
                    return None;
                }
                asked.set(asked.get() + 1);
                if asked.get() == 2 {
                    let hang_up = hang_up.try_clone().unwrap();
                    thread::spawn(move || {
                        thread::sleep(std::time::Duration::from_millis(100));
                        let _ = hang_up.shutdown(std::net::Shutdown::Both);
                    });
                }
                Some(Some(VERSION_1 | INDIRECT | EVENT_IDX))
            });
        },
        |socket| {
            let error = run(&["drive", socket, "--kind", "scsi"]).unwrap_err();
            assert!(error.contains("the server went away"), "{error}");
        },
    );
}

#[test]
fn a_load_that_makes_no_sense_is_refused() {
    for (arguments, says) in [
        (["--depth", "0"], "at least 1"),
        (["--block-size", "100"], "multiple of 512"),
        (["--writes", "101"], "at most 100"),
        (["--ring-size", "100"], "power of two"),
        (["--depth", "300"], "do not fit a ring of 256"),
    ] {
        let error = run(&[["floor"].as_slice(), &arguments].concat()).unwrap_err();
        assert!(error.contains(says), "{error}");
    }
    for (arguments, says) in [
        (["--rounds", "0"], "at least 1"),
        (["--seconds", "4000"], "between 0 and 3600"),
    ] {
        let error = run(&[["fairness"].as_slice(), &arguments].concat()).unwrap_err();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn the_generator_runs_against_a_server_that_answers_at_once() {
    for how in [
        ["--polled", "--direct"],
        ["--queues", "2"],
        ["--depth", "1"],
    ] {
        let load = [
            "floor",
            "--seconds",
            "0.05",
            "--warm-up",
            "0",
            "--depth",
            "8",
        ];
        let load = if how[0] == "--depth" {
            &load[..5]
        } else {
            &load
        };
        run(&[load, &how].concat()).unwrap();
    }
}

#[test]
fn a_server_that_keeps_nothing_fails_verification() {
    let load = ["floor", "--verify", "--writes", "50", "--seconds", "0.05"];
    let error = run(&load).unwrap_err();
    assert!(error.contains("VERIFICATION FAILED"), "{error}");
}

/// Serves a file of 64 MiB as `appliance serve` does, in this process.
fn our_server(test: impl FnOnce(&str)) {
    let directory = tempfile::tempdir().unwrap();
    let disk = directory.path().join("disk.img");
    fs::File::create(&disk).unwrap().set_len(64 << 20).unwrap();
    let path = directory.path().join("vhost");
    let luns = [disk.to_str().unwrap().to_owned()];
    let appliance = Appliance::new(Config::of_luns(&luns, &OnlyHba::default()).unwrap()).unwrap();
    let socket = Socket::bind(&path).unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let mut sockets = Sockets::new(&appliance, ServerOptions::default());
        sockets.add(socket, "hba0").unwrap();
        let served = scope.spawn(|| sockets.run(&stop));
        // The scope waits for the server, whatever comes of the test.
        let socket = path.to_str().unwrap();
        let tested = panic::catch_unwind(AssertUnwindSafe(|| test(socket)));
        stop.store(true, Ordering::Relaxed);
        served.join().unwrap();
        if let Err(failure) = tested {
            panic::resume_unwind(failure);
        }
    });
}

#[test]
fn our_server_keeps_what_it_is_given() {
    for how in [
        ["--depth", "8"].as_slice(),
        &["--queues", "2", "--block-size", "8192"],
        &[
            "--direct",
            "--no-event-idx",
            "--depth",
            "1",
            "--block-size",
            "512",
        ],
    ] {
        our_server(|socket| {
            let drive = [
                "drive", socket, "--kind", "scsi", "--verify", "--writes", "50",
            ];
            let short = ["--seconds", "0.2", "--warm-up", "0"];
            run(&[drive.as_slice(), &short, how].concat()).unwrap();
        });
    }
}

#[test]
fn a_scsi_server_that_is_driven_as_a_disk_of_another_kind_is_an_error() {
    our_server(|socket| {
        assert!(run(&["drive", socket, "--kind", "blk"]).is_err());
    });
}
