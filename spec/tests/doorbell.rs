//! No wake-up is lost: every order in which the two sides of the doorbell page can run, by loom.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests do")]

use std::sync::atomic::Ordering;

use loom::sync::atomic::{AtomicU32, fence};
use loom::sync::{Arc, Mutex};
use loom::thread;
use spec::doorbell::{self, Words};
use spec::session::{NEED_WAKEUP, call_counter};

/// The doorbell page of two rings, and the trapped doorbell.
struct Page {
    need_wakeup: AtomicU32,
    counters: [AtomicU32; 2],
    /// Rung, and not heard yet: a message in the shim's socket, which wakes it whenever it sleeps.
    rung: Mutex<bool>,
    fences: bool,
}

impl Page {
    fn new(need_wakeup: u32, counter: u32, fences: bool) -> Arc<Self> {
        Arc::new(Self {
            need_wakeup: AtomicU32::new(need_wakeup),
            counters: [AtomicU32::new(counter), AtomicU32::new(counter)],
            rung: Mutex::new(false),
            fences,
        })
    }

    fn word(&self, offset: u64) -> &AtomicU32 {
        match offset {
            NEED_WAKEUP => &self.need_wakeup,
            _ if offset == call_counter(0) => &self.counters[0],
            _ if offset == call_counter(1) => &self.counters[1],
            _ => panic!("offset {offset:#x} is none of the doorbell page"),
        }
    }
}

impl Words for Page {
    fn load(&self, offset: u64, order: Ordering) -> u32 {
        self.word(offset).load(order)
    }

    fn store(&self, offset: u64, value: u32, order: Ordering) {
        self.word(offset).store(value, order);
    }

    fn fence(&self) {
        if self.fences {
            fence(Ordering::SeqCst);
        }
    }
}

/// The appliance calls for `ring`.
fn call(page: &Page, ring: u16) {
    if doorbell::call(page, ring) {
        *page.rung.lock().unwrap() = true;
    }
}

/// The shim goes to sleep as `supervisor/appliance.rs` does it: it looks at the counters, arms, and
/// looks again if a call came.
fn go_to_sleep(page: &Page, seen: &mut [u32; 2]) {
    doorbell::collect(page, seen, |_| {});
    while doorbell::arm(page, seen) {
        doorbell::disarm(page);
        doorbell::collect(page, seen, |_| {});
    }
}

/// A shim that sleeps either has seen every call, or is woken.
fn nothing_is_lost(page: &Page, seen: [u32; 2]) {
    let counted = page
        .counters
        .each_ref()
        .map(|word| word.load(Ordering::SeqCst));
    let rung = *page.rung.lock().unwrap();
    assert!(rung || counted == seen, "the shim sleeps through a call");
}

/// An appliance that calls for these rings, beside a shim that polls and goes to sleep.
fn race(calls: &'static [u16], counter: u32, fences: bool) {
    loom::model(move || {
        let page = Page::new(0, counter, fences);
        let appliance = {
            let page = page.clone();
            thread::spawn(move || calls.iter().for_each(|&ring| call(&page, ring)))
        };
        let mut seen = [counter; 2];
        go_to_sleep(&page, &mut seen);
        appliance.join().unwrap();
        nothing_is_lost(&page, seen);
    });
}

// covers: VPCI-BEL-1, VPCI-BEL-2
#[test]
fn a_call_while_the_shim_goes_to_sleep_is_collected_or_rung() {
    race(&[0], 0, true);
}

// covers: VPCI-BEL-1, VPCI-BEL-2
#[test]
fn two_calls_of_two_rings_are_collected_or_rung_also_where_a_counter_wraps() {
    race(&[0, 1], u32::MAX, true);
}

#[test]
fn two_calls_of_one_ring_are_collected_or_rung() {
    race(&[1, 1], 7, true);
}

// covers: VPCI-BEL-1, VPCI-BEL-2
#[test]
fn a_shim_that_is_woken_and_sleeps_again_loses_nothing() {
    loom::model(|| {
        // Asleep, with nothing seen.
        let page = Page::new(1, 0, true);
        let appliance = {
            let page = page.clone();
            thread::spawn(move || {
                call(&page, 0);
                call(&page, 0);
            })
        };
        let mut seen = [0; 2];
        // It wakes if it was rung; otherwise it sleeps on.
        if std::mem::take(&mut *page.rung.lock().unwrap()) {
            doorbell::disarm(&*page);
            go_to_sleep(&page, &mut seen);
        }
        appliance.join().unwrap();
        nothing_is_lost(&page, seen);
    });
}

#[test]
#[should_panic(expected = "the shim sleeps through a call")]
fn without_the_fences_the_model_finds_the_lost_call() {
    race(&[0], 0, false);
}
