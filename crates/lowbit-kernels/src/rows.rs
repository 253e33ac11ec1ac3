//! Where the rows of a product's left matrix lie.

use std::ops::Range;
use std::slice;

use crate::window::Window;

/// The left matrix of a product: rows of elements that were found to lie within
/// their slice. A row is `taps` runs of `depth` elements: run t of row i starts
/// at the row's offset plus the tap's.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a, T = u8> {
    a: &'a [T],
    starts: Starts<'a>,
    taps: &'a [usize],
    first: usize,
    count: usize,
    depth: usize,
    terms: &'a [i32],
}

/// Invariant: for each row `first <= i < first + count`, the row's offset exists,
/// and that offset plus any tap's plus `depth` is at most `a.len()`.
#[derive(Clone, Copy, Debug)]
enum Starts<'a> {
    Stride(usize),
    Each(&'a [u32]),
}

impl<'a, T> Rows<'a, T> {
    /// `count` rows of `depth` elements, `stride` apart.
    ///
    /// # Panics
    ///
    /// They do not lie in `a`.
    pub fn strided(a: &'a [T], stride: usize, count: usize, depth: usize) -> Rows<'a, T> {
        check_matrix("left matrix", a.len(), count, depth, stride);
        Rows { a, starts: Starts::Stride(stride), taps: &[0], first: 0, count, depth, terms: &[] }
    }

    /// The windows that `windows` has, of images without padding: runs of
    /// `depth` elements.
    ///
    /// # Panics
    ///
    /// `a` ends before the last run.
    pub fn gathered(a: &'a [T], windows: &'a Windows, depth: usize) -> Rows<'a, T> {
        let end = windows.last.checked_add(depth);
        let fits = windows.starts.is_empty() || end.is_some_and(|end| end <= a.len());
        assert!(fits, "a window is too near the end of {} elements", a.len());
        let (starts, taps) = (Starts::Each(&windows.starts), windows.taps.as_slice());
        Rows { a, starts, taps, first: 0, count: windows.starts.len(), depth, terms: &[] }
    }

    /// The number of rows.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Some of the rows.
    ///
    /// # Panics
    ///
    /// There are fewer.
    pub fn range(&self, rows: Range<usize>) -> Rows<'a, T> {
        assert!(rows.start <= rows.end && rows.end <= self.count, "rows {rows:?} of {}", self.count);
        let terms = if self.terms.is_empty() { &[] } else { &self.terms[rows.clone()] };
        Rows { first: self.first + rows.start, count: rows.len(), terms, ..*self }
    }

    /// Of each row some taps, and of these some elements.
    ///
    /// # Panics
    ///
    /// There are no such taps or elements.
    pub fn within(&self, taps: Range<usize>, elements: Range<usize>) -> Rows<'a, T> {
        assert!(
            elements.start <= elements.end && elements.end <= self.depth,
            "{elements:?} of {}",
            self.depth
        );
        // Where there is a row, it has the elements behind these.
        let a = self.a.get(elements.start..).unwrap_or_default();
        Rows { a, taps: &self.taps[taps], depth: elements.len(), ..*self }
    }

    /// What is added to the sums of each row; none for 0.
    pub(crate) fn terms(&self) -> &'a [i32] {
        self.terms
    }

    /// The number of runs of a row.
    #[inline(always)]
    pub(crate) fn taps(&self) -> usize {
        self.taps.len()
    }

    /// What is added to a row's offset for each tap.
    #[inline(always)]
    pub(crate) fn offsets(&self) -> &'a [usize] {
        self.taps
    }

    /// Elements of one row and tap.
    #[inline(always)]
    pub(crate) fn depth(&self) -> usize {
        self.depth
    }

    /// The starts of the `R` rows from `first`: from each, `depth` elements can be
    /// read at every tap's offset.
    ///
    /// # Panics
    ///
    /// There are no such rows.
    #[inline(always)]
    pub(crate) fn starts<const R: usize>(&self, first: usize) -> [*const T; R] {
        assert!(R <= self.count && first <= self.count - R);
        let first = self.first + first;
        let mut starts = [self.a.as_ptr(); R];
        // Addresses only; by the invariant they lie in `a`, or at its end where `depth` is 0.
        match self.starts {
            Starts::Stride(stride) => {
                let mut at = self.a.as_ptr().wrapping_add(first * stride);
                for start in &mut starts {
                    *start = at;
                    at = at.wrapping_add(stride);
                }
            }
            Starts::Each(offsets) => {
                for (start, &offset) in starts.iter_mut().zip(&offsets[first..][..R]) {
                    *start = start.wrapping_add(offset as usize);
                }
            }
        }
        starts
    }

    /// The start of row `first`, and the distance of rows, if they are all equally far apart
    /// and have one run each.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn evenly(&self, first: usize) -> Option<(*const T, usize)> {
        match (&self.starts, self.taps) {
            (&Starts::Stride(stride), &[offset]) => {
                let at = (self.first + first).wrapping_mul(stride).wrapping_add(offset);
                Some((self.a.as_ptr().wrapping_add(at), stride))
            }
            _ => None,
        }
    }

    /// What the `R` rows from `first` hold for one tap: `depth` elements each.
    ///
    /// # Panics
    ///
    /// There is no such row or tap.
    #[inline(always)]
    pub(crate) fn get<const R: usize>(&self, first: usize, tap: usize) -> [&'a [T]; R] {
        let offset = self.taps[tap];
        // SAFETY: by the invariant, `depth` elements of `a` lie at each start and tap.
        self.starts(first).map(|start| unsafe { slice::from_raw_parts(start.add(offset), self.depth) })
    }
}

impl<'a> Rows<'a> {
    /// The same rows, to each of whose sums a term is added.
    ///
    /// # Panics
    ///
    /// There is not one term for each row.
    pub fn with_terms(self, terms: &'a [i32]) -> Rows<'a> {
        assert_eq!(terms.len(), self.count, "terms of {} rows", self.count);
        Rows { terms, ..self }
    }
}

/// Where the windows of a convolution lie in images without padding, or other
/// rows that are made of several runs.
#[derive(Clone, Debug)]
pub struct Windows {
    /// For each row (output pixel), its window's first element.
    starts: Vec<u32>,
    /// For each tap, its distance from there.
    taps: Vec<usize>,
    /// The greatest sum of both.
    last: usize,
}

impl Windows {
    /// The windows over `images` images, one after the other, unless they are
    /// too large for 32 bits.
    ///
    /// # Panics
    ///
    /// The window has padding.
    pub fn new(window: &Window, images: usize) -> Option<Windows> {
        assert_eq!(window.pad, [0, 0], "windows of images without padding");
        let [height, width] = window.output;
        let pitch = window.input[1] * window.channels;
        let image = window.input[0].checked_mul(pitch)?;
        let mut starts = Vec::with_capacity(images * height * width);
        for i in 0..images {
            for y in 0..height {
                let row = i * image + y * window.stride[0] * pitch;
                for x in 0..width {
                    starts.push(u32::try_from(row + x * window.stride[1] * window.channels).ok()?);
                }
            }
        }
        let tap = |t: usize| {
            let (y, x) = (t / window.kernel[1], t % window.kernel[1]);
            y * window.dilation[0] * pitch + x * window.dilation[1] * window.channels
        };
        let taps: Vec<usize> = (0..window.taps()).map(tap).collect();
        let last = starts.last().map_or(0, |&s| s as usize).checked_add(taps.last().copied()?)?;
        Some(Windows { starts, taps, last })
    }

    /// A row for each of `starts`, a run for each of `taps`, unless the starts are
    /// too large for 32 bits.
    pub fn at(starts: impl IntoIterator<Item = usize>, taps: Vec<usize>) -> Option<Windows> {
        let starts: Vec<u32> = starts.into_iter().map(|s| u32::try_from(s).ok()).collect::<Option<_>>()?;
        let start = starts.iter().max().map_or(0, |&s| s as usize);
        let last = start.checked_add(taps.iter().max().copied()?)?;
        Some(Windows { starts, taps, last })
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
