//! What quantization makes of weights: the float ones against those that are stored.

use std::collections::HashMap;

use serde::Serialize;

use super::compare::Verdict;
use crate::error::{Result, invalid};
use crate::graph::{Graph, Kind, Var};
use crate::passes::ChannelScales;
use crate::quantize::weight;
use crate::tensor::Tensor;

/// How much a weight `w` of the float model differs from the stored one, `v`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WeightError {
    /// The node that multiplies with it.
    pub node: String,
    /// The node's operator.
    pub op: String,
    /// The float weight's shape.
    pub shape: Vec<usize>,
    /// `10 log10(sum w^2 / sum (w - v)^2)` in dB: infinite if they are equal (JSON: null).
    pub sqnr_db: f64,
    /// `sum (w - v)^2 / n`.
    pub mse: f64,
    /// `max |w - v|`.
    pub max_abs: f64,
    /// What the SQNR means.
    pub verdict: Verdict,
    /// The SQNR of each output channel, in dB; infinite (JSON: null) where nothing is lost.
    pub channels_db: Vec<f64>,
}

impl WeightError {
    /// The `k` output channels of least SQNR, the least first, each with its SQNR.
    pub fn worst_channels(&self, k: usize) -> Vec<(usize, f64)> {
        let mut channels: Vec<(usize, f64)> = self.channels_db.iter().copied().enumerate().collect();
        channels.sort_by(|a, b| a.1.total_cmp(&b.1));
        channels.truncate(k);
        channels
    }
}

/// The quantized weights of a model against those of the float model that it was made of,
/// paired by the name of the node that multiplies with them, in evaluation order. `float` is
/// the model that was prepared, with what is fused into weights ([`crate::quantize::fuse`]).
///
/// Weights of integer operators, which are no reals that are read somewhere, are left out.
///
/// # Errors
/// If a weight's shapes differ, or channels of the quantized model were equalized, so that
/// its weights are not those of the float model.
pub fn weights(float: &Graph, quantized: &Graph) -> Result<Vec<WeightError>> {
    same_channels(float, quantized)?;
    let by_name = by_node(float);
    let mut errors = vec![];
    for (_, node, op, inputs) in quantized.applied() {
        let Some((w, axis)) = weight(&**op) else { continue };
        let Some(stored) = inputs.get(w).map(|v| stored(quantized, *v)).transpose()?.flatten() else {
            continue;
        };
        // Names that are not unique name nothing.
        let Some([wanted]) = by_name.get(node.name.as_str()).map(Vec::as_slice) else { continue };
        errors.push(error((&node.name, op.name()), wanted, &stored, axis).map_err(|e| e.at(&node.name))?);
    }
    Ok(errors)
}

/// That the channels of both models have the same scales.
pub(super) fn same_channels(float: &Graph, quantized: &Graph) -> Result<()> {
    if ChannelScales::of(quantized)? == ChannelScales::of(float)? {
        return Ok(());
    }
    Err(invalid!(
        "the quantized model was equalized: its weights are not those of the float model times a scale; \
         quantize without equalization to compare them"
    ))
}

/// The constant weights by the names of the nodes that multiply with them.
pub(super) fn by_node(float: &Graph) -> HashMap<&str, Vec<&Tensor>> {
    let mut by_name: HashMap<&str, Vec<&Tensor>> = HashMap::new();
    for (_, node, op, inputs) in float.applied() {
        let constant = weight(&**op).and_then(|(w, _)| float.constant(*inputs.get(w)?));
        by_name.entry(&node.name).or_default().extend(constant);
    }
    by_name
}

/// The reals of codes that are constants.
fn stored(graph: &Graph, v: Var) -> Result<Option<Tensor>> {
    let Kind::Apply { op, inputs } = &graph.node(v).kind else { return Ok(None) };
    let operands: Option<Vec<&Tensor>> = inputs.iter().map(|v| graph.constant(*v)).collect();
    let Some(operands) = operands else { return Ok(None) };
    Ok(op.eval(&operands).map_err(|e| e.at(&graph.node(v).name))?.into_iter().next())
}

fn error((node, op): (&str, &str), w: &Tensor, v: &Tensor, axis: usize) -> Result<WeightError> {
    if w.shape() != v.shape() || axis >= w.rank() {
        return Err(invalid!(
            "its weight has shape {:?} in the float model and {:?} in the quantized one: they are not the same \
             model",
            w.shape(),
            v.shape()
        ));
    }
    let inner: usize = w.shape()[axis + 1..].iter().product();
    let count = w.shape()[axis];
    let mut channels = vec![(0f64, 0f64); count];
    let mut max_abs = 0f64;
    for (i, (w, v)) in w.to_f32()?.into_iter().zip(v.to_f32()?).enumerate() {
        let (w, v) = (f64::from(w), f64::from(v));
        let (power, noise) = &mut channels[i / inner % count];
        *power += w * w;
        *noise += (w - v).powi(2);
        max_abs = max_abs.max((w - v).abs());
    }
    let sqnr = |(power, noise): (f64, f64)| match noise {
        0.0 => f64::INFINITY,
        noise => 10.0 * (power / noise).log10(),
    };
    let (power, noise) = channels.iter().fold((0.0, 0.0), |(p, n), (power, noise)| (p + power, n + noise));
    let sqnr_db = sqnr((power, noise));
    Ok(WeightError {
        node: node.into(),
        op: op.into(),
        shape: w.shape().to_vec(),
        sqnr_db,
        mse: noise / w.len().max(1) as f64,
        max_abs,
        verdict: Verdict::of(sqnr_db),
        channels_db: channels.into_iter().map(sqnr).collect(),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::graph::Builder;
    use crate::observer::ObserverConfig;
    use crate::op::{Dim, Fact};
    use crate::ops::linear::Gemm;
    use crate::qconfig::{Per, QConfigMapping, preset};
    use crate::quantize::prepare;
    use crate::tensor::DType;

    fn model(w: &[f32; 6]) -> Graph {
        let mut b = Builder::default();
        let x = b.input("x", Fact::new(DType::F32, [Dim::Named("N".into()), Dim::Known(2)]));
        let w = b.constant("w", Tensor::new(&[2, 3], w.to_vec()).unwrap());
        let y = b.apply("y", Arc::new(Gemm::default()), &[x, w]).unwrap();
        b.finish([("y".to_string(), y)]).unwrap()
    }

    fn quantized(float: &Graph, per: Per) -> Graph {
        let mut q = preset("weight-only").unwrap();
        q.weight = q.weight.per(per).observed_by(ObserverConfig::MinMax);
        prepare(float, &QConfigMapping::global(q)).unwrap().convert().unwrap().graph
    }

    #[test]
    fn the_channel_that_one_scale_is_too_coarse_for_is_worst() {
        // The second column is too small for the steps of the first.
        let float = model(&[100.0, 0.1, 60.0, -80.0, 0.2, 50.0]);
        let one = weights(&float, &quantized(&float, Per::Tensor)).unwrap();
        let [e] = one.as_slice() else { panic!("{one:?}") };
        assert_eq!((e.node.as_str(), e.op.as_str(), &e.shape[..]), ("y", "Gemm", &[2, 3][..]));
        assert_eq!((e.channels_db.len(), e.verdict), (3, Verdict::Good), "{e:?}");
        let worst = e.worst_channels(2);
        assert_eq!((worst[0].0, worst.len()), (1, 2), "{e:?}");
        assert!(worst[0].1.abs() < 1e-9 && worst[1].1 > 30.0, "{e:?}");
        let each = weights(&float, &quantized(&float, Per::Channel)).unwrap();
        assert!(each[0].channels_db.iter().all(|db| *db > 30.0), "{each:?}");
        let step = f64::from(100f32 / 127.0);
        assert!(e.max_abs <= step && e.mse <= step * step / 4.0, "{e:?}");
    }

    #[test]
    fn it_is_about_the_same_model_and_quantized_weights() {
        let float = model(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(weights(&float, &float).unwrap(), []);
        let mut other = quantized(&float, Per::Channel);
        let record = "[[channels]]\nvalues = ['x']\nscales = '#$'";
        other.metadata.insert("lowbit.equalized".into(), record.into());
        let error = weights(&float, &other).unwrap_err().to_string();
        assert!(error.contains("was equalized"), "{error}");
        let mut b = Builder::default();
        let x = b.input("x", Fact::new(DType::F32, [Dim::Named("N".into()), Dim::Known(2)]));
        let w = b.constant("w", Tensor::new(&[2, 2], vec![1.0f32; 4]).unwrap());
        let y = b.apply("y", Arc::new(Gemm::default()), &[x, w]).unwrap();
        let smaller = b.finish([("y".to_string(), y)]).unwrap();
        let error = weights(&smaller, &quantized(&float, Per::Channel)).unwrap_err().to_string();
        assert!(error.contains("y: ") && error.contains("not the same model"), "{error}");
    }
}
