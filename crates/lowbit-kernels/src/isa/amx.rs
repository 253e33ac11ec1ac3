//! AMX: `tdpbusd` multiplies a tile of 16 rows of 64 u8 by one of 64 x 16 i8, and sums into a tile
//! of 16 x 16 i32 without saturating.
//!
//! The groups of a panel are tiles of weights as they lie. Rows are read where they lie if they are
//! evenly spaced and as deep as whole tiles; others are copied first, once for all panels.
//!
//! Tiles keep their contents from one `asm!` to the next: nothing that the compiler makes uses them.

mod permission;

use std::arch::asm;
use std::arch::x86_64::*;
use std::cell::RefCell;
use std::ptr;

use super::avx512vnni::saturate::Codes;
use super::finish512::finish;
use super::{Kernels, avx512vnni};
use crate::block::{Block, Multiply};
use crate::pack::{Group, KR, NR};
use crate::tile::Epilogue;

pub(super) const KERNELS: Kernels = Kernels {
    name: "amx",
    detected: || (avx512vnni::KERNELS.detected)() && permission::granted(),
    tile_rows: 2 * ROWS,
    multiply: Multiply::Block(multiply),
    ..avx512vnni::KERNELS
};

/// The most rows of a tile.
const ROWS: usize = 16;
/// Columns of a tile of sums, of 32 bits.
const LANES: usize = 16;
/// Bytes of a tile's row: the depth of one dot product.
const STEP: usize = 64;
/// Groups of a tile of weights.
const GROUPS: usize = STEP / KR;
/// The fewest rows, and the least depth, for which tiles are faster than vectors.
const LEAST_ROWS: usize = 20;
const LEAST_DEPTH: usize = 128;
/// Pairs of tiles during which the next panel is loaded into a cache, a part in each.
const PAIRS_AHEAD: usize = 4;
/// Panels for which rows are copied even where they could be read in place, if they lie badly.
const COPY_FOR: usize = 6;

/// Bytes that do not straddle cache lines.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; STEP]);

/// The sums of two tiles of rows by a panel.
#[repr(C, align(64))]
struct Sums([[i32; NR]; 2 * ROWS]);

thread_local! {
    /// Rows that were copied to lie evenly spaced.
    static COPIED: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn multiply(block: &Block<'_>, epilogue: &mut Epilogue<'_>) {
    let depth = block.weights.taps() * block.weights.groups_per_tap() * KR;
    if block.rows.len() < LEAST_ROWS || depth < LEAST_DEPTH {
        // SAFETY: the CPU has the features of this function, which are those of the tile.
        return unsafe { block.by_tiles(avx512vnni::tile, avx512vnni::ROWS, epilogue) };
    }
    let whole = block.left.depth().is_multiple_of(STEP);
    let lies_well = |stride: usize| block.panels.len() < COPY_FOR || stride / STEP % 2 == 1;
    match block.left.evenly(block.rows.start) {
        Some((start, stride)) if whole && lies_well(stride) => {
            // SAFETY: the rows have `depth` bytes, whole steps.
            unsafe { by_panels(block, Left { start, stride }, epilogue) };
        }
        _ => COPIED.with_borrow_mut(|lines| {
            let pitch = copy(block, lines);
            let left = Left { start: lines.as_ptr().cast(), stride: pitch * STEP };
            // SAFETY: each row was copied to `pitch` lines, zeros behind its bytes.
            unsafe { by_panels(block, left, epilogue) };
        }),
    }
}

/// Copies the block's rows, tap by tap, each tap filled up to whole groups and the row to whole
/// lines, and tells the lines from row to row.
#[target_feature(enable = "avx512f,avx512bw")]
fn copy(block: &Block<'_>, lines: &mut Vec<Line>) -> usize {
    let (rows, depth) = (block.left, block.left.depth());
    let per_tap = block.weights.groups_per_tap() * KR;
    let of_row = (rows.taps() * per_tap).div_ceil(STEP);
    // Odd: lines below each other do not compete for the same places in a cache.
    let pitch = of_row | 1;
    // What is stored at a tap may reach beyond it by less than a line.
    lines.resize(lines.len().max(block.rows.len() * pitch + 1), Line([0; STEP]));
    let last = u64::MAX >> (STEP - 1 - (depth + STEP - 1) % STEP);
    for (i, row) in block.rows.clone().enumerate() {
        let [start] = rows.starts::<1>(row);
        lines[i * pitch + of_row - 1] = Line([0; STEP]);
        for (tap, &offset) in rows.offsets().iter().enumerate() {
            for at in (0..depth).step_by(STEP) {
                let columns = if at + STEP < depth { u64::MAX } else { last };
                let to = i * pitch * STEP + tap * per_tap + at;
                // SAFETY: `depth` bytes can be read at the tap's offset, and the mask leaves out
                // those beyond. What is stored begins within the row's lines, of which there is
                // one more behind the last row.
                unsafe {
                    let line = _mm512_maskz_loadu_epi8(columns, start.add(offset + at).cast());
                    _mm512_storeu_si512(lines.as_mut_ptr().cast::<u8>().add(to).cast(), line);
                }
            }
        }
    }
    pitch
}

/// Rows of `u8`, evenly spaced.
#[derive(Clone, Copy)]
struct Left {
    start: *const u8,
    stride: usize,
}

impl Left {
    fn row(self, row: usize) -> *const u8 {
        self.start.wrapping_add(row * self.stride)
    }
}

/// The shape of all tiles: `rows` rows of 64 bytes, but 16 rows of weights.
#[repr(C, align(64))]
struct Shape {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Shape {
    /// Sums in tiles 0 to 3, rows of the left matrix in 4 and 5, weights in 6 and 7.
    fn of(rows: usize) -> Shape {
        let mut shape =
            Shape { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        shape.row_bytes[..8].fill(STEP as u16);
        shape.rows[..6].fill(rows as u8);
        shape.rows[6..8].fill(GROUPS as u8);
        shape
    }
}

/// Computes the block, whose rows are those of `left`, panel by panel.
///
/// # Safety
///
/// From the start of each of the block's rows on, as many whole steps can be read as the taps and
/// groups of the weights need, zeros behind them. The CPU has AMX, and the process may use it.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn by_panels(block: &Block<'_>, left: Left, epilogue: &mut Epilogue<'_>) {
    let count = block.rows.len();
    let high = count.div_ceil(2 * count.div_ceil(2 * ROWS));
    let shape = Shape::of(high);
    // SAFETY: by the contract; the shape is one that palette 1 has.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const shape, options(nostack, preserves_flags, readonly)) };
    let mut rest = [Group([[0; KR]; NR]); GROUPS];
    let mut sums = Sums([[0; NR]; 2 * ROWS]);
    for index in block.panels.clone() {
        let panel = block.enter(index, epilogue);
        let (whole, last) = panel.all_groups().as_chunks::<GROUPS>();
        rest[..last.len()].copy_from_slice(last);
        let steps = whole.iter().chain((!last.is_empty()).then_some(&rest));
        let codes = Codes::new(epilogue, block.rows.clone());
        let pairs = count.div_ceil(2 * high);
        let of_step = panel.next().len().div_ceil(pairs.min(PAIRS_AHEAD) * steps.clone().count());
        let mut ahead = panel.next().chunks(of_step.max(1));
        for first in (0..count).step_by(2 * high) {
            // Tiles that would reach beyond the last row overlap the one before.
            let firsts = [first.min(count - high), (first + high).min(count - high)];
            let rows = firsts.map(|row| left.row(row));
            // SAFETY: by the contract; tiles have `high` rows.
            unsafe { multiply_two(rows, left.stride, steps.clone(), &mut ahead, high, &mut sums) };
            for (first, sums) in firsts.into_iter().zip(sums.0.chunks_exact(high)) {
                match &codes {
                    // SAFETY: the epilogue is used by nobody else, and has these rows.
                    Some(codes) => unsafe { store(codes, sums, first) },
                    None => finish(epilogue, sums, block.rows.start + first, 0),
                }
            }
        }
    }
    // SAFETY: by the contract.
    unsafe { asm!("tilerelease", options(nostack, preserves_flags, nomem)) };
}

/// The sums of two tiles of rows, the second below the first, by the steps of a panel. During each
/// step, the next groups of those `ahead` are loaded into a cache.
///
/// # Safety
///
/// As [`by_panels`]'s, and tiles have the shape [`Shape::of`] `high`.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn multiply_two<'a>(
    mut rows: [*const u8; 2],
    stride: usize,
    steps: impl Iterator<Item = &'a [Group; GROUPS]>,
    ahead: &mut impl Iterator<Item = &'a [Group]>,
    high: usize,
    sums: &mut Sums,
) {
    const PITCH: usize = size_of::<Group>();
    // SAFETY: by the contract.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            options(nostack, preserves_flags, nomem),
        );
    }
    for groups in steps {
        for group in ahead.next().unwrap_or_default() {
            let group: *const i8 = ptr::from_ref(group).cast();
            _mm_prefetch::<_MM_HINT_T1>(group);
            _mm_prefetch::<_MM_HINT_T1>(group.wrapping_add(STEP));
        }
        // SAFETY: by the contract, there are 64 bytes in each row; a step of weights is 16 groups.
        unsafe {
            asm!(
                "tileloadd tmm6, [{groups} + {pitch}*1]",
                "tileloadd tmm7, [{groups} + {pitch}*1 + 64]",
                "tileloadd tmm4, [{above} + {stride}*1]",
                "tdpbusd tmm0, tmm4, tmm6",
                "tdpbusd tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{below} + {stride}*1]",
                "tdpbusd tmm2, tmm5, tmm6",
                "tdpbusd tmm3, tmm5, tmm7",
                above = in(reg) rows[0], below = in(reg) rows[1], stride = in(reg) stride,
                groups = in(reg) groups, pitch = in(reg) PITCH,
                options(nostack, preserves_flags, readonly),
            );
        }
        rows = rows.map(|row| row.wrapping_add(STEP));
    }
    let (above, below) = (&raw mut sums.0[0], &raw mut sums.0[high]);
    // SAFETY: tiles of `high` rows, one below the other, have room.
    unsafe {
        asm!(
            "tilestored [{above} + {pitch}*1], tmm0",
            "tilestored [{above} + {pitch}*1 + 64], tmm1",
            "tilestored [{below} + {pitch}*1], tmm2",
            "tilestored [{below} + {pitch}*1 + 64], tmm3",
            above = in(reg) above, below = in(reg) below, pitch = in(reg) size_of::<[i32; NR]>(),
            options(nostack, preserves_flags),
        );
    }
}

/// Vectors of a row of sums.
const VECTORS: usize = NR / LANES;

/// Stores the codes of the rows from `first`, which have these sums.
///
/// # Safety
///
/// As [`Codes::store`]'s.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn store(codes: &Codes<VECTORS>, sums: &[[i32; NR]], first: usize) {
    const TOGETHER: usize = 4;
    let (whole, rest) = sums.as_chunks::<TOGETHER>();
    for (i, sums) in whole.iter().enumerate() {
        // SAFETY: by the contract.
        unsafe { codes.store::<TOGETHER, NR>(&load(sums, codes.bias), first + TOGETHER * i) };
    }
    for (i, sums) in rest.as_chunks::<1>().0.iter().enumerate() {
        // SAFETY: by the contract.
        unsafe { codes.store::<1, NR>(&load(sums, codes.bias), first + TOGETHER * whole.len() + i) };
    }
}

/// The vectors of each row of sums, to which `bias` is added.
#[inline]
#[target_feature(enable = "avx512f")]
fn load<const R: usize>(sums: &[[i32; NR]; R], bias: [__m512i; VECTORS]) -> [[__m512i; VECTORS]; R] {
    let mut rows = [bias; R];
    for (row, sums) in rows.iter_mut().zip(sums) {
        for (vector, sums) in row.iter_mut().zip(sums.as_chunks::<LANES>().0) {
            // SAFETY: `sums` is 64 readable bytes.
            let sums = unsafe { _mm512_loadu_si512(sums.as_ptr().cast()) };
            *vector = _mm512_add_epi32(*vector, sums);
        }
    }
    rows
}
