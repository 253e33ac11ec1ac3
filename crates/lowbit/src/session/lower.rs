//! Q/DQ patterns become integer operators.
//!
//! One replay of the graph does it. A DequantizeLinear becomes [`Dequantize`],
//! which moves down through operators that only move values; convolutions and
//! matrix products on dequantized operands compute in integers with an f32
//! result; and a QuantizeLinear takes over the operator before it, if that has
//! a form that gives codes. What nothing reads any more is gone.

mod chained;
mod dynamic;
mod images;
mod layout;
mod lines;
mod lowbit_weights;
mod means;
mod residual;
mod spelled;
mod tables;
mod transposed;
mod weights;

use std::collections::HashMap;
use std::sync::Arc;

use lowbit_kernels::Kernels;

use self::layout::{channels_first, channels_last, is_channels_first, is_first_of_last};
use self::weights::{bias_codes, weight};
use super::codes::{Codes, constant_params, quantized_codes};
use super::float::low_bit::{Compute, LowBitGather, LowBitMatMul};
use super::integer::boundary::{Dequantize, FlipSign, Quantize};
use super::integer::conv::QConv;
use super::integer::elementwise::{Operation, QBinary, Table};
use super::integer::linear::QLinear;
use super::integer::matmul::QMatMul;
use super::pool::{ImageMaxPool, QAveragePool, Windows};
use super::report::{Fallback, Report};
use super::stacks::Axes;
use crate::error::Result;
use crate::graph::{Builder, Graph, Kind, Node, Uses, Var};
use crate::op::{Op, Quant};
use crate::ops::binary::Arithmetic;
use crate::ops::conv::Conv;
use crate::ops::layout::Concat;
use crate::ops::linear::{Gemm, MatMul};
use crate::ops::lookup::LookupDequantize;
use crate::ops::pad::{Fill, Pad};
use crate::ops::pool::{AveragePool, GlobalAveragePool, MaxPool, Pool};
use crate::ops::quantize::{DequantizeLinear, QuantizeLinear};
use crate::ops::unary::Unary;
use crate::tensor::{DType, Tensor};

/// The graph with integer operators where it has Q/DQ patterns, and what it
/// runs in integers. `reasons` says of nodes why they stay in float, where that is
/// known beforehand.
pub fn lower(graph: &Graph, reasons: HashMap<String, String>) -> Result<(Graph, Report)> {
    let graph = &lines::as_images(&dynamic::fold_products(graph)?)?;
    let mut lowering = Lowering { old: graph, uses: graph.uses(), reasons };
    let lowered = graph.rebuild(|b, v, node, inputs| lowering.node(b, v, node, inputs))?;
    let lowered = lowbit_weights::kept(&lowered, Compute::Float)?;
    let lowered = tables::compose(&fold_dequantized(&lowered)?)?;
    let lowered = means::of_codes(&residual::fold_additions(&lowered)?)?;
    let report = lowering.report(&lowered);
    let lowered = transposed::read_in_place(&spelled::in_one(&lowered)?)?;
    let lowered = chained::chained(&lowered)?;
    Ok((images::channels_last_images(&lowered)?, report))
}

/// Constants that are still dequantized at run time, dequantized now.
fn fold_dequantized(graph: &Graph) -> Result<Graph> {
    graph.rebuild(|b, _, node, inputs| {
        let Kind::Apply { op, .. } = &node.kind else { return b.copy(node, inputs) };
        let dequantizes = op.is::<DequantizeLinear>().is_some()
            || op.is::<LookupDequantize>().is_some()
            || op.is::<Dequantize>().is_some();
        let constants: Option<Vec<&Tensor>> = inputs.iter().map(|v| b.so_far().constant(*v)).collect();
        match constants.filter(|_| dequantizes) {
            Some(x) => {
                let value = op.eval(&x).map_err(|e| e.at(&node.name))?;
                Ok(value.into_iter().map(|t| b.constant(&node.outputs[0].name, t)).collect())
            }
            None => b.copy(node, inputs),
        }
    })
}

struct Lowering<'a> {
    old: &'a Graph,
    uses: Uses,
    /// Why a node has no integer form here.
    reasons: HashMap<String, String>,
}

/// A clamp that is folded into the codes of an operator's result.
#[derive(Clone, Copy)]
struct Clamp {
    lo: f32,
    hi: f32,
}

impl Clamp {
    const NONE: Clamp = Clamp { lo: f32::NEG_INFINITY, hi: f32::INFINITY };

    fn codes(self, codes: Codes) -> (u8, u8) {
        let (lo, hi) = (codes.encode(self.lo), codes.encode(self.hi));
        (lo, hi.max(lo))
    }

    fn is_none(self) -> bool {
        self.lo == f32::NEG_INFINITY && self.hi == f32::INFINITY
    }
}

impl Lowering<'_> {
    fn node(&mut self, b: &mut Builder, v: Var, node: &Node, inputs: &[Var]) -> Result<Vec<Var>> {
        let Kind::Apply { op, inputs: old } = &node.kind else { return b.copy(node, inputs) };
        let done = if let Some(q) = op.is::<QuantizeLinear>() {
            // Weights that a tool left in float, with the Q node on them.
            let constants: Option<Vec<&Tensor>> = inputs.iter().map(|v| b.so_far().constant(*v)).collect();
            if let Some(x) = constants {
                let codes = q.eval(&x).map_err(|e| e.at(&node.name))?.remove(0);
                return Ok(vec![b.constant(&node.outputs[0].name, codes)]);
            }
            let whole = constant_operands(b, inputs) && b.fact(inputs[0]).dtype == DType::F32;
            let codes = whole.then(|| quantized_codes(self.old, q, v, old)).transpose()?;
            match codes.flatten() {
                Some(codes) => Some(self.quantized(b, node, old[0], inputs[0], codes)?),
                None => None,
            }
        } else if let Some(dq) = op.is::<DequantizeLinear>() {
            dequantized(b, self.old, node, dq, old, inputs)?
        } else if let Some(conv) = op.is::<Conv>() {
            self.conv(b, node, conv, inputs)?
        } else if op.is::<Gemm>().is_some() || op.is::<MatMul>().is_some() {
            self.product(b, node, &**op, inputs)?
        } else if matches!(op.quant(), Quant::Share | Quant::Merge) && node.outputs.len() == 1 {
            moved(b, node, op, inputs)?
        } else {
            None
        };
        match done {
            Some(v) => Ok(vec![v]),
            None => b.copy(node, inputs),
        }
    }

    fn because(&mut self, node: &Node, reason: impl Into<String>) {
        self.reasons.entry(node.name.clone()).or_insert_with(|| reason.into());
    }

    /// An integer convolution with f32 result.
    fn conv(&mut self, b: &mut Builder, node: &Node, conv: &Conv, inputs: &[Var]) -> Result<Option<Var>> {
        let Some((x, codes)) = carried(b, inputs[0])? else { return Ok(None) };
        if b.fact(inputs[0]).rank() != 4 {
            self.because(node, "only convolutions of lines and images have an integer form");
            return Ok(None);
        }
        let (w, scale) = match weight(b, inputs[1], 0)? {
            Ok(w) => w,
            Err(reason) => {
                self.because(node, reason);
                return Ok(None);
            }
        };
        let outputs = w.shape()[0];
        let scale = per_channel(&scale, outputs, codes.scale);
        let bias = match bias_codes(b, inputs.get(2).copied(), &scale)? {
            Ok(bias) => bias,
            Err(reason) => {
                self.because(node, reason);
                return Ok(None);
            }
        };
        let op = QConv::new(conv, &w, codes.zero, &bias, scale).map_err(|e| e.at(&node.name))?;
        let of_planes = if is_first_of_last(b, x) { None } else { op.of_planes() };
        let (op, x) = match of_planes {
            Some(op) => (op, x),
            None => (op, channels_last(b, x)?),
        };
        let y = b.apply(&node.name, Arc::new(op), &[x])?;
        channels_first(b, y).map(Some)
    }

    /// An integer matrix product with f32 result.
    fn product(&mut self, b: &mut Builder, node: &Node, op: &dyn Op, inputs: &[Var]) -> Result<Option<Var>> {
        let Some((x, codes)) = carried(b, inputs[0])? else { return Ok(None) };
        let Quant::Compute { weight: Some((_, axis)), bias } = op.quant() else {
            self.because(node, "alpha, beta or transA have no integer form");
            return Ok(None);
        };
        let constant = b.so_far().made_by::<DequantizeLinear>(inputs[1]);
        if constant.is_none() || b.fact(inputs[1]).rank() != 2 {
            return self.product_of_codes(b, node, op, (x, codes), inputs[1]);
        }
        let (w, scale) = match weight(b, inputs[1], axis)? {
            Ok(w) => w,
            Err(reason) => {
                self.because(node, reason);
                return Ok(None);
            }
        };
        let (columns, w) = (w.shape()[axis], rows_of_channels(&w, axis)?);
        let scale = per_channel(&scale, columns, codes.scale);
        let bias = match bias_codes(b, bias.and_then(|i| inputs.get(i).copied()), &scale)? {
            Ok(bias) => bias,
            Err(reason) => {
                self.because(node, reason);
                return Ok(None);
            }
        };
        let op = QLinear::new(&w, columns, codes.zero, &bias, scale);
        b.apply(&node.name, Arc::new(op), &[x]).map(Some)
    }

    /// An integer product of two values of the run, with f32 result.
    fn product_of_codes(
        &mut self,
        b: &mut Builder,
        node: &Node,
        op: &dyn Op,
        (x, x_codes): (Var, Codes),
        right: Var,
    ) -> Result<Option<Var>> {
        if op.is::<MatMul>().is_none() {
            self.because(node, "only a Gemm with a constant matrix has an integer form");
            return Ok(None);
        }
        let Some((y, y_codes)) = carried(b, right)? else {
            self.because(node, "its second operand is not quantized to 8 bits, per tensor");
            return Ok(None);
        };
        if b.fact(x).rank() < 2 || b.fact(y).rank() < 2 {
            self.because(node, "the product of a vector has no integer form");
            return Ok(None);
        }
        let op = QMatMul { inputs: [x_codes, y_codes], axes: Axes::default(), output: None };
        b.apply(&node.name, Arc::new(op), &[x, y]).map(Some)
    }

    /// The codes of `x`: those of the operator that makes it, where it can give
    /// them, or its f32 result quantized. int8 codes have their sign restored
    /// for whoever reads them as int8.
    fn quantized(&mut self, b: &mut Builder, node: &Node, old: Var, x: Var, codes: Codes) -> Result<Var> {
        let (core, clamp) = self.peeled(b, old, x);
        let made = match self.integer_form(b, core, clamp, codes)? {
            Some(v) if self.uses.of(old) == 1 || carried(b, core)?.is_some() => v,
            _ => {
                let op = Quantize { codes, lo: 0, hi: 255 };
                b.apply(&node.name, Arc::new(op), &[x])?
            }
        };
        if node.outputs[0].fact.dtype == DType::I8 {
            return b.apply(&node.name, Arc::new(FlipSign { to: DType::I8 }), &[made]);
        }
        Ok(made)
    }

    /// `x` without the activation functions on it, as far as they only clamp
    /// and nothing else reads the values between.
    fn peeled(&self, b: &Builder, old: Var, x: Var) -> (Var, Clamp) {
        let (mut core, mut old, mut clamp) = (x, old, Clamp::NONE);
        loop {
            let (Kind::Apply { op, inputs }, Kind::Apply { inputs: olds, .. }) =
                (&b.so_far().node(core).kind, &self.old.node(old).kind)
            else {
                return (core, clamp);
            };
            let Quant::Clamp { lo, hi } = op.quant() else { return (core, clamp) };
            if self.uses.of(olds[0]) != 1 && b.so_far().made_by::<Dequantize>(inputs[0]).is_none() {
                return (core, clamp);
            }
            clamp = Clamp { lo: clamp.lo.max(lo).min(clamp.hi), hi: clamp.hi.min(hi).max(clamp.lo) };
            (core, old) = (inputs[0], olds[0]);
        }
    }

    fn integer_form(
        &mut self,
        b: &mut Builder,
        core: Var,
        clamp: Clamp,
        codes: Codes,
    ) -> Result<Option<Var>> {
        let (lo, hi) = clamp.codes(codes);
        if let Some((x, from)) = carried(b, core)? {
            if from == codes && clamp.is_none() {
                return Ok(Some(x));
            }
            let name = b.so_far().node(core).name.clone();
            return table(b, &name, x, from.table(codes, |x| x.clamp(clamp.lo, clamp.hi))).map(Some);
        }
        let node = b.so_far().node(core);
        let Kind::Apply { op, inputs } = &node.kind else { return Ok(None) };
        let (name, op, inputs) = (node.name.clone(), op.clone(), inputs.clone());
        if is_channels_first(&*op) {
            let Some((conv, x)) = b.so_far().made_by::<QConv>(inputs[0]) else { return Ok(None) };
            let (op, x) = (conv.with(conv.epilogue.requantized(codes, lo, hi)), x.to_vec());
            let name = b.so_far().node(inputs[0]).name.clone();
            let y = b.apply(&name, Arc::new(op), &x)?;
            return channels_first(b, y).map(Some);
        }
        if let Some(product) = op.is::<QLinear>() {
            let op = product.with(product.epilogue.requantized(codes, lo, hi));
            return b.apply(&name, Arc::new(op), &inputs).map(Some);
        }
        if let Some(product) = op.is::<QMatMul>() {
            let op = QMatMul { output: Some((codes, lo, hi)), ..product.clone() };
            return b.apply(&name, Arc::new(op), &inputs).map(Some);
        }
        if let Some(arithmetic) = op.is::<Arithmetic>() {
            return binary_form(b, &name, *arithmetic, &inputs, codes, (lo, hi));
        }
        let Some((x, from)) = (match inputs.first() {
            Some(x) => carried(b, *x)?,
            None => None,
        }) else {
            return Ok(None);
        };
        if let Some(unary) = op.is::<Unary>() {
            let f = *unary;
            let name = b.so_far().node(core).name.clone();
            return table(b, &name, x, from.table(codes, |x| f.f(x).clamp(clamp.lo, clamp.hi))).map(Some);
        }
        if op.is::<Concat>().is_some() {
            return concat_form(b, &name, &op, &inputs, codes).map(|v| v.filter(|_| clamp.is_none()));
        }
        if let Some((windows, count_include_pad)) = average(&*op).filter(|_| b.fact(x).rank() == 4) {
            let op = QAveragePool { windows, count_include_pad, input: from, output: codes, lo, hi };
            let x = channels_last(b, x)?;
            let y = b.apply(&name, Arc::new(op), &[x])?;
            return channels_first(b, y).map(Some);
        }
        Ok(None)
    }

    fn report(self, lowered: &Graph) -> Report {
        let mut report =
            Report { isa: Kernels::best().name().into(), macs: self.old.macs(), ..Report::default() };
        for (v, node, op, _) in lowered.applied() {
            let in_float = op.is::<LowBitGather>().is_some()
                || op.is::<LowBitMatMul>().is_some_and(|product| !product.is_integer());
            let integer = matches!(op.name(), "ConvInteger" | "MatMulInteger" | "DynamicQuantizeLSTM");
            if integer || op.domain() == "lowbit" && !in_float {
                report.integer_macs += lowered.node_macs(v);
                report.integer_nodes += 1;
                continue;
            }
            let computes = match op.quant() {
                Quant::Share | Quant::Merge => false,
                Quant::Float => node.outputs[0].fact.dtype == DType::F32 && !op.name().ends_with("Linear"),
                _ => node.outputs[0].fact.dtype == DType::F32,
            };
            if computes {
                let reason = match (self.reasons.get(&node.name), op.quant()) {
                    (Some(reason), _) => reason.clone(),
                    (None, _) if in_float => "reads codes of weights, and computes in f32".into(),
                    (None, Quant::Float) => "has no integer form".into(),
                    (None, _) => "its operands or its result are not quantized to 8 bits".into(),
                };
                let (node, op, macs) = (node.name.clone(), op.name().to_string(), lowered.node_macs(v));
                report.fallbacks.push(Fallback { node, op, macs, reason });
            }
        }
        report
    }
}

/// Whether scale and zero point are constants.
fn constant_operands(b: &Builder, inputs: &[Var]) -> bool {
    inputs[1..].iter().all(|v| b.so_far().constant(*v).is_some())
}

/// `s_x s_w[c]` for each channel.
fn per_channel(scale: &[f32], channels: usize, x_scale: f32) -> Vec<f32> {
    (0..channels).map(|c| x_scale * scale[if scale.len() == 1 { 0 } else { c }]).collect()
}

/// A matrix's codes as rows of one output channel each.
fn rows_of_channels(w: &Tensor, axis: usize) -> Result<Vec<i8>> {
    let codes = w.slice::<i8>()?;
    let (rows, columns) = (w.shape()[0], w.shape()[1]);
    Ok(match axis {
        0 => codes.to_vec(),
        _ => (0..codes.len()).map(|i| codes[i % rows * columns + i / rows]).collect(),
    })
}

/// The values of a DequantizeLinear node as codes that the engine carries.
fn dequantized(
    b: &mut Builder,
    old: &Graph,
    node: &Node,
    dq: &DequantizeLinear,
    olds: &[Var],
    inputs: &[Var],
) -> Result<Option<Var>> {
    let float = node.outputs[0].fact.dtype == DType::F32;
    if !float || b.so_far().constant(inputs[0]).is_some() || !constant_operands(b, inputs) {
        return Ok(None);
    }
    let params = constant_params(old, olds[0], (dq.axis, dq.block), olds).map_err(|e| e.at(&node.name))?;
    let Some(codes) = params.as_ref().and_then(Codes::of) else { return Ok(None) };
    let x = match b.so_far().made_by::<FlipSign>(inputs[0]) {
        Some((_, x)) => x[0],
        None if b.fact(inputs[0]).dtype == DType::I8 => {
            b.apply(&node.name, Arc::new(FlipSign { to: DType::U8 }), &inputs[..1])?
        }
        None => inputs[0],
    };
    b.apply_all(&node.name, Arc::new(Dequantize { codes }), &[x], &[&node.outputs[0].name])
        .map(|v| Some(v[0]))
}

/// The codes that `v` is the dequantized value of.
fn carried(b: &mut Builder, v: Var) -> Result<Option<(Var, Codes)>> {
    if let Some((dq, x)) = b.so_far().made_by::<Dequantize>(v) {
        return Ok(Some((x[0], dq.codes)));
    }
    let Some((dq, x)) = b.so_far().made_by::<DequantizeLinear>(v) else { return Ok(None) };
    if b.fact(v).dtype != DType::F32 {
        return Ok(None);
    }
    let (place, x) = ((dq.axis, dq.block), x.to_vec());
    let Some(t) = b.so_far().constant(x[0]).cloned() else { return Ok(None) };
    let params = constant_params(b.so_far(), x[0], place, &x)?;
    let Some(codes) = params.as_ref().and_then(Codes::of) else { return Ok(None) };
    let t = match t.dtype() {
        DType::I8 => FlipSign { to: DType::U8 }.eval(&[&t])?.remove(0),
        _ => t,
    };
    let name = format!("{}_codes", b.name(v));
    Ok(Some((b.constant(&name, t), codes)))
}

/// A table applied to the codes `x`, in the layout in which they are.
fn table(b: &mut Builder, name: &str, x: Var, table: [u8; 256]) -> Result<Var> {
    let op = Arc::new(Table { table: Box::new(table) });
    if is_first_of_last(b, x) {
        let x = channels_last(b, x)?;
        let y = b.apply(name, op, &[x])?;
        return channels_first(b, y);
    }
    b.apply(name, op, &[x])
}

fn binary_form(
    b: &mut Builder,
    name: &str,
    arithmetic: Arithmetic,
    inputs: &[Var],
    output: Codes,
    (lo, hi): (u8, u8),
) -> Result<Option<Var>> {
    let operation = match arithmetic {
        Arithmetic::Add => Operation::Add,
        Arithmetic::Mul => Operation::Mul,
        _ => return Ok(None),
    };
    let (Some((x, cx)), Some((y, cy))) = (carried(b, inputs[0])?, carried(b, inputs[1])?) else {
        return Ok(None);
    };
    let op = QBinary { operation, inputs: [cx, cy], output, lo, hi };
    for (of, by, swapped) in [(x, y, false), (y, x, true)] {
        let value = b.so_far().constant(by).filter(|t| t.len() == 1 && t.rank() <= b.fact(of).rank());
        if let Some(value) = value.map(|t| t.item::<u8>()).transpose()? {
            return table(b, name, of, op.table(value, swapped)).map(Some);
        }
    }
    let op = Arc::new(op);
    let images = b.fact(x).rank() == 4 && b.fact(y).rank() == 4;
    if images && (is_first_of_last(b, x) || is_first_of_last(b, y)) {
        let (x, y) = (channels_last(b, x)?, channels_last(b, y)?);
        let z = b.apply(name, op, &[x, y])?;
        return channels_first(b, z).map(Some);
    }
    b.apply(name, op, &[x, y]).map(Some)
}

/// Parts with codes of their own, each mapped to the codes of the whole.
fn concat_form(
    b: &mut Builder,
    name: &str,
    op: &Arc<dyn Op>,
    inputs: &[Var],
    codes: Codes,
) -> Result<Option<Var>> {
    let mut parts = vec![];
    for v in inputs {
        let Some((x, from)) = carried(b, *v)? else { return Ok(None) };
        let name = b.so_far().node(*v).name.clone();
        parts.push(if from == codes { x } else { table(b, &name, x, from.table(codes, |x| x))? });
    }
    layout::concat(b, name, op, &parts).map(Some)
}

/// An operator that only moves values, applied to codes.
fn moved(b: &mut Builder, node: &Node, op: &Arc<dyn Op>, inputs: &[Var]) -> Result<Option<Var>> {
    const MOVES: &[&str] = &[
        "Reshape",
        "Flatten",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
        "Slice",
        "Gather",
        "Expand",
        "Tile",
        "Split",
        "DepthToSpace",
        "SpaceToDepth",
        "Identity",
        "Pad",
        "MaxPool",
        "Concat",
    ];
    if !MOVES.contains(&op.name()) || b.so_far().constant(inputs[0]).is_some() {
        return Ok(None);
    }
    let Some((x, codes)) = carried(b, inputs[0])? else { return Ok(None) };
    let images = b.fact(x).rank() == 4;
    let pool = op.is::<MaxPool>().filter(|_| images);
    let y = if let Some(windows) = pool.and_then(|p| sliding(&p.pool)) {
        let x = channels_last(b, x)?;
        let y = b.apply(&node.name, Arc::new(ImageMaxPool { windows }), &[x])?;
        channels_first(b, y)?
    } else if op.is::<Concat>().is_some() {
        let mut parts = vec![];
        for v in inputs {
            match carried(b, *v)? {
                Some((x, c)) if c == codes => parts.push(x),
                _ => return Ok(None),
            }
        }
        layout::concat(b, &node.name, op, &parts)?
    } else {
        let op: Arc<dyn Op> = match op.is::<Pad>() {
            Some(pad) if matches!(pad.fill, Fill::Constant(_)) => {
                let fill = Fill::Constant(Some(Tensor::scalar(codes.zero as u8)));
                Arc::new(Pad { fill, ..pad.clone() })
            }
            _ => op.clone(),
        };
        let mut operands = inputs.to_vec();
        operands[0] = x;
        layout::moved(b, &node.name, &op, &operands)?
    };
    b.apply_all(&node.name, Arc::new(Dequantize { codes }), &[y], &[&node.outputs[0].name])
        .map(|v| Some(v[0]))
}

/// The windows of an averaging operator, and whether padding counts.
fn average(op: &dyn Op) -> Option<(Windows, bool)> {
    if op.is::<GlobalAveragePool>().is_some() {
        return Some((Windows::Global, false));
    }
    // Padding counts, but not what the last window reaches beyond it.
    let pool = op.is::<AveragePool>().filter(|op| !(op.pool.ceil && op.include_padding))?;
    Some((sliding(&pool.pool)?, pool.include_padding))
}

/// The windows of a pool over images, unless they are larger than any image:
/// the engine visits every tap, in the padding too.
fn sliding(pool: &Pool) -> Option<Windows> {
    const WIDEST: usize = 1 << 10;
    let kernel = <[usize; 2]>::try_from(pool.kernel.as_slice()).ok()?;
    let windows = Windows::Sliding { geometry: pool.window.clone(), kernel, ceil: pool.ceil };
    kernel.iter().all(|&k| k <= WIDEST).then_some(windows)
}
