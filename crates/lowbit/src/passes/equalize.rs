//! Channels of alike range: what divides a channel where it is made and
//! multiplies it where it is read changes nothing in float.

mod channels;
mod cross_layer;
mod scales;

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

pub use scales::ChannelScales;

use self::channels::{Channels, input_channels};
use crate::error::{Result, invalid};
use crate::graph::{Builder, Graph, Kind, Node, Var};
use crate::qconfig::QConfigMapping;
use crate::qparams::Range;
use crate::quantize::{Progress, lock, run_all, threads};
use crate::tensor::{DType, Tensor};

/// Makes the channels of quantized values alike in range (docs/quantization.md,
/// equation 18), so that the one scale of an activation serves them all, and those of
/// weights (equation 35), so that the one scale of a weight does.
///
/// Channel `k` of a convolution's or Gemm's output is divided by `s_k` (its
/// weights and its bias are), and the weights of all convolutions and Gemms
/// that read it are multiplied by `s_k`:
///
/// `s_k = (r_k / max_j r_j)^a`, within 2^-6..1 and rounded to powers of
/// 2^(1/8), where `r_k` is the greatest magnitude that the readers see in
/// `batches` and `a` is the readers' [`crate::qconfig::Spec::equalize`].
/// The float function stays the same, but for rounding.
///
/// Where maker and readers ask for [`crate::qconfig::Spec::cross_layer`], which is for
/// weights with one scale, `s_k = sqrt(r1_k / r2_k)` instead, within 2^-20..2^20, where
/// `r1_k` and `r2_k` are the greatest magnitudes of the weights that make and that read
/// the channel (Nagel et al., "Data-Free Quantization", 2019).
///
/// Between maker and readers may stand what commutes with the division:
/// Relu, LeakyRelu, pooling, Flatten, Reshape to a matrix, Concat along the
/// channels, and Clip to a range that holds 0. A Clip stays as it is: `s_k` is such that
/// it cuts nothing off that it did not cut off before in `batches`, and 1 where it
/// does cut off something, or without batches. Channels that anything else reads (Add, the
/// caller), or whose maker has one scale for all its weights and does not ask, stay as they are.
///
/// `graph` is a fused one; values keep their names, and the scales by which they
/// now differ are kept in the metadata ([`ChannelScales`]). `batches` is not read if
/// no node asks for equalization, or for that of weights alone with no Clip between.
///
/// # Errors
/// If the graph is equalized already, a rule of `mapping` cannot be honoured,
/// values are to be made alike and there is no batch, one does not fit the model, a value is
/// not finite (the error names it), or `progress` stops it.
pub fn equalize(
    graph: &Graph,
    mapping: &QConfigMapping,
    batches: impl Iterator<Item = Result<Vec<Tensor>>> + Send,
    progress: &Progress,
) -> Result<Graph> {
    if !ChannelScales::of(graph)?.is_empty() {
        return Err(invalid!("the model is equalized already"));
    }
    let channels = Channels::new(graph, mapping)?;
    if channels.is_idle() {
        return Ok(graph.clone());
    }
    let seen = observe(graph, &channels, batches, progress)?;
    let mut exponents = channels.exponents(&seen);
    cross_layer::balance(graph, &channels, &seen.least, &mut exponents);
    let mut equalized =
        graph.rebuild(|b, v, node, inputs| rescaled(graph, &channels, &exponents, b, v, node, inputs))?;
    let mut scales = ChannelScales::default();
    for (v, ids) in &channels.of {
        scales.insert(&graph.value(*v).name, ids.iter().map(|c| exponents[*c]).collect());
    }
    scales.store(&mut equalized)?;
    Ok(equalized)
}

/// What data says of each channel.
#[derive(Clone)]
pub struct Seen {
    /// The greatest magnitude where it is read.
    pub ranges: Vec<f32>,
    /// The least scale for which a Clip on its way cuts nothing off that it did not cut off
    /// before; infinite, if that is 1 alone.
    pub least: Vec<f32>,
}

/// What `batches` say of the channels that are to be scaled; they are not read if that
/// does not matter.
fn observe(
    graph: &Graph,
    channels: &Channels,
    batches: impl Iterator<Item = Result<Vec<Tensor>>> + Send,
    progress: &Progress,
) -> Result<Seen> {
    let nothing = Seen { ranges: vec![0.0; channels.count], least: vec![0.0; channels.count] };
    if channels.read.is_empty() && channels.clipped.is_empty() {
        return Ok(nothing);
    }
    let seen: Mutex<Option<Seen>> = Mutex::new(None);
    let see = |_, v: Var, value: &Tensor| {
        if matches!(graph.node(v).kind, Kind::Input) && value.dtype() == DType::F32 {
            // What is wrong with the data is said of the data.
            greatest(value, 1).map_err(|e| e.at(&graph.value(v).name))?;
        }
        let Some(ids) = channels.of.get(&v) else { return Ok(()) };
        if channels.read.contains(&v) {
            let most = greatest(value, ids.len()).map_err(|e| e.at(&graph.value(v).name))?;
            let mut seen = lock(&seen);
            let ranges = &mut seen.get_or_insert_with(|| nothing.clone()).ranges;
            ids.iter().zip(most).for_each(|(c, most)| ranges[*c] = ranges[*c].max(most));
        }
        for (_, bounds) in channels.clipped.iter().filter(|(clipped, _)| *clipped == v) {
            let least = least_scales(value, ids.len(), *bounds)?;
            let mut seen = lock(&seen);
            let bounds = &mut seen.get_or_insert_with(|| nothing.clone()).least;
            ids.iter().zip(least).for_each(|(c, least)| bounds[*c] = bounds[*c].max(least));
        }
        Ok(())
    };
    let clipped: HashSet<Var> = channels.clipped.iter().map(|(v, _)| *v).collect();
    let watched = |v: Var| {
        matches!(graph.node(v).kind, Kind::Input) || channels.read.contains(&v) || clipped.contains(&v)
    };
    run_all(threads(), graph, batches, progress, watched, see, || ())?;
    if let Some(seen) = seen.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Ok(seen);
    }
    if !channels.read.is_empty() {
        return Err(invalid!("the calibration data is empty: give at least one sample"));
    }
    let mut unknown = nothing;
    for (v, _) in &channels.clipped {
        channels.of[v].iter().for_each(|c| unknown.least[*c] = f32::INFINITY);
    }
    Ok(unknown)
}

/// For each of the `channels` of a value that is clipped, the least scale by which it can
/// be divided; infinite, if that is 1 alone, as some of it is cut off.
fn least_scales(value: &Tensor, channels: usize, bounds: Range) -> Result<Vec<f32>> {
    let mut least = vec![0f32; channels];
    let inner: usize = value.shape().iter().skip(2).product();
    // What is cut off at 0 is so at every scale.
    let share = |x: f32, end: f32| if end == 0.0 { 0.0 } else { x / end };
    for (i, run) in value.slice::<f32>()?.chunks(inner.max(1)).enumerate() {
        let (lo, hi) = run.iter().fold((0f32, 0f32), |(lo, hi), x| (lo.min(*x), hi.max(*x)));
        let needed = share(lo, bounds.lo).max(share(hi, bounds.hi));
        let least = &mut least[i % channels];
        *least = least.max(if needed > 1.0 { f32::INFINITY } else { needed });
    }
    Ok(least)
}

/// The greatest magnitude of each of the `channels` of axis 1.
fn greatest(value: &Tensor, channels: usize) -> Result<Vec<f32>> {
    let mut greatest = vec![0f32; channels];
    let inner: usize = value.shape().iter().skip(2).product();
    for (i, run) in value.slice::<f32>()?.chunks(inner.max(1)).enumerate() {
        // f32::max would drop NaN.
        let most = run.iter().fold(0f32, |most, x| if x.abs() <= most { most } else { x.abs() });
        if !most.is_finite() {
            return Err(invalid!("holds {most}"));
        }
        greatest[i % channels] = greatest[i % channels].max(most);
    }
    Ok(greatest)
}

/// `node` with its weight and bias rescaled.
fn rescaled(
    graph: &Graph,
    channels: &Channels,
    exponents: &[i16],
    b: &mut Builder,
    v: Var,
    node: &Node,
    inputs: &[Var],
) -> Result<Vec<Var>> {
    let Kind::Apply { op, inputs: old } = &node.kind else { return b.copy(node, inputs) };
    let scales = |v: &Var| -> Option<Vec<f32>> {
        let ids = channels.of.get(v)?;
        let scales = ids.iter().map(|c| scales::factor(exponents[*c])).collect::<Vec<_>>();
        scales.iter().any(|s| *s != 1.0).then_some(scales)
    };
    let made = scales(&v).filter(|_| channels.made.contains(&v));
    let read = scales(&old[0]).filter(|_| old.len() > 1 && channels.is_linear(graph, &**op, old));
    if made.is_none() && read.is_none() {
        return b.copy(node, inputs);
    }
    let mut inputs = inputs.to_vec();
    let weight = graph.constant(old[1]).ok_or_else(|| invalid!("has no constant weight").at(&node.name))?;
    let mut values = weight.to_f32()?;
    let place = input_channels(&**op, weight.shape());
    for (i, w) in values.iter_mut().enumerate() {
        let (output, input) = place(i);
        let factor = read.as_ref().map_or(1.0, |s| s[input]) / made.as_ref().map_or(1.0, |s| s[output]);
        *w *= factor;
    }
    inputs[1] = b.constant(&graph.value(old[1]).name, Tensor::new(weight.shape(), values)?);
    if let Some(made) = &made
        && let Some(bias) = old.get(2).and_then(|v| graph.constant(*v)).filter(|t| !t.is_empty())
    {
        let values: Vec<f32> = bias.to_f32()?.iter().zip(made).map(|(b, s)| b / s).collect();
        inputs[2] = b.constant(&graph.value(old[2]).name, Tensor::vector(values));
    }
    b.copy(node, &inputs)
}

#[cfg(test)]
mod tests;
