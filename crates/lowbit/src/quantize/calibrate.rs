//! Calibration over many batches, on all cores, with the same result as on one.

use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::point::{Point, Role};
use super::prepare::{Prepared, Watch};
use crate::error::{Error, Result, invalid};
use crate::graph::{Graph, Var};
use crate::tensor::Tensor;

/// Called after each batch with the number of batches seen; an error stops the
/// calibration.
pub type Progress<'a> = dyn Fn(usize) -> Result<()> + Sync + 'a;

impl Prepared {
    /// Streams batches through the graph, several at a time, and shows their
    /// values to the points in the order of the batches: the result does not
    /// depend on the number of threads, nor the memory on the number of batches.
    ///
    /// # Errors
    /// If there is no batch, one cannot be read or does not fit the model, a
    /// value is NaN (the error names it), or `progress` stops it.
    pub fn calibrate(
        &mut self,
        batches: impl Iterator<Item = Result<Vec<Tensor>>> + Send,
        progress: &Progress,
    ) -> Result<()> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        self.calibrate_on(threads, batches, progress)
    }

    fn calibrate_on(
        &mut self,
        threads: usize,
        batches: impl Iterator<Item = Result<Vec<Tensor>>> + Send,
        progress: &Progress,
    ) -> Result<()> {
        let (graph, points, watches) = self.parts();
        let ordered: Vec<Ordered> = std::mem::take(points).into_iter().map(Ordered::new).collect();
        let queue = Mutex::new(batches.enumerate());
        let failure = Mutex::new(None);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    let worker = Worker { graph, watches, points: &ordered };
                    if let Err(e) = worker.run(&queue, &failure, progress) {
                        // The first failure is the cause; the others follow from it.
                        lock(&failure).get_or_insert(e);
                        ordered.iter().for_each(Ordered::abandon);
                    }
                });
            }
        });
        *points = ordered.into_iter().map(Ordered::into_point).collect();
        match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(e) => Err(e),
            None if lock(&queue).next().is_none() && self.saw_nothing() => {
                Err(invalid!("the calibration data is empty: give at least one sample"))
            }
            None => Ok(()),
        }
    }

    fn saw_nothing(&self) -> bool {
        let mut watched = self.points.iter().filter(|p| p.role == Role::Activation && p.sites > 0).peekable();
        watched.peek().is_some() && watched.all(|p| p.observer.is_empty())
    }
}

struct Worker<'a> {
    graph: &'a Graph,
    watches: &'a HashMap<Var, Vec<Watch>>,
    points: &'a [Ordered],
}

impl Worker<'_> {
    fn run(
        &self,
        queue: &Mutex<impl Iterator<Item = (usize, Result<Vec<Tensor>>)> + Send>,
        failure: &Mutex<Option<Error>>,
        progress: &Progress,
    ) -> Result<()> {
        // Batches are what is spread over the cores; inside, each runs on one.
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(1)
            .use_current_thread()
            .build()
            .map_err(|e| invalid!("cannot start a calibration thread: {e}"))?;
        loop {
            if lock(failure).is_some() {
                return Ok(());
            }
            let next = lock(queue).next();
            let Some((index, batch)) = next else { return Ok(()) };
            let batch = batch.map_err(|e| e.at(format!("calibration batch {index}")))?;
            pool.install(|| {
                let watched = |v| self.watches.contains_key(&v);
                self.graph.run_watched(&batch, watched, |v, _, value| {
                    let mut watches = self.watches.get(&v).into_iter().flatten();
                    watches.try_for_each(|w| self.points[w.point].observe(index, w.site, value))
                })
            })
            .map_err(|e| e.at(format!("calibration batch {index}")))?;
            progress(index + 1)?;
        }
    }
}

/// A point that observes in the order of batches and, within a batch, of sites.
struct Ordered {
    state: Mutex<State>,
    turn: Condvar,
}

struct State {
    point: Point,
    next: usize,
    abandoned: bool,
}

impl Ordered {
    fn new(point: Point) -> Ordered {
        Ordered { state: Mutex::new(State { point, next: 0, abandoned: false }), turn: Condvar::new() }
    }

    fn observe(&self, batch: usize, site: usize, value: &Tensor) -> Result<()> {
        let mut state = lock(&self.state);
        let mine = batch * state.point.sites + site;
        while state.next != mine && !state.abandoned {
            state = self.turn.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.abandoned {
            return Err(Error::Interrupted);
        }
        state.point.observe(value)?;
        state.next += 1;
        self.turn.notify_all();
        Ok(())
    }

    fn abandon(&self) {
        lock(&self.state).abandoned = true;
        self.turn.notify_all();
    }

    fn into_point(self) -> Point {
        self.state.into_inner().unwrap_or_else(PoisonError::into_inner).point
    }
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}
