//! One quantizer.

use serde::{Deserialize, Serialize};

use super::calibrator::{AmaxMethod, Calibrator};
use super::descriptor::QuantDescriptor;
use super::function::{codes, fake_quantized, magnitudes};
use crate::error::{Result, invalid};
use crate::op::{Op, Reverse};
use crate::qparams::QParams;
use crate::tensor::Tensor;
use crate::train::{FakeQuantize, StepGradient};

/// What a quantizer does with a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Nothing.
    Disabled,
    /// It shows it to the calibrator, and changes nothing.
    Calibrating,
    /// It gives its codes.
    Quantizing,
    /// It gives what the codes stand for.
    FakeQuantizing,
}

/// A quantizer: a descriptor, what it does now, its amax once that is known, and what
/// calibration collected. All of it is saved with serde.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct TensorQuantizer {
    descriptor: QuantDescriptor,
    state: State,
    #[serde(skip_serializing_if = "Option::is_none")]
    amax: Option<Vec<f32>>,
    calibrator: Calibrator,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unchecked {
    descriptor: QuantDescriptor,
    state: State,
    #[serde(default)]
    amax: Option<Vec<f32>>,
    #[serde(default)]
    calibrator: Option<Calibrator>,
}

impl TryFrom<Unchecked> for TensorQuantizer {
    type Error = crate::Error;

    fn try_from(saved: Unchecked) -> Result<TensorQuantizer> {
        let mut made = TensorQuantizer::new(saved.descriptor)?;
        if let Some(amax) = saved.amax {
            made.set_amax(amax)?;
        }
        made.calibrator = saved.calibrator.unwrap_or(made.calibrator);
        Ok(TensorQuantizer { state: saved.state, ..made })
    }
}

impl TensorQuantizer {
    /// A quantizer that quantizes.
    ///
    /// # Errors
    /// Those of [`QuantDescriptor::check`].
    pub fn new(descriptor: QuantDescriptor) -> Result<TensorQuantizer> {
        descriptor.check()?;
        let amax = descriptor.amax.as_ref().map(|amax| amax.values());
        let calibrator = Calibrator::new(&descriptor)?;
        let mut made = TensorQuantizer { descriptor, state: State::Disabled, amax, calibrator };
        made.enable_quant();
        Ok(made)
    }

    /// How it quantizes.
    pub fn descriptor(&self) -> &QuantDescriptor {
        &self.descriptor
    }

    /// What it does now.
    pub fn state(&self) -> State {
        self.state
    }

    /// Whether it quantizes, or gives what codes stand for.
    pub fn is_quantizing(&self) -> bool {
        matches!(self.state, State::Quantizing | State::FakeQuantizing)
    }

    /// Lets tensors pass.
    pub fn disable(&mut self) {
        self.state = State::Disabled;
    }

    /// Collects values from now on, beside those collected before.
    pub fn enable_calib(&mut self) {
        self.state = State::Calibrating;
    }

    /// Forgets what was collected.
    ///
    /// # Errors
    /// None that a checked descriptor has.
    pub fn reset_calib(&mut self) -> Result<()> {
        self.calibrator = Calibrator::new(&self.descriptor)?;
        Ok(())
    }

    /// Quantizes from now on, to values or to codes as the descriptor says.
    pub fn enable_quant(&mut self) {
        self.state = if self.descriptor.fake_quant { State::FakeQuantizing } else { State::Quantizing };
    }

    /// What calibration collected.
    pub fn calibrator(&self) -> &Calibrator {
        &self.calibrator
    }

    pub(super) fn calibrator_mut(&mut self) -> &mut Calibrator {
        &mut self.calibrator
    }

    /// The largest magnitude, one for each index of the axis, once it is known.
    pub fn amax(&self) -> Option<&[f32]> {
        self.amax.as_deref()
    }

    /// Takes this for the largest magnitude.
    ///
    /// # Errors
    /// If it is negative or not finite, or of several values without an axis.
    pub fn set_amax(&mut self, amax: Vec<f32>) -> Result<()> {
        self.descriptor.check_amax(&amax)?;
        self.amax = Some(amax);
        Ok(())
    }

    /// Takes what the calibrator finds for the largest magnitude.
    ///
    /// # Errors
    /// Those of [`Calibrator::compute_amax`].
    pub fn load_calib_amax(&mut self, method: AmaxMethod) -> Result<()> {
        self.set_amax(self.calibrator.compute_amax(method)?)
    }

    /// The reals between codes: `amax / bound`.
    ///
    /// # Errors
    /// If amax is not known.
    pub fn step_size(&self) -> Result<Vec<f32>> {
        let bound = self.descriptor.bound();
        Ok(self.known()?.iter().map(|a| a / bound).collect())
    }

    /// Scales and zero points.
    ///
    /// # Errors
    /// If amax is not known.
    pub fn params(&self) -> Result<QParams> {
        self.descriptor.params(self.known()?)
    }

    fn known(&self) -> Result<&[f32]> {
        self.amax().ok_or_else(|| invalid!("amax is not known: calibrate, or set it"))
    }

    /// The tensor, its codes, or what they stand for, as the state says. While amax is
    /// not known, it is that of the tensor.
    ///
    /// # Errors
    /// If `x` is not floating point, has another number of indices than amax, or is
    /// negative where codes are unsigned.
    pub fn forward(&mut self, x: &Tensor) -> Result<Tensor> {
        let amax = || self.amax.clone().map_or_else(|| magnitudes(&self.descriptor, x), Ok);
        match self.state {
            State::Disabled => Ok(x.clone()),
            State::Calibrating => {
                self.calibrator.collect(x)?;
                Ok(x.clone())
            }
            State::Quantizing => codes(&self.descriptor, x, &amax()?),
            State::FakeQuantizing => fake_quantized(&self.descriptor, x, &amax()?),
        }
    }

    /// The gradients by `x` and, if it is learned, by amax, given that of the values
    /// that codes stand for: `g` passes where `|x|` does not exceed amax (straight-through
    /// estimator), and amax gets `g` from where `x` lies above, `-g` from below
    /// ([`StepGradient::Clipped`]; below an open range `-g (bound + 1) / bound`).
    ///
    /// # Errors
    /// If amax is not known, or a tensor has another shape.
    pub fn backward(&self, x: &Tensor, gradient: &Tensor) -> Result<(Tensor, Option<Vec<f32>>)> {
        let params = self.params()?;
        let by_scale = if self.descriptor.learn_amax { StepGradient::Clipped } else { StepGradient::None };
        let op = FakeQuantize { scheme: params.scheme, by_scale };
        let [scale, zero] = operands(&params);
        let inputs = [x, &scale, &zero];
        let y = op.eval(&inputs)?.remove(0);
        let gradients = [Some(gradient.clone())];
        let at =
            Reverse { inputs: &inputs, outputs: &[&y], gradients: &gradients, wanted: &[true, true, false] };
        let mut by = op.vjp(&at)?.into_iter();
        let by_x = by.next().flatten().ok_or_else(|| invalid!("has no gradient"))?;
        let by_scale = by.next().flatten().map(|s| s.to_f32()).transpose()?;
        // The operator's is divided by bound^2: s = amax / bound moves as amax / bound does.
        let bound = self.descriptor.bound();
        Ok((by_x, by_scale.map(|by| by.into_iter().map(|s| s * bound).collect())))
    }
}

/// Scale and zero point as [`FakeQuantize`] takes them.
pub(super) fn operands(params: &QParams) -> [Tensor; 2] {
    let zero: Vec<f32> = params.zero_point.iter().map(|&z| z as f32).collect();
    [Tensor::vector(params.scale.clone()), Tensor::vector(zero)]
}
