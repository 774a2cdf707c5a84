//! A monitoring system watches the appliance while tenants work.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests do")]

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{fs, thread};

use promql_parser::parser::{self, Expr};
use promql_parser::util::{ExprVisitor, walk_expr};
use serde_json::{Value, json};
use spec::virtio_scsi::task_management::{LOGICAL_UNIT_RESET, QUERY_TASK_SET};
use tests::openmetrics;
use tests::world::{
    Attach, BLOCK, Command, Lun, MIB, Metrics, Operator, PATIENCE, Scrape, Shape, Tenant, Trouble,
    World, address, eventually, read10, write10,
};

/// The HBA and the LUN of most tests, as labels.
const HERE: &str = "{tenant=\"hba0\",lun=\"lun0\"}";

/// Meets unit attentions until there are none.
fn meet_attentions(tenant: &mut Tenant) {
    while tenant.initiator().ready(0).is_err() {}
}

/// The value of a series about the HBA and LUN of most tests.
fn here(scrape: &Scrape, name: &str) -> f64 {
    scrape.value(&format!("{name}{HERE}"))
}

fn state(scrape: &Scrape, state: &str) -> f64 {
    scrape.value(&format!(
        "vhost_pci_tenant_state{{tenant=\"hba0\",state=\"{state}\"}}"
    ))
}

#[test]
fn what_a_tenant_did_is_what_a_scrape_counts() {
    let world = World::of_suite(env!("CARGO_CRATE_NAME"))
        .lun(Lun::file(MIB))
        .start();
    let metrics = world.control(None).metrics();
    let mut tenant = world.tenant();
    meet_attentions(&mut tenant);
    let before = metrics.scrape();
    for _ in 0..10 {
        tenant.initiator().write(0, 7, &[1; 4 * BLOCK]).unwrap();
        tenant.initiator().read(0, 7, 2).unwrap();
    }
    tenant.initiator().read(0, u32::MAX, 1).unwrap_err();
    let nowhere = Command::new(9, &[0; 6]);
    tenant.initiator().command(&nowhere).unwrap();
    let queried = tenant.task_management(QUERY_TASK_SET, address(0), 0);
    assert_eq!(queried, Some(0));

    let after = metrics.scrape();

    let grew = |series: &str| after.value(series) - before.value(series);
    let grew_here = |name: &str| grew(&format!("{name}{HERE}"));
    assert_eq!(grew_here("vhost_pci_commands_total"), 21.0);
    assert_eq!(grew_here("vhost_pci_writes_total"), 10.0);
    assert_eq!(grew_here("vhost_pci_reads_total"), 10.0);
    assert_eq!(
        grew_here("vhost_pci_written_bytes_total"),
        10.0 * 4.0 * 512.0
    );
    assert_eq!(grew_here("vhost_pci_read_bytes_total"), 10.0 * 2.0 * 512.0);
    for time in ["command_duration", "command_queued", "command_disk"] {
        assert_eq!(grew_here(&format!("vhost_pci_{time}_seconds_count")), 21.0);
        let last =
            format!("vhost_pci_{time}_seconds_bucket{{le=\"+Inf\",tenant=\"hba0\",lun=\"lun0\"}}");
        assert_eq!(grew(&last), 21.0);
    }
    let of = |labels: &str| format!("{{tenant=\"hba0\",{labels}}}");
    let illegal = of("lun=\"lun0\",sense_key=\"illegal_request\"");
    assert_eq!(
        grew(&format!("vhost_pci_check_conditions_total{illegal}")),
        1.0
    );
    let tenant_only = "{tenant=\"hba0\"}";
    assert_eq!(
        grew(&format!("vhost_pci_commands_elsewhere_total{tenant_only}")),
        1.0
    );
    let query = of("function=\"query_task_set\"");
    assert_eq!(
        grew(&format!("vhost_pci_task_management_total{query}")),
        1.0
    );
    assert_eq!(
        grew(&format!(
            "vhost_pci_queue_requests_total{}",
            of("queue=\"0\"")
        )),
        1.0
    );
    assert_eq!(
        grew(&format!(
            "vhost_pci_queue_requests_total{}",
            of("queue=\"2\"")
        )),
        22.0
    );
    // At most one for each request; which way depends on whether the shim slept.
    let calls: f64 = ["trapped", "avoided", "eventfd"]
        .map(|way| {
            grew(&format!(
                "vhost_pci_calls_total{}",
                of(&format!("doorbell=\"{way}\""))
            ))
        })
        .iter()
        .sum();
    assert!((1.0..=23.0).contains(&calls), "{calls}");
    assert!(grew(&format!("vhost_pci_kicks_total{tenant_only}")) >= 1.0);
    assert_eq!(
        (state(&after, "attached"), state(&after, "silent")),
        (1.0, 0.0)
    );
    assert_eq!(
        after.value("vhost_pci_lun_size_bytes{lun=\"lun0\"}"),
        1_048_576.0
    );
}

#[test]
fn a_scrape_is_openmetrics_and_says_so() {
    let world = World::of_suite(env!("CARGO_CRATE_NAME"))
        .lun(Lun::file(MIB))
        .another_hba()
        .start();
    let metrics = world.control(None).metrics();
    let mut tenant = world.tenant();
    meet_attentions(&mut tenant);

    let scrape = metrics.scrape();

    let kind = "\r\nContent-Type: application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert!(scrape.head.contains(kind), "{}", scrape.head);
    assert!(scrape.text.ends_with("# EOF\n"));
    let families = openmetrics::read(&scrape.text).unwrap();
    for name in families.keys() {
        assert!(name.starts_with("vhost_pci_"), "{name}");
    }
    let health = metrics.get("/healthz");
    assert!(health.head.starts_with("HTTP/1.1 200 OK\r\n"));
    assert_eq!(health.text, "ok\n");
    assert!(metrics.get("/").head.starts_with("HTTP/1.1 404 "));
}

#[test]
fn the_control_protocol_gives_the_same_text() {
    let world = World::of_suite(env!("CARGO_CRATE_NAME"))
        .lun(Lun::file(MIB))
        .start();
    let control = world.control(None);
    let result = control.operator().call("metrics", &Value::Null).unwrap();
    let given = result["text"].as_str().unwrap();
    let served = control.metrics().scrape();
    let names = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| line.starts_with("# TYPE "));
        lines.map(str::to_owned).collect()
    };
    assert_eq!(names(given), names(&served.text));
    assert!(given.ends_with("# EOF\n"));
}

#[test]
fn counts_go_on_when_the_hba_is_attached_again() {
    let mut world = World::of_suite(env!("CARGO_CRATE_NAME"))
        .lun(Lun::file(MIB))
        .start();
    let metrics = world.control(None).metrics();
    let attachments = "vhost_pci_attachments_total{tenant=\"hba0\"}";
    let mut tenant = world.tenant();
    meet_attentions(&mut tenant);
    tenant.initiator().read(0, 0, 1).unwrap();
    let first = metrics.scrape();
    assert_eq!(first.value(attachments), 1.0);

    drop(tenant);
    eventually("the function is unplugged", || !world.is_plugged(0));
    // Nobody is there to be asked.
    let between = metrics.scrape();
    assert_eq!(state(&between, "absent"), 1.0);
    assert!(here(&between, "vhost_pci_commands_total") >= here(&first, "vhost_pci_commands_total"));
    let gone = "vhost_pci_disconnects_total{tenant=\"hba0\"}";
    assert!(between.value(gone) > first.value(gone));

    let mut tenant = world.tenant();
    meet_attentions(&mut tenant);
    tenant.initiator().read(0, 0, 1).unwrap();
    let second = metrics.scrape();
    assert_eq!(second.value(attachments), 2.0);
    let reads = here(&second, "vhost_pci_reads_total");
    assert_eq!(reads, 2.0);
    let turns = "vhost_pci_worker_turns_total{tenant=\"hba0\"}";
    assert!(second.value(turns) > between.value(turns));
    world.stop_appliance();
}

#[test]
fn a_reset_of_a_lun_and_of_the_hba_are_counted() {
    let world = World::of_suite(env!("CARGO_CRATE_NAME"))
        .lun(Lun::file(MIB))
        .start();
    let metrics = world.control(None).metrics();
    let mut tenant = world.tenant();
    meet_attentions(&mut tenant);
    let resets = "vhost_pci_resets_total{tenant=\"hba0\"}";
    let before = metrics.scrape();
    tenant.task_management(LOGICAL_UNIT_RESET, address(0), 0);
    tenant.reset().unwrap();

    let after = metrics.scrape();

    let function =
        "vhost_pci_task_management_total{tenant=\"hba0\",function=\"logical_unit_reset\"}";
    assert_eq!(after.value(function) - before.value(function), 1.0);
    assert!(after.value(resets) > before.value(resets));
}

#[test]
fn a_worker_that_polls_counts_how_often() {
    let world = World::of_suite(env!("CARGO_CRATE_NAME"))
        .lun(Lun::file(MIB))
        .poll("\"always\"")
        .start();
    let metrics = world.control(None).metrics();
    let _tenant = world.tenant();
    let polls = "vhost_pci_polls_total{tenant=\"hba0\"}";
    let before = metrics.scrape().value(polls);
    assert!(metrics.scrape().value(polls) > before);
}

#[test]
fn over_a_socket_calls_are_by_eventfd() {
    let world = World::over(Attach::Socket).lun(Lun::file(MIB)).start();
    let metrics = world.control(None).metrics();
    let mut tenant = world.tenant();
    meet_attentions(&mut tenant);
    let scrape = metrics.scrape();
    let way = |way| format!("vhost_pci_calls_total{{tenant=\"hba0\",doorbell=\"{way}\"}}");
    assert!(scrape.value(&way("eventfd")) >= 1.0);
    assert_eq!(scrape.value(&way("trapped")), 0.0);
}

#[test]
fn a_worker_that_hangs_is_told_of_soon_and_its_counts_stay() {
    let world = World::of_suite(env!("CARGO_CRATE_NAME"))
        .lun(Lun::file(MIB).gated())
        .another_hba()
        .lun(Lun::file(MIB))
        .start();
    let metrics = world.control(None).metrics();
    let mut tenant = world.tenant();
    let mut other = world.tenant_of(1, Shape::default());
    meet_attentions(&mut tenant);
    meet_attentions(&mut other);
    let calm = metrics.scrape();
    assert_eq!(
        (state(&calm, "attached"), state(&calm, "silent")),
        (1.0, 0.0)
    );

    world.gate(0).trouble(Some(Trouble::Blocks));
    let write = Command::new(0, &write10(0, 1)).data_out(&[1; BLOCK]);
    let task = tenant.initiator().submit(&write);
    eventually("the worker hangs", || world.gate(0).waiting() > 0);
    let start = Instant::now();
    let told = metrics.scrape();
    let took = start.elapsed();

    assert!(took < Duration::from_secs(10), "{took:?}");
    assert_eq!(
        (state(&told, "attached"), state(&told, "silent")),
        (0.0, 1.0)
    );
    let unanswered = "vhost_pci_worker_unanswered_total{tenant=\"hba0\"}";
    assert_eq!(told.value(unanswered), calm.value(unanswered) + 1.0);
    let commands = "vhost_pci_commands_total";
    assert_eq!(here(&told, commands), here(&calm, commands));
    // The other is served, and tells.
    other.initiator().read(0, 0, 1).unwrap();
    let its = "vhost_pci_reads_total{tenant=\"hba1\",lun=\"lun1\"}";
    assert_eq!(metrics.scrape().value(its), 1.0);

    world.gate(0).trouble(None);
    tenant.initiator().wait_for(task, PATIENCE).unwrap();
    let again = metrics.scrape();
    assert_eq!(state(&again, "attached"), 1.0);
    assert_eq!(here(&again, commands), here(&calm, commands) + 1.0);
}

#[test]
fn a_disk_that_is_full_shows_as_a_pause() {
    let world = World::of_suite(env!("CARGO_CRATE_NAME"))
        .lun(Lun::file(MIB).gated().pauses())
        .start();
    let metrics = world.control(None).metrics();
    let mut tenant = world.tenant();
    meet_attentions(&mut tenant);
    let at = "{tenant=\"hba0\",lun=\"lun0\",at=\"0:0\"}";
    assert_eq!(
        metrics.scrape().value(&format!("vhost_pci_lun_paused{at}")),
        0.0
    );
    world.gate(0).trouble(Some(Trouble::Full));
    let write = Command::new(0, &write10(0, 1)).data_out(&[1; BLOCK]);
    let task = tenant.initiator().submit(&write);
    eventually("the LUN pauses", || {
        metrics.scrape().value(&format!("vhost_pci_lun_paused{at}")) == 1.0
    });
    let scrape = metrics.scrape();
    assert_eq!(scrape.value(&format!("vhost_pci_lun_held{at}")), 1.0);
    assert_eq!(scrape.value(&format!("vhost_pci_lun_in_flight{at}")), 1.0);
    world.gate(0).trouble(None);
    tenant.initiator().wait_for(task, PATIENCE).unwrap();
}

#[test]
fn commands_that_a_limit_keeps_are_gauged_by_tenant_and_lun() {
    let world = World::new().lun(Lun::file(MIB)).lun(Lun::file(MIB)).start();
    let control = world.control(None);
    let (metrics, mut operator) = (control.metrics(), control.operator());
    let mut tenant = world.tenant();
    meet_attentions(&mut tenant);
    let lun = |lun: u8| format!("{{tenant=\"hba0\",lun=\"lun{lun}\",at=\"0:{lun}\"}}");
    let limited = |scrape: &Scrape, of| scrape.value(&format!("vhost_pci_lun_limited{}", lun(of)));
    assert_eq!(limited(&metrics.scrape(), 0), 0.0);
    let mut limit = |bytes: u64| {
        let params = json!({ "name": "lun0", "bytes_per_second": bytes });
        operator.call("lun.limit", &params).unwrap();
    };
    // The first owes 510 of its bytes: none after it comes before that is paid, in minutes.
    limit(1);
    let read = Command::new(0, &read10(0, 1)).data_in(BLOCK);
    let tasks: Vec<_> = (0..10).map(|_| tenant.initiator().submit(&read)).collect();
    tenant.initiator().wait_for(tasks[0], PATIENCE).unwrap();

    let mut scrape = metrics.scrape();
    eventually("the others are kept", || {
        scrape = metrics.scrape();
        limited(&scrape, 0) == 9.0
    });

    let in_flight = format!("vhost_pci_lun_in_flight{}", lun(0));
    assert_eq!(scrape.value(&in_flight), 9.0);
    assert_eq!(limited(&scrape, 1), 0.0);
    limit(0);
    for task in &tasks[1..] {
        let outcome = tenant.initiator().wait_for(*task, PATIENCE).unwrap();
        outcome.good().unwrap();
    }
    assert_eq!(limited(&metrics.scrape(), 0), 0.0);
}

/// Clients that do what no client should, until told to stop.
fn torment(metrics: &Metrics, stop: &AtomicBool) {
    let mut slow = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        // One that asks byte by byte, one that asks nonsense, one that asks much, one that does
        // not read what it asked for.
        slow.truncate(8);
        let mut client = metrics.connect();
        let _ = client.write_all(b"G");
        slow.push(client);
        let mut client = metrics.connect();
        let _ = client.write_all(b"\0\xff\r\n\r\n");
        let mut client = metrics.connect();
        let _ = client.write_all(&[b'A'; 64 << 10]);
        let mut client = metrics.connect();
        let _ = client.write_all(b"GET /metrics HTTP/1.1\r\n\r\n");
        slow.push(client);
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn hostile_clients_disturb_neither_the_tenant_nor_a_scrape() {
    let world = World::of_suite(env!("CARGO_CRATE_NAME"))
        .lun(Lun::file(MIB))
        .start();
    let metrics = world.control(None).metrics();
    let mut tenant = world.tenant();
    meet_attentions(&mut tenant);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| torment(&metrics, &stop));
        let deadline = Instant::now() + Duration::from_secs(3);
        let mut scrapes = 0;
        while Instant::now() < deadline {
            for part in 0..16_u8 {
                let lba = u32::from(part) * 64;
                tenant
                    .initiator()
                    .write(0, lba, &[part; 8 * BLOCK])
                    .unwrap();
                assert_eq!(
                    tenant.initiator().read(0, lba, 8).unwrap(),
                    [part; 8 * BLOCK]
                );
            }
            // It may be sent away while all places are taken.
            let mut client = metrics.connect();
            let _ = client.write_all(b"GET /metrics HTTP/1.1\r\n\r\n");
            let mut response = String::new();
            if client.read_to_string(&mut response).is_ok() && response.ends_with("# EOF\n") {
                scrapes += 1;
            }
        }
        stop.store(true, Ordering::Relaxed);
        assert!(scrapes > 0);
    });
    let scrape = metrics.scrape();
    assert_eq!(state(&scrape, "attached"), 1.0);
    assert_eq!(here(&scrape, "vhost_pci_commands_other_status_total"), 0.0);
}

#[test]
fn more_clients_than_there_may_be_are_sent_away_until_others_are_gone() {
    let world = World::of_suite(env!("CARGO_CRATE_NAME"))
        .lun(Lun::file(MIB))
        .start();
    let metrics = world.control(None).metrics();
    let silent: Vec<_> = (0..32).map(|_| metrics.connect()).collect();
    let mut one_more = metrics.connect();
    // Its connection ends, without having been asked anything.
    assert_eq!(one_more.read(&mut [0]).unwrap_or(0), 0);
    drop(silent);
    eventually("there is room again", || {
        let mut client = metrics.connect();
        let _ = client.write_all(b"GET /healthz HTTP/1.1\r\n\r\n");
        let mut response = String::new();
        client.read_to_string(&mut response).is_ok() && response.ends_with("ok\n")
    });
}

// --- Where they are served ---------------------------------------------------------------------

/// Puts what is in force now into force with metrics at another place; returns what changed.
fn serve_at(operator: &mut Operator, place: &str) -> Result<Vec<String>, String> {
    apply(operator, &format!("[metrics]\nlisten = {place:?}\n"))
}

/// Puts what is in force now, without `[metrics]`, into force with this behind it.
fn apply(operator: &mut Operator, more: &str) -> Result<Vec<String>, String> {
    let text = operator.call("config.get", &Value::Null).unwrap();
    let text = text["text"].as_str().unwrap();
    let (text, _) = text.split_once("[metrics]").unwrap_or((text, ""));
    let text = format!("{text}\n{more}");
    let applied = operator.call("config.apply", &json!({ "text": text }))?;
    let changes = applied["changes"].as_array().unwrap().iter();
    Ok(changes
        .map(|change| change.as_str().unwrap().to_owned())
        .collect())
}

/// The address at which they are served now, of a change that made nothing else.
fn address_of(changes: &[String]) -> SocketAddr {
    let [change] = changes else {
        panic!("{changes:?}");
    };
    let address = change.strip_prefix("metrics are served at ").unwrap();
    address.parse().unwrap()
}

fn is_refused(address: SocketAddr) -> bool {
    TcpStream::connect(address).is_err()
}

#[test]
fn metrics_begin_move_and_end_with_the_configuration_while_a_tenant_works() {
    let world = World::new().lun(Lun::file(MIB)).start();
    let control = world.control(None);
    let mut operator = control.operator();
    let mut tenant = world.tenant();
    meet_attentions(&mut tenant);
    let mut reads = 0.0;
    let mut read = |metrics: &Metrics| {
        tenant.initiator().read(0, 0, 1).unwrap();
        reads += 1.0;
        assert_eq!(here(&metrics.scrape(), "vhost_pci_reads_total"), reads);
    };

    let first = address_of(&serve_at(&mut operator, "127.0.0.1:0").unwrap());
    read(&Metrics::at(first));
    let same = serve_at(&mut operator, "127.0.0.1:0").unwrap();
    assert_eq!(same, ["nothing is different"]);
    read(&Metrics::at(first));

    let second = address_of(&serve_at(&mut operator, "127.0.0.2:0").unwrap());
    assert!(is_refused(first), "it is still served there");
    read(&Metrics::at(second));

    let last = apply(&mut operator, "").unwrap();
    assert_eq!(last, ["metrics are served nowhere"]);
    assert!(is_refused(second), "it is still served there");
    tenant.initiator().read(0, 0, 1).unwrap();
}

#[test]
fn a_place_that_cannot_be_listened_on_refuses_the_whole_change() {
    let world = World::new().lun(Lun::file(MIB)).start();
    let control = world.control(None);
    let mut operator = control.operator();
    let before = address_of(&serve_at(&mut operator, "127.0.0.1:0").unwrap());
    let in_force = operator.call("config.get", &Value::Null).unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let more = "[[lun]]\nname = \"more\"\nkind = \"null\"\nsize = 512\n";
    let both = format!("{more}[metrics]\nlisten = \"{address}\"\n");

    let refused = apply(&mut operator, &both).unwrap_err();

    let said = format!(
        "nothing was changed, as metrics cannot be served there: cannot listen on {address}"
    );
    assert!(refused.starts_with(&said), "{refused}");
    assert!(refused.ends_with("and its port free?"), "{refused}");
    assert_eq!(operator.call("config.get", &Value::Null), Ok(in_force));
    let luns = operator.call("luns", &Value::Null).unwrap();
    assert_eq!(luns.as_array().unwrap().len(), 1);
    Metrics::at(before).scrape();
    // Whoever had the port is gone: now all of it is done.
    drop(taken);
    let applied = apply(&mut operator, &both).unwrap();
    let moved = format!("metrics are served at {address}");
    assert_eq!(applied, ["LUNs added: more", &moved]);
    assert!(is_refused(before), "it is still served there");
    Metrics::at(address).scrape();
}

#[test]
fn a_change_that_is_refused_for_another_reason_leaves_metrics_where_they_are() {
    let world = World::new().lun(Lun::file(MIB)).start();
    let control = world.control(None);
    let mut operator = control.operator();
    let before = address_of(&serve_at(&mut operator, "127.0.0.1:0").unwrap());
    let socket = std::env::temp_dir().join(format!("metrics-{}", uuid::Uuid::new_v4()));
    let metrics = format!("[metrics]\nlisten = {socket:?}\n");
    let more = "[[lun]]\nname = \"more\"\npath = \"/does/not/exist\"\n";

    let refused = apply(&mut operator, &format!("{more}{metrics}")).unwrap_err();

    assert!(refused.contains("LUN \"more\""), "{refused}");
    assert!(!socket.exists(), "it is served there");
    Metrics::at(before).scrape();
    let applied = apply(&mut operator, &metrics).unwrap();
    let moved = format!("metrics are served at {}", socket.display());
    assert_eq!(applied, [moved]);
    assert!(is_refused(before), "it is still served there");
    // With whoever serves them.
    drop(control);
    assert!(!socket.exists(), "it stays behind");
}

#[test]
fn all_addresses_of_the_port_in_use_are_to_be_had_in_two_steps() {
    let world = World::new().lun(Lun::file(MIB)).start();
    let control = world.control(None);
    let mut operator = control.operator();
    let one = address_of(&serve_at(&mut operator, "127.0.0.1:0").unwrap());
    let all = format!("0.0.0.0:{}", one.port());

    let refused = serve_at(&mut operator, &all).unwrap_err();

    let why = format!("cannot listen on {all}: its port is that of {one}, where they are served");
    assert!(refused.contains(&why), "{refused}");
    assert!(refused.contains("without [metrics] first"), "{refused}");
    Metrics::at(one).scrape();
    apply(&mut operator, "").unwrap();
    let applied = serve_at(&mut operator, &all).unwrap();
    assert_eq!(applied, [format!("metrics are served at {all}")]);
    Metrics::at(one).scrape();
}

// --- What is made of them ----------------------------------------------------------------------

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../appliance")
        .join(name)
}

/// A scrape of an appliance whose tenant has done something.
fn usual() -> Scrape {
    let world = World::of_suite(env!("CARGO_CRATE_NAME"))
        .lun(Lun::file(MIB))
        .start();
    let metrics = world.control(None).metrics();
    let mut tenant = world.tenant();
    meet_attentions(&mut tenant);
    metrics.scrape()
}

/// The metrics and label values that an expression names.
#[derive(Default)]
struct Named {
    metrics: BTreeSet<String>,
    /// Label and value, of matchers for equality.
    labels: BTreeSet<(String, String)>,
}

impl ExprVisitor for Named {
    type Error = ();

    fn pre_visit(&mut self, expr: &Expr) -> Result<bool, ()> {
        let selector = match expr {
            Expr::VectorSelector(selector) => selector,
            Expr::MatrixSelector(matrix) => &matrix.vs,
            _ => return Ok(true),
        };
        self.metrics.extend(selector.name.clone());
        for matcher in &selector.matchers.matchers {
            let values = matcher.value.split('|');
            let values = values.filter(|value| !value.starts_with('$'));
            let values = values.map(|value| (matcher.name.clone(), value.to_owned()));
            self.labels.extend(values);
        }
        Ok(true)
    }
}

/// Checks an expression: that it is one, of metrics and label values of the scrape.
fn check(expression: &str, scrape: &Scrape) {
    // What Grafana puts in its place.
    let expression = expression.replace("$__rate_interval", "5m");
    let parsed = parser::parse(&expression);
    let parsed = parsed.unwrap_or_else(|error| panic!("{expression}: {error}"));
    let mut named = Named::default();
    walk_expr(&mut named, &parsed).unwrap();
    assert!(!named.metrics.is_empty(), "{expression}");
    let there = scrape.names();
    for metric in &named.metrics {
        assert!(there.contains(&**metric), "{expression}: no {metric}");
    }
    for (label, value) in &named.labels {
        let pair = format!("{label}=\"{value}\"");
        assert!(scrape.text.contains(&pair), "{expression}: no {pair}");
    }
}

/// The alerts: each with its name and expression.
fn alerts() -> Vec<(String, String)> {
    let text = fs::read_to_string(shipped("monitoring/alerts.yaml")).unwrap();
    let rules: Value = serde_norway::from_str(&text).unwrap();
    let rules = rules["groups"][0]["rules"].as_array().unwrap();
    let text = |rule: &Value, key: &str| rule[key].as_str().unwrap().to_owned();
    rules
        .iter()
        .map(|rule| {
            assert!(rule["annotations"]["summary"].is_string(), "{rule}");
            let severity = text(&rule["labels"], "severity");
            assert!(["critical", "warning", "info"].contains(&&*severity));
            (text(rule, "alert"), text(rule, "expr"))
        })
        .collect()
}

#[test]
fn every_alert_is_about_metrics_that_there_are() {
    let scrape = usual();
    let alerts = alerts();
    assert!(alerts.len() > 10);
    for (_, expression) in alerts {
        check(&expression, &scrape);
    }
}

#[test]
fn every_panel_of_the_dashboard_shows_metrics_that_there_are() {
    let scrape = usual();
    let text = fs::read_to_string(shipped("monitoring/grafana.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    assert!(panels.len() > 10);
    let targets = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().unwrap());
    for target in targets {
        check(target["expr"].as_str().unwrap(), &scrape);
    }
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    for variable in variables
        .iter()
        .filter(|variable| variable["type"] == "query")
    {
        let query = variable["query"].as_str().unwrap();
        let query = query.strip_prefix("label_values(").unwrap();
        let (metric, label) = query.strip_suffix(')').unwrap().split_once(", ").unwrap();
        assert!(
            scrape.text.contains(&format!("\n{metric}{{{label}=")),
            "{metric}"
        );
    }
}

#[test]
fn a_wrong_expression_is_found() {
    let scrape = usual();
    for wrong in [
        "rate(vhost_pci_commands_total[5m]",
        "rate(vhost_pci_no_such_total[5m])",
        "vhost_pci_tenant_state{state=\"asleep\"}",
    ] {
        let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            check(wrong, &scrape);
        }));
        assert!(checked.is_err(), "{wrong}");
    }
}

#[test]
fn the_documentation_has_every_metric_and_every_alert() {
    let scrape = usual();
    let written = fs::read_to_string(shipped("docs/metrics.md")).unwrap();
    let families = openmetrics::read(&scrape.text).unwrap();
    for (name, family) in &families {
        let counter = format!("`{name}_total`");
        let is_there = written.contains(&format!("`{name}`")) || written.contains(&counter);
        assert!(is_there, "{name}: {}", family.help);
    }
    let names = written
        .split('`')
        .filter(|name| name.starts_with("vhost_pci_"));
    let there = scrape.names();
    for name in names {
        let is_there = there.contains(name) || families.contains_key(name);
        assert!(is_there, "{name} is no metric");
    }
    let documented = written.lines().filter_map(|line| line.strip_prefix("### "));
    let documented: BTreeSet<_> = documented.map(str::to_owned).collect();
    let alerts: BTreeSet<_> = alerts().into_iter().map(|(name, _)| name).collect();
    assert_eq!(documented, alerts);
}
