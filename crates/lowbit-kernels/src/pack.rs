//! Weights laid out for the register tiles.

mod codes;
#[cfg(target_arch = "x86_64")]
pub(crate) mod limits;

use std::ops::Range;

pub use codes::CodeMatrix;
pub(crate) use codes::{pack_codes, row_sums};
#[cfg(target_arch = "x86_64")]
use limits::{BLOCKS, Limits};

/// Columns (output channels) of a panel.
pub(crate) const NR: usize = 32;
/// Depth of a group: the bytes that one 32-bit lane of a dot product sums.
pub(crate) const KR: usize = 4;

/// `KR` consecutive weights of each of `NR` columns.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Group(pub(crate) [[i8; KR]; NR]);

/// The last activations of a row, up to `KR`, filled up with zeros: a group.
#[inline(always)]
pub(crate) fn last_group(bytes: &[u8]) -> [u8; KR] {
    match *bytes {
        [] => [0; KR],
        [x] => [x, 0, 0, 0],
        [x, y] => [x, y, 0, 0],
        [x, y, z] => [x, y, z, 0],
        [x, y, z, w, ..] => [x, y, z, w],
    }
}

/// A matrix of i8 weights, packed once and read by every table.
///
/// Layout: [`Weights`].
#[derive(Clone)]
pub struct PackedWeights {
    columns: usize,
    taps: usize,
    depth: usize,
    groups: Vec<Group>,
    #[cfg(target_arch = "x86_64")]
    limits: Vec<[Limits; BLOCKS]>,
    sums: Vec<i32>,
}

/// A packed matrix of i8 weights: the right matrix of a product.
///
/// Columns are output channels. The depth is `taps` equal parts of `depth`
/// weights: one tap for a matrix product, one per kernel position for a
/// convolution, whose input rows then need not be adjacent.
///
/// Layout: panels of 32 columns; in a panel, tap by tap, groups of 4 depth
/// steps by 32 columns, so that a group is two 64-byte lines read in order.
/// Missing columns and depth steps are zero weights. It is one layout for all
/// instruction sets, since every byte dot product (`vpdpbusd`, `sdot`, and
/// `vpmaddwd` on the even and the odd bytes) sums groups of 4 into 32-bit lanes.
#[derive(Clone, Copy)]
pub struct Weights<'a> {
    columns: usize,
    taps: usize,
    depth: usize,
    groups: &'a [Group],
    #[cfg(target_arch = "x86_64")]
    limits: &'a [[Limits; BLOCKS]],
    /// Whether the limits are those of a panel of any weights.
    #[cfg(target_arch = "x86_64")]
    any_limits: bool,
    sums: &'a [i32],
}

impl std::fmt::Debug for PackedWeights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PackedWeights({} x {} x {})", self.columns, self.taps, self.depth)
    }
}

impl PackedWeights {
    /// Packs `weights`, row-major `[columns][depth]`: an ONNX `[N, K]` matrix.
    ///
    /// # Panics
    ///
    /// `weights.len() != columns * depth`.
    pub fn new(weights: &[i8], columns: usize, depth: usize) -> PackedWeights {
        PackedWeights::with_taps(weights, columns, 1, depth)
    }

    /// Packs `weights`, row-major `[columns][taps][depth]`: a convolution's
    /// weights as `[O][kernel height x kernel width][I]`.
    ///
    /// # Panics
    ///
    /// `weights.len() != columns * taps * depth`.
    pub fn with_taps(weights: &[i8], columns: usize, taps: usize, depth: usize) -> PackedWeights {
        let row = taps.checked_mul(depth);
        assert_eq!(
            row.and_then(|row| row.checked_mul(columns)),
            Some(weights.len()),
            "weights are not {columns} x {taps} x {depth}",
        );
        let row = row.unwrap_or(0);
        let column = |n: usize| &weights[n * row..][..row];
        let mut groups = Vec::with_capacity(columns.div_ceil(NR) * taps * depth.div_ceil(KR));
        for first in (0..columns).step_by(NR) {
            for tap in 0..taps {
                for k in (0..depth).step_by(KR) {
                    let mut group = Group([[0; KR]; NR]);
                    let width = KR.min(depth - k);
                    for (group, n) in group.0.iter_mut().zip(first..columns) {
                        group[..width].copy_from_slice(&column(n)[tap * depth + k..][..width]);
                    }
                    groups.push(group);
                }
            }
        }
        #[cfg(target_arch = "x86_64")]
        let limits = Limits::of_panels(&groups, taps * depth.div_ceil(KR));
        let sum = |n| column(n).iter().fold(0i32, |sum, &w| sum.wrapping_add(i32::from(w)));
        let sums = (0..columns).map(sum).collect();
        PackedWeights {
            columns,
            taps,
            depth,
            groups,
            #[cfg(target_arch = "x86_64")]
            limits,
            sums,
        }
    }

    /// The weights as products read them.
    pub fn view(&self) -> Weights<'_> {
        Weights {
            columns: self.columns,
            taps: self.taps,
            depth: self.depth,
            groups: &self.groups,
            #[cfg(target_arch = "x86_64")]
            limits: &self.limits,
            #[cfg(target_arch = "x86_64")]
            any_limits: false,
            sums: &self.sums,
        }
    }

    /// The number of output channels, N.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The number of kernel positions.
    pub fn taps(&self) -> usize {
        self.taps
    }

    /// The number of weights per tap and column: K for a matrix product, input
    /// channels for a convolution.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// `sum_k w[n][k]` for each column `n`: an activation zero point `z` enters
    /// a product as `-z * column_sums[n]`, to be added to the bias.
    pub fn column_sums(&self) -> &[i32] {
        &self.sums
    }

    /// [`Weights::panels`].
    pub fn panels(&self) -> usize {
        self.view().panels()
    }
}

impl<'a> Weights<'a> {
    /// The number of output channels, N.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The number of kernel positions.
    pub fn taps(&self) -> usize {
        self.taps
    }

    /// The number of weights per tap and column.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// `sum_k w[n][k]` for each column `n`.
    pub fn column_sums(&self) -> &'a [i32] {
        self.sums
    }

    /// The number of panels of columns into which a product can be split.
    pub fn panels(&self) -> usize {
        self.columns.div_ceil(NR)
    }

    /// The columns of some panels.
    ///
    /// # Panics
    ///
    /// There are no such panels.
    pub fn columns_of(&self, panels: Range<usize>) -> Range<usize> {
        assert!(panels.start <= panels.end && panels.end <= self.panels(), "panels {panels:?}");
        panels.start * NR..self.columns.min(panels.end * NR)
    }

    pub(crate) fn groups_per_tap(&self) -> usize {
        self.depth.div_ceil(KR)
    }

    pub(crate) fn panel(&self, panel: usize) -> &'a [Group] {
        let len = self.taps * self.groups_per_tap();
        &self.groups[panel * len..][..len]
    }

    /// The limits of the panel, as [`Limits::of_panels`] orders them, or those of
    /// any weights.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn limits(&self, panel: usize) -> &'a [[Limits; BLOCKS]] {
        let len = (self.taps * self.groups_per_tap()).div_ceil(limits::RUN);
        let first = if self.any_limits { 0 } else { panel * len };
        &self.limits[first..][..len]
    }
}
