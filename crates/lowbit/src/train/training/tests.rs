use std::path::PathBuf;

use super::*;
use crate::data::Preprocess;
use crate::onnx;
use crate::train::Network;

fn demo(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../demo").join(name)
}

fn digits() -> (Graph, Dataset) {
    let graph = onnx::load(demo("digits.onnx")).unwrap();
    let inputs: Vec<_> = graph.inputs().map(|(_, v)| v.clone()).collect();
    let pixels =
        Preprocess::from_toml("[array]\nkey = 'test'\nlabels = 'test_labels'\nscale = 0.0625").unwrap();
    let data = Dataset::open(&demo("digits.npz"), &pixels, &inputs).unwrap();
    (graph, data)
}

fn options() -> Options {
    Options {
        epochs: 3,
        batch: 50,
        optimizer: Optimizer::adam(),
        rate: 0.003,
        augment: Augment { flip: false, shift: 1 },
        clip: Some(5.0),
        seed: 3,
        ..Options::default()
    }
}

/// A network of the model that has forgotten what it learned.
fn forgetful(graph: &Graph) -> Network {
    let mut network = Network::of(graph).unwrap();
    let mut numbers = SplitMix::new(1);
    for t in network.values_mut().values_mut().filter(|t| t.rank() > 1) {
        let fan: usize = t.shape()[1..].iter().product();
        let most = (3.0 / fan as f32).sqrt();
        let draw = |_| most * numbers.signed_unit();
        *t = Tensor::new(t.shape(), (0..t.len()).map(draw).collect()).unwrap();
    }
    network
}

#[test]
fn a_model_learns_digits_and_resumes_to_the_same_bytes() {
    let (graph, data) = digits();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint.safetensors");
    let mut whole = Training::new(forgetful(&graph), options()).unwrap();
    let mut seen = vec![];
    whole
        .run(&data, &Target::Labels, &mut |_, p| {
            seen.push(*p);
            Ok(())
        })
        .unwrap();
    let (first, last) = (seen.iter().find(|p| p.epoch == 0).unwrap(), seen.last().unwrap());
    assert!(last.mean_loss < 0.7 * first.loss, "{first:?} {last:?}");
    assert!(last.accuracy.unwrap() > 0.5, "{last:?}");

    let stop = last.steps / 2 + 1;
    let mut half = Training::new(forgetful(&graph), options()).unwrap();
    let stopped = half.run(&data, &Target::Labels, &mut |_, p| match p.step {
        step if step == stop => Err(crate::Error::Interrupted),
        _ => Ok(()),
    });
    assert!(stopped.is_err());
    half.save(&path).unwrap();
    let mut resumed = Training::new(forgetful(&graph), options()).unwrap();
    resumed.resume(&path).unwrap();
    assert_eq!(resumed.step(), stop);
    let mut end = None;
    resumed
        .run(&data, &Target::Labels, &mut |_, p| {
            end = Some(*p);
            Ok(())
        })
        .unwrap();
    assert_eq!(end.as_ref(), Some(last));
    let bytes = |t: &Training<Network>| -> Vec<Vec<u8>> {
        t.learner.values().values().map(Tensor::to_bytes).collect()
    };
    assert!(bytes(&resumed) == bytes(&whole), "a resumed training ends elsewhere");

    let mut other = Training::new(forgetful(&graph), Options { rate: 0.1, ..options() }).unwrap();
    let error = other.resume(&path).unwrap_err().to_string();
    assert!(error.contains("other options") && error.contains("checkpoint.safetensors"), "{error}");
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let (graph, data) = digits();
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut training = Training::new(forgetful(&graph), Options { epochs: 1, ..options() }).unwrap();
            training.run(&data, &Target::Labels, &mut |_, _| Ok(())).unwrap();
            training.learner.values().values().map(Tensor::to_bytes).collect::<Vec<_>>()
        })
    };
    assert!(run(1) == run(3));
}

#[test]
fn gradients_are_clipped_together() {
    let mut gradients = vec![Some(Tensor::vector(vec![3f32])), None, Some(Tensor::vector(vec![4f32]))];
    clip(&mut gradients, Some(10.0)).unwrap();
    assert_eq!(gradients[0], Some(Tensor::vector(vec![3f32])));
    clip(&mut gradients, Some(2.5)).unwrap();
    assert_eq!(gradients, [Some(Tensor::vector(vec![1.5f32])), None, Some(Tensor::vector(vec![2f32]))]);
}

#[test]
fn options_that_make_no_sense_are_refused() {
    let (graph, data) = digits();
    for (options, what) in [
        (Options { batch: 0, ..options() }, "batch"),
        (Options { rate: f32::NAN, ..options() }, "rate"),
        (Options { clip: Some(0.0), ..options() }, "clip"),
    ] {
        assert!(options.check().unwrap_err().to_string().contains(what));
    }
    let mut training = Training::new(Network::of(&graph).unwrap(), options()).unwrap();
    let error = training.run(&data.take(0), &Target::Labels, &mut |_, _| Ok(())).unwrap_err();
    assert!(error.to_string().contains("empty"));
}
