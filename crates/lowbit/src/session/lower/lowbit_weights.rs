//! Constant matrices of codes that no integer operator takes stay codes: products
//! with them and rows gathered from them read the codes.

use std::collections::HashMap;
use std::sync::Arc;

use lowbit_kernels::{CodeValues, LowBitShape, LowBitWeights};

use crate::error::Result;
use crate::graph::{Builder, Graph, Kind, Node, Var};
use crate::op::{Op, optional};
use crate::ops::binary::Arithmetic;
use crate::ops::gather::Gather;
use crate::ops::layout::Transpose;
use crate::ops::linear::{Gemm, MatMul};
use crate::ops::lookup::LookupDequantize;
use crate::ops::nbits::{BIAS, BlockCodes, MatMulNBits};
use crate::ops::quantize::DequantizeLinear;
use crate::qparams::QParams;
use crate::scheme::{Format, Granularity, Mapping, Scheme};
use crate::session::codes::constant_params;
use crate::session::float::low_bit::{Compute, LowBitGather, LowBitMatMul};
use crate::session::integer::boundary::Dequantize;
use crate::tensor::{DType, Tensor};

/// The graph with [`LowBitMatMul`] and [`LowBitGather`] where MatMul, Gemm and Gather
/// read a constant matrix that is dequantized, and in place of [`MatMulNBits`]. `compute`
/// says how products are computed whose operator does not.
pub fn kept(graph: &Graph, compute: Compute) -> Result<Graph> {
    let mut kept = Kept { packed: HashMap::new(), compute };
    graph.rebuild(|b, _, node, inputs| {
        let Kind::Apply { op, .. } = &node.kind else { return b.copy(node, inputs) };
        if let Some(product) = op.is::<MatMulNBits>()
            && let Some(made) = n_bits(b, node, product, inputs).map_err(|e| e.at(&node.name))?
        {
            return Ok(made);
        }
        match kept.form(b, &**op, inputs).map_err(|e| e.at(&node.name))? {
            Some((op, x)) => b.apply_all(&node.name, op, &[x], &[&node.outputs[0].name]),
            None => b.copy(node, inputs),
        }
    })
}

struct Kept {
    /// The matrices of dequantized values, by whether each is read transposed.
    packed: HashMap<(Var, bool), Option<Arc<LowBitWeights>>>,
    compute: Compute,
}

impl Kept {
    /// The operator that reads codes in place of `op`, and its operand.
    fn form(&mut self, b: &Builder, op: &dyn Op, inputs: &[Var]) -> Result<Option<(Arc<dyn Op>, Var)>> {
        let graph = b.so_far();
        if op.is::<Gather>().is_some_and(|gather| gather.axis == 0) {
            let weights = self.matrix(b, inputs[0], true)?;
            return Ok(weights.map(|weights| (Arc::new(LowBitGather { weights }) as Arc<dyn Op>, inputs[1])));
        }
        let transposed = match (op.is::<MatMul>(), op.is::<Gemm>()) {
            (Some(_), _) => false,
            (_, Some(g)) if !g.trans_a && g.alpha == 1.0 && g.beta == 1.0 => g.trans_b,
            _ => return Ok(None),
        };
        let bias = match inputs.get(2).filter(|v| !graph.fact(**v).is_absent()) {
            None => None,
            Some(v) => match graph.constant(*v) {
                Some(t) if t.dtype() == DType::F32 && t.rank() == 1 => Some(t.slice::<f32>()?),
                _ => return Ok(None),
            },
        };
        let weights = self.matrix(b, inputs[1], transposed)?;
        let fits = |w: &Arc<LowBitWeights>| bias.is_none_or(|bias| bias.len() == w.shape().columns);
        let plain = graph.constant(inputs[0]).is_none() && graph.fact(inputs[0]).dtype == DType::F32;
        let Some(weights) = weights.filter(fits).filter(|_| plain) else { return Ok(None) };
        let op = LowBitMatMul { weights, bias: bias.map(Into::into), compute: self.compute };
        Ok(Some((Arc::new(op), inputs[0])))
    }

    /// The matrix `[K, N]` that `v` is the value of, or `[N, K]` if it is read transposed.
    fn matrix(&mut self, b: &Builder, v: Var, transposed: bool) -> Result<Option<Arc<LowBitWeights>>> {
        let graph = b.so_far();
        if let Some((transpose, x)) = graph.made_by::<Transpose>(v)
            && graph.fact(v).rank() == 2
            && transpose.perm.as_deref().is_none_or(|perm| perm == [1, 0])
        {
            return self.matrix(b, x[0], !transposed);
        }
        if let Some(made) = self.packed.get(&(v, transposed)) {
            return Ok(made.clone());
        }
        let made = packed_codes(graph, v, transposed)?.map(Arc::new);
        self.packed.insert((v, transposed), made.clone());
        Ok(made)
    }
}

/// Constant codes `[rows, columns]`, and what they stand for.
struct Coded<'a> {
    codes: &'a Tensor,
    /// The scales, and the zero points of integers.
    params: QParams,
    values: CodeValues,
}

/// What `v` is the dequantized value of.
fn coded(graph: &Graph, v: Var) -> Result<Option<Coded<'_>>> {
    if graph.fact(v).dtype != DType::F32 || graph.fact(v).rank() != 2 {
        return Ok(None);
    }
    let (x, params, values) = if let Some((dq, x)) = graph.made_by::<DequantizeLinear>(v) {
        let params = constant_params(graph, x[0], (dq.axis, dq.block), x)?;
        let values = params.as_ref().and_then(|params| values_of(params.scheme.format));
        (x[0], params, values)
    } else if let Some((dq, x)) = graph.made_by::<LookupDequantize>(v) {
        let params = graph.constant(x[2]).map(|scale| dq.params(graph.fact(x[0]), scale)).transpose()?;
        let table = graph.constant(x[1]).map(|table| table.slice::<f32>()).transpose()?;
        (x[0], params, table.map(|table| CodeValues::Table(table.to_vec())))
    } else if let Some((dq, x)) = graph.made_by::<Dequantize>(v) {
        let scheme = Scheme::new(Format::UINT8, Mapping::Affine);
        let params = QParams { scheme, scale: vec![dq.codes.scale], zero_point: vec![dq.codes.zero] };
        (x[0], Some(params), Some(CodeValues::Integers))
    } else {
        return Ok(None);
    };
    let (Some(codes), Some(params), Some(values)) = (graph.constant(x), params, values) else {
        return Ok(None);
    };
    Ok(Some(Coded { codes, params, values }))
}

/// The matrix of codes that `v` is the value of, if it has scales of columns or of
/// blocks down the depth.
fn packed_codes(graph: &Graph, v: Var, transposed: bool) -> Result<Option<LowBitWeights>> {
    let Some(Coded { codes: t, params, values }) = coded(graph, v)? else { return Ok(None) };
    let granularity = params.scheme.granularity;
    if granularity.groups(t.shape())?.count() != params.scale.len() {
        return Ok(None);
    }
    let (depth_axis, [rows, row]) = (usize::from(transposed), [t.shape()[0], t.shape()[1]]);
    let (depth, columns) = if transposed { (row, rows) } else { (rows, row) };
    let block = match granularity {
        Granularity::Tensor => depth,
        Granularity::Axis(axis) if axis != depth_axis => depth,
        Granularity::Block { axis, size } if axis == depth_axis => size.min(depth),
        _ => return Ok(None),
    };
    let shape = LowBitShape { bits: t.dtype().bits(), depth, columns, block: block.max(1) };
    if !shape.is_valid() {
        return Ok(None);
    }
    let blocks = shape.blocks();
    let group = |b: usize, n: usize| match granularity {
        Granularity::Tensor => 0,
        Granularity::Axis(_) => n,
        Granularity::Block { .. } if transposed => n * blocks + b,
        Granularity::Block { .. } => b * columns + n,
    };
    let flip = match (&values, params.scheme.format) {
        (CodeValues::Integers, Format::Int { signed: false, .. }) => 1 << (shape.bits - 1),
        _ => 0,
    };
    let zero = |b: usize, n: usize| match values {
        CodeValues::Integers => (params.zero_point[group(b, n)] - i32::from(flip)) as i8,
        CodeValues::Table(_) => 0,
    };
    let codes = bytes(t)?;
    let code = |k: usize, n: usize| codes[if transposed { n * depth + k } else { k * columns + n }] ^ flip;
    Ok(Some(LowBitWeights::new(shape, values.clone(), code, |b, n| params.scale[group(b, n)], zero)))
}

/// What the codes of a format of 2, 4 or 8 bits stand for.
fn values_of(format: Format) -> Option<CodeValues> {
    let dtype = format.dtype();
    match format {
        Format::Int { bits, .. } => (usize::from(bits) == dtype.bits()).then_some(CodeValues::Integers),
        Format::Codebook { .. } => None,
        Format::Float { .. } => {
            Some(CodeValues::Table((0..1u16 << dtype.bits()).map(|q| dtype.decode(q as u8)).collect()))
        }
    }
}

/// The codes as bytes.
fn bytes(t: &Tensor) -> Result<Vec<u8>> {
    match t.slice::<i8>() {
        Ok(codes) => Ok(codes.iter().map(|q| q.cast_unsigned()).collect()),
        Err(_) => Ok(t.slice::<u8>()?.to_vec()),
    }
}

/// What stands for a [`MatMulNBits`] of constant operands: a [`LowBitMatMul`], or where
/// its zero points are no codes a product with the matrix in f32.
fn n_bits(b: &mut Builder, node: &Node, op: &MatMulNBits, inputs: &[Var]) -> Result<Option<Vec<Var>>> {
    let graph = b.so_far();
    let constants: Option<Vec<&Tensor>> = inputs[1..].iter().map(|v| graph.constant(*v)).collect();
    let Some(operands) = constants.filter(|_| graph.constant(inputs[0]).is_none()) else { return Ok(None) };
    let (codes, bias) = (op.block_codes(&operands)?, optional(&operands, BIAS - 1).cloned());
    let name = &node.outputs[0].name;
    if let Some(weights) = packed(op, &codes) {
        let bias = bias.map(|t| t.slice::<f32>().map(Arc::from)).transpose()?;
        let compute = if op.wants_integers() { Compute::Int8 } else { Compute::Float };
        let op = LowBitMatMul { weights: Arc::new(weights), bias, compute };
        return b.apply_all(&node.name, Arc::new(op), &inputs[..1], &[name]).map(Some);
    }
    let w = Transpose { perm: None }.eval(&[&codes.dequantized(op)?])?.remove(0);
    let w = b.constant(&format!("{name}_weight"), w);
    let Some(bias) = bias else {
        return b.apply_all(&node.name, Arc::new(MatMul), &[inputs[0], w], &[name]).map(Some);
    };
    let product = b.apply(&node.name, Arc::new(MatMul), &[inputs[0], w])?;
    let bias = b.constant(&format!("{name}_bias"), bias);
    b.apply_all(&node.name, Arc::new(Arithmetic::Add), &[product, bias], &[name]).map(Some)
}

/// The matrix, if its zero points are whole numbers of 8 bits.
fn packed(op: &MatMulNBits, codes: &BlockCodes) -> Option<LowBitWeights> {
    let MatMulNBits { k, n, bits, block, .. } = *op;
    let middle = 1u8 << (bits - 1);
    let zeros: Option<Vec<i8>> = codes.zeros.iter().map(|&z| whole(z - f32::from(middle))).collect();
    let (zeros, blocks) = (zeros?, op.blocks());
    let shape = LowBitShape { bits, depth: k, columns: n, block };
    Some(LowBitWeights::new(
        shape,
        CodeValues::Integers,
        |k, n| codes.codes[n * op.k + k] ^ middle,
        |b, n| codes.scales[n * blocks + b],
        |b, n| zeros[n * blocks + b],
    ))
}

fn whole(x: f32) -> Option<i8> {
    (x == x.trunc() && (-128.0..=127.0).contains(&x)).then_some(x as i8)
}
