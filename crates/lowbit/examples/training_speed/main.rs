//! The time of a training step, in float and with 8 bits simulated.
//!
//! ```text
//! cargo run --release -p lowbit --example training_speed -- MODEL.onnx BATCH SIZE [STEPS]
//! ```
//!
//! A step is what a user waits for: forward and backward of BATCH random pictures of SIZE x SIZE, and SGD with momentum.
//! Prints one line a step, `float MS` and `qat MS` in turns.

use std::collections::BTreeMap;
use std::time::Instant;

use lowbit::data::random_inputs;
use lowbit::qconfig::{QConfigMapping, preset};
use lowbit::quantize::{fuse, prepare};
use lowbit::tensor::KeptMemory;
use lowbit::train::{BatchNorm, Learner, Loss, Network, Optimizer, Qat, QatOptions, Ranges, Slots};
use lowbit::{Result, Tensor, onnx};

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let model = args.next().ok_or_else(|| lowbit::Error::Invalid("give MODEL.onnx BATCH SIZE".into()))?;
    let mut number = |default| args.next().and_then(|n| n.parse().ok()).unwrap_or(default);
    let (batch, size, steps) = (number(16), number(64), number(10));
    let float = onnx::load(&model)?;
    let float = float.at_shapes([[batch, 3, size, size].as_slice()])?;
    let inputs = random_inputs(&float, batch, &BTreeMap::new())?;
    let mut prepared = prepare(&fuse(&float)?, &QConfigMapping::global(preset("fbgemm")?))?;
    prepared.observe(&inputs)?;
    let options = QatOptions {
        ranges: Ranges::MovingAverage(0.01),
        batch_norm: BatchNorm::Batch { frozen_after: u64::MAX },
        ..QatOptions::default()
    };
    let mut contenders: [(&str, Box<dyn Learner>); 2] =
        [("float", Box::new(Network::of(&float)?)), ("qat", Box::new(Qat::new(prepared, &float, options)?))];
    let _memory = KeptMemory::up_to(4 << 30);
    let mut slots = [Slots::new(), Slots::new()];
    for step in 0..steps as u64 {
        for ((name, learner), slots) in contenders.iter_mut().zip(&mut slots) {
            let start = Instant::now();
            learn(&mut **learner, slots, &inputs, batch, step)?;
            println!("{name} {:.2}", start.elapsed().as_secs_f64() * 1e3);
        }
    }
    Ok(())
}

/// One step on labels 0, 1, 2 ..
fn learn(
    learner: &mut dyn Learner,
    slots: &mut Slots,
    inputs: &[Tensor],
    batch: usize,
    step: u64,
) -> Result<()> {
    let network = learner.network(step)?;
    let run = network.step(inputs)?;
    let classes = run.outputs[0].len() / batch;
    let labels: Vec<usize> = (0..batch).map(|i| i % classes).collect();
    let lost = Loss::CrossEntropy { smoothing: 0.0 }.of_labels(&run.outputs[0], &labels)?;
    let gradients = run.back(vec![Some(lost.gradient)])?;
    network.descend(gradients, &Optimizer::sgd(1e-4), slots, 1e-3, step + 1)
}
