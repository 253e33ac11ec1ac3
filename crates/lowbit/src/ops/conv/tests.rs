use proptest::prelude::*;

use super::*;
use crate::op::Reading;
use crate::ops::window::Padding;
use crate::tensor::DType;

/// Pseudo-random numbers in -1..1 that depend on `seed` alone.
pub(in crate::ops) fn noise(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

pub(in crate::ops) fn random(shape: &[usize], seed: u32) -> Tensor {
    Tensor::new(shape, noise(shape.iter().product(), seed)).unwrap()
}

pub(in crate::ops) fn assert_close(got: &[f32], want: &[f32], what: &dyn std::fmt::Debug) {
    assert_eq!(got.len(), want.len(), "{what:?}");
    for (i, (a, b)) in got.iter().zip(want).enumerate() {
        assert!(a == b || (a - b).abs() <= 1e-4 * (1.0 + b.abs()), "{what:?}: element {i} is {a}, not {b}");
    }
}

/// The definition, in f64.
fn naive(x: &[f32], w: &[f32], bias: Option<&[f32]>, g: &Geometry) -> Vec<f32> {
    let [d, h, v] = g.axes;
    let mut y = vec![];
    for (n, m) in (0..g.batch).flat_map(|n| (0..g.group * g.out_channels).map(move |m| (n, m))) {
        for o in 0..g.outputs() {
            let (od, oh, ow) = (o / (h.output * v.output), o / v.output % h.output, o % v.output);
            let mut sum = bias.map_or(0.0, |b| f64::from(b[m]));
            for (c, t) in (0..g.in_channels).flat_map(|c| (0..g.taps()).map(move |t| (c, t))) {
                let (kd, kh, kw) = (t / (h.kernel * v.kernel), t / v.kernel % h.kernel, t % v.kernel);
                if let (Some(id), Some(ih), Some(iw)) = (d.at(od, kd), h.at(oh, kh), v.at(ow, kw)) {
                    let channel = (n * g.group + m / g.out_channels) * g.in_channels + c;
                    let at = ((channel * d.input + id) * h.input + ih) * v.input + iw;
                    let tap = (m * g.in_channels + c) * g.taps() + t;
                    sum += f64::from(x[at]) * f64::from(w[tap]);
                }
            }
            y.push(sum as f32);
        }
    }
    y
}

/// Evaluates `conv` on random operands and compares with the definition and
/// with what `infer` promises.
fn check(conv: &Conv, x: &[usize], w: &[usize]) {
    let (xt, wt, bt) = (random(x, 1), random(w, 2), random(&w[..1], 3));
    let g = conv.geometry(x, w).unwrap_or_else(|e| panic!("{conv:?} {x:?} {w:?}: {e}"));
    for bias in [None, Some(&bt)] {
        let inputs: Vec<&Tensor> = [&xt, &wt].into_iter().chain(bias).collect();
        let y = conv.eval(&inputs).unwrap().remove(0);
        let facts: Vec<Fact> = inputs.iter().map(|t| Fact::of(t)).collect();
        let fact = conv.infer(&facts.iter().collect::<Vec<_>>()).unwrap().remove(0);
        assert_eq!(fact.known_shape().unwrap(), y.shape(), "{conv:?}");
        let bias = bias.map(|b| b.slice().unwrap());
        let want = naive(xt.slice().unwrap(), wt.slice().unwrap(), bias, &g);
        assert_close(y.slice().unwrap(), &want, &(conv, x, w));
    }
}

fn conv(strides: &[usize], dilations: &[usize], padding: Padding, group: usize) -> Conv {
    let window = Window { strides: strides.to_vec(), dilations: dilations.to_vec(), padding };
    Conv { window, group, kernel: None }
}

fn pads(p: &[(usize, usize)]) -> Padding {
    Padding::Explicit(p.to_vec())
}

#[test]
fn equals_the_definition() {
    let cases: [(Conv, &[usize], &[usize]); 30] = [
        // Plain products, with tails.
        (conv(&[], &[], pads(&[]), 1), &[1, 5, 7, 9], &[6, 5, 1, 1]),
        (conv(&[], &[], pads(&[]), 1), &[3, 17, 31, 33], &[70, 17, 1, 1]),
        (conv(&[], &[], pads(&[]), 4), &[2, 8, 5, 5], &[12, 2, 1, 1]),
        (conv(&[], &[], pads(&[]), 1), &[1, 130, 3, 3], &[257, 130, 1, 1]),
        (conv(&[2, 2], &[], pads(&[]), 1), &[1, 3, 9, 8], &[4, 3, 1, 1]),
        (conv(&[], &[], pads(&[(1, 0), (0, 2)]), 1), &[1, 3, 4, 5], &[4, 3, 1, 1]),
        // Windows.
        (conv(&[], &[], pads(&[(1, 1), (1, 1)]), 1), &[1, 3, 12, 13], &[8, 3, 3, 3]),
        (conv(&[], &[], pads(&[(1, 1), (1, 1)]), 1), &[1, 64, 27, 25], &[20, 64, 3, 3]),
        (conv(&[2, 1], &[1, 2], pads(&[(2, 0), (1, 3)]), 1), &[2, 4, 11, 13], &[5, 4, 3, 5]),
        (conv(&[3, 2], &[2, 3], pads(&[(0, 4), (6, 0)]), 2), &[1, 6, 10, 17], &[4, 3, 4, 2]),
        (conv(&[2, 2], &[], pads(&[]), 1), &[1, 3, 37, 35], &[16, 3, 7, 7]),
        (conv(&[2, 2], &[], Padding::SameUpper, 1), &[1, 3, 8, 9], &[4, 3, 3, 3]),
        (conv(&[2, 2], &[], Padding::SameLower, 1), &[1, 3, 8, 9], &[4, 3, 3, 3]),
        (conv(&[2, 2], &[], Padding::Valid, 1), &[1, 3, 8, 9], &[4, 3, 3, 3]),
        (conv(&[], &[], pads(&[(9, 9), (0, 0)]), 1), &[1, 2, 3, 40], &[3, 2, 3, 3]),
        (conv(&[], &[], pads(&[(2, 2), (2, 2)]), 1), &[1, 200, 5, 5], &[130, 200, 3, 3]),
        // Depthwise.
        (conv(&[], &[], pads(&[(1, 1), (1, 1)]), 6), &[2, 6, 14, 15], &[6, 1, 3, 3]),
        (conv(&[2, 2], &[], pads(&[(0, 1), (0, 1)]), 6), &[1, 6, 14, 15], &[6, 1, 3, 3]),
        (conv(&[2, 3], &[2, 1], pads(&[(3, 1), (1, 2)]), 5), &[1, 5, 21, 40], &[10, 1, 3, 5]),
        (conv(&[1, 1], &[], Padding::SameLower, 3), &[1, 3, 60, 70], &[3, 1, 5, 5]),
        (conv(&[], &[], pads(&[(0, 0), (0, 0)]), 3), &[1, 3, 9, 8], &[3, 1, 9, 8]),
        // A dilation so wide that a padded plane would not be worth its memory.
        (conv(&[], &[1, 5000], pads(&[(0, 0), (5000, 5000)]), 3), &[1, 3, 2, 3], &[3, 1, 1, 3]),
        // Small images, several to a product.
        (conv(&[], &[], pads(&[(1, 1), (1, 1)]), 1), &[61, 6, 2, 2], &[9, 6, 3, 3]),
        (conv(&[], &[], pads(&[]), 2), &[29, 6, 4, 3], &[8, 3, 1, 1]),
        (conv(&[2, 2], &[], pads(&[(1, 0), (0, 1)]), 3), &[11, 6, 7, 9], &[6, 2, 3, 3]),
        (conv(&[], &[], pads(&[(0, 0), (1, 0), (1, 1)]), 1), &[5, 3, 3, 4, 5], &[7, 3, 2, 3, 2]),
        // One and three axes.
        (conv(&[2], &[], pads(&[(2, 1)]), 1), &[2, 3, 40], &[4, 3, 5]),
        (conv(&[], &[3], pads(&[(2, 1)]), 4), &[1, 4, 40], &[4, 1, 5]),
        (conv(&[1, 2, 1], &[], pads(&[(1, 0), (1, 1), (0, 1)]), 1), &[1, 2, 4, 5, 6], &[3, 2, 3, 2, 3]),
        (conv(&[1, 2, 2], &[], pads(&[(1, 0), (1, 1), (0, 1)]), 2), &[1, 2, 4, 5, 6], &[2, 1, 3, 2, 3]),
    ];
    for (conv, x, w) in cases {
        check(&conv, x, w);
    }
}

#[test]
fn the_reader_takes_every_attribute() {
    let read = |attributes: &[(&'static str, Attribute)]| {
        let map = attributes.iter().map(|(k, v)| (k.to_string(), v.clone())).collect();
        let mut r = Reading::new("Conv", 11, map, vec![None; 3], 1);
        let op = READERS[0].1(&mut r)?;
        r.finish().map(|_| op)
    };
    let ints = |x: &[i64]| Attribute::Ints(x.to_vec());
    let attributes = [
        ("dilations", ints(&[1, 2])),
        ("strides", ints(&[2, 3])),
        ("pads", ints(&[0, 1, 2, 0])),
        ("kernel_shape", ints(&[3, 2])),
        ("group", Attribute::Int(2)),
    ];
    assert_eq!(read(&attributes).unwrap().attributes(), attributes);
    assert!(read(&[]).unwrap().attributes().is_empty());
    for (name, value) in [("group", 0), ("group", -1), ("activation", 1)] {
        let message = read(&[(name, Attribute::Int(value))]).unwrap_err().to_string();
        assert!(message.contains(name), "{message}");
    }
}

#[test]
fn threads_do_not_change_results() {
    let cases: [(Conv, &[usize], &[usize]); 5] = [
        (conv(&[], &[], pads(&[(1, 1), (1, 1)]), 2), &[40, 60, 4, 4], &[70, 30, 3, 3]),
        (conv(&[], &[], pads(&[]), 1), &[1, 40, 60, 60], &[50, 40, 1, 1]),
        (conv(&[], &[], pads(&[(1, 1), (1, 1)]), 1), &[3, 16, 33, 33], &[40, 16, 3, 3]),
        (conv(&[], &[], pads(&[(1, 1), (1, 1)]), 1), &[1, 150, 6, 6], &[170, 150, 3, 3]),
        (conv(&[], &[], pads(&[(1, 1), (1, 1)]), 64), &[2, 64, 40, 40], &[64, 1, 3, 3]),
    ];
    for (conv, x, w) in cases {
        let (x, w) = (random(x, 1), random(w, 2));
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| conv.eval(&[&x, &w]).unwrap())
        };
        let one = run(1);
        for threads in [2, 3, 5] {
            assert!(run(threads) == one, "{conv:?} with {threads} threads");
        }
    }
}

#[test]
fn half_precision_is_computed_in_f32() {
    let c = conv(&[], &[], pads(&[(1, 1), (1, 1)]), 1);
    let (x, w) = (random(&[1, 2, 5, 5], 1), random(&[3, 2, 3, 3], 2));
    for dtype in [DType::F16, DType::BF16, DType::F64] {
        let [x, w] = [&x, &w].map(|t| float::write(dtype, t.shape(), t.to_f32().unwrap()).unwrap());
        let y = c.eval(&[&x, &w]).unwrap().remove(0);
        let [x, w] = [&x, &w].map(|t| float::write(DType::F32, t.shape(), t.to_f32().unwrap()).unwrap());
        let want = c.eval(&[&x, &w]).unwrap().remove(0).to_f32().unwrap();
        assert_eq!(y, float::write(dtype, &[1, 3, 5, 5], want).unwrap());
    }
}

#[test]
fn empty_operands_give_empty_or_bias() {
    let c = conv(&[], &[], pads(&[(1, 1), (1, 1)]), 1);
    let y = c.eval(&[&random(&[0, 2, 5, 5], 1), &random(&[3, 2, 3, 3], 2)]).unwrap().remove(0);
    assert_eq!(y.shape(), [0, 3, 5, 5]);
    let bias = Tensor::vector(vec![1.0f32, 2.0]);
    let y = c.eval(&[&random(&[1, 0, 2, 1], 1), &random(&[2, 0, 3, 3], 2), &bias]).unwrap().remove(0);
    assert_eq!(y.slice::<f32>().unwrap(), [1.0, 1.0, 2.0, 2.0]);
}

#[test]
fn symbolic_sizes_are_carried() {
    let c = conv(&[2, 1], &[], pads(&[(1, 1), (1, 1)]), 1);
    let named = |s: &str| Dim::Named(s.into());
    let x = Fact::new(DType::F32, vec![named("N"), 3.into(), named("H"), named("W")]);
    let w = Fact::new(DType::F32, [8, 3, 3, 3]);
    let y = c.infer(&[&x, &w]).unwrap().remove(0);
    assert_eq!(y.shape, [named("N"), 8.into(), named("(floor((H-1)/2)+1)"), named("W")]);
    let x = Fact::new(DType::F32, vec![named("N"), 3.into(), 8.into(), 8.into()]);
    let y = c.infer(&[&x, &w]).unwrap().remove(0);
    assert_eq!(y.shape, [named("N"), 8.into(), 4.into(), 8.into()]);
    assert_eq!(c.macs(&[&x, &w], &[&y]), 8 * 4 * 8 * 27);
}

#[test]
fn operands_that_do_not_fit_are_errors() {
    let plain = || conv(&[], &[], pads(&[]), 1);
    type Shapes<'a> = &'a [&'a [usize]];
    let cases: [(Conv, Shapes, &str); 11] = [
        (plain(), &[&[1, 3, 5, 5], &[4, 2, 3, 3]], "has 3 channels"),
        (plain(), &[&[1, 3, 5, 5], &[4, 3, 6, 3]], "does not fit"),
        (plain(), &[&[1, 3, 5], &[4, 3, 3, 3]], "same rank"),
        (plain(), &[&[1, 3], &[4, 3]], "spatial"),
        (plain(), &[&[1, 3, 5, 5], &[4, 3, 3, 3], &[3]], "bias must have shape [4]"),
        (plain(), &[&[1, 3, 5, 5]], "takes 2 to 3 inputs"),
        (conv(&[], &[], pads(&[]), 3), &[&[1, 3, 5, 5], &[4, 1, 3, 3]], "3 groups"),
        (conv(&[], &[], pads(&[]), 0), &[&[1, 3, 5, 5], &[4, 3, 3, 3]], "0 groups"),
        (conv(&[0, 1], &[], pads(&[]), 1), &[&[1, 3, 5, 5], &[4, 3, 3, 3]], "at least 1"),
        (plain(), &[&[1, 3, 2, 2, 2, 2], &[4, 3, 1, 1, 1, 1]], "4 spatial axes"),
        (
            conv(&[], &[], pads(&[(1 << 30, 0), (1 << 30, 0)]), 1),
            &[&[1, 3, 5, 5], &[4, 3, 3, 3]],
            "too many elements",
        ),
    ];
    for (conv, shapes, want) in cases {
        let tensors: Vec<Tensor> = shapes.iter().map(|s| random(s, 1)).collect();
        let facts: Vec<Fact> = tensors.iter().map(Fact::of).collect();
        let inferred = conv.infer(&facts.iter().collect::<Vec<_>>()).map(|_| ());
        let evaluated = conv.eval(&tensors.iter().collect::<Vec<_>>()).map(|_| ());
        for result in [inferred, evaluated] {
            let message = result.unwrap_err().to_string();
            assert!(message.contains(want), "{shapes:?}: {message}");
        }
    }
    let stated = Conv { kernel: Some(vec![3, 2]), ..plain() };
    let (x, w) = (Fact::new(DType::F32, [1, 3, 5, 5]), Fact::new(DType::F32, [4, 3, 3, 3]));
    assert!(stated.infer(&[&x, &w]).unwrap_err().to_string().contains("contradicts"));
    let x = Fact::new(DType::I32, [1, 3, 5, 5]);
    assert!(plain().infer(&[&x, &x]).unwrap_err().to_string().contains("not supported"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn equals_the_definition_everywhere(
        (batch, group, c, m) in (1usize..3, 1usize..4, 1usize..4, 1usize..4),
        size in prop::array::uniform2(1usize..20), kernel in prop::array::uniform2(1usize..5),
        strides in prop::array::uniform2(1usize..4), dilations in prop::array::uniform2(1usize..3),
        before in prop::array::uniform2(0usize..4), after in prop::array::uniform2(0usize..4),
        auto in 0..4,
    ) {
        let padding = match auto {
            0 => Padding::SameUpper,
            1 => Padding::SameLower,
            _ => pads(&[(before[0], after[0]), (before[1], after[1])]),
        };
        let conv = conv(&strides, &dilations, padding, group);
        let (x, w) = ([batch, group * c, size[0], size[1]], [group * m, c, kernel[0], kernel[1]]);
        prop_assume!(conv.geometry(&x, &w).is_ok());
        check(&conv, &x, &w);
    }
}
