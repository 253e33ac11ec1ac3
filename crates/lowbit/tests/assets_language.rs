//! A language model in float, with dynamic activations, and with weights of few bits.
//!
//! Perplexity is that of all tokens but the first of five stories. Where there
//! is calibration data, it is texts that the float model makes up from numbers
//! of a fixed seed: the stories are never looked at.

mod assets;
#[path = "../examples/stories/bpe.rs"]
mod bpe;
#[path = "../examples/stories/language.rs"]
mod language;

use std::path::Path;

use language::{ids, perplexity, sample};
use lowbit::data::npz;
use lowbit::graph::Graph;
use lowbit::passes::awq;
use lowbit::qconfig::{Per, QConfig, QConfigMapping, Rounding, preset};
use lowbit::quantize::{fuse, prepare};
use lowbit::session::Session;
use lowbit::{Result, Tensor, onnx};

fn stories(assets: &Path) -> Vec<Vec<i64>> {
    let stories = npz::read(&assets.join("data/stories_tokens.npz")).unwrap();
    stories.into_iter().map(|(_, story)| story.integers().unwrap()).collect()
}

#[test]
fn stories_are_encoded_as_the_model_learned_them() {
    let Some(assets) = assets::find("stories_are_encoded_as_the_model_learned_them") else { return };
    let vocabulary = bpe::Vocabulary::read(&std::fs::read(assets.join("data/tok512.bin")).unwrap()).unwrap();
    for story in stories(&assets) {
        let text = vocabulary.decode(&story);
        assert_eq!(vocabulary.encode(&text), story, "{text}");
    }
    assert_eq!(vocabulary.decode(&vocabulary.encode("Zoë \u{1F600}")), "Zoë \u{1F600}");
    assert!(bpe::Vocabulary::read(&[7, 0, 0, 0, 1, 2, 3, 4, 9, 0, 0, 0, 5]).is_err());
}

/// How the choice of codes is helped.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Help {
    /// Not at all: no data.
    Nothing,
    /// By the second moments of inputs.
    Gptq,
    /// By factors moved from great inputs into weights.
    Awq,
}

/// The float model, texts that it made up, and the stories.
struct Language {
    float: Graph,
    texts: Vec<Tensor>,
    stories: Vec<Vec<i64>>,
}

impl Language {
    fn new(assets: &Path) -> Language {
        let float = onnx::load(assets.join("models/stories260K.onnx")).unwrap();
        let session = Session::compile(&float).unwrap();
        let texts = sample(|x| session.run(x), &[], 64, 128, 1).unwrap();
        let texts = texts.iter().map(|t| ids(std::slice::from_ref(t)).unwrap()).collect();
        Language { float, texts, stories: stories(assets) }
    }

    fn quantized(&self, mut config: QConfig, help: Help) -> Result<Graph> {
        let batches = || self.texts.iter().map(|t| Ok(vec![t.clone()]));
        config.weight.awq = help == Help::Awq;
        if help == Help::Awq {
            config.weight.rounding = Rounding::Nearest;
        }
        let mapping = QConfigMapping::global(config);
        let fused = awq(&fuse(&self.float)?, &mapping, batches(), &|_| Ok(()))?;
        let mut prepared = prepare(&fused, &mapping)?;
        if help != Help::Nothing {
            prepared.calibrate(batches(), &|_| Ok(()))?;
        }
        Ok(prepared.convert()?.graph)
    }

    /// The perplexity with weights in `format`, in blocks of `block` or per channel.
    fn perplexity(&self, format: &str, block: Option<usize>, help: Help) -> f64 {
        let per = block.map_or(Per::Channel, Per::Block);
        let config = QConfig::weight_only(format.parse().unwrap(), Some(per));
        let session = Session::compile(&self.quantized(config, help).unwrap()).unwrap();
        let found = perplexity(&self.stories, |x| session.run(x)).unwrap();
        println!("{format} {per:?} {help:?}: {found:.4}");
        found
    }
}

#[test]
fn the_model_has_its_perplexity_and_keeps_it_with_dynamic_activations() {
    let Some(assets) = assets::find("the_model_has_its_perplexity_and_keeps_it_with_dynamic_activations")
    else {
        return;
    };
    let graph = onnx::load(assets.join("models/stories260K.onnx")).unwrap();
    let stories = stories(&assets);
    assert_eq!(stories.iter().map(|story| story.len() - 1).sum::<usize>(), 1804);
    let of = |session: &Session| perplexity(&stories, |x| session.run(x)).unwrap();
    let float = of(&Session::compile(&graph).unwrap());
    assert!((float - 3.5482).abs() < 1e-3, "{float}");
    for (name, most) in [("dynamic", 3.572), ("dynamic-rows", 3.56)] {
        let mapping = QConfigMapping::global(preset(name).unwrap());
        let quantized = prepare(&fuse(&graph).unwrap(), &mapping).unwrap().convert().unwrap().graph;
        let session = Session::compile(&quantized).unwrap();
        let found = of(&session);
        assert!(found <= most && session.report().coverage() > 0.99, "{name}: {found}");
    }
}

#[test]
fn few_bits_lose_little() {
    let Some(assets) = assets::find("few_bits_lose_little") else { return };
    let language = Language::new(&assets);
    // The float model has 3.5482; the nearest codes by whole ranges 4.25 with int4 in blocks of 32.
    let cases = [
        ("int8", None, Help::Nothing, 3.57),
        ("int8", None, Help::Gptq, 3.56),
        ("fp16", None, Help::Nothing, 3.549),
        ("e4m3", None, Help::Nothing, 3.62),
        ("e5m2", None, Help::Nothing, 3.75),
        ("uint4", Some(32), Help::Nothing, 3.90),
        ("uint4", Some(32), Help::Awq, 3.88),
        ("uint4", Some(32), Help::Gptq, 3.80),
        ("int4", Some(32), Help::Nothing, 4.0),
        ("int4", Some(32), Help::Gptq, 3.90),
        ("nf4", Some(32), Help::Nothing, 3.96),
        ("nf4", Some(32), Help::Gptq, 3.85),
        ("kmeans4", Some(32), Help::Nothing, 3.95),
        ("kmeans4", Some(32), Help::Gptq, 3.85),
    ];
    let mut failures = vec![];
    for (format, block, help, most) in cases {
        let found = language.perplexity(format, block, help);
        if found > most {
            failures.push(format!("{format}, blocks {block:?}, {help:?}: {found:.4} > {most}"));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
#[ignore = "prints a table of every format, in some minutes"]
fn data_helps_every_format() {
    let Some(assets) = assets::find("data_helps_every_format") else { return };
    let language = Language::new(&assets);
    let mut failures = vec![];
    for format in ["int4", "uint4", "nf4", "kmeans4", "int8", "uint8", "e4m3", "e5m2", "fp16"] {
        for block in [None, Some(16), Some(32), Some(64), Some(128)] {
            let [nothing, _, gptq] =
                [Help::Nothing, Help::Awq, Help::Gptq].map(|help| language.perplexity(format, block, help));
            if gptq > nothing * 1.002 {
                failures.push(format!("{format} {block:?}: {gptq} after {nothing}"));
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}
