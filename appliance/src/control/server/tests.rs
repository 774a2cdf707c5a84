//! Clients of every kind, those too that mean no good.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::thread;
use std::time::Instant;

use serde_json::{Value, json};
use uuid::Uuid;
use vmm_sys_util::tempdir::TempDir;

use super::*;
use crate::Config;
use crate::appliance::{Appliance, open_disk};
use crate::control::protocol::{MAX_REQUEST, code};
use crate::control::{Book, Logs};
use crate::disk::{Disk, DiskError, Geometry, Op, OpenFile, Usage};

const CONFIG: &str = "name = \"s\"\n[[lun]]\nname = \"a\"\nkind = \"null\"\nsize = 1048576\n\
                      [[hba]]\nname = \"t\"\nuuid = \"2f0c4fd2-4f6c-4b3c-9d3b-111111111111\"\n\
                      luns = { \"0\" = \"a\" }\n[[hba]]\nname = \"u\"\nuuid = \
                      \"2f0c4fd2-4f6c-4b3c-9d3b-222222222222\"\nluns = {}\n";

/// A control socket of an appliance without tenants.
struct Fixture {
    server: Option<Server>,
    path: PathBuf,
}

impl Fixture {
    fn new() -> Self {
        let config = Config::parse(CONFIG, Path::new("a.toml")).unwrap();
        Self::of(Appliance::new(config).unwrap(), CONFIG, None)
    }

    /// That of an appliance which was started with `text` from `file`.
    fn of(appliance: Appliance, text: &str, file: Option<PathBuf>) -> Self {
        let path = std::env::temp_dir().join(format!("control-{}", Uuid::new_v4()));
        let book = Book::new(Arc::new(appliance), text.into(), file);
        let desk = Arc::new(Desk::new(Arc::new(book), Logs::default()));
        let server = Server::start(&path, desk).unwrap();
        Self {
            server: Some(server),
            path,
        }
    }

    fn connect(&self) -> Peer {
        let stream = UnixStream::connect(&self.path).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        Peer(BufReader::new(stream))
    }
}

struct Peer(BufReader<UnixStream>);

impl Peer {
    fn send(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).unwrap();
    }

    fn reply(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    fn call(&mut self, method: &str, params: Value) -> Result<Value, (i64, String)> {
        let request = json!({ "jsonrpc": "2.0", "id": 7, "method": method, "params": params });
        self.send(format!("{request}\n").as_bytes());
        let reply = self.reply();
        assert_eq!(
            (&reply["jsonrpc"], &reply["id"]),
            (&json!("2.0"), &json!(7))
        );
        match reply.get("error") {
            None => Ok(reply["result"].clone()),
            Some(error) => {
                let message = error["message"].as_str().unwrap().to_owned();
                Err((error["code"].as_i64().unwrap(), message))
            }
        }
    }
}

#[test]
fn the_socket_is_for_its_user_alone_and_gone_with_the_server() {
    let mut fixture = Fixture::new();
    let mode = std::fs::metadata(&fixture.path)
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut peer = fixture.connect();
    assert_eq!(peer.call("hello", json!({})).unwrap()["name"], "s");
    fixture.server = None;
    assert!(!fixture.path.exists());
    let mut rest = Vec::new();
    assert_eq!(peer.0.read_to_end(&mut rest).unwrap(), 0);
}

#[test]
fn only_its_own_user_and_root_are_heard() {
    assert!(is_allowed(geteuid()) && is_allowed(Uid::ROOT));
    let other = Uid::from_raw(geteuid().as_raw() ^ 0x5555);
    assert!(!is_allowed(other));
}

#[test]
fn hostile_lines_are_answered_and_the_next_is_heard() {
    let fixture = Fixture::new();
    let mut peer = fixture.connect();
    for (line, expected) in [
        (&b"\xff\xfe{"[..], code::PARSE),
        (b"{", code::PARSE),
        (b"null", code::REQUEST),
        (b"[]", code::REQUEST),
        (
            b"{\"jsonrpc\":\"1.0\",\"id\":1,\"method\":\"hello\"}",
            code::REQUEST,
        ),
        (
            b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":7}",
            code::REQUEST,
        ),
        (
            b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"rm\"}",
            code::METHOD,
        ),
        (
            b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"status\",\"params\":[1]}",
            code::PARAMS,
        ),
        (
            b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"status\",\"params\":{\"x\":1}}",
            code::PARAMS,
        ),
    ] {
        peer.send(line);
        peer.send(b"\n");
        let reply = peer.reply();
        assert_eq!(reply["error"]["code"], expected, "{reply}");
    }
    // Deeper than anything that means something.
    peer.send(&[b'['; 100_000]);
    peer.send(b"\n");
    assert_eq!(peer.reply()["error"]["code"], code::PARSE);
    assert!(peer.call("status", Value::Null).is_ok());
}

#[test]
fn a_line_that_is_too_long_is_refused_and_not_kept() {
    let fixture = Fixture::new();
    let mut peer = fixture.connect();
    for _ in 0..20 {
        peer.send(&[b'x'; MAX_REQUEST / 4]);
    }
    peer.send(b"\n");
    let reply = peer.reply();
    assert_eq!(reply["error"]["code"], code::PARSE);
    assert!(
        reply["error"]["message"]
            .as_str()
            .unwrap()
            .contains("1048576 bytes")
    );
    assert!(peer.call("hello", Value::Null).is_ok());
}

#[test]
fn a_request_without_an_id_is_done_and_not_answered() {
    let fixture = Fixture::new();
    let mut peer = fixture.connect();
    peer.send(b"{\"jsonrpc\":\"2.0\",\"method\":\"hba.remove\",\"params\":{\"name\":\"u\"}}\n\n");
    let hbas = peer.call("hbas", Value::Null).unwrap();
    assert_eq!(hbas.as_array().unwrap().len(), 1);
}

#[test]
fn who_goes_in_the_middle_of_a_line_or_a_reply_harms_nobody() {
    let fixture = Fixture::new();
    for _ in 0..3 * MAX_CLIENTS {
        let mut peer = fixture.connect();
        peer.send(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"status\"}\n{\"jsonrpc\"");
    }
    // Their places are free as soon as their threads have seen that they are gone.
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let mut peer = fixture.connect();
        let _ = peer
            .0
            .get_mut()
            .write_all(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"hello\"}\n");
        let mut line = String::new();
        if matches!(peer.0.read_line(&mut line), Ok(1..)) {
            break;
        }
        assert!(Instant::now() < deadline);
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn no_more_than_so_many_are_served_at_a_time() {
    let fixture = Fixture::new();
    let mut peers: Vec<_> = (0..MAX_CLIENTS).map(|_| fixture.connect()).collect();
    for peer in &mut peers {
        peer.call("hello", Value::Null).unwrap();
    }
    let mut more = fixture.connect();
    let mut byte = [0];
    // Closed, with what it sent unread or not.
    assert!(matches!(more.0.read(&mut byte), Ok(0) | Err(_)));
    peers[0].call("hello", Value::Null).unwrap();
}

#[test]
fn a_slow_reader_keeps_nobody_waiting_and_is_let_go() {
    let fixture = Fixture::new();
    let mut slow = fixture.connect();
    let request = b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"luns\"}\n";
    slow.0
        .get_mut()
        .set_write_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    // Until neither its requests nor their replies have room any more.
    while slow.0.get_mut().write_all(request).is_ok() {}
    let mut peer = fixture.connect();
    peer.call("status", Value::Null).unwrap();
    slow.0.get_mut().set_write_timeout(None).unwrap();
    // Writing ends with an error when the other end is closed, and not before.
    let start = Instant::now();
    while slow.0.get_mut().write_all(request).is_ok() {}
    assert!(start.elapsed() < READ_PATIENCE * 4);
    peer.call("status", Value::Null).unwrap();
}

#[test]
fn luns_and_tenants_are_added_shown_and_removed() {
    let fixture = Fixture::new();
    let mut peer = fixture.connect();
    let add = json!({
        "name": "b", "keys": { "kind": "ram", "size": 4096 }, "hba": "u", "at": "1:3",
    });
    let applied = peer.call("lun.add", add.clone()).unwrap();
    let expected = json!(["LUNs added: b", "HBAs that see other LUNs: u"]);
    assert_eq!(applied["changes"], expected);
    let shown = peer.call("show", json!({ "name": "b" })).unwrap();
    assert_eq!(shown["lun"]["seen_by"], json!([["u", "1:3"]]));
    assert_eq!(shown["lun"]["bytes"], 4096);

    let (number, message) = peer.call("lun.add", add).unwrap_err();
    assert_eq!(number, i64::from(code::REFUSED));
    assert!(
        message.contains("LUN \"u\"") || message.contains("LUN 1:3"),
        "{message}"
    );

    peer.call("lun.move", json!({ "name": "b", "hba": "t" }))
        .unwrap();
    let shown = peer.call("show", json!({ "name": "b" })).unwrap();
    assert_eq!(shown["lun"]["seen_by"], json!([["t", "0:1"]]));
    peer.call("lun.remove", json!({ "name": "b" })).unwrap();
    let added = peer.call("hba.add", json!({ "name": "v" })).unwrap();
    assert!(Uuid::parse_str(added["uuid"].as_str().unwrap()).is_ok());
    peer.call("hba.remove", json!({ "name": "t" })).unwrap();
    let names = peer.call("hbas", Value::Null).unwrap();
    let names: Vec<_> = names
        .as_array()
        .unwrap()
        .iter()
        .map(|hba| &hba["name"])
        .collect();
    assert_eq!(names, ["u", "v"]);
}

#[test]
fn what_is_refused_names_the_thing_and_the_mend() {
    let fixture = Fixture::new();
    let mut peer = fixture.connect();
    let before = peer.call("config.get", Value::Null).unwrap();
    for (method, params, number, text) in [
        (
            "lun.remove",
            json!({ "name": "x" }),
            code::UNKNOWN,
            "no LUN is named \"x\"; there are a",
        ),
        (
            "explain",
            json!({ "lun": "x" }),
            code::UNKNOWN,
            "there are a",
        ),
        ("trace", json!({ "lun": "x" }), code::UNKNOWN, "there are a"),
        (
            "show",
            json!({ "name": "x" }),
            code::UNKNOWN,
            "there are t, u, a",
        ),
        (
            "drain",
            json!({ "name": "x" }),
            code::UNKNOWN,
            "there are t, u",
        ),
        (
            "lun.move",
            json!({ "name": "a", "hba": "x" }),
            code::UNKNOWN,
            "there are t, u",
        ),
        (
            "lun.resize",
            json!({ "name": "a", "bytes": 513 }),
            code::REFUSED,
            "block_size, 512",
        ),
        (
            "lun.resize",
            json!({ "name": "a", "bytes": 512 }),
            code::REFUSED,
            "not become smaller",
        ),
        (
            "lun.resize",
            json!({ "name": "a", "bytes": 1 << 30 }),
            code::REFUSED,
            "no file",
        ),
        (
            "lun.add",
            json!({ "name": "b", "keys": { "path": "/does/not/exist" } }),
            code::REFUSED,
            "/does/not/exist",
        ),
        (
            "lun.add",
            json!({ "name": "b", "keys": { "colour": "red" } }),
            code::REFUSED,
            "unknown field `colour`",
        ),
        (
            "config.apply",
            json!({ "text": "name = 1" }),
            code::REFUSED,
            "configuration:1: ",
        ),
        (
            "config.apply",
            json!({ "text": "name = \"other\"" }),
            code::REFUSED,
            "`name` cannot change",
        ),
        (
            "config.apply",
            json!({}),
            code::PARAMS,
            "give `text` or `path`",
        ),
        ("config.save", json!({}), code::REFUSED, "config save PATH"),
        (
            "config.save",
            json!({ "path": "/does/not/exist/x" }),
            code::SYSTEM,
            "/does/not/exist/x cannot be written",
        ),
        (
            "log.level",
            json!({ "target": "a", "level": "loud" }),
            code::PARAMS,
            "off, error",
        ),
    ] {
        let (got, message) = peer.call(method, params).unwrap_err();
        assert_eq!(got, i64::from(number), "{method}: {message}");
        assert!(message.contains(text), "{method}: {message}");
    }
    assert_eq!(peer.call("config.get", Value::Null).unwrap(), before);
}

#[test]
fn one_thing_is_listed_by_its_name() {
    let fixture = Fixture::new();
    let mut peer = fixture.connect();
    let hbas = peer.call("hbas", json!({ "name": "u" })).unwrap();
    assert_eq!(hbas.as_array().unwrap().len(), 1);
    assert_eq!(hbas[0]["name"], "u");
    let status = peer.call("status", json!({ "name": "t" })).unwrap();
    assert_eq!(status["tenants"].as_array().unwrap().len(), 1);
    assert_eq!(status["tenants"][0]["name"], "t");
    let luns = peer.call("luns", json!({ "name": "a" })).unwrap();
    assert_eq!(luns[0]["name"], "a");
    let (number, message) = peer.call("luns", json!({ "name": "t" })).unwrap_err();
    assert_eq!(number, i64::from(code::UNKNOWN));
    assert!(message.contains("no LUN is named \"t\""), "{message}");
}

#[test]
fn a_configuration_is_read_from_a_regular_file_that_is_not_too_long() {
    let fixture = Fixture::new();
    let mut peer = fixture.connect();
    let folder = TempDir::new().unwrap();
    let fifo = folder.as_path().join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RUSR).unwrap();
    let long = folder.as_path().join("long");
    let file = std::fs::File::create(&long).unwrap();
    file.set_len(1 << 40).unwrap();
    for method in ["config.check", "config.diff", "config.apply"] {
        for (path, why) in [
            (Path::new("/dev/zero"), "no regular file"),
            (&*fifo, "no regular file"),
            (&*long, "more than 2097152 bytes"),
        ] {
            let (number, message) = peer.call(method, json!({ "path": path })).unwrap_err();
            assert_eq!(number, i64::from(code::REFUSED));
            assert!(message.contains(why), "{method}: {message}");
        }
    }
}

/// An appliance with a LUN on a file, started with a file of configuration, in `folder`.
fn with_files(folder: &Path) -> (Fixture, PathBuf) {
    let disk = folder.join("disk");
    std::fs::write(&disk, [7; 4096]).unwrap();
    let text = format!(
        "name = \"s\"\n[[lun]]\nname = \"a\"\npath = {disk:?}\nsize = 2048\ncache = \
         \"write-back\"\n[[hba]]\nname = \"t\"\nuuid = \
         \"2f0c4fd2-4f6c-4b3c-9d3b-111111111111\"\nluns = {{ \"0\" = \"a\" }}\n"
    );
    let file = folder.join("a.toml");
    std::fs::write(&file, &text).unwrap();
    let appliance = Appliance::new(Config::read(&file).unwrap()).unwrap();
    (Fixture::of(appliance, &text, Some(file)), disk)
}

#[test]
fn a_configuration_is_not_saved_in_the_place_of_a_disk() {
    let folder = TempDir::new().unwrap();
    let (fixture, disk) = with_files(folder.as_path());
    let mut peer = fixture.connect();
    let link = folder.as_path().join("link");
    std::os::unix::fs::symlink(&disk, &link).unwrap();
    // What is written first would be the disk.
    let beside = folder.as_path().join("other");
    std::fs::hard_link(&disk, folder.as_path().join("other.new")).unwrap();
    for (path, why) in [
        (&*disk, "the disk of LUN \"a\""),
        (&*link, "the disk of LUN \"a\""),
        (&*beside, "the disk of LUN \"a\""),
        (Path::new("/dev/null"), "no regular file"),
        (folder.as_path(), "no regular file"),
    ] {
        let (number, message) = peer
            .call("config.save", json!({ "path": path }))
            .unwrap_err();
        assert_eq!(number, i64::from(code::REFUSED));
        assert!(message.contains(why), "{message}");
    }
    assert_eq!(std::fs::read(&disk).unwrap(), [7; 4096]);
    let new = folder.as_path().join("new.toml");
    peer.call("config.save", json!({ "path": new })).unwrap();
    assert!(new.exists());
}

#[test]
fn a_resize_that_changes_the_configuration_says_that_it_is_not_saved() {
    let folder = TempDir::new().unwrap();
    let (fixture, disk) = with_files(folder.as_path());
    let mut peer = fixture.connect();
    let grown = peer.call("lun.resize", json!({ "name": "a", "bytes": 8192 }));
    assert_eq!(grown.unwrap(), json!({ "bytes": 8192, "saved": false }));
    assert_eq!(std::fs::metadata(&disk).unwrap().len(), 8192);
    peer.call("config.save", json!({})).unwrap();
    let same = peer.call("lun.resize", json!({ "name": "a", "bytes": 8192 }));
    assert_eq!(same.unwrap(), json!({ "bytes": 8192, "saved": true }));
}

#[test]
fn a_configuration_that_is_as_its_file_again_is_saved() {
    let folder = TempDir::new().unwrap();
    let (fixture, _) = with_files(folder.as_path());
    let mut peer = fixture.connect();
    let before = peer.call("config.get", Value::Null).unwrap();
    let added = peer.call("hba.add", json!({ "name": "u" })).unwrap();
    assert_eq!(added["saved"], false);
    let removed = peer.call("hba.remove", json!({ "name": "u" })).unwrap();
    assert_eq!(removed["saved"], true);
    assert_eq!(peer.call("config.get", Value::Null).unwrap(), before);
}

/// A disk that does not say how full it is from some time on.
#[derive(Debug)]
struct Silent(Arc<AtomicBool>);

impl Disk for Silent {
    fn geometry(&self) -> Geometry {
        Geometry {
            block_size: 512,
            blocks: 1,
            physical_block_size: 512,
            read_only: true,
        }
    }

    fn usage(&self) -> Option<Usage> {
        while self.0.load(Ordering::SeqCst) {
            thread::park();
        }
        None
    }

    fn file_for(&self, _: &Op) -> Result<&Arc<OpenFile>, DiskError> {
        Err(DiskError::Gone)
    }
}

#[test]
fn disks_that_hang_are_told_from_those_that_could_not_be_asked() {
    let lun = |name: &str| format!("[[lun]]\nname = {name:?}\nkind = \"null\"\nsize = 512\n");
    let mut text = format!("name = \"s\"\n{}", lun("first"));
    // One after the other, half a second for each would be longer than a client waits.
    for number in 0..60 {
        text += &lun(&format!("hangs{number}"));
    }
    text += &lun("last");
    let config = Config::parse(&text, Path::new("a.toml")).unwrap();
    let hang = Arc::new(AtomicBool::new(false));
    let hangs = Arc::clone(&hang);
    let appliance = Appliance::with_disks(config, move |lun| {
        if lun.name.starts_with("hangs") {
            return Ok(Arc::new(Silent(Arc::clone(&hangs))));
        }
        open_disk(lun)
    });
    hang.store(true, Ordering::SeqCst);
    let fixture = Fixture::of(appliance.unwrap(), &text, None);
    let disks = fixture.connect().call("disks", Value::Null).unwrap();
    let disks = disks.as_array().unwrap();
    assert_eq!(disks.len(), 62);
    assert_eq!(disks[0]["state"], "ok");
    assert_eq!(disks[1]["state"], "disk does not answer");
    assert_eq!(disks[61]["state"], "not asked: other disks do not answer");
}
