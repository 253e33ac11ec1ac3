use std::collections::BTreeMap;

use super::*;
use crate::ops::conv::tests::assert_close;
use crate::ops::differences::{Case, check};

fn nearest(rounding: Nearest) -> Mode {
    Mode::Nearest(rounding)
}

fn cubic(a: f32, exclude_outside: bool) -> Mode {
    Mode::Cubic { a, exclude_outside }
}

fn scales(h: f32, w: f32) -> Target {
    Target::Scales(vec![1.0, 1.0, h, w])
}

fn sizes(h: usize, w: usize) -> Target {
    Target::Sizes(vec![1, 1, h, w])
}

fn resize(mode: Mode, coordinates: Coordinates, target: Target) -> Resize {
    Resize { mode, coordinates, axes: None, target }
}

/// 0, 7, 2, 9 | 4, 11, 6, 1 | 8, 3, 10, 5.
fn input() -> Tensor {
    Tensor::new(&[1, 1, 3, 4], (0..12).map(|i| (i * 7 % 12) as f32).collect::<Vec<f32>>()).unwrap()
}

/// What onnxruntime 1.31 gives for [`input`], but for
/// (round_prefer_ceil, half_pixel_symmetric), whose ties it rounds by chance.
#[test]
fn equals_onnxruntime() {
    let cases: [(Mode, Coordinates, Target, &[f32]); 41] = [
        (
            nearest(Nearest::RoundPreferFloor),
            Coordinates::HalfPixel,
            scales(1.5, 0.75),
            &[0.0, 7.0, 9.0, 0.0, 7.0, 9.0, 4.0, 11.0, 1.0, 8.0, 3.0, 5.0],
        ),
        (
            nearest(Nearest::RoundPreferFloor),
            Coordinates::Asymmetric,
            scales(1.5, 0.75),
            &[0.0, 7.0, 9.0, 4.0, 11.0, 1.0, 4.0, 11.0, 1.0, 8.0, 3.0, 5.0],
        ),
        (
            nearest(Nearest::RoundPreferFloor),
            Coordinates::AlignCorners,
            scales(1.5, 0.75),
            &[0.0, 7.0, 9.0, 4.0, 11.0, 1.0, 4.0, 11.0, 1.0, 8.0, 3.0, 5.0],
        ),
        (
            nearest(Nearest::RoundPreferFloor),
            Coordinates::PytorchHalfPixel,
            scales(1.5, 0.75),
            &[0.0, 7.0, 9.0, 0.0, 7.0, 9.0, 4.0, 11.0, 1.0, 8.0, 3.0, 5.0],
        ),
        (
            nearest(Nearest::RoundPreferFloor),
            Coordinates::HalfPixelSymmetric,
            scales(1.5, 0.75),
            &[0.0, 7.0, 9.0, 4.0, 11.0, 1.0, 4.0, 11.0, 1.0, 8.0, 3.0, 5.0],
        ),
        (
            nearest(Nearest::RoundPreferCeil),
            Coordinates::HalfPixel,
            scales(1.5, 0.75),
            &[0.0, 2.0, 9.0, 4.0, 6.0, 1.0, 4.0, 6.0, 1.0, 8.0, 10.0, 5.0],
        ),
        (
            nearest(Nearest::RoundPreferCeil),
            Coordinates::Asymmetric,
            scales(1.5, 0.75),
            &[0.0, 7.0, 9.0, 4.0, 11.0, 1.0, 4.0, 11.0, 1.0, 8.0, 3.0, 5.0],
        ),
        (
            nearest(Nearest::RoundPreferCeil),
            Coordinates::AlignCorners,
            scales(1.5, 0.75),
            &[0.0, 2.0, 9.0, 4.0, 6.0, 1.0, 4.0, 6.0, 1.0, 8.0, 10.0, 5.0],
        ),
        (
            nearest(Nearest::RoundPreferCeil),
            Coordinates::PytorchHalfPixel,
            scales(1.5, 0.75),
            &[0.0, 2.0, 9.0, 4.0, 6.0, 1.0, 4.0, 6.0, 1.0, 8.0, 10.0, 5.0],
        ),
        (
            nearest(Nearest::Floor),
            Coordinates::HalfPixel,
            scales(1.5, 0.75),
            &[0.0, 7.0, 2.0, 0.0, 7.0, 2.0, 4.0, 11.0, 6.0, 4.0, 11.0, 6.0],
        ),
        (
            nearest(Nearest::Floor),
            Coordinates::Asymmetric,
            scales(1.5, 0.75),
            &[0.0, 7.0, 2.0, 0.0, 7.0, 2.0, 4.0, 11.0, 6.0, 8.0, 3.0, 10.0],
        ),
        (
            nearest(Nearest::Floor),
            Coordinates::AlignCorners,
            scales(1.5, 0.75),
            &[0.0, 7.0, 9.0, 0.0, 7.0, 9.0, 4.0, 11.0, 1.0, 8.0, 3.0, 5.0],
        ),
        (
            nearest(Nearest::Floor),
            Coordinates::PytorchHalfPixel,
            scales(1.5, 0.75),
            &[0.0, 7.0, 2.0, 0.0, 7.0, 2.0, 4.0, 11.0, 6.0, 4.0, 11.0, 6.0],
        ),
        (
            nearest(Nearest::Floor),
            Coordinates::HalfPixelSymmetric,
            scales(1.5, 0.75),
            &[0.0, 7.0, 2.0, 0.0, 7.0, 2.0, 4.0, 11.0, 6.0, 8.0, 3.0, 10.0],
        ),
        (
            nearest(Nearest::Ceil),
            Coordinates::HalfPixel,
            scales(1.5, 0.75),
            &[7.0, 2.0, 9.0, 11.0, 6.0, 1.0, 3.0, 10.0, 5.0, 3.0, 10.0, 5.0],
        ),
        (
            nearest(Nearest::Ceil),
            Coordinates::Asymmetric,
            scales(1.5, 0.75),
            &[0.0, 2.0, 9.0, 4.0, 6.0, 1.0, 8.0, 10.0, 5.0, 8.0, 10.0, 5.0],
        ),
        (
            nearest(Nearest::Ceil),
            Coordinates::AlignCorners,
            scales(1.5, 0.75),
            &[0.0, 2.0, 9.0, 4.0, 6.0, 1.0, 8.0, 10.0, 5.0, 8.0, 10.0, 5.0],
        ),
        (
            nearest(Nearest::Ceil),
            Coordinates::PytorchHalfPixel,
            scales(1.5, 0.75),
            &[7.0, 2.0, 9.0, 11.0, 6.0, 1.0, 3.0, 10.0, 5.0, 3.0, 10.0, 5.0],
        ),
        (
            nearest(Nearest::Ceil),
            Coordinates::HalfPixelSymmetric,
            scales(1.5, 0.75),
            &[7.0, 2.0, 9.0, 11.0, 6.0, 1.0, 3.0, 10.0, 5.0, 3.0, 10.0, 5.0],
        ),
        (
            Mode::Linear,
            Coordinates::HalfPixel,
            scales(1.5, 0.6),
            &[2.33333, 2.0, 4.33333, 4.0, 6.33333, 6.66667, 6.33333, 9.33333],
        ),
        (Mode::Linear, Coordinates::HalfPixel, sizes(1, 6), &[4.0, 7.5, 10.1667, 6.83333, 3.5, 1.0]),
        (
            Mode::Linear,
            Coordinates::Asymmetric,
            scales(1.5, 0.6),
            &[0.0, 3.66667, 2.66667, 6.33333, 5.33333, 7.66667, 8.0, 7.66667],
        ),
        (Mode::Linear, Coordinates::Asymmetric, sizes(1, 6), &[0.0, 4.66667, 5.33333, 2.0, 6.66667, 9.0]),
        (
            Mode::Linear,
            Coordinates::AlignCorners,
            scales(1.5, 0.6),
            &[0.0, 9.0, 2.66667, 3.66667, 5.33333, 2.33333, 8.0, 5.0],
        ),
        (Mode::Linear, Coordinates::AlignCorners, sizes(1, 6), &[0.0, 4.2, 6.0, 3.0, 4.8, 9.0]),
        (
            Mode::Linear,
            Coordinates::PytorchHalfPixel,
            scales(1.5, 0.6),
            &[2.33333, 2.0, 4.33333, 4.0, 6.33333, 6.66667, 6.33333, 9.33333],
        ),
        (Mode::Linear, Coordinates::PytorchHalfPixel, sizes(1, 6), &[0.0, 3.5, 6.16667, 2.83333, 5.5, 9.0]),
        (
            Mode::Linear,
            Coordinates::HalfPixelSymmetric,
            scales(1.5, 0.6),
            &[4.66667, 4.33333, 7.33333, 4.33333, 7.33333, 5.66667, 4.66667, 8.33333],
        ),
        (Mode::Linear, Coordinates::HalfPixelSymmetric, sizes(1, 6), &[4.0, 7.5, 10.1667, 6.83333, 3.5, 1.0]),
        (
            cubic(-0.75, false),
            Coordinates::HalfPixel,
            scales(1.5, 0.6),
            &[2.13426, 1.65278, 4.52315, 3.625, 6.76492, 6.9213, 6.17027, 9.49537],
        ),
        (
            cubic(-0.75, false),
            Coordinates::HalfPixel,
            sizes(1, 6),
            &[3.39236, 7.96875, 10.9769, 7.27315, 3.03125, 0.565973],
        ),
        (
            cubic(-0.75, false),
            Coordinates::Asymmetric,
            scales(1.5, 0.6),
            &[0.0, 3.18518, 2.2963, 6.88889, 5.7037, 8.97119, 8.0, 8.07407],
        ),
        (
            cubic(-0.75, false),
            Coordinates::Asymmetric,
            sizes(1, 6),
            &[0.0, 5.35185, 5.81481, 2.0, 6.51852, 9.77778],
        ),
        (
            cubic(-0.75, false),
            Coordinates::AlignCorners,
            scales(1.5, 0.6),
            &[0.0, 9.0, 2.2963, 3.07408, 5.7037, 1.37037, 8.0, 5.0],
        ),
        (
            cubic(-0.75, false),
            Coordinates::AlignCorners,
            sizes(1, 6),
            &[0.0, 4.824, 6.624, 2.376, 4.176, 9.0],
        ),
        (
            cubic(-0.75, false),
            Coordinates::PytorchHalfPixel,
            scales(1.5, 0.6),
            &[2.13426, 1.65278, 4.52315, 3.625, 6.76492, 6.9213, 6.17027, 9.49537],
        ),
        (
            cubic(-0.75, false),
            Coordinates::PytorchHalfPixel,
            sizes(1, 6),
            &[-0.607639, 3.96875, 6.76852, 2.23148, 5.03125, 9.60764],
        ),
        (
            cubic(-0.75, false),
            Coordinates::HalfPixelSymmetric,
            scales(1.5, 0.6),
            &[5.35185, 3.64815, 8.70988, 3.20782, 8.04733, 5.57407, 3.7963, 9.20371],
        ),
        (
            cubic(-0.75, false),
            Coordinates::HalfPixelSymmetric,
            sizes(1, 6),
            &[3.39236, 7.96875, 10.9769, 7.27315, 3.03125, 0.565974],
        ),
        (
            cubic(-0.75, true),
            Coordinates::HalfPixel,
            scales(1.5, 0.6),
            &[1.82793, 1.59459, 4.0619, 3.48571, 6.57463, 6.97383, 6.29723, 9.53568],
        ),
        (
            cubic(-0.5, false),
            Coordinates::HalfPixel,
            scales(1.0, 2.0),
            &[
                -0.492188, 1.53906, 5.92969, 6.3125, 2.6875, 3.07031, 7.46094, 9.49219, 3.50781, 5.53906,
                9.92969, 10.5938, 7.53125, 4.63281, 1.89844, 0.648438, 8.35156, 6.82031, 3.52344, 4.1875,
                8.8125, 9.47656, 6.17969, 4.64844,
            ],
        ),
    ];
    let x = input();
    for (mode, coordinates, target, want) in cases {
        let op = resize(mode, coordinates, target);
        let y = op.eval(&[&x]).unwrap().remove(0);
        assert_close(y.slice().unwrap(), want, &op);
        let fact = op.infer(&[&Fact::of(&x)]).unwrap().remove(0);
        assert_eq!(fact.known_shape().unwrap(), y.shape(), "{op:?}");
    }
}

fn read(
    op: &str,
    opset: i64,
    attributes: &[(&str, Attribute)],
    inputs: Vec<Option<Tensor>>,
) -> Result<Arc<dyn Op>> {
    let map: BTreeMap<_, _> = attributes.iter().map(|(k, v)| (k.to_string(), v.clone())).collect();
    let mut r = Reading::new(op, opset, map, inputs, 1);
    let read = READERS.iter().find(|(name, _)| *name == op).unwrap().1;
    let made = read(&mut r)?;
    r.finish().map(|_| made)
}

fn absent() -> Option<Tensor> {
    Some(Tensor::vector(Vec::<f32>::new()))
}

fn text(s: &str) -> Attribute {
    Attribute::Text(s.into())
}

#[test]
fn older_forms_equal_onnxruntime() {
    let s = |x: [f32; 4]| vec![None, Some(Tensor::vector(x.to_vec()))];
    let linear = [("mode", text("linear"))];
    let floats = [("scales", Attribute::Floats(vec![1.0, 1.0, 1.0, 1.5]))];
    type Case<'a> = (Result<Arc<dyn Op>>, &'a [f32]);
    let cases: [Case; 5] = [
        (read("Resize", 10, &[], s([1.0, 1.0, 0.6, 0.6])), &[0.0, 2.0]),
        (read("Resize", 10, &[], s([1.0, 1.0, 0.4, 1.0])), &[0.0, 7.0, 2.0, 9.0]),
        (
            read("Resize", 10, &linear, s([1.0, 1.0, 1.5, 0.6])),
            &[0.0, 3.66667, 2.66667, 6.33333, 5.33333, 7.66667, 8.0, 7.66667],
        ),
        (
            read("Upsample", 9, &linear, s([1.0, 1.0, 1.0, 1.5])),
            &[
                0.0, 4.66667, 5.33333, 2.0, 6.66667, 9.0, 4.0, 8.66667, 9.33333, 6.0, 2.66667, 1.0, 8.0,
                4.66667, 5.33333, 10.0, 6.66667, 5.0,
            ],
        ),
        (
            read("Upsample", 7, &floats, vec![None]),
            &[0.0, 0.0, 7.0, 2.0, 2.0, 9.0, 4.0, 4.0, 11.0, 6.0, 6.0, 1.0, 8.0, 8.0, 3.0, 10.0, 10.0, 5.0],
        ),
    ];
    for (op, want) in cases {
        let op = op.unwrap();
        assert_close(op.eval(&[&input()]).unwrap()[0].slice().unwrap(), want, &op);
    }
}

#[test]
fn written_operands_read_back() {
    let cases = [
        resize(nearest(Nearest::Ceil), Coordinates::Asymmetric, scales(2.0, 2.0)),
        resize(Mode::Linear, Coordinates::AlignCorners, sizes(4, 5)),
        resize(cubic(-0.5, true), Coordinates::HalfPixelSymmetric, scales(2.0, 3.0)),
        Resize {
            axes: Some(vec![-1, 2]),
            ..resize(Mode::Linear, Coordinates::HalfPixel, Target::Sizes(vec![8, 6]))
        },
    ];
    for op in cases {
        let (attributes, operands) = op.written(19);
        let inputs = std::iter::once(None).chain(operands.into_iter().map(Some)).collect();
        assert_eq!(read("Resize", 19, &attributes, inputs).unwrap().is::<Resize>(), Some(&op));
    }
    let given = vec![None, absent(), absent(), None];
    let op = read("Resize", 13, &[("mode", text("linear"))], given).unwrap();
    assert_eq!(op.is::<Resize>().unwrap().target, Target::Operand);
    assert!(op.written(13).1.is_empty());
}

#[test]
fn codes_are_moved_as_codes() {
    let x = Tensor::new(&[1, 1, 1, 3], vec![-128i8, 5, 127]).unwrap();
    let op = resize(nearest(Nearest::Floor), Coordinates::Asymmetric, scales(1.0, 2.0));
    let y = op.eval(&[&x]).unwrap().remove(0);
    assert_eq!(y.slice::<i8>().unwrap(), [-128, -128, 5, 5, 127, 127]);
    assert_eq!(op.quant(), Quant::Share);
    let linear = resize(Mode::Linear, Coordinates::Asymmetric, scales(1.0, 2.0));
    assert!(linear.eval(&[&x]).unwrap_err().to_string().contains("not supported"));
    let none = Tensor::new(&[0, 1, 1, 3], Vec::<i8>::new()).unwrap();
    assert_eq!(op.eval(&[&none]).unwrap()[0].shape(), [0, 1, 1, 6]);
}

#[test]
fn listed_axes_are_resized() {
    let all = resize(Mode::Linear, Coordinates::HalfPixel, scales(2.0, 1.5)).eval(&[&input()]).unwrap();
    let some = Resize {
        axes: Some(vec![-1, 2]),
        ..resize(Mode::Linear, Coordinates::HalfPixel, Target::Scales(vec![1.5, 2.0]))
    };
    assert_eq!(some.eval(&[&input()]).unwrap(), all);
}

#[test]
fn symbolic_sizes_are_carried() {
    let named = |s: &str| Dim::Named(s.into());
    let x = Fact::new(DType::F32, vec![named("N"), 3.into(), named("H"), 4.into()]);
    let op = resize(Mode::Linear, Coordinates::HalfPixel, scales(2.0, 2.0));
    assert_eq!(op.infer(&[&x]).unwrap()[0].shape, [named("N"), 3.into(), named("(2*H)"), 8.into()]);
    let op = resize(Mode::Linear, Coordinates::HalfPixel, scales(1.5, 0.5));
    assert_eq!(op.infer(&[&x]).unwrap()[0].shape, [named("N"), 3.into(), named("floor(1.5*H)"), 2.into()]);
    let op = resize(Mode::Linear, Coordinates::HalfPixel, Target::Operand);
    let none = Fact::new(DType::F32, [0]);
    let mut to = Fact::new(DType::I64, [4]);
    assert!(op.infer(&[&x, &none, &none, &to]).is_err());
    to.sizes = Some(vec![named("N"), 3.into(), named("(2*H)"), 8.into()]);
    let y = op.infer(&[&x, &none, &none, &to]).unwrap().remove(0);
    assert_eq!(y.shape, to.sizes.unwrap());
    let empty = Tensor::vector(Vec::<f32>::new());
    let sizes = Tensor::vector(vec![1i64, 1, 6, 2]);
    let y = op.eval(&[&input(), &empty, &empty, &sizes]).unwrap().remove(0);
    assert_eq!(y.shape(), [1, 1, 6, 2]);
}

#[test]
fn what_cannot_be_resized_is_an_error() {
    let s = |x: &[f32]| vec![None, absent(), Some(Tensor::vector(x.to_vec()))];
    let with = |name: &'static str, a: Attribute| read("Resize", 19, &[(name, a)], s(&[1.0, 2.0]));
    let upsample = |x: &[f32]| read("Upsample", 9, &[], vec![None, Some(Tensor::vector(x.to_vec()))]);
    let readings = [
        (with("coordinate_transformation_mode", text("tf_crop_and_resize")), "tf_crop_and_resize"),
        (with("antialias", Attribute::Int(1)), "antialias"),
        (with("keep_aspect_ratio_policy", text("not_larger")), "keep_aspect_ratio_policy"),
        (with("mode", text("lanczos")), "lanczos"),
        (with("nearest_mode", text("up")), "not one that ONNX defines"),
        (with("unknown", text("up")), "unknown"),
        (read("Resize", 13, &[], vec![None]), "neither scales nor sizes"),
        (read("Resize", 13, &[], vec![None, absent(), None]), "not a constant"),
        (upsample(&[2.0, 0.5]), "growing some axes"),
        (read("Upsample", 7, &[], vec![None]), "scales is missing"),
    ];
    for (result, want) in readings {
        let message = result.unwrap_err().to_string();
        assert!(message.contains(want), "{message}");
    }
    let half = |target| resize(Mode::Linear, Coordinates::HalfPixel, target);
    let with_axes = |axes: &[i64]| Resize { axes: Some(axes.to_vec()), ..half(Target::Sizes(vec![2, 2])) };
    let shape = [1, 1, 3, 4];
    let cases: [(Resize, &[usize], &str); 9] = [
        (half(Target::Scales(vec![2.0])), &shape, "1 scales or sizes for 4 axes"),
        (half(scales(0.0, 1.0)), &shape, "not a positive number"),
        (half(scales(f32::NAN, 1.0)), &shape, "not a positive number"),
        (half(scales(1e30, 1e30)), &shape, "too many elements"),
        (half(sizes(usize::MAX, 2)), &shape, "too many elements"),
        (half(sizes(1, 2)), &[1, 1, 0, 4], "without cells"),
        (with_axes(&[2, 2]), &shape, "once each"),
        (with_axes(&[2, 4]), &shape, "once each"),
        (with_axes(&[-5, 0]), &shape, "once each"),
    ];
    for (op, shape, want) in cases {
        let x = Tensor::full(shape, 1.0f32).unwrap();
        for result in [op.infer(&[&Fact::of(&x)]).map(|_| ()), op.eval(&[&x]).map(|_| ())] {
            let message = result.unwrap_err().to_string();
            assert!(message.contains(want), "{op:?}: {message}");
        }
    }
}

#[test]
fn gradients_are_those_of_differences() {
    let modes = [nearest(Nearest::Floor), Mode::Linear, cubic(-0.75, false), cubic(-0.5, true)];
    let targets = [scales(1.5, 0.75), scales(2.0, 2.0), scales(1.0, 3.0)];
    let both = [Coordinates::HalfPixel, Coordinates::AlignCorners];
    for (mode, target) in modes.iter().flat_map(|m| targets.iter().map(move |t| (*m, t))) {
        check(both.map(|c| Case::new(resize(mode, c, target.clone()), &[&[2, 3, 4, 5]])));
    }
    let absent = || Tensor::vector(Vec::<f32>::new());
    let to = Tensor::vector(vec![2i64, 1, 5, 2]);
    let operand = resize(Mode::Linear, Coordinates::HalfPixel, Target::Operand);
    check([Case::new(operand, &[&[2, 1, 3, 4]]).and(absent()).and(absent()).and(to)]);
}
