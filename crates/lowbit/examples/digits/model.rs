//! A small CNN with one of each thing that a quantizer must handle, written as PyTorch has it, with stubs.

use lowbit::Result;
use lowbit::graph::Var;
use lowbit::nn::{
    AdaptiveAvgPool2d, BatchNorm2d, Children, Conv2d, DeQuantStub, Flatten, FloatFunctional, Linear,
    MaxPool2d, Module, QuantStub, ReLU, ReLU6, Scope, Sequential, children,
};

/// What of the model is fused.
pub const GROUPS: &[&[&str]] = &[
    &["stem.0", "stem.1", "stem.2"],
    &["residual.first.0", "residual.first.1", "residual.first.2"],
    &["residual.second.0", "residual.second.1"],
    &["depthwise.0", "depthwise.1"],
    &["pointwise.0", "pointwise.1"],
];

/// Convolution without bias, and batch normalization.
fn convolution(inputs: usize, outputs: usize, kernel: usize, groups: usize) -> Sequential {
    let convolution = Conv2d::new(inputs, outputs, kernel).padding(kernel / 2).groups(groups).bias(false);
    Sequential::new().then(convolution).then(BatchNorm2d::new(outputs))
}

/// Two 3x3 convolutions and a skip connection.
struct Residual {
    first: Sequential,
    second: Sequential,
    skip: FloatFunctional,
}

impl Module for Residual {
    fn forward(&self, g: &mut Scope<'_>, x: Var) -> Result<Var> {
        let y = g.call("first", &self.first, x)?;
        let y = g.call("second", &self.second, y)?;
        g.enter("skip", |g| self.skip.add_relu(g, x, y))
    }

    fn children(&self) -> Children<'_> {
        children!(self; first, second, skip)
    }
}

/// Image `[N, 1, 8, 8]` in 0..1 to ten logits.
pub struct Digits {
    quant: QuantStub,
    stem: Sequential,
    residual: Residual,
    pool: MaxPool2d,
    depthwise: Sequential,
    pointwise: Sequential,
    average: AdaptiveAvgPool2d,
    flatten: Flatten,
    classifier: Linear,
    dequant: DeQuantStub,
}

impl Digits {
    pub fn new() -> Digits {
        Digits {
            quant: QuantStub,
            stem: convolution(1, 24, 3, 1).then(ReLU),
            residual: Residual {
                first: convolution(24, 24, 3, 1).then(ReLU),
                second: convolution(24, 24, 3, 1),
                skip: FloatFunctional,
            },
            pool: MaxPool2d::new(2),
            depthwise: convolution(24, 24, 3, 24).then(ReLU6::default()),
            pointwise: convolution(24, 48, 1, 1).then(ReLU6::default()),
            average: AdaptiveAvgPool2d::new(1),
            flatten: Flatten::default(),
            classifier: Linear::new(48, 10),
            dequant: DeQuantStub,
        }
    }
}

impl Module for Digits {
    fn forward(&self, g: &mut Scope<'_>, x: Var) -> Result<Var> {
        let x = g.call("quant", &self.quant, x)?;
        let x = g.call("stem", &self.stem, x)?;
        let x = g.call("residual", &self.residual, x)?;
        let x = g.call("pool", &self.pool, x)?;
        let x = g.call("depthwise", &self.depthwise, x)?;
        let x = g.call("pointwise", &self.pointwise, x)?;
        let x = g.call("average", &self.average, x)?;
        let x = g.call("flatten", &self.flatten, x)?;
        let x = g.call("classifier", &self.classifier, x)?;
        g.call("dequant", &self.dequant, x)
    }

    fn children(&self) -> Children<'_> {
        children!(self; quant, stem, residual, pool, depthwise, pointwise, average, flatten, classifier, dequant)
    }
}
