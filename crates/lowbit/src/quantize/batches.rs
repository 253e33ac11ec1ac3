//! Batches spread over the cores, with results that do not depend on how many
//! there are.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result, invalid};
use crate::graph::{Graph, Var};
use crate::tensor::{KeptMemory, Tensor};

/// Called after each batch with its number, from 1; an error stops the pass
/// over the data.
pub type Progress<'a> = dyn Fn(usize) -> Result<()> + Sync + 'a;

/// Runs `graph` on every batch, two at a time on `threads` threads, and shows the
/// values that are `watched` with the batch's index to `see`. On failure `abandon` is called,
/// to release threads that wait in `see`.
///
/// # Errors
/// The first failure: a batch cannot be read or does not fit the model (the
/// error has its index), or `see` or `progress` fails.
pub fn run_all(
    threads: usize,
    graph: &Graph,
    batches: impl Iterator<Item = Result<Vec<Tensor>>> + Send,
    progress: &Progress,
    watched: impl Fn(Var) -> bool + Sync,
    see: impl Fn(usize, Var, &Tensor) -> Result<()> + Sync,
    abandon: impl Fn() + Sync,
) -> Result<()> {
    spread(
        threads,
        batches,
        |index, batch| {
            let _kept = KeptMemory::up_to(0);
            let at = |e: Error| e.at(format!("calibration batch {index}"));
            graph
                .run_watched(&batch.map_err(at)?, &watched, |v, _, value| see(index, v, value))
                .map_err(at)?;
            progress(index + 1)
        },
        abandon,
    )
}

/// Items that are worked at at once: what they need of memory is then twice that of one, however
/// many threads there are.
const AT_ONCE: usize = 2;

/// Does `work` for every item with its index. Two items at most are worked at at once; inside,
/// each spreads over its half of the `threads`. On failure `abandon` is called, to release
/// threads that wait in `work`.
///
/// # Errors
/// The first failure of `work`.
pub fn spread<T: Send>(
    threads: usize,
    items: impl Iterator<Item = T> + Send,
    work: impl Fn(usize, T) -> Result<()> + Sync,
    abandon: impl Fn() + Sync,
) -> Result<()> {
    let queue = Mutex::new(items.enumerate());
    let failure: Mutex<Option<Error>> = Mutex::new(None);
    let take_part = |threads: usize| -> Result<()> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .use_current_thread()
            .build()
            .map_err(|e| invalid!("cannot start a thread: {e}"))?;
        while lock(&failure).is_none() {
            let next = lock(&queue).next();
            let Some((index, item)) = next else { break };
            pool.install(|| work(index, item))?;
        }
        Ok(())
    };
    let lanes = threads.clamp(1, AT_ONCE);
    let lane = |lane: usize| {
        let own = threads / lanes + usize::from(lane < threads % lanes);
        if let Err(e) = take_part(own.max(1)) {
            // The first failure is the cause; the others follow from it.
            lock(&failure).get_or_insert(e);
            abandon();
        }
    };
    std::thread::scope(|scope| {
        let lane = &lane;
        let running: Vec<_> = (0..lanes).map(|i| scope.spawn(move || lane(i))).collect();
        // Once a thread is joined, what it kept is free.
        for thread in running {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
    });
    failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

/// The number of threads that work at batches.
pub fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// What threads change one after another, in an order given beforehand.
pub struct InTurn<T> {
    state: Mutex<State<T>>,
    turn: Condvar,
}

struct State<T> {
    value: T,
    next: usize,
    abandoned: bool,
}

impl<T> InTurn<T> {
    /// The value before the first turn, 0.
    pub fn new(value: T) -> InTurn<T> {
        InTurn { state: Mutex::new(State { value, next: 0, abandoned: false }), turn: Condvar::new() }
    }

    /// Waits for a turn and changes the value.
    ///
    /// # Errors
    /// What `change` returns, or that the wait was abandoned.
    pub fn change(&self, turn: usize, change: impl FnOnce(&mut T) -> Result<()>) -> Result<()> {
        let mut state = lock(&self.state);
        while state.next != turn && !state.abandoned {
            state = self.turn.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.abandoned {
            return Err(Error::Interrupted);
        }
        change(&mut state.value)?;
        state.next += 1;
        self.turn.notify_all();
        Ok(())
    }

    /// Ends all waits with an error.
    pub fn abandon(&self) {
        lock(&self.state).abandoned = true;
        self.turn.notify_all();
    }

    /// The value after the last turn.
    pub fn into_inner(self) -> T {
        self.state.into_inner().unwrap_or_else(PoisonError::into_inner).value
    }
}

/// The value behind a lock, whatever became of the threads that had it.
pub fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}
