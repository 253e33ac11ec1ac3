//! Silero's detector of speech, frame by frame, and the recordings that it reads.

use lowbit::{Error, Result, Tensor};

/// Samples a second.
pub const RATE: usize = 16_000;
/// New samples of a frame.
pub const FRAME: usize = 512;
/// Samples before a frame that the detector reads again.
const CONTEXT: usize = 64;

/// The samples, -1 to 1, of a WAV file (RIFF) of 16-bit PCM, one channel, 16 kHz.
///
/// # Errors
/// If the bytes are none, or end early.
pub fn samples(wav: &[u8]) -> Result<Vec<f32>> {
    let invalid = |what: String| Error::Invalid(what);
    let Some(mut rest) = wav.strip_prefix(b"RIFF").and_then(|x| x.get(4..)?.strip_prefix(b"WAVE")) else {
        return Err(invalid("not a WAV file: it does not begin with RIFF and WAVE".into()));
    };
    let mut is_known = false;
    while let Some((header, body)) = rest.split_at_checked(8) {
        let (name, size) = header.split_at(4);
        let size = u32::from_le_bytes(size.try_into().expect("four bytes")) as usize;
        let Some((chunk, others)) = body.split_at_checked(size) else {
            let name = name.escape_ascii();
            return Err(invalid(format!("the chunk {name:?} has {size} bytes, but {} follow", body.len())));
        };
        let word = |i: usize| chunk.get(i..i + 2).map_or(0, |x| u16::from_le_bytes([x[0], x[1]]));
        match name {
            b"fmt " => {
                let (tag, channels, bits) = (word(0), word(2), word(14));
                let rate = u32::from(word(4)) | u32::from(word(6)) << 16;
                if (tag, channels, rate, bits) != (1, 1, RATE as u32, 16) {
                    return Err(invalid(format!(
                        "needs 16-bit PCM (format 1), one channel, {RATE} Hz; found {bits} bits of format {tag}, \
                         {channels} channels, {rate} Hz"
                    )));
                }
                is_known = true;
            }
            b"data" if is_known => {
                let (samples, _) = chunk.as_chunks::<2>();
                return Ok(samples.iter().map(|&x| f32::from(i16::from_le_bytes(x)) / 32768.0).collect());
            }
            _ => {}
        }
        // Chunks begin at even places.
        rest = others.get(size % 2..).unwrap_or_default();
    }
    Err(invalid("ends before a `data` chunk that follows a `fmt ` chunk".into()))
}

/// The probability of speech in each whole frame. `model` takes a frame with its
/// context `[1, 576]` and the state `[2, 1, 128]`, and gives the probability and
/// the state for the next frame.
///
/// # Errors
/// Those of `model`, and if it gives something else.
pub fn speech(samples: &[f32], mut model: impl FnMut(&[Tensor]) -> Result<Vec<Tensor>>) -> Result<Vec<f32>> {
    let padded = [&[0.0; CONTEXT], samples].concat();
    let mut state = Tensor::full(&[2, 1, 128], 0f32)?;
    let frames = padded.windows(CONTEXT + FRAME).step_by(FRAME);
    let probability = |frame: &[f32]| {
        let made = model(&[Tensor::new(&[1, frame.len()], frame.to_vec())?, state.clone()])?;
        let [speech, next] = <[Tensor; 2]>::try_from(made)
            .map_err(|made| Error::Invalid(format!("expected 2 outputs, found {}", made.len())))?;
        state = next;
        speech.item::<f32>()
    };
    frames.map(probability).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of these chunks.
    fn wav(chunks: &[(&[u8; 4], &[u8])]) -> Vec<u8> {
        let mut bytes = b"RIFF\0\0\0\0WAVE".to_vec();
        for (name, body) in chunks {
            bytes.extend(*name);
            bytes.extend((body.len() as u32).to_le_bytes());
            bytes.extend(*body);
            bytes.extend(&[0][..body.len() % 2]);
        }
        bytes
    }

    fn format(tag: u16, channels: u16, rate: u32, bits: u16) -> Vec<u8> {
        let words = [tag, channels, rate as u16, (rate >> 16) as u16, 0, 0, 2, bits];
        words.iter().flat_map(|w| w.to_le_bytes()).collect()
    }

    #[test]
    fn samples_are_those_of_the_data_chunk() {
        let pcm = format(1, 1, 16_000, 16);
        let data: &[u8] = &[0, 0x80, 0, 0x40, 0xff, 0xff];
        let whole = wav(&[(b"LIST", b"odd"), (b"fmt ", &pcm), (b"fact", b"0000"), (b"data", data)]);
        assert_eq!(samples(&whole).unwrap(), [-1.0, 0.5, -1.0 / 32768.0]);
        for end in 0..whole.len() {
            assert!(samples(&whole[..end]).is_err(), "the first {end} bytes");
        }
    }

    #[test]
    fn other_files_are_errors() {
        let file = |tag, channels, rate, bits| {
            wav(&[(b"fmt ", &format(tag, channels, rate, bits)), (b"data", &[0; 4])])
        };
        let short: &[(&[u8; 4], &[u8])] = &[(b"fmt ", &[1, 0]), (b"data", &[])];
        let cases = [
            (b"OggS".to_vec(), "not a WAV file"),
            (file(1, 2, 16_000, 16), "found 16 bits of format 1, 2 channels, 16000 Hz"),
            (file(1, 1, 44_100, 16), "44100 Hz"),
            (file(1, 1, 16_000, 8), "found 8 bits"),
            (file(3, 1, 16_000, 16), "format 3"),
            (wav(short), "format 1, 0 channels, 0 Hz"),
            (wav(&[(b"data", &[0; 4])]), "ends before"),
        ];
        for (bytes, want) in cases {
            let message = samples(&bytes).unwrap_err().to_string();
            assert!(message.contains(want), "{message}, not {want}");
        }
    }

    #[test]
    fn frames_overlap_and_hand_the_state_on() {
        let samples: Vec<f32> = (0..2 * FRAME + 5).map(|i| i as f32).collect();
        let mut seen = vec![];
        let found = speech(&samples, |x| {
            let (frame, state) = (x[0].slice::<f32>()?, x[1].slice::<f32>()?[0]);
            seen.push((frame[0], frame[CONTEXT], frame[CONTEXT + FRAME - 1]));
            Ok(vec![Tensor::scalar(state), Tensor::full(&[2, 1, 128], state + 1.0)?])
        });
        assert_eq!(found.unwrap(), [0.0, 1.0]);
        assert_eq!(seen, [(0.0, 0.0, 511.0), (448.0, 512.0, 1023.0)]);
        assert!(speech(&samples[..FRAME - 1], |_| unreachable!()).unwrap().is_empty());
        assert!(speech(&samples, |x| Ok(x[..1].to_vec())).is_err());
    }
}
