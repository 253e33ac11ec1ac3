//! Work spread over the threads of the current rayon pool.

use std::cell::Cell;
use std::hint;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rayon::Yield;
use rayon::prelude::*;

/// How long a thread looks for more work once it has found some: less than it takes
/// to notice, and more than what lies between two runs in succession.
const LINGER: Duration = Duration::from_micros(200);
/// Fruitless looks between two at the clock, after which others may have the CPU.
const LOOKS: usize = 32;

thread_local! {
    /// What this thread does, of the kinds below.
    static HERE: Here = const { Here { runs: Cell::new(0), lingers: Cell::new(false), called: Cell::new(None) } };
}

/// What a thread of a pool does.
struct Here {
    /// How many runs it is in.
    runs: Cell<usize>,
    /// Whether it looks for work.
    lingers: Cell<bool>,
    /// When it last called all threads to look for work.
    called: Cell<Option<Instant>>,
}

/// Calls `f` in the current pool with its other threads awake, since falling asleep
/// and waking up takes longer than many an operator: they look for work until they
/// have found none for [`LINGER`], so that the next run, too, finds them awake. A pool
/// of one thread is not entered at all.
///
/// A caller that is no thread of the pool sleeps meanwhile, and has to be woken up.
pub fn with_threads_awake<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    /// Ends a run, also when it panics.
    struct Run;
    impl Drop for Run {
        fn drop(&mut self) {
            HERE.with(|here| here.runs.update(|runs| runs - 1));
        }
    }
    if rayon::current_num_threads() == 1 {
        return f();
    }
    let in_pool = || {
        HERE.with(|here| here.runs.update(|runs| runs + 1));
        let _run = Run;
        rayon::join(f, call_all).0
    };
    match rayon::current_thread_index() {
        Some(_) => in_pool(),
        None => rayon::join(in_pool, || ()).0,
    }
}

/// Has all threads of the pool look for work, unless that was done just now or
/// nobody but the thread of a run came to do it.
fn call_all() {
    HERE.with(|here| {
        let recent = here.called.get().is_some_and(|then| then.elapsed() < LINGER / 2);
        if here.runs.get() == 0 && !recent {
            here.called.set(Some(Instant::now()));
            rayon::spawn_broadcast(|_| linger());
        }
    });
}

/// Does what work there is in the pool for [`LINGER`], and again if there was any.
///
/// It waits for nothing, and ends in between: were it called while the thread waits
/// for a part of its own work, that could go on.
fn linger() {
    let here = |f: &dyn Fn(&Here) -> bool| HERE.with(f);
    if here(&|h| h.runs.get() > 0 || h.lingers.replace(true)) {
        return;
    }
    let (start, mut found, mut looks) = (Instant::now(), false, 0);
    loop {
        if rayon::yield_now() == Some(Yield::Executed) {
            found = true;
        } else {
            hint::spin_loop();
            looks += 1;
        }
        if looks == LOOKS {
            thread::yield_now();
            looks = 0;
        }
        if start.elapsed() > LINGER {
            break;
        }
    }
    here(&|h| h.lingers.replace(false));
    if found {
        rayon::spawn(linger);
    }
}

/// [`rayon::join`], but this thread does not fall asleep for lack of other work while another one
/// is about to end `b`: waking up takes longer than that.
pub fn join<A: Send, B: Send>(a: impl FnOnce() -> A + Send, b: impl FnOnce() -> B + Send) -> (A, B) {
    let (begun, ended) = (AtomicBool::new(false), AtomicBool::new(false));
    let a = || {
        let result = a();
        if begun.load(Ordering::Relaxed) {
            let start = Instant::now();
            while !ended.load(Ordering::Relaxed) && start.elapsed() < LINGER {
                if rayon::yield_now() != Some(Yield::Executed) {
                    hint::spin_loop();
                }
            }
        }
        result
    };
    let b = || {
        begun.store(true, Ordering::Relaxed);
        let result = b();
        ended.store(true, Ordering::Relaxed);
        result
    };
    rayon::join(a, b)
}

/// Calls `f(i, chunk)` for each chunk of `size` elements of `data`, the last
/// one perhaps shorter. A pool of one thread is not entered at all: the caller
/// does the work.
pub fn chunks<T: Send>(data: &mut [T], size: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    let size = size.max(1);
    if data.len() <= size || rayon::current_num_threads() == 1 {
        data.chunks_mut(size).enumerate().for_each(|(i, chunk)| f(i, chunk));
    } else {
        data.par_chunks_mut(size).enumerate().for_each(|(i, chunk)| f(i, chunk));
    }
}

/// The least divisor of `rows` that is a task of at least `work`, where a row
/// is `work_of_a_row`; 1 if there are no rows.
pub fn rows_of_a_task(work: usize, work_of_a_row: usize, rows: usize) -> usize {
    let least = (work / work_of_a_row.max(1)).max(1);
    (least..rows).find(|r| rows.is_multiple_of(*r)).unwrap_or(rows).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_divide_the_rows() {
        for (work, row, rows, want) in [
            (100, 10, 40, 10),
            (100, 10, 33, 11),
            (100, 10, 7, 7),
            (1, 10, 7, 1),
            (100, 0, 6, 6),
            (9, 1, 0, 1),
        ] {
            assert_eq!(rows_of_a_task(work, row, rows), want, "{work} of {row} each, {rows} rows");
        }
    }

    #[test]
    fn runs_of_several_threads_end() {
        fn sum(x: &[u64]) -> u64 {
            match x {
                [x] => *x,
                _ => {
                    let (a, b) = x.split_at(x.len() / 2);
                    let (a, b) = rayon::join(|| sum(a), || sum(b));
                    a + b
                }
            }
        }
        let numbers: Vec<u64> = (0..300).collect();
        let run = || with_threads_awake(|| sum(&numbers));
        for threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            // From threads of the pool, within a run, and from threads outside.
            let inside = || (0..100).into_par_iter().map(|_| run() + with_threads_awake(run)).sum::<u64>();
            assert_eq!(pool.install(inside), 200 * run());
            thread::scope(|scope| {
                let all = [0; 3].map(|_| scope.spawn(|| (0..100).map(|_| pool.install(run)).sum::<u64>()));
                all.into_iter().for_each(|one| assert_eq!(one.join().unwrap(), 100 * run()));
            });
            let panics = || with_threads_awake(|| panic!("a run that panics"));
            assert!(pool.install(|| std::panic::catch_unwind(panics)).is_err());
            assert_eq!(pool.install(run), run());
        }
    }

    #[test]
    fn every_chunk_is_visited_once() {
        for size in [0, 1, 3, 7, 10] {
            let mut data = [0usize; 7];
            chunks(&mut data, size, |i, chunk| chunk.iter_mut().for_each(|x| *x += i * size.max(1) + 1));
            assert!(
                data.iter().enumerate().all(|(at, &x)| x == at / size.max(1) * size.max(1) + 1),
                "{data:?}"
            );
        }
    }
}
