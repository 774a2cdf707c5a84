//! A server in this process that answers at once: what the load generator can do at most.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::thread::{self, JoinHandle};

use vmm_sys_util::eventfd::EventFd;

use super::cpu::Time;
use super::error::{Context, Result};
use super::measure::Served;
use super::memory::Memory;
use super::rig::Rig;
use super::ring::passed;
use super::slots::Layout;

/// Threads that serve the queues of a rig.
pub struct Floor {
    stop: Arc<AtomicBool>,
    kicks: Vec<Arc<EventFd>>,
    threads: Vec<JoinHandle<()>>,
}

/// The device's side of one queue, as little of it as there can be: it looks at no descriptor.
struct Server {
    memory: Arc<Memory>,
    layout: Layout,
    kick: Arc<EventFd>,
    call: Arc<EventFd>,
    stop: Arc<AtomicBool>,
    polled: bool,
}

impl Floor {
    /// Serves all of `rig`, which was made for this and uses event indices.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn start(rig: &Rig, polled: bool) -> Result<Self> {
        let mut floor = Self {
            stop: Arc::new(AtomicBool::new(false)),
            kicks: Vec::new(),
            threads: Vec::new(),
        };
        for (queue, layout) in rig.request_queues().iter().zip(&rig.layouts) {
            let server = Server {
                memory: Arc::clone(&rig.memory),
                layout: *layout,
                kick: Arc::clone(&queue.kick),
                call: Arc::clone(&queue.call),
                stop: Arc::clone(&floor.stop),
                polled,
            };
            let thread = thread::Builder::new().name("floor".into());
            let started = thread.spawn(move || server.run());
            floor.threads.push(started.doing("start a thread")?);
            floor.kicks.push(Arc::clone(&queue.kick));
        }
        Ok(floor)
    }
}

impl Served for Floor {
    fn cpu(&self) -> Option<Time> {
        None
    }

    fn gone(&mut self) -> Option<String> {
        let ended = self.threads.iter().any(JoinHandle::is_finished);
        ended.then(String::new)
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        for kick in &self.kicks {
            // It fails only if the counter is full, and then nobody sleeps.
            let _ = kick.write(1);
        }
        for thread in self.threads.drain(..) {
            // It has panicked, and said so; there is nothing to be done about that here.
            let _ = thread.join();
        }
    }
}

impl Server {
    fn run(self) {
        let place = self.layout.ring;
        let mut served = 0u16;
        if self.polled {
            self.want_kick_at(served.wrapping_sub(1));
        }
        while !self.stop.load(Ordering::Acquire) {
            let avail = self.avail_index(Ordering::Acquire);
            if avail == served {
                if !self.polled {
                    self.want_kick_at(served);
                    fence(Ordering::SeqCst);
                    if self.avail_index(Ordering::Relaxed) == served {
                        // It fails only if it is interrupted; then the index is looked at again.
                        let _ = self.kick.read();
                    }
                }
                continue;
            }
            let before = served;
            while served != avail {
                let head: u16 = self
                    .memory
                    .load(place.avail_entry(served), Ordering::Relaxed);
                let slot = self.layout.slot(u32::from(head)).expect("our own driver");
                self.layout.answer_good(&self.memory, slot);
                let at = place.used_entry(served);
                self.memory.store(at, u32::from(head), Ordering::Relaxed);
                self.memory.store(at + 4, 0u32, Ordering::Relaxed);
                served = served.wrapping_add(1);
            }
            if self.polled {
                self.want_kick_at(served.wrapping_sub(1));
            }
            self.memory
                .store(place.used_index(), served, Ordering::Release);
            fence(Ordering::SeqCst);
            let event = self.memory.load(place.used_event(), Ordering::Relaxed);
            if passed(event, served, before) {
                self.call.write(1).expect("a counter that is read");
            }
        }
    }

    fn avail_index(&self, order: Ordering) -> u16 {
        self.memory.load(self.layout.ring.avail_index(), order)
    }

    fn want_kick_at(&self, index: u16) {
        let at = self.layout.ring.avail_event();
        self.memory.store(at, index, Ordering::Relaxed);
    }
}
