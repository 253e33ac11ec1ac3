//! The memory of analyses: that of two batches and the models, however many samples there are.

use std::path::Path;
use std::sync::Arc;

use lowbit::analysis::{
    SensitivityOptions, Subject, activation_distributions, compare, diagnose, evaluate, sensitivity, shadow,
};
use lowbit::data::{Dataset, Preprocess, inputs_of};
use lowbit::doctor::{self, Case, Goal};
use lowbit::graph::{Builder, Graph, Var};
use lowbit::observer::ObserverConfig;
use lowbit::op::{Dim, Fact};
use lowbit::ops::binary::Arithmetic;
use lowbit::ops::conv::Conv;
use lowbit::ops::linear::Gemm;
use lowbit::ops::pool::GlobalAveragePool;
use lowbit::ops::shape::Flatten;
use lowbit::ops::unary::Unary;
use lowbit::ops::window::{Padding, Window};
use lowbit::qconfig::{QConfig, QConfigMapping, Spec, preset};
use lowbit::quantize::{Converted, fuse};
use lowbit::recipe::{self, Calibrated, Quantized, Samples};
use lowbit::scheme::{Format, Mapping};
use lowbit::session::Session;
use lowbit::{DType, Tensor};
use peak_alloc::PeakAlloc;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Samples that run at once.
const BATCH: usize = 8;
/// Height and width of the images.
const SIZE: usize = 32;
/// Bytes that are no values and no weights: counts of observers, names, buffers of files, stacks of scratch.
const REST: usize = 1 << 19;

/// `f` in a thread that begins with nothing kept, and the most bytes it holds at once.
fn peak<T: Send>(f: impl FnOnce() -> T + Send) -> (T, usize) {
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    let alone = || {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread().build().unwrap();
        pool.install(f)
    };
    let found = std::thread::scope(|s| s.spawn(alone).join().unwrap());
    (found, MEMORY.peak_usage() - before)
}

/// Noise that follows from `seed`.
fn noise(shape: &[usize], seed: u64, by: f32) -> Tensor {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    Tensor::new(shape, (0..shape.iter().product()).map(|_| by * next()).collect()).unwrap()
}

/// Convolutions around a skip connection, and a layer of ten classes.
fn network() -> Graph {
    let mut b = Builder::default();
    let image = [Dim::Named("N".into()), 3.into(), SIZE.into(), SIZE.into()];
    let mut x = b.input("x", Fact::new(DType::F32, image));
    let same = || Window { padding: Padding::Explicit(vec![(1, 1); 2]), ..Window::default() };
    let layer = |b: &mut Builder, name: &str, x: Var, inputs: usize| {
        let w = b.constant(&format!("{name}.weight"), noise(&[16, inputs, 3, 3], inputs as u64, 0.4));
        let op = Conv { window: same(), group: 1, kernel: None };
        let y = b.apply(name, Arc::new(op), &[x, w]).unwrap();
        b.apply(&format!("{name}.relu"), Arc::new(Unary::Relu), &[y]).unwrap()
    };
    x = layer(&mut b, "first", x, 3);
    let y = layer(&mut b, "second", x, 16);
    let y = layer(&mut b, "third", y, 16);
    let sum = b.apply("sum", Arc::new(Arithmetic::Add), &[x, y]).unwrap();
    let y = layer(&mut b, "last", sum, 16);
    let y = b.apply("mean", Arc::new(GlobalAveragePool), &[y]).unwrap();
    let y = b.apply("flat", Arc::new(Flatten { axis: 1 }), &[y]).unwrap();
    let w = b.constant("classes.weight", noise(&[16, 10], 7, 4.0));
    let y = b.apply("classes", Arc::new(Gemm::default()), &[y, w]).unwrap();
    b.finish([("y".to_string(), y)]).unwrap()
}

/// A folder of so many images.
fn images(folder: &Path, count: usize, graph: &Graph) -> Dataset {
    std::fs::create_dir_all(folder).unwrap();
    for i in 0..count {
        let pixels = noise(&[SIZE * SIZE * 3], i as u64, 255.0);
        let pixels = pixels.slice::<f32>().unwrap().iter().map(|x| (x + 127.5) as u8).collect();
        let image = image::RgbImage::from_raw(SIZE as u32, SIZE as u32, pixels).unwrap();
        image.save(folder.join(format!("{i}.png"))).unwrap();
    }
    let preprocess = Preprocess::from_toml("scale = 0.01\nmean = [1.2]").unwrap();
    let inputs: Vec<_> = graph.inputs().map(|(_, v)| v.clone()).collect();
    Dataset::open(folder, &preprocess, &inputs).unwrap()
}

/// Everything that analyses need.
struct Setting {
    float: Graph,
    mapping: QConfigMapping,
    calibrated: Calibrated,
    converted: Converted,
    data: Dataset,
}

impl Setting {
    fn samples(&self) -> Samples<'_> {
        Samples { data: &self.data, batch: BATCH }
    }

    /// Ranges that are measured one by one.
    fn measuring(&self) -> QConfigMapping {
        let QConfig { activation, weight } = preset("default").unwrap();
        let activation = activation.map(|a| a.observed_by(ObserverConfig::Measured));
        QConfigMapping::global(QConfig { activation, weight })
    }
}

type Analysis = (&'static str, fn(&Setting));

const ANALYSES: &[Analysis] = &[
    ("quantize", |s| {
        recipe::quantize(&s.float, &s.mapping, Some(s.samples()), &|_| Ok(())).unwrap();
    }),
    ("measured ranges", |s| {
        recipe::quantize(&s.float, &s.measuring(), Some(s.samples()), &|_| Ok(())).unwrap();
    }),
    ("compare", |s| {
        let batches = s.data.batches(BATCH);
        compare(&s.float, &s.converted.graph, batches, &mut |_| Ok(())).unwrap();
    }),
    ("shadow", |s| {
        let batches = s.data.batches(BATCH);
        shadow(&s.float, &s.converted.graph, batches, None, &mut |_| Ok(())).unwrap();
    }),
    ("distributions", |s| {
        let batches = || s.data.batches(BATCH);
        activation_distributions(&s.float, &s.converted.graph, batches, &mut |_| Ok(())).unwrap();
    }),
    ("evaluate", |s| {
        let sessions = [&s.float, &s.converted.graph].map(|graph| Session::compile(graph).unwrap());
        evaluate(&[("float", &sessions[0]), ("int8", &sessions[1])], &s.data, BATCH, &mut |_| Ok(()))
            .unwrap();
    }),
    ("diagnose", |s| {
        let (float, mapping) = (&s.calibrated.float, &s.mapping);
        let quantized = Some((&s.calibrated.prepared, &s.converted));
        let subject = Subject { float, mapping, quantized, fastest: None };
        let batches = s.data.batches(BATCH);
        diagnose(&subject, batches, Some(s.data.batches(BATCH)), Some(2), &|_| Ok(())).unwrap();
    }),
    ("sensitivity", |s| {
        let options = SensitivityOptions { threads: Some(2), ..SensitivityOptions::default() };
        sensitivity(&s.calibrated.prepared, || s.data.batches(BATCH), &options, &|_| Ok(())).unwrap();
    }),
    ("doctor", |s| {
        let case = Case { float: &s.float, calibration: s.samples(), judged: s.samples() };
        // Two bits are too few for any remedy.
        let codes = Format::Int { bits: 2, signed: false, narrow: false };
        let activation = Some(Spec::new(codes, Mapping::Affine));
        let weight = preset("default").unwrap().weight;
        let options = doctor::Options {
            goal: Some(Goal::Agreement(1.0)),
            most_ms: None,
            mapping: QConfigMapping::global(QConfig { activation, weight }),
            time: None,
            folder: None,
        };
        doctor::examine(&case, &options, &|_| Ok(())).unwrap();
    }),
];

#[test]
fn an_analysis_holds_two_batches_and_the_models_however_many_samples_there_are() {
    let float = network();
    let folder = tempfile::tempdir().unwrap();
    let mut failures = vec![];
    let mut before: Vec<usize> = vec![];
    for batches in [4, 16] {
        let data = images(&folder.path().join(batches.to_string()), batches * BATCH, &float);
        let mapping = QConfigMapping::global(preset("default").unwrap());
        let samples = Samples { data: &data, batch: BATCH };
        let made = recipe::quantize(&float, &mapping, Some(samples), &|_| Ok(())).unwrap();
        let Quantized { calibrated, graph, findings } = made;
        let one = peak(|| {
            let batch = data.batches(BATCH).next().unwrap().unwrap();
            fuse(&float).unwrap().run(&inputs_of(&float, &batch).unwrap()).unwrap()
        });
        let float = float.clone();
        let setting = Setting { float, mapping, calibrated, converted: Converted { graph, findings }, data };
        for (i, (name, analysis)) in ANALYSES.iter().enumerate() {
            let ((), found) = peak(|| analysis(&setting));
            if found > 2 * one.1 + REST {
                failures.push(format!("{name} holds {found} bytes, one float batch {}", one.1));
            }
            // How far those overlap that work at two batches at once is chance.
            let alone = ["compare", "shadow", "distributions", "evaluate"].contains(name);
            match before.get(i) {
                None => before.push(found),
                Some(few) if alone && found > few + REST / 8 => {
                    failures.push(format!("{name} holds {few} bytes for 4 batches, {found} for {batches}"));
                }
                Some(_) => {}
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
