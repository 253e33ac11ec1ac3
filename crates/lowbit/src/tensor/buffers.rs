//! Memory of tensors that are no longer needed, which a thread keeps for the
//! next ones: fresh memory costs a page fault for each page, and zeros that
//! are written only to be written over.

use std::cell::RefCell;
use std::sync::Arc;

use super::{Data, Tensor};

thread_local! {
    static KEPT: RefCell<Kept> = const { RefCell::new(Kept { free: vec![], taken: vec![] }) };
}

struct Kept {
    free: Vec<Vec<f32>>,
    /// Lengths that were asked for and did not come back: what else is recycled
    /// would be asked for by nobody.
    taken: Vec<usize>,
}

/// Elements that a thread keeps in all (32 MiB).
const MOST: usize = 8 << 20;
/// Elements below which the allocator is as good.
const LEAST: usize = 1 << 12;
/// Lengths that are remembered.
const REMEMBERED: usize = 64;

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
            kept.taken.remove(0);
        }
        kept.taken.push(len);
        let fitting = kept.free.iter().enumerate().filter(|(_, v)| fits(v.capacity(), len));
        let (i, _) = fitting.min_by_key(|(_, v)| v.capacity())?;
        Some(kept.free.swap_remove(i))
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
        let held: usize = kept.free.iter().map(Vec::capacity).sum();
        let taken = kept.taken.iter().position(|&len| fits(data.capacity(), len));
        if let Some(i) = taken
            && held + data.capacity() <= MOST
        {
            kept.taken.remove(i);
            kept.free.push(data);
        }
    });
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
}
