//! The network of a prepared graph.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::{Fold, Names, Phase, QatOptions, Ranges};
use crate::error::{Result, invalid};
use crate::graph::{Builder, Graph, Kind, Node, Var};
use crate::observer::Kind as Observed;
use crate::op::{Op, Quant};
use crate::ops::binary::Arithmetic;
use crate::ops::clip::Clip;
use crate::ops::shape::Reshape;
use crate::ops::unary::Unary;
use crate::quantize::{Point, PointOp, Prepared, Role};
use crate::scheme::{Format, Granularity, Mapping, Scheme};
use crate::tensor::{DType, Tensor};
use crate::train::fake::{FakeQuantize, StepGradient};
use crate::train::fold::{FoldBatchNorm, LEAST_FACTOR};
use crate::train::network::{Network, Parts, batch_normalized, parameters};
use crate::train::ranges::{MovingRange, ObservedSteps, RangeSteps, steps};

/// The replay of a prepared graph, its trained constants lifted, into a network.
pub(super) struct Assembling<'a> {
    prepared: &'a Prepared,
    lifted: &'a Graph,
    /// The values of the float model's constants.
    constants: HashMap<String, Tensor>,
    folds: &'a HashMap<String, Fold>,
    options: QatOptions,
    phase: Phase,
    parts: Parts,
    /// Parameters and states that are there already, by name.
    given: HashMap<String, Var>,
    /// Folded weight, bias and factor, by the weight's name.
    folded: HashMap<String, [Var; 3]>,
    /// Scale and zero point of each point.
    steps: HashMap<usize, [Var; 2]>,
}

impl Assembling<'_> {
    pub(super) fn network(
        prepared: &Prepared,
        float: &Graph,
        folds: &HashMap<String, Fold>,
        options: QatOptions,
        phase: Phase,
    ) -> Result<Network> {
        let trained: HashSet<String> = parameters(float);
        let (lifted, _) = prepared.graph().lift(|v, _| trained.contains(&v.name))?;
        let constant = |v| Some((float.value(v).name.clone(), float.constant(v)?.clone()));
        let assembling = RefCell::new(Assembling {
            prepared,
            lifted: &lifted,
            constants: float.nodes().filter_map(|(v, _)| constant(v)).collect(),
            folds,
            options,
            phase,
            parts: Parts::default(),
            given: HashMap::new(),
            folded: HashMap::new(),
            steps: HashMap::new(),
        });
        let mut b = Builder::default();
        let made = lifted.replay_onto(
            &mut b,
            |b, _, value| match trained.contains(&value.name) {
                true => assembling.borrow_mut().trained(b, &value.name),
                false => Ok(b.input(&value.name, value.fact.clone())),
            },
            |b, value, t| Ok(b.constant(&value.name, t.clone())),
            |b, v, node, inputs| assembling.borrow_mut().node(b, v, node, inputs),
        )?;
        Network::assembled(b, prepared.graph(), &made, assembling.into_inner().parts)
    }

    /// What stands for a trained constant of the prepared graph: a parameter, or
    /// one with its BatchNormalization folded in.
    fn trained(&mut self, b: &mut Builder, name: &str) -> Result<Var> {
        match self.folds.get(name) {
            Some(fold) if !self.stays_apart(fold) => Ok(self.folded(b, fold)?[0]),
            _ => self.parameter(b, name),
        }
    }

    /// Whether a weight is quantized as it is, in place of being folded,
    /// quantized and divided by what was folded in, which gives the same where
    /// each channel has a step of its own.
    fn stays_apart(&self, fold: &Fold) -> bool {
        let points = self.lifted.applied().filter_map(|(_, _, op, x)| Some((op.is::<PointOp>()?, x[0])));
        let mut points = points.filter(|(_, x)| self.lifted.value(*x).name == fold.weight);
        let own = |op: &PointOp| {
            let scheme = self.prepared.points()[op.point].scheme;
            (scheme.granularity, scheme.mapping) == (Granularity::Axis(fold.axis), Mapping::Symmetric)
        };
        self.phase.batch_statistics && points.all(|(op, _)| own(op))
    }

    fn parameter(&mut self, b: &mut Builder, name: &str) -> Result<Var> {
        if let Some(v) = self.given.get(name) {
            return Ok(*v);
        }
        let t =
            self.constants.get(name).ok_or_else(|| invalid!("is no constant of the float model").at(name))?;
        let v = self.parts.parameter(b, name, t.clone());
        self.given.insert(name.into(), v);
        Ok(v)
    }

    fn state(&mut self, b: &mut Builder, name: &str, t: impl FnOnce() -> Tensor) -> Var {
        if let Some(v) = self.given.get(name) {
            return *v;
        }
        let v = self.parts.state(b, name, t());
        self.given.insert(name.into(), v);
        v
    }

    /// Gamma, beta, mean and variance of a fold.
    fn norm(&mut self, b: &mut Builder, fold: &Fold) -> Result<[Var; 4]> {
        let [gamma, beta, mean, var] = &fold.operands;
        let constant = |name: &String| {
            self.constants
                .get(name)
                .cloned()
                .ok_or_else(|| invalid!("is no constant of the float model").at(name))
        };
        let (of_mean, of_var) = (constant(mean)?, constant(var)?);
        let [gamma, beta] = [self.parameter(b, gamma)?, self.parameter(b, beta)?];
        Ok([gamma, beta, self.state(b, mean, || of_mean), self.state(b, var, || of_var)])
    }

    /// The step of a weight before its fold, of that of the folded one: divided
    /// by the magnitude of `gamma / sigma`. Other steps stay.
    fn put_off(&mut self, b: &mut Builder, apart: Option<&Fold>, scale: Var) -> Result<Var> {
        let Some(fold) = apart else { return Ok(scale) };
        let [gamma, _, _, var] = self.norm(b, fold)?;
        let name = |part: &str| format!("{}.{part}", fold.weight);
        let epsilon = b.constant(&name("epsilon"), Tensor::scalar(fold.norm.epsilon));
        let shifted = b.apply(&name("variance"), Arc::new(Arithmetic::Add), &[var, epsilon])?;
        let sigma = b.apply(&name("sigma"), Arc::new(Unary::Sqrt), &[shifted])?;
        let factor = b.apply(&name("factor"), Arc::new(Arithmetic::Div), &[gamma, sigma])?;
        let size = b.apply(&name("factor_size"), Arc::new(Unary::Abs), &[factor])?;
        let size =
            b.apply(&name("factor_bound"), Arc::new(Clip::new(LEAST_FACTOR, f32::INFINITY)), &[size])?;
        b.apply(&name("step"), Arc::new(Arithmetic::Div), &[scale, size])
    }

    /// A quantized folded weight divided by what was folded in.
    fn unfolded(&mut self, b: &mut Builder, fold: &Fold, weight: Var) -> Result<Var> {
        let [_, _, factor] = self.folded(b, fold)?;
        let name = |part: &str| format!("{}.{part}", fold.weight);
        let rank = b.fact(weight).rank();
        let shape: Vec<i64> = (0..rank).map(|axis| if axis == fold.axis { -1 } else { 1 }).collect();
        let shape = b.constant(&name("factor_shape"), Tensor::vector(shape));
        let factor = b.apply(&name("factors"), Arc::new(Reshape::default()), &[factor, shape])?;
        b.apply(&name("unfolded"), Arc::new(Arithmetic::Div), &[weight, factor])
    }

    /// Weight, bias and factor of a layer with its BatchNormalization folded in.
    fn folded(&mut self, b: &mut Builder, fold: &Fold) -> Result<[Var; 3]> {
        if let Some(made) = self.folded.get(&fold.weight) {
            return Ok(*made);
        }
        let weight = self.parameter(b, &fold.weight)?;
        let [gamma, beta, mean, var] = self.norm(b, fold)?;
        let channels = b.fact(gamma).elements() as usize;
        let bias = match &fold.bias {
            Some(name) => self.parameter(b, name)?,
            None => b.constant(&format!("{}.no_bias", fold.weight), Tensor::full(&[channels], 0f32)?),
        };
        let op = FoldBatchNorm { epsilon: fold.norm.epsilon, axis: fold.axis };
        let name = |part: &str| format!("{}.{part}", fold.weight);
        let (w, bias_name, factor) = (name("folded"), name("folded_bias"), name("factor"));
        let operands = [weight, bias, gamma, beta, mean, var];
        let made = b.apply_all(&w, Arc::new(op), &operands, &[&w, &bias_name, &factor])?;
        let made = [made[0], made[1], made[2]];
        self.folded.insert(fold.weight.clone(), made);
        Ok(made)
    }

    fn node(&mut self, b: &mut Builder, v: Var, node: &Node, inputs: &[Var]) -> Result<Vec<Var>> {
        let Kind::Apply { op, inputs: old } = &node.kind else { return b.copy(node, inputs) };
        if let Some(op) = op.is::<PointOp>() {
            let source = &self.lifted.value(old[0]).name;
            let apart = self.folds.get(source).filter(|fold| self.stays_apart(fold));
            return self.point(b, op, inputs[0], apart).map(|v| vec![v]).map_err(|e| e.at(&node.name));
        }
        if op.name() == "Dynamic" {
            return Err(
                invalid!("is quantized by the ranges of each run: there is nothing to train").at(&node.name)
            );
        }
        let Quant::Compute { weight: Some((w, _)), bias: Some(bias) } = op.quant() else {
            return b.copy(node, inputs);
        };
        let mut inputs = inputs.to_vec();
        match old.get(w).and_then(|v| self.folds.get(self.source(*v))) {
            Some(fold) if self.phase.batch_statistics => {
                return self.batch_normalized(b, (v, node, &**op), &mut inputs, (w, bias), fold);
            }
            Some(fold) => {
                let folded = self.folded(b, fold)?[1];
                put(b, &mut inputs, bias, folded);
            }
            None => {}
        }
        if let Some(rounded) = inputs.get(bias).and_then(|v| fake_bias(b, &inputs, w, *v).transpose()) {
            inputs[bias] = rounded?;
        }
        b.copy(node, &inputs)
    }

    /// The name of the value that operand `v` of the lifted graph is, before its point.
    fn source(&self, v: Var) -> &str {
        let source = self.lifted.made_by::<PointOp>(v).map_or(v, |(_, x)| x[0]);
        &self.lifted.value(source).name
    }

    /// The layer of `node` with its quantized weight divided by the factor that
    /// was folded in, and normalized by the statistics of the batch.
    fn batch_normalized(
        &mut self,
        b: &mut Builder,
        (_, node, op): (Var, &Node, &dyn Op),
        inputs: &mut Vec<Var>,
        (w, bias): (usize, usize),
        fold: &Fold,
    ) -> Result<Vec<Var>> {
        if !self.stays_apart(fold) {
            inputs[w] = self.unfolded(b, fold, inputs[w])?;
        }
        let given = match &fold.bias {
            Some(name) => self.parameter(b, name)?,
            None => b.absent(),
        };
        put(b, inputs, bias, given);
        let output = &node.outputs[0].name;
        let Kind::Apply { op: shared, .. } = &node.kind else {
            return Err(invalid!("{} is no node", op.name()));
        };
        let y = b.apply(&format!("{output}.linear"), shared.clone(), inputs)?;
        let [gamma, beta, mean, var] = self.norm(b, fold)?;
        let norm = format!("{}.norm", node.name);
        let operands = [y, gamma, beta, mean, var];
        batch_normalized(b, &mut self.parts, &norm, output, fold.norm, &operands).map(|y| vec![y])
    }

    /// What stands for a value at a point; for a weight that stays apart from its
    /// normalization, with the fold that is put off.
    fn point(&mut self, b: &mut Builder, op: &PointOp, x: Var, apart: Option<&Fold>) -> Result<Var> {
        let prepared = self.prepared;
        let point = &prepared.points()[op.point];
        if matches!(point.scheme.format, Format::Codebook { .. }) {
            return Err(invalid!("{}: codebooks are not trained", point.scheme));
        }
        let (index, ranges) = (op.point, self.options.ranges);
        let learned = matches!(ranges, Ranges::Learned | Ranges::LearnedWithOffset);
        let known = point.role == Role::Activation && matches!(point.observer.kind(), Observed::Fixed(_));
        let fixed = known && point.given.is_none() || point.held && point.given.is_some();
        let follows = !(learned || ranges == Ranges::Clipped && point.given.is_some());
        let name = format!("{}_fake", b.name(x));
        let mut by_scale = StepGradient::None;
        let [scale, zero] = match (point.role, ranges) {
            _ if fixed => {
                let [scale, zero] = self.fixed(b, index, point)?;
                [self.put_off(b, apart, scale)?, zero]
            }
            (Role::Activation, Ranges::MovingAverage(constant)) => {
                let averaged = self.averaged(b, index, point, (x, constant, !op.moved))?;
                if !self.phase.fake_quantize {
                    return Ok(x);
                }
                averaged
            }
            (Role::Weight, _) if follows => {
                let op = Arc::new(ObservedSteps { point: Arc::new(point.clone()) });
                let [scale, zero] = ["scale", "zero"].map(|part| format!("{name}_{part}"));
                let made = b.apply_all(&scale, op, &[x], &[&scale, &zero])?;
                [made[0], made[1]]
            }
            _ => {
                let clipped = ranges == Ranges::Clipped;
                by_scale = if clipped { StepGradient::Clipped } else { StepGradient::Learned };
                let [scale, zero] = self.learned(b, index, point)?;
                [self.put_off(b, apart, scale)?, zero]
            }
        };
        if !self.phase.fake_quantize {
            return Ok(x);
        }
        let scheme = match point.role {
            Role::Activation => point.scheme.saturating(),
            Role::Weight => point.scheme,
        };
        let op = FakeQuantize { scheme, by_scale };
        b.apply(&name, Arc::new(op), &[x, scale, zero])
    }

    /// Steps that stay as they are.
    fn fixed(&mut self, b: &mut Builder, index: usize, point: &Point) -> Result<[Var; 2]> {
        let made = steps(&point.params()?)?;
        let names = Names::new(index, point);
        let constants = [(&names.scale, &made[0]), (&names.zero, &made[1])];
        Ok(*self.steps.entry(index).or_insert_with(|| constants.map(|(name, t)| b.constant(name, t.clone()))))
    }

    /// A scale that is a parameter, and for affine activations perhaps the zero point.
    fn learned(&mut self, b: &mut Builder, index: usize, point: &Point) -> Result<[Var; 2]> {
        if let Some(steps) = self.steps.get(&index) {
            return Ok(*steps);
        }
        let params = point.params().map_err(|e| e.at(&point.name))?;
        let made = steps(&params)?;
        let names = Names::new(index, point);
        let scale = self.parts.parameter(b, &names.scale, made[0].clone());
        let with_offset = self.options.ranges == Ranges::LearnedWithOffset
            && (point.role, point.scheme.mapping) == (Role::Activation, Mapping::Affine);
        let zero = match with_offset {
            true => self.parts.parameter(b, &names.zero, made[1].clone()),
            false => self.parts.state(b, &names.zero, made[1].clone()),
        };
        self.steps.insert(index, [scale, zero]);
        Ok([scale, zero])
    }

    /// Steps of a moving average, which follows `x` first if it is `new`.
    fn averaged(
        &mut self,
        b: &mut Builder,
        index: usize,
        point: &Point,
        (x, constant, new): (Var, f32, bool),
    ) -> Result<[Var; 2]> {
        let follows = new && self.phase.observe;
        if let Some(steps) = self.steps.get(&index).filter(|_| !follows) {
            return Ok(*steps);
        }
        let names = Names::new(index, point);
        let seen = if point.observer.is_empty() { None } else { point.observer.ranges()?.first().copied() };
        let one = |x: f32| Tensor::vector(vec![x]);
        let parts = [
            (&names.lo, seen.map_or(0.0, |r| r.lo)),
            (&names.hi, seen.map_or(0.0, |r| r.hi)),
            (&names.seen, if seen.is_some() { 1.0 } else { 0.0 }),
        ];
        let mut range = parts.map(|(name, start)| {
            let given = self.state(b, name, || one(start));
            self.parts.next.get(name).copied().unwrap_or(given)
        });
        let at = b.name(x).to_string();
        if follows {
            let next = parts.map(|(name, _)| format!("{name}.{at}"));
            let op = Arc::new(MovingRange { constant });
            let made = b.apply_all(
                &next[0],
                op,
                &[x, range[0], range[1], range[2]],
                &[&next[0], &next[1], &next[2]],
            )?;
            range = [made[0], made[1], made[2]];
            for ((name, _), v) in parts.iter().zip(range) {
                self.parts.next.insert((*name).clone(), v);
            }
        }
        let [scale, zero] = [&names.scale, &names.zero].map(|name| format!("{name}.{at}"));
        let op = Arc::new(RangeSteps { scheme: point.scheme });
        let made = b.apply_all(&scale, op, &range[..2], &[&scale, &zero])?;
        self.steps.insert(index, [made[0], made[1]]);
        Ok([made[0], made[1]])
    }
}

/// Puts operand `i` in its place.
fn put(b: &mut Builder, inputs: &mut Vec<Var>, i: usize, v: Var) {
    while inputs.len() <= i {
        inputs.push(b.absent());
    }
    inputs[i] = v;
}

/// A bias as it is kept in i32 at the scale `s_x s_w[c]` (docs/quantization.md,
/// equation 5), if both operands are quantized.
fn fake_bias(b: &mut Builder, inputs: &[Var], w: usize, bias: Var) -> Result<Option<Var>> {
    let graph = b.so_far();
    let fact = graph.fact(bias);
    if fact.is_absent() || fact.rank() != 1 || fact.dtype != DType::F32 {
        return Ok(None);
    }
    let scale = |v: Var| graph.made_by::<FakeQuantize>(v).map(|(op, x)| (op.scheme, x[1]));
    let (Some((_, of_x)), Some((scheme, of_w))) = (scale(inputs[0]), scale(inputs[w])) else {
        return Ok(None);
    };
    let channels = graph.fact(of_w).elements() as usize;
    let granularity = match scheme.granularity {
        Granularity::Tensor => Granularity::Tensor,
        Granularity::Axis(_) => Granularity::Axis(0),
        Granularity::Block { .. } => return Ok(None),
    };
    let name = b.name(bias).to_string();
    let scale = b.apply(&format!("{name}_scale"), Arc::new(Arithmetic::Mul), &[of_w, of_x])?;
    let zero = b.constant(&format!("{name}_zero"), Tensor::full(&[channels], 0f32)?);
    let scheme = Scheme { format: Format::INT32, mapping: Mapping::Symmetric, granularity, codes: None };
    let op = FakeQuantize { scheme, by_scale: StepGradient::None };
    b.apply(&format!("{name}_fake"), Arc::new(op), &[bias, scale, zero]).map(Some)
}
