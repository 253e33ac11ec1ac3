//! Observers and quantization compared with torch 2.8: `tests/golden`.

use std::path::Path;

use lowbit::observer::{AnyObserver, Kind, ObserverConfig};
use lowbit::qparams::{QParams, Range};
use lowbit::scheme::{Format, Granularity, Mapping, Scheme};
use lowbit::tensor::Tensor;
use serde_json::Value;

fn golden(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn list(v: &Value) -> &[Value] {
    v.as_array().unwrap()
}

fn int(v: &Value) -> i32 {
    v.as_i64().unwrap().try_into().unwrap()
}

fn ints(v: &Value) -> Vec<i64> {
    list(v).iter().map(|x| x.as_i64().unwrap()).collect()
}

fn float(v: &Value) -> f32 {
    f32::from_bits(v.as_u64().unwrap().try_into().unwrap())
}

fn floats(v: &Value) -> Vec<f32> {
    list(v).iter().map(float).collect()
}

fn tensor(v: &Value) -> Tensor {
    let shape: Vec<usize> = list(&v["shape"]).iter().map(|d| int(d) as usize).collect();
    Tensor::new(&shape, floats(&v["bits"])).unwrap()
}

fn format(dtype: &Value) -> Format {
    match dtype.as_str().unwrap() {
        "quint8" => Format::UINT8,
        "qint8" => Format::INT8,
        "qint32" => Format::INT32,
        other => panic!("{other}"),
    }
}

fn scheme(v: &Value) -> Scheme {
    let mapping = if v["qscheme"] == "affine" { Mapping::Affine } else { Mapping::Symmetric };
    let (format, used) = (format(&v["dtype"]), (int(&v["used_min"]), int(&v["used_max"])));
    let whole = v["quant_min"].is_null() && used == format.bounds();
    Scheme { codes: (!whole).then_some(used), ..Scheme::new(format, mapping) }
}

fn config(v: &Value) -> (ObserverConfig, Granularity) {
    let axis = v.get("ch_axis").map_or(Granularity::Tensor, |a| Granularity::Axis(int(a) as usize));
    let config = match v["kind"].as_str().unwrap() {
        "MinMax" | "PerChannelMinMax" => ObserverConfig::MinMax,
        "MovingAverageMinMax" | "MovingAveragePerChannelMinMax" => {
            ObserverConfig::MovingAverage { constant: v["averaging_constant"].as_f64().unwrap() as f32 }
        }
        "Histogram" => ObserverConfig::Histogram { bins: int(&v["bins"]) as usize },
        other => panic!("{other}"),
    };
    (config, axis)
}

fn batches(document: &Value, row: &Value) -> Vec<Tensor> {
    let sequence = list(&document["sequences"]).iter().find(|s| s["name"] == row["sequence"]).unwrap();
    list(&sequence["batches"]).iter().map(tensor).collect()
}

fn watched(config: ObserverConfig, scheme: Scheme, batches: &[Tensor]) -> AnyObserver {
    let mut observer = AnyObserver::new(config, scheme).unwrap();
    for batch in batches {
        observer.observe(batch).unwrap();
    }
    observer
}

#[test]
fn observers_give_torchs_ranges_scales_and_zero_points() {
    let document = golden("observers.json");
    let schemes = list(&document["schemes"]);
    let (mut failures, mut compared) = (vec![], 0);
    for row in list(&document["observers"]) {
        let batches = batches(&document, row);
        let (config, granularity) = config(row);
        for result in list(&row["results"]) {
            let written = &schemes[int(&result["scheme"]) as usize];
            let scheme = scheme(written).with(granularity);
            let (scale, zero_point) = (floats(&result["scale"]), ints(&result["zero_point"]));
            // torch's zero point of reduced symmetric quint8 lies outside its own codes.
            if scheme.codes == Some((0, 127)) && zero_point == [128] {
                continue;
            }
            let place = format!("{} {config} {scheme}", row["sequence"]);
            let observer = watched(config, scheme, &batches);
            let found = observer.qparams().unwrap();
            // The int32 that torch takes `lo / scale` to overflows.
            let overflow = scheme.format == Format::INT32
                && floats(&row["min_val"])[0] / scale[0] < i32::MIN as f32
                && scheme.mapping == Mapping::Affine;
            let same =
                overflow || found.zero_point.iter().map(|z| i64::from(*z)).eq(zero_point.iter().copied());
            if found.scale != scale || !same {
                failures.push(format!("{place}: {found:?}, torch {scale:?} {zero_point:?}"));
            }
            if let Some(range) = result.get("range") {
                let (found, want) = (observer.ranges().unwrap()[0], floats(range));
                if [found.lo, found.hi] != want[..] {
                    failures.push(format!("{place}: range {found:?}, torch {want:?}"));
                }
            }
            compared += 1;
        }
    }
    assert!(failures.is_empty(), "{} of {compared}:\n{}", failures.len(), failures.join("\n"));
    assert!(compared > 1000, "{compared}");
}

#[test]
fn histograms_have_torchs_counts() {
    let document = golden("observers.json");
    let mut failures = vec![];
    for row in list(&document["observers"]).iter().filter(|row| row["kind"] == "Histogram") {
        let (config, _) = config(row);
        let observer = watched(config, Scheme::new(Format::UINT8, Mapping::Affine), &batches(&document, row));
        let Kind::Histogram(h) = observer.kind() else { unreachable!() };
        assert_eq!(h.range(), Some(Range { lo: float(&row["min_val"][0]), hi: float(&row["max_val"][0]) }));
        let mut want = vec![0f32; h.counts().len()];
        for (bin, count) in list(&row["histogram"][0]).iter().zip(floats(&row["histogram"][1])) {
            want[int(bin) as usize] = count;
        }
        // A part whose middle lies on an edge goes to the bin before or after
        // it: torch rounds that with the instruction set at hand.
        let (mut difference, mut differing) = (0.0f32, 0);
        for (bin, (a, b)) in h.counts().iter().zip(&want).enumerate() {
            difference += a - b;
            differing += usize::from(a != b);
            if difference.abs() > b.max(*a) / 8.0 {
                failures.push(format!("{} {config}: bin {bin} has {a}, torch {b}", row["sequence"]));
            }
        }
        if differing > 2 || difference != 0.0 {
            failures.push(format!("{} {config}: {differing} bins differ", row["sequence"]));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn fixed_ranges_give_back_their_parameters() {
    let document = golden("observers.json");
    for row in list(&document["fixed"]) {
        let (scale, zero_point) = (float(&row["scale"][0]), int(&row["zero_point"][0]));
        let at = |q: &Value| (int(q) - zero_point) as f32 * scale;
        let config = ObserverConfig::Fixed { lo: at(&row["quant_min"]), hi: at(&row["quant_max"]) };
        let scheme = Scheme::new(format(&row["dtype"]), Mapping::Affine);
        let found = watched(config, scheme, &[Tensor::vector(vec![-100f32, 100.0])]).qparams().unwrap();
        assert_eq!((found.scale, found.zero_point), (vec![scale], vec![zero_point]), "{row}");
    }
}

/// The example of torch's documentation, as torch 2.8 computes it.
#[test]
fn the_documented_example_is_reproduced() {
    let document = golden("observers.json");
    let pair: Vec<Tensor> = list(&document["sequences"][0]["batches"]).iter().map(tensor).collect();
    let affine = Scheme::new(Format::UINT8, Mapping::Affine);
    let symmetric = Scheme::new(Format::UINT8, Mapping::Symmetric);
    let average = ObserverConfig::MovingAverage { constant: 0.01 };
    let cases: [(ObserverConfig, Scheme, &[f32], &[i32]); 5] = [
        (ObserverConfig::MinMax, affine, &[0.011247451], &[124]),
        (average, affine, &[0.010064373], &[139]),
        (average, symmetric, &[0.010948879], &[128]),
        (
            average,
            affine.with(Granularity::Axis(0)),
            &[0.008977823, 0.0074830316, 0.00552102],
            &[125, 187, 82],
        ),
        (ObserverConfig::HISTOGRAM, affine, &[0.011241959], &[124]),
    ];
    for (config, scheme, scale, zero_point) in cases {
        let found = watched(config, scheme, &pair).qparams().unwrap();
        let close = found.scale.iter().zip(scale).all(|(a, b)| (a - b).abs() <= 1e-6 * b);
        let same = found.scale.len() == scale.len() && close && found.zero_point == zero_point;
        assert!(same, "{config}: {found:?}");
    }
}

#[test]
fn codes_are_onnxs_and_their_values_torchs() {
    let document = golden("quantize.json");
    let mut failures = vec![];
    for row in list(&document["per_tensor"]).iter().chain(list(&document["per_channel"])) {
        let granularity = row.get("axis").map_or(Granularity::Tensor, |a| Granularity::Axis(int(a) as usize));
        let one_or_more = |v: &Value| if v.is_array() { list(v).to_vec() } else { vec![v.clone()] };
        let params = QParams::new(
            Scheme::new(format(&row["dtype"]), Mapping::Affine).with(granularity),
            one_or_more(&row["scale"]).iter().map(float).collect(),
            one_or_more(&row["zero_point"]).iter().map(int).collect(),
        )
        .unwrap();
        let place = format!("{} {} {granularity:?}", row["name"], row["dtype"]);
        let codes = params.quantize(&tensor(&row["x"])).unwrap();
        if codes.integers().unwrap() != ints(&row["onnx_codes"]) {
            failures.push(format!("{place}: codes {codes:?}"));
        }
        let values = params.dequantize(&codes).unwrap();
        if row["int_repr"] == row["onnx_codes"]
            && values.slice::<f32>().unwrap() != floats(&row["dequantized"])
        {
            failures.push(format!("{place}: values"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// The example of NVIDIA's guide: codes of a narrow range, scale = amax / 127.
#[test]
fn narrow_formats_are_nvidias() {
    let document = golden("quantize.json");
    let x = Tensor::vector(floats(&document["amax"]["x"]));
    let narrow = |run: &&Value| run["narrow_range"] == true && run["unsigned"] == false;
    let mut compared = 0;
    for run in list(&document["amax"]["runs"]).iter().filter(narrow) {
        let format = Format::Int { bits: int(&run["num_bits"]) as u8, signed: true, narrow: true };
        let ranges = [Range { lo: 0.0, hi: float(&run["amax"]) }];
        let params = QParams::from_ranges(Scheme::new(format, Mapping::Symmetric), &ranges).unwrap();
        assert!((params.scale[0] * float(&run["scale"]) - 1.0).abs() < 1e-6, "{run}");
        assert_eq!(params.quantize(&x).unwrap().integers().unwrap(), ints(&run["codes"]), "{run}");
        compared += 1;
    }
    assert!(compared > 0);
}
