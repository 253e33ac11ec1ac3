//! A model with a quantizer for the input and the weight of each layer.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;
use std::sync::Arc;

use globset::{Glob, GlobMatcher};

use super::calibrator::AmaxMethod;
use super::descriptor::{CalibMethod, QuantDescriptor, qconfig};
use super::layers::{LayerKind, QuantModules, QuantizerRule};
use super::quantizer::{State, TensorQuantizer, operands};
use crate::error::{Error, Result, invalid};
use crate::graph::{Graph, Kind, Node};
use crate::qconfig::{QConfigMapping, Target};
use crate::quantize::{Converted, Point, PointOp, Prepared, Progress, Role, fuse, prepare};
use crate::tensor::Tensor;
use crate::train::{BatchNorm, FakeQuantize, Qat, QatOptions, Ranges, StepGradient};

/// A float model whose layers have quantizers. Normalizations behind layers are folded
/// into them first.
///
/// The quantizers of a layer are called `LAYER._input_quantizer` and
/// `LAYER._weight_quantizer`. `LAYER` is the name of its weight without `.weight`, as
/// PyTorch names parameters, or else that of its node.
#[derive(Clone, Debug)]
pub struct QuantizedModel {
    modules: QuantModules,
    mapping: QConfigMapping,
    /// A point for each value that a layer reads, and for each weight.
    prepared: Prepared,
    places: Vec<Place>,
}

/// A quantizer, and the operand of a node that it is for.
#[derive(Clone, Debug)]
struct Place {
    name: String,
    node: String,
    operand: usize,
    quantizer: TensorQuantizer,
}

impl QuantizedModel {
    /// Quantizers in all layers of the types that `modules` has. They quantize, but
    /// those that rules disable; inputs need an amax before they can.
    ///
    /// # Errors
    /// If a descriptor is inconsistent, a rule matches no quantizer, there is no layer,
    /// or a weight is NaN; the error names it.
    pub fn new(graph: &Graph, modules: &QuantModules) -> Result<QuantizedModel> {
        let graph = fuse(graph)?;
        let (mut mapping, mut places) = (QConfigMapping::default(), vec![]);
        let mut rules = Rules::new(&modules.rules)?;
        for Layer { name, node, kind, weight } in layers(&graph) {
            let Some(standard) = modules.layers.get(&kind) else { continue };
            let mut place = |part: &str, operand: usize, standard: &QuantDescriptor, axis: Option<usize>| {
                let name = format!("{name}._{part}_quantizer");
                let (mut descriptor, enabled) = rules.of(&name, standard);
                descriptor.axis = descriptor.axis.map(|given| axis.unwrap_or(given));
                let mut quantizer = TensorQuantizer::new(descriptor).map_err(|e| e.at(&name))?;
                if !enabled {
                    quantizer.disable();
                }
                Ok::<_, Error>(Place { name, node: node.name.clone(), operand, quantizer })
            };
            let input = place("input", 0, &standard.input, None)?;
            let mut config = qconfig(input.quantizer.descriptor(), &QuantDescriptor::default())
                .map_err(|e| e.at(&input.name))?;
            places.push(input);
            if let Some((operand, axis)) = weight {
                let weight = place("weight", operand, &standard.weight, Some(axis))?;
                // Values that are given come with the quantizer.
                let free = QuantDescriptor { amax: None, ..weight.quantizer.descriptor().clone() };
                config.weight = free.spec().map_err(|e| e.at(&weight.name))?;
                places.push(weight);
            }
            mapping = mapping.with(Target::name(&globset::escape(&node.name))?, Some(config));
        }
        rules.check()?;
        let prepared = prepare(&graph, &mapping)?;
        let points = points_read(&prepared);
        places.retain(|place| points.contains_key(&(place.node.as_str(), place.operand)));
        if places.is_empty() {
            return Err(invalid!("the model has no layer of the types that are quantized"));
        }
        Ok(QuantizedModel { modules: modules.clone(), mapping, prepared, places })
    }

    /// The rules that place the quantizers' points, for
    /// [`prepare`](crate::quantize::prepare) of the [fused](fuse) model, or a file.
    pub fn mapping(&self) -> &QConfigMapping {
        &self.mapping
    }

    /// The quantizers by name, in the order of the layers.
    pub fn quantizers(&self) -> impl Iterator<Item = (&str, &TensorQuantizer)> {
        self.places.iter().map(|place| (place.name.as_str(), &place.quantizer))
    }

    /// The quantizer called `name`.
    ///
    /// # Errors
    /// If there is none.
    pub fn quantizer(&mut self, name: &str) -> Result<&mut TensorQuantizer> {
        let place = self.places.iter_mut().find(|place| place.name == name);
        place.map(|place| &mut place.quantizer).ok_or_else(|| invalid!("the model has no quantizer {name:?}"))
    }

    /// Calls `f` with the quantizers whose names match a glob
    /// (`layer4.*._input_quantizer`).
    ///
    /// # Errors
    /// If none matches, or the glob is malformed.
    pub fn set(&mut self, glob: &str, mut f: impl FnMut(&mut TensorQuantizer)) -> Result<()> {
        let matcher = matcher(glob)?;
        let mut matched = false;
        for place in self.places.iter_mut().filter(|place| matcher.is_match(&place.name)) {
            matched = true;
            f(&mut place.quantizer);
        }
        if !matched {
            return Err(invalid!("{glob:?} matches no quantizer of the model"));
        }
        Ok(())
    }

    /// Runs the float model on `batches`, and shows its values to the quantizers that are
    /// [calibrating](State::Calibrating).
    ///
    /// # Errors
    /// If none is calibrating, there is no batch or one does not fit the model, a value is
    /// not finite (the error names it), or `progress` stops it.
    pub fn collect(
        &mut self,
        batches: impl Iterator<Item = Result<Vec<Tensor>>> + Send,
        progress: &Progress,
    ) -> Result<()> {
        if !self.places.iter().any(|place| place.quantizer.state() == State::Calibrating) {
            return Err(invalid!("no quantizer is calibrating: enable_calib first"));
        }
        for place in &mut self.places {
            let Some(weight) = weight(&self.prepared, place) else { continue };
            if place.quantizer.state() == State::Calibrating && place.quantizer.calibrator().is_empty() {
                place.quantizer.forward(weight).map_err(|e| e.at(&place.name))?;
            }
        }
        let mut watching = self.pointed(|quantizer, point| {
            let calibrating = quantizer.state() == State::Calibrating && point.role == Role::Activation;
            Ok(calibrating.then(|| {
                let (mut point, observer) = (point.clone(), &quantizer.calibrator().observer);
                (point.scheme, point.observer) = (*observer.scheme(), observer.clone());
                point
            }))
        })?;
        if watching.points().is_empty() {
            return Ok(());
        }
        watching.calibrate(batches, progress)?;
        let points = points_read(&watching);
        for place in &mut self.places {
            if let Some(point) = points.get(&(place.node.as_str(), place.operand)) {
                place.quantizer.calibrator_mut().observer = watching.points()[*point].observer.clone();
            }
        }
        Ok(())
    }

    /// Loads the amax of every quantizer that collected values: the largest magnitude for
    /// [`CalibMethod::Max`], what `method` finds for histograms.
    ///
    /// # Errors
    /// If none collected, or a calibrator saw nothing; the error names it.
    pub fn load_calib_amax(&mut self, method: AmaxMethod) -> Result<()> {
        let mut loaded = false;
        for Place { name, quantizer, .. } in &mut self.places {
            if quantizer.state() == State::Calibrating || !quantizer.calibrator().is_empty() {
                let max = quantizer.descriptor().calib_method == CalibMethod::Max;
                let method = if max { AmaxMethod::Max } else { method };
                quantizer.load_calib_amax(method).map_err(|e| e.at(name.as_str()))?;
                loaded = true;
            }
        }
        if !loaded {
            return Err(invalid!("no quantizer collected values: enable_calib and collect first"));
        }
        Ok(())
    }

    /// Calibrates all quantizers but those that are disabled, and lets them quantize.
    ///
    /// # Errors
    /// Those of [`QuantizedModel::collect`] and [`QuantizedModel::load_calib_amax`].
    pub fn calibrate(
        &mut self,
        batches: impl Iterator<Item = Result<Vec<Tensor>>> + Send,
        method: AmaxMethod,
        progress: &Progress,
    ) -> Result<()> {
        let enabled = |place: &&mut Place| place.quantizer.state() != State::Disabled;
        self.places.iter_mut().filter(enabled).for_each(|place| place.quantizer.enable_calib());
        self.collect(batches, progress)?;
        self.load_calib_amax(method)?;
        self.places.iter_mut().filter(enabled).for_each(|place| place.quantizer.enable_quant());
        Ok(())
    }

    /// The model with a point wherever a quantizer quantizes, whose scale is that of its
    /// amax. Weights whose amax is not known have the range that they have.
    ///
    /// # Errors
    /// If the amax of an input is not known; the error names the quantizer.
    pub fn prepared(&self) -> Result<Prepared> {
        self.pointed(|quantizer, point| {
            if !quantizer.is_quantizing() {
                return Ok(None);
            }
            let mut point = point.clone();
            if point.role == Role::Activation || quantizer.amax().is_some() {
                let params = quantizer.params()?;
                (point.scheme, point.held) = (params.scheme, !quantizer.descriptor().learn_amax);
                point.given = Some(params);
            }
            Ok(Some(point))
        })
    }

    /// The model that computes in float what the quantized one computes: quantizers that
    /// quantize give what codes stand for, whether
    /// [`fake_quant`](QuantDescriptor::fake_quant) or not.
    ///
    /// # Errors
    /// Those of [`QuantizedModel::prepared`].
    pub fn fake_quantized(&self) -> Result<Graph> {
        fake_quantized(&self.prepared()?)
    }

    /// The training of the model: amax moves where it is
    /// [learned](QuantDescriptor::learn_amax), by the gradient of a clipping bound, and
    /// stays elsewhere; weights whose amax is not known have the range that they have.
    /// `float` is the graph that the model was made of.
    ///
    /// # Errors
    /// Those of [`QuantizedModel::prepared`] and [`Qat::new`].
    pub fn qat(&self, float: &Graph, batch_norm: BatchNorm) -> Result<Qat> {
        let options = QatOptions { ranges: Ranges::Clipped, batch_norm, ..QatOptions::default() };
        Qat::new(self.prepared()?, float, options)
    }

    /// The model with the weights, and the learned amax, of its training `qat`.
    ///
    /// # Errors
    /// If `qat` is the training of another model.
    pub fn trained(&self, qat: &Qat) -> Result<QuantizedModel> {
        let mut model = QuantizedModel::new(&qat.float()?, &self.modules)?;
        model.restore(
            self.places.iter().map(|place| (place.name.clone(), place.quantizer.clone())).collect(),
        )?;
        let trained = qat.trained()?;
        let points = points_read(&trained);
        for place in model.places.iter_mut().filter(|place| place.quantizer.descriptor().learn_amax) {
            let point =
                points.get(&(place.node.as_str(), place.operand)).map(|point| &trained.points()[*point]);
            if let Some(params) = point.and_then(|point| point.given.as_ref()) {
                let bound = place.quantizer.descriptor().bound();
                place.quantizer.set_amax(params.scale.iter().map(|s| s * bound).collect())?;
            }
        }
        Ok(model)
    }

    /// The Q/DQ graph, as [`Prepared::convert`] makes it.
    ///
    /// # Errors
    /// Those of [`QuantizedModel::prepared`].
    pub fn convert(&self) -> Result<Converted> {
        self.prepared()?.convert()
    }

    /// Writes the quantizers with all their state as JSON.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let quantizers: BTreeMap<&str, &TensorQuantizer> = self.quantizers().collect();
        let text = serde_json::to_string(&quantizers).map_err(|e| invalid!("{e}"))?;
        fs::write(path, text).map_err(|e| Error::io(path, e))
    }

    /// Reads the quantizers' state from a file that [`QuantizedModel::save`] wrote.
    ///
    /// # Errors
    /// If the file is malformed, or has not the quantizers of this model; the error names one.
    pub fn load(&mut self, path: &Path) -> Result<()> {
        let text = fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        let quantizers =
            serde_json::from_str(&text).map_err(|e| invalid!("{e}").at(path.display().to_string()))?;
        self.restore(quantizers).map_err(|e| e.at(path.display().to_string()))
    }

    fn restore(&mut self, mut quantizers: BTreeMap<String, TensorQuantizer>) -> Result<()> {
        let mut places = self.places.clone();
        for place in &mut places {
            let saved = quantizers.remove(&place.name);
            place.quantizer = saved.ok_or_else(|| invalid!("the quantizer {} is missing", place.name))?;
        }
        if let Some(name) = quantizers.keys().next() {
            return Err(invalid!("the model has no quantizer {name:?}"));
        }
        self.places = places;
        Ok(())
    }

    /// The model with the points that `choose` makes of those of the quantizers.
    fn pointed(
        &self,
        choose: impl Fn(&TensorQuantizer, &Point) -> Result<Option<Point>>,
    ) -> Result<Prepared> {
        let places: HashMap<(&str, usize), &Place> =
            self.places.iter().map(|place| ((place.node.as_str(), place.operand), place)).collect();
        self.prepared.with_points(|node, operand, point| {
            let Some(place) = places.get(&(node.name.as_str(), operand)) else { return Ok(None) };
            choose(&place.quantizer, point).map_err(|e| e.at(&place.name))
        })
    }
}

/// The model in which points give what codes stand for.
fn fake_quantized(prepared: &Prepared) -> Result<Graph> {
    prepared.graph().rebuild(|b, _, node, inputs| {
        let Kind::Apply { op, .. } = &node.kind else { return b.copy(node, inputs) };
        let Some(PointOp { point, .. }) = op.is() else { return b.copy(node, inputs) };
        let point = &prepared.points()[*point];
        let (params, name) = (point.params()?, &node.outputs[0].name);
        if let Some(weight) = b.so_far().constant(inputs[0]) {
            let values = params.fake_quantize(weight).map_err(|e| e.at(&point.name))?;
            return Ok(vec![b.constant(name, values)]);
        }
        let [scale, zero] = operands(&params);
        let scale = b.constant(&format!("{name}_scale"), scale);
        let zero = b.constant(&format!("{name}_zero"), zero);
        let op = FakeQuantize { scheme: point.scheme.saturating(), by_scale: StepGradient::None };
        Ok(vec![b.apply(name, Arc::new(op), &[inputs[0], scale, zero])?])
    })
}

/// The point that each operand of a node reads.
fn points_read(prepared: &Prepared) -> HashMap<(&str, usize), usize> {
    let graph = prepared.graph();
    let operands = graph.applied().flat_map(|(_, node, _, inputs)| {
        inputs.iter().enumerate().map(move |(i, v)| ((node.name.as_str(), i), *v))
    });
    operands.filter_map(|(at, v)| Some((at, graph.made_by::<PointOp>(v)?.0.point))).collect()
}

/// The weight that a quantizer is for.
fn weight<'a>(prepared: &'a Prepared, place: &Place) -> Option<&'a Tensor> {
    let graph = prepared.graph();
    let (.., inputs) = graph.applied().find(|(_, node, ..)| node.name == place.node)?;
    let (_, values) = graph.made_by::<PointOp>(*inputs.get(place.operand)?)?;
    graph.constant(values[0])
}

/// A layer, with the operand and the channel axis of its weight.
struct Layer<'a> {
    name: String,
    node: &'a Node,
    kind: LayerKind,
    weight: Option<(usize, usize)>,
}

/// The layers of a graph, each with a name of its own.
fn layers(graph: &Graph) -> Vec<Layer<'_>> {
    let mut layers: Vec<Layer<'_>> = vec![];
    let mut taken: HashMap<String, usize> = HashMap::new();
    for (_, node, op, inputs) in graph.applied() {
        let Some((kind, weight)) = LayerKind::of(graph, &**op, inputs) else { continue };
        let parameter = weight.map(|(w, _)| graph.value(inputs[w]).name.as_str());
        let name = parameter.and_then(|name| name.strip_suffix(".weight")).unwrap_or(&node.name).to_string();
        *taken.entry(name.clone()).or_default() += 1;
        layers.push(Layer { name, node, kind, weight });
    }
    for layer in layers.iter_mut().filter(|layer| taken[&layer.name] > 1) {
        layer.name.clone_from(&layer.node.name);
    }
    layers
}

/// The rules, and whether each matched a quantizer.
struct Rules<'a>(Vec<(GlobMatcher, &'a QuantizerRule, bool)>);

impl<'a> Rules<'a> {
    fn new(rules: &'a [QuantizerRule]) -> Result<Rules<'a>> {
        let compiled = |rule: &'a QuantizerRule| Ok((matcher(&rule.quantizer)?, rule, false));
        Ok(Rules(rules.iter().map(compiled).collect::<Result<_>>()?))
    }

    /// The descriptor of a quantizer, and whether it is enabled.
    fn of(&mut self, name: &str, standard: &QuantDescriptor) -> (QuantDescriptor, bool) {
        let mut found = (standard.clone(), true);
        for (_, rule, matched) in self.0.iter_mut().filter(|(glob, ..)| glob.is_match(name)) {
            *matched = true;
            found = rule.descriptor.clone().map_or_else(|| (standard.clone(), false), |d| (d, true));
        }
        found
    }

    fn check(&self) -> Result<()> {
        let unused = self.0.iter().find(|(.., matched)| !matched);
        unused.map_or(Ok(()), |(_, rule, _)| {
            Err(invalid!("{:?} matches no quantizer of the model", rule.quantizer))
        })
    }
}

fn matcher(glob: &str) -> Result<GlobMatcher> {
    Ok(Glob::new(glob).map_err(|e| invalid!("{glob:?}: {e}"))?.compile_matcher())
}

#[cfg(test)]
mod tests;
