//! Where the rows of a product's left matrix lie.

use std::array;

use crate::window::PADDING;

/// A left matrix whose every row was found to lie within its slice.
pub(crate) struct Rows<'a> {
    source: Source<'a>,
    count: usize,
    taps: usize,
    depth: usize,
}

/// Invariant: for each row `i < count` and tap `t < taps`,
/// - `Strided`: `taps` is 1 and `i * stride + depth <= a.len()`;
/// - `Gathered`: `i * taps + t < offsets.len()`, and that offset is [`PADDING`],
///   with `depth <= padding.len()`, or it is `o` with `o + depth <= a.len()`.
enum Source<'a> {
    Strided { a: &'a [u8], stride: usize },
    Gathered { a: &'a [u8], offsets: &'a [usize], padding: &'a [u8] },
}

impl<'a> Rows<'a> {
    /// # Panics
    ///
    /// `count` rows of `depth` bytes with this stride do not lie in `a`.
    pub(crate) fn strided(a: &'a [u8], stride: usize, count: usize, depth: usize) -> Rows<'a> {
        check_matrix("left matrix", a.len(), count, depth, stride);
        Rows { source: Source::Strided { a, stride }, count, taps: 1, depth }
    }

    /// # Panics
    ///
    /// `offsets` is not a whole number of rows of `taps`, an offset is too near
    /// the end of `a`, or `padding` is shorter than `depth`.
    pub(crate) fn gathered(
        a: &'a [u8],
        offsets: &'a [usize],
        padding: &'a [u8],
        taps: usize,
        depth: usize,
    ) -> Rows<'a> {
        assert!(
            taps > 0 && offsets.len().is_multiple_of(taps),
            "{} offsets are no whole number of rows of {taps} taps",
            offsets.len(),
        );
        assert!(padding.len() >= depth, "padding of {} bytes for {depth} channels", padding.len());
        let inside = |&offset: &usize| offset == PADDING || (offset <= a.len() && depth <= a.len() - offset);
        assert!(offsets.iter().all(inside), "an offset is too near the end of {} bytes", a.len());
        let count = offsets.len() / taps;
        Rows { source: Source::Gathered { a, offsets, padding }, count, taps, depth }
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }

    #[inline(always)]
    pub(crate) fn taps(&self) -> usize {
        self.taps
    }

    /// Bytes of one row and tap.
    #[inline(always)]
    pub(crate) fn depth(&self) -> usize {
        self.depth
    }

    /// What the `R` rows from `first` hold for one tap: `depth` bytes each.
    ///
    /// # Panics
    ///
    /// There is no such row or tap.
    #[inline(always)]
    pub(crate) fn get<const R: usize>(&self, first: usize, tap: usize) -> [&'a [u8]; R] {
        assert!(R <= self.count && first <= self.count - R && tap < self.taps);
        let range = |at: usize| at..at + self.depth;
        match self.source {
            Source::Strided { a, stride } => array::from_fn(
                #[inline(always)]
                |r| {
                    // SAFETY: `first + r < count`, so by the invariant the range lies in `a`.
                    unsafe { a.get_unchecked(range((first + r) * stride)) }
                },
            ),
            Source::Gathered { a, offsets, padding } => array::from_fn(
                #[inline(always)]
                |r| {
                    // SAFETY: `first + r < count` and `tap < taps`, so by the invariant the
                    // offset exists, and the range that starts there lies in its slice.
                    unsafe {
                        let offset = *offsets.get_unchecked((first + r) * self.taps + tap);
                        let (from, at) = if offset == PADDING { (padding, 0) } else { (a, offset) };
                        from.get_unchecked(range(at))
                    }
                },
            ),
        }
    }
}

/// # Panics
///
/// A `rows` x `columns` matrix with this stride does not lie in `len` elements.
pub(crate) fn check_matrix(name: &str, len: usize, rows: usize, columns: usize, stride: usize) {
    let end = match rows {
        0 => Some(0),
        _ => (rows - 1).checked_mul(stride).and_then(|last| last.checked_add(columns)),
    };
    assert!(
        end.is_some_and(|end| end <= len),
        "{name} of {rows} x {columns} with stride {stride} does not fit {len} elements",
    );
}
