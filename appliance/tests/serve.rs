//! `appliance serve`: the program at a vhost-user socket.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests do")]

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How long the program may take until it listens.
const PATIENCE: Duration = Duration::from_secs(20);

/// A folder of its own, gone with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("serve-{}", uuid::Uuid::new_v4()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn serve(arguments: &[&str]) -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_appliance"));
    program.arg("serve").args(arguments);
    program
}

/// What the program says when it refuses to start.
fn refusal(arguments: &[&str]) -> String {
    let Output { status, stderr, .. } = serve(arguments).output().unwrap();
    assert!(!status.success());
    String::from_utf8(stderr).unwrap()
}

/// Connects, once somebody listens.
fn connect(socket: &str) -> UnixStream {
    let start = Instant::now();
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return stream,
            Err(error) => assert!(start.elapsed() < PATIENCE, "{socket}: {error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_disk_is_served_without_a_configuration_until_sigterm() {
    let folder = Folder::new();
    let (socket, null) = (folder.path("hba.sock"), "kind=null,size=1048576");
    let mut program = serve(&["--vhost-user", &socket, "--lun", null, "--poll", "20"])
        .spawn()
        .unwrap();
    let frontend = connect(&socket);
    let kill = Command::new("kill").arg(program.id().to_string()).status();
    assert!(kill.unwrap().success());
    assert!(program.wait().unwrap().success());
    assert!(!Path::new(&socket).exists());
    drop(frontend);
}

/// What GET of `/healthz` gets at a unix socket.
fn health(socket: &str) -> String {
    let mut client = connect(socket);
    client.write_all(b"GET /healthz HTTP/1.1\r\n\r\n").unwrap();
    let mut response = String::new();
    client.read_to_string(&mut response).unwrap();
    response
}

#[test]
fn metrics_are_served_where_flag_or_configuration_say_and_nowhere_otherwise() {
    let folder = Folder::new();
    let config = folder.path("appliance.toml");
    let (said, given) = (folder.path("said.http"), folder.path("given.http"));
    let hba = "[[hba]]\nname = \"a\"\nuuid = \"00000000-0000-4000-8000-000000000001\"\nluns = {}\n";
    let text = format!("name = \"a\"\n{hba}[metrics]\nlisten = {said:?}\n");
    fs::write(&config, text).unwrap();
    let socket = folder.path("hba.sock");
    let plain = ["--vhost-user", &socket, "--config", &config];
    let flag = [&plain[..], &["--metrics", &given]].concat();
    for (arguments, there, not) in [(&plain[..], &said, &given), (&flag[..], &given, &said)] {
        let mut program = serve(arguments).spawn().unwrap();
        let response = health(there);
        assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
        assert!(!Path::new(not).exists());
        let kill = Command::new("kill").arg(program.id().to_string()).status();
        assert!(kill.unwrap().success());
        assert!(program.wait().unwrap().success());
        assert!(!Path::new(there).exists());
    }
}

#[test]
fn metrics_at_a_place_that_cannot_be_are_refused_with_the_mend() {
    let folder = Folder::new();
    let socket = folder.path("hba.sock");
    let lun = ["--vhost-user", &socket, "--lun", "kind=null,size=1048576"];
    let of = |place: &str| refusal(&[&lun[..], &["--metrics", place]].concat());
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let error = of(&address);
    assert!(
        error.contains(&format!("no metrics: cannot listen on {address}"))
            && error.contains("free?"),
        "{error}"
    );
    let error = of("localhost");
    assert!(error.contains("no ADDRESS:PORT"), "{error}");
}

#[test]
fn the_limit_on_open_files_is_raised_and_said_to_be_too_small() {
    let folder = Folder::new();
    let socket = folder.path("hba.sock");
    let mut program = Command::new("sh")
        .args([
            "-c",
            "ulimit -Sn 200 && ulimit -Hn 300 && exec \"$@\"",
            "sh",
        ])
        .arg(env!("CARGO_BIN_EXE_appliance"))
        .args(["serve", "--vhost-user", &socket])
        .args(["--lun", "kind=null,size=1048576"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(connect(&socket));
    let limits = fs::read_to_string(format!("/proc/{}/limits", program.id())).unwrap();
    program.kill().unwrap();
    let Output { stderr, .. } = program.wait_with_output().unwrap();
    let files = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let numbers: Vec<_> = files.unwrap().split_whitespace().skip(3).take(2).collect();
    assert_eq!(numbers, ["300", "300"]);
    let log = String::from_utf8(stderr).unwrap();
    assert!(log.contains("LimitNOFILE=1156"), "{log}");
}

#[test]
fn two_sockets_are_two_hbas_of_a_configuration() {
    let folder = Folder::new();
    let config = folder.path("appliance.toml");
    let hba = |n: u8| {
        let uuid = format!("00000000-0000-4000-8000-00000000000{n}");
        format!("[[hba]]\nname = \"hba{n}\"\nuuid = \"{uuid}\"\nluns = {{}}\n")
    };
    fs::write(&config, format!("name = \"a\"\n{}{}", hba(1), hba(2))).unwrap();
    let sockets = [folder.path("1.sock"), folder.path("2.sock")];
    let mut arguments = vec!["--config", &config];
    for socket in &sockets {
        arguments.extend(["--vhost-user", socket]);
    }
    let error = refusal(&arguments);
    assert!(
        error.contains("2 --vhost-user and 0 --hba") && error.contains("hba1, hba2"),
        "{error}"
    );
    arguments.extend(["--hba", "hba1", "--hba", "hba3"]);
    let error = refusal(&arguments);
    assert!(
        error.contains("no [[hba]] of the configuration is named \"hba3\""),
        "{error}"
    );
    arguments.pop();
    arguments.push("hba1");
    let error = refusal(&arguments);
    assert!(
        error.contains("HBA \"hba1\" is attached already"),
        "{error}"
    );
    arguments.pop();
    arguments.push("hba2");
    let mut program = serve(&arguments).spawn().unwrap();
    for socket in &sockets {
        connect(socket);
    }
    program.kill().unwrap();
    program.wait().unwrap();
    // What a killed one left behind is no hindrance.
    let mut program = serve(&arguments).spawn().unwrap();
    for socket in &sockets {
        connect(socket);
    }
    program.kill().unwrap();
    program.wait().unwrap();
}

#[test]
fn arguments_that_make_no_sense_are_named() {
    let folder = Folder::new();
    let socket = folder.path("hba.sock");
    let error = refusal(&["--vhost-user", &socket]);
    assert!(error.contains("--config"), "{error}");
    let null = "kind=null,size=1048576";
    let error = refusal(&["--vhost-user", &socket, "--lun", "kind=null"]);
    assert!(error.contains("--lun: LUN \"lun0\""), "{error}");
    let error = refusal(&["--vhost-user", &socket, "--lun", null, "--poll", "soon"]);
    assert!(error.contains("poll \"soon\""), "{error}");
    fs::write(&socket, "precious").unwrap();
    let error = refusal(&["--vhost-user", &socket, "--lun", null]);
    assert!(error.contains("is not a socket; remove it"), "{error}");
}
