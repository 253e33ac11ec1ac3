//! What may make a quantized model better without making it slower.

use std::collections::HashSet;

use crate::graph::{Graph, Kind, Var};
use crate::observer::ObserverConfig;
use crate::qconfig::{BiasCorrection, Per, QConfig, QConfigMapping, Rounding};
use crate::quantize::patterns::{Function, patterns};

/// A change of how everything is quantized.
pub(super) struct Remedy {
    /// What it does, in a few words.
    pub title: &'static str,
    /// What it is good for.
    pub why: &'static str,
    /// Whether it is for this float model.
    serves: fn(&Graph) -> bool,
    /// Changes a configuration that it is for.
    change: fn(&mut QConfig),
}

/// What serves every model.
fn all(_: &Graph) -> bool {
    true
}

/// The remedies, in the order of what they cost. A new one is a row.
pub(super) const REMEDIES: &[Remedy] = &[
    Remedy {
        title: "a scale for each output channel",
        why: "one scale for a whole weight leaves few codes to its channels of small values",
        serves: all,
        change: |q| {
            if q.weight.per == Per::Tensor {
                q.weight.per = Per::Channel;
                q.weight.cross_layer = false;
            }
        },
    },
    Remedy {
        title: "weights that share their ranges across layers",
        why: "one scale for a whole weight leaves few codes to its channels of small values",
        serves: all,
        change: |q| q.weight.cross_layer |= q.weight.per == Per::Tensor,
    },
    Remedy {
        title: "biases that make up for the mean error of weights",
        why: "rounding moves the mean of what a channel makes, and later layers add that up",
        serves: all,
        change: |q| q.weight.correct_bias = BiasCorrection::Observed,
    },
    Remedy {
        title: "weights rounded together (GPTQ)",
        why: "the error of one weight can make up for those of others",
        serves: all,
        change: |q| q.weight.rounding = Rounding::Gptq,
    },
    Remedy {
        title: "ranges of least squared error",
        why: "a range that holds every outlier has coarse steps",
        serves: all,
        change: |q| observe(q, ObserverConfig::Mse),
    },
    Remedy {
        title: "ranges that hold 99.99 % of the values",
        why: "a range that holds every outlier has coarse steps",
        serves: all,
        change: |q| observe(q, ObserverConfig::Percentile { percentile: 99.99 }),
    },
    Remedy {
        title: "ranges that hold every value",
        why: "clipped values may be the ones that decide",
        serves: all,
        change: |q| observe(q, ObserverConfig::MinMax),
    },
    Remedy {
        title: "ranges measured one by one",
        why: "values differ in which range harms the outputs the least",
        serves: all,
        change: |q| observe(q, ObserverConfig::Measured),
    },
    Remedy {
        title: "means and deviations of channels given back",
        why: "rounding changes how far a channel spreads, and later layers multiply that",
        serves: all,
        change: |q| q.weight.renormalize = q.observed().is_some() && q.weight.per == Per::Channel,
    },
    Remedy {
        title: "outliers moved into weights (SmoothQuant)",
        why: "what a normalization makes has channels of outliers, which coarsen the steps of all others",
        serves: multiplies_normalized,
        change: |q| {
            if let Some(activation) = &mut q.activation {
                activation.smooth = activation.smooth.max(0.5);
            }
        },
    },
    Remedy {
        title: "channels of alike range",
        why: "one scale for an activation leaves few codes to its channels of small values",
        serves: all,
        change: |q| {
            if let Some(activation) = &mut q.activation {
                activation.equalize = activation.equalize.max(0.5);
            }
        },
    },
    Remedy {
        title: "rounding learned, block by block (AdaRound)",
        why: "whether each weight is rounded up or down can make up for the errors of all others",
        serves: all,
        // It takes minutes, and codes of 8 bits are near enough without.
        change: |q| {
            if q.weight.format.bits() < 8 {
                q.weight.rounding = Rounding::Adaround;
            }
        },
    },
];

fn observe(q: &mut QConfig, observer: ObserverConfig) {
    if let Some(activation) = q.activation.as_mut().filter(|a| !a.dynamic) {
        activation.observer = observer;
    }
}

/// Whether a MatMul or Gemm multiplies what a normalization over the last axis makes, scaled and
/// shifted perhaps, with a constant matrix.
fn multiplies_normalized(graph: &Graph) -> bool {
    let spelled = patterns(graph).into_iter();
    let spelled = spelled.filter(|p| matches!(p.function, Function::RootMeanSquare { .. }));
    let spelled: HashSet<Var> = spelled.flat_map(|p| p.values).collect();
    let normalized = |mut v: Var| {
        while let Kind::Apply { op, inputs } = &graph.node(v).kind {
            match op.name() {
                "LayerNormalization" | "RMSNormalization" => return true,
                _ if spelled.contains(&v) => return true,
                "Add" | "Mul" => {}
                _ => return false,
            }
            let mut computed = inputs.iter().filter(|x| graph.constant(**x).is_none());
            let (Some(only), None) = (computed.next(), computed.next()) else { return false };
            v = *only;
        }
        false
    };
    graph.applied().any(|(_, _, op, inputs)| {
        matches!(op.name(), "MatMul" | "Gemm") && graph.constant(inputs[1]).is_some() && normalized(inputs[0])
    })
}

impl Remedy {
    /// The rules with this change; none if it is not for this float model or changes nothing.
    pub fn applied(&self, mapping: &QConfigMapping, float: &Graph) -> Option<QConfigMapping> {
        if !(self.serves)(float) {
            return None;
        }
        let mut changed = mapping.clone();
        changed.rules.iter_mut().filter_map(|rule| rule.qconfig.as_mut()).for_each(self.change);
        (changed != *mapping).then_some(changed)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::graph::Builder;
    use crate::op::{Dim, Fact};
    use crate::ops::binary::Arithmetic;
    use crate::ops::linear::MatMul;
    use crate::ops::norm::LayerNormalization;
    use crate::ops::unary::Unary;
    use crate::qconfig::preset;
    use crate::tensor::{DType, Tensor};

    /// A normalization, if there is to be one, the operator `between`, and a matrix product.
    fn model(normalizes: bool, between: Arc<dyn crate::op::Op>, operands: usize) -> Graph {
        let mut b = Builder::default();
        let x = b.input("x", Fact::new(DType::F32, [Dim::Named("N".into()), Dim::Known(2)]));
        let ones = b.constant("ones", Tensor::vector(vec![1f32; 2]));
        let norm = LayerNormalization { axis: -1, epsilon: 1e-5, centred: true };
        let y = if normalizes { b.apply("norm", Arc::new(norm), &[x, ones]).unwrap() } else { x };
        let y = b.apply("between", between, &[y, ones][..operands]).unwrap();
        let w = b.constant("w", Tensor::new(&[2, 2], vec![1f32, 2.0, 3.0, 4.0]).unwrap());
        let y = b.apply("y", Arc::new(MatMul), &[y, w]).unwrap();
        b.finish([("y".to_string(), y)]).unwrap()
    }

    #[test]
    fn what_is_there_already_is_no_remedy() {
        let float = model(true, Arc::new(Arithmetic::Add), 2);
        let mapping = |name: &str| QConfigMapping::global(preset(name).unwrap());
        let titles = |name: &str| -> Vec<&str> {
            REMEDIES.iter().filter(|r| r.applied(&mapping(name), &float).is_some()).map(|r| r.title).collect()
        };
        let standard = titles("default");
        assert!(!standard.contains(&"a scale for each output channel"), "{standard:?}");
        assert!(!standard.contains(&"ranges of least squared error"), "{standard:?}");
        assert!(standard.contains(&"ranges that hold every value"), "{standard:?}");
        // 8 bits are not learned, and one scale cannot serve each channel.
        assert_eq!(titles("qnnpack").len(), REMEDIES.len() - 2);
        for remedy in REMEDIES {
            let Some(once) = remedy.applied(&mapping("qnnpack"), &float) else { continue };
            assert_eq!(remedy.applied(&once, &float), None, "{}", remedy.title);
        }
    }

    #[test]
    fn outliers_are_moved_where_products_read_what_is_normalized() {
        for (normalizes, between, operands, serves) in [
            (true, Arc::new(Arithmetic::Mul) as Arc<dyn crate::op::Op>, 2, true),
            (true, Arc::new(Arithmetic::Add), 2, true),
            (true, Arc::new(Unary::Relu), 1, false),
            (false, Arc::new(Arithmetic::Mul), 2, false),
        ] {
            let name = between.name();
            let found = multiplies_normalized(&model(normalizes, between, operands));
            assert_eq!(found, serves, "{normalizes}, {name}");
        }
    }
}
