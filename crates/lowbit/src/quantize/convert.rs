//! Points become QuantizeLinear / DequantizeLinear pairs.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::dynamic::{Dynamic, DynamicOp, IntegerWeight};
use super::finding::{Finding, Symptom};
use super::grid::Grid;
use super::placement::weight;
use super::point::{Line, Point, PointOp, Role};
use super::prepare::Prepared;
use super::recurrent::{LayerOp, coded_layer};
use crate::error::Result;
use crate::graph::{Builder, Graph, Kind, Node, Var};
use crate::op::{Op, Quant};
use crate::ops::cast::Widen;
use crate::ops::clip::Clip;
use crate::ops::lookup::LookupDequantize;
use crate::ops::quantize::{DequantizeLinear, QuantizeLinear};
use crate::ops::recurrent::{Recurrent, StateRange};
use crate::qconfig::Per;
use crate::qparams::QParams;
use crate::scheme::{Format, Granularity, Mapping, Scheme};
use crate::tensor::{DType, Tensor};

/// A quantized model.
#[derive(Clone, Debug)]
pub struct Converted {
    /// The Q/DQ graph.
    pub graph: Graph,
    /// What deserves attention.
    pub findings: Vec<Finding>,
}

impl Prepared {
    /// The Q/DQ graph: activations quantized and dequantized at their points,
    /// weights and biases stored as integers. Operators whose activations are
    /// quantized by the ranges of each run become ONNX's integer ones.
    ///
    /// An activation function that the quantization after it implies (ReLU
    /// before a range that starts at 0) disappears.
    ///
    /// # Errors
    /// If a point saw no value; the error names it.
    pub fn convert(&self) -> Result<Converted> {
        let form = |p: &Point| match p.role {
            Role::Activation => p.params().map(Grid::Steps),
            Role::Weight => p.grid(),
        };
        let forms = self.points.iter().map(|p| form(p).map_err(|e| e.at(&p.name)));
        let mut converting = Converting {
            prepared: self,
            grids: forms.collect::<Result<Vec<_>>>()?,
            operands: HashMap::new(),
            weights: HashMap::new(),
            zeros: ZeroPoints::default(),
            dynamic: Dynamic::default(),
            findings: vec![],
        };
        converting.find_constants()?;
        let graph = self.graph.rebuild(|b, v, node, inputs| converting.node(b, v, node, inputs))?;
        converting.findings.extend(own_operators(&graph));
        Ok(Converted { graph, findings: converting.findings })
    }
}

/// What of the graph only lowbit runs as it is written.
fn own_operators(graph: &Graph) -> impl Iterator<Item = Finding> {
    let mut count: BTreeMap<&str, usize> = BTreeMap::new();
    let own = graph.applied().filter(|(_, _, op, _)| op.domain() == "lowbit");
    own.for_each(|(_, _, op, _)| *count.entry(op.name()).or_default() += 1);
    count.into_iter().map(|(op, nodes)| Finding::new(op, Symptom::OwnOperator { nodes }))
}

struct Converting<'a> {
    prepared: &'a Prepared,
    grids: Vec<Grid>,
    /// Scale and zero point of each point, stored once.
    operands: HashMap<usize, [Var; 2]>,
    /// Dequantized weights by constant, scales and the point that chose their
    /// codes, if they are not the nearest ones, stored once.
    weights: HashMap<(Var, Vec<u32>, Option<usize>), Var>,
    zeros: ZeroPoints,
    dynamic: Dynamic,
    findings: Vec<Finding>,
}

impl Converting<'_> {
    fn find_constants(&mut self) -> Result<()> {
        // What the model itself holds is meant to be constant.
        let graph = &self.prepared.graph;
        let stored = |p: &Point| graph.find(&p.name).is_some_and(|v| graph.constant(v).is_some());
        let observed = |p: &&Point| p.role == Role::Activation && p.given.is_none();
        for p in self.prepared.points.iter().filter(observed) {
            let ranges = p.observer.ranges()?;
            let constants: Vec<_> = ranges.into_iter().filter(|r| r.lo == r.hi).collect();
            if !constants.is_empty() && !stored(p) {
                self.findings.extend(constants.iter().map(|r| Finding::constant(&p.name, r.lo)));
            }
        }
        Ok(())
    }

    fn node(&mut self, b: &mut Builder, v: Var, node: &Node, inputs: &[Var]) -> Result<Vec<Var>> {
        let Kind::Apply { op, inputs: old } = &node.kind else { return b.copy(node, inputs) };
        if let Some(point) = op.is::<PointOp>() {
            return match self.prepared.points[point.point].role {
                Role::Weight => Ok(inputs.to_vec()),
                Role::Activation => Ok(vec![self.activation(b, point, inputs[0])?]),
            };
        }
        if op.is::<DynamicOp>().is_some() || op.is::<LayerOp>().is_some() {
            return Ok(inputs.to_vec());
        }
        if let Some((mark, marked)) = old.first().and_then(|x| self.prepared.graph.made_by::<LayerOp>(*x)) {
            let points = self.points_of_layer(&**op, marked[0], v);
            return match points {
                Ok(points) => {
                    let steps = self.steps(b, points)?;
                    coded_layer(b, node, &**op, inputs, mark.weight_per, Some(steps))
                }
                Err(reason) => {
                    let nodes = vec![node.name.clone()];
                    let symptom = Symptom::InFloat { nodes, reason, share: None };
                    self.findings.push(Finding::new(&node.name, symptom));
                    b.copy(node, inputs)
                }
            };
        }
        let mut inputs = inputs.to_vec();
        let weighted = weight(&**op).and_then(|(w, axis)| {
            let (point, source) = old.get(w).and_then(|v| self.weight_point(*v))?;
            let bias = if let Quant::Compute { bias, .. } = op.quant() { bias } else { None };
            Some(Weighted { w, axis, bias, point, source })
        });
        let dynamic = old.first().and_then(|x| self.prepared.graph.made_by::<DynamicOp>(*x));
        if let Some((dynamic, _)) = dynamic {
            match dynamic.per {
                Per::Row => inputs[0] = self.dynamic.rows(b, inputs[0])?,
                _ if op.is::<Recurrent>().is_some() => {
                    return coded_layer(b, node, &**op, &inputs, dynamic.weight_per, None);
                }
                _ => {
                    let weight = weighted.map(|at| self.integer_weight(&at)).transpose()?.flatten();
                    return self.dynamic.integer_form(b, node, &**op, &inputs, weight);
                }
            }
        }
        if let Some(at) = weighted {
            self.weighted(b, node, &mut inputs, at)?;
        }
        b.copy(node, &inputs)
    }

    /// The points that give a recurrent layer the steps of its input and, where these
    /// do not lie in -1 to 1, of its states, or why there are none. `x` and `y` are
    /// its input and output in the prepared graph.
    fn points_of_layer(&self, op: &dyn Op, x: Var, y: Var) -> Result<(usize, Option<usize>), String> {
        let (graph, points) = (&self.prepared.graph, &self.prepared.points);
        let (x, _) = graph.made_by::<PointOp>(x).ok_or("its input is not quantized")?;
        let of_y = graph.applied().find_map(|(.., op, inputs)| {
            op.is::<PointOp>().filter(|_| inputs[0] == y).map(|point| point.point)
        });
        let h = match op.is::<Recurrent>().map_or(StateRange::Unknown, Recurrent::state_range) {
            StateRange::Unit => None,
            StateRange::OfResults => {
                Some(of_y.ok_or("its states have no known range, and Y is not quantized")?)
            }
            StateRange::Unknown => return Err("its reset states have no known range".into()),
        };
        for (operand, point) in [("input", Some(x.point)), ("output", h)] {
            let format = point.map(|point| points[point].scheme.format);
            if let Some(format) = format.filter(|f| !matches!(f.dtype(), DType::U8 | DType::I8)) {
                return Err(format!("its {operand} is quantized to {format}, not to 8 bits"));
            }
        }
        Ok((x.point, h))
    }

    /// Scales and zero points of the input and the states of a recurrent layer.
    fn steps(&mut self, b: &mut Builder, (x, h): (usize, Option<usize>)) -> Result<[Var; 4]> {
        let [x_scale, x_zero] = self.scale_and_zero(b, x)?;
        let [h_scale, h_zero] = match h {
            Some(point) => self.scale_and_zero(b, point)?,
            None => {
                let scale = b.constant("h_s", Tensor::scalar(1f32 / 127.0));
                [scale, self.zeros.stored(b, Tensor::scalar(128u8))]
            }
        };
        Ok([x_scale, x_zero, h_scale, h_zero])
    }

    /// Codes of a weight for an operator on integers.
    fn integer_weight(&mut self, at: &Weighted) -> Result<Option<IntegerWeight>> {
        let Some(weight) = self.prepared.graph.constant(at.source) else { return Ok(None) };
        let (point, grid) = (&self.prepared.points[at.point], &self.grids[at.point]);
        let params = grid.steps().map_err(|e| e.at(&point.name))?.clone();
        let rounded = point.rounded(weight, grid)?;
        let codes = params.quantize(rounded.as_ref().unwrap_or(weight))?;
        Ok(Some(IntegerWeight { name: point.name.clone(), codes, params }))
    }

    /// The weight point that makes `v` and the constant under it.
    fn weight_point(&self, v: Var) -> Option<(usize, Var)> {
        let (p, inputs) = self.prepared.graph.made_by::<PointOp>(v)?;
        (self.prepared.points[p.point].role == Role::Weight).then_some((p.point, inputs[0]))
    }

    fn activation(&mut self, b: &mut Builder, &PointOp { point, moved }: &PointOp, x: Var) -> Result<Var> {
        let name = b.name(x).to_string();
        let params = self.grids[point].steps()?;
        if let Some(t) = b.so_far().constant(x) {
            let codes = params.quantize(t)?;
            let codes = b.constant(&format!("{name}_q"), codes);
            let [scale, zero] = self.scale_and_zero(b, point)?;
            return b.apply(
                &format!("{name}_dq"),
                Arc::new(DequantizeLinear::default()),
                &[codes, scale, zero],
            );
        }
        let x = implied(b, params, x).unwrap_or(x);
        let x = if moved { x } else { clipped(b, params, x)? };
        let operands = self.scale_and_zero(b, point)?;
        quantized(b, &name, x, operands)
    }

    fn scale_and_zero(&mut self, b: &mut Builder, point: usize) -> Result<[Var; 2]> {
        let (params, name) = (self.grids[point].steps()?, &self.prepared.points[point].name);
        Ok(*self.operands.entry(point).or_insert_with(|| {
            let (scale, zero) = params.operands();
            [b.constant(&format!("{name}_s"), scale), self.zeros.stored(b, zero)]
        }))
    }

    fn weighted(&mut self, b: &mut Builder, node: &Node, inputs: &mut Vec<Var>, at: Weighted) -> Result<()> {
        let Some(weight) = self.prepared.graph.constant(at.source) else { return Ok(()) };
        let point = &self.prepared.points[at.point];
        let bias = at.bias.and_then(|i| IntegerBias::find(b, &node.name, inputs, i));
        let beside = bias.as_ref().map(|bias| (bias.x_scale, bias.values.as_deref()));
        let settled = Settled::new(point, self.grids[at.point].clone(), weight, at.axis, beside)?;
        if !settled.enlarged.is_empty() {
            let channels = settled.enlarged.clone();
            self.findings.push(Finding::new(&node.name, Symptom::BiasOverflow { channels }));
        }
        let values = settled.values.as_ref().unwrap_or(weight);
        inputs[at.w] = self
            .stored_weight(b, &at, values, settled.values.is_some(), &settled.grid)
            .map_err(|e| e.at(&point.name).at(&node.name))?;
        if let (Some(bias), Some(values)) = (bias, settled.bias) {
            let params = settled.grid.steps()?;
            let v = stored_bias(b, &bias.name, &Tensor::vector(values), bias.x_scale, params)?;
            match inputs.get_mut(bias.operand) {
                Some(input) => *input = v,
                None => inputs.push(v),
            }
        }
        Ok(())
    }

    /// The dequantized codes nearest to `values`, which are the weight or
    /// have been `chosen` in its place.
    fn stored_weight(
        &mut self,
        b: &mut Builder,
        at: &Weighted,
        values: &Tensor,
        chosen: bool,
        grid: &Grid,
    ) -> Result<Var> {
        let scales = grid.scale().iter().map(|s| s.to_bits()).collect();
        let key = (at.source, scales, chosen.then_some(at.point));
        if let Some(v) = self.weights.get(&key) {
            return Ok(*v);
        }
        let name = self.prepared.graph.value(at.source).name.clone();
        // A weight whose codes are chosen for several readers is stored for each.
        let copy = match self.weights.keys().filter(|(source, ..)| *source == at.source).count() {
            0 => String::new(),
            n => format!("_{n}"),
        };
        let part = |part: &str| format!("{name}_{part}{copy}");
        let v = dequantized(b, &mut self.zeros, part, grid.quantize(values)?, grid)?;
        self.weights.insert(key, v);
        Ok(v)
    }
}

/// The values of a weight's codes, in operators whose constants are named by `part`.
pub(crate) fn dequantized(
    b: &mut Builder,
    zeros: &mut ZeroPoints,
    part: impl Fn(&str) -> String,
    codes: Tensor,
    grid: &Grid,
) -> Result<Var> {
    let granularity = grid.scheme().granularity;
    let shape = granularity.groups(codes.shape())?.scale_shape().to_vec();
    let codes = b.constant(&part("q"), codes);
    if grid.scheme().format == Format::FP16 {
        return b.apply(&part("dq"), Arc::new(Widen), &[codes]);
    }
    let scale = b.constant(&part("s"), Tensor::new(&shape, grid.scale().to_vec())?);
    let (axis, block) = match granularity {
        Granularity::Tensor => (DequantizeLinear::default().axis, 0),
        Granularity::Axis(axis) => (axis as i64, 0),
        Granularity::Block { axis, size } => (axis as i64, size),
    };
    match grid {
        Grid::Lookup(book) => {
            let list = b.constant(&part("c"), book.operand());
            let op = LookupDequantize { axis, block };
            b.apply(&part("dq"), Arc::new(op), &[codes, list, scale])
        }
        Grid::Steps(params) => {
            // Zero points are written where they are 0 too: some runtimes take a
            // missing one as a scalar and refuse it beside scales per channel.
            let zero = zeros.stored(b, params.operands().1.reshaped(&shape)?);
            let op = DequantizeLinear { block, ..DequantizeLinear::along(axis) };
            b.apply(&part("dq"), Arc::new(op), &[codes, scale, zero])
        }
    }
}

/// A weight as it will be stored, and the bias beside it.
pub(crate) struct Settled {
    /// The steps, enlarged where the bias would not fit into i32.
    pub grid: Grid,
    /// What the nearest codes are taken of, where that is not the weight.
    pub values: Option<Tensor>,
    /// The bias, if there is one or has to be.
    pub bias: Option<Vec<f32>>,
    /// The channels whose steps were enlarged.
    pub enlarged: Vec<usize>,
}

impl Settled {
    /// `weight` with channels along `axis`, whose point this is, in steps of `grid`;
    /// `beside` is the scale of its operator's input, and the values of its bias, where
    /// the bias can be kept in i32.
    pub fn new(
        point: &Point,
        mut grid: Grid,
        weight: &Tensor,
        axis: usize,
        beside: Option<(f32, Option<&[f32]>)>,
    ) -> Result<Settled> {
        let mut enlarged = vec![];
        if let (Some((x_scale, Some(bias))), Grid::Steps(params)) = (beside, &mut grid) {
            enlarged = widen_for_bias(params, x_scale, bias);
        }
        let values = point.rounded(weight, &grid)?;
        let Some((_, bias)) = beside else { return Ok(Settled { grid, values, bias: None, enlarged }) };
        let lost = match &point.means {
            Some(means) => {
                let stored = grid.steps()?.fake_quantize(values.as_ref().unwrap_or(weight))?;
                means.correction(weight, &stored, axis)?
            }
            None => None,
        };
        let bias = match (bias, lost) {
            (Some(bias), Some(lost)) => Some(bias.iter().zip(lost).map(|(b, lost)| b + lost).collect()),
            (bias, lost) => bias.map(<[f32]>::to_vec).or(lost),
        };
        let settled = Settled { grid, values, bias, enlarged };
        match &point.regained {
            Some(lines) => settled.rescaled(weight, axis, lines),
            None => Ok(settled),
        }
    }

    /// The same codes, in steps and with a bias that make each channel lie on its line
    /// (docs/quantization.md, equation 39).
    fn rescaled(mut self, weight: &Tensor, axis: usize, lines: &[Line]) -> Result<Settled> {
        let Grid::Steps(params) = &mut self.grid else { return Ok(self) };
        if params.scale.len() != lines.len() {
            return Ok(self);
        }
        params.scale.iter_mut().zip(lines).for_each(|(scale, line)| *scale *= line.ratio);
        let values = self.values.as_ref().unwrap_or(weight);
        let inner: usize = values.shape()[axis + 1..].iter().product();
        let scaled = values.to_f32()?.into_iter().enumerate();
        let scaled = scaled.map(|(i, w)| w * lines[i / inner % lines.len()].ratio).collect();
        self.values = Some(Tensor::new(values.shape(), scaled)?);
        let bias = self.bias.unwrap_or_else(|| vec![0.0; lines.len()]);
        self.bias = Some(bias.iter().zip(lines).map(|(b, line)| b * line.ratio + line.shift).collect());
        Ok(self)
    }
}

/// Enlarges the scale of channels whose bias would not fit into i32
/// (docs/quantization.md, equation 5), and says which.
fn widen_for_bias(params: &mut QParams, x_scale: f32, bias: &[f32]) -> Vec<usize> {
    // Room for the accumulated products beside the bias.
    const MOST: f64 = (1u32 << 30) as f64;
    let channels = params.scale.len();
    let mut enlarged = vec![];
    for (c, b) in bias.iter().enumerate() {
        let scale = &mut params.scale[if channels == 1 { 0 } else { c }];
        let least = f64::from(b.abs()) / (f64::from(x_scale) * MOST);
        if f64::from(*scale) < least {
            *scale = least as f32;
            enlarged.push(c);
        }
    }
    enlarged
}

/// `x` quantized and dequantized, with this scale and zero point.
pub(crate) fn quantized(b: &mut Builder, name: &str, x: Var, [scale, zero]: [Var; 2]) -> Result<Var> {
    let q = b.apply(&format!("{name}_q"), Arc::new(QuantizeLinear::default()), &[x, scale, zero])?;
    b.apply(&format!("{name}_dq"), Arc::new(DequantizeLinear::default()), &[q, scale, zero])
}

/// The zero points that are stored, once for each type, shape and values.
#[derive(Default)]
pub(crate) struct ZeroPoints(HashMap<(DType, Vec<usize>, Vec<u8>), Var>);

impl ZeroPoints {
    pub fn stored(&mut self, b: &mut Builder, zero: Tensor) -> Var {
        let key = (zero.dtype(), zero.shape().to_vec(), zero.to_bytes());
        *self.0.entry(key).or_insert_with(|| b.constant("zp", zero))
    }
}

/// Where a node's weight and bias are.
struct Weighted {
    w: usize,
    axis: usize,
    bias: Option<usize>,
    point: usize,
    source: Var,
}

/// A bias that can be kept in i32: the operator's input has one scale, and the
/// bias is a constant with one value a channel, or not there yet.
pub(crate) struct IntegerBias {
    /// The input of the operator.
    pub operand: usize,
    /// The scale of the operator's first input.
    pub x_scale: f32,
    /// The bias's name.
    pub name: String,
    /// Its values, if it is there.
    pub values: Option<Vec<f32>>,
}

impl IntegerBias {
    /// The bias that is input `operand` of the node called `node`.
    pub fn find(b: &Builder, node: &str, inputs: &[Var], operand: usize) -> Option<IntegerBias> {
        let graph = b.so_far();
        let (_, quantized) = graph.made_by::<DequantizeLinear>(inputs[0])?;
        let x_scale = graph.constant(quantized[1])?.item::<f32>().ok()?;
        let Some(v) = inputs.get(operand).filter(|v| !graph.fact(**v).is_absent()) else {
            let name = format!("{node}.bias");
            return Some(IntegerBias { operand, x_scale, name, values: None });
        };
        let values = graph.constant(*v).filter(|t| t.rank() == 1)?.to_f32().ok()?;
        Some(IntegerBias { operand, x_scale, name: b.name(*v).to_string(), values: Some(values) })
    }
}

/// The bias in i32 at scale `s_x s_w[c]` (docs/quantization.md, equation 5), dequantized.
pub(crate) fn stored_bias(
    b: &mut Builder,
    name: &str,
    values: &Tensor,
    x_scale: f32,
    weight: &QParams,
) -> Result<Var> {
    let per_channel = weight.scale.len() > 1;
    let scheme = Scheme {
        format: Format::INT32,
        mapping: Mapping::Symmetric,
        granularity: if per_channel { Granularity::Axis(0) } else { Granularity::Tensor },
        codes: None,
    };
    let scale: Vec<f32> = weight.scale.iter().map(|s| x_scale * s).collect();
    let params = QParams { scheme, zero_point: vec![0; scale.len()], scale };
    let codes = b.constant(&format!("{name}_q"), params.quantize(values)?);
    let scale = b.constant(&format!("{name}_s"), params.operands().0);
    b.apply(&format!("{name}_dq"), Arc::new(DequantizeLinear::along(0)), &[codes, scale])
}

/// `x` within the reals of its codes, where their element type holds more.
fn clipped(b: &mut Builder, params: &QParams, x: Var) -> Result<Var> {
    let scheme = params.scheme.saturating();
    let (least, greatest) = scheme.bounds();
    let held = (i64::from(least), i64::from(greatest));
    if scheme.format.dtype().integer_range().is_none_or(|range| range == held) {
        return Ok(x);
    }
    let real = |q: i32| (q - params.zero_point[0]) as f32 * params.scale[0];
    let (lo, hi) = (real(least), real(greatest));
    let name = format!("{}_clip", b.name(x));
    let (operand, lo, hi) = match &b.so_far().node(x).kind {
        Kind::Apply { op, inputs } => match op.quant() {
            Quant::Clamp { lo: from, hi: to } => (inputs[0], lo.max(from), hi.min(to)),
            _ => (x, lo, hi),
        },
        _ => (x, lo, hi),
    };
    b.apply(&name, Arc::new(Clip::new(lo, hi)), &[operand])
}

/// The operand of the activation function that makes `x`, if quantizing it
/// gives the same codes: no code lies outside the function's range.
pub(crate) fn implied(b: &Builder, params: &QParams, x: Var) -> Option<Var> {
    let Kind::Apply { op, inputs } = &b.so_far().node(x).kind else { return None };
    let Quant::Clamp { lo, hi } = op.quant() else { return None };
    let (least, greatest) = params.scheme.bounds();
    let code = |x: f32| {
        let q = f64::from(x / params.scale[0]).round_ties_even() + f64::from(params.zero_point[0]);
        q.clamp(f64::from(i32::MIN), f64::from(i32::MAX)) as i32
    };
    let integers = !params.scheme.format.is_float();
    (integers && params.scheme.codes.is_none() && code(lo) <= least && code(hi) >= greatest)
        .then_some(inputs[0])
}
