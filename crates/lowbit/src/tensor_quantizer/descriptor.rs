//! How a tensor is quantized.

use serde::{Deserialize, Serialize};

use crate::error::{Result, invalid};
use crate::observer::ObserverConfig;
use crate::qconfig::{QConfig, Spec};
use crate::qparams::QParams;
use crate::scheme::{Format, Granularity, Mapping, Scheme};

/// The codes: integers of some bits, or floats of exponent and mantissa bits. In files
/// `8` or `[4, 3]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum NumBits {
    /// Integers of 2 to 16 bits.
    Int(u8),
    /// Floats: (4, 3) or (5, 2).
    Float(u8, u8),
}

/// A largest magnitude, or one for each index of the axis. In files `0.5` or `[0.5, 0.25]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Amax {
    /// That of the whole tensor.
    Tensor(f32),
    /// Those along the axis.
    Axis(Vec<f32>),
}

impl Amax {
    pub(super) fn values(&self) -> Vec<f32> {
        match self {
            Amax::Tensor(amax) => vec![*amax],
            Amax::Axis(amax) => amax.clone(),
        }
    }
}

/// What is kept of the data while calibrating.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CalibMethod {
    /// The largest magnitude.
    #[default]
    Max,
    /// Counts of magnitudes, from which every method finds its range.
    Histogram,
}

/// How a tensor is quantized: `pytorch-quantization`'s `QuantDescriptor`.
///
/// In TOML, where what is left out is as in [`QUANT_DESC_8BIT_PER_TENSOR`]:
/// ```toml
/// num-bits = 8              # or [4, 3]
/// axis = 0
/// calib-method = "histogram"
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct QuantDescriptor {
    /// The codes.
    pub num_bits: NumBits,
    /// Codes from 0 on, for values that are never negative.
    pub unsigned: bool,
    /// Whether the lowest signed code, `-bound - 1`, is left out.
    pub narrow_range: bool,
    /// The axis whose indices have an amax each; none: one for the tensor. In a
    /// [`QuantizedModel`](super::QuantizedModel) any axis of a weight stands for that of
    /// the output channels of its layer, wherever the layer's operator has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub axis: Option<usize>,
    /// A largest magnitude known beforehand.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub amax: Option<Amax>,
    /// Whether training moves amax; otherwise it stays.
    pub learn_amax: bool,
    /// What calibration keeps.
    pub calib_method: CalibMethod,
    /// Whether the values are those that codes stand for, rather than the codes.
    pub fake_quant: bool,
}

/// Signed, 8 bits, one range for the tensor: the standard for inputs.
pub const QUANT_DESC_8BIT_PER_TENSOR: QuantDescriptor = QuantDescriptor::new(8);
/// Codes 0 to 255, for values that are never negative.
pub const QUANT_DESC_UNSIGNED_8BIT_PER_TENSOR: QuantDescriptor = QuantDescriptor::of(8, true, None);
/// Weights `[out, in, k]` by output channel.
pub const QUANT_DESC_8BIT_CONV1D_WEIGHT_PER_CHANNEL: QuantDescriptor = QuantDescriptor::of(8, false, Some(0));
/// Weights `[out, in, k, k]` by output channel.
pub const QUANT_DESC_8BIT_CONV2D_WEIGHT_PER_CHANNEL: QuantDescriptor = QuantDescriptor::of(8, false, Some(0));
/// Weights `[out, in, k, k, k]` by output channel.
pub const QUANT_DESC_8BIT_CONV3D_WEIGHT_PER_CHANNEL: QuantDescriptor = QuantDescriptor::of(8, false, Some(0));
/// Weights `[out, in]` by row.
pub const QUANT_DESC_8BIT_LINEAR_WEIGHT_PER_ROW: QuantDescriptor = QuantDescriptor::of(8, false, Some(0));
/// Weights `[in, out, k]` by output channel.
pub const QUANT_DESC_8BIT_CONVTRANSPOSE1D_WEIGHT_PER_CHANNEL: QuantDescriptor =
    QuantDescriptor::of(8, false, Some(1));
/// Weights `[in, out, k, k]` by output channel.
pub const QUANT_DESC_8BIT_CONVTRANSPOSE2D_WEIGHT_PER_CHANNEL: QuantDescriptor =
    QuantDescriptor::of(8, false, Some(1));
/// Weights `[in, out, k, k, k]` by output channel.
pub const QUANT_DESC_8BIT_CONVTRANSPOSE3D_WEIGHT_PER_CHANNEL: QuantDescriptor =
    QuantDescriptor::of(8, false, Some(1));

impl Default for QuantDescriptor {
    fn default() -> QuantDescriptor {
        QUANT_DESC_8BIT_PER_TENSOR
    }
}

impl QuantDescriptor {
    /// Signed integers of `bits` bits with one range for the tensor.
    pub const fn new(bits: u8) -> QuantDescriptor {
        QuantDescriptor::of(bits, false, None)
    }

    const fn of(bits: u8, unsigned: bool, axis: Option<usize>) -> QuantDescriptor {
        QuantDescriptor {
            num_bits: NumBits::Int(bits),
            unsigned,
            narrow_range: false,
            axis,
            amax: None,
            learn_amax: false,
            calib_method: CalibMethod::Max,
            fake_quant: true,
        }
    }

    /// The same with a range for each index of `axis`.
    pub fn along(self, axis: usize) -> QuantDescriptor {
        QuantDescriptor { axis: Some(axis), ..self }
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// If codes are not those of 2 to 16 bits, e4m3 or e5m2, floats are to be unsigned,
    /// or amax is negative, not finite, or of several values without an axis.
    pub fn check(&self) -> Result<()> {
        match self.num_bits {
            NumBits::Int(2..=16) => {}
            NumBits::Int(bits) => return Err(invalid!("num-bits = {bits}: choose 2 to 16")),
            NumBits::Float(4, 3) | NumBits::Float(5, 2) if !self.unsigned => {}
            NumBits::Float(4, 3) | NumBits::Float(5, 2) => return Err(invalid!("floats are signed")),
            NumBits::Float(e, m) => return Err(invalid!("num-bits = [{e}, {m}]: choose [4, 3] or [5, 2]")),
        }
        self.amax.as_ref().map_or(Ok(()), |amax| self.check_amax(&amax.values()))
    }

    pub(super) fn check_amax(&self, amax: &[f32]) -> Result<()> {
        if let Some(a) = amax.iter().find(|a| !(a.is_finite() && **a >= 0.0)) {
            return Err(invalid!("amax = {a}: a largest magnitude is neither negative nor infinite"));
        }
        match (self.axis, amax.len()) {
            (_, 0) => Err(invalid!("amax has no value")),
            (None, 2..) => Err(invalid!("{} values of amax without an axis", amax.len())),
            _ => Ok(()),
        }
    }

    /// The greatest code: `2^(bits - 1) - 1`, `2^bits - 1` for unsigned ones, 448 and
    /// 57344 for floats.
    pub fn bound(&self) -> f32 {
        match self.num_bits {
            NumBits::Int(bits) => ((1i64 << (u32::from(bits) - u32::from(!self.unsigned))) - 1) as f32,
            NumBits::Float(..) => self.format().bounds().1 as f32,
        }
    }

    fn format(&self) -> Format {
        match self.num_bits {
            NumBits::Int(bits) => {
                Format::Int { bits, signed: !self.unsigned, narrow: self.narrow_range && !self.unsigned }
            }
            NumBits::Float(exponent, mantissa) => Format::Float { exponent, mantissa },
        }
    }

    /// The codes, with zero point 0, and what shares a scale. (Unsigned codes count as
    /// affine: their middle is not 0.)
    pub fn scheme(&self) -> Scheme {
        let mapping = if self.unsigned { Mapping::Affine } else { Mapping::Symmetric };
        let granularity = self.axis.map_or(Granularity::Tensor, Granularity::Axis);
        Scheme::new(self.format(), mapping).with(granularity)
    }

    /// The scheme whose observers find amax: signed codes of as many magnitudes, so that
    /// ranges are searched symmetrically.
    pub(super) fn observed(&self) -> Scheme {
        let format = match self.num_bits {
            NumBits::Int(bits) => {
                Format::Int { bits: bits + u8::from(self.unsigned), signed: true, narrow: true }
            }
            NumBits::Float(..) => self.format(),
        };
        Scheme { format, mapping: Mapping::Symmetric, ..self.scheme() }
    }

    /// Scales `amax / bound`, f32 epsilon at least, and zero points 0.
    ///
    /// # Errors
    /// Those of [`QuantDescriptor::check`].
    pub fn params(&self, amax: &[f32]) -> Result<QParams> {
        self.check()?;
        self.check_amax(amax)?;
        let scale = amax.iter().map(|a| (a / self.bound()).max(f32::EPSILON)).collect();
        QParams::new(self.scheme(), scale, vec![0; amax.len()])
    }

    /// The same for [`QConfigMapping`](crate::qconfig::QConfigMapping)s: an axis is the
    /// channels' of each operator, a histogram is searched for the least entropy.
    ///
    /// Signed codes are narrow there, which gives the same scale `amax / bound`:
    /// activations use the lowest code all the same where they exceed amax.
    ///
    /// # Errors
    /// Those of [`QuantDescriptor::check`], and if values of amax along an axis are given.
    pub fn spec(&self) -> Result<Spec> {
        self.check()?;
        let format = match self.format() {
            Format::Int { bits, signed, .. } => Format::Int { bits, signed, narrow: signed },
            format => format,
        };
        let observer = match (&self.amax, self.calib_method) {
            (Some(Amax::Tensor(a)), _) => {
                ObserverConfig::Fixed { lo: if self.unsigned { 0.0 } else { -a }, hi: *a }
            }
            (Some(Amax::Axis(_)), _) => {
                return Err(invalid!("values of amax along an axis are for one tensor, not for a rule"));
            }
            (None, CalibMethod::Max) => ObserverConfig::MinMax,
            (None, CalibMethod::Histogram) => ObserverConfig::Entropy,
        };
        let spec = Spec::new(format, self.scheme().mapping).observed_by(observer);
        Ok(if self.axis.is_some() { spec.per_channel() } else { spec })
    }
}

/// Layers whose inputs and weights are quantized like this, and whose outputs are not.
///
/// # Errors
/// Those of [`QuantDescriptor::spec`], and if the input has an axis.
pub fn qconfig(input: &QuantDescriptor, weight: &QuantDescriptor) -> Result<QConfig> {
    if let Some(axis) = input.axis {
        return Err(invalid!("axis = {axis}: an input has one range for the whole tensor"));
    }
    Ok(QConfig { activation: Some(input.spec()?.of_inputs_only()), weight: weight.spec()? })
}
