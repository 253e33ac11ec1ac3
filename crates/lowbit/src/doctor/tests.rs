use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::*;
use crate::data::{Dataset, Preprocess};
use crate::error::Error;
use crate::onnx;
use crate::qconfig::{QConfig, Spec, preset};
use crate::scheme::{Format, Mapping};

fn demo() -> (Graph, [Dataset; 2]) {
    let file =
        |name: &str| -> PathBuf { Path::new(env!("CARGO_MANIFEST_DIR")).join("../../demo").join(name) };
    let graph = onnx::load(file("digits.onnx")).unwrap();
    let inputs: Vec<_> = graph.inputs().map(|(_, v)| v.clone()).collect();
    let open = |text: &str| {
        let pixels = Preprocess::from_toml(&format!("[array]\nscale = 0.0625\n{text}")).unwrap();
        Dataset::open(&file("digits.npz"), &pixels, &inputs).unwrap().take(200)
    };
    let data = [open("key = 'calibration'"), open("key = 'test'\nlabels = 'test_labels'")];
    (graph, data)
}

/// Weights of two bits: far from enough.
fn two_bits() -> QConfigMapping {
    few_bits(8)
}

/// Weights of two bits, activations of so many.
fn few_bits(activations: u8) -> QConfigMapping {
    let codes = |bits, signed| Format::Int { bits, signed, narrow: signed };
    QConfigMapping::global(QConfig {
        activation: Some(Spec::new(codes(activations, false), Mapping::Affine)),
        weight: Spec::new(codes(2, true), Mapping::Symmetric),
    })
}

fn options(goal: Goal, mapping: QConfigMapping) -> Options {
    Options { goal: Some(goal), most_ms: None, mapping, time: None, folder: None }
}

/// The search, and the last model that it called the best.
fn searched(
    options: &Options,
    listener: impl Fn(&Event<'_>) -> Result<()> + Sync,
) -> Result<(Outcome, Graph)> {
    let (float, [calibration, test]) = demo();
    let samples = |data| Samples { data, batch: 32 };
    let case = Case { float: &float, calibration: samples(&calibration), judged: samples(&test) };
    let best = Mutex::new(None);
    let diagnosis = examine(&case, options, &|event| {
        listener(&event)?;
        if let Event::Best(graph, _) = event {
            *best.lock().unwrap() = Some(graph.clone());
        }
        Ok(())
    })?;
    Ok((diagnosis, best.into_inner().unwrap().unwrap()))
}

#[test]
fn what_is_good_at_once_is_not_mended() {
    let mapping = QConfigMapping::global(preset("default").unwrap());
    let (found, _) = searched(&options(Goal::Drop(0.02), mapping), |_| Ok(())).unwrap();
    assert!(found.met, "{}", found.verdict);
    assert_eq!((found.trials.len(), found.best), (1, 0));
}

#[test]
fn what_is_far_off_is_mended_and_can_be_made_again() {
    let (found, best) = searched(&options(Goal::Agreement(0.97), two_bits()), |_| Ok(())).unwrap();
    assert!(found.met, "{}", found.verdict);
    let trial = &found.trials[found.best];
    assert!(trial.measured.scores.agreement >= Some(0.97));
    assert!(found.trials[0].measured.scores.agreement < Some(0.9), "{:?}", found.trials[0].measured);
    assert!(found.sensitivity.is_some() && found.trials.len() > 3);
    assert!(trial.measured.integer_share > 0.0, "some of it stays in integers: {:?}", trial.measured);
    let (float, [calibration, _]) = demo();
    let samples = Some(Samples { data: &calibration, batch: 32 });
    let again = recipe::quantize(&float, &trial.mapping, samples, &|_| Ok(())).unwrap();
    assert_eq!(again.graph, best);
}

#[test]
fn a_search_that_was_stopped_ends_with_the_same_model() {
    let (whole, wanted) = searched(&options(Goal::Agreement(0.97), two_bits()), |_| Ok(())).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(Goal::Agreement(0.97), two_bits());
    options.folder = Some(folder.path().into());
    for stop in [1, 4, whole.trials.len() - 1] {
        let count = Mutex::new(0);
        let stopped = searched(&options, |event| {
            let mut count = count.lock().unwrap();
            *count += usize::from(matches!(event, Event::Tried(_)));
            if *count > stop { Err(Error::Interrupted) } else { Ok(()) }
        });
        assert!(matches!(stopped, Err(Error::Interrupted)), "after {stop} trials");
    }
    let (resumed, found) = searched(&options, |_| Ok(())).unwrap();
    let rules = |d: &Outcome| d.trials.iter().map(|t| t.mapping.clone()).collect::<Vec<_>>();
    assert_eq!(rules(&resumed), rules(&whole));
    assert_eq!((resumed.best, &found), (whole.best, &wanted));
    let other = Options { goal: Some(Goal::Agreement(0.9)), ..options };
    let error = searched(&other, |_| Ok(())).unwrap_err().to_string();
    assert!(error.contains("another model, other data or options"), "{error}");
}

#[test]
fn time_ends_it_and_what_cannot_be_reached_is_said() {
    let mut late = options(Goal::Agreement(0.97), two_bits());
    late.time = Some(Duration::ZERO);
    let (found, _) = searched(&late, |_| Ok(())).unwrap();
    assert!(!found.met && found.trials.len() == 1 && found.verdict.contains("time"), "{}", found.verdict);
    let (found, _) = searched(&options(Goal::Agreement(1.0), few_bits(2)), |_| Ok(())).unwrap();
    let last = &found.trials.last().unwrap();
    assert!(last.title.contains("weights alone"), "{}", last.title);
    let mut fast = options(Goal::Agreement(0.97), two_bits());
    fast.most_ms = Some(0.0);
    let (found, _) = searched(&fast, |_| Ok(())).unwrap();
    assert!(!found.met && found.verdict.contains("ms"), "{}", found.verdict);
}
