use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::codebook::Codebook;
use crate::graph::{Builder, Graph, Var};
use crate::observer::ObserverConfig;
use crate::op::{Dim, Fact, Op};
use crate::ops::conv::Conv;
use crate::ops::conv_transpose::ConvTranspose;
use crate::ops::linear::{Gemm, MatMul};
use crate::ops::window::{Padding, Window};
use crate::qconfig::{Per, QConfigMapping, Rounding, Spec, preset};
use crate::quantize::{Prepared, prepare};
use crate::scheme::{Format, Mapping};
use crate::tensor::DType;

/// Numbers in -1..1 that look random.
fn noise(seed: u32, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(next).collect()
}

/// Noise whose neighbours, along the last axis, are alike.
fn smooth(seed: u32, shape: &[usize]) -> Tensor {
    let mut values = noise(seed, shape.iter().product());
    (1..values.len()).for_each(|i| values[i] = 0.9 * values[i - 1] + 0.3 * values[i]);
    Tensor::new(shape, values).unwrap()
}

struct Case {
    name: &'static str,
    op: Arc<dyn Op>,
    weight: &'static [usize],
    x: &'static [usize],
    /// The weight's output channels.
    axis: usize,
}

fn conv(group: usize, strides: &[usize], dilations: &[usize], padding: &[(usize, usize)]) -> Arc<dyn Op> {
    let (strides, dilations) = (strides.to_vec(), dilations.to_vec());
    let window = Window { strides, dilations, padding: Padding::Explicit(padding.to_vec()) };
    Arc::new(Conv { window, group, kernel: None })
}

fn cases() -> Vec<Case> {
    let gemm = |trans_b| Arc::new(Gemm { trans_b, ..Gemm::default() });
    let case = |name, op, weight, x, axis| Case { name, op, weight, x, axis };
    vec![
        case("conv", conv(1, &[], &[], &[]), &[5, 3, 3, 3], &[2, 3, 9, 8], 0),
        case("padded", conv(1, &[1, 2], &[], &[(1, 0), (2, 1)]), &[2, 2, 3, 2], &[3, 2, 6, 7], 0),
        case("grouped", conv(2, &[2, 1], &[1, 2], &[(0, 0), (2, 2)]), &[4, 2, 2, 3], &[2, 4, 7, 9], 0),
        case("depthwise", conv(6, &[], &[], &[(1, 1), (1, 1)]), &[6, 1, 3, 3], &[2, 6, 12, 12], 0),
        case("1d", conv(1, &[], &[], &[]), &[3, 4, 5], &[2, 4, 11], 0),
        case("3d", conv(1, &[], &[], &[]), &[3, 2, 2, 2, 2], &[2, 2, 3, 4, 3], 0),
        case("gemm", gemm(false), &[12, 40], &[9, 12], 1),
        case("gemm, transposed", gemm(true), &[40, 12], &[9, 12], 0),
        case("matmul", Arc::new(MatMul), &[10, 7], &[3, 90, 10], 1),
        case("matmul of a vector", Arc::new(MatMul), &[4, 3], &[4], 1),
    ]
}

impl Case {
    fn weight(&self, seed: u32) -> Tensor {
        Tensor::new(self.weight, noise(seed, self.weight.iter().product())).unwrap()
    }

    fn moments(&self, batches: &[Tensor]) -> InputMoments {
        let mut moments = InputMoments::new(Layer::new(&*self.op, self.weight).unwrap()).unwrap();
        batches.iter().for_each(|x| moments.observe(x).unwrap());
        moments
    }

    /// Input `column` of each group, `[samples][groups][positions]`: what the
    /// operator makes of a weight that picks it.
    fn picked(&self, layer: &Layer, x: &Tensor, column: usize) -> Vec<f32> {
        let mut shape = self.weight.to_vec();
        shape[self.axis] = layer.groups;
        let picking = (0..layer.groups * layer.columns).map(|i| f32::from(i % layer.columns == column));
        let weight = Tensor::new(&shape, picking.collect::<Vec<_>>()).unwrap();
        self.op.eval(&[x, &weight]).unwrap().remove(0).to_f32().unwrap()
    }

    /// `(w - q) H (w - q)'` of each output channel, in f64, with this share of
    /// the mean diagonal element added to the diagonal.
    fn costs(&self, moments: &InputMoments, weight: &Tensor, quantized: &Tensor, share: f64) -> Vec<f64> {
        let (layer, w, q) = (&moments.layer, weight.to_f32().unwrap(), quantized.to_f32().unwrap());
        let n = layer.columns;
        let cost = |row: usize| {
            let h = &moments.products[row / layer.rows * n * n..][..n * n];
            let damping = share * (0..n).map(|i| f64::from(h[i * n + i])).sum::<f64>() / n as f64;
            let e: Vec<f64> =
                (0..n).map(|c| layer.at(row, c)).map(|i| f64::from(w[i]) - f64::from(q[i])).collect();
            let outputs: f64 = (0..n * n).map(|i| e[i / n] * e[i % n] * f64::from(h[i])).sum();
            outputs + damping * e.iter().map(|e| e * e).sum::<f64>()
        };
        (0..layer.groups * layer.rows).map(cost).collect()
    }
}

fn errors(weight: &Tensor, quantized: &Tensor) -> Vec<f32> {
    let (w, q) = (weight.to_f32().unwrap(), quantized.to_f32().unwrap());
    w.iter().zip(q).map(|(w, q)| w - q).collect()
}

fn grid(case: &Case, weight: &Tensor, format: Format, per: Per) -> Grid {
    let spec = Spec { per, ..Spec::new(format, Mapping::Symmetric) };
    let scheme = spec.scheme(Some(case.axis));
    if matches!(format, Format::Codebook { .. }) {
        return Grid::Lookup(Codebook::fit(scheme, weight, None, false).unwrap());
    }
    let mut observer = crate::observer::AnyObserver::new(spec.observer, scheme).unwrap();
    observer.observe(weight).unwrap();
    Grid::Steps(observer.qparams().unwrap())
}

#[test]
fn inputs_are_those_that_the_operator_multiplies() {
    for case in cases() {
        let layer = Layer::new(&*case.op, case.weight).unwrap();
        let x = smooth(3, case.x);
        let (inputs, positions) = layer.inputs(&x, 5, MOST_POSITIONS).unwrap();
        for column in 0..layer.columns {
            let all = case.picked(&layer, &x, column);
            let total = all.len() / layer.groups / samples(&x);
            assert_eq!(positions, samples(&x) * total.min(layer::POSITIONS), "{}", case.name);
            for group in 0..layer.groups {
                let found = &inputs[(group * layer.columns + column) * positions..][..positions];
                let wanted = (0..samples(&x)).flat_map(|i| {
                    layer::positions(total, 5 + i).map(move |p| (i * layer.groups + group) * total + p)
                });
                let wanted: Vec<f32> = wanted.map(|i| all[i]).collect();
                assert_eq!(found, wanted, "{}, column {column} of group {group}", case.name);
            }
        }
    }
}

#[test]
fn positions_of_a_sample_are_spread_and_differ_from_those_of_the_next() {
    for total in [40, 100, 1000, 12_544] {
        let of = |sample: usize| {
            let mut positions: Vec<usize> = layer::positions(total, sample).collect();
            positions.sort_unstable();
            positions
        };
        let gaps = of(7).windows(2).map(|p| p[1] - p[0]).max();
        assert!(gaps <= Some(total / 8), "{:?}", of(7));
        assert_ne!(of(7), of(8));
    }
}

#[test]
fn moments_do_not_depend_on_the_split_into_batches() {
    for case in cases().iter().filter(|c| c.x.len() > 1) {
        // 66 samples of 32 positions are more than are taken.
        let shape = [&[66], &case.x[1..]].concat();
        let x = smooth(1, &shape);
        let values: &[f32] = x.slice().unwrap();
        let part = |from: usize, to: usize| {
            let each = values.len() / 66;
            Tensor::new(&[&[to - from], &shape[1..]].concat(), values[from * each..to * each].to_vec())
                .unwrap()
        };
        let whole = case.moments(std::slice::from_ref(&x));
        let parts = case.moments(&[part(0, 1), part(1, 40), part(40, 65), part(65, 66)]);
        assert!(whole == parts && whole.positions <= MOST_POSITIONS, "{}", case.name);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn no_output_channel_costs_more_than_with_the_nearest_codes(
        seed in 0u32..10_000,
        per in prop::sample::select(vec![Per::Tensor, Per::Channel, Per::Block(1), Per::Block(3), Per::Block(32)]),
        format in prop::sample::select(
            vec![Format::INT8_NARROW, Format::INT4, Format::INT16, Format::E4M3, Format::NF4],
        ),
    ) {
        for case in cases() {
            let weight = case.weight(seed);
            let moments = case.moments(&[smooth(seed, case.x)]);
            let grid = grid(&case, &weight, format, per);
            let rounded = moments.rounded(&weight, &grid).unwrap();
            // They are values of codes, and their codes are within range.
            prop_assert_eq!(&grid.fake_quantize(&rounded).unwrap(), &rounded, "{}", case.name);
            let nearest = grid.fake_quantize(&weight).unwrap();
            let outputs = moments.output_error(&errors(&weight, &nearest));
            let exact: f64 = case.costs(&moments, &weight, &nearest, 0.0).iter().sum();
            prop_assert!((outputs - exact).abs() <= 1e-3 * exact + 1e-6, "{}: {outputs} and {exact}", case.name);
            let costs = [&rounded, &nearest].map(|q| case.costs(&moments, &weight, q, 0.01));
            for (ours, nearest) in costs[0].iter().zip(&costs[1]) {
                prop_assert!(*ours <= nearest * 1.001 + 1e-12, "{}: {ours} > {nearest}", case.name);
            }
        }
    }
}

#[test]
fn four_bits_of_correlated_inputs_lose_less_than_half() {
    let case =
        Case { name: "", op: conv(1, &[], &[], &[]), weight: &[40, 8, 1, 9], x: &[16, 8, 4, 40], axis: 0 };
    let (weight, moments) = (case.weight(1), case.moments(&[smooth(2, case.x)]));
    let grid = grid(&case, &weight, Format::INT4, Per::Channel);
    let cost = |q: &Tensor| case.costs(&moments, &weight, q, 0.01).iter().sum::<f64>();
    let rounded = cost(&moments.rounded(&weight, &grid).unwrap());
    let nearest = cost(&grid.fake_quantize(&weight).unwrap());
    assert!(rounded < 0.5 * nearest, "{rounded} after {nearest}");
}

#[test]
fn wide_layers_are_rounded_in_parts_and_on_any_number_of_threads() {
    let case = Case { name: "", op: Arc::new(MatMul), weight: &[2100, 70], x: &[50, 2100], axis: 1 };
    let (weight, moments) = (case.weight(1), case.moments(&[smooth(2, case.x)]));
    assert_eq!(moments.products.len(), 3 * 700 * 700);
    let grid = grid(&case, &weight, Format::INT4, Per::Channel);
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| moments.rounded(&weight, &grid).unwrap())
    };
    assert_eq!(on(1), on(3));
    assert_ne!(on(1), grid.fake_quantize(&weight).unwrap());
}

#[test]
fn other_operators_and_layers_without_input_keep_the_nearest_codes() {
    let window = Window::default();
    let transposed =
        ConvTranspose { window, group: 1, kernel: None, output_padding: vec![], output_shape: None };
    assert!(Layer::new(&transposed, &[2, 2, 3, 3]).is_none());
    assert!(Layer::new(&MatMul, &[2, 3, 3]).is_none());
    let case = &cases()[0];
    let weight = case.weight(1);
    let grid = grid(case, &weight, Format::INT4, Per::Channel);
    let zeros = Tensor::new(case.x, vec![0f32; case.x.iter().product()]).unwrap();
    for batches in [vec![], vec![zeros]] {
        let rounded = case.moments(&batches).rounded(&weight, &grid).unwrap();
        assert_eq!(rounded, grid.fake_quantize(&weight).unwrap());
    }
}

/// `x` times one matrix, twice, with Relu of the first product as the second's input.
fn model() -> Graph {
    let mut b = Builder::default();
    let x = b.input("x", Fact::new(DType::F32, [Dim::Named("N".into()), 6.into()]));
    let w = b.constant("w", Tensor::new(&[6, 6], noise(1, 36)).unwrap());
    let gemm = |b: &mut Builder, name: &str, x: Var| b.apply(name, Arc::new(Gemm::default()), &[x, w]);
    let first = gemm(&mut b, "first", x).unwrap();
    let relu = b.apply("relu", Arc::new(crate::ops::unary::Unary::Relu), &[first]).unwrap();
    let second = gemm(&mut b, "second", relu).unwrap();
    b.finish([("y".to_string(), second)]).unwrap()
}

fn prepared(change: impl FnOnce(&mut crate::qconfig::QConfig)) -> Result<Prepared> {
    let mut q = preset("default").unwrap();
    q.weight.rounding = Rounding::Gptq;
    change(&mut q);
    prepare(&model(), &QConfigMapping::global(q))
}

#[test]
fn a_shared_weight_has_codes_for_each_reader_unless_they_are_the_nearest() {
    for (rounding, stored) in [(Rounding::Gptq, 2), (Rounding::Nearest, 1)] {
        let mut prepared = prepared(|q| {
            q.weight.rounding = rounding;
            q.weight.format = Format::INT4;
        })
        .unwrap();
        let batches = || (0..4).map(|i| Ok(vec![smooth(i, &[20, 6])]));
        prepared.calibrate(batches(), &|_| Ok(())).unwrap();
        let graph = prepared.convert().unwrap().graph;
        let weights = graph.applied().filter(|(_, _, op, inputs)| {
            op.name() == "DequantizeLinear" && graph.constant(inputs[0]).is_some_and(|w| w.rank() == 2)
        });
        assert_eq!(weights.count(), stored, "{rounding:?}");
    }
}

#[test]
fn errors_name_the_cause() {
    let converted = |x: f32| {
        let mut prepared =
            prepared(|q| q.activation.as_mut().unwrap().observer = ObserverConfig::Histogram { bins: 2048 })?;
        let mut values = noise(1, 12);
        values[5] = x;
        prepared.calibrate([Ok(vec![Tensor::new(&[2, 6], values)?])].into_iter(), &|_| Ok(()))?;
        prepared.convert().map(|_| ())
    };
    let empty = prepared(|_| ()).and_then(|mut p| p.calibrate(std::iter::empty(), &|_| Ok(())));
    let misplaced = prepared(|q| q.activation.as_mut().unwrap().rounding = Rounding::Gptq).map(|_| ());
    converted(1.0).unwrap();
    for (result, says) in [
        (converted(f32::NAN), &["x", "NaN"][..]),
        (converted(f32::INFINITY), &["w", "not finite"]),
        (converted(1e30), &["w", "too great"]),
        (empty, &["empty"]),
        (misplaced, &["rounding is for weights"]),
    ] {
        let error = result.unwrap_err().to_string();
        assert!(says.iter().all(|s| error.contains(s)), "{error}: {says:?}");
    }
}
