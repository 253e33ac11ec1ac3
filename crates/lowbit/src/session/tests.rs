//! Laws of compiled models over the geometry of images.

use std::sync::Arc;

use proptest::prelude::*;

use super::Session;
use crate::error::Result;
use crate::graph::{Builder, Graph};
use crate::op::{Dim, Fact, Op};
use crate::ops::conv::Conv;
use crate::ops::pool::{AveragePool, MaxPool, Pool};
use crate::ops::unary::Unary;
use crate::ops::window::{Padding, Window};
use crate::qconfig::{QConfigMapping, preset};
use crate::quantize::prepare;
use crate::tensor::{DType, Tensor};

/// A convolution, an activation function and a pool.
#[derive(Clone, Debug)]
struct Images {
    size: [usize; 2],
    groups: usize,
    /// Of one group.
    channels: [usize; 2],
    kernel: [usize; 2],
    strides: Vec<usize>,
    dilations: Vec<usize>,
    pads: Vec<(usize, usize)>,
    relu: bool,
    pool: Option<(bool, usize, bool)>,
}

fn images() -> impl Strategy<Value = Images> {
    let pair = |most: usize| prop::collection::vec(1..=most, 2);
    let channels = prop_oneof![
        3 => (prop::sample::select(vec![1usize, 2, 3, 8, 16, 20]), 1..40usize).prop_map(|(i, o)| (1, [i, o])),
        1 => (2..4usize, 1..5usize, 1..4usize).prop_map(|(g, i, o)| (g, [i, o])),
        2 => (2..70usize).prop_map(|g| (g, [1, 1])),
    ];
    let pads = prop::collection::vec((0..3usize, 0..3usize), 2);
    let pool = prop::option::of((any::<bool>(), 1..4usize, any::<bool>()));
    ([1..12usize, 1..24usize], channels, [1..4usize, 1..4usize], pair(3), pair(2), pads, any::<bool>(), pool)
        .prop_map(|(size, (groups, channels), kernel, strides, dilations, pads, relu, pool)| Images {
            size,
            groups,
            channels,
            kernel,
            strides,
            dilations,
            pads,
            relu,
            pool,
        })
}

/// Numbers in -1..1 that look random.
fn noise(seed: u32, n: usize) -> Vec<f32> {
    let hash =
        |i: u32| (i.wrapping_add(seed).wrapping_mul(0x9e37_79b9) ^ 0x5bd1_e995).wrapping_mul(0x85eb_ca6b);
    (0..n as u32).map(|i| (hash(i) >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
}

/// The model, unless a window does not fit.
fn model(m: &Images) -> Result<Graph> {
    let mut b = Builder::default();
    let [inputs, outputs] = [m.channels[0] * m.groups, m.channels[1] * m.groups];
    let shape = [2, inputs, m.size[0], m.size[1]];
    let x = b.input("x", Fact::new(DType::F32, shape.map(Dim::Known)));
    let weights = [outputs, m.channels[0], m.kernel[0], m.kernel[1]];
    let w = b.constant("w", Tensor::new(&weights, noise(1, weights.iter().product()))?);
    let bias = b.constant("b", Tensor::vector::<f32>(noise(2, outputs)));
    let padding = Padding::Explicit(m.pads.clone());
    let window = Window { strides: m.strides.clone(), dilations: m.dilations.clone(), padding };
    let mut y = b.apply("conv", Arc::new(Conv { window, group: m.groups, kernel: None }), &[x, w, bias])?;
    if m.relu {
        y = b.apply("relu", Arc::new(Unary::Relu), &[y])?;
    }
    if let Some((max, kernel, ceil)) = m.pool {
        let window = Window { strides: vec![2, 1], ..Window::default() };
        let pool = Pool { kernel: vec![kernel; 2], window, ceil };
        let op: Arc<dyn Op> = match max {
            true => Arc::new(MaxPool { pool }),
            false => Arc::new(AveragePool { pool, include_padding: ceil }),
        };
        y = b.apply("pool", op, &[y])?;
    }
    b.finish([("y".to_string(), y)])
}

fn assert_close(got: &[Tensor], want: &[Tensor], part: f32) -> std::result::Result<(), TestCaseError> {
    prop_assert_eq!(got[0].shape(), want[0].shape());
    let (got, want): (&[f32], &[f32]) = (got[0].slice().unwrap(), want[0].slice().unwrap());
    let greatest = want.iter().fold(0.1f32, |a, x| a.max(x.abs()));
    for (i, (a, b)) in got.iter().zip(want).enumerate() {
        prop_assert!((a - b).abs() <= part * greatest, "[{i}] is {a}, not {b}");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn images_of_every_geometry(m in images()) {
        let Ok(float) = model(&m) else { return Ok(()) };
        let shape = [2, m.channels[0] * m.groups, m.size[0], m.size[1]];
        let x = [Tensor::new(&shape, noise(3, shape.iter().product())).unwrap()];
        let session = Session::compile(&float).unwrap();
        assert_close(&session.run(&x).unwrap(), &float.run(&x).unwrap(), 1e-5)?;

        // The result of the convolution is not quantized: no rounding can differ.
        let plain = model(&Images { pool: None, ..m }).unwrap();
        let mut prepared = prepare(&plain, &QConfigMapping::global(preset("default").unwrap())).unwrap();
        prepared.calibrate(std::iter::once(Ok(x.to_vec())), &|_| Ok(())).unwrap();
        let quantized = prepared.convert().unwrap().graph;
        let session = Session::compile(&quantized).unwrap();
        prop_assert_eq!(session.report().coverage(), 1.0);
        assert_close(&session.run(&x).unwrap(), &quantized.run(&x).unwrap(), 1e-5)?;
    }
}

/// Sums so deep that they are taken up again.
#[test]
fn deep_convolutions() {
    for dilation in [1, 2] {
        let m = Images {
            size: [5, 6],
            groups: 1,
            channels: [400, 5],
            kernel: [3, 3],
            strides: vec![1, 1],
            dilations: vec![dilation; 2],
            pads: vec![(1, 1), (1, 1)],
            relu: true,
            pool: None,
        };
        let float = model(&m).unwrap();
        let x = [Tensor::new(&[2, 400, 5, 6], noise(3, 2 * 400 * 5 * 6)).unwrap()];
        let session = Session::compile(&float).unwrap();
        assert_close(&session.run(&x).unwrap(), &float.run(&x).unwrap(), 1e-5).unwrap();
    }
}
