//! Threads that work on one step after the other, started and joined in less than a microsecond.
//!
//! A training step of a small network has dozens of steps of some microseconds. Waking a thread
//! takes longer than that, so the threads of a [`Team`] wait for the next step of a run with their
//! eyes open for a while, and sleep only then. The caller is one of the team: it works on what it
//! has handed out, and waits in the end only for those who have taken part. One who comes late,
//! because it slept or its processor had others to serve, finds nothing left and holds up nobody.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a thread looks out for work before it sleeps: about what waking it would cost, a few
/// times over, so that the gaps between the steps of a run and between two runs find it awake.
const AWAKE: Duration = Duration::from_micros(200);

/// Looks between two readings of the clock, after which others may have the processor.
const LOOKS: u32 = 64;

thread_local! {
    /// The team of the run that this thread is in; none while it works on a task, so that what a
    /// task would hand out it does itself.
    static CURRENT: Cell<Option<Arc<Team>>> = const { Cell::new(None) };
}

/// A panic of a task.
type Payload = Box<dyn Any + Send>;

/// Threads that work together; dropped, they end.
pub(crate) struct Team {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for Team {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Team")
            .field("size", &self.size())
            .finish_non_exhaustive()
    }
}

/// A counter that shares its cache line with no other.
#[repr(align(128))]
#[derive(Default)]
struct Line<T>(T);

/// What a step is split into, without its type.
#[derive(Clone, Copy)]
struct Job {
    /// Calls the closure behind the pointer with the number of a task.
    call: unsafe fn(*const (), usize),
    task: *const (),
    count: usize,
    /// How many members take part at most.
    members: usize,
}

/// What the members of a team have in common.
struct Shared {
    /// The number of the job in the upper half; whether one may still join it; how many members
    /// have joined it and not left, the caller not counted.
    state: Line<AtomicU64>,
    /// Written by the caller while `state` is closed and nobody has joined; read by who has.
    job: UnsafeCell<Job>,
    /// The next task of each member's part; a member who is done with its own goes on with others'.
    parts: Box<[Line<AtomicUsize>]>,
    /// Whether a caller has the team.
    taken: Line<AtomicBool>,
    /// Whether a thread sleeps or is about to, and nobody has called since; written under the lock
    /// of `calls`.
    asleep: Line<AtomicBool>,
    /// Whether the team ends.
    quit: AtomicBool,
    /// The first panic of a thread in the current job.
    panic: Mutex<Option<Payload>>,
    /// How often sleepers were called.
    calls: Mutex<u64>,
    alarm: Condvar,
}

/// Set in `state` while a job may be joined.
const OPEN: u64 = 1 << 31;
/// The members in `state`.
const JOINED: u64 = OPEN - 1;
/// One job more in `state`.
const NEXT: u64 = 1 << 32;

#[expect(
    unsafe_code,
    reason = "the pointer in `job` is that of a `Sync` closure"
)]
// SAFETY: everything but `job` is `Sync` and `Send`. `job` is written by the one caller that has
// set `taken`, while `state` is closed and nobody has joined, and read by members between joining
// and leaving, which a caller waits for before it writes again; the closure behind its pointer is
// `Sync` (`fork` asks for it), and is borrowed by `fork` until the last member has left.
unsafe impl Sync for Shared {}
#[expect(unsafe_code, reason = "as above")]
// SAFETY: as above.
unsafe impl Send for Shared {}

/// The lock, also of a mutex that a panic has poisoned: what they guard is whole at any time.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// The tasks of a member's part.
fn part(job: &Job, member: usize) -> std::ops::Range<usize> {
    let cut = |m: usize| (job.count as u128 * m as u128 / job.members as u128) as usize;
    cut(member)..cut(member + 1)
}

impl Shared {
    /// Works on tasks until there are none left, on those of its own part first.
    #[expect(unsafe_code, reason = "calls the closure of a job")]
    fn work(&self, job: &Job, member: usize) {
        for i in 0..job.members {
            let owner = (member + i) % job.members;
            let end = part(job, owner).end;
            let next = &self.parts[owner].0;
            loop {
                // Looked at first, so that the counter does not grow with idle members.
                if next.load(Relaxed) >= end {
                    break;
                }
                let task = next.fetch_add(1, Relaxed);
                if task >= end {
                    break;
                }
                // SAFETY: `call` was made for the type behind `task`, which is borrowed until all
                // members have left; each number is given out once.
                unsafe { (job.call)(job.task, task) };
            }
        }
    }

    /// Joins a job that was not `seen` before, if there is one: its state.
    fn join(&self, seen: u64) -> Option<u64> {
        let mut state = self.state.0.load(SeqCst);
        while state & OPEN != 0 && state / NEXT != seen {
            match self
                .state
                .0
                .compare_exchange_weak(state, state + 1, Acquire, Relaxed)
            {
                Ok(_) => return Some(state),
                Err(now) => state = now,
            }
        }
        None
    }

    /// What a thread of the team does with its life.
    #[expect(unsafe_code, reason = "reads the job that it has joined")]
    fn live(&self, member: usize) {
        let mut seen = 0;
        while let Some(state) = self.wait(seen) {
            seen = state / NEXT;
            // SAFETY: joined, so nobody writes it.
            let job = unsafe { *self.job.get() };
            if member < job.members {
                let work = AssertUnwindSafe(|| self.work(&job, member));
                if let Err(payload) = catch_unwind(work) {
                    lock(&self.panic).get_or_insert(payload);
                }
            }
            self.state.0.fetch_sub(1, Release);
        }
    }

    /// Waits for a job to join; nothing if the team ends.
    fn wait(&self, seen: u64) -> Option<u64> {
        let mut since = None;
        let mut looks = 0;
        loop {
            if let Some(state) = self.join(seen) {
                return Some(state);
            }
            std::hint::spin_loop();
            looks += 1;
            if looks < LOOKS {
                continue;
            }
            looks = 0;
            if self.quit.load(Relaxed) {
                return None;
            }
            if since.get_or_insert_with(Instant::now).elapsed() < AWAKE {
                // Where there are more threads than processors, somebody may wait for this one.
                std::thread::yield_now();
                continue;
            }
            if let Some(state) = self.sleep(seen) {
                return Some(state);
            }
            since = None;
        }
    }

    /// Sleeps until there is a call; a job that came just now is joined instead.
    fn sleep(&self, seen: u64) -> Option<u64> {
        let mut calls = lock(&self.calls);
        let before = *calls;
        // Who opens a job looks for sleepers afterwards, and who sleeps says so before it looks
        // for a job: in the one order that all these have, either sees the other.
        self.asleep.0.store(true, SeqCst);
        if let Some(state) = self.join(seen) {
            return Some(state);
        }
        while *calls == before && !self.quit.load(SeqCst) {
            calls = self
                .alarm
                .wait(calls)
                .unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        None
    }

    /// Wakes who sleeps.
    fn rouse(&self) {
        if self.asleep.0.load(SeqCst) {
            let mut calls = lock(&self.calls);
            *calls = calls.wrapping_add(1);
            self.asleep.0.store(false, SeqCst);
            drop(calls);
            self.alarm.notify_all();
        }
    }
}

impl Team {
    /// A team of `size` members, of which the caller is one.
    pub(crate) fn new(size: usize) -> std::io::Result<Arc<Team>> {
        /// Has no tasks, so nobody calls it.
        fn idle(_: *const (), _: usize) {}
        let size = size.max(1);
        let mut team = Team {
            shared: Arc::new(Shared {
                state: Line::default(),
                job: UnsafeCell::new(Job {
                    call: idle,
                    task: std::ptr::null(),
                    count: 0,
                    members: 1,
                }),
                parts: (0..size).map(|_| Line::default()).collect(),
                taken: Line::default(),
                asleep: Line::default(),
                quit: AtomicBool::new(false),
                panic: Mutex::new(None),
                calls: Mutex::new(0),
                alarm: Condvar::new(),
            }),
            threads: Vec::new(),
        };
        for member in 1..size {
            let shared = team.shared.clone();
            // Those that have started end with `team` if one cannot.
            team.threads.push(
                std::thread::Builder::new()
                    .name(format!("opt-ndarray-{member}"))
                    .spawn(move || shared.live(member))?,
            );
        }
        Ok(Arc::new(team))
    }

    fn size(&self) -> usize {
        self.shared.parts.len()
    }

    /// Runs `f` as this team: what it hands out, the team works on.
    pub(crate) fn enter<R>(self: &Arc<Team>, f: impl FnOnce() -> R) -> R {
        /// Puts back what was there, also when `f` panics.
        struct Restore(Option<Arc<Team>>);
        impl Drop for Restore {
            fn drop(&mut self) {
                CURRENT.set(self.0.take());
            }
        }
        // They are awake when the first step comes.
        self.shared.rouse();
        let _restore = Restore(CURRENT.replace(Some(self.clone())));
        f()
    }

    /// Calls `task` with the numbers below `count`, on `members` threads at most.
    #[expect(unsafe_code, reason = "hands a borrowed closure to other threads")]
    fn fork<F: Fn(usize) + Sync>(&self, members: usize, count: usize, task: &F) {
        /// Calls the closure that a job points to.
        ///
        /// # Safety
        /// `task` is a pointer to an `F`, borrowed meanwhile.
        unsafe fn call<F: Fn(usize)>(task: *const (), number: usize) {
            // SAFETY: as the caller vouches.
            unsafe { (*task.cast::<F>())(number) }
        }
        let shared = &*self.shared;
        let members = members.min(self.size()).min(count);
        // Another run has it now: the caller alone is faster than waiting.
        if members < 2 || shared.taken.0.swap(true, Acquire) {
            return (0..count).for_each(task);
        }
        let job = Job {
            call: call::<F>,
            task: std::ptr::from_ref(task).cast(),
            count,
            members,
        };
        for (member, next) in shared.parts[..members].iter().enumerate() {
            next.0.store(part(&job, member).start, Relaxed);
        }
        // SAFETY: this thread has set `taken`, and who had it before has closed `state` and waited
        // until nobody was joined.
        unsafe { *shared.job.get() = job };
        let number = (shared.state.0.load(Relaxed) / NEXT).wrapping_add(1);
        shared
            .state
            .0
            .store(number.wrapping_mul(NEXT) | OPEN, SeqCst);
        shared.rouse();
        let own = catch_unwind(AssertUnwindSafe(|| shared.work(&job, 0)));
        shared.state.0.fetch_and(!OPEN, Relaxed);
        let mut looks = 0;
        while shared.state.0.load(Acquire) & JOINED != 0 {
            std::hint::spin_loop();
            looks += 1;
            if looks % LOOKS == 0 {
                std::thread::yield_now();
            }
        }
        let others = lock(&shared.panic).take();
        shared.taken.0.store(false, Release);
        if let Some(payload) = own.err().or(others) {
            resume_unwind(payload);
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.quit.store(true, SeqCst);
        {
            let mut calls = lock(&self.shared.calls);
            *calls = calls.wrapping_add(1);
        }
        self.shared.alarm.notify_all();
        for thread in self.threads.drain(..) {
            // A task may hold what holds the team; a thread cannot wait for its own end.
            if thread.thread().id() != std::thread::current().id() {
                // Panics of tasks never get here.
                let _ = thread.join();
            }
        }
    }
}

/// Calls `task` with the numbers below `count`, on up to `members` threads of the team that the
/// caller runs as; without a team, or within a task, on the caller.
pub(super) fn fork<F: Fn(usize) + Sync>(members: usize, count: usize, task: &F) {
    /// Puts the team back, also when a task panics.
    struct Restore(Option<Arc<Team>>);
    impl Drop for Restore {
        fn drop(&mut self) {
            CURRENT.set(self.0.take());
        }
    }
    let team = Restore(CURRENT.take());
    match &team.0 {
        Some(own) => own.fork(members, count, task),
        None => (0..count).for_each(task),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// How often each task was called.
    fn counts(members: usize, count: usize) -> Vec<usize> {
        let called: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
        fork(members, count, &|i| {
            called[i].fetch_add(1, Relaxed);
        });
        called.into_iter().map(AtomicUsize::into_inner).collect()
    }

    /// Takes a moment that the compiler cannot leave out.
    fn work(moments: usize) {
        for i in 0..moments {
            std::hint::black_box(i);
        }
    }

    #[test]
    fn every_task_runs_once() {
        for size in [1, 2, 3, 8] {
            let team = Team::new(size).unwrap();
            team.enter(|| {
                for round in 0..200 {
                    for count in [0, 1, 2, 3, 7, 64, 1000] {
                        let members = 1 + (round + count) % 9;
                        assert_eq!(counts(members, count), vec![1; count]);
                    }
                }
            });
        }
    }

    #[test]
    fn sleepers_wake() {
        let team = Team::new(3).unwrap();
        for _ in 0..20 {
            std::thread::sleep(2 * AWAKE);
            team.enter(|| {
                // Longer than a thread stays awake, so that some sleep when work comes.
                std::thread::sleep(AWAKE + AWAKE / 10);
                assert_eq!(counts(3, 100), vec![1; 100]);
            });
        }
    }

    #[test]
    fn several_threads_take_part() {
        let team = Team::new(2).unwrap();
        let everybody = Mutex::new(BTreeSet::new());
        team.enter(|| {
            // How soon the other comes is not in the test's hands, only that it does.
            while everybody.lock().unwrap().len() < 2 {
                fork(2, 8, &|_| {
                    work(10_000);
                    let name = format!("{:?}", std::thread::current().id());
                    everybody.lock().unwrap().insert(name);
                });
            }
        });
    }

    #[test]
    fn runs_at_once_and_within_each_other_share_a_team() {
        let team = Team::new(3).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..300 {
                        let total = AtomicUsize::new(0);
                        team.enter(|| {
                            fork(3, 5, &|i| {
                                // Of a task: on its own thread, in a run of the same team too.
                                fork(3, 3, &|j| {
                                    total.fetch_add(i * 3 + j, Relaxed);
                                });
                                team.enter(|| assert_eq!(counts(3, 9), [1; 9]));
                            });
                        });
                        assert_eq!(total.into_inner(), (0..15usize).sum::<usize>());
                    }
                });
            }
        });
    }

    #[test]
    fn panics_of_any_task_reach_the_caller_and_spoil_nothing() {
        let team = Team::new(3).unwrap();
        for bad in (0..60).chain([0, 59]) {
            let outcome = team.enter(|| {
                catch_unwind(AssertUnwindSafe(|| {
                    fork(3, 60, &|i| {
                        work(100);
                        if i == bad {
                            std::panic::resume_unwind(Box::new(i));
                        }
                    });
                }))
            });
            assert_eq!(outcome.unwrap_err().downcast_ref(), Some(&bad));
            team.enter(|| assert_eq!(counts(3, 10), [1; 10]));
        }
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            team.enter(|| std::panic::resume_unwind(Box::new(())));
        }));
        outcome.unwrap_err();
        assert!(CURRENT.take().is_none(), "a run that panicked is over");
    }

    #[test]
    fn a_team_ends_awake_or_asleep() {
        for pause in [Duration::ZERO, AWAKE, 3 * AWAKE] {
            for _ in 0..20 {
                let team = Team::new(4).unwrap();
                team.enter(|| counts(4, 4));
                std::thread::sleep(pause);
                let shared = Arc::downgrade(&team.shared);
                drop(team);
                assert!(shared.upgrade().is_none(), "its threads have ended");
            }
        }
    }

    #[test]
    fn without_a_team_the_caller_works_alone() {
        let own = std::thread::current().id();
        fork(4, 10, &|_| assert_eq!(std::thread::current().id(), own));
    }
}
