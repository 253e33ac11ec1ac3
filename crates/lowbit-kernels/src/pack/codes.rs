//! A right matrix of codes, packed at run time.

#[cfg(target_arch = "x86_64")]
use super::limits::{BLOCKS, Limits, RUN};
use super::{Group, KR, NR, Weights};

/// A matrix of u8 codes: element `(k, n)` lies at `k * strides[0] + n * strides[1]`.
#[derive(Clone, Copy, Debug)]
pub struct CodeMatrix<'a> {
    data: &'a [u8],
    depth: usize,
    columns: usize,
    strides: [usize; 2],
}

impl<'a> CodeMatrix<'a> {
    /// The matrix at the start of `data`, one of whose strides is 1.
    ///
    /// # Panics
    ///
    /// Neither stride is 1, or `data` is too short.
    pub fn new(data: &'a [u8], depth: usize, columns: usize, strides: [usize; 2]) -> CodeMatrix<'a> {
        assert!(strides.contains(&1), "neither stride of {strides:?} is 1");
        let last = |n: usize, stride: usize| n.checked_sub(1).and_then(|n| n.checked_mul(stride));
        if let (Some(k), Some(n)) = (last(depth, strides[0]), last(columns, strides[1])) {
            let inside = k.checked_add(n).is_some_and(|end| end < data.len());
            assert!(inside, "a {depth} x {columns} matrix outside its {} codes", data.len());
        } else {
            assert!(depth == 0 || columns == 0, "a {depth} x {columns} matrix too large");
        }
        CodeMatrix { data, depth, columns, strides }
    }

    #[inline(always)]
    fn at(&self, k: usize, n: usize) -> usize {
        k * self.strides[0] + n * self.strides[1]
    }
}

/// Limits with which any i8 weights are multiplied exactly: the sums of two
/// weights of a group, and of a run of groups, are within 2 * 128 of 0, and
/// `RUN` times as much.
#[cfg(target_arch = "x86_64")]
static ANY: [[Limits; BLOCKS]; Weights::MOST_CODES.div_ceil(KR * RUN)] = {
    let largest = 2 * 128;
    let limits = Limits { run: (32767 / (largest * RUN)) as u8, pair: (32767 / largest) as u8 };
    [[limits; BLOCKS]; Weights::MOST_CODES.div_ceil(KR * RUN)]
};

impl<'a> Weights<'a> {
    /// The greatest depth of a [`CodeMatrix`] that is packed: with it, the sum of
    /// any `(a - za) * (b - zb)` of codes fits i32.
    pub const MOST_CODES: usize = 33_025;

    /// Bytes of memory in which [`Kernels::pack_codes`](crate::Kernels::pack_codes)
    /// packs a matrix.
    pub fn bytes(depth: usize, columns: usize) -> usize {
        (columns.div_ceil(NR) * (depth.div_ceil(KR) + 1) + 1) * size_of::<Group>()
    }

    /// What [`Kernels::pack_codes`](crate::Kernels::pack_codes) left in `memory`,
    /// which has not moved since.
    ///
    /// # Panics
    ///
    /// `memory` is shorter than [`Weights::bytes`], or the depth is more than
    /// [`Weights::MOST_CODES`].
    pub fn of_codes(memory: &'a [u8], depth: usize, columns: usize) -> Weights<'a> {
        assert!(depth <= Weights::MOST_CODES, "codes {depth} deep");
        // SAFETY: a group is bytes, of any value, without padding.
        let (_, groups, _) = unsafe { memory.align_to::<Group>() };
        let panels = columns.div_ceil(NR);
        let (groups, rest) = groups.split_at(panels * depth.div_ceil(KR));
        // SAFETY: `Sums` has the size of a group and no greater alignment; any
        // bytes are integers.
        let (_, sums, _) = unsafe { rest[..panels].align_to::<Sums>() };
        Weights {
            columns,
            taps: 1,
            depth,
            groups,
            #[cfg(target_arch = "x86_64")]
            limits: &ANY,
            #[cfg(target_arch = "x86_64")]
            any_limits: true,
            sums: &sums.as_flattened()[..columns],
        }
    }
}

/// The sums of a panel's columns, in the memory of one group.
type Sums = [i32; NR];

const _: () = assert!(size_of::<Sums>() == size_of::<Group>() && align_of::<Sums>() <= align_of::<Group>());

/// The i8 that stands for a code.
#[inline(always)]
fn signed(code: u8) -> i8 {
    (code ^ 0x80).cast_signed()
}

#[inline(always)]
pub(crate) fn pack_codes(from: &CodeMatrix<'_>, memory: &mut [u8]) {
    let CodeMatrix { depth, columns, .. } = *from;
    let (panels, len) = (columns.div_ceil(NR), depth.div_ceil(KR));
    // SAFETY: a group is bytes, of any value, without padding.
    let (_, groups, _) = unsafe { memory.align_to_mut::<Group>() };
    let (groups, rest) = groups.split_at_mut(panels * len);
    // SAFETY: as in `Weights::of_codes`; any integers are bytes.
    let (_, sums, _) = unsafe { rest[..panels].align_to_mut::<Sums>() };
    for (p, sums) in sums.iter_mut().enumerate() {
        let first = p * NR;
        let width = NR.min(columns - first);
        let groups = &mut groups[p * len..][..len];
        let whole = if width == NR { depth / KR } else { 0 };
        if from.strides[1] == 1 {
            pack_rows(from, first, &mut groups[..whole]);
        } else {
            pack_columns(from, first, &mut groups[..whole]);
        }
        for (g, group) in groups.iter_mut().enumerate().skip(whole) {
            *group = Group([[0; KR]; NR]);
            for (n, column) in group.0[..width].iter_mut().enumerate() {
                for (t, weight) in column.iter_mut().enumerate().take(depth - g * KR) {
                    *weight = signed(from.data[from.at(g * KR + t, first + n)]);
                }
            }
        }
        add_columns(from, first, &mut sums[..width]);
    }
}

/// Groups of the `NR` columns from `first`, given as rows.
#[inline(always)]
fn pack_rows(from: &CodeMatrix<'_>, first: usize, groups: &mut [Group]) {
    for (g, group) in groups.iter_mut().enumerate() {
        let mut rows = [&[0; NR]; KR];
        for (t, row) in rows.iter_mut().enumerate() {
            *row = from.data[from.at(g * KR + t, first)..].first_chunk().expect("NR columns");
        }
        for (n, column) in group.0.iter_mut().enumerate() {
            *column = [signed(rows[0][n]), signed(rows[1][n]), signed(rows[2][n]), signed(rows[3][n])];
        }
    }
}

/// Groups of the `NR` columns from `first`, given as runs of bytes.
#[inline(always)]
fn pack_columns(from: &CodeMatrix<'_>, first: usize, groups: &mut [Group]) {
    if groups.is_empty() {
        return;
    }
    for n in 0..NR {
        let column = &from.data[from.at(0, first + n)..][..KR * groups.len()];
        for (group, codes) in groups.iter_mut().zip(column.as_chunks::<KR>().0) {
            group.0[n] = [signed(codes[0]), signed(codes[1]), signed(codes[2]), signed(codes[3])];
        }
    }
}

/// The sums of the columns from `first`, of codes less 128.
#[inline(always)]
fn add_columns(from: &CodeMatrix<'_>, first: usize, sums: &mut [i32]) {
    let CodeMatrix { data, depth, strides, .. } = *from;
    sums.fill(depth as i32 * -128);
    if depth == 0 {
        return;
    }
    if strides[1] == 1 {
        for k in 0..depth {
            let row = &data[from.at(k, first)..][..sums.len()];
            sums.iter_mut().zip(row).for_each(|(sum, &q)| *sum += i32::from(q));
        }
    } else {
        for (n, sum) in sums.iter_mut().enumerate() {
            *sum += data[from.at(0, first + n)..][..depth].iter().map(|&q| i32::from(q)).sum::<i32>();
        }
    }
}

#[inline(always)]
pub(crate) fn row_sums(a: &[u8], stride: usize, depth: usize, factor: i32, out: &mut [i32]) {
    for (i, out) in out.iter_mut().enumerate() {
        let row = &a[i * stride..][..depth];
        let sum = row.iter().fold(0i32, |sum, &a| sum.wrapping_add(a.into()));
        *out = factor.wrapping_mul(sum);
    }
}
