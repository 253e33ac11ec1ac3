//! Language models as graphs: token ids `[N, T]` in, the logits of the next
//! token `[N, T, V]` out.

use lowbit::{Result, Tensor};

use super::bpe::BEGIN;

/// Texts are computed in lengths of multiples of this.
const PADDING: usize = 64;

/// What a graph or a session computes.
pub trait Model: Fn(&[Tensor]) -> Result<Vec<Tensor>> {}

impl<F: Fn(&[Tensor]) -> Result<Vec<Tensor>>> Model for F {}

/// Texts of one length as the model's input.
pub fn ids(texts: &[Vec<i64>]) -> Result<Tensor> {
    let length = texts.first().map_or(0, Vec::len);
    Tensor::new(&[texts.len(), length], texts.concat())
}

/// `exp` of the mean negative log-probability of each token but the first,
/// given those before it.
pub fn perplexity(texts: &[Vec<i64>], model: impl Model) -> Result<f64> {
    let (mut loss, mut count) = (0f64, 0);
    for text in texts {
        let logits = model(&[ids(std::slice::from_ref(text))?])?.remove(0);
        let rows = logits.slice::<f32>()?.chunks_exact(logits.shape()[2]);
        for (row, next) in rows.zip(text.iter().skip(1)) {
            let total: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
            loss += total.ln() - f64::from(row[usize::try_from(*next).unwrap_or(0)]);
            count += 1;
        }
    }
    Ok((loss / f64::from(count.max(1))).exp())
}

/// `count` texts of `length` tokens that begin with `prompt`, each token drawn
/// with the probability that the model gives it, by numbers that `seed` decides.
pub fn sample(
    model: impl Model,
    prompt: &[i64],
    count: usize,
    length: usize,
    seed: u64,
) -> Result<Vec<Vec<i64>>> {
    let mut texts = vec![if prompt.is_empty() { vec![BEGIN] } else { prompt.to_vec() }; count];
    let mut state = seed;
    for now in texts[0].len()..length {
        // What follows does not change what a token is told; few lengths are few plans.
        let padded = now.next_multiple_of(PADDING);
        let pad = |text: &Vec<i64>| [&text[..], &vec![BEGIN; padded - now]].concat();
        let logits = model(&[ids(&texts.iter().map(pad).collect::<Vec<_>>())?])?.remove(0);
        let tokens = logits.len() / (count * padded).max(1);
        let rows = logits.slice::<f32>()?.chunks_exact((padded * tokens).max(1));
        for (text, row) in texts.iter_mut().zip(rows) {
            text.push(drawn(&row[(now - 1) * tokens..now * tokens], uniform(&mut state)));
        }
    }
    Ok(texts)
}

/// The token at which the cumulated probability passes `u`.
fn drawn(logits: &[f32], u: f64) -> i64 {
    let most = logits.iter().fold(f32::MIN, |m, x| m.max(*x));
    let weights: Vec<f64> = logits.iter().map(|x| f64::from(x - most).exp()).collect();
    let mut left = u * weights.iter().sum::<f64>();
    let passed = weights.iter().position(|w| {
        left -= w;
        left < 0.0
    });
    passed.unwrap_or(logits.len() - 1) as i64
}

/// The next number in 0..1 (splitmix64).
fn uniform(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}
