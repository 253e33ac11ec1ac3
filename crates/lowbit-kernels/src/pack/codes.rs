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
    let CodeMatrix { data, depth, columns, strides } = *from;
    let (panels, len) = (columns.div_ceil(NR), depth.div_ceil(KR));
    // SAFETY: a group is bytes, of any value, without padding.
    let (_, groups, _) = unsafe { memory.align_to_mut::<Group>() };
    let (groups, rest) = groups.split_at_mut(panels * len);
    // SAFETY: as in `Weights::of_codes`; any integers are bytes.
    let (_, sums, _) = unsafe { rest[..panels].align_to_mut::<Sums>() };
    for (p, sums) in sums.iter_mut().enumerate() {
        let first = p * NR;
        let width = NR.min(columns - first);
        *sums = [0; NR];
        for (g, group) in groups[p * len..][..len].iter_mut().enumerate() {
            let k = g * KR;
            let height = KR.min(depth - k);
            let at = k * strides[0] + first * strides[1];
            if (width, height) == (NR, KR) && strides[1] == 1 {
                let mut rows = [&[0; NR]; KR];
                for (t, row) in rows.iter_mut().enumerate() {
                    *row = data[at + t * strides[0]..].first_chunk().expect("NR columns");
                }
                for (n, column) in group.0.iter_mut().enumerate() {
                    *column =
                        [signed(rows[0][n]), signed(rows[1][n]), signed(rows[2][n]), signed(rows[3][n])];
                }
            } else if (width, height) == (NR, KR) && strides[0] == 1 {
                for (n, column) in group.0.iter_mut().enumerate() {
                    let codes: [u8; KR] = *data[at + n * strides[1]..].first_chunk().expect("KR rows");
                    *column = [signed(codes[0]), signed(codes[1]), signed(codes[2]), signed(codes[3])];
                }
            } else {
                *group = Group([[0; KR]; NR]);
                for (n, column) in group.0[..width].iter_mut().enumerate() {
                    for (t, weight) in column[..height].iter_mut().enumerate() {
                        *weight = signed(data[at + t * strides[0] + n * strides[1]]);
                    }
                }
            }
            for (sum, column) in sums.iter_mut().zip(&group.0) {
                *sum += column.iter().map(|&w| i32::from(w)).sum::<i32>();
            }
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
