//! Memory of tensors that are no longer needed, which a thread keeps for the
//! next ones: fresh memory costs a page fault for each page, and zeros that
//! are written only to be written over.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::marker::PhantomData;
use std::sync::Arc;

use super::{Data, Tensor};

thread_local! {
    static KEPT: RefCell<Kept> =
        const { RefCell::new(Kept { free: vec![], held: 0, most: MOST, taken: VecDeque::new() }) };
}

struct Kept {
    free: Vec<Vec<f32>>,
    /// Elements of `free`, at most `most`.
    held: usize,
    most: usize,
    /// Lengths that were asked for and did not come back: what else is recycled
    /// would be asked for by nobody.
    taken: VecDeque<usize>,
}

/// Elements that a thread keeps in all (32 MiB), unless [`KeptMemory`] says otherwise.
const MOST: usize = 8 << 20;
/// Elements below which the allocator is as good.
const LEAST: usize = 1 << 12;
/// Lengths that are remembered.
const REMEMBERED: usize = 1 << 10;

/// Whether memory of this capacity may serve for `len` elements.
fn fits(capacity: usize, len: usize) -> bool {
    (len..=4 * len).contains(&capacity)
}

/// `len` elements of any value.
pub(crate) fn buffer(len: usize) -> Vec<f32> {
    if len < LEAST {
        return vec![0.0; len];
    }
    let found = KEPT.with_borrow_mut(|kept| {
        if kept.taken.len() == REMEMBERED {
            kept.taken.pop_front();
        }
        kept.taken.push_back(len);
        let fitting = kept.free.iter().enumerate().filter(|(_, v)| fits(v.capacity(), len));
        let (i, _) = fitting.min_by_key(|(_, v)| v.capacity())?;
        let found = kept.free.swap_remove(i);
        kept.held -= found.capacity();
        Some(found)
    });
    let Some(mut found) = found else { return vec![0.0; len] };
    found.resize(len, 0.0);
    found
}

/// Keeps the memory of `t` for [`buffer`], if nobody shares it and it is of use.
pub(crate) fn recycle(t: Tensor) {
    let Data::F32(data) = t.data else { return };
    let Some(data) = Arc::into_inner(data).filter(|v| v.capacity() >= LEAST) else { return };
    KEPT.with_borrow_mut(|kept| {
        // The latest ones first: runs are gone back through in the opposite order.
        let taken = kept.taken.iter().rposition(|&len| fits(data.capacity(), len));
        if let Some(i) = taken
            && kept.held + data.capacity() <= kept.most
        {
            kept.taken.remove(i);
            kept.held += data.capacity();
            kept.free.push(data);
        }
    });
}

/// While it lives, its thread keeps the memory of tensors up to another limit than
/// 32 MiB. What is to need little memory keeps none. A training loop that keeps that of all
/// activations of a batch, about what a step needs, asks the system for it but once.
///
/// ```
/// let memory = lowbit::tensor::KeptMemory::up_to(1 << 30);
/// // Runs and backward passes on this thread.
/// drop(memory);
/// ```
#[derive(Debug)]
#[must_use = "the limit is what it was when this is dropped"]
pub struct KeptMemory {
    before: usize,
    thread: PhantomData<*const ()>,
}

impl KeptMemory {
    /// Keeps up to this many bytes.
    pub fn up_to(bytes: usize) -> KeptMemory {
        let before = KEPT.with_borrow_mut(|kept| kept.limit(bytes / size_of::<f32>()));
        KeptMemory { before, thread: PhantomData }
    }
}

impl Kept {
    /// Sets the limit and frees what is beyond it. Returns the limit before.
    fn limit(&mut self, most: usize) -> usize {
        while self.held > most {
            self.held -= self.free.pop().map_or(self.held, |v| v.capacity());
        }
        std::mem::replace(&mut self.most, most)
    }
}

impl Drop for KeptMemory {
    fn drop(&mut self) {
        KEPT.with_borrow_mut(|kept| kept.limit(self.before));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_comes_back_once_and_only_where_it_fits() {
        let t = Tensor::vector(buffer(10_000));
        let at = t.slice::<f32>().unwrap().as_ptr();
        let shared = t.clone();
        recycle(t);
        let others = [buffer(10_000)];
        assert_ne!(others[0].as_ptr(), at, "a shared tensor was taken");
        recycle(shared);
        let others = [buffer(20_000), buffer(100)];
        assert!(others.iter().all(|v| v.as_ptr() != at), "memory of another size was taken");
        let again = [buffer(9_000), buffer(9_000)];
        assert_eq!((again[0].as_ptr(), again[0].len()), (at, 9_000));
        assert_ne!(again[1].as_ptr(), at);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        recycle(Tensor::vector(vec![0f32; LEAST]));
        assert_eq!(KEPT.with_borrow(|kept| kept.free.len()), 0, "nobody asked for such");
        let taken: Vec<Vec<f32>> = (0..20).map(|_| buffer(MOST / 4)).collect();
        taken.into_iter().for_each(|v| recycle(Tensor::vector(v)));
        assert_eq!(KEPT.with_borrow(|kept| kept.free.len()), 4);
    }
    #[test]
    fn the_limit_is_another_for_a_while() {
        let free = || KEPT.with_borrow(|kept| (kept.free.len(), kept.held));
        let give = || {
            let taken: Vec<Vec<f32>> = (0..6).map(|_| buffer(MOST / 4)).collect();
            taken.into_iter().for_each(|v| recycle(Tensor::vector(v)));
        };
        let other = std::thread::spawn(move || {
            let memory = KeptMemory::up_to(6 * size_of::<f32>() * MOST / 4);
            give();
            assert_eq!(free(), (6, 6 * MOST / 4));
            drop(memory);
            assert_eq!(free(), (4, MOST));
            give();
            assert_eq!(free(), (4, MOST));
            let none = KeptMemory::up_to(0);
            assert_eq!(free(), (0, 0));
            give();
            assert_eq!(free(), (0, 0));
            drop(none);
            give();
            assert_eq!(free(), (4, MOST));
        });
        other.join().unwrap();
    }
}
