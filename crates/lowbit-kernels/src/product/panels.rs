//! The right matrix of a product, packed.

use std::array;
use std::ops::Range;

use crate::matrix::Matrix;

/// A matrix cut into panels of [`Kernels::panel_width`](crate::Kernels::panel_width)
/// columns, one after the other, each row-major; the last panel is filled up
/// with columns of any value.
#[derive(Clone, Copy, Debug)]
pub struct Panels<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    width: usize,
    next: &'a [f32],
}

impl<'a> Panels<'a> {
    /// Elements that panels take.
    pub fn len(rows: usize, cols: usize, width: usize) -> usize {
        cols.div_ceil(width) * width * rows
    }

    /// The panels at the start of `data`.
    ///
    /// # Panics
    ///
    /// There are fewer than [`Panels::len`] elements.
    pub fn new(data: &'a [f32], rows: usize, cols: usize, width: usize) -> Panels<'a> {
        assert!(data.len() >= Panels::len(rows, cols, width), "panels of {rows}x{cols} outside their data");
        Panels { data, rows, cols, width, next: &[] }
    }

    /// The number of rows and of columns.
    pub fn size(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    /// The `count` columns from `start`, the first one of a panel.
    ///
    /// # Panics
    ///
    /// There are fewer, or `start` lies within a panel.
    pub fn cols(self, start: usize, count: usize) -> Panels<'a> {
        assert!(start <= self.cols && count <= self.cols - start, "columns outside the panels");
        assert!(start.is_multiple_of(self.width), "column {start} lies within a panel");
        Panels { data: self.data.get(start * self.rows..).unwrap_or_default(), cols: count, ..self }
    }

    /// The same panels, after which `next` will be read: it is brought into the
    /// second-level cache meanwhile.
    pub fn followed_by(self, next: &'a [f32]) -> Panels<'a> {
        Panels { next, ..self }
    }

    pub(super) fn next(&self) -> &'a [f32] {
        self.next
    }

    pub(super) fn data(&self) -> &'a [f32] {
        self.data
    }

    pub(super) fn width(&self) -> usize {
        self.width
    }
}

/// Elements that lie together in the source and in a row of a panel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The first one in the source, less the row's offset.
    pub from: usize,
    /// The first one in the row.
    pub to: usize,
    /// How many, at most [`Run::MOST`].
    pub len: usize,
}

impl Run {
    /// The most elements of a run: they are copied at once.
    pub const MOST: usize = 16;
}

/// A right matrix as runs of a source: row `(c, t)` holds the `runs` of `source`
/// from `c * pitch + taps[t]` on.
#[derive(Clone, Copy, Debug)]
pub struct Gather<'a> {
    /// Where the elements lie.
    pub source: &'a [f32],
    /// The distance of channels in the source.
    pub pitch: usize,
    /// The offset of each tap in a channel.
    pub taps: &'a [usize],
    /// The columns of one panel, ascending in [`Run::to`].
    pub runs: &'a [Run],
}

#[inline(always)]
pub(crate) fn gather(from: &Gather<'_>, channels: Range<usize>, width: usize, out: &mut [f32]) {
    let Gather { source, pitch, taps, runs } = *from;
    assert!(runs.iter().all(|run| run.len <= Run::MOST), "a run of more than {} elements", Run::MOST);
    let reach = |f: fn(&Run) -> usize| runs.iter().map(f).max().unwrap_or(0) + Run::MOST;
    let (source_reach, out_reach) = (reach(|run| run.from), reach(|run| run.to));
    let mut row = 0;
    for channel in channels {
        for tap in taps {
            let offset = channel * pitch + tap;
            // A run is copied with what lies behind it: the next run or row
            // writes that again, or it belongs to no column.
            if offset + source_reach <= source.len() && row + out_reach <= out.len() {
                let (source, out) = (&source[offset..], &mut out[row..]);
                for run in runs {
                    // SAFETY: the greatest `from` and `to` have `MOST` elements behind them.
                    unsafe {
                        let from = source.as_ptr().add(run.from).cast::<[f32; Run::MOST]>();
                        *out.as_mut_ptr().add(run.to).cast() = *from;
                    }
                }
            } else {
                for run in runs {
                    let from = &source[offset + run.from..][..run.len];
                    out[row + run.to..][..run.len].copy_from_slice(from);
                }
            }
            row += width;
        }
    }
}

/// Rows that are transposed at once.
const TOGETHER: usize = 8;

#[inline(always)]
pub(crate) fn transpose(source: Matrix<'_>, width: usize, out: &mut [f32]) {
    let [rows, cols] = source.size();
    assert!(rows <= width, "a panel of {width} columns for {rows}");
    for i in (0..rows).step_by(TOGETHER) {
        if i + TOGETHER <= rows {
            let lines: [&[f32]; TOGETHER] = array::from_fn(|r| &source.row(i + r)[..cols]);
            for j in 0..cols {
                let line = out[j * width + i..].first_chunk_mut().expect("a row of the panel");
                *line = array::from_fn::<f32, TOGETHER, _>(|r| lines[r][j]);
            }
        } else {
            for r in i..rows {
                for (j, &x) in source.row(r).iter().enumerate() {
                    out[j * width + r] = x;
                }
            }
        }
    }
}
