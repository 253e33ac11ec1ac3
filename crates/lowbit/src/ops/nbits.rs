//! MatMulNBits: products with a constant matrix of 2, 4 or 8-bit codes.

use std::sync::Arc;

use super::linear::Gemm;
use crate::error::{Error, Result, invalid};
use crate::op::{Attribute, Attributes, Dim, Fact, Op, ReadOp, Reading, arity, optional, optional_fact};
use crate::tensor::{DType, Tensor, element_count};

pub(super) const MICROSOFT_READERS: &[(&str, ReadOp)] = &[("MatMulNBits", |a| {
    let op = MatMulNBits {
        k: size(a, "K")?,
        n: size(a, "N")?,
        bits: a.int("bits")?.map_or(Ok(4), |bits| positive("bits", bits))?,
        block: size(a, "block_size")?,
        accuracy_level: a.int("accuracy_level")?,
    };
    op.check()?;
    if let Some(groups) = a.take_constant(GROUPS)? {
        let trivial = |(k, group): (usize, i64)| usize::try_from(group) == Ok(k / op.block);
        if groups.len() != op.k || !groups.integers()?.into_iter().enumerate().all(trivial) {
            return Err(Error::unsupported("MatMulNBits", "g_idx that reorders the rows of the matrix"));
        }
    }
    Ok(Arc::new(op))
})];

/// The input g_idx.
const GROUPS: usize = 4;
/// The input of the bias.
pub(crate) const BIAS: usize = 5;

fn size(a: &mut Reading, name: &str) -> Result<usize> {
    let size = a.int(name)?.ok_or_else(|| invalid!("attribute {name} is missing"))?;
    positive(name, size)
}

fn positive(name: &str, x: i64) -> Result<usize> {
    let size = usize::try_from(x).ok().filter(|x| (1..1 << 31).contains(x));
    size.ok_or_else(|| invalid!("attribute {name} = {x} is not a size"))
}

/// `y[.., n] = bias[n] + sum_k a[.., k] * w[n][k]` with
///
/// `w[n][k] = (q[n][k] - zero[n][b]) * scale[n][b]`, `b = k / block`,
///
/// of onnxruntime's domain `com.microsoft`.
///
/// Inputs: a in f32, `[.., K]`; the codes q as bytes, `[N, blocks, block * bits / 8]`, where a row of
/// codes is filled up to whole blocks and the first code of a byte is in its low bits; scales of
/// `N * blocks`; zero points, `2^(bits - 1)` where there are none: codes like those of the weights,
/// each row filled up to whole bytes, or `N * blocks` in f32; g_idx, left out or `k / block`; the bias, `[N]`.
#[derive(Clone, Debug, PartialEq)]
pub struct MatMulNBits {
    /// Rows of the matrix: the last dimension of the first input.
    pub k: usize,
    /// Columns of the matrix: the last dimension of the output.
    pub n: usize,
    /// Bits of a code: 2, 4 or 8.
    pub bits: usize,
    /// Codes that share a scale: a power of two, 16 at least.
    pub block: usize,
    /// How onnxruntime computes: 4 for activations in int8, else in float.
    pub accuracy_level: Option<i64>,
}

/// The matrix of a [`MatMulNBits`]: `[N, K]` codes with scales and zero points `[N, blocks]`.
#[derive(Clone, Debug)]
pub struct BlockCodes {
    /// One code a byte.
    pub codes: Vec<u8>,
    /// One for each block.
    pub scales: Vec<f32>,
    /// One for each block: an integer, unless the model gives it in f32.
    pub zeros: Vec<f32>,
}

impl MatMulNBits {
    /// The accuracy level of products in int8.
    pub const IN_INT8: i64 = 4;

    /// Blocks of a row of codes.
    pub fn blocks(&self) -> usize {
        self.k.div_ceil(self.block)
    }

    /// Whether the activations are to be quantized to int8, for each row and block.
    pub fn wants_integers(&self) -> bool {
        self.accuracy_level == Some(MatMulNBits::IN_INT8)
    }

    fn check(&self) -> Result<()> {
        let MatMulNBits { bits, block, .. } = *self;
        if !matches!(bits, 2 | 4 | 8) {
            return Err(Error::unsupported("MatMulNBits", format!("bits = {bits}; only 2, 4 and 8 are")));
        }
        if block < 16 || !block.is_power_of_two() {
            return Err(invalid!("block_size = {block} is not a power of two, 16 at least"));
        }
        Ok(())
    }

    fn bytes_of_block(&self) -> usize {
        self.block / (8 / self.bits)
    }

    /// Bytes of the zero points of a row.
    fn bytes_of_zeros(&self) -> usize {
        self.blocks().div_ceil(8 / self.bits)
    }

    /// The codes, scales and zero points that `inputs`, those from the second one on, hold.
    ///
    /// # Errors
    /// If their types or sizes are not those of the operator.
    pub fn block_codes(&self, inputs: &[&Tensor]) -> Result<BlockCodes> {
        let MatMulNBits { k, n, bits, .. } = *self;
        let facts: Vec<Fact> = inputs.iter().map(|t| Fact::of(t)).collect();
        self.check_matrix(&facts.iter().collect::<Vec<_>>())?;
        element_count(&[n, k])?;
        let per_byte = 8 / bits;
        let code = |bytes: &[u8], i: usize| (bytes[i / per_byte] >> (bits * (i % per_byte))) & self.mask();
        let rows = inputs[0].slice::<u8>()?.chunks_exact(self.blocks() * self.bytes_of_block());
        let codes = rows.flat_map(|row| (0..k).map(move |i| code(row, i))).collect();
        let scales = inputs[1].slice::<f32>()?.to_vec();
        let zeros = match optional(inputs, 2) {
            None => vec![f32::from(1u8 << (bits - 1)); scales.len()],
            Some(zeros) if zeros.dtype() == DType::F32 => zeros.slice::<f32>()?.to_vec(),
            Some(zeros) => {
                let rows = zeros.slice::<u8>()?.chunks_exact(self.bytes_of_zeros());
                rows.flat_map(|row| (0..self.blocks()).map(move |b| f32::from(code(row, b)))).collect()
            }
        };
        Ok(BlockCodes { codes, scales, zeros })
    }

    fn mask(&self) -> u8 {
        ((1u16 << self.bits) - 1) as u8
    }

    /// Checks what is known of types and sizes of the inputs from the second one on.
    fn check_matrix(&self, x: &[&Fact]) -> Result<()> {
        let MatMulNBits { k, n, block, .. } = *self;
        let count = n.saturating_mul(self.blocks());
        let is = |name: &str, fact: &Fact, dtype: DType, elements: usize| {
            let found = fact.known_shape().map(|shape| shape.iter().product::<usize>());
            if fact.dtype == dtype && found.is_none_or(|found| found == elements) {
                return Ok(());
            }
            let of = format!("for K = {k} in blocks of {block} and N = {n}");
            Err(invalid!("{name} is {fact}, not {elements} elements of {dtype} {of}"))
        };
        is("B", x[0], DType::U8, count.saturating_mul(self.bytes_of_block()))?;
        is("scales", x[1], DType::F32, count)?;
        match optional_fact(x, 2) {
            Some(zeros) if zeros.dtype == DType::F32 => is("zero_points", zeros, DType::F32, count)?,
            Some(zeros) => is("zero_points", zeros, DType::U8, n.saturating_mul(self.bytes_of_zeros()))?,
            None => {}
        }
        if optional_fact(x, GROUPS - 1).is_some() {
            return Err(Error::unsupported("MatMulNBits", "g_idx"));
        }
        optional_fact(x, BIAS - 1).map_or(Ok(()), |bias| is("bias", bias, DType::F32, n))
    }
}

impl BlockCodes {
    /// The matrix in f32, `[N, K]`.
    ///
    /// # Errors
    /// If the sizes are not those of the operator.
    pub fn dequantized(&self, op: &MatMulNBits) -> Result<Tensor> {
        let mut w = Vec::with_capacity(self.codes.len());
        let of_rows = self.scales.chunks(op.blocks()).zip(self.zeros.chunks(op.blocks()));
        for (row, (scales, zeros)) in self.codes.chunks(op.k).zip(of_rows) {
            let value = |(i, &q): (usize, &u8)| (f32::from(q) - zeros[i / op.block]) * scales[i / op.block];
            w.extend(row.iter().enumerate().map(value));
        }
        Tensor::new(&[op.n, op.k], w)
    }
}

impl Op for MatMulNBits {
    fn name(&self) -> &'static str {
        "MatMulNBits"
    }
    fn domain(&self) -> &'static str {
        "com.microsoft"
    }
    fn infer(&self, x: &[&Fact]) -> Result<Vec<Fact>> {
        arity(x, 3, 6)?;
        match (x[0].dtype, x[0].shape.last()) {
            (DType::F32, Some(Dim::Known(last))) if *last == self.k => {}
            (DType::F32, Some(Dim::Named(_))) => {}
            _ => return Err(invalid!("A is {}, not rows of K = {} in f32", x[0], self.k)),
        }
        self.check_matrix(&x[1..])?;
        let mut shape = x[0].shape.clone();
        shape.pop();
        shape.push(Dim::Known(self.n));
        Ok(vec![x[0].with_shape(shape)])
    }
    fn eval(&self, x: &[&Tensor]) -> Result<Vec<Tensor>> {
        let w = self.block_codes(&x[1..])?.dequantized(self)?;
        let mut shape = x[0].shape().to_vec();
        shape.pop();
        let a = x[0].reshaped(&[shape.iter().product(), self.k])?;
        let mut operands = vec![&a, &w];
        operands.extend(optional(x, BIAS));
        let y = Gemm { trans_b: true, ..Gemm::default() }.eval(&operands)?.remove(0);
        shape.push(self.n);
        Ok(vec![y.reshaped(&shape)?])
    }
    fn attributes(&self) -> Attributes {
        let int = |x: usize| Attribute::Int(x as i64);
        let mut attributes = vec![
            ("K", int(self.k)),
            ("N", int(self.n)),
            ("bits", int(self.bits)),
            ("block_size", int(self.block)),
        ];
        attributes.extend(self.accuracy_level.map(|level| ("accuracy_level", Attribute::Int(level))));
        attributes
    }
    fn folds(&self) -> bool {
        false
    }
    fn macs(&self, _: &[&Fact], y: &[&Fact]) -> u64 {
        y[0].elements().saturating_mul(self.k as u64)
    }
}

#[cfg(test)]
mod tests;
