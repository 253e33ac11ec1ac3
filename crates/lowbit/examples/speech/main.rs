//! Finds speech in a recording with Silero's detector, in float and quantized:
//! `speech MODEL.onnx WAV [OUT.onnx]`.
//!
//! The model is quantized dynamically, which needs no data: weights in int8,
//! activations by the range of each frame. WAV is 16-bit PCM, one channel, 16
//! kHz. The quantized model goes to OUT.onnx, if there is one. Without arguments
//! the model and the recording are those in the folder `LOWBIT_ASSETS`, or in
//! `../shared/assets`.

mod detector;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use detector::{FRAME, RATE, samples, speech};
use lowbit::quantize::quantize_dynamic;
use lowbit::scheme::Format;
use lowbit::session::Session;
use lowbit::{Error, Result, onnx};
use prost::Message;

/// The probability from which on a frame is speech.
const THRESHOLD: f32 = 0.5;

fn main() -> Result<()> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    match arguments.as_slice() {
        [] => {
            let assets = std::env::var_os("LOWBIT_ASSETS").unwrap_or("../shared/assets".into());
            let assets = PathBuf::from(assets);
            detect(&assets.join("models/silero_vad_16k.onnx"), &assets.join("data/vad_test.wav"), None)
        }
        [model, wav] => detect(model, wav, None),
        [model, wav, out] => detect(model, wav, Some(out)),
        _ => {
            eprintln!("usage: speech [MODEL.onnx WAV [OUT.onnx]]");
            std::process::exit(2)
        }
    }
}

fn detect(model: &Path, wav: &Path, out: Option<&Path>) -> Result<()> {
    let bytes = fs::read(wav).map_err(|e| Error::io(wav, e))?;
    let samples = samples(&bytes).map_err(|e| e.at(wav.display().to_string()))?;
    let float = onnx::load(model)?;
    let quantized = quantize_dynamic(&float, &[], Format::INT8)?.graph;
    if let Some(out) = out {
        onnx::save(&quantized, out)?;
    }
    let float_size = fs::metadata(model).map_err(|e| Error::io(model, e))?.len();
    let size = onnx::encode(&quantized)?.encoded_len() as u64;
    let (want, float_time) = timed(&Session::compile(&float)?, &samples)?;
    let (found, time) = timed(&Session::compile(&quantized)?, &samples)?;

    println!("model       kB   µs a frame");
    for (name, size, time) in [("float", float_size, float_time), ("int8", size, time)] {
        println!("{name:5} {:8.0} {:12.1}", size as f64 / 1e3, time.as_secs_f64() * 1e6);
    }
    let agree = want.iter().zip(&found).filter(|(a, b)| is_speech(**a) == is_speech(**b)).count();
    let percent = 100.0 * agree as f64 / found.len().max(1) as f64;
    println!("{agree} of {} frames agree, {percent:.2} %", found.len());
    println!("speech, in seconds:");
    for [start, end] in spans(&found) {
        println!("{start:7.2} - {end:.2}");
    }
    Ok(())
}

/// The probability of speech in each frame, and the median time that the model
/// takes for one, on one thread.
fn timed(session: &Session, samples: &[f32]) -> Result<(Vec<f32>, Duration)> {
    let mut times = vec![];
    let model = |x: &[_]| {
        let start = Instant::now();
        let made = session.run(x);
        times.push(start.elapsed());
        made
    };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
    let pool = pool.map_err(|e| Error::Invalid(e.to_string()))?;
    let found = pool.install(|| speech(samples, model))?;
    times.sort_unstable();
    Ok((found, times.get(times.len() / 2).copied().unwrap_or_default()))
}

fn is_speech(probability: f32) -> bool {
    probability >= THRESHOLD
}

/// Start and end in seconds of each run of frames with speech.
fn spans(found: &[f32]) -> impl Iterator<Item = [f64; 2]> {
    let mut at = 0;
    let seconds = |frame: usize| (frame * FRAME) as f64 / RATE as f64;
    found.chunk_by(|a, b| is_speech(*a) == is_speech(*b)).filter_map(move |run| {
        let start = at;
        at += run.len();
        is_speech(run[0]).then(|| [start, at].map(seconds))
    })
}
