//! What a register tile of the matrix product reads besides the left matrix,
//! and the epilogue that ends it.

use crate::gemm::Output;
#[cfg(target_arch = "x86_64")]
use crate::pack::limits::{BLOCKS, Limits};
use crate::pack::{Group, NR, PackedWeights};
use crate::requant::Rounder;
use crate::rows::{Rows, check_matrix};

/// Computes `count` rows from `first` of one panel's columns, and ends them
/// with [`Epilogue::store`]. The CPU must have the table's instruction set.
pub(crate) type Tile =
    unsafe fn(rows: &Rows<'_>, first: usize, count: usize, panel: &Panel<'_>, epilogue: &mut Epilogue<'_>);

/// `NR` columns of the packed weights, of which `width` exist.
pub(crate) struct Panel<'a> {
    groups: &'a [Group],
    groups_per_tap: usize,
    #[cfg(target_arch = "x86_64")]
    limits: &'a [[Limits; BLOCKS]],
    #[cfg(target_arch = "aarch64")]
    column_sums: &'a [i32],
    column: usize,
    width: usize,
}

impl<'a> Panel<'a> {
    pub(crate) fn new(weights: &'a PackedWeights, index: usize) -> Panel<'a> {
        let column = index * NR;
        let width = NR.min(weights.columns() - column);
        Panel {
            groups: weights.panel(index),
            groups_per_tap: weights.groups_per_tap(),
            #[cfg(target_arch = "x86_64")]
            limits: weights.limits(index),
            #[cfg(target_arch = "aarch64")]
            column_sums: &weights.column_sums()[column..][..width],
            column,
            width,
        }
    }

    /// Columns that exist, 1..=NR.
    #[inline(always)]
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// One group for each `KR` bytes of a row, the last one filled up with zeros.
    #[inline(always)]
    pub(crate) fn groups(&self, tap: usize) -> &'a [Group] {
        &self.groups[tap * self.groups_per_tap..][..self.groups_per_tap]
    }

    /// The groups of all taps, one tap after the other.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(crate) fn all_groups(&self) -> &'a [Group] {
        self.groups
    }

    /// The limits of each run of [`Panel::all_groups`].
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(crate) fn limits(&self) -> &'a [[Limits; BLOCKS]] {
        self.limits
    }

    /// The sum of each column's weights: `width` of them.
    #[cfg(target_arch = "aarch64")]
    #[inline(always)]
    pub(crate) fn column_sums(&self) -> &'a [i32] {
        self.column_sums
    }
}

/// The end of every tile: an [`Output`] whose slices were found to fit, and the
/// parameters of the panel that is being computed.
pub(crate) struct Epilogue<'a> {
    output: Output<'a>,
    rounder: Rounder,
    column: usize,
    width: usize,
    bias: [i32; NR],
    multiplier: [f32; NR],
}

impl<'a> Epilogue<'a> {
    /// # Panics
    ///
    /// The output does not hold `rows` x `columns`, or its parameters are not valid.
    pub(crate) fn new(output: Output<'a>, rows: usize, columns: usize) -> Epilogue<'a> {
        let mut rounder = Rounder::new(0, 0, 0);
        let (len, stride) = match &output {
            Output::U8 { requant, out, stride } => {
                requant.check(columns);
                rounder = requant.rounder();
                (out.len(), *stride)
            }
            Output::F32 { bias, multiplier, out, stride } => {
                assert_eq!(bias.len(), columns, "bias of {columns} columns");
                assert_eq!(multiplier.len(), columns, "multiplier of {columns} columns");
                (out.len(), *stride)
            }
            Output::I32 { bias, out, stride } => {
                let len = bias.map_or(columns, <[i32]>::len);
                assert_eq!(len, columns, "bias of {columns} columns");
                (out.len(), *stride)
            }
        };
        assert!(stride >= columns, "output stride {stride} is below {columns} columns");
        check_matrix("output", len, rows, columns, stride);
        Epilogue { output, rounder, column: 0, width: 0, bias: [0; NR], multiplier: [0.0; NR] }
    }

    /// Loads what the columns of `panel` need.
    pub(crate) fn enter(&mut self, panel: &Panel<'_>) {
        fn take<T: Copy>(to: &mut [T; NR], from: &[T], panel: &Panel<'_>) {
            to[..panel.width].copy_from_slice(&from[panel.column..][..panel.width]);
        }
        (self.column, self.width) = (panel.column, panel.width);
        match &self.output {
            Output::U8 { requant, .. } => {
                take(&mut self.bias, requant.bias, panel);
                take(&mut self.multiplier, requant.multiplier, panel);
            }
            Output::F32 { bias, multiplier, .. } => {
                take(&mut self.bias, bias, panel);
                take(&mut self.multiplier, multiplier, panel);
            }
            Output::I32 { bias: Some(bias), .. } => take(&mut self.bias, bias, panel),
            Output::I32 { bias: None, .. } => {}
        }
    }

    /// Stores the rows from `first` of the `W` columns from `column` of the panel.
    #[inline(always)]
    pub(crate) fn store<const W: usize>(&mut self, acc: &[[i32; W]], first: usize, column: usize) {
        let bias: &[i32; W] = self.bias[column..].first_chunk().expect("W columns of NR");
        let multiplier: &[f32; W] = self.multiplier[column..].first_chunk().expect("W columns of NR");
        let to = Target { first, column: self.column + column, width: W.min(self.width - column) };
        let rounder = self.rounder;
        match &mut self.output {
            Output::U8 { out, stride, .. } => to.write(acc, out, *stride, |j, acc| {
                rounder.round(acc.wrapping_add(bias[j]) as f32 * multiplier[j]) as u8
            }),
            Output::F32 { out, stride, .. } => {
                to.write(acc, out, *stride, |j, acc| acc.wrapping_add(bias[j]) as f32 * multiplier[j])
            }
            Output::I32 { out, stride, .. } => {
                to.write(acc, out, *stride, |j, acc| acc.wrapping_add(bias[j]))
            }
        }
    }
}

/// Where a tile goes in the output.
struct Target {
    first: usize,
    column: usize,
    width: usize,
}

impl Target {
    /// Stores `map(j, acc[r][j])` for each row `r` and the `width` columns `j`.
    #[inline(always)]
    fn write<T: Copy + Default, const W: usize>(
        &self,
        acc: &[[i32; W]],
        out: &mut [T],
        stride: usize,
        map: impl Fn(usize, i32) -> T,
    ) {
        let mut at = self.first * stride + self.column;
        for acc in acc {
            let mut y = [T::default(); W];
            for (j, y) in y.iter_mut().enumerate() {
                *y = map(j, acc[j]);
            }
            let out = &mut out[at..][..self.width];
            match out.first_chunk_mut() {
                Some(out) => *out = y,
                None => copy(&y, out),
            }
            at += stride;
        }
    }
}

/// `to = from[..to.len()]`, by steps of fixed size.
#[inline(always)]
fn copy<T: Copy>(from: &[T], to: &mut [T]) {
    let (from, from_rest) = from[..to.len()].as_chunks::<8>();
    let (to, to_rest) = to.as_chunks_mut::<8>();
    for (to, from) in to.iter_mut().zip(from) {
        *to = *from;
    }
    for (to, from) in to_rest.iter_mut().zip(from_rest) {
        *to = *from;
    }
}
