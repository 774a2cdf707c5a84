//! What the worker of an HBA is told while it runs.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak, mpsc};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::config::{Coalesce, Poll};
use crate::fellow::Fellow;
use crate::limit::Meter;
use crate::scsi::{Address, Attention, Bond, LogicalUnit, Registrant};
use crate::statistics::Gathering;

/// Most questions that a worker may owe an answer: one that hangs is not asked without end.
pub(crate) const MAX_QUESTIONS: usize = 64;

/// Something that a worker is told.
#[derive(Debug)]
pub(crate) enum Message {
    /// The HBA sees other logical units.
    Units(UnitChange),
    /// A unit's parameters are others; its initiators meet this unit attention as well.
    Changed(Arc<LogicalUnit>, Attention),
    /// Another HBA ends the tasks of a unit that both see.
    End(EndTasks),
    /// A neighbour has ended the tasks for which the function of this number waits.
    Ended(u64),
    /// How long to look for requests after work.
    Poll(Poll),
    /// What limits the HBA.
    Limit(Limited),
    /// How long calls may be held back.
    Coalesce(Coalesce),
    /// The HBA is no longer in the configuration.
    Leave,
    /// Whether to leave new commands in their rings.
    Drain(bool),
    /// Somebody wants to know what is going on.
    Ask(Question),
    /// What another worker of the same HBA says.
    Fellow(Fellow),
}

/// What limits an HBA.
#[derive(Debug, Clone)]
pub(crate) struct Limited {
    /// Its own limit, which its workers share.
    pub own: Arc<Meter>,
    /// That of its group, if it is in one.
    pub group: Option<Arc<Meter>>,
    /// What it weighs against others with which it shares a limit.
    pub weight: u32,
}

/// What somebody wants to know of a worker.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    /// Of which LUN the oldest commands under way are wanted.
    pub tasks: Option<String>,
    /// Of which LUN the last commands are wanted.
    pub trace: Option<String>,
    /// Where the answer goes.
    pub to: Arc<Gathering>,
}

/// Other logical units for an HBA.
#[derive(Debug, Default)]
pub(crate) struct UnitChange {
    /// Those that it sees no more; they go first. With each, the number of the function that waits
    /// for its commands, once there is one.
    pub gone: Vec<(Address, u64)>,
    /// Those that it sees from now on.
    pub come: Vec<(Address, Come)>,
}

/// A logical unit that is to be seen.
#[derive(Debug)]
pub(crate) enum Come {
    /// The unit.
    Unit(Arc<LogicalUnit>),
    /// With the nexus that there is for it now.
    Bond(Bond),
}

impl UnitChange {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.gone.is_empty() && self.come.is_empty()
    }
}

/// The tasks of a unit that another HBA ends.
#[derive(Debug)]
pub(crate) struct EndTasks {
    /// The unit.
    pub unit: Arc<LogicalUnit>,
    /// Whose they are; everybody's without.
    pub whose: Option<Arc<[Registrant]>>,
    /// The virtio-scsi response that ended commands get.
    pub with: u8,
    /// What the initiator is told, if it had commands there.
    pub attention: Option<Attention>,
    /// To be dropped when the last of them has ended.
    pub receipt: Receipt,
}

/// Tells a worker, when it is dropped, that one of its functions waits for one thing less.
#[derive(Debug)]
pub(crate) struct Receipt {
    function: u64,
    to: Outbox,
    /// Whether it is given to another worker of the HBA, which ends with this one.
    is_fellows: bool,
}

impl Receipt {
    /// For the function of this number of the worker behind `to`.
    pub fn new(function: u64, to: Outbox) -> Self {
        Self {
            function,
            to,
            is_fellows: false,
        }
    }

    /// The same, to be given to another worker of the HBA.
    pub fn for_fellow(function: u64, to: Outbox) -> Self {
        Self {
            function,
            to,
            is_fellows: true,
        }
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        if self.is_fellows && std::thread::panicking() {
            // The tasks are not back. What the other hears next is that this worker has ended.
            return;
        }
        // A worker that is gone waits for nothing.
        self.to.send(Message::Ended(self.function));
    }
}

/// The worker's end.
#[derive(Debug)]
pub(crate) struct Inbox {
    receiver: mpsc::Receiver<Message>,
    address: mpsc::Sender<Message>,
    bell: Arc<EventFd>,
    lingers: Arc<AtomicBool>,
    /// Questions that it has not taken.
    questions: Arc<AtomicUsize>,
}

/// The end of those who tell a worker something.
#[derive(Debug, Clone)]
pub(crate) struct Outbox {
    sender: mpsc::Sender<Message>,
    /// Gone when the inbox is.
    bell: Weak<EventFd>,
    lingers: Arc<AtomicBool>,
    questions: Arc<AtomicUsize>,
}

impl Inbox {
    /// An inbox with nothing in it.
    ///
    /// # Errors
    /// What eventfd(2) reports.
    pub fn new() -> io::Result<Self> {
        let (address, receiver) = mpsc::channel();
        Ok(Self {
            receiver,
            address,
            bell: Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?),
            lingers: Arc::default(),
            questions: Arc::default(),
        })
    }

    /// Written to when something has come.
    pub fn bell(&self) -> &EventFd {
        &self.bell
    }

    /// The bell for who has no message: the worker looks at what it holds. It does not keep the
    /// inbox there.
    pub fn weak_bell(&self) -> Weak<EventFd> {
        Arc::downgrade(&self.bell)
    }

    /// The other end.
    pub fn outbox(&self) -> Outbox {
        Outbox {
            sender: self.address.clone(),
            bell: Arc::downgrade(&self.bell),
            lingers: Arc::clone(&self.lingers),
            questions: Arc::clone(&self.questions),
        }
    }

    /// Rings the bell, for messages that are left for later.
    pub fn ring(&self) {
        if let Err(error) = self.bell.write(1) {
            // Only a counter at its end can fail, and then the bell has rung anyway.
            tracing::debug!("waking this worker again: {error}");
        }
    }

    /// Nobody takes messages any more, and the inbox is only there for who waits for all that a
    /// disk has not finished. Those who end the tasks of some initiators do not.
    pub fn linger(&self) {
        self.lingers.store(true, Ordering::Relaxed);
        let left: Vec<_> = self.receiver.try_iter().collect();
        let of_some =
            |message: &Message| matches!(message, Message::End(end) if end.whose.is_some());
        for message in left.into_iter().filter(|message| !of_some(message)) {
            // Its receiver is here.
            let _ = self.address.send(message);
        }
    }

    /// The next message, if there is one.
    pub fn next(&self) -> Option<Message> {
        let message = self.receiver.try_recv().ok();
        if let Some(Message::Ask(_)) = message {
            self.questions.fetch_sub(1, Ordering::Relaxed);
        }
        message
    }
}

impl Outbox {
    /// Tells the worker something, never waiting for it. One that is gone is told nothing.
    pub fn send(&self, message: Message) {
        if let Some(bell) = self.bell.upgrade()
            && self.sender.send(message).is_ok()
            && let Err(error) = bell.write(1)
        {
            // Only a counter at its end can fail, and then the worker is being woken anyway.
            tracing::debug!("waking a worker: {error}");
        }
    }

    /// Asks the worker something, unless it owes too many answers: then the question is dropped,
    /// and with it the end that the answer would come on. Whether it was asked.
    pub fn ask(&self, question: Question) -> bool {
        let owed = self.questions.fetch_add(1, Ordering::Relaxed);
        let may = owed < MAX_QUESTIONS;
        if may {
            self.send(Message::Ask(question));
        } else {
            self.questions.fetch_sub(1, Ordering::Relaxed);
        }
        may
    }

    /// Whether the worker is still there.
    pub fn is_heard(&self) -> bool {
        self.bell.strong_count() > 0
    }

    /// Whether its worker has ended, but not all that it began.
    pub fn lingers(&self) -> bool {
        self.lingers.load(Ordering::Relaxed)
    }

    /// Whether both lead to the same worker.
    pub fn is_same(&self, other: &Self) -> bool {
        Weak::ptr_eq(&self.bell, &other.bell)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{Disk, DiskError, Geometry, Op, OpenFile};

    #[test]
    fn a_worker_that_hangs_is_not_asked_without_end() {
        let inbox = Inbox::new().unwrap();
        let outbox = inbox.outbox();
        let ask = || {
            let (to, answer) = mpsc::sync_channel(1);
            outbox.ask(Question {
                tasks: None,
                trace: None,
                to: Arc::new(Gathering::new(to)),
            });
            // Who would answer is there.
            answer.try_recv() == Err(mpsc::TryRecvError::Empty)
        };
        let answers: Vec<_> = std::iter::repeat_with(ask).take(200).collect();
        assert_eq!(answers.iter().filter(|asked| **asked).count(), 64);
        while inbox.next().is_some() {}
        assert!(ask());
    }

    /// A disk on which nothing works.
    #[derive(Debug)]
    struct Nothing;

    impl Disk for Nothing {
        fn geometry(&self) -> Geometry {
            Geometry {
                block_size: 512,
                blocks: 1,
                physical_block_size: 512,
                read_only: true,
            }
        }

        fn file_for(&self, _: &Op) -> Result<&Arc<OpenFile>, DiskError> {
            Err(DiskError::Gone)
        }
    }

    #[test]
    fn a_message_rings_the_bell_and_is_taken_once() {
        let inbox = Inbox::new().unwrap();
        inbox.outbox().send(Message::Leave);
        assert_eq!(inbox.bell().read().unwrap(), 1);
        assert!(matches!(inbox.next(), Some(Message::Leave)));
        assert!(inbox.next().is_none());
    }

    #[test]
    fn a_receipt_is_given_however_it_is_dropped() {
        let (asking, asked) = (Inbox::new().unwrap(), Inbox::new().unwrap());
        let receipt = Receipt::new(7, asking.outbox());
        let unit = LogicalUnit::new("a", Arc::new(Nothing)).unwrap();
        asked.outbox().send(Message::End(EndTasks {
            unit: Arc::new(unit),
            whose: None,
            with: 4,
            attention: None,
            receipt,
        }));
        assert!(asking.next().is_none());
        drop(asked);
        assert!(matches!(asking.next(), Some(Message::Ended(7))));
    }

    #[test]
    fn a_worker_that_panics_gives_no_receipts_to_its_fellows() {
        let (neighbour, fellow) = (Inbox::new().unwrap(), Inbox::new().unwrap());
        let receipts = (
            Receipt::new(7, neighbour.outbox()),
            Receipt::for_fellow(8, fellow.outbox()),
        );
        let worker = std::thread::spawn(move || {
            let _receipts = receipts;
            panic!("as it should");
        });
        assert!(worker.join().is_err());
        assert!(matches!(neighbour.next(), Some(Message::Ended(7))));
        assert!(fellow.next().is_none());
        drop(Receipt::for_fellow(9, fellow.outbox()));
        assert!(matches!(fellow.next(), Some(Message::Ended(9))));
    }

    #[test]
    fn who_lingers_keeps_only_those_waiting_who_end_the_tasks_of_all() {
        let (asking, asked) = (Inbox::new().unwrap(), Inbox::new().unwrap());
        let unit = Arc::new(LogicalUnit::new("a", Arc::new(Nothing)).unwrap());
        for (function, whose) in [(7, None), (8, Some(Arc::from([])))] {
            asked.outbox().send(Message::End(EndTasks {
                unit: Arc::clone(&unit),
                whose,
                with: 4,
                attention: None,
                receipt: Receipt::new(function, asking.outbox()),
            }));
        }
        assert!(!asked.outbox().lingers());
        asked.linger();
        assert!(asked.outbox().lingers());
        assert!(matches!(asking.next(), Some(Message::Ended(8))));
        assert!(asking.next().is_none());
        drop(asked);
        assert!(matches!(asking.next(), Some(Message::Ended(7))));
    }

    #[test]
    fn a_worker_that_is_gone_is_not_heard() {
        let inbox = Inbox::new().unwrap();
        let outbox = inbox.outbox();
        assert!(outbox.is_heard() && outbox.is_same(&inbox.outbox()));
        drop(inbox);
        assert!(!outbox.is_heard());
        outbox.send(Message::Leave);
    }
}
