//! Products with weights of few bits as onnxruntime's operator for them.

use std::sync::Arc;

use crate::error::Result;
use crate::graph::{Graph, Kind, Var};
use crate::ops::linear::MatMul;
use crate::ops::nbits::MatMulNBits;
use crate::ops::quantize::{DequantizeLinear, params};
use crate::qparams::QParams;
use crate::scheme::{Format, Granularity};
use crate::tensor::Tensor;

/// The least block that MatMulNBits has.
const LEAST_BLOCK: usize = 16;

/// Puts [`MatMulNBits`] in the place of each MatMul by a dequantized constant
/// matrix `[K, N]` of 2, 4 or 8-bit codes, whose scales are for blocks along K
/// of a power of two, 16 at least, or for whole columns. Others stay.
///
/// Signed codes become unsigned by adding half their number, which is the zero
/// point that the operator takes where none is given. The products are the same;
/// if `in_int8`, the other operand is quantized in each run, block by block
/// (docs/quantization.md, equation 22).
///
/// # Errors
/// If scales or zero points do not fit their codes.
pub fn products_of_few_bits(graph: &Graph, in_int8: bool) -> Result<Graph> {
    graph.rebuild(|b, _, node, inputs| {
        let Kind::Apply { op, inputs: old } = &node.kind else { return b.copy(node, inputs) };
        let packed = match op.is::<MatMul>() {
            Some(MatMul) => Packed::new(graph, old[1])?,
            None => None,
        };
        let Some(mut packed) = packed else { return b.copy(node, inputs) };
        packed.op.accuracy_level = in_int8.then_some(MatMulNBits::IN_INT8);
        let name = graph.value(old[1]).name.trim_end_matches("_dq").to_string();
        let part = |part: &str| format!("{name}_{part}");
        let codes = b.constant(&part("n"), packed.codes);
        let scales = b.constant(&part("ns"), packed.scales);
        let mut operands = vec![inputs[0], codes, scales];
        operands.extend(packed.zeros.map(|zeros| b.constant(&part("nz"), zeros)));
        b.replace(node, Arc::new(packed.op), &operands)
    })
}

/// The operands of the operator.
struct Packed {
    op: MatMulNBits,
    codes: Tensor,
    scales: Tensor,
    zeros: Option<Tensor>,
}

impl Packed {
    /// The matrix that `v` is, if it has the operator's form.
    fn new(graph: &Graph, v: Var) -> Result<Option<Packed>> {
        let Some((op, inputs)) = graph.made_by::<DequantizeLinear>(v) else { return Ok(None) };
        let constants: Option<Vec<&Tensor>> = inputs.iter().map(|v| graph.constant(*v)).collect();
        let Some([codes, scale, zero @ ..]) = constants.as_deref() else { return Ok(None) };
        let ([k, n], Ok(Format::Int { bits: bits @ (2 | 4 | 8), signed, .. })) =
            (codes.shape(), Format::of(codes.dtype()))
        else {
            return Ok(None);
        };
        let params = params(2, codes.dtype(), (op.axis, op.block), scale, zero.first().copied())?;
        let block = match params.scheme.granularity {
            Granularity::Block { axis: 0, size } if size >= LEAST_BLOCK && size.is_power_of_two() => size,
            Granularity::Axis(1) | Granularity::Tensor => k.next_power_of_two().max(LEAST_BLOCK),
            _ => return Ok(None),
        };
        let bits = usize::from(bits);
        let op = MatMulNBits { k: *k, n: *n, bits, block, accuracy_level: None };
        let offset = if signed { 1 << (bits - 1) } else { 0 };
        Ok(Some(Packed::of_codes(op, &codes.integers()?, offset, &params)?))
    }

    /// From codes `[K, N]`, to which `offset` is added, as to the zero points.
    fn of_codes(op: MatMulNBits, codes: &[i64], offset: i64, params: &QParams) -> Result<Packed> {
        let MatMulNBits { k, n, bits, block, .. } = op;
        let blocks = op.blocks();
        // A whole column's, or the whole matrix's, where scales are fewer.
        let of_block = |row: usize, b: usize| match params.scheme.granularity {
            Granularity::Block { .. } => b * n + row,
            Granularity::Axis(_) => row,
            Granularity::Tensor => 0,
        };
        let places = || (0..n).flat_map(|row| (0..blocks).map(move |b| of_block(row, b)));
        let scales: Vec<f32> = places().map(|g| params.scale[g]).collect();
        let zeros: Vec<u8> = places().map(|g| (i64::from(params.zero_point[g]) + offset) as u8).collect();
        let mut rows = vec![];
        for row in 0..n {
            // Codes beyond K are multiplied with nothing; the zero point stands for 0.
            let code = |i: usize| match i < k {
                true => (codes[i * n + row] + offset) as u8,
                false => zeros[row * blocks + i / block],
            };
            let whole: Vec<u8> = (0..blocks * block).map(code).collect();
            rows.extend(packed(&whole, bits));
        }
        let middle = 1 << (bits - 1);
        let packed_zeros: Vec<u8> = zeros.chunks(blocks.max(1)).flat_map(|row| packed(row, bits)).collect();
        let zeros = zeros
            .iter()
            .any(|z| *z != middle)
            .then(|| Tensor::new(&[packed_zeros.len()], packed_zeros))
            .transpose()?;
        let codes = Tensor::new(&[n, blocks, block * bits / 8], rows)?;
        Ok(Packed { codes, scales: Tensor::new(&[n * blocks], scales)?, zeros, op })
    }
}

/// Codes of `bits` bits in bytes, the first in the low bits.
fn packed(codes: &[u8], bits: usize) -> Vec<u8> {
    let byte = |codes: &[u8]| codes.iter().enumerate().fold(0, |byte, (i, q)| byte | q << (i * bits));
    codes.chunks(8 / bits).map(byte).collect()
}

#[cfg(test)]
mod tests;
