//! Ranges shared between the weights that make a channel and those that read it.

use super::channels::{Channels, input_channels};
use super::scales::{Grain, exponent, factor};
use crate::graph::{Graph, Kind, Var};
use crate::op::Op;
use crate::tensor::Tensor;

/// Passes over the layers, at most.
const SWEEPS: usize = 20;

/// A change of `log2 s_k` that is not worth another sweep: half a step of what is kept.
const SETTLED: f64 = 1.0 / 128.0;

/// Finds the scales of the channels that are [`Channels::balanced`]
/// (docs/quantization.md, equation 35):
///
/// `s_k = sqrt(r1_k / r2_k)`, at least `least[k]`, where `r1_k` and `r2_k` are the greatest
/// magnitudes of the weights that make channel `k` and of those that read it, scaled on their
/// other side as far as that is known. Layers come in evaluation order, again and again until
/// the scales settle. Channels with no weight but 0 on one side keep a scale of 1.
pub fn balance(graph: &Graph, channels: &Channels, least: &[f32], exponents: &mut [i16]) {
    if !channels.balanced.contains(&true) {
        return;
    }
    let layers: Vec<Layer> =
        channels.linear.iter().filter_map(|(v, x)| Layer::new(graph, channels, *v, *x)).collect();
    let mut scales: Vec<f64> = exponents.iter().map(|e| f64::from(factor(*e))).collect();
    for _ in 0..SWEEPS {
        let mut change = 0f64;
        for maker in &layers {
            let Some(made) = maker.made.filter(|ids| ids.iter().any(|c| channels.balanced[*c])) else {
                continue;
            };
            let mut makes = vec![0f64; channels.count];
            maker.each(|made, read, w| {
                if let Some(c) = made {
                    makes[c] = makes[c].max(w * read.map_or(1.0, |c| scales[c]));
                }
            });
            let mut reads = vec![0f64; channels.count];
            for reader in layers.iter().filter(|l| l.reads_of(made)) {
                reader.each(|made, read, w| {
                    if let Some(c) = read {
                        reads[c] = reads[c].max(w / made.map_or(1.0, |c| scales[c]));
                    }
                });
            }
            for c in made.iter().copied().filter(|c| channels.balanced[*c]) {
                let wanted = (makes[c] / reads[c]).sqrt();
                let usable = wanted.is_normal() && least[c].is_finite();
                let scale = if usable { wanted.max(f64::from(least[c])) } else { 1.0 };
                change = change.max(libm::log2(scale / scales[c]).abs());
                scales[c] = scale;
            }
        }
        if change < SETTLED {
            break;
        }
    }
    for c in (0..channels.count).filter(|c| channels.balanced[*c]) {
        exponents[c] = exponent(libm::log2(scales[c]), least[c], Grain::Fine);
    }
}

/// A linear operator: its weight, and the channels that it makes and reads.
struct Layer<'a> {
    op: &'a dyn Op,
    weight: &'a Tensor,
    made: Option<&'a [usize]>,
    read: Option<&'a [usize]>,
}

impl<'a> Layer<'a> {
    fn new(graph: &'a Graph, channels: &'a Channels, v: Var, x: Var) -> Option<Layer<'a>> {
        let Kind::Apply { op, inputs } = &graph.node(v).kind else { return None };
        let ids = |v: Var| channels.of.get(&v).map(Vec::as_slice);
        let (made, read) = (ids(v), ids(x));
        Some(Layer { op: &**op, weight: graph.constant(inputs[1])?, made, read })
    }

    /// Whether it reads some of the channels `made`, which are numbered in a row.
    fn reads_of(&self, made: &[usize]) -> bool {
        let among = |c: &usize| made.first() <= Some(c) && Some(c) <= made.last();
        self.read.is_some_and(|ids| ids.iter().any(among))
    }

    /// Shows the channel made, the channel read, and the greatest magnitude of the weights
    /// between them.
    fn each(&self, mut see: impl FnMut(Option<usize>, Option<usize>, f64)) {
        let (place, shape) = (input_channels(self.op, self.weight.shape()), self.weight.shape());
        let taps: usize = shape[2..].iter().product::<usize>().max(1);
        let of = |ids: Option<&[usize]>, i: usize| ids.map(|ids| ids[i]);
        for (i, taken) in self.weight.slice::<f32>().unwrap_or_default().chunks(taps).enumerate() {
            let most = taken.iter().fold(0f32, |most, w| most.max(w.abs()));
            let (output, input) = place(i * taps);
            see(of(self.made, output), of(self.read, input), f64::from(most));
        }
    }
}
