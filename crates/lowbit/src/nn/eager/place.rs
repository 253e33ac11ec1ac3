//! Where values are quantized: what a [`Scope`] does beside applying operators.

use std::sync::Arc;

use super::{Mark, Mode};
use crate::error::{Error, Result, invalid};
use crate::graph::Var;
use crate::nn::Scope;
use crate::nn::module::join;
use crate::observer::ObserverConfig;
use crate::op::{Op, Quant};
use crate::ops::quantize::DequantizeLinear;
use crate::qconfig::Spec;
use crate::qparams::QParams;
use crate::quantize::{IntegerBias, PointOp, implied, quantized, stored_bias};
use crate::tensor::{DType, Tensor};

/// What the constant operand of a layer is called.
pub(super) const SCALAR: &str = "scalar";

/// What is missing where a value is in float, and should not be.
fn missing_quant_stub(path: &str) -> Error {
    invalid!(
        "is to be quantized, and reads a value in float: put a QuantStub before it, or leave it in float"
    )
    .at(path)
}

/// What is missing where a value is quantized, and should not be.
fn missing_dequant_stub(path: &str) -> Error {
    invalid!(
        "is in float (no rule matches it, or it was not called while calibrating), and reads a quantized \
         value: put a DeQuantStub before it"
    )
    .at(path)
}

/// An operator that a module is, with what may be quantized of it.
struct Layer<'a> {
    path: &'a str,
    op: Arc<dyn Op>,
    /// The name of the ReLU that is a part of it.
    relu: Option<&'a str>,
    inputs: Vec<Var>,
    /// Input and channel axis of the weight, if that is a parameter.
    weight: Option<(usize, usize)>,
    bias: Option<usize>,
}

/// How a layer is quantized.
enum Config {
    /// Its output and its weight are observed.
    Observed(Spec, Spec),
    /// Its output has these steps.
    Steps(QParams),
}

impl Scope<'_> {
    /// A layer where values may be quantized: if they are, so is its output.
    pub(in crate::nn) fn quantizable(
        &mut self,
        (path, op, relu): (&str, Arc<dyn Op>, Option<&str>),
        inputs: &[Var],
        functional: bool,
    ) -> Result<Var> {
        let (weight, bias) = match op.quant() {
            Quant::Compute { weight, bias } => (weight, bias),
            _ => (None, None),
        };
        let is_parameter =
            |(i, _): &(usize, usize)| inputs.get(*i).is_some_and(|v| self.path_of_parameter(*v).is_some());
        let weight = weight.filter(is_parameter);
        let activations: Vec<Var> = inputs
            .iter()
            .copied()
            .filter(|v| self.path_of_parameter(*v).is_none() && self.b.so_far().constant(*v).is_none())
            .filter(|v| self.fact(*v).dtype == DType::F32)
            .collect();
        let quantized = activations.iter().filter(|v| self.marks.contains_key(v)).count();
        let layer = Layer { path, op, relu, inputs: inputs.to_vec(), weight, bias };
        let config = match &self.mode {
            Mode::Float => None,
            Mode::Observed(points) => {
                let config = points.mapping.of_module(path, layer.op.name())?;
                config.and_then(|q| Some(Config::Observed(q.observed()?.clone(), q.weight.clone())))
            }
            Mode::Quantized => self.weights.output_params(path)?.map(Config::Steps),
        };
        let strict = functional || weight.is_some();
        match (config, quantized) {
            (None, 0) => self.with_relu(path, layer.op, inputs, relu),
            (None, _) => Err(missing_dequant_stub(path)),
            (Some(_), 0) if !strict => self.with_relu(path, layer.op, inputs, relu),
            (Some(_), n) if n < activations.len() => Err(missing_quant_stub(path)),
            (Some(Config::Observed(activation, weight)), _) => self.observed(layer, &activation, &weight),
            (Some(Config::Steps(params)), _) => self.converted(layer, &params),
        }
    }

    /// The operands that are numbers of the model, and no parameters.
    fn constants(&self, layer: &Layer<'_>) -> Vec<usize> {
        let constant = |v: Var| self.path_of_parameter(v).is_none() && self.b.so_far().constant(v).is_some();
        (0..layer.inputs.len()).filter(|i| constant(layer.inputs[*i])).collect()
    }

    /// A layer whose weight and output are observed.
    fn observed(&mut self, mut layer: Layer<'_>, activation: &Spec, weight: &Spec) -> Result<Var> {
        if let Some((w, axis)) = layer.weight {
            let (x, v) = (layer.inputs[0], layer.inputs[w]);
            let name = self.path_of_parameter(v).unwrap_or_default().to_string();
            let point = match (&mut self.mode, self.weights.get(&name), self.marks.get(&x)) {
                (Mode::Observed(points), Some(t), Some(Mark::Point(input))) => {
                    let kind = (&*layer.op, axis, layer.bias.is_some());
                    let point = points.weight(layer.path, (&name, t), weight, kind, *input)?;
                    if let Some(x) = self.b.value(x) {
                        points.all[point].observe(x).map_err(|e| e.at(layer.path))?;
                    }
                    point
                }
                _ => return Err(invalid!("its weight is no parameter").at(layer.path)),
            };
            let op = PointOp { point, moved: true };
            layer.inputs[w] = self.b.apply(&format!("{name}_point"), Arc::new(op), &[v])?;
        }
        for i in self.constants(&layer) {
            let name = join(layer.path, SCALAR);
            let spec = activation.clone().observed_by(ObserverConfig::MinMax);
            layer.inputs[i] = self.observe(&name, layer.inputs[i], &spec, None)?;
        }
        let fixed = match layer.op.quant() {
            Quant::Fixed { lo, hi } => Some(ObserverConfig::Fixed { lo, hi }),
            _ => None,
        };
        let y = self.with_relu(layer.path, layer.op, &layer.inputs, layer.relu)?;
        self.observe(layer.path, y, activation, fixed)
    }

    /// `x` behind the point of the output of the module at `path`, which sees it.
    fn observe(&mut self, path: &str, x: Var, spec: &Spec, fixed: Option<ObserverConfig>) -> Result<Var> {
        let Mode::Observed(points) = &mut self.mode else { return Ok(x) };
        let point = points.output(path, spec, fixed)?;
        if let Some(x) = self.b.value(x) {
            points.all[point].observe(x)?;
        }
        self.behind(x, point, false)
    }

    /// `x` behind a point.
    fn behind(&mut self, x: Var, point: usize, moved: bool) -> Result<Var> {
        let name = format!("{}_point", self.b.name(x));
        let v = self.b.apply(&name, Arc::new(PointOp { point, moved }), &[x])?;
        self.marks.insert(v, Mark::Point(point));
        Ok(v)
    }

    /// A layer whose weight is codes, and whose output has these steps.
    fn converted(&mut self, mut layer: Layer<'_>, params: &QParams) -> Result<Var> {
        let weights = self.weights;
        let weight =
            layer.weight.and_then(|(w, _)| weights.quantized(self.path_of_parameter(layer.inputs[w])?));
        let bias = layer.bias.and_then(|i| IntegerBias::find(&self.b, layer.path, &layer.inputs, i));
        if let (Some(weight), Some(IntegerBias { operand, x_scale, name, values: Some(values) })) =
            (weight, bias)
        {
            let values = Tensor::vector(values);
            let v = stored_bias(&mut self.b, &name, &values, x_scale, weight.params())?;
            layer.inputs[operand] = v;
        }
        for i in self.constants(&layer) {
            let name = join(layer.path, SCALAR);
            if let Some(params) = weights.output_params(&name)? {
                layer.inputs[i] = self.quantize(&name, layer.inputs[i], &params)?;
            }
        }
        let y = self.with_relu(layer.path, layer.op, &layer.inputs, layer.relu)?;
        self.quantize(layer.path, y, params)
    }

    /// `x` quantized as the output of the module at `path`, and dequantized.
    fn quantize(&mut self, path: &str, x: Var, params: &QParams) -> Result<Var> {
        let name = self.b.name(x).to_string();
        let x = implied(&self.b, params, x).unwrap_or(x);
        let (scale, zero) = params.operands();
        let steps = match self.steps.get(path) {
            Some(steps) => *steps,
            None => {
                let scale = self.b.constant(&format!("{name}_s"), scale);
                let steps = [scale, self.zeros.stored(&mut self.b, zero)];
                self.steps.insert(path.into(), steps);
                steps
            }
        };
        self.in_steps(&name, x, steps)
    }

    fn in_steps(&mut self, name: &str, x: Var, steps: [Var; 2]) -> Result<Var> {
        let v = quantized(&mut self.b, name, x, steps)?;
        self.marks.insert(v, Mark::Steps(steps));
        Ok(v)
    }

    /// `v`, which holds values marked so, moved.
    pub(in crate::nn) fn moved(&mut self, v: Var, mark: Mark) -> Result<Var> {
        match mark {
            Mark::Point(point) => self.behind(v, point, true),
            Mark::Steps(steps) => {
                let name = self.b.name(v).to_string();
                self.in_steps(&name, v, steps)
            }
        }
    }

    /// What a QuantStub does.
    pub(in crate::nn) fn quantized_stub(&mut self, x: Var) -> Result<Var> {
        let path = self.path().to_string();
        if self.marks.contains_key(&x) {
            return Err(invalid!("quantizes a value that is quantized already").at(path));
        }
        match &self.mode {
            Mode::Float => Ok(x),
            Mode::Observed(points) => {
                match points.mapping.of_module(&path, "QuantStub")?.and_then(|q| q.observed()) {
                    Some(spec) => {
                        let spec = spec.clone();
                        self.observe(&path, x, &spec, None)
                    }
                    None => Ok(x),
                }
            }
            Mode::Quantized => match self.weights.output_params(&path)? {
                Some(params) => self.quantize(&path, x, &params),
                None => Ok(x),
            },
        }
    }

    /// What a DeQuantStub does: the value in float, which is another one to the
    /// graph, so that the quantized value may still be read.
    pub(in crate::nn) fn dequantized_stub(&mut self, x: Var) -> Result<Var> {
        let path = self.path().to_string();
        match self.marks.get(&x) {
            None => Ok(x),
            Some(Mark::Point(point)) => {
                let op = PointOp { point: *point, moved: true };
                let raw = self.b.so_far().made_by::<PointOp>(x).map_or(x, |(_, inputs)| inputs[0]);
                self.b.apply(&path, Arc::new(op), &[raw])
            }
            Some(Mark::Steps(_)) => {
                let (dequantize, inputs) = self
                    .b
                    .so_far()
                    .made_by::<DequantizeLinear>(x)
                    .ok_or_else(|| invalid!("reads no codes").at(&path))?;
                let (op, inputs) = (dequantize.clone(), inputs.to_vec());
                let name = self.b.name(x).to_string();
                self.b.apply(&name, Arc::new(op), &inputs)
            }
        }
    }
}
