//! Byte-pair encoding with a score for each token, as llama2.c keeps it.

use std::collections::HashMap;

use lowbit::{Error, Result};

/// The token that begins a text.
pub const BEGIN: i64 = 1;

/// Tokens from here on are single bytes.
const BYTES: usize = 3;

/// A vocabulary.
pub struct Vocabulary {
    tokens: Vec<Vec<u8>>,
    scores: Vec<f32>,
    numbers: HashMap<Vec<u8>, usize>,
}

impl Vocabulary {
    /// Reads the file: little-endian, the length of the longest token as an i32,
    /// then for each token its score as an f32, its length as an i32, its bytes.
    ///
    /// # Errors
    /// If the file ends within a token.
    pub fn read(mut file: &[u8]) -> Result<Vocabulary> {
        let mut take = |n: usize| -> Result<Vec<u8>> {
            let short = || Error::Invalid("the vocabulary ends within a token".into());
            let (head, tail) = file.split_at_checked(n).ok_or_else(short)?;
            file = tail;
            Ok(head.to_vec())
        };
        let number = |bytes: Vec<u8>| bytes.try_into().map_or([0; 4], |b: [u8; 4]| b);
        take(4)?;
        let (mut tokens, mut scores) = (vec![], vec![]);
        while let Ok(score) = take(4) {
            let length = i32::from_le_bytes(number(take(4)?));
            scores.push(f32::from_le_bytes(number(score)));
            tokens.push(take(usize::try_from(length).unwrap_or(usize::MAX))?);
        }
        let numbers = tokens.iter().cloned().enumerate().rev().map(|(i, t)| (t, i)).collect();
        Ok(Vocabulary { tokens, scores, numbers })
    }

    /// The tokens of a text, which it begins with [`BEGIN`]: its characters (or
    /// bytes, where a character is no token), of which the neighbours with the
    /// best score are joined until none can be.
    pub fn encode(&self, text: &str) -> Vec<i64> {
        let mut tokens: Vec<usize> = vec![];
        // Words begin with a space, the first one too.
        for c in std::iter::once(' ').chain(text.chars()) {
            let mut bytes = [0; 4];
            let bytes = c.encode_utf8(&mut bytes).as_bytes();
            match self.numbers.get(bytes) {
                Some(token) => tokens.push(*token),
                None => tokens.extend(bytes.iter().map(|b| BYTES + usize::from(*b))),
            }
        }
        let joined = |pair: &[usize]| {
            self.numbers.get(&[&self.tokens[pair[0]][..], &self.tokens[pair[1]]].concat()).copied()
        };
        loop {
            let pairs = tokens.windows(2).enumerate().filter_map(|(i, pair)| Some((i, joined(pair)?)));
            // Of equal scores the first.
            let best = pairs.rev().max_by(|(_, a), (_, b)| self.scores[*a].total_cmp(&self.scores[*b]));
            let Some((i, token)) = best else { break };
            tokens.splice(i..i + 2, [token]);
        }
        std::iter::once(BEGIN).chain(tokens.into_iter().map(|t| t as i64)).collect()
    }

    /// The text of tokens, without those that begin and end it.
    pub fn decode(&self, tokens: &[i64]) -> String {
        let mut bytes = vec![];
        for t in tokens.iter().filter_map(|t| usize::try_from(*t).ok()).filter(|t| *t >= BYTES) {
            match t.checked_sub(BYTES) {
                Some(byte) if byte < 256 => bytes.push(byte as u8),
                _ => bytes.extend(self.tokens.get(t).into_iter().flatten()),
            }
        }
        String::from_utf8_lossy(&bytes).trim_start().to_string()
    }
}
