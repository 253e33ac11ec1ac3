use proptest::prelude::*;

use super::*;

/// One pixel (R, G, B) = (10, 20, 30) beside one of (40, 50, 60).
fn two_pixels() -> Picture {
    Picture::new(2, 1, 3, vec![10, 20, 30, 40, 50, 60]).unwrap()
}

#[test]
fn pixels_become_values() {
    struct Case {
        toml: &'static str,
        shape: [usize; 3],
        expected: Vec<f32>,
    }
    let cases = [
        Case { toml: "", shape: [3, 1, 2], expected: vec![10., 40., 20., 50., 30., 60.] },
        Case { toml: "layout = 'nhwc'", shape: [1, 2, 3], expected: vec![10., 20., 30., 40., 50., 60.] },
        Case {
            toml: "channels = 'bgr'\nmean = [30, 20, 10]",
            shape: [3, 1, 2],
            expected: vec![0., 30., 0., 30., 0., 30.],
        },
        Case {
            toml: "channels = 'bgr'\nlayout = 'nhwc'\nmean = [1, 2, 3]\nstd = [1, 1, 0.5]",
            shape: [1, 2, 3],
            expected: vec![29., 18., 14., 59., 48., 74.],
        },
        Case { toml: "channels = 'gray'", shape: [1, 1, 2], expected: vec![18., 48.] },
        Case {
            toml: "scale = 0.5\nmean = [1]\nstd = [2]",
            shape: [3, 1, 2],
            expected: vec![2., 9.5, 4.5, 12., 7., 14.5],
        },
        Case { toml: "resize = [2, 1]\ncrop = 1", shape: [3, 1, 1], expected: vec![25., 35., 45.] },
        Case {
            toml: "resize = 2\ncrop = [1, 4]",
            shape: [3, 1, 4],
            expected: vec![10., 18., 33., 40., 20., 28., 43., 50., 30., 38., 53., 60.],
        },
    ];
    let mut failures = vec![];
    for Case { toml, shape, expected } in cases {
        let t = Preprocess::from_toml(toml).unwrap().apply(&two_pixels()).unwrap();
        if t != Tensor::new(&shape, expected.clone()).unwrap() {
            failures.push(format!("{toml:?}: {:?} {:?}, expected {expected:?}", t.shape(), t.to_f32()));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn gray_pictures_stay_gray_or_are_repeated() {
    let gray = Picture::new(1, 1, 1, vec![9]).unwrap();
    for (toml, expected) in
        [("", vec![9.0f32]), ("channels = 'rgb'", vec![9.0; 3]), ("channels = 'gray'", vec![9.0])]
    {
        let t = Preprocess::from_toml(toml).unwrap().apply(&gray).unwrap();
        assert_eq!(t, Tensor::new(&[expected.len(), 1, 1], expected).unwrap(), "{toml:?}");
    }
}

#[test]
fn the_short_side_is_resized() {
    for (short, size, expected) in [
        (256, [480, 640], [256, 341]),
        (256, [640, 480], [341, 256]),
        (3, [5, 5], [3, 3]),
        (2, [1, 3], [2, 6]),
    ] {
        assert_eq!(Resize::Short(short).of(size[0], size[1]), expected, "{size:?} to {short}");
    }
}

#[test]
fn wrong_settings_are_refused() {
    let cases = [
        ("resise = 3", "unknown field `resise`"),
        ("crop = 0", "crop: 0 x 0 is not 1 to"),
        ("crop = [100000, 100000]", "crop: 100000 x 100000"),
        ("resize = 100000", "resize: 100000 x 100000"),
        ("resize = -1", "resize"),
        ("mean = [1, 2]", "mean: has 2 values"),
        ("channels = 'gray'\nmean = [1, 2, 3]", "mean: has 3 values, expected one of [1]"),
        ("std = [1, 0, 1]", "std: [1.0, 0.0, 1.0] divides by zero"),
        ("mean = [nan]", "not all finite"),
        ("scale = inf", "scale: inf is not finite"),
        ("channels = 'cmyk'", "cmyk"),
        ("interpolation = 'nearest'", "nearest"),
        ("[array]\nname = 'x'", "unknown field `name`"),
        ("[array]\nscale = nan", "array.scale: NaN is not finite"),
        ("[array]\nscale = [1]", "scale"),
        ("crop = ", "line 1"),
    ];
    let mut failures = vec![];
    for (toml, expected) in cases {
        match Preprocess::from_toml(toml) {
            Err(e) if e.to_string().contains(expected) => {}
            other => failures.push(format!("{toml:?}: {other:?}, expected {expected:?}")),
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn pictures_that_do_not_fit_are_refused() {
    let gray = Picture::new(4, 4, 1, vec![0; 16]).unwrap();
    let thin = Picture::new(60_000, 1, 1, vec![0; 60_000]).unwrap();
    for (toml, picture, expected) in [
        ("crop = 5", &gray, "5 x 5 does not fit in 4 x 4"),
        ("mean = [1, 2, 3]", &gray, "mean has 3 values for 1 channels"),
        ("resize = 256", &thin, "15360000 x 256 pixels"),
    ] {
        let message = Preprocess::from_toml(toml).unwrap().apply(picture).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn the_file_beside_the_model_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("net.v2.onnx");
    assert_eq!(Preprocess::beside(&model).unwrap(), None);
    let path = dir.path().join("net.v2.preprocess.toml");
    assert_eq!(Preprocess::path_beside(&model), path);
    fs::write(&path, "crop = 224").unwrap();
    let expected = Preprocess { crop: Some(Size::Square(224)), ..Preprocess::default() };
    assert_eq!(Preprocess::beside(&model).unwrap(), Some(expected));
    fs::write(&path, "crop = 'x'").unwrap();
    assert!(Preprocess::beside(&model).unwrap_err().to_string().contains("net.v2.preprocess.toml"));
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        resize in prop::option::of(prop_oneof![
            (1usize..4096).prop_map(Resize::Short),
            (1usize..4096, 1usize..4096).prop_map(|(h, w)| Resize::Exact([h, w])),
        ]),
        crop in prop::option::of((1usize..512).prop_map(Size::Square)),
        channels in prop::option::of(prop::sample::select(vec![Channels::Rgb, Channels::Bgr])),
        scale in -10f32..10.0,
        mean in prop::collection::vec(-300f32..300.0, 3),
        factor in prop::option::of(prop_oneof![
            (-1f32..1.0).prop_map(Factor::Value),
            "[a-z_]{1,8}".prop_map(Factor::Member),
        ]),
        key in prop::option::of("[a-z*]{1,8}"),
    ) {
        let array = Some(ArrayRule { key, scale: factor, ..ArrayRule::default() });
        let preprocess =
            Preprocess { resize, crop, channels, scale, mean, array, layout: Layout::Nhwc, ..Preprocess::default() };
        prop_assert_eq!(Preprocess::from_toml(&preprocess.to_toml().unwrap()).unwrap(), preprocess);
    }

    #[test]
    fn no_text_panics(text in "[a-z_\\[\\]=0-9 .'\n-]{0,60}") {
        let _ = Preprocess::from_toml(&text);
    }
}
