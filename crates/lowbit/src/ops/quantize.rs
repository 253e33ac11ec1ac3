//! QuantizeLinear, DequantizeLinear and DynamicQuantizeLinear.

use std::sync::Arc;

use super::binary::{Arithmetic, Variadic};
use super::clip::Clip;
use super::compare::{Comparison, Where};
use super::reduce::{Reduce, Reduction};
use super::unary::Unary;
use crate::error::{Error, Result, invalid};
use crate::graph::{Builder, Graph, Var};
use crate::op::{Attribute, Attributes, Fact, Op, ReadOp, Reading, arity, optional, optional_fact};
use crate::qparams::QParams;
use crate::scheme::{Format, Granularity, Mapping, Scheme};
use crate::tensor::{DType, Tensor};

pub(super) const READERS: &[(&str, ReadOp)] = &[
    ("QuantizeLinear", |a| {
        let dtype = output_dtype(a)?;
        let saturates = a.flag("saturate", true)?;
        if !saturates {
            return Err(Error::unsupported("QuantizeLinear", "saturate = 0"));
        }
        let precision = a.int("precision")?.unwrap_or(0);
        if precision != 0 && precision != i64::from(DType::F32.onnx_number()) {
            let what = format!("precision = {precision} (the division is in f32)");
            return Err(Error::unsupported("QuantizeLinear", what));
        }
        Ok(Arc::new(QuantizeLinear { axis: axis(a)?, block: block(a)?, dtype }))
    }),
    ("DequantizeLinear", |a| {
        let dtype = output_dtype(a)?;
        if let Some(other) = dtype.filter(|d| !matches!(d, DType::F32 | DType::F16 | DType::BF16)) {
            return Err(Error::unsupported("DequantizeLinear", format!("output_dtype {other}")));
        }
        Ok(Arc::new(DequantizeLinear { axis: axis(a)?, block: block(a)?, dtype }))
    }),
    ("DynamicQuantizeLinear", |_| Ok(Arc::new(DynamicQuantizeLinear))),
];

pub(super) const LOWBIT_READERS: &[(&str, ReadOp)] =
    &[("DynamicFakeQuantize", |_| Ok(Arc::new(DynamicFakeQuantize)))];

fn output_dtype(a: &mut Reading) -> Result<Option<DType>> {
    let number = a.int("output_dtype")?.filter(|&n| n != 0);
    number.map(DType::from_onnx).transpose()
}

/// ONNX's default of the attribute `axis`, which a scale of one value ignores.
pub(super) const DEFAULT_AXIS: i64 = 1;

pub(super) fn axis(a: &mut Reading) -> Result<i64> {
    Ok(a.int("axis")?.unwrap_or(DEFAULT_AXIS))
}

pub(super) fn block(a: &mut Reading) -> Result<usize> {
    let size = a.int("block_size")?.unwrap_or(0);
    usize::try_from(size).map_err(|_| invalid!("block_size = {size} is negative"))
}

/// `q = clamp(round_half_even(x / scale) + zero_point)` (docs/quantization.md, equation 1).
///
/// Inputs: x in f32 or f16; scale of shape `[]`, `[channels]`, or blocked;
/// zero point of the same shape, whose element type is the output's.
#[derive(Clone, Debug)]
pub struct QuantizeLinear {
    /// The axis of per-channel and blocked scales, negative from the end.
    pub axis: i64,
    /// Elements that share a scale along the axis; 0 where scales are not blocked.
    pub block: usize,
    /// Element type of the output where there is no zero point; uint8 by default.
    pub dtype: Option<DType>,
}

/// `x = (q - zero_point) * scale`.
///
/// Inputs: q; scale; zero point.
#[derive(Clone, Debug)]
pub struct DequantizeLinear {
    /// The axis of per-channel and blocked scales, negative from the end.
    pub axis: i64,
    /// Elements that share a scale along the axis; 0 where scales are not blocked.
    pub block: usize,
    /// Element type of the output; that of the scale by default.
    pub dtype: Option<DType>,
}

impl Default for QuantizeLinear {
    fn default() -> QuantizeLinear {
        QuantizeLinear { axis: DEFAULT_AXIS, block: 0, dtype: None }
    }
}

impl Default for DequantizeLinear {
    fn default() -> DequantizeLinear {
        DequantizeLinear { axis: DEFAULT_AXIS, block: 0, dtype: None }
    }
}

impl DequantizeLinear {
    /// Scales along `axis`.
    pub fn along(axis: i64) -> DequantizeLinear {
        DequantizeLinear { axis, ..DequantizeLinear::default() }
    }
}

/// The parameters that a scale and a zero point operand give to values of this
/// rank and quantized type.
///
/// # Errors
/// If shapes of scale and zero point differ, or do not fit the rank.
pub fn params(
    rank: usize,
    dtype: DType,
    (axis, block): (i64, usize),
    scale: &Tensor,
    zero: Option<&Tensor>,
) -> Result<QParams> {
    let along = || {
        let a = if axis < 0 { axis.saturating_add(rank as i64) } else { axis };
        usize::try_from(a)
            .ok()
            .filter(|&a| a < rank)
            .ok_or_else(|| invalid!("axis {axis} is outside rank {rank}"))
    };
    let granularity = match (block, scale.rank()) {
        (0, _) if scale.len() == 1 => Granularity::Tensor,
        (0, 1) => Granularity::Axis(along()?),
        (0, _) => return Err(invalid!("a scale of shape {:?} needs a block_size", scale.shape())),
        (size, r) if r == rank => Granularity::Block { axis: along()?, size },
        _ => return Err(invalid!("a blocked scale of shape {:?} for values of rank {rank}", scale.shape())),
    };
    let zero_point = match zero {
        None => vec![0; scale.len()],
        Some(z) if z.len() != scale.len() => {
            return Err(invalid!("scale {:?} and zero point {:?} differ in shape", scale.shape(), z.shape()));
        }
        Some(z) if z.dtype().float_max().is_some() => {
            if z.to_f32()?.iter().any(|&z| z != 0.0) {
                return Err(invalid!("the zero point of {} is 0", z.dtype()));
            }
            vec![0; scale.len()]
        }
        Some(z) => z.integers()?.into_iter().map(|z| z as i32).collect(),
    };
    let format = Format::of(dtype)?;
    let affine = !format.is_signed() || zero_point.iter().any(|&z| z != 0);
    let mapping = if affine { Mapping::Affine } else { Mapping::Symmetric };
    let scheme = Scheme { format, mapping, granularity, codes: None };
    Ok(QParams { scheme, scale: scale.to_f32()?, zero_point })
}

impl QParams {
    /// Scale and zero point as operands of QuantizeLinear and
    /// DequantizeLinear: the inverse of [`params`] but for blocks.
    pub fn operands(&self) -> (Tensor, Tensor) {
        let dtype = self.scheme.format.dtype();
        let shape: &[usize] =
            if self.scheme.granularity == Granularity::Tensor { &[] } else { &[self.scale.len()] };
        let bytes = dtype.bits().div_ceil(8);
        let codes: Vec<u8> =
            self.zero_point.iter().flat_map(|z| z.to_le_bytes().into_iter().take(bytes)).collect();
        let zero = match dtype.storage() {
            DType::I8 => Tensor::coded(dtype, shape, codes.iter().map(|c| c.cast_signed()).collect()),
            DType::U8 => Tensor::coded(dtype, shape, codes),
            _ => Tensor::from_bytes(dtype, shape, &codes),
        };
        let scale = Tensor::new(shape, self.scale.clone());
        (scale.expect("one scale a group"), zero.expect("one zero point a group"))
    }
}

fn cast(x: Tensor, dtype: DType) -> Result<Tensor> {
    match dtype {
        DType::F32 => Ok(x),
        DType::F16 => Tensor::new(
            x.shape(),
            x.slice::<f32>()?.iter().map(|&x| half::f16::from_f32(x)).collect::<Vec<_>>(),
        ),
        DType::BF16 => Tensor::new(
            x.shape(),
            x.slice::<f32>()?.iter().map(|&x| half::bf16::from_f32(x)).collect::<Vec<_>>(),
        ),
        _ => Err(invalid!("a scale of type {dtype}")),
    }
}

pub(super) fn placement(axis: i64, block: usize, dtype: Option<DType>) -> Attributes {
    let mut attributes = vec![];
    if axis != DEFAULT_AXIS {
        attributes.push(("axis", Attribute::Int(axis)));
    }
    if block > 0 {
        attributes.push(("block_size", Attribute::Int(block as i64)));
    }
    if let Some(dtype) = dtype {
        attributes.push(("output_dtype", Attribute::Int(i64::from(dtype.onnx_number()))));
    }
    attributes
}

impl Op for QuantizeLinear {
    fn name(&self) -> &'static str {
        "QuantizeLinear"
    }
    fn opset(&self) -> i64 {
        if self.block > 0 || self.dtype.is_some() { 21 } else { 13 }
    }
    fn infer(&self, x: &[&Fact]) -> Result<Vec<Fact>> {
        arity(x, 2, 3)?;
        let zero = optional_fact(x, 2).map(|z| z.dtype);
        if let (Some(zero), Some(stated)) = (zero, self.dtype)
            && zero != stated
        {
            return Err(invalid!("output_dtype is {stated}, and the zero point {zero}"));
        }
        let dtype = zero.or(self.dtype).unwrap_or(DType::U8);
        Format::of(dtype)?;
        Ok(vec![Fact::new(dtype, x[0].shape.clone())])
    }
    fn eval(&self, x: &[&Tensor]) -> Result<Vec<Tensor>> {
        let zero = optional(x, 2);
        let dtype = zero.map(Tensor::dtype).or(self.dtype).unwrap_or(DType::U8);
        let params = params(x[0].rank(), dtype, (self.axis, self.block), x[1], zero)?;
        Ok(vec![match x[0].dtype() {
            DType::F32 => params.quantize(x[0])?,
            _ => params.quantize(&Tensor::new(x[0].shape(), x[0].to_f32()?)?)?,
        }])
    }
    fn attributes(&self) -> Attributes {
        placement(self.axis, self.block, self.dtype)
    }
    fn folds(&self) -> bool {
        false
    }
}

impl Op for DequantizeLinear {
    fn name(&self) -> &'static str {
        "DequantizeLinear"
    }
    fn opset(&self) -> i64 {
        match (self.dtype, self.block) {
            (Some(_), _) => 23,
            (None, 1..) => 21,
            (None, 0) => 13,
        }
    }
    fn infer(&self, x: &[&Fact]) -> Result<Vec<Fact>> {
        arity(x, 2, 3)?;
        Format::of(x[0].dtype)?;
        Ok(vec![Fact::new(self.dtype.unwrap_or(x[1].dtype), x[0].shape.clone())])
    }
    fn eval(&self, x: &[&Tensor]) -> Result<Vec<Tensor>> {
        let params = params(x[0].rank(), x[0].dtype(), (self.axis, self.block), x[1], optional(x, 2))?;
        Ok(vec![cast(params.dequantize(x[0])?, self.dtype.unwrap_or(x[1].dtype()))?])
    }
    fn attributes(&self) -> Attributes {
        placement(self.axis, self.block, self.dtype)
    }
    fn folds(&self) -> bool {
        false
    }
}

/// Quantizes to uint8 with the range of the values at hand, widened to hold 0.
///
/// Outputs: codes, scale `(max - min) / 255`, zero point
/// `clamp(round_half_even(-min / scale))`, both scalars.
#[derive(Clone, Debug)]
pub struct DynamicQuantizeLinear;

impl Op for DynamicQuantizeLinear {
    fn name(&self) -> &'static str {
        "DynamicQuantizeLinear"
    }
    fn infer(&self, x: &[&Fact]) -> Result<Vec<Fact>> {
        arity(x, 1, 1)?;
        let scalar = |dtype| Fact::new(dtype, Vec::<usize>::new());
        Ok(vec![Fact::new(DType::U8, x[0].shape.clone()), scalar(DType::F32), scalar(DType::U8)])
    }
    fn eval(&self, x: &[&Tensor]) -> Result<Vec<Tensor>> {
        let params = dynamic_params(x[0].slice::<f32>()?);
        let (scale, zero) = (params.scale[0], params.zero_point[0] as u8);
        Ok(vec![params.quantize(x[0])?, Tensor::scalar(scale), Tensor::scalar(zero)])
    }
}

/// Each row, the elements along the last axis, quantized to uint8 as
/// [`DynamicQuantizeLinear`] does with the row's range, and dequantized.
#[derive(Clone, Debug)]
pub struct DynamicFakeQuantize;

impl Op for DynamicFakeQuantize {
    fn name(&self) -> &'static str {
        "DynamicFakeQuantize"
    }
    fn domain(&self) -> &'static str {
        "lowbit"
    }
    fn infer(&self, x: &[&Fact]) -> Result<Vec<Fact>> {
        arity(x, 1, 1)?;
        Ok(vec![x[0].with_shape(x[0].shape.clone())])
    }
    fn eval(&self, x: &[&Tensor]) -> Result<Vec<Tensor>> {
        let mut y = x[0].slice::<f32>()?.to_vec();
        let length = x[0].shape().last().copied().unwrap_or(1).max(1);
        for row in y.chunks_exact_mut(length) {
            let params = dynamic_params(row);
            let values = row.to_vec();
            params.fake_quantize_run(0, &values, row);
        }
        Ok(vec![Tensor::new(x[0].shape(), y)?])
    }
    fn folds(&self) -> bool {
        false
    }
    fn function(&self, inputs: &[&Fact]) -> Option<Result<Graph>> {
        Some(fake_quantized_rows(inputs[0]))
    }
}

/// [`DynamicFakeQuantize`] in operators of the standard domain.
fn fake_quantized_rows(x: &Fact) -> Result<Graph> {
    let mut b = Builder::default();
    let x = b.input("x", x.clone());
    let constant = |b: &mut Builder, x: f32| b.constant("constant", Tensor::scalar(x));
    let (none, one, levels) = (constant(&mut b, 0.0), constant(&mut b, 1.0), constant(&mut b, 255.0));
    let arithmetic =
        |b: &mut Builder, name: &str, op: Arithmetic, inputs: [Var; 2]| b.apply(name, Arc::new(op), &inputs);
    let end = |b: &mut Builder, [least, name]: [&str; 2], to, with| {
        let end = b.apply(least, Arc::new(Reduce::new(to, &[-1])), &[x])?;
        b.apply(name, Arc::new(with), &[end, none])
    };
    let lo = end(&mut b, ["least", "lo"], Reduction::Min, Variadic::Min)?;
    let hi = end(&mut b, ["greatest", "hi"], Reduction::Max, Variadic::Max)?;
    let range = arithmetic(&mut b, "range", Arithmetic::Sub, [hi, lo])?;
    let step = arithmetic(&mut b, "step", Arithmetic::Div, [range, levels])?;
    let empty = b.apply("empty", Arc::new(Comparison::Equal), &[lo, hi])?;
    let scale = b.apply("scale", Arc::new(Where), &[empty, one, step])?;
    let below = b.apply("below", Arc::new(Unary::Neg), &[lo])?;
    let codes = |b: &mut Builder, name: &str, x: Var, zero: Option<Var>| {
        let q = arithmetic(b, &format!("{name}_divided"), Arithmetic::Div, [x, scale])?;
        let mut q = b.apply(&format!("{name}_rounded"), Arc::new(Unary::Round), &[q])?;
        if let Some(zero) = zero {
            q = arithmetic(b, &format!("{name}_shifted"), Arithmetic::Add, [q, zero])?;
        }
        b.apply(name, Arc::new(Clip::new(0.0, 255.0)), &[q])
    };
    let zero = codes(&mut b, "zero", below, None)?;
    let q = codes(&mut b, "q", x, Some(zero))?;
    let centred = arithmetic(&mut b, "centred", Arithmetic::Sub, [q, zero])?;
    let y = arithmetic(&mut b, "y", Arithmetic::Mul, [centred, scale])?;
    b.finish([("y".to_string(), y)])
}

/// uint8 parameters for the range of `values`, widened to hold 0.
fn dynamic_params(values: &[f32]) -> QParams {
    let (lo, hi) = values.iter().fold((0f32, 0f32), |(lo, hi), &x| (lo.min(x), hi.max(x)));
    let (scale, zero) = dynamic_step(lo, hi);
    QParams {
        scheme: Scheme::new(Format::UINT8, Mapping::Affine),
        scale: vec![scale],
        zero_point: vec![zero],
    }
}

/// Scale and zero point of uint8 codes for `lo..hi`, which holds 0
/// (docs/quantization.md, equation 20):
/// `s = (hi - lo) / 255`, or 1 for an empty range, `z = clamp(round_half_even(-lo / s))`.
pub(crate) fn dynamic_step(lo: f32, hi: f32) -> (f32, i32) {
    let scale = if lo == hi { 1.0 } else { (hi - lo) / 255.0 };
    (scale, (-lo / scale).round_ties_even().clamp(0.0, 255.0) as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(op: &str, attributes: &[(&str, i64)]) -> Result<Arc<dyn Op>> {
        let attributes = attributes.iter().map(|(k, v)| (k.to_string(), Attribute::Int(*v))).collect();
        let mut reading = Reading::new(op, 23, attributes, vec![None; 3], 1);
        let read = READERS.iter().find(|(name, _)| *name == op).unwrap().1;
        let made = read(&mut reading)?;
        reading.finish().map(|_| made)
    }

    #[test]
    fn types_of_the_output_are_read_and_written() {
        // Numbers of f32, uint8, int8, float16 and double in ONNX.
        let [f32, u8, i8, f16, f64] = [1, 2, 3, 10, 11];
        let cases: [(&str, &[(&str, i64)], Result<DType, &str>); 8] = [
            ("QuantizeLinear", &[], Ok(DType::U8)),
            ("QuantizeLinear", &[("output_dtype", i8), ("precision", f32)], Ok(DType::I8)),
            ("QuantizeLinear", &[("output_dtype", u8), ("precision", f16)], Err("precision = 10")),
            ("QuantizeLinear", &[("saturate", 0)], Err("saturate = 0")),
            ("QuantizeLinear", &[("output_dtype", 1 << 40)], Err("element type")),
            ("DequantizeLinear", &[], Ok(DType::F32)),
            ("DequantizeLinear", &[("output_dtype", f16)], Ok(DType::F16)),
            ("DequantizeLinear", &[("output_dtype", f64)], Err("output_dtype f64")),
        ];
        let (x, codes) = (Tensor::vector(vec![1.0f32, -3.0]), Tensor::vector(vec![1u8, 9]));
        let scale = Tensor::scalar(0.5f32);
        for (op, attributes, want) in cases {
            match (read(op, attributes), want) {
                (Ok(made), Ok(want)) => {
                    let x = if op == "QuantizeLinear" { &x } else { &codes };
                    let y = made.eval(&[x, &scale]).unwrap().remove(0);
                    let fact = made.infer(&[&Fact::of(x), &Fact::of(&scale)]).unwrap().remove(0);
                    assert_eq!((y.dtype(), fact.dtype), (want, want), "{op} {attributes:?}");
                    let stated = attributes.iter().filter(|(k, _)| *k == "output_dtype");
                    let stated: Vec<Attribute> = stated.map(|(_, n)| Attribute::Int(*n)).collect();
                    let written = made.attributes().into_iter().filter(|(k, _)| *k == "output_dtype");
                    assert_eq!(written.map(|(_, a)| a).collect::<Vec<_>>(), stated);
                }
                (Err(e), Err(want)) => assert!(e.to_string().contains(want), "{e}"),
                (found, want) => panic!("{op} {attributes:?}: {found:?}, not {want:?}"),
            }
        }
        let stated = read("QuantizeLinear", &[("output_dtype", i8)]).unwrap();
        let facts = [&x, &scale, &Tensor::scalar(3u8)].map(Fact::of);
        let message = stated.infer(&facts.each_ref()).unwrap_err().to_string();
        assert_eq!(message, "output_dtype is int8, and the zero point uint8");
    }

    #[test]
    fn the_function_of_fake_quantized_rows_equals_the_operator() {
        let rows = [[0.3f32, -1.5, 2.25, 0.0], [0.0; 4], [1.0, 2.0, 3.0, 4.5], [-0.1, -7.0, -0.2, -0.003]];
        let x = Tensor::new(&[2, 2, 4], rows.concat()).unwrap();
        let function = DynamicFakeQuantize.function(&[&Fact::of(&x)]).unwrap().unwrap();
        let want = DynamicFakeQuantize.eval(&[&x]).unwrap();
        assert_eq!(function.run(&[x]).unwrap(), want);
        assert_eq!(want[0].slice::<f32>().unwrap()[4..8], [0.0; 4]);
    }
}
