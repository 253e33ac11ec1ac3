use super::*;
use crate::qconfig::Per;
use crate::random::values;
use crate::scheme::{Format, Mapping};
use crate::tensor::{DType, Tensor};

/// `x` of the documentation of `pytorch-quantization`, and its largest magnitude before
/// printing.
const X: [f32; 10] = [0.9817, 0.8796, 0.9921, 0.4611, 0.0832, 0.1784, 0.3674, 0.5676, 0.3376, 0.2119];
const AMAX: f32 = 127.0 / 128.0057;

#[test]
fn tensors_are_quantized_as_documented() {
    let (x, amax) = (Tensor::vector(X.to_vec()), Tensor::scalar(AMAX));
    let (codes, scale) = tensor_quant(&x, &amax, 8, false, true).unwrap();
    assert_eq!(codes, Tensor::vector(vec![126i8, 113, 127, 59, 11, 23, 47, 73, 43, 27]));
    assert_eq!(format!("{:.4}", scale.item::<f32>().unwrap()), "128.0057");
    let fake = fake_tensor_quant(&x, &amax, 8, false, true).unwrap();
    let printed: Vec<String> = fake.slice::<f32>().unwrap().iter().map(|x| format!("{x:.4}")).collect();
    let want = "0.9843 0.8828 0.9921 0.4609 0.0859 0.1797 0.3672 0.5703 0.3359 0.2109";
    assert_eq!(printed.join(" "), want);
    let largest = X.iter().fold(0f32, |most, x| most.max(*x));
    assert_eq!(tensor_quant(&x, &Tensor::scalar(largest), 8, false, true).unwrap().0, codes);
}

#[test]
fn bounds_axes_and_zeros() {
    let vector = |x: &[f32]| Tensor::vector(x.to_vec());
    struct Case {
        x: &'static [f32],
        amax: f32,
        bits: u8,
        unsigned: bool,
        narrow: bool,
        codes: Tensor,
        scale: f32,
    }
    let i4 = |x: Vec<i8>| Tensor::coded(DType::I4, &[x.len()], x).unwrap();
    let cases = [
        Case {
            x: &[-9., -7.4, 9.],
            amax: 7.,
            bits: 4,
            unsigned: false,
            narrow: false,
            codes: i4(vec![-8, -7, 7]),
            scale: 1.,
        },
        Case {
            x: &[-9., -7.4, 9.],
            amax: 7.,
            bits: 4,
            unsigned: false,
            narrow: true,
            codes: i4(vec![-7, -7, 7]),
            scale: 1.,
        },
        Case {
            x: &[0., 0.6, 2.],
            amax: 1.,
            bits: 8,
            unsigned: true,
            narrow: true,
            codes: Tensor::vector(vec![0u8, 153, 255]),
            scale: 255.,
        },
        Case {
            x: &[-3., 1e-9, 3.],
            amax: 0.,
            bits: 8,
            unsigned: false,
            narrow: false,
            codes: Tensor::vector(vec![0i8; 3]),
            scale: 1.,
        },
        Case {
            x: &[-3., 1e-9, 3.],
            amax: 5e-8,
            bits: 8,
            unsigned: false,
            narrow: false,
            codes: Tensor::vector(vec![0i8; 3]),
            scale: 1.,
        },
        Case {
            x: &[1e-7, -1e-6],
            amax: 1e-7,
            bits: 8,
            unsigned: false,
            narrow: true,
            codes: Tensor::vector(vec![127i8, -127]),
            scale: 127. / 1e-7,
        },
        Case {
            x: &[1.],
            amax: 1.,
            bits: 16,
            unsigned: false,
            narrow: true,
            codes: Tensor::vector(vec![32767i16]),
            scale: 32767.,
        },
    ];
    for Case { x, amax, bits, unsigned, narrow, codes, scale } in cases {
        let got = tensor_quant(&vector(x), &Tensor::scalar(amax), bits, unsigned, narrow).unwrap();
        assert_eq!(got, (codes, Tensor::scalar(scale)), "{x:?}, amax {amax}, {bits} bits");
    }

    let x = Tensor::new(&[1, 3, 2], vec![1f32, -2., 3., -4., 5., 6.]).unwrap();
    let amax = Tensor::new(&[1, 3, 1], vec![2f32, 0., 12.]).unwrap();
    let (codes, scale) = tensor_quant(&x, &amax, 8, false, true).unwrap();
    assert_eq!(codes, Tensor::new(&[1, 3, 2], vec![64i8, -127, 0, 0, 53, 64]).unwrap());
    assert_eq!(scale, Tensor::new(&[1, 3, 1], vec![63.5f32, 1., 127. / 12.]).unwrap());
    let fake = fake_tensor_quant(&x, &amax, 8, false, true).unwrap();
    assert_eq!(fake.slice::<f32>().unwrap()[1..4], [-2.0, 0.0, 0.0]);

    let (two, wrong) = (Tensor::vector(vec![1f32, 2.]), Tensor::new(&[3, 1, 1], vec![1f32; 3]).unwrap());
    for (x, amax, bits, unsigned, says) in [
        (&x, &Tensor::scalar(-1f32), 8, false, "neither negative"),
        (&x, &Tensor::scalar(f32::NAN), 8, false, "neither negative"),
        (&x, &Tensor::scalar(1f32), 8, true, "-2 is negative, and the codes are unsigned"),
        (&x, &Tensor::scalar(1f32), 17, false, "choose 2 to 16"),
        (&x, &two, 8, false, "amax of shape [2]"),
        (&x, &wrong, 8, false, "not for one axis of [1, 3, 2]"),
    ] {
        let error = tensor_quant(x, amax, bits, unsigned, true).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
        assert_eq!(fake_tensor_quant(x, amax, bits, unsigned, true).unwrap_err().to_string(), error);
    }
}

#[test]
fn descriptors_are_written_and_become_specs() {
    for (text, want) in [
        ("", QUANT_DESC_8BIT_PER_TENSOR),
        ("unsigned = true", QUANT_DESC_UNSIGNED_8BIT_PER_TENSOR),
        ("axis = 0", QUANT_DESC_8BIT_CONV2D_WEIGHT_PER_CHANNEL),
        (
            "num-bits = [4, 3]\namax = 2.0\nlearn-amax = true\ncalib-method = 'histogram'\nfake-quant = false",
            QuantDescriptor {
                num_bits: NumBits::Float(4, 3),
                amax: Some(Amax::Tensor(2.0)),
                learn_amax: true,
                calib_method: CalibMethod::Histogram,
                fake_quant: false,
                ..QuantDescriptor::default()
            },
        ),
    ] {
        let read: QuantDescriptor = toml::from_str(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(read, want, "{text}");
        let written = toml::to_string(&read).unwrap();
        assert_eq!(toml::from_str::<QuantDescriptor>(&written).unwrap(), want, "{written}");
    }
    let spec = QUANT_DESC_8BIT_CONV2D_WEIGHT_PER_CHANNEL.spec().unwrap();
    assert_eq!(
        (spec.format, spec.mapping, spec.per),
        (Format::INT8_NARROW, Mapping::Symmetric, Per::Channel)
    );
    let spec = QUANT_DESC_UNSIGNED_8BIT_PER_TENSOR.spec().unwrap();
    assert_eq!((spec.format, spec.mapping, spec.per), (Format::UINT8, Mapping::Affine, Per::Tensor));
    let config = qconfig(&QUANT_DESC_8BIT_PER_TENSOR, &QUANT_DESC_8BIT_LINEAR_WEIGHT_PER_ROW).unwrap();
    assert!(config.activation.unwrap().inputs_only);

    let int = |bits| QuantDescriptor::new(bits);
    let float = |e, m| QuantDescriptor { num_bits: NumBits::Float(e, m), ..QuantDescriptor::default() };
    for (descriptor, says) in [
        (int(1), "num-bits = 1"),
        (float(3, 4), "num-bits = [3, 4]"),
        (QuantDescriptor { unsigned: true, ..float(4, 3) }, "floats are signed"),
        (QuantDescriptor { amax: Some(Amax::Tensor(-1.0)), ..int(8) }, "amax = -1"),
        (QuantDescriptor { amax: Some(Amax::Axis(vec![1.0, 2.0])), ..int(8) }, "without an axis"),
    ] {
        let error = TensorQuantizer::new(descriptor).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    assert!(qconfig(&int(8).along(1), &int(8)).unwrap_err().to_string().contains("axis = 1"));
}

#[test]
fn calibrators_find_what_observers_find() {
    let mut histogram = Calibrator::new(&QuantDescriptor {
        calib_method: CalibMethod::Histogram,
        ..QuantDescriptor::default()
    })
    .unwrap();
    let mut unsigned = Calibrator::new(&QuantDescriptor {
        calib_method: CalibMethod::Histogram,
        ..QUANT_DESC_UNSIGNED_8BIT_PER_TENSOR
    })
    .unwrap();
    let mut max = Calibrator::new(&QUANT_DESC_8BIT_PER_TENSOR.along(0)).unwrap();
    assert!(histogram.is_empty());
    assert!(histogram.compute_amax(AmaxMethod::Max).unwrap_err().to_string().contains("saw no data"));
    // Cubes: most values are small.
    for seed in 0..4 {
        let x: Vec<f32> =
            values(seed, &[2, 4096]).to_f32().unwrap().iter().map(|x| 4.0 * x.powi(3)).collect();
        let x = Tensor::new(&[2, 4096], x).unwrap();
        histogram.collect(&x).unwrap();
        max.collect(&x).unwrap();
        let magnitudes = x.to_f32().unwrap().iter().map(|x| x.abs()).collect();
        unsigned.collect(&Tensor::new(&[2, 4096], magnitudes).unwrap()).unwrap();
    }
    let amax = |method| histogram.compute_amax(method).unwrap()[0];
    let largest = max.compute_amax(AmaxMethod::Max).unwrap();
    assert_eq!((largest.len(), largest[0].max(largest[1])), (2, amax(AmaxMethod::Max)));
    // Of |4 u^3| with u even in 0 to 1, 90 per cent lie below 4 * 0.9^3.
    assert!((amax(AmaxMethod::Percentile(90.0)) - 4.0 * 0.729).abs() < 0.1);
    assert_eq!(amax(AmaxMethod::Percentile(100.0)), amax(AmaxMethod::Max));
    for method in [AmaxMethod::Entropy, AmaxMethod::Mse] {
        let found = amax(method);
        assert!(found > 0.5 && found <= amax(AmaxMethod::Max), "{method:?}: {found}");
        assert!(unsigned.compute_amax(method).unwrap()[0] <= amax(AmaxMethod::Max));
    }
    assert_eq!(
        unsigned.compute_amax(AmaxMethod::Percentile(90.0)).unwrap()[0],
        amax(AmaxMethod::Percentile(90.0))
    );
    let error = max.compute_amax(AmaxMethod::Entropy).unwrap_err().to_string();
    assert!(error.contains("calib-method = \"histogram\""), "{error}");
}

#[test]
fn a_quantizer_passes_calibrates_quantizes_and_is_saved() {
    let descriptor = QuantDescriptor { calib_method: CalibMethod::Histogram, ..QuantDescriptor::default() };
    let mut quantizer = TensorQuantizer::new(descriptor).unwrap();
    let x = Tensor::vector(X.to_vec());
    assert_eq!(quantizer.state(), State::FakeQuantizing);
    assert!(quantizer.step_size().unwrap_err().to_string().contains("amax is not known"));
    // Without amax, that of the tensor.
    let amax = Tensor::scalar(0.9921f32);
    let fake = fake_tensor_quant(&x, &amax, 8, false, false).unwrap();
    assert_eq!(quantizer.forward(&x).unwrap(), fake);
    quantizer.disable();
    assert_eq!(quantizer.forward(&x).unwrap(), x);
    assert!(quantizer.load_calib_amax(AmaxMethod::Max).is_err());
    quantizer.enable_calib();
    assert_eq!(quantizer.forward(&x).unwrap(), x);
    quantizer.load_calib_amax(AmaxMethod::Max).unwrap();
    assert_eq!(quantizer.amax().unwrap(), [0.9921]);
    assert_eq!(quantizer.step_size().unwrap(), [0.9921 / 127.0]);
    quantizer.enable_quant();
    assert_eq!(quantizer.forward(&x).unwrap(), fake);

    let text = serde_json::to_string(&quantizer).unwrap();
    assert_eq!(serde_json::from_str::<TensorQuantizer>(&text).unwrap(), quantizer);
    let bad = text.replace("\"amax\":[0.9921]", "\"amax\":[-1.0]");
    assert!(serde_json::from_str::<TensorQuantizer>(&bad).unwrap_err().to_string().contains("amax = -1"));

    let descriptor = QuantDescriptor { fake_quant: false, ..QuantDescriptor::default() };
    let mut codes = TensorQuantizer::new(descriptor).unwrap();
    codes.set_amax(vec![0.9921]).unwrap();
    assert_eq!(codes.forward(&x).unwrap(), tensor_quant(&x, &amax, 8, false, false).unwrap().0);

    let descriptor = QuantDescriptor { num_bits: NumBits::Float(4, 3), ..QuantDescriptor::default() };
    let mut e4m3 = TensorQuantizer::new(descriptor).unwrap();
    e4m3.set_amax(vec![448.0]).unwrap();
    let x = Tensor::vector(vec![0.3f32, 449.0, -1000.0]);
    assert_eq!(e4m3.forward(&x).unwrap(), Tensor::vector(vec![0.3125f32, 448.0, -448.0]));
}

#[test]
fn amax_learns_from_what_it_clips() {
    let descriptor = QuantDescriptor {
        learn_amax: true,
        narrow_range: true,
        amax: Some(Amax::Tensor(2.0)),
        ..QuantDescriptor::default()
    };
    let quantizer = TensorQuantizer::new(descriptor).unwrap();
    let x = Tensor::vector(vec![-3f32, -1.0, 0.5, 2.5, 4.0]);
    let g = Tensor::vector(vec![1f32, 2., 4., 8., 16.]);
    let (by_x, by_amax) = quantizer.backward(&x, &g).unwrap();
    assert_eq!(by_x, Tensor::vector(vec![0f32, 2., 4., 0., 0.]));
    assert!((by_amax.unwrap()[0] - 23.0).abs() < 1e-4);
    let fixed = QuantDescriptor { learn_amax: false, ..quantizer.descriptor().clone() };
    assert_eq!(TensorQuantizer::new(fixed).unwrap().backward(&x, &g).unwrap(), (by_x, None));
}
