//! Quantization of one tensor by its largest magnitude.

use super::descriptor::{NumBits, QuantDescriptor};
use crate::error::{Result, invalid};
use crate::qparams::QParams;
use crate::tensor::Tensor;

/// Magnitudes up to this count as 0: what a half-precision number cannot represent.
const NONE: f32 = 1.0 / (1 << 24) as f32;

/// The codes `clamp(round(x scale), least, bound)` and the scale `bound / amax`, with
/// `bound = 2^(bits - 1) - 1`, or `2^bits - 1` if `unsigned`; `least` is `-bound - 1`,
/// `-bound` for a narrow range, and 0 if unsigned. (Computed is `x / (amax / bound)`.)
///
/// `amax` has one element, or the rank of `x` and its size along one axis, as in
/// `[1, C, 1, 1]`; the scale has the same shape. Where it is 0, or less than
/// half precision can tell from 0 (2^-24), codes are 0 and the scale is 1.
///
/// ```
/// use lowbit::Tensor;
/// use lowbit::tensor_quantizer::tensor_quant;
///
/// let x = Tensor::vector(vec![0.9817f32, 0.8796, 0.9921, 0.4611]);
/// let (codes, scale) = tensor_quant(&x, &Tensor::scalar(0.9921f32), 8, false, true)?;
/// assert_eq!(codes, Tensor::vector(vec![126i8, 113, 127, 59]));
/// assert_eq!(format!("{:.4}", scale.item::<f32>()?), "128.0113");
/// # Ok::<(), lowbit::Error>(())
/// ```
///
/// # Errors
/// If amax is negative or not finite, or has another shape; if `x` is not floating
/// point, or `unsigned` and negative; or if `num_bits` does not lie in 2 to 16.
pub fn tensor_quant(
    x: &Tensor,
    amax: &Tensor,
    num_bits: u8,
    unsigned: bool,
    narrow_range: bool,
) -> Result<(Tensor, Tensor)> {
    let (descriptor, values) = described(x, amax, num_bits, unsigned, narrow_range)?;
    let codes = codes(&descriptor, x, &values)?;
    let scale = values.iter().map(|&a| if a <= NONE { 1.0 } else { descriptor.bound() / a });
    Ok((codes, Tensor::new(amax.shape(), scale.collect())?))
}

/// What the codes of [`tensor_quant`] stand for.
///
/// # Errors
/// Those of [`tensor_quant`].
pub fn fake_tensor_quant(
    x: &Tensor,
    amax: &Tensor,
    num_bits: u8,
    unsigned: bool,
    narrow_range: bool,
) -> Result<Tensor> {
    let (descriptor, values) = described(x, amax, num_bits, unsigned, narrow_range)?;
    fake_quantized(&descriptor, x, &values)
}

/// The descriptor and the values of amax.
fn described(
    x: &Tensor,
    amax: &Tensor,
    num_bits: u8,
    unsigned: bool,
    narrow_range: bool,
) -> Result<(QuantDescriptor, Vec<f32>)> {
    let axis = match amax.len() {
        1 => None,
        n => {
            let lies_along = |axis: &usize| amax.shape()[*axis] == n && x.shape()[*axis] == n;
            let axis = (0..x.rank()).find(|axis| amax.rank() == x.rank() && lies_along(axis));
            let (of_amax, of_x) = (amax.shape(), x.shape());
            Some(axis.ok_or_else(|| invalid!("amax of shape {of_amax:?} is not for one axis of {of_x:?}"))?)
        }
    };
    let num_bits = NumBits::Int(num_bits);
    Ok((
        QuantDescriptor { num_bits, unsigned, narrow_range, axis, ..QuantDescriptor::default() },
        amax.to_f32()?,
    ))
}

/// The codes of `x` by a descriptor and its amax.
pub(super) fn codes(descriptor: &QuantDescriptor, x: &Tensor, amax: &[f32]) -> Result<Tensor> {
    let (params, x) = readied(descriptor, x, amax)?;
    params.quantize(&x)
}

/// What the codes stand for.
pub(super) fn fake_quantized(descriptor: &QuantDescriptor, x: &Tensor, amax: &[f32]) -> Result<Tensor> {
    let (params, x) = readied(descriptor, x, amax)?;
    params.fake_quantize(&x)
}

/// The parameters, with the scale 1 where amax is 0, and `x` with its elements there 0.
fn readied(descriptor: &QuantDescriptor, x: &Tensor, amax: &[f32]) -> Result<(QParams, Tensor)> {
    descriptor.check()?;
    descriptor.check_amax(amax)?;
    let values = x.to_f32()?;
    if descriptor.unsigned
        && let Some(x) = values.iter().find(|x| **x < 0.0)
    {
        return Err(invalid!("{x} is negative, and the codes are unsigned"));
    }
    let scheme = descriptor.scheme();
    let scale = amax.iter().map(|&a| if a <= NONE { 1.0 } else { a / descriptor.bound() }).collect();
    let params = QParams::new(scheme, scale, vec![0; amax.len()])?;
    let groups = scheme.granularity.groups(x.shape())?;
    if groups.count() != amax.len() {
        let (n, have) = (groups.count(), amax.len());
        return Err(invalid!("{have} values of amax for {n} indices of the axis"));
    }
    let mut values = values;
    for (run, _) in groups.runs().filter(|(_, group)| amax[*group] <= NONE) {
        values[run].fill(0.0);
    }
    Ok((params, Tensor::new(x.shape(), values)?))
}

/// The largest magnitude of each group.
pub(super) fn magnitudes(descriptor: &QuantDescriptor, x: &Tensor) -> Result<Vec<f32>> {
    let groups = descriptor.scheme().granularity.groups(x.shape())?;
    let (values, mut amax) = (x.to_f32()?, vec![0f32; groups.count()]);
    for (run, group) in groups.runs() {
        amax[group] = values[run].iter().fold(amax[group], |most, x| most.max(x.abs()));
    }
    Ok(amax)
}
