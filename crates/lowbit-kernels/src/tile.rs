//! What a register tile of the matrix product reads besides the left matrix,
//! and the epilogue that ends it.

use std::ops::Range;

use crate::gemm::Output;
use crate::grid::Grid;
#[cfg(target_arch = "x86_64")]
use crate::pack::limits::{BLOCKS, Limits};
use crate::pack::{Group, NR, Weights};
use crate::requant::{Residual, Rounder};
use crate::rows::{Rows, check_matrix};

/// Computes some rows of one panel's columns, and ends each tile with
/// [`Epilogue::store`]. The CPU must have the table's instruction set.
pub(crate) type Tile =
    unsafe fn(rows: &Rows<'_>, tiles: Tiles, panel: &Panel<'_>, epilogue: &mut Epilogue<'_>);

/// Tiles of equal height, one below the other.
#[derive(Clone, Copy)]
pub(crate) struct Tiles {
    /// The first row.
    pub(crate) first: usize,
    /// Rows of a tile.
    pub(crate) height: usize,
    /// The number of tiles.
    pub(crate) count: usize,
    /// Tiles of the same columns that were computed just before.
    pub(crate) before: usize,
}

impl Tiles {
    /// `rows` in tiles of at most `most` rows and about equal height: a low one would load the
    /// weights for few rows.
    pub(crate) fn of(rows: Range<usize>, most: usize) -> impl Iterator<Item = Tiles> + Clone {
        let count = rows.len().div_ceil(most).max(1);
        let (height, higher) = (rows.len() / count, rows.len() % count);
        let first = Tiles { first: rows.start, height: height + 1, count: higher, before: 0 };
        let others = Tiles {
            first: rows.start + higher * (height + 1),
            height,
            count: count - higher,
            before: higher,
        };
        [first, others].into_iter().filter(|tiles| tiles.count > 0 && tiles.height > 0)
    }

    /// The first row of each tile.
    pub(crate) fn firsts(self) -> impl Iterator<Item = usize> {
        (0..self.count).map(move |tile| self.first + tile * self.height)
    }
}

/// `NR` columns of the packed weights, of which `width` exist.
pub(crate) struct Panel<'a> {
    groups: &'a [Group],
    groups_per_tap: usize,
    #[cfg(target_arch = "x86_64")]
    limits: &'a [[Limits; BLOCKS]],
    #[cfg(target_arch = "aarch64")]
    column_sums: &'a [i32],
    width: usize,
    /// The groups of the next panel, if any, even if it is left to another product: the thread
    /// that computes this one probably computes that one as well.
    next: &'a [Group],
}

/// Tiles during which the next panel is loaded into a cache, a part in each.
const TILES_AHEAD: usize = 4;

impl<'a> Panel<'a> {
    pub(crate) fn new(weights: &Weights<'a>, index: usize) -> Panel<'a> {
        let column = index * NR;
        let width = NR.min(weights.columns() - column);
        Panel {
            groups: weights.panel(index),
            groups_per_tap: weights.groups_per_tap(),
            #[cfg(target_arch = "x86_64")]
            limits: weights.limits(index),
            #[cfg(target_arch = "aarch64")]
            column_sums: &weights.column_sums()[column..][..width],
            width,
            next: if index + 1 < weights.panels() { weights.panel(index + 1) } else { &[] },
        }
    }

    /// Groups of the next panel that are worth loading into a cache during tile `tile`: one for
    /// each four of the panel's, or none.
    #[inline(always)]
    pub(crate) fn ahead(&self, tile: usize) -> &'a [Group] {
        let part = self.next.len() / TILES_AHEAD;
        if tile < TILES_AHEAD { &self.next[tile * part..][..part] } else { &[] }
    }

    /// The groups of the next panel, if any.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn next(&self) -> &'a [Group] {
        self.next
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

/// The end of every tile: an [`Output`] of the right size, and the parameters
/// of the panel that is being computed.
pub(crate) struct Epilogue<'a> {
    output: Output<'a>,
    /// What is added to the accumulators of each row; none for 0.
    terms: &'a [i32],
    /// Of the requantized product.
    rounder: Rounder,
    /// Of its sum with the residual.
    sum_rounder: Rounder,
    /// Whether outputs are u8 codes of values that no i32 is too small for, and
    /// nothing is added to the accumulators of rows.
    is_small: bool,
    column: usize,
    width: usize,
    bias: [i32; NR],
    multiplier: [f32; NR],
    /// What is added to values.
    offset: [f32; NR],
}

/// [`Epilogue`] of u8 outputs, for tiles that requantize in registers.
pub(crate) struct Requantizing<'e, 'a> {
    pub(crate) out: &'e mut Grid<'a, u8>,
    /// What is added to the accumulators of each row; none for 0.
    pub(crate) terms: &'a [i32],
    pub(crate) bias: &'e [i32; NR],
    pub(crate) multiplier: &'e [f32; NR],
    pub(crate) rounder: Rounder,
    /// First column of the panel, and the number that exist.
    pub(crate) column: usize,
    pub(crate) width: usize,
    pub(crate) residual: Option<(&'e Residual<'a>, Rounder)>,
}

/// [`Epilogue`] of [`Output::Rows`], for tiles that dequantize in registers.
pub(crate) struct Dequantizing<'e, 'a> {
    pub(crate) out: &'e mut Grid<'a, f32>,
    /// What is added to the accumulators of each row; none for 0.
    pub(crate) terms: &'a [i32],
    /// Scale and zero point of each row, or those of all.
    pub(crate) scale: &'a [f32],
    pub(crate) zero: &'a [i32],
    pub(crate) sums: &'e [i32; NR],
    pub(crate) multiplier: &'e [f32; NR],
    pub(crate) offset: &'e [f32; NR],
    /// First column of the panel, and the number that exist.
    pub(crate) column: usize,
    pub(crate) width: usize,
}

/// [`Epilogue`] of [`Output::F32`], for tiles that end it in registers.
pub(crate) struct Scaling<'e, 'a> {
    pub(crate) out: &'e mut Grid<'a, f32>,
    /// What is added to the accumulators of each row; none for 0.
    pub(crate) terms: &'a [i32],
    pub(crate) bias: &'e [i32; NR],
    pub(crate) multiplier: &'e [f32; NR],
    /// First column of the panel, and the number that exist.
    pub(crate) column: usize,
    pub(crate) width: usize,
}

/// [`Epilogue`] of [`Output::I32`], for tiles that end it in registers.
pub(crate) struct Summing<'e, 'a> {
    pub(crate) out: &'e mut Grid<'a, i32>,
    /// What is added to the accumulators of each row; none for 0.
    pub(crate) terms: &'a [i32],
    pub(crate) bias: &'e [i32; NR],
    /// First column of the panel, and the number that exist.
    pub(crate) column: usize,
    pub(crate) width: usize,
}

impl<'a> Epilogue<'a> {
    /// # Panics
    ///
    /// The output is not `rows` x `columns`, or its parameters are not valid.
    pub(crate) fn new(output: Output<'a>, terms: &'a [i32], rows: usize, columns: usize) -> Epilogue<'a> {
        let (mut rounder, mut sum_rounder) = (Rounder::new(0, 0, 0), Rounder::new(0, 0, 0));
        let mut is_small = false;
        let size = match &output {
            Output::U8 { requant, residual, out } => {
                requant.check(columns);
                rounder = requant.rounder();
                is_small = requant.is_small() && residual.is_none_or(|r| r.is_small()) && terms.is_empty();
                if let Some(r) = residual {
                    check_matrix("residual", r.codes.len(), rows, columns, r.stride);
                    sum_rounder = Rounder::new(r.y_zero, r.lo.into(), r.hi.into());
                }
                (out.rows(), out.columns())
            }
            Output::F32 { bias, multiplier, out } => {
                assert_eq!(bias.len(), columns, "bias of {columns} columns");
                assert_eq!(multiplier.len(), columns, "multiplier of {columns} columns");
                (out.rows(), out.columns())
            }
            Output::Rows { scale, zero, sums, multiplier, bias, out } => {
                let len = scale.len();
                assert!((len == 1 || len == rows) && zero.len() == len, "{len} scales of {rows} rows");
                let lens = [sums.len(), multiplier.len(), bias.map_or(columns, <[f32]>::len)];
                assert_eq!(lens, [columns; 3], "sums, multiplier and bias of {columns} columns");
                (out.rows(), out.columns())
            }
            Output::I32 { bias, out } => {
                let len = bias.map_or(columns, <[i32]>::len);
                assert_eq!(len, columns, "bias of {columns} columns");
                (out.rows(), out.columns())
            }
        };
        assert_eq!(size, (rows, columns), "rows and columns of the output");
        let (bias, multiplier, offset) = ([0; NR], [0.0; NR], [0.0; NR]);
        Epilogue {
            output,
            terms,
            rounder,
            sum_rounder,
            is_small,
            column: 0,
            width: 0,
            bias,
            multiplier,
            offset,
        }
    }

    /// Bytes that a row takes in the output and in what is added to it.
    pub(crate) fn row_bytes(&self) -> usize {
        match &self.output {
            Output::U8 { residual, out, .. } => out.columns() * if residual.is_some() { 2 } else { 1 },
            Output::F32 { out, .. } | Output::Rows { out, .. } => out.columns() * size_of::<f32>(),
            Output::I32 { out, .. } => out.columns() * size_of::<i32>(),
        }
    }

    /// Loads what the `width` columns from `column` of the output need.
    pub(crate) fn enter(&mut self, column: usize, width: usize) {
        fn take<T: Copy>(to: &mut [T; NR], from: &[T], column: usize, width: usize) {
            to[..width].copy_from_slice(&from[column..][..width]);
        }
        (self.column, self.width) = (column, width);
        match &self.output {
            Output::U8 { requant, .. } => {
                take(&mut self.bias, requant.bias, column, width);
                take(&mut self.multiplier, requant.multiplier, column, width);
            }
            Output::F32 { bias, multiplier, .. } => {
                take(&mut self.bias, bias, column, width);
                take(&mut self.multiplier, multiplier, column, width);
            }
            Output::Rows { sums, multiplier, bias, .. } => {
                take(&mut self.bias, sums, column, width);
                take(&mut self.multiplier, multiplier, column, width);
                if let Some(bias) = bias {
                    take(&mut self.offset, bias, column, width);
                }
            }
            Output::I32 { bias: Some(bias), .. } => take(&mut self.bias, bias, column, width),
            Output::I32 { bias: None, .. } => {}
        }
    }

    /// What is added to accumulators that become u8 codes of values that no i32 is too
    /// small for, nothing else being added to them.
    #[inline(always)]
    pub(crate) fn small_bias(&self) -> Option<&[i32; NR]> {
        self.is_small.then_some(&self.bias)
    }

    /// What a tile of u8 outputs needs to requantize by itself.
    #[inline(always)]
    pub(crate) fn requantizing(&mut self) -> Option<Requantizing<'_, 'a>> {
        let (rounder, sum_rounder) = (self.rounder, self.sum_rounder);
        match &mut self.output {
            Output::U8 { residual, out, .. } => Some(Requantizing {
                out,
                terms: self.terms,
                bias: &self.bias,
                multiplier: &self.multiplier,
                rounder,
                column: self.column,
                width: self.width,
                residual: residual.as_ref().map(|r| (r, sum_rounder)),
            }),
            _ => None,
        }
    }

    /// What a tile of rows with codes of their own needs to dequantize by itself.
    #[inline(always)]
    pub(crate) fn dequantizing(&mut self) -> Option<Dequantizing<'_, 'a>> {
        match &mut self.output {
            Output::Rows { scale, zero, out, .. } => Some(Dequantizing {
                out,
                terms: self.terms,
                scale,
                zero,
                sums: &self.bias,
                multiplier: &self.multiplier,
                offset: &self.offset,
                column: self.column,
                width: self.width,
            }),
            _ => None,
        }
    }

    /// What a tile of dequantized values needs to end them by itself.
    #[inline(always)]
    pub(crate) fn scaling(&mut self) -> Option<Scaling<'_, 'a>> {
        let (terms, bias, multiplier) = (self.terms, &self.bias, &self.multiplier);
        let (column, width) = (self.column, self.width);
        match &mut self.output {
            Output::F32 { out, .. } => Some(Scaling { out, terms, bias, multiplier, column, width }),
            _ => None,
        }
    }

    /// What a tile of accumulators needs to end them by itself.
    #[inline(always)]
    pub(crate) fn summing(&mut self) -> Option<Summing<'_, 'a>> {
        let (terms, bias, column, width) = (self.terms, &self.bias, self.column, self.width);
        match &mut self.output {
            Output::I32 { out, .. } => Some(Summing { out, terms, bias, column, width }),
            _ => None,
        }
    }

    /// Stores the rows from `first` of the `W` columns from `column` of the panel.
    #[inline(always)]
    pub(crate) fn store<const W: usize>(&mut self, acc: &[[i32; W]], first: usize, column: usize) {
        let bias: &[i32; W] = self.bias[column..].first_chunk().expect("W columns of NR");
        let multiplier: &[f32; W] = self.multiplier[column..].first_chunk().expect("W columns of NR");
        let offset: &[f32; W] = self.offset[column..].first_chunk().expect("W columns of NR");
        if column >= self.width {
            return;
        }
        let to = Target { first, column: self.column + column, width: W.min(self.width - column) };
        let (rounder, sum_rounder, terms) = (self.rounder, self.sum_rounder, self.terms);
        match &mut self.output {
            Output::U8 { residual: None, out, .. } => to.write(acc, terms, out, |_, j, acc| {
                rounder.round(acc.wrapping_add(bias[j]) as f32 * multiplier[j]) as u8
            }),
            Output::U8 { residual: Some(r), out, .. } => {
                let r = *r;
                to.write(acc, terms, out, |i, j, acc| {
                    if j >= to.width {
                        return 0;
                    }
                    let a = rounder.round_centred(acc.wrapping_add(bias[j]) as f32 * multiplier[j]);
                    let b = r.codes[(first + i) * r.stride + to.column + j];
                    let b = (i32::from(b) - i32::from(r.zero)) as f32;
                    sum_rounder.round(a * r.a_ratio + b * r.ratio) as u8
                });
            }
            Output::F32 { out, .. } => {
                to.write(acc, terms, out, |_, j, acc| acc.wrapping_add(bias[j]) as f32 * multiplier[j])
            }
            Output::Rows { scale, zero, out, .. } => {
                let (scale, zero) = (*scale, *zero);
                to.write(acc, terms, out, |i, j, acc| {
                    let row = if scale.len() == 1 { 0 } else { first + i };
                    let acc = acc.wrapping_sub(zero[row].wrapping_mul(bias[j]));
                    acc as f32 * (scale[row] * multiplier[j]) + offset[j]
                });
            }
            Output::I32 { out, .. } => to.write(acc, terms, out, |_, j, acc| acc.wrapping_add(bias[j])),
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
    /// Stores `map(i, j, acc[i][j] + term[i])` for each row `i` and the `width` columns `j`.
    #[inline(always)]
    fn write<T: Copy + Default, const W: usize>(
        &self,
        acc: &[[i32; W]],
        terms: &[i32],
        out: &mut Grid<'_, T>,
        map: impl Fn(usize, usize, i32) -> T,
    ) {
        for (i, acc) in acc.iter().enumerate() {
            let mut y = [T::default(); W];
            let term = terms.get(self.first + i).copied().unwrap_or(0);
            for (j, y) in y.iter_mut().enumerate() {
                *y = map(i, j, acc[j].wrapping_add(term));
            }
            let out = out.run(self.first + i, self.column, self.width);
            match out.first_chunk_mut() {
                Some(out) => *out = y,
                None => copy(&y, out),
            }
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
