//! Threads of workers that take turns.

use std::error::Error;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;
use std::time::Duration;

use appliance::measure::Seat;

use super::marked;
use super::rig::Rig;

/// What a thread is to do.
#[derive(Debug, Clone, Copy)]
pub enum Order {
    /// Turn the worker once.
    Turn,
    /// A round of so many requests.
    Round(u16),
    /// The same, counted.
    Counted(u16),
    /// Nothing but to tell.
    Tell,
}

/// What a thread has done.
struct Done {
    /// How long the worker took.
    taken: Duration,
    /// How often its driver was called so far.
    calls: u64,
}

/// The threads; dropping it ends them.
pub struct Crew(Vec<Member>);

struct Member {
    orders: SyncSender<Order>,
    done: Receiver<Result<Done, String>>,
}

impl Crew {
    /// Has each worker take its seat, in a thread of its own, and hear what a new initiator must.
    ///
    /// # Errors
    /// A worker cannot be set up, or does not answer as it must.
    pub fn start(members: impl Iterator<Item = (Seat, Rig)>) -> Result<Self, Box<dyn Error>> {
        let members = members.enumerate();
        let start = |(place, (seat, rig))| Member::start(place, seat, rig);
        let crew = Self(members.map(start).collect());
        for member in &crew.0 {
            member.done()?;
        }
        // The first has told the others of the driver, and hears from them.
        if crew.0.len() > 1 {
            for member in crew.0.iter().skip(1).chain(crew.0.first()) {
                member.order(Order::Turn)?;
            }
        }
        for member in &crew.0 {
            member.pass_attentions()?;
        }
        Ok(crew)
    }

    /// Has each carry the order out, one after the other; how long their workers took.
    ///
    /// # Errors
    /// What goes wrong.
    pub fn each(&self, order: Order) -> Result<Duration, Box<dyn Error>> {
        let members = self.0.iter();
        members
            .map(|member| Ok(member.order(order)?.taken))
            .sum::<Result<_, String>>()
            .map_err(Into::into)
    }

    /// How often the driver was called so far.
    ///
    /// # Errors
    /// A thread has ended.
    pub fn calls(&self) -> Result<u64, Box<dyn Error>> {
        let members = self.0.iter();
        members
            .map(|member| Ok(member.order(Order::Tell)?.calls))
            .sum::<Result<_, String>>()
            .map_err(Into::into)
    }
}

impl Member {
    fn start(place: usize, seat: Seat, rig: Rig) -> Self {
        // Bounded ones need no memory for what they carry.
        let (orders, given) = mpsc::sync_channel(1);
        let (answer, done) = mpsc::sync_channel(1);
        thread::spawn(move || work(place, (seat, rig), &given, &answer));
        Self { orders, done }
    }

    /// Reads until the unit has told all that a new initiator must hear.
    fn pass_attentions(&self) -> Result<(), String> {
        let mut passed = Ok(());
        for _ in 0..8 {
            passed = self.order(Order::Round(1)).map(drop);
            if passed.is_ok() {
                break;
            }
        }
        passed
    }

    fn order(&self, order: Order) -> Result<Done, String> {
        // One that has ended says why, if it can.
        let _ = self.orders.send(order);
        self.done()
    }

    fn done(&self) -> Result<Done, String> {
        let done = self.done.recv();
        done.unwrap_or_else(|_| Err("a worker's thread has ended".to_owned()))
    }
}

fn work(
    place: usize,
    (seat, mut rig): (Seat, Rig),
    orders: &Receiver<Order>,
    answer: &SyncSender<Result<Done, String>>,
) {
    let mut turned = match seat.take() {
        Ok(turned) => turned,
        Err(error) => return drop(answer.send(Err(error.to_string()))),
    };
    let mut taken = Ok(Duration::ZERO);
    loop {
        let done = taken.map_err(|error: Box<dyn Error>| error.to_string());
        let calls = turned.calls();
        if answer
            .send(done.map(|taken| Done { taken, calls }))
            .is_err()
        {
            return;
        }
        let Ok(order) = orders.recv() else {
            return;
        };
        taken = match order {
            Order::Turn => {
                turned.turn();
                Ok(Duration::ZERO)
            }
            Order::Round(depth) => rig.round(depth, || turned.turn()),
            Order::Counted(depth) => rig.round(depth, || marked(&mut turned, place)),
            Order::Tell => Ok(Duration::ZERO),
        };
    }
}
