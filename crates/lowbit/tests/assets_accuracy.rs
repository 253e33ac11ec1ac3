//! Accuracy of real models in float and in int8, against what is published or
//! measured elsewhere.

mod assets;
#[path = "assets/models.rs"]
mod models;

use std::ops::RangeInclusive;
use std::path::Path;

use lowbit::data::Dataset;
use lowbit::graph::Graph;
use lowbit::observer::ObserverConfig;
use lowbit::qconfig::{QConfigMapping, preset};
use lowbit::quantize::{Prepared, fuse, prepare};
use lowbit::recipe::{self, Samples};
use lowbit::session::Session;
use lowbit::{Result, Tensor};
use models::{CLASSIFIERS, Classifier, inputs};

/// The logits of each sample.
fn logits(
    dataset: &Dataset,
    batch: usize,
    model: impl Fn(&[Tensor]) -> Result<Vec<Tensor>>,
) -> Result<Vec<Vec<f32>>> {
    let mut rows = Vec::with_capacity(dataset.len());
    for batch in dataset.batches(batch) {
        let out = model(&inputs(batch)?)?.swap_remove(0);
        rows.extend(out.slice::<f32>()?.chunks(out.len() / out.shape()[0]).map(<[f32]>::to_vec));
    }
    Ok(rows)
}

/// Per cent of the samples whose best class is their label.
fn top1(rows: &[Vec<f32>], labels: &[usize]) -> f64 {
    let right = rows.iter().zip(labels).filter(|(row, label)| best(row) == **label).count();
    100.0 * right as f64 / labels.len() as f64
}

/// The first of the greatest.
fn best(row: &[f32]) -> usize {
    (0..row.len()).rev().max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap_or(0)
}

/// Whether two rows have the same best class. Classes that 8 bits could not
/// tell apart, within 1/127 of the greatest logit, are tied.
fn agree(a: &[f32], b: &[f32]) -> bool {
    let step = a.iter().fold(0f32, |most, x| most.max(x.abs())) / 127.0;
    (a[best(a)] - a[best(b)]).min(b[best(b)] - b[best(a)]) <= step
}

/// Samples of a batch while calibrating, as in the command line.
const CALIBRATED_AT_ONCE: usize = 8;

fn calibrated(assets: &Path, classifier: &Classifier, mapping: &QConfigMapping) -> Result<Prepared> {
    let samples = Samples { data: &classifier.calibration(assets)?, batch: CALIBRATED_AT_ONCE };
    Ok(recipe::calibrate(&classifier.load(assets)?, mapping, Some(samples), &|_| Ok(()))?.prepared)
}

fn default() -> QConfigMapping {
    QConfigMapping::global(preset("default").unwrap())
}

/// Per cent of the images on which Session and Q/DQ graph have one best class.
const SAME: f64 = 99.5;

struct Case {
    name: &'static str,
    /// Top-1 of the float model, in per cent.
    float: RangeInclusive<f64>,
    /// The least top-1 of the default quantization: a number, or points below float.
    int8: Bar,
}

enum Bar {
    AtLeast(f64),
    LosesAtMost(f64),
}

fn near(percent: f64, by: f64) -> RangeInclusive<f64> {
    percent - by - 1e-9..=percent + by + 1e-9
}

#[test]
fn real_models_keep_their_accuracy() {
    let Some(assets) = assets::find("real_models_keep_their_accuracy") else { return };
    let cases = [
        Case { name: "mobilenet_v1", float: near(59.0, 0.5), int8: Bar::AtLeast(57.5) },
        Case { name: "squeezenet", float: near(60.0, 0.5), int8: Bar::AtLeast(59.5) },
        Case { name: "resnet20", float: near(81.35, 0.1), int8: Bar::LosesAtMost(0.3) },
        Case { name: "kws", float: near(91.3, 0.05), int8: Bar::LosesAtMost(0.3) },
        Case { name: "mnist", float: near(98.9, 0.05), int8: Bar::LosesAtMost(0.3) },
    ];
    let failures: Vec<String> = cases.iter().flat_map(|case| check(&assets, case).unwrap()).collect();
    assert!(failures.is_empty(), "{failures:#?}");
}

fn check(assets: &Path, case: &Case) -> Result<Vec<String>> {
    let classifier = CLASSIFIERS.iter().find(|c| c.name == case.name).expect("a known model");
    let data = classifier.evaluation(assets)?;
    let model = classifier.load(assets)?;
    let labels = data.labels().expect("the evaluation data has labels");
    let floats = logits(&data, classifier.batch, |x| model.run(x))?;
    let converted: Graph = calibrated(assets, classifier, &default())?.convert()?.graph;
    let session = Session::compile(&converted)?;
    let integers = logits(&data, classifier.batch, |x| session.run(x))?;
    let graphs = logits(&data, classifier.batch, |x| converted.run(x))?;
    let same = integers.iter().zip(&graphs).filter(|(a, b)| agree(a, b)).count();
    let same = 100.0 * same as f64 / labels.len() as f64;
    let float = top1(&floats, &labels);
    // What was quantized is judged by samples that it was not calibrated on.
    let unseen = |rows: &[Vec<f32>]| top1(&rows[classifier.seen..], &labels[classifier.seen..]);
    let (unseen_float, int8) = (unseen(&floats), unseen(&integers));
    let name = case.name;
    println!(
        "{name}: float {float:.2}, of unseen samples float {unseen_float:.2} and int8 {int8:.2}; \
         Session and graph the same on {same:.2} %"
    );
    let least = match case.int8 {
        Bar::AtLeast(percent) => percent,
        Bar::LosesAtMost(points) => unseen_float - points,
    };
    let mut failures = vec![];
    if !case.float.contains(&float) {
        failures.push(format!("{name}: float top-1 is {float:.2} %, not within {:?}", case.float));
    }
    if int8 < least - 1e-9 {
        failures.push(format!("{name}: int8 top-1 is {int8:.2} %, less than {least:.2}"));
    }
    if same < SAME {
        failures.push(format!("{name}: Session and graph have one best class on {same:.2} %"));
    }
    Ok(failures)
}

fn ranges(prepared: &Prepared) -> Vec<(String, Vec<lowbit::qparams::Range>)> {
    let points = prepared.points().iter();
    points.map(|p| (p.name.clone(), p.observer.ranges().unwrap())).collect()
}

/// On several cores batches overtake each other; what is observed does not.
#[test]
fn calibration_on_all_cores_finds_the_ranges_that_one_core_finds() {
    let name = "calibration_on_all_cores_finds_the_ranges_that_one_core_finds";
    let Some(assets) = assets::find(name) else { return };
    for preset_name in ["default", "x86", "tensorrt", "onnxruntime"] {
        let mapping = QConfigMapping::global(preset(preset_name).unwrap());
        let classifier = &CLASSIFIERS[2];
        let mut one = prepare(&fuse(&classifier.load(&assets).unwrap()).unwrap(), &mapping).unwrap();
        let data = classifier.calibration(&assets).unwrap().take(64);
        let mut all = one.clone();
        for batch in data.batches(8) {
            one.observe(&inputs(batch).unwrap()).unwrap();
        }
        all.calibrate(data.batches(8).map(inputs), &|_| Ok(())).unwrap();
        assert_eq!(ranges(&one), ranges(&all), "{preset_name}");
    }
}

#[test]
fn two_shards_merged_have_the_ranges_of_the_whole() {
    let Some(assets) = assets::find("two_shards_merged_have_the_ranges_of_the_whole") else { return };
    let mut config = preset("default").unwrap();
    config.activation = config.activation.map(|a| a.observed_by(ObserverConfig::MinMax));
    let mapping = QConfigMapping::global(config);
    let classifier = &CLASSIFIERS[2];
    let empty = prepare(&fuse(&classifier.load(&assets).unwrap()).unwrap(), &mapping).unwrap();
    let data = || classifier.calibration(&assets).unwrap();
    let observed = |data: Dataset| {
        let mut prepared = empty.clone();
        prepared.calibrate(data.batches(8).map(inputs), &|_| Ok(())).unwrap();
        prepared
    };
    let (first, second) = (observed(data().take(24)), observed(data().skip(24).take(40)));
    let whole = observed(data().take(64));
    assert_ne!(ranges(&first), ranges(&whole));
    let merged = first.points().iter().zip(second.points()).map(|(a, b)| {
        let mut both = a.observer.clone();
        both.merge(&b.observer).unwrap();
        (a.name.clone(), both.ranges().unwrap())
    });
    assert_eq!(merged.collect::<Vec<_>>(), ranges(&whole));
}
