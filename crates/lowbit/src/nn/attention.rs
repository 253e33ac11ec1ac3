//! Attention.

use super::init::Init;
use super::linear::Linear;
use super::module::{Children, Module, Parameter};
use super::scope::Scope;
use crate::error::{Result, invalid};
use crate::graph::Var;

/// Several heads of attention, beside each other in the features:
///
/// ```text
/// q, k, v = their rows of in_proj_weight times query, key and value, plus in_proj_bias
/// y = out_proj(softmax(q k^T / sqrt(features of a head) + mask) v)
/// ```
///
/// Parameters: in_proj_weight `[3 E, E]` (or, where keys or values have other features,
/// q_proj_weight `[E, E]`, k_proj_weight `[E, K]` and v_proj_weight `[E, V]`), in_proj_bias
/// `[3 E]`, and those of the [`Linear`] out_proj.
#[derive(Clone, Debug)]
pub struct MultiheadAttention {
    features: usize,
    heads: usize,
    keys: usize,
    values: usize,
    bias: bool,
    batch_first: bool,
    out_proj: Linear,
}

impl MultiheadAttention {
    /// `heads` heads, which divide `features`, with biases, over `[steps, batch, features]`.
    pub fn new(features: usize, heads: usize) -> MultiheadAttention {
        MultiheadAttention {
            features,
            heads,
            keys: features,
            values: features,
            bias: true,
            batch_first: false,
            out_proj: Linear::new(features, features).bias_init(Init::Full(0.0)),
        }
    }

    /// Keys and values with other features than queries.
    pub fn key_and_value_features(self, keys: usize, values: usize) -> MultiheadAttention {
        MultiheadAttention { keys, values, ..self }
    }

    /// With or without biases.
    pub fn bias(self, bias: bool) -> MultiheadAttention {
        MultiheadAttention { bias, out_proj: self.out_proj.bias(bias), ..self }
    }

    /// Whether inputs and outputs are `[batch, steps, features]`.
    pub fn batch_first(self, batch_first: bool) -> MultiheadAttention {
        MultiheadAttention { batch_first, ..self }
    }

    fn is_packed(&self) -> bool {
        self.keys == self.features && self.values == self.features
    }

    /// The attended values, and the weights of the mean head, `[batch, queries, keys]`.
    /// `mask`, which is added before softmax, broadcasts to `[batch, heads, queries, keys]`.
    ///
    /// # Errors
    /// If the operands do not fit.
    pub fn attend(&self, g: &mut Scope<'_>, [q, k, v]: [Var; 3], mask: Option<Var>) -> Result<[Var; 2]> {
        if self.heads == 0 || !self.features.is_multiple_of(self.heads) {
            return Err(
                invalid!("{} heads do not divide {} features", self.heads, self.features).at(g.place())
            );
        }
        let of_head = self.features / self.heads;
        let mut projected = vec![];
        for (i, (x, name)) in
            [(q, "q_proj_weight"), (k, "k_proj_weight"), (v, "v_proj_weight")].into_iter().enumerate()
        {
            if g.fact(x).rank() != 3 {
                return Err(invalid!("takes [steps, batch, features], found {}", g.fact(x)).at(g.place()));
            }
            let (from, to) = ((i * self.features) as i64, ((i + 1) * self.features) as i64);
            let weight = match self.is_packed() {
                true => {
                    let all = g.parameter("in_proj_weight")?;
                    g.slice(all, 0, from, to)?
                }
                false => g.parameter(name)?,
            };
            let bias = match g.optional_parameter("in_proj_bias")? {
                Some(all) => Some(g.slice(all, 0, from, to)?),
                None => None,
            };
            let x = if self.batch_first { x } else { g.permute(x, &[1, 0, 2])? };
            let x = g.linear(x, weight, bias)?;
            let x = g.reshape(x, &[0, 0, self.heads as i64, of_head as i64])?;
            projected.push(g.permute(x, if i == 1 { &[0, 2, 3, 1] } else { &[0, 2, 1, 3] })?);
        }
        let scale = g.scalar(1.0 / (of_head as f32).sqrt());
        let q = g.mul(projected[0], scale)?;
        let mut scores = g.matmul(q, projected[1])?;
        if let Some(mask) = mask {
            scores = g.add(scores, mask)?;
        }
        let weights = g.softmax(scores, -1)?;
        let y = g.matmul(weights, projected[2])?;
        let y = g.permute(y, &[0, 2, 1, 3])?;
        let y = g.reshape(y, &[0, 0, self.features as i64])?;
        let y = g.call("out_proj", &self.out_proj, y)?;
        let y = if self.batch_first { y } else { g.permute(y, &[1, 0, 2])? };
        let mean = g.mean(weights, &[1])?;
        Ok([y, g.squeeze(mean, 1)?])
    }
}

impl Module for MultiheadAttention {
    /// Attention of `x` to itself.
    fn forward(&self, g: &mut Scope<'_>, x: Var) -> Result<Var> {
        Ok(self.attend(g, [x; 3], None)?[0])
    }

    /// Query, key and value, and a mask if there is one.
    fn forward_all(&self, g: &mut Scope<'_>, inputs: &[Var]) -> Result<Vec<Var>> {
        match *inputs {
            [x] => Ok(vec![self.forward(g, x)?]),
            [q, k, v] => Ok(self.attend(g, [q, k, v], None)?.to_vec()),
            [q, k, v, mask] => Ok(self.attend(g, [q, k, v], Some(mask))?.to_vec()),
            _ => {
                Err(invalid!("takes query, key, value and a mask, found {} inputs", inputs.len())
                    .at(g.place()))
            }
        }
    }

    fn parameters(&self) -> Vec<Parameter> {
        let e = self.features;
        let xavier = |rows: usize, columns: usize| Init::Uniform {
            bound: (6.0 / (rows + columns).max(1) as f32).sqrt(),
        };
        let mut all = match self.is_packed() {
            true => vec![Parameter::new("in_proj_weight", &[3 * e, e], xavier(3 * e, e))],
            false => [("q", e), ("k", self.keys), ("v", self.values)]
                .map(|(name, n)| Parameter::new(format!("{name}_proj_weight"), &[e, n], xavier(e, n)))
                .to_vec(),
        };
        all.extend(self.bias.then(|| Parameter::new("in_proj_bias", &[3 * e], Init::Full(0.0))));
        all
    }

    fn children(&self) -> Children<'_> {
        super::children!(self; out_proj)
    }
}
