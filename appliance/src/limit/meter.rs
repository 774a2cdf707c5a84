//! A limit that several share by turns: whoever has had the least for its weight is next.
//!
//! Each of those has a [`Seat`]. As long as nobody waits, whoever comes takes what is there. Where
//! several wait, the next is the one with the earliest start tag, as in start-time fair queueing:
//! an operation takes time at the limit's rate, which passes the slower for a flow the more it
//! weighs, and who has waited for nothing has saved nothing up. So what one leaves, the others get.
//! The flow is an HBA: seats of its workers weigh as much together as one alone would.
//!
//! An operation of more bytes than a burst takes no more than a burst at once: the rest its seat owes,
//! and pays in instalments, each in its turn, before it has anything else. So the others have their
//! turns in between. What nobody takes pays such debts, too.
//!
//! Nobody is asked whether it is its turn: each knows when to come back, and one whose turn is
//! earlier than it knew is woken by its bell. One that does not come is passed over.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use uuid::Uuid;
use vmm_sys_util::eventfd::EventFd;

use super::bucket::{Bucket, parts};
use super::{Cost, Limit};

/// How long the next is waited for at most when it could go on: a worker that is busy comes later.
const MAX_LATE: Duration = Duration::from_millis(100);
/// And at least.
const MIN_LATE: Duration = Duration::from_millis(1);

/// A limit in force, and who shares it.
#[derive(Default)]
pub(crate) struct Meter {
    /// Read where nothing else is, for what has no limit.
    limited: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    limit: Limit,
    operations: Option<Bucket>,
    bytes: Option<Bucket>,
    /// Start tag of what was last let through.
    clock: u128,
    places: Vec<Place>,
    /// How many have sat down and begun to wait, for telling them apart.
    count: u64,
}

/// What is known of a seat.
struct Place {
    id: u64,
    /// Whose it is.
    flow: Uuid,
    weight: u32,
    /// Where the last operation of its flow ended, in the time that `clock` has.
    finish: u128,
    /// What it owes of bytes that it has had, in parts of a token.
    owes: i128,
    waits: Option<Waits>,
    /// Wakes its worker.
    bell: Weak<EventFd>,
}

/// Something that waits.
#[derive(Clone, Copy)]
struct Waits {
    cost: Cost,
    /// Who came first has the lower.
    since: u64,
    /// When its worker comes back.
    wakes: Instant,
}

/// A place at a meter, given back when it is dropped.
pub(crate) struct Seat {
    meter: Arc<Meter>,
    id: u64,
}

/// Why something has to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kept {
    /// When to come back.
    pub until: Instant,
    /// Whether by another meter than the first.
    pub by_others: bool,
}

/// Takes what an operation costs at all of these meters if it may go on now; takes nothing
/// otherwise, and waits at the one that keeps it longest: it must not have its turn at another where
/// it could not come. Every caller has them in the same order. With `more` it comes back at once
/// with the next, and who is after it is not woken in between.
///
/// # Errors
/// [`Kept`].
pub(crate) fn pass(
    seats: [Option<&Seat>; 3],
    cost: Cost,
    now: Instant,
    more: bool,
) -> Result<(), Kept> {
    let mut states = seats.map(|seat| seat.map(|seat| (seat.id, seat.meter.state())));
    let mut kept: Option<(Instant, usize)> = None;
    for (number, state) in states.iter_mut().enumerate() {
        if let Some((id, state)) = state
            && let Err(until) = state.ask(*id, cost, now)
        {
            kept = kept.max(Some((until, number)));
        }
    }
    let mut bells = [const { None }; 3];
    for (number, state) in states.iter_mut().enumerate() {
        let Some((id, state)) = state else { continue };
        match kept {
            None => state.take(*id, cost),
            Some((until, keeper)) => {
                state.wait_here(*id, (keeper == number).then_some((cost, until)));
            }
        }
        if kept.is_some() || !more {
            bells[number] = state.next_bell();
        }
    }
    drop(states);
    bells.iter().flatten().for_each(ring);
    kept.map_or(Ok(()), |(until, keeper)| {
        Err(Kept {
            until,
            by_others: keeper > 0,
        })
    })
}

fn ring(bell: &Weak<EventFd>) {
    if let Some(bell) = bell.upgrade()
        && let Err(error) = bell.write(1)
    {
        // Only a counter at its end can fail, and then the worker is being woken anyway.
        tracing::debug!("waking a worker: {error}");
    }
}

impl Meter {
    /// Whether there is a limit.
    #[inline]
    pub fn is_limited(&self) -> bool {
        self.limited.load(Ordering::Relaxed)
    }

    /// The limit in force.
    pub fn limit(&self) -> Limit {
        self.state().limit
    }

    /// Puts another limit into force; whoever waits looks anew. Whether it is another.
    pub fn set(&self, limit: Limit, now: Instant) -> bool {
        let mut state = self.state();
        if state.limit == limit {
            return false;
        }
        state.change(limit, now);
        self.limited.store(limit.is_set(), Ordering::Relaxed);
        let waiting = state.places.iter().filter(|place| place.waits.is_some());
        let bells: Vec<_> = waiting.map(|place| place.bell.clone()).collect();
        drop(state);
        bells.iter().for_each(ring);
        true
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    /// A seat of the HBA `flow` at `meter` of this weight, at least 1, whose worker `bell` wakes.
    /// All seats of one HBA have one weight.
    pub fn new(meter: &Arc<Meter>, flow: Uuid, weight: u32, bell: &Weak<EventFd>) -> Self {
        let mut state = meter.state();
        state.count += 1;
        let id = state.count;
        let fellow = state.places.iter().find(|place| place.flow == flow);
        let finish = fellow.map_or(0, |fellow| fellow.finish);
        state.places.push(Place {
            id,
            flow,
            weight: weight.max(1),
            finish,
            owes: 0,
            waits: None,
            bell: bell.clone(),
        });
        drop(state);
        Self {
            meter: Arc::clone(meter),
            id,
        }
    }

    /// Whether it is at this meter.
    pub fn is_at(&self, meter: &Arc<Meter>) -> bool {
        Arc::ptr_eq(&self.meter, meter)
    }

    /// Weighs as much from now on.
    pub fn set_weight(&self, weight: u32) {
        if let Some(place) = self.meter.state().place(self.id) {
            place.weight = weight.max(1);
        }
    }

    /// Waits for nothing any more.
    pub fn withdraw(&self) {
        let mut state = self.meter.state();
        if let Some(place) = state.place(self.id) {
            place.waits = None;
        }
        let bell = state.next_bell();
        drop(state);
        bell.iter().for_each(ring);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut state = self.meter.state();
        state.places.retain(|place| place.id != self.id);
        let bell = state.next_bell();
        drop(state);
        bell.iter().for_each(ring);
    }
}

impl State {
    fn change(&mut self, limit: Limit, now: Instant) {
        self.limit = limit;
        for (bucket, rate) in [
            (&mut self.operations, limit.iops),
            (&mut self.bytes, limit.bytes_per_second),
        ] {
            match (bucket.as_mut(), rate) {
                (Some(bucket), Some(rate)) => bucket.change(rate, limit.burst, now),
                (None, Some(rate)) => *bucket = Some(Bucket::full(rate, limit.burst, now)),
                (_, None) => *bucket = None,
            }
        }
        // What was had at another rate does not compare.
        for place in &mut self.places {
            place.finish = self.clock;
            if self.bytes.is_none() {
                place.owes = 0;
            }
        }
    }

    /// Adds what has come until `now`; what there is no room for pays what is owed.
    fn refill(&mut self, now: Instant) {
        if let Some(bucket) = &mut self.operations {
            bucket.refill(now);
        }
        if let Some(bucket) = &mut self.bytes {
            let mut left = bucket.refill(now);
            for place in &mut self.places {
                let paid = left.min(place.owes);
                place.owes -= paid;
                left -= paid;
            }
        }
    }

    fn place(&mut self, id: u64) -> Option<&mut Place> {
        self.places.iter_mut().find(|place| place.id == id)
    }

    /// How long the next is waited for when it could go on: nothing is lost in half of a burst.
    fn late(&self) -> Duration {
        (self.limit.burst / 2).clamp(MIN_LATE, MAX_LATE)
    }

    /// Each bucket, and what an operation takes of it.
    fn buckets(&mut self, cost: Cost) -> impl Iterator<Item = (&mut Bucket, u64)> {
        let operations = self.operations.as_mut().map(|bucket| (bucket, 1));
        let bytes = self.bytes.as_mut().map(|bucket| (bucket, cost.bytes));
        operations.into_iter().chain(bytes)
    }

    /// When there was the last refill; `None` without a limit.
    fn now(&self) -> Option<Instant> {
        let buckets = self.operations.iter().chain(&self.bytes);
        buckets.map(Bucket::at).max()
    }

    /// How long after the last refill there is enough for an operation.
    fn wait(&mut self, cost: Cost) -> Duration {
        let waits = self.buckets(cost).map(|(bucket, cost)| bucket.wait(cost));
        waits.max().unwrap_or_default()
    }

    /// How long after the last refill a place may pay or have what is next for it. As long as no
    /// other waits, it need not come for each instalment.
    fn wait_of(&mut self, at: usize, cost: Cost, now: Instant) -> Duration {
        let Place { id, owes, .. } = self.places[at];
        let has_others = self.next(Some(id), now).is_some();
        let Some(bucket) = self.bytes.as_ref().filter(|_| owes > 0) else {
            return self.wait(cost);
        };
        if has_others {
            return bucket.wait_for_parts(instalment(bucket, owes));
        }
        let first = parts(cost.bytes.min(bucket.burst() / 2));
        let wait = bucket.wait_for_parts(owes.saturating_add(first));
        let operations = self.operations.as_ref();
        let other = operations.map_or(Duration::ZERO, |bucket| bucket.wait(1));
        wait.max(other)
    }

    /// Has a place pay one instalment of what it owes, if there is enough for that.
    fn pay(&mut self, at: usize) -> bool {
        let start = self.start(&self.places[at]);
        let (Some(bucket), place) = (&mut self.bytes, &mut self.places[at]) else {
            return false;
        };
        let paid = instalment(bucket, place.owes);
        if !bucket.wait_for_parts(paid).is_zero() {
            return false;
        }
        bucket.take_parts(paid);
        place.owes -= paid;
        let finish = start + bucket.time_of_parts(paid) / u128::from(place.weight);
        let flow = place.flow;
        self.pass_by(flow, (start, finish));
        true
    }

    /// Something of a flow was let through, from this start tag to this finish.
    fn pass_by(&mut self, flow: Uuid, (start, finish): (u128, u128)) {
        for place in self.places.iter_mut().filter(|place| place.flow == flow) {
            place.finish = finish;
        }
        self.clock = start;
    }

    /// The start tag of what a seat does next.
    fn start(&self, place: &Place) -> u128 {
        place.finish.max(self.clock)
    }

    /// Whether an operation may go on as far as this meter is concerned.
    ///
    /// # Errors
    /// When to come back.
    fn ask(&mut self, id: u64, cost: Cost, now: Instant) -> Result<(), Instant> {
        let Some(at) = self.places.iter().position(|place| place.id == id) else {
            return Ok(());
        };
        self.refill(now);
        let Some(now) = self.now() else {
            return Ok(());
        };
        // Who has not waited yet comes after those who have.
        let since = self.places[at].waits.map_or(u64::MAX, |waits| waits.since);
        loop {
            let mine = (self.start(&self.places[at]), since);
            let before = self.next(Some(id), now).filter(|(tag, _)| *tag < mine);
            if let Some((_, place)) = before {
                // Not before the one whose turn it is, unless that does not come.
                let theirs = self.places[place].waits.map_or(cost, |waits| waits.cost);
                return Err(now + self.wait_of(place, theirs, now) + self.late());
            }
            if self.places[at].owes == 0 || !self.pay(at) {
                break;
            }
        }
        let wait = self.wait_of(at, cost, now);
        if wait.is_zero() {
            Ok(())
        } else {
            Err(now + wait)
        }
    }

    /// A seat waits here for that, or for nothing.
    fn wait_here(&mut self, id: u64, what: Option<(Cost, Instant)>) {
        self.count += 1;
        let count = self.count;
        if let Some(place) = self.place(id) {
            let since = place.waits.map_or(count, |waits| waits.since);
            place.waits = what.map(|(cost, wakes)| Waits { cost, since, wakes });
        }
    }

    /// Of those that wait but `except`, and have not failed to come, the one whose turn is first: its
    /// tag, and its place.
    fn next(&self, except: Option<u64>, now: Instant) -> Option<((u128, u64), usize)> {
        let waiting = self.places.iter().enumerate().filter_map(|(at, place)| {
            let waits = place.waits?;
            let comes = waits.wakes + self.late() >= now;
            let counts = comes && Some(place.id) != except;
            counts.then(|| ((self.start(place), waits.since), at))
        });
        waiting.min()
    }

    /// Takes what an operation costs.
    fn take(&mut self, id: u64, cost: Cost) {
        let (mut time, mut owes) = (0, 0);
        for (bucket, cost) in self.buckets(cost) {
            let at_once = cost.min(bucket.burst());
            bucket.take(at_once);
            owes = parts(cost - at_once);
            time = bucket.time_of(at_once).max(time);
        }
        let Some(at) = self.places.iter().position(|place| place.id == id) else {
            return;
        };
        let start = self.start(&self.places[at]);
        let place = &mut self.places[at];
        place.waits = None;
        place.owes += owes;
        let finish = start + time / u128::from(place.weight);
        let flow = place.flow;
        self.pass_by(flow, (start, finish));
    }

    /// The bell of the one whose turn it is, if that would come later than it could.
    fn next_bell(&mut self) -> Option<Weak<EventFd>> {
        let now = self.now()?;
        let (_, place) = self.next(None, now)?;
        let waits = self.places[place].waits?;
        let could = now + self.wait_of(place, waits.cost, now);
        if waits.wakes <= could {
            return None;
        }
        let place = &mut self.places[place];
        place.waits = Some(Waits {
            wakes: could,
            ..waits
        });
        Some(place.bell.clone())
    }
}

/// What is paid at once of what is owed: no more than leaves room for who comes late.
fn instalment(bucket: &Bucket, owes: i128) -> i128 {
    owes.min(parts(bucket.burst() / 2))
}

impl fmt::Debug for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Meter").field(&self.limit()).finish()
    }
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Seat").field(&self.id).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK};

    use super::*;

    /// A worker that always has something to do at a meter, or nothing.
    struct Worker {
        /// Of which HBA.
        flow: Uuid,
        /// At a limit of its own.
        own: Option<Seat>,
        seat: Seat,
        bell: Arc<EventFd>,
        cost: Cost,
        comes: Instant,
        is_idle: bool,
        done: u32,
        /// How often it has come.
        came: u32,
    }

    impl Worker {
        /// The only worker of its HBA.
        fn new(meter: &Arc<Meter>, weight: u32, bytes: u64, now: Instant) -> Self {
            static HBAS: AtomicU64 = AtomicU64::new(0);
            let hba = HBAS.fetch_add(1, Ordering::Relaxed);
            Self::of(Uuid::from_u128(hba.into()), meter, weight, bytes, now)
        }

        /// One more worker of its HBA, at its shared limit.
        fn fellow(&self, weight: u32, now: Instant) -> Self {
            let bytes = self.cost.bytes;
            Self::of(self.flow, &self.seat.meter, weight, bytes, now)
        }

        fn of(flow: Uuid, meter: &Arc<Meter>, weight: u32, bytes: u64, now: Instant) -> Self {
            let bell = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap());
            Self {
                flow,
                own: None,
                seat: Seat::new(meter, flow, weight, &Arc::downgrade(&bell)),
                bell,
                cost: Cost { bytes },
                comes: now,
                is_idle: false,
                done: 0,
                came: 0,
            }
        }

        fn with_limit(mut self, meter: &Arc<Meter>) -> Self {
            self.own = Some(Seat::new(meter, self.flow, 1, &Arc::downgrade(&self.bell)));
            self
        }

        fn is_rung(&self) -> bool {
            self.bell.read().is_ok()
        }

        /// Does what it can.
        fn work(&mut self, now: Instant) {
            self.came += 1;
            loop {
                let seats = [self.own.as_ref(), Some(&self.seat), None];
                match pass(seats, self.cost, now, true) {
                    Ok(()) => self.done += 1,
                    Err(kept) => {
                        self.comes = kept.until;
                        return;
                    }
                }
            }
        }
    }

    /// Has workers work for so long; returns when that is over, and how much each has done.
    fn run(workers: &mut [Worker], start: Instant, time: Duration) -> (Instant, Vec<u32>) {
        for worker in &mut *workers {
            worker.done = 0;
        }
        let (mut now, end) = (start, start + time);
        while now < end {
            let mut busy = workers.iter_mut().filter(|worker| !worker.is_idle);
            // Those that are rung come at once.
            if let Some(worker) = busy.find(|worker| worker.is_rung() || worker.comes <= now) {
                worker.work(now);
                continue;
            }
            let busy = workers.iter().filter(|worker| !worker.is_idle);
            now = busy.map(|worker| worker.comes).min().unwrap();
        }
        (now, workers.iter().map(|worker| worker.done).collect())
    }

    fn of_operations(iops: u64, now: Instant) -> Arc<Meter> {
        let meter = Arc::new(Meter::default());
        let limit = Limit {
            iops: Some(iops),
            ..Limit::default()
        };
        assert!(meter.set(limit, now));
        meter
    }

    fn assert_about(done: u32, expected: u32) {
        let off = done.abs_diff(expected);
        assert!(off * 100 <= expected * 5, "{done}, not about {expected}");
    }

    #[test]
    fn weights_of_one_and_three_get_a_quarter_and_three_quarters() {
        let start = Instant::now();
        let meter = of_operations(1000, start);
        let mut workers = [1, 3].map(|weight| Worker::new(&meter, weight, 4096, start));
        let (_, done) = run(&mut workers, start, Duration::from_secs(20));
        assert_about(done[0], 5000);
        assert_about(done[1], 15_000);
        // Nobody comes to see whether it is its turn: each comes when it is, or is rung for it.
        let came: u32 = workers.iter().map(|worker| worker.came).sum();
        assert!(came < 20_000 * 7 / 4, "they came {came} times");
    }

    #[test]
    fn an_hba_weighs_the_same_with_two_workers_as_with_one() {
        let start = Instant::now();
        let meter = of_operations(1000, start);
        let first = Worker::new(&meter, 1, 4096, start);
        let second = first.fellow(1, start);
        let mut workers = [first, second, Worker::new(&meter, 1, 4096, start)];
        let (now, done) = run(&mut workers, start, Duration::from_secs(20));
        assert_about(done[0] + done[1], 10_000);
        assert_about(done[0], 5000);
        assert_about(done[2], 10_000);
        // And so it does when one of them has nothing to do.
        workers[1].is_idle = true;
        workers[1].seat.withdraw();
        let (_, done) = run(&mut workers, now, Duration::from_secs(20));
        assert_about(done[0], 10_000);
        assert_about(done[2], 10_000);
    }

    #[test]
    fn what_one_worker_owes_its_hba_pays_before_it_has_anything_else() {
        let start = Instant::now();
        let meter = of_bytes(10 << 20, start);
        let huge = Worker::new(&meter, 1, 512 << 20, start);
        let mut small = huge.fellow(1, start);
        small.cost = Cost { bytes: 4096 };
        let mut workers = [huge, small, Worker::new(&meter, 1, 4096, start)];
        let (now, _) = run(&mut workers[..1], start, Duration::from_millis(1));
        // 512 MiB would take its half of 10 MiB a second for longer.
        let (_, done) = run(&mut workers, now, Duration::from_secs(20));
        assert_eq!(done[..2], [1, 0]);
        assert_about(done[2], (20 * 5) << 8);
    }

    #[test]
    fn what_one_leaves_the_other_gets_and_gives_back() {
        let start = Instant::now();
        let meter = of_operations(1000, start);
        let mut workers = [1, 3].map(|weight| Worker::new(&meter, weight, 4096, start));
        workers[1].is_idle = true;
        let (now, done) = run(&mut workers, start, Duration::from_secs(10));
        assert_about(done[0], 10_000);
        workers[1].is_idle = false;
        let (now, done) = run(&mut workers, now, Duration::from_secs(10));
        assert_about(done[0], 2500);
        assert_about(done[1], 7500);
        // It goes while it waits.
        workers[0].is_idle = true;
        workers[0].seat.withdraw();
        let (_, done) = run(&mut workers, now, Duration::from_secs(10));
        assert_about(done[1], 10_000);
    }

    #[test]
    fn one_that_its_own_limit_keeps_holds_up_nobody_at_the_one_it_shares() {
        let start = Instant::now();
        let (shared, own) = (of_operations(1000, start), of_operations(100, start));
        let mut workers = [
            Worker::new(&shared, 1, 4096, start).with_limit(&own),
            Worker::new(&shared, 1, 4096, start),
        ];
        let (_, done) = run(&mut workers, start, Duration::from_secs(20));
        assert_about(done[0], 2000);
        assert_about(done[1], 18_000);
    }

    #[test]
    fn large_operations_do_not_get_more_bytes_than_small_ones() {
        let start = Instant::now();
        let meter = Arc::new(Meter::default());
        let limit = Limit {
            bytes_per_second: Some(10 << 20),
            ..Limit::default()
        };
        meter.set(limit, start);
        let mut workers = [4096, 1 << 20].map(|bytes| Worker::new(&meter, 1, bytes, start));
        let (_, done) = run(&mut workers, start, Duration::from_secs(60));
        assert_about(done[0], 300 << 8);
        assert_about(done[1], 300);
    }

    fn of_bytes(bytes_per_second: u64, now: Instant) -> Arc<Meter> {
        let meter = Arc::new(Meter::default());
        let limit = Limit {
            bytes_per_second: Some(bytes_per_second),
            ..Limit::default()
        };
        assert!(meter.set(limit, now));
        meter
    }

    #[test]
    fn what_one_owes_for_a_huge_operation_keeps_no_other_from_its_share() {
        let start = Instant::now();
        let meter = of_bytes(10 << 20, start);
        let mut workers = [512 << 20, 4096].map(|bytes| Worker::new(&meter, 1, bytes, start));
        let (now, done) = run(&mut workers[..1], start, Duration::from_millis(1));
        assert_eq!(done, [1]);
        // It wants more, and is the first in turn; but the other has something within a burst's time.
        let (now, done) = run(&mut workers, now, Duration::from_millis(110));
        assert!(done[1] > 0, "{done:?}");
        // Half of 10 MiB a second.
        let (now, done) = run(&mut workers, now, Duration::from_secs(20));
        assert_eq!(done[0], 0);
        assert_about(done[1], (20 * 5) << 8);
        // 412 MiB are left to be paid, less what nobody takes.
        workers[1].is_idle = true;
        workers[1].seat.withdraw();
        let (now, done) = run(&mut workers, now, Duration::from_secs(40));
        assert_eq!(done[0], 0, "{done:?}");
        let came = workers[0].came;
        assert!(came < 2000, "it came {came} times");
        let (_, done) = run(&mut workers, now, Duration::from_secs(2));
        assert_eq!(done[0], 1, "{done:?}");
    }

    #[test]
    fn what_is_owed_is_paid_by_what_nobody_takes() {
        let start = Instant::now();
        let meter = of_bytes(1 << 20, start);
        let worker = Worker::new(&meter, 1, 10 << 20, start);
        let seats = [Some(&worker.seat), None, None];
        let small = Cost { bytes: 512 };
        assert_eq!(pass(seats, worker.cost, start, false), Ok(()));
        let kept = pass(seats, small, start, false).unwrap_err();
        // Of 10 MiB a burst was there, of 50 ms.
        let least = start + Duration::from_millis(9950);
        let most = least + Duration::from_millis(1);
        assert!((least..=most).contains(&kept.until), "{:?}", kept.until);
        assert_eq!(pass(seats, small, kept.until, false), Ok(()));
    }

    #[test]
    fn one_that_does_not_come_is_passed_over() {
        let start = Instant::now();
        let meter = of_operations(1000, start);
        let mut workers = [1, 1].map(|weight| Worker::new(&meter, weight, 4096, start));
        let (now, _) = run(&mut workers, start, Duration::from_secs(1));
        // As if it hung: it waits, and does not go.
        workers[0].is_idle = true;
        let (_, done) = run(&mut workers, now, Duration::from_secs(10));
        assert_about(done[1], 10_000);
    }

    #[test]
    fn another_limit_wakes_who_waits_and_none_lets_all_pass() {
        let start = Instant::now();
        let meter = of_operations(10, start);
        let mut worker = Worker::new(&meter, 1, 4096, start);
        worker.work(start);
        assert!(worker.done <= 2 && !worker.is_rung());
        assert!(meter.set(Limit::default(), start));
        assert!(worker.is_rung() && !meter.is_limited());
        assert_eq!(
            pass([Some(&worker.seat), None, None], worker.cost, start, false),
            Ok(())
        );
        assert!(!meter.set(Limit::default(), start));
    }

    #[test]
    fn nothing_is_taken_of_one_limit_while_another_keeps_it() {
        let start = Instant::now();
        let (first, second) = (of_operations(1000, start), of_operations(1, start));
        let one = Worker::new(&first, 1, 0, start);
        let two = Worker::new(&second, 1, 0, start);
        let both = [Some(&one.seat), Some(&two.seat), None];
        while pass(both, one.cost, start, false).is_ok() {}
        let kept = pass(both, one.cost, start, false).unwrap_err();
        assert_eq!(
            (kept.until, kept.by_others),
            (start + Duration::from_secs(1), true)
        );
        // 50 were there; 2 went at both.
        let mut alone = 0;
        while pass([Some(&one.seat), None, None], one.cost, start, false).is_ok() {
            alone += 1;
        }
        assert_eq!(alone, 48);
    }
}
