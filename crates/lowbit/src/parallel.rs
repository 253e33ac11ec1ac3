//! Work spread over the threads of the current rayon pool.

use std::hint;
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;

/// Calls `f` in the current pool with its other threads awake: they look for
/// work until `f` is done, since falling asleep and waking up takes longer than
/// many an operator. A pool of one thread is not entered at all.
pub fn with_threads_awake<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    /// Ends the waiting, also when `f` panics.
    struct Done<'a>(&'a AtomicBool);
    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Release);
        }
    }
    fn wait(done: &AtomicBool) {
        while !done.load(Ordering::Acquire) {
            if rayon::yield_now() != Some(rayon::Yield::Executed) {
                hint::spin_loop();
            }
        }
    }
    fn all_wait(threads: usize, done: &AtomicBool) {
        match threads {
            0 => {}
            1 => wait(done),
            n => _ = rayon::join(|| wait(done), || all_wait(n - 1, done)),
        }
    }
    let others = rayon::current_num_threads() - 1;
    if others == 0 {
        return f();
    }
    let done = AtomicBool::new(false);
    let run = || {
        let _done = Done(&done);
        f()
    };
    rayon::join(run, || all_wait(others, &done)).0
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
