mod inflight;

use super::*;
use crate::device::Refusal;
use spec::mailbox::{Reply, Request, RingSetup};
use spec::ring::{EVENT_IDX, INDIRECT_DESC, VERSION_1};
use spec::session::MemoryEntry;
use spec::virtio_scsi::feature;

const MIB: u64 = 1 << 20;
/// Where the tenant's QEMU has its guest's memory.
const USER: u64 = 0x7f00_0000_0000;
const OFFERED: u64 = VERSION_1 | INDIRECT_DESC | EVENT_IDX | feature::HOTPLUG | feature::CHANGE;
const NEGOTIATED: u64 = OFFERED | PROTOCOL_FEATURES;
const PATIENCE: Duration = Duration::from_secs(10);

const FILE: FileFacts = FileFacts {
    id: FileId {
        device: 1,
        inode: 10,
    },
    len: 1024 * MIB,
    sealed: true,
};
const OTHER_FILE: FileFacts = FileFacts {
    id: FileId {
        device: 1,
        inode: 11,
    },
    ..FILE
};

fn region(guest_address: u64, len: u64) -> Region {
    Region {
        guest_address,
        len,
        user_address: USER + guest_address,
        offset: guest_address,
    }
}

fn addresses(ring: u16) -> RingAddresses {
    let at = USER + MIB + u64::from(ring) * 0x1_0000;
    RingAddresses {
        descriptor_table: at,
        avail_ring: at + 0x1000,
        used_ring: at + 0x2000,
    }
}

fn setup(ring: u16, base: Option<u16>) -> RingSetup {
    let at = MIB + u64::from(ring) * 0x1_0000;
    RingSetup {
        ring,
        size: 128,
        base,
        inflight: None,
        descriptor_table: at,
        avail_ring: at + 0x1000,
        used_ring: at + 0x2000,
    }
}

fn table() -> Step {
    Step::Memory(vec![MemoryEntry {
        guest_address: 0,
        len: 1024 * MIB,
        bar_offset: 0,
    }])
}

fn request(request: Request) -> Action {
    Action::Post(Step::Request(request))
}

fn start(setup: RingSetup) -> Action {
    request(Request::StartRing(setup))
}

fn stop(ring: u16) -> Action {
    request(Request::StopRing { ring })
}

fn features() -> Action {
    request(Request::SetFeatures { features: OFFERED })
}

/// A session and the calls made to it.
struct Bench {
    session: Session,
    now: Instant,
    calls: CallId,
}

impl Bench {
    /// Four rings: control, event, two request queues.
    fn new() -> Self {
        Self {
            session: Session::new(Limits {
                rings: 4,
                features: OFFERED,
                patience: PATIENCE,
                trusted: None,
            }),
            now: Instant::now(),
            calls: 0,
        }
    }

    /// With a connected tenant.
    fn connected() -> Self {
        let mut bench = Self::new();
        bench.event(Event::Connected);
        bench
    }

    /// With a connected tenant whose ring 2 an attached appliance runs.
    fn running() -> Self {
        let mut bench = Self::connected();
        bench.linux_start(&[2]);
        bench.event(Event::Window(Some(FILE.id)));
        bench.event(Event::Attached { tracks: true });
        bench.serve(&[]);
        assert!(bench.session.runs(2));
        bench
    }

    fn event(&mut self, event: Event) -> Vec<Action> {
        self.session.handle(self.now, event);
        std::iter::from_fn(|| self.session.next_action()).collect()
    }

    fn later(&mut self, by: Duration) -> Vec<Action> {
        self.now += by;
        self.event(Event::Tick)
    }

    fn call(&mut self, call: Call) -> Vec<Action> {
        self.calls += 1;
        self.event(Event::Call(self.calls, call))
    }

    /// A call that is answered at once, without anything else to do.
    fn answered(&mut self, call: Call) {
        let actions = self.call(call.clone());
        let answers: Vec<_> = actions
            .iter()
            .filter(|action| matches!(action, Action::Answer(..)))
            .collect();
        assert_eq!(
            answers,
            [&Action::Answer(self.calls, Ok(Answer::Done))],
            "{call:?}"
        );
    }

    fn refused(&mut self, call: Call) -> Refused {
        let actions = self.call(call);
        match actions.as_slice() {
            [.., Action::Answer(_, Err(refused))] => *refused,
            other => panic!("not refused: {other:?}"),
        }
    }

    /// Describes `rings` as QEMU does before it enables any (facts: SET_VRING_NUM, BASE, ADDR,
    /// KICK).
    fn describe(&mut self, rings: &[u16], base: u32) {
        for &ring in rings {
            self.answered(Call::SetSize { ring, size: 128 });
            self.answered(Call::SetBase { ring, base });
            self.answered(Call::SetAddresses {
                ring,
                addresses: addresses(ring),
            });
            self.answered(Call::SetKick {
                ring,
                present: true,
            });
        }
    }

    /// SET_VRING_ENABLE for all rings, as QEMU sends it whether they are configured or not.
    fn enable_all(&mut self, enabled: bool) {
        for ring in 0..4 {
            self.answered(Call::SetEnabled { ring, enabled });
        }
    }

    /// A start by QEMU with these rings configured, memory unknown before. No appliance.
    fn linux_start(&mut self, rings: &[u16]) {
        self.answered(Call::SetFeatures(NEGOTIATED));
        self.answered(Call::AddRegion(region(0, 1024 * MIB), FILE));
        self.describe(rings, 0);
        self.enable_all(true);
    }

    /// Answers everything posted until nothing is; returns what was posted after `posted`,
    /// each StopRing answered with base 77.
    fn serve(&mut self, posted: &[Action]) -> Vec<Action> {
        let mut seen = Vec::new();
        let mut pending = posted.to_vec();
        // The step that may be outstanding already.
        loop {
            let Some(outstanding) = self.session.outstanding.as_ref() else {
                seen.extend(pending);
                return seen;
            };
            let reply = match outstanding.change {
                delivery::Change::Stop(_) => Reply::Base(77),
                _ => Reply::Done,
            };
            seen.append(&mut pending);
            pending = self.event(Event::Replied(reply));
        }
    }
}

fn posts(actions: &[Action]) -> Vec<&Action> {
    actions
        .iter()
        .filter(|action| matches!(action, Action::Post(_)))
        .collect()
}

// covers: VPCI-INF-11
#[test]
fn an_appliance_that_attaches_late_gets_features_memory_and_rings_in_this_order() {
    let mut bench = Bench::connected();
    bench.linux_start(&[0, 1, 2]);
    assert!(bench.session.has_work());
    bench.event(Event::Window(Some(FILE.id)));

    let first = bench.event(Event::Attached { tracks: true });
    let all = bench.serve(&first);

    assert_eq!(
        posts(&all),
        [
            &features(),
            &Action::Post(table()),
            &start(setup(1, Some(0))),
            &start(setup(2, Some(0))),
            &start(setup(0, Some(0))),
        ]
    );
}

#[test]
fn each_ring_is_kicked_and_called_once_when_it_runs() {
    let mut bench = Bench::connected();
    bench.linux_start(&[2]);
    bench.event(Event::Window(Some(FILE.id)));
    let first = bench.event(Event::Attached { tracks: true });
    let all = bench.serve(&first);
    assert_eq!(
        all[all.len() - 2..],
        [Action::Kick(2), Action::Interrupt(2)]
    );
}

#[test]
fn nothing_is_posted_while_the_function_shows_another_file() {
    let mut bench = Bench::connected();
    bench.linux_start(&[2]);
    bench.event(Event::Window(Some(OTHER_FILE.id)));
    assert_eq!(bench.event(Event::Attached { tracks: true }), []);
    bench.event(Event::Detached);
    bench.event(Event::Window(Some(FILE.id)));
    assert_eq!(bench.event(Event::Attached { tracks: true }), [features()]);
}

#[test]
fn seabios_boots_with_one_of_four_rings_and_linux_takes_over_after_a_reset() {
    let mut bench = Bench::connected();
    bench.answered(Call::ResetDevice);
    // SeaBIOS configures only ring 2, but QEMU enables all.
    bench.linux_start(&[2]);
    bench.event(Event::Window(Some(FILE.id)));
    let first = bench.event(Event::Attached { tracks: true });
    assert_eq!(
        posts(&bench.serve(&first)).last(),
        Some(&&start(setup(2, Some(0))))
    );

    // Stop: SET_VRING_ENABLE 0 for all, GET_VRING_BASE for the configured ring, RESET_DEVICE.
    let mut posted = Vec::new();
    for ring in 0..4 {
        posted.extend(bench.call(Call::SetEnabled {
            ring,
            enabled: false,
        }));
    }
    assert_eq!(posts(&posted), [&stop(2)]);
    assert_eq!(
        bench.call(Call::GetBase { ring: 2 }),
        [Action::ForgetKick(2)]
    );
    let asked = bench.calls;
    assert_eq!(
        bench.event(Event::Replied(Reply::Base(19))),
        [Action::Answer(asked, Ok(Answer::Base(19)))]
    );
    let reset = bench.call(Call::ResetDevice);
    assert_eq!(posts(&reset), [&request(Request::Reset)]);
    bench.event(Event::Replied(Reply::Done));

    // Linux: all rings, the memory table has grown (PAM opened) over the same file.
    let again = bench.call(Call::SetFeatures(NEGOTIATED));
    let mut all = bench.serve(&again);
    for ring in 0..4 {
        bench.describe(&[ring], 0);
    }
    for ring in 0..4 {
        let enabled = bench.call(Call::SetEnabled {
            ring,
            enabled: true,
        });
        all.extend(bench.serve(&enabled));
    }
    let order = [1, 2, 3, 0].into_iter();
    let expected: Vec<_> = order.map(|ring| start(setup(ring, Some(0)))).collect();
    assert_eq!(posts(&all)[0], &features());
    assert_eq!(posts(&all)[1..], expected.iter().collect::<Vec<_>>());
}

#[test]
fn a_ring_that_never_ran_answers_its_recorded_base_at_once() {
    let mut bench = Bench::connected();
    bench.describe(&[2], 55);
    let actions = bench.call(Call::GetBase { ring: 2 });
    assert_eq!(
        actions.last(),
        Some(&Action::Answer(bench.calls, Ok(Answer::Base(55))))
    );
}

#[test]
fn get_vring_base_waits_until_the_appliance_has_drained_the_ring() {
    let mut bench = Bench::running();
    assert_eq!(
        bench.call(Call::GetBase { ring: 2 }),
        [Action::ForgetKick(2), stop(2)]
    );
    assert_eq!(bench.later(PATIENCE - Duration::from_millis(1)), []);
    assert_eq!(
        bench.event(Event::Replied(Reply::Base(123))),
        [Action::Answer(bench.calls, Ok(Answer::Base(123)))]
    );
    assert!(!bench.session.runs(2));
}

#[test]
fn get_vring_base_past_the_deadline_is_refused_and_the_appliance_turned_away() {
    let mut bench = Bench::running();
    bench.call(Call::GetBase { ring: 2 });
    assert_eq!(bench.session.deadline(), Some(bench.now + PATIENCE));

    let actions = bench.later(PATIENCE);

    assert!(matches!(
        actions.as_slice(),
        [
            Action::Answer(_, Err(Refused::NotStopped { ring: 2, .. })),
            Action::TurnAway(Refusal::Timeout)
        ]
    ));
    assert_eq!(bench.session.deadline(), None);
}

#[test]
fn stop_and_cont_hand_the_base_back() {
    let mut bench = Bench::running();
    bench.enable_all(false);
    bench.call(Call::GetBase { ring: 2 });
    bench.event(Event::Replied(Reply::Base(9)));

    // cont: SET_FEATURES again, no memory message, the ring with the base it gave.
    bench.answered(Call::SetFeatures(NEGOTIATED));
    bench.describe(&[2], 9);
    let mut posted = Vec::new();
    for ring in 0..4 {
        posted.extend(bench.call(Call::SetEnabled {
            ring,
            enabled: true,
        }));
    }
    assert_eq!(posts(&posted), [&start(setup(2, Some(9)))]);
}

#[test]
fn an_appliance_that_comes_back_goes_on_from_the_used_index() {
    let mut bench = Bench::running();
    bench.event(Event::Detached);
    assert!(!bench.session.runs(2));

    let first = bench.event(Event::Attached { tracks: true });
    let all = bench.serve(&first);

    assert_eq!(
        posts(&all),
        [&features(), &Action::Post(table()), &start(setup(2, None)),]
    );
}

#[test]
fn an_appliance_lost_before_it_answered_start_ring_counts_as_having_run_it() {
    let mut bench = Bench::connected();
    bench.linux_start(&[2]);
    bench.event(Event::Window(Some(FILE.id)));
    bench.event(Event::Attached { tracks: true });
    bench.event(Event::Replied(Reply::Done));
    assert_eq!(
        bench.event(Event::Replied(Reply::Done)),
        [start(setup(2, Some(0)))]
    );
    bench.event(Event::Detached);
    let first = bench.event(Event::Attached { tracks: true });
    assert_eq!(
        posts(&bench.serve(&first)).last(),
        Some(&&start(setup(2, None)))
    );
}

#[test]
fn get_vring_base_without_an_appliance_waits_for_one_that_knows() {
    let mut bench = Bench::running();
    bench.event(Event::Detached);
    bench.enable_all(false);
    assert_eq!(
        bench.call(Call::GetBase { ring: 2 }),
        [Action::ForgetKick(2)]
    );
    let asked = bench.calls;

    let first = bench.event(Event::Attached { tracks: true });
    let all = bench.serve(&first);

    // Disabled as it is, the ring runs once more so that its used index is read.
    assert_eq!(posts(&all)[2..], [&start(setup(2, None)), &stop(2)]);
    assert_eq!(
        all.last(),
        Some(&Action::Answer(asked, Ok(Answer::Base(77))))
    );
}

#[test]
fn a_ring_whose_base_only_an_appliance_knows_is_worth_a_function() {
    let mut bench = Bench::running();
    bench.event(Event::Detached);
    bench.event(Event::Window(None));
    bench.enable_all(false);
    assert!(!bench.session.has_work());

    bench.call(Call::GetBase { ring: 2 });
    let asked = bench.calls;
    assert!(bench.session.has_work());

    bench.event(Event::Window(Some(FILE.id)));
    let first = bench.event(Event::Attached { tracks: true });
    let all = bench.serve(&first);
    assert_eq!(
        all.last(),
        Some(&Action::Answer(asked, Ok(Answer::Base(77))))
    );
    assert!(!bench.session.has_work());
}

#[test]
fn get_vring_base_without_any_appliance_is_refused_at_the_deadline() {
    let mut bench = Bench::running();
    bench.event(Event::Detached);
    bench.call(Call::GetBase { ring: 2 });
    let actions = bench.later(PATIENCE);
    let [Action::Answer(_, Err(refused))] = actions.as_slice() else {
        panic!("{actions:?}");
    };
    assert!(refused.to_string().contains("no appliance is attached"));
}

#[test]
fn a_tenant_that_reconnects_does_not_rewind_its_rings() {
    let mut bench = Bench::running();
    assert_eq!(
        bench.event(Event::Disconnected),
        [
            Action::ForgetKick(2),
            Action::ForgiveRings,
            request(Request::Disconnect)
        ]
    );
    // QEMU is back before the appliance has drained; its base is the used index it saw.
    bench.event(Event::Connected);
    bench.answered(Call::SetFeatures(NEGOTIATED));
    let memory = bench.call(Call::AddRegion(region(0, 1024 * MIB), FILE));
    assert_eq!(memory, []);
    let waits = bench.calls;
    let next = bench.event(Event::Replied(Reply::Done));
    assert_eq!(posts(&next), [&features()]);
    let next = bench.event(Event::Replied(Reply::Done));
    assert_eq!(next, [Action::Post(table())]);
    assert_eq!(
        bench.event(Event::Replied(Reply::Done)),
        [Action::Answer(waits, Ok(Answer::Done))]
    );
    bench.describe(&[2], 40);
    let mut posted = Vec::new();
    for ring in 0..4 {
        posted.extend(bench.call(Call::SetEnabled {
            ring,
            enabled: true,
        }));
    }
    assert_eq!(posts(&posted), [&start(setup(2, None))]);
}

#[test]
fn another_tenant_process_starts_its_rings_where_it_says() {
    let mut bench = Bench::running();
    bench.event(Event::Disconnected);
    bench.event(Event::Replied(Reply::Done));
    assert!(bench.session.is_settled());
    bench.event(Event::Detached);
    bench.event(Event::Window(None));

    bench.event(Event::Connected);
    bench.answered(Call::SetFeatures(NEGOTIATED));
    bench.answered(Call::SetMemory(vec![(region(0, 1024 * MIB), OTHER_FILE)]));
    bench.describe(&[2], 0);
    bench.enable_all(true);
    bench.event(Event::Window(Some(OTHER_FILE.id)));
    let first = bench.event(Event::Attached { tracks: true });
    assert_eq!(
        posts(&bench.serve(&first)).last(),
        Some(&&start(setup(2, Some(0))))
    );
}

#[test]
fn a_memory_update_is_answered_when_the_appliance_has_it() {
    let mut bench = Bench::connected();
    bench.linux_start(&[2]);
    bench.event(Event::Window(Some(FILE.id)));
    bench.event(Event::Attached { tracks: true });
    bench.serve(&[]);

    let actions = bench.call(Call::SetMemory(vec![
        (region(0, 512 * MIB), FILE),
        (region(512 * MIB, 512 * MIB), FILE),
    ]));

    let [Action::Post(Step::Memory(entries))] = actions.as_slice() else {
        panic!("{actions:?}");
    };
    assert_eq!(entries.len(), 2);
    assert_eq!(
        bench.event(Event::Replied(Reply::Done)),
        [Action::Answer(bench.calls, Ok(Answer::Done))]
    );
    assert!(bench.session.runs(2));
}

#[test]
fn a_memory_update_past_the_deadline_is_refused() {
    let mut bench = Bench::running();
    bench.call(Call::AddRegion(region(1 << 32, MIB), FILE));
    // Its offset is outside the file, so that one was refused; this one is not.
    bench.call(Call::RemoveRegion(region(0, 1024 * MIB)));
    let actions = bench.later(PATIENCE);
    assert!(actions.iter().any(|action| matches!(
        action,
        Action::Answer(_, Err(Refused::MemoryNotTaken { seconds: 10 }))
    )));
}

// covers: VPCI-RPL-7
#[test]
fn a_memory_update_is_not_acknowledged_for_an_appliance_that_hangs_on_something_older() {
    let mut bench = Bench::running();
    // The appliance never answers this one, and its time is up before the update's.
    let disable = Call::SetEnabled {
        ring: 2,
        enabled: false,
    };
    assert_eq!(posts(&bench.call(disable)), [&stop(2)]);
    bench.later(PATIENCE / 2);
    bench.call(Call::SetMemory(vec![(region(0, 512 * MIB), FILE)]));
    let update = bench.calls;

    let actions = bench.later(PATIENCE / 2);

    let refused = Action::Answer(update, Err(Refused::MemoryInUse));
    assert!(actions.contains(&Action::TurnAway(Refusal::Timeout)));
    assert!(actions.contains(&refused), "{actions:?}");
    assert_eq!(bench.event(Event::Detached), []);
}

// covers: VPCI-RPL-7
#[test]
fn a_memory_update_is_acknowledged_when_the_appliance_lets_go_by_itself() {
    let mut bench = Bench::running();
    bench.call(Call::SetMemory(vec![(region(0, 512 * MIB), FILE)]));
    assert_eq!(
        bench.event(Event::Detached),
        [Action::Answer(bench.calls, Ok(Answer::Done))]
    );
}

#[test]
fn a_ring_whose_memory_goes_away_is_stopped_before_the_table_changes() {
    let mut bench = Bench::running();
    let first = bench.call(Call::RemoveRegion(region(0, 1024 * MIB)));
    let all = bench.serve(&first);
    assert_eq!(
        posts(&all),
        [&stop(2), &Action::Post(Step::Memory(Vec::new()))]
    );
}

#[test]
fn a_second_memory_backend_is_refused() {
    let mut bench = Bench::running();
    let refused = bench.refused(Call::AddRegion(region(1 << 32, MIB), OTHER_FILE));
    assert!(refused.to_string().contains("give it one"));
    assert!(bench.session.runs(2));
}

#[test]
fn an_unsealed_memory_file_is_refused() {
    let mut bench = Bench::connected();
    let unsealed = FileFacts {
        sealed: false,
        ..FILE
    };
    let refused = bench.refused(Call::SetMemory(vec![(region(0, MIB), unsealed)]));
    assert!(refused.to_string().contains("seal=on"));
}

#[test]
fn features_that_were_not_offered_are_refused() {
    let mut bench = Bench::connected();
    let packed = 1 << 34;
    assert_eq!(
        bench.refused(Call::SetFeatures(NEGOTIATED | packed)),
        Refused::Features(packed)
    );
}

#[test]
fn rings_start_enabled_without_protocol_features() {
    let mut bench = Bench::connected();
    bench.answered(Call::SetFeatures(OFFERED));
    bench.answered(Call::SetMemory(vec![(region(0, 1024 * MIB), FILE)]));
    assert!(!bench.session.has_work());
    bench.describe(&[2], 0);
    assert!(bench.session.has_work());
}

#[test]
fn a_ring_outside_the_memory_table_is_refused_when_it_is_started() {
    let mut bench = Bench::connected();
    bench.answered(Call::SetFeatures(NEGOTIATED));
    bench.answered(Call::SetMemory(vec![(region(0, MIB), FILE)]));
    bench.describe(&[2], 0);
    assert_eq!(
        bench.refused(Call::SetEnabled {
            ring: 2,
            enabled: true
        }),
        Refused::RingOutsideMemory { ring: 2 }
    );
}

#[test]
fn a_ring_that_is_started_without_any_memory_is_refused_with_the_usual_cause() {
    let mut bench = Bench::connected();
    bench.answered(Call::SetFeatures(NEGOTIATED));
    bench.describe(&[2], 0);
    let refused = bench.refused(Call::SetEnabled {
        ring: 2,
        enabled: true,
    });
    assert_eq!(refused, Refused::NoMemory { ring: 2 });
    assert!(refused.to_string().contains("share=on"));
}

#[test]
fn nonsense_about_rings_is_refused() {
    let mut bench = Bench::connected();
    assert_eq!(
        bench.refused(Call::GetBase { ring: 4 }),
        Refused::NoSuchRing { ring: 4, rings: 4 }
    );
    assert_eq!(
        bench.refused(Call::SetSize { ring: 0, size: 100 }),
        Refused::RingSize { ring: 0, size: 100 }
    );
    assert_eq!(
        bench.refused(Call::SetBase {
            ring: 0,
            base: 0x1_0000
        }),
        Refused::RingBase {
            ring: 0,
            base: 0x1_0000
        }
    );
}

// covers: VPCI-MBX-9
#[test]
fn a_ring_that_the_appliance_refuses_is_tried_again_only_when_it_changed() {
    let mut bench = Bench::connected();
    bench.linux_start(&[2, 3]);
    bench.event(Event::Window(Some(FILE.id)));
    bench.event(Event::Attached { tracks: true });
    bench.event(Event::Replied(Reply::Done));
    bench.event(Event::Replied(Reply::Done));

    let actions = bench.event(Event::Replied(Reply::Failed(22)));
    assert_eq!(
        actions,
        [Action::RingRefused(2, 22), start(setup(3, Some(0)))]
    );
    bench.event(Event::Replied(Reply::Done));
    assert!(bench.session.runs(3));

    assert_eq!(
        posts(&bench.call(Call::SetBase { ring: 2, base: 1 })),
        [&start(setup(2, Some(1)))]
    );
}

// covers: VPCI-MBX-9
#[test]
fn an_appliance_that_fails_a_request_is_turned_away_and_gets_the_session_again() {
    let mut bench = Bench::connected();
    bench.linux_start(&[2]);
    bench.event(Event::Window(Some(FILE.id)));
    bench.event(Event::Attached { tracks: true });
    assert_eq!(
        bench.event(Event::Replied(Reply::Failed(5))),
        [Action::TurnAway(Refusal::RequestFailed)]
    );
    bench.event(Event::Detached);
    assert_eq!(bench.event(Event::Attached { tracks: true }), [features()]);
}

#[test]
fn a_reply_that_is_none_turns_the_appliance_away() {
    let mut bench = Bench::running();
    bench.call(Call::GetBase { ring: 2 });
    assert_eq!(
        bench.event(Event::BadReply),
        [Action::TurnAway(Refusal::BadReply)]
    );
}

// covers: VPCI-MBX-9
#[test]
fn a_reply_nobody_waits_for_changes_nothing() {
    let mut bench = Bench::running();
    assert_eq!(bench.event(Event::Replied(Reply::Base(3))), []);
    assert!(bench.session.runs(2));
}

#[test]
fn a_device_reset_while_a_ring_runs_stops_everything_and_forgets_the_features() {
    let mut bench = Bench::running();
    assert_eq!(
        bench.call(Call::ResetDevice),
        [
            Action::ForgetKick(2),
            Action::ForgiveRings,
            Action::Answer(bench.calls, Ok(Answer::Done)),
            request(Request::Reset)
        ]
    );
    bench.event(Event::Replied(Reply::Done));
    assert!(!bench.session.runs(2));
    assert!(bench.session.is_settled());
}

// covers: VPCI-STS-7
#[test]
fn rings_are_forgiven_when_the_tenant_leaves_and_again_when_the_appliance_knows() {
    let mut bench = Bench::running();
    let left = bench.event(Event::Disconnected);
    assert!(left.contains(&Action::ForgiveRings));
    // Until it has heard, the appliance may report one more.
    let heard = bench.event(Event::Replied(Reply::Done));
    assert_eq!(heard, [Action::ForgiveRings]);
}

#[test]
fn resets_at_boot_without_an_appliance_ask_nothing() {
    let mut bench = Bench::connected();
    for _ in 0..3 {
        assert_eq!(
            bench.call(Call::ResetDevice),
            [
                Action::ForgiveRings,
                Action::Answer(bench.calls, Ok(Answer::Done))
            ]
        );
    }
}

// covers: VPCI-MBX-9
#[test]
fn an_appliance_that_never_takes_the_disconnect_is_turned_away() {
    let mut bench = Bench::running();
    bench.event(Event::Disconnected);
    assert!(!bench.session.is_settled());
    assert_eq!(bench.later(PATIENCE), [Action::TurnAway(Refusal::Timeout)]);
    assert!(bench.session.is_settled());
}

#[test]
fn moving_a_running_ring_stops_it_first() {
    let mut bench = Bench::running();
    let first = bench.call(Call::SetAddresses {
        ring: 2,
        addresses: addresses(3),
    });
    assert_eq!(posts(&first), [&stop(2)]);
    let moved = RingSetup {
        ring: 2,
        ..setup(3, Some(77))
    };
    assert_eq!(
        posts(&bench.event(Event::Replied(Reply::Base(77)))),
        [&start(moved)]
    );
}

/// QEMU stops ring 2 and is killed before the appliance, busy with a slow disk, has drained it.
fn killed_while_stopping() -> Bench {
    let mut bench = Bench::running();
    let waits = bench.call(Call::GetBase { ring: 2 });
    assert_eq!(posts(&waits), [&stop(2)]);
    bench.event(Event::Disconnected);
    bench.event(Event::Connected);
    bench
}

#[test]
fn where_a_ring_stopped_is_not_where_the_next_tenant_process_begins() {
    let mut bench = killed_while_stopping();
    bench.answered(Call::SetFeatures(NEGOTIATED));
    // Waits for the old appliance to be gone.
    bench.call(Call::AddRegion(region(0, 1024 * MIB), OTHER_FILE));
    bench.describe(&[2], 0);
    bench.enable_all(true);
    let next = bench.event(Event::Replied(Reply::Base(41)));
    assert_eq!(posts(&next), [&request(Request::Disconnect)]);
    bench.event(Event::Replied(Reply::Done));
    bench.event(Event::Detached);
    bench.event(Event::Window(Some(OTHER_FILE.id)));
    let first = bench.event(Event::Attached { tracks: true });
    assert_eq!(
        posts(&bench.serve(&first)).last(),
        Some(&&start(setup(2, Some(0))))
    );
}

#[test]
fn where_a_ring_stopped_is_not_where_it_begins_after_a_reset() {
    let mut bench = killed_while_stopping();
    bench.answered(Call::ResetDevice);
    bench.answered(Call::SetFeatures(NEGOTIATED));
    bench.call(Call::AddRegion(region(0, 1024 * MIB), FILE));
    bench.describe(&[2], 0);
    bench.enable_all(true);
    let next = bench.event(Event::Replied(Reply::Base(41)));
    assert_eq!(
        posts(&bench.serve(&next)).last(),
        Some(&&start(setup(2, Some(0))))
    );
}

#[test]
fn what_the_appliance_refused_before_a_reset_is_tried_after_it() {
    let mut bench = Bench::connected();
    bench.linux_start(&[2]);
    bench.event(Event::Window(Some(FILE.id)));
    bench.event(Event::Attached { tracks: true });
    bench.event(Event::Replied(Reply::Done));
    let starting = bench.event(Event::Replied(Reply::Done));
    assert_eq!(posts(&starting), [&start(setup(2, Some(0)))]);
    bench.answered(Call::ResetDevice);
    bench.answered(Call::SetFeatures(NEGOTIATED));
    bench.describe(&[2], 0);
    bench.enable_all(true);
    let next = bench.event(Event::Replied(Reply::Failed(22)));
    assert_eq!(
        posts(&bench.serve(&next)).last(),
        Some(&&start(setup(2, Some(0))))
    );
}

#[test]
fn get_vring_base_after_a_reset_waits_until_nobody_runs_the_ring() {
    let mut bench = Bench::running();
    bench.answered(Call::ResetDevice);
    assert_eq!(bench.call(Call::GetBase { ring: 2 }), []);
    assert_eq!(
        bench.event(Event::Replied(Reply::Done)),
        [
            Action::ForgiveRings,
            Action::Answer(bench.calls, Ok(Answer::Base(0)))
        ]
    );
}

#[test]
fn get_vring_base_is_not_made_up_when_the_rings_memory_is_gone() {
    let mut bench = Bench::running();
    bench.event(Event::Detached);
    bench.answered(Call::RemoveRegion(region(0, 1024 * MIB)));
    assert_eq!(
        bench.call(Call::GetBase { ring: 2 }),
        [Action::ForgetKick(2)]
    );
    assert!(matches!(
        bench.later(PATIENCE).as_slice(),
        [Action::Answer(_, Err(Refused::NotStopped { ring: 2, .. }))]
    ));
}

#[test]
fn only_the_trusted_file_fits_a_function_that_is_plugged_already() {
    let mut bench = Bench::new();
    bench.session.limits.trusted = Some(FILE.id);
    bench.event(Event::Window(Some(FILE.id)));
    bench.event(Event::Connected);
    let refused = bench.refused(Call::AddRegion(region(0, 1024 * MIB), OTHER_FILE));
    assert!(
        refused.to_string().contains("--trust-memory-file"),
        "{refused}"
    );
    bench.answered(Call::AddRegion(region(0, 1024 * MIB), FILE));
}

#[test]
fn what_was_meant_for_an_appliance_that_is_gone_is_not_told_to_the_next() {
    let mut bench = Bench::running();
    // All before the supervisor has a turn.
    let call = Event::Call(1000, Call::ResetDevice);
    bench.session.handle(bench.now, call);
    bench.session.handle(bench.now, Event::Detached);
    let actions = bench.event(Event::Attached { tracks: true });
    assert_eq!(posts(&actions), [&Action::Post(table())]);
}
