//! One worker's place among those of its HBA.

use spec::mailbox::Reply;
use spec::session::UnitMark;

use crate::fellow::Fellow;
use crate::front::{Asked, Called, Front, Gone, Request, Side};
use crate::inbox::{Message, Outbox};
use crate::ring::Violation;
use crate::spread::Spread;

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Team {
    spread: Spread,
    place: usize,
    /// All workers, this one among them, by their places.
    all: Vec<Outbox>,
    /// The first of them.
    first: Outbox,
    /// Replies of others that are still to come, for one request.
    waiting: usize,
    /// The reply of the only one that was asked.
    reply: Option<Reply>,
    /// What one of all could not do.
    failure: Option<Reply>,
    /// On which CPU it stays, if on one.
    cpu: Option<usize>,
}

impl Team {
    /// The only worker of its HBA.
    pub fn alone(me: Outbox, cpu: Option<usize>) -> Self {
        Self::new(Spread::ALONE, (0, cpu), me.clone(), vec![me])
    }

    /// The worker at `place` of `all`, of which `first` is the first.
    pub fn new(
        spread: Spread,
        (place, cpu): (usize, Option<usize>),
        first: Outbox,
        all: Vec<Outbox>,
    ) -> Self {
        Self {
            spread,
            place,
            all,
            first,
            waiting: 0,
            reply: None,
            failure: None,
            cpu,
        }
    }

    /// Whether this is the first.
    pub fn is_first(&self) -> bool {
        self.place == 0
    }

    /// This one's place.
    pub fn place(&self) -> usize {
        self.place
    }

    /// On which CPU it stays, if on one.
    pub fn cpu(&self) -> Option<usize> {
        self.cpu
    }

    /// The first, by which others know the HBA.
    pub fn first(&self) -> &Outbox {
        &self.first
    }

    /// The others.
    pub fn others(&self) -> impl Iterator<Item = &Outbox> {
        let all = self.all.iter().enumerate();
        all.filter(|(place, _)| *place != self.place)
            .map(|(_, worker)| worker)
    }

    /// How many others there are.
    pub fn count(&self) -> usize {
        self.all.len().saturating_sub(1)
    }

    /// The place of another that serves this ring; `None` if this one does.
    pub fn other_of(&self, ring: u16) -> Option<usize> {
        let place = self.spread.of_ring(ring);
        (self.is_first() && place != self.place).then_some(place)
    }

    /// Has the worker at `place` act on a request.
    pub fn ask(&mut self, place: usize, request: Request) {
        (self.reply, self.failure) = (None, None);
        self.waiting = 1;
        if let Some(worker) = self.all.get(place) {
            worker.send(Message::Fellow(Fellow::Asked(request)));
        }
    }

    /// Has all others act on a request, too, if it is one that concerns everybody.
    pub fn ask_all(&mut self, request: &Request) {
        self.failure = None;
        for worker in self.others() {
            if let Some(request) = request.for_all() {
                worker.send(Message::Fellow(Fellow::Asked(request)));
            }
        }
        self.waiting = self.count();
    }

    /// Takes a reply.
    pub fn replied(&mut self, reply: Reply) {
        self.waiting = self.waiting.saturating_sub(1);
        self.reply = Some(reply);
        if matches!(reply, Reply::Failed(_)) {
            self.failure = Some(reply);
        }
    }

    /// Whether a reply is still to come.
    pub fn is_waiting(&self) -> bool {
        self.waiting > 0
    }

    /// The reply of the one that was asked, if it is there.
    pub fn reply(&mut self) -> Option<Reply> {
        self.reply.take().filter(|_| self.waiting == 0)
    }

    /// What all of them say, this one saying `reply`.
    pub fn together(&mut self, reply: Reply) -> Reply {
        self.failure.take().unwrap_or(reply)
    }
}

/// What stands in front of a worker that is not the first: the tenant's side of its rings is `side`,
/// and requests come from the first worker.
pub(crate) struct Behind<S> {
    side: S,
    first: Outbox,
}

impl<S: Side> Behind<S> {
    /// Behind the worker `first`.
    pub fn new(side: S, first: Outbox) -> Self {
        Self { side, first }
    }
}

impl<S: Side> Front for Behind<S> {
    fn hba(&self) -> &str {
        self.side.hba()
    }

    fn request(&mut self) -> Result<Option<(Asked, Request)>, Gone> {
        Ok(None)
    }

    fn reply(&mut self, _: Asked, reply: Reply) -> Result<(), Gone> {
        self.first.send(Message::Fellow(Fellow::Replied(reply)));
        Ok(())
    }

    fn call(&self, ring: u16) -> Called {
        self.side.call(ring)
    }

    fn retired(&self, ring: u16, violation: Violation) {
        self.side.retired(ring, violation);
    }

    fn mark(&self, slot: usize) -> UnitMark {
        self.side.mark(slot)
    }

    fn set_mark(&self, slot: usize, mark: UnitMark) {
        self.side.set_mark(slot, mark);
    }
}
