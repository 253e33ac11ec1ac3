//! Rows of f32 values as codes of 8 bits, each block with a scale of its own.

use std::ops::Range;

use super::{LowBitShape, LowBitWeights};
use crate::isa::Kernels;
use crate::rows::Rows;

/// What belongs to the codes of a block.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub struct CodedBlock {
    /// One step.
    pub scale: f32,
    /// The sum of the codes.
    pub sum: i32,
}

/// Rows of codes for [`Kernels::low_bit_integers`]: of the elements `x` of a row in
/// a block of the weights, with `a = max |x|`,
///
/// `scale = a / 127`, `q = clamp(round_half_even(x * (1 / scale)), -127, 127)`
///
/// where `1 / scale` is 0 if `scale` is. An infinity or NaN makes the sums over its
/// block infinite or NaN.
#[derive(Clone, Copy, Debug)]
pub struct LowBitRows<'a> {
    shape: LowBitShape,
    count: usize,
    blocks: &'a [CodedBlock],
    codes: &'a [i8],
}

impl<'a> LowBitRows<'a> {
    /// Codes of a row: those of whole words.
    fn pitch(shape: LowBitShape) -> usize {
        shape.words() * shape.per_word()
    }

    /// Bytes that the codes of this many rows take.
    pub fn bytes(weights: &LowBitWeights, rows: usize) -> usize {
        let row = Self::pitch(weights.shape()) + weights.shape().blocks() * size_of::<CodedBlock>();
        rows * row + align_of::<CodedBlock>()
    }

    /// The codes of `x` for these weights, at the start of `memory`.
    ///
    /// # Panics
    ///
    /// Rows have not the depth of the weights, or `memory` has fewer than
    /// [`LowBitRows::bytes`].
    pub fn quantized(
        kernels: &Kernels,
        weights: &LowBitWeights,
        x: Rows<'_, f32>,
        memory: &'a mut [u8],
    ) -> LowBitRows<'a> {
        let (shape, count) = (weights.shape(), x.count());
        assert_eq!((x.taps(), x.depth()), (1, shape.depth), "taps and depth of the rows");
        // SAFETY: any bytes are a valid `CodedBlock`.
        let (_, blocks, _) = unsafe { memory.align_to_mut::<CodedBlock>() };
        let (blocks, rest) = blocks.split_at_mut(count * shape.blocks());
        // SAFETY: any bytes are valid codes, and those of `CodedBlock` are all initialized.
        let (_, codes, _) = unsafe { rest.align_to_mut::<i8>() };
        let codes = &mut codes[..count * Self::pitch(shape)];
        for m in 0..count {
            let codes = &mut codes[m * Self::pitch(shape)..][..Self::pitch(shape)];
            codes[shape.depth..].fill(0);
            let of_blocks = &mut blocks[m * shape.blocks()..][..shape.blocks()];
            kernels.quantize_blocks(x.get::<1>(m, 0)[0], shape.block, codes, of_blocks);
        }
        LowBitRows { shape, count, blocks, codes }
    }

    /// The sizes of the weights that the rows are for.
    pub(crate) fn shape(&self) -> LowBitShape {
        self.shape
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
    pub fn range(&self, rows: Range<usize>) -> LowBitRows<'a> {
        let of_rows = |each: usize| rows.start * each..rows.end * each;
        LowBitRows {
            shape: self.shape,
            count: rows.len(),
            blocks: &self.blocks[of_rows(self.shape.blocks())],
            codes: &self.codes[of_rows(Self::pitch(self.shape))],
        }
    }

    /// The blocks of row `m`.
    #[inline(always)]
    pub(crate) fn blocks(&self, m: usize) -> &'a [CodedBlock] {
        &self.blocks[m * self.shape.blocks()..][..self.shape.blocks()]
    }

    /// The codes of row `m`, filled up with zeros to whole words.
    #[inline(always)]
    pub(crate) fn codes(&self, m: usize) -> &'a [i8] {
        &self.codes[m * Self::pitch(self.shape)..][..Self::pitch(self.shape)]
    }
}

/// Added to a number of magnitude below 2^22, it leaves the integer nearest to it,
/// ties to even, in the lower bits.
const ROUND: f32 = 12_582_912.0;

#[inline(always)]
pub(crate) fn quantize_blocks(x: &[f32], block: usize, codes: &mut [i8], of_blocks: &mut [CodedBlock]) {
    assert!(codes.len() >= x.len(), "{} codes for {} elements", codes.len(), x.len());
    assert_eq!(of_blocks.len(), x.len().div_ceil(block), "blocks of {block} of {} elements", x.len());
    let parts = x.chunks(block).zip(codes.chunks_mut(block));
    for (of_block, (x, codes)) in of_blocks.iter_mut().zip(parts) {
        *of_block = quantize(x, codes);
    }
}

/// `codes` may be longer than `x`.
#[inline(always)]
fn quantize(x: &[f32], codes: &mut [i8]) -> CodedBlock {
    // The greatest magnitude, by its bits: lanes are independent, and NaN the greatest.
    let most = x.iter().fold(0, |most: u32, x| most.max(x.to_bits() & 0x7fff_ffff));
    let scale = f32::from_bits(most) / 127.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let mut sum = 0;
    for (q, &x) in codes.iter_mut().zip(x) {
        let x = x * inverse;
        let x = if x > -127.0 { x } else { -127.0 };
        let x = if x < 127.0 { x } else { 127.0 };
        let code = (x + ROUND).to_bits().cast_signed() - ROUND.to_bits().cast_signed();
        *q = code as i8;
        sum += code;
    }
    CodedBlock { scale, sum }
}
