//! Constant operands of integer products.

use crate::error::Result;
use crate::graph::{Builder, Var};
use crate::ops::quantize::DequantizeLinear;
use crate::scheme::Granularity;
use crate::session::codes::constant_params;
use crate::tensor::{DType, Tensor};

/// Products of one output are summed in i32: deeper sums could overflow.
const MAX_DEPTH: usize = 65_793;

/// int8 codes and their scales (one, or one for each index of `axis`) of the
/// constant weight that `v` is; or why it has no such form.
pub fn weight(b: &Builder, v: Var, axis: usize) -> Result<Result<(Tensor, Vec<f32>), String>> {
    let graph = b.so_far();
    let Some((dq, x)) = graph.made_by::<DequantizeLinear>(v) else {
        return Ok(Err("its weight is not quantized".into()));
    };
    let (Some(t), Some(params)) =
        (graph.constant(x[0]), constant_params(graph, x[0], (dq.axis, dq.block), x)?)
    else {
        return Ok(Err("its weight is not a constant".into()));
    };
    match params.scheme.granularity {
        Granularity::Tensor => {}
        Granularity::Axis(a) if a == axis => {}
        other => return Ok(Err(format!("its weight has scales along {other:?}, not along axis {axis}"))),
    }
    let channels = t.shape().get(axis).copied().unwrap_or(1).max(1);
    if t.len() / channels > MAX_DEPTH {
        return Ok(Err(format!("a sum of {} products may overflow 32 bits", t.len() / channels)));
    }
    if params.scale.iter().any(|s| !s.is_finite() || *s <= 0.0) {
        return Ok(Err("its weight has a scale that is not a positive number".into()));
    }
    if t.dtype() == DType::I8 && params.zero_point.iter().all(|&z| z == 0) {
        return Ok(Ok((t.clone(), params.scale)));
    }
    let Ok(integers) = t.integers() else { return Ok(Err(format!("its weight is {}", t.dtype()))) };
    let inner: usize = t.shape()[axis + 1..].iter().product();
    let zero =
        |i: usize| params.zero_point[if params.zero_point.len() == 1 { 0 } else { i / inner % channels }];
    let centred: Option<Vec<i8>> =
        integers.iter().enumerate().map(|(i, q)| i8::try_from(q - i64::from(zero(i))).ok()).collect();
    Ok(match centred {
        Some(codes) => Ok((Tensor::new(t.shape(), codes)?, params.scale)),
        None => Err(format!("its weight ({}) less the zero point does not fit 8 bits", t.dtype())),
    })
}

/// The bias in i32 at `scale[c] = s_x s_w[c]`; zeros where there is none.
pub fn bias_codes(b: &Builder, bias: Option<Var>, scale: &[f32]) -> Result<Result<Vec<i32>, String>> {
    let graph = b.so_far();
    let Some(v) = bias.filter(|v| !graph.fact(*v).is_absent()) else { return Ok(Ok(vec![0; scale.len()])) };
    if let Some((dq, x)) = graph.made_by::<DequantizeLinear>(v)
        && let (Some(t), Some(params)) =
            (graph.constant(x[0]), constant_params(graph, x[0], (dq.axis, dq.block), x)?)
        && t.dtype() == DType::I32
        && t.len() == scale.len()
    {
        let given = |c: usize| params.scale[if params.scale.len() == 1 { 0 } else { c }];
        let same = (0..scale.len()).all(|c| (given(c) - scale[c]).abs() <= 1e-5 * scale[c]);
        if same && params.zero_point.iter().all(|&z| z == 0) {
            return Ok(Ok(t.slice::<i32>()?.to_vec()));
        }
        return rounded(&params.dequantize(t)?, scale);
    }
    match graph.constant(v) {
        Some(t) if t.len() == scale.len() => rounded(t, scale),
        _ => Ok(Err("its bias is not a constant with one value a channel".into())),
    }
}

fn rounded(bias: &Tensor, scale: &[f32]) -> Result<Result<Vec<i32>, String>> {
    let codes: Option<Vec<i32>> = bias
        .slice::<f32>()?
        .iter()
        .zip(scale)
        .map(|(b, s)| {
            let q = (f64::from(*b) / f64::from(*s)).round_ties_even();
            (q.abs() < f64::from(1 << 30)).then_some(q as i32)
        })
        .collect();
    Ok(codes.ok_or_else(|| "its bias does not fit 32 bits at the scale of the products".into()))
}
