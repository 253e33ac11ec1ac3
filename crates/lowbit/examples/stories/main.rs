//! A language model in 4 bits: `stories [ASSETS [PROMPT]]`.
//!
//! ASSETS (by default `$LOWBIT_ASSETS`) holds `models/stories260K.onnx`, a llama
//! of 260 thousand parameters, `data/tok512.bin`, its vocabulary, and
//! `data/tinystories_sample.txt`, which nothing but the perplexity is taken from.
//! The codes of the weights are chosen on texts that the model itself makes up.

mod bpe;
mod language;

use std::path::{Path, PathBuf};
use std::time::Instant;

use bpe::Vocabulary;
use language::{Model, ids, perplexity, sample};
use lowbit::graph::Graph;
use lowbit::qconfig::{QConfigMapping, preset};
use lowbit::quantize::{fuse, prepare};
use lowbit::session::Session;
use lowbit::{Error, Result, onnx};

/// Made-up texts for calibration, and their tokens.
const TEXTS: usize = 64;
const LENGTH: usize = 128;

/// Tokens of the story that is told.
const STORY: usize = 160;

fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let Some(assets) = arguments.next().or_else(|| std::env::var_os("LOWBIT_ASSETS")) else {
        eprintln!("usage: stories ASSETS [PROMPT], or set LOWBIT_ASSETS");
        std::process::exit(2)
    };
    let prompt = arguments.next().map_or("Once upon a time".into(), |p| p.to_string_lossy().into_owned());
    tell(&PathBuf::from(assets), &prompt)
}

fn tell(assets: &Path, prompt: &str) -> Result<()> {
    let read = |name: &str| {
        let path = assets.join("data").join(name);
        std::fs::read(&path).map_err(|e| Error::io(&path, e))
    };
    let vocabulary = Vocabulary::read(&read("tok512.bin")?)?;
    let text = String::from_utf8_lossy(&read("tinystories_sample.txt")?).into_owned();
    let stories = text.split("<|endoftext|>").map(str::trim).filter(|story| !story.is_empty());
    let stories: Vec<Vec<i64>> = stories.map(|story| vocabulary.encode(story)).collect();

    let float = onnx::load(assets.join("models/stories260K.onnx"))?;
    let session = Session::compile(&float)?;
    let texts = sample(|x| session.run(x), &[], TEXTS, LENGTH, 1)?;
    let quantized = quantize(&float, &texts)?;

    let folder = std::env::temp_dir();
    for (name, graph) in [("float", &float), ("4-bit", &quantized)] {
        let path = folder.join(format!("stories260K.{name}.onnx"));
        onnx::save(graph, &path)?;
        let bytes = std::fs::metadata(&path).map_err(|e| Error::io(&path, e))?.len();
        let session = Session::compile(&onnx::load(&path)?)?;
        println!("{name}: {bytes} bytes in {}", path.display());
        println!(
            "  perplexity {:.3} on {} stories",
            perplexity(&stories, |x| session.run(x))?,
            stories.len()
        );
        let (story, rate) = told(|x| session.run(x), &vocabulary.encode(prompt))?;
        println!("  {rate:.0} tokens/s: {}\n", vocabulary.decode(&story));
    }
    Ok(())
}

/// The model with weights of 4 bits in blocks of 32.
fn quantize(float: &Graph, texts: &[Vec<i64>]) -> Result<Graph> {
    let mapping = QConfigMapping::global(preset("int4")?);
    let mut prepared = prepare(&fuse(float)?, &mapping)?;
    prepared.calibrate(texts.iter().map(|text| Ok(vec![ids(std::slice::from_ref(text))?])), &|_| Ok(()))?;
    Ok(prepared.convert()?.graph)
}

/// A story that begins with `prompt`, and the tokens told in a second.
fn told(model: impl Model, prompt: &[i64]) -> Result<(Vec<i64>, f64)> {
    let start = Instant::now();
    let story = sample(model, prompt, 1, STORY, 7)?.remove(0);
    let made = story.len().saturating_sub(prompt.len());
    Ok((story, made as f64 / start.elapsed().as_secs_f64()))
}
