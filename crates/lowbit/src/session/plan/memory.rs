//! The arena: where values lie while they live.

use std::ops::Range;

/// Bytes to which values are aligned: a cache line.
const ALIGNMENT: usize = 64;

/// A span of memory that is needed from one step to another, inclusive.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// Bytes.
    pub size: usize,
    /// The first step that writes it.
    pub first: usize,
    /// The last step that reads it.
    pub last: usize,
}

/// An offset for each span, such that spans alive at the same time do not
/// overlap, and the size of the whole.
///
/// The largest come first, each at the lowest offset that is free while it lives
/// (Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net
/// Inference", 2020: greedy by size).
pub fn arrange(spans: &[Span]) -> (Vec<usize>, usize) {
    let mut order: Vec<usize> = (0..spans.len()).collect();
    order.sort_by_key(|&i| (usize::MAX - spans[i].size, spans[i].first));
    let mut offsets = vec![0; spans.len()];
    let mut placed: Vec<usize> = vec![];
    let mut end = 0;
    for i in order {
        let size = spans[i].size.next_multiple_of(ALIGNMENT);
        let mut at = 0;
        // `placed` is in the order of offsets.
        for &other in
            placed.iter().filter(|&&o| spans[o].first <= spans[i].last && spans[i].first <= spans[o].last)
        {
            if at + size <= offsets[other] {
                break;
            }
            at = at.max(offsets[other] + spans[other].size.next_multiple_of(ALIGNMENT));
        }
        offsets[i] = at;
        end = end.max(at + size);
        placed.insert(placed.partition_point(|&o| offsets[o] <= at), i);
    }
    (offsets, end)
}

/// Aligned bytes.
#[derive(Debug)]
pub struct Arena {
    words: Vec<f32>,
    /// Bytes before the first aligned one.
    skip: usize,
    size: usize,
}

impl Arena {
    /// `size` bytes, already in memory.
    pub fn new(size: usize) -> Arena {
        // Written now, so that no run meets a page for the first time.
        let words = vec![1.0f32; (size + ALIGNMENT).div_ceil(size_of::<f32>())];
        let skip = words.as_ptr().cast::<u8>().align_offset(ALIGNMENT).min(ALIGNMENT);
        Arena { words, skip, size }
    }

    /// The bytes of `written`, and a reader of all others.
    pub fn split(&mut self, written: Range<usize>) -> (Reader<'_>, &mut [u8]) {
        let bytes = &mut bytemuck::cast_slice_mut::<f32, u8>(&mut self.words)[self.skip..][..self.size];
        let (before, rest) = bytes.split_at_mut(written.start);
        let (hole, after) = rest.split_at_mut(written.len());
        (Reader { before, after, end: written.end }, hole)
    }

    /// A reader of all bytes.
    pub fn reader(&self) -> Reader<'_> {
        let bytes = &bytemuck::cast_slice::<f32, u8>(&self.words)[self.skip..][..self.size];
        // What is after the end is empty, and aligned like all else.
        let (before, after) = bytes.split_at(bytes.len());
        Reader { before, after, end: bytes.len() }
    }
}

/// The bytes that are not being written.
#[derive(Clone, Copy)]
pub struct Reader<'a> {
    before: &'a [u8],
    after: &'a [u8],
    end: usize,
}

impl<'a> Reader<'a> {
    /// The bytes of `range`, unless some are being written.
    pub fn get(self, range: Range<usize>) -> Option<&'a [u8]> {
        match range.start.checked_sub(self.end) {
            Some(start) => self.after.get(start..range.end - self.end),
            None => self.before.get(range),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn values_alive_together_do_not_overlap(
            spans in prop::collection::vec((0usize..400, 0usize..12, 0usize..5), 0..40)
        ) {
            let spans: Vec<Span> =
                spans.iter().map(|&(size, first, len)| Span { size, first, last: first + len }).collect();
            let (offsets, end) = arrange(&spans);
            let most: usize = spans.iter().map(|s| s.size.next_multiple_of(ALIGNMENT)).sum();
            prop_assert!(end <= most);
            for (i, a) in spans.iter().enumerate() {
                prop_assert!(offsets[i] % ALIGNMENT == 0 && offsets[i] + a.size <= end);
                for (j, b) in spans.iter().enumerate().skip(i + 1) {
                    let together = a.first <= b.last && b.first <= a.last;
                    let apart = offsets[i] + a.size <= offsets[j] || offsets[j] + b.size <= offsets[i];
                    prop_assert!(!together || apart, "{i} and {j} of {spans:?} at {offsets:?}");
                }
            }
        }
    }

    #[test]
    fn values_that_follow_each_other_share_memory() {
        let spans: Vec<Span> = (0..10).map(|i| Span { size: 100, first: i, last: i + 1 }).collect();
        assert_eq!(arrange(&spans).1, 2 * 128);
    }

    #[test]
    fn nothing_is_read_from_an_empty_arena() {
        let arena = Arena::new(0);
        let bytes = arena.reader().get(0..0).unwrap();
        assert_eq!(bytemuck::cast_slice::<u8, f32>(bytes), [] as [f32; 0]);
    }

    #[test]
    fn readers_see_all_but_what_is_written() {
        let mut arena = Arena::new(300);
        arena.split(0..300).1.iter_mut().enumerate().for_each(|(i, b)| *b = i as u8);
        let (reader, hole) = arena.split(64..128);
        assert_eq!(hole[0], 64);
        assert_eq!(hole.as_ptr().align_offset(ALIGNMENT), 0);
        assert_eq!(reader.get(0..64).unwrap()[63], 63);
        assert_eq!(reader.get(128..130).unwrap(), [128, 129]);
        for wrong in [0..65, 64..65, 127..128, 100..200, 290..301] {
            assert_eq!(reader.get(wrong.clone()), None, "{wrong:?}");
        }
    }
}
