//! What makes quantized real models better.

mod assets;
#[allow(dead_code)]
#[path = "assets/models.rs"]
mod models;

use std::path::Path;
use std::sync::Mutex;

use lowbit::analysis::evaluate;
use lowbit::data::Dataset;
use lowbit::doctor::{Case, Event, Goal, Options, examine};
use lowbit::graph::Graph;
use lowbit::observer::ObserverConfig;
use lowbit::qconfig::{Per, QConfig, QConfigMapping, Spec, preset};
use lowbit::recipe::{self, Samples};
use lowbit::scheme::{Format, Mapping};
use lowbit::session::Session;
use models::CLASSIFIERS;

/// A float model, and samples to calibrate and to judge it on.
fn opened(name: &str, assets: &Path, judged: usize) -> (Graph, Dataset, Dataset) {
    let c = CLASSIFIERS.into_iter().find(|c| c.name == name).unwrap();
    let (calibration, evaluation) = (c.calibration(assets).unwrap(), c.evaluation(assets).unwrap());
    (c.load(assets).unwrap(), calibration, evaluation.take(judged))
}

/// Per cent of the samples that the model quantized like this has as in float.
fn agreement((float, calibration, judged): &(Graph, Dataset, Dataset), config: QConfig) -> f64 {
    let samples = Some(Samples { data: calibration, batch: 10 });
    let made = recipe::quantize(float, &QConfigMapping::global(config), samples, &|_| Ok(())).unwrap();
    let models = [float, &made.graph].map(|graph| Session::compile(graph).unwrap());
    let scores =
        evaluate(&[("float", &models[0]), ("int", &models[1])], judged, 20, &mut |_| Ok(())).unwrap();
    100.0 * scores.scores[1].agreement
}

#[test]
fn weights_of_one_scale_are_saved_by_sharing_their_ranges() {
    let Some(assets) = assets::find("weights_of_one_scale_are_saved_by_sharing_their_ranges") else { return };
    let opened = opened("mobilenet_v1", &assets, 200);
    let config = |cross_layer| {
        let QConfig { activation, weight } = preset("default").unwrap();
        QConfig { activation, weight: Spec { cross_layer, ..weight.per(Per::Tensor) } }
    };
    let [alone, shared] = [false, true].map(|cross_layer| agreement(&opened, config(cross_layer)));
    assert!(shared >= alone + 15.0, "{alone} % to {shared} %");
}

#[test]
fn channels_of_four_bits_are_renormalized() {
    let Some(assets) = assets::find("channels_of_four_bits_are_renormalized") else { return };
    let opened = opened("resnet20", &assets, 1000);
    let config = |renormalize| {
        let spec = |format, mapping| Spec::new(format, mapping).observed_by(ObserverConfig::Mse);
        let weight = spec(Format::INT4, Mapping::Symmetric).per_channel().correcting_bias();
        QConfig {
            activation: Some(spec(Format::UINT8, Mapping::Affine)),
            weight: Spec { renormalize, ..weight },
        }
    };
    let [before, after] = [false, true].map(|renormalize| agreement(&opened, config(renormalize)));
    assert!(after >= before + 1.0, "{before} % to {after} %");
}

#[test]
fn the_doctor_mends_keyword_spotting_by_rules_that_make_its_model_again() {
    let Some(assets) = assets::find("the_doctor_mends_keyword_spotting_by_rules_that_make_its_model_again")
    else {
        return;
    };
    let (float, calibration, judged) = opened("kws", &assets, 300);
    let samples = |data| Samples { data, batch: 50 };
    let case = Case { float: &float, calibration: samples(&calibration), judged: samples(&judged) };
    let options = Options {
        goal: Some(Goal::Agreement(1.0)),
        most_ms: None,
        mapping: QConfigMapping::global(preset("qnnpack").unwrap()),
        time: None,
        folder: None,
    };
    let best = Mutex::new(None);
    let outcome = examine(&case, &options, &|event| {
        if let Event::Best(graph, _) = event {
            *best.lock().unwrap() = Some(graph.clone());
        }
        Ok(())
    });
    let outcome = outcome.unwrap();
    let (first, last) = (&outcome.trials[0], &outcome.trials[outcome.best]);
    println!("{}", outcome.verdict);
    assert!(first.measured.scores.agreement < last.measured.scores.agreement, "{}", outcome.verdict);
    let again = recipe::quantize(&float, &last.mapping, Some(case.calibration), &|_| Ok(())).unwrap();
    assert!(Some(again.graph) == best.into_inner().unwrap(), "its rules make another model");
}
