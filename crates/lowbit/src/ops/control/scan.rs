//! A graph run for each element of sequences.

use std::sync::Arc;

use super::{
    at_facts, given, given_captured, input_facts, output_facts, outside, outside_shape, run, stacked,
    with_axis,
};
use crate::error::{Result, invalid};
use crate::graph::Graph;
use crate::op::{Attribute, Attributes, Dim, Fact, Op};
use crate::ops::axis;
use crate::ops::strided::{contiguous, view};
use crate::tensor::{Tensor, element_count};

/// How a sequence lies in a tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Track {
    /// The axis of its elements.
    pub axis: i64,
    /// Whether the last element comes first.
    pub reverse: bool,
}

/// `states..., sequences... -> states..., collected...`:
///
/// ```text
/// for t in 0..length:
///     states..., collected[t]... = body(states..., sequences[t]...)
/// ```
///
/// The shapes of states stay as they are.
#[derive(Clone, Debug)]
pub struct Scan {
    body: Vec<Graph>,
    sequences: Vec<Track>,
    collected: Vec<Track>,
    captured: usize,
}

impl Scan {
    /// The operator that runs `body` along `sequences`.
    ///
    /// # Errors
    /// If the body has not as many inputs and outputs as that takes.
    pub fn new(body: Graph, sequences: Vec<Track>, collected: Vec<Track>, captured: usize) -> Result<Scan> {
        let states = body.inputs().len().checked_sub(sequences.len() + captured);
        if sequences.is_empty() || states.is_none_or(|n| n + collected.len() != body.outputs().len()) {
            return Err(invalid!(
                "the body has {} inputs and {} outputs, which are not the states, {} sequences and {} collected values",
                body.inputs().len().saturating_sub(captured),
                body.outputs().len(),
                sequences.len(),
                collected.len()
            ));
        }
        Ok(Scan { body: vec![body], sequences, collected, captured })
    }

    fn body(&self) -> &Graph {
        &self.body[0]
    }

    fn states(&self) -> usize {
        self.body().outputs().len() - self.collected.len()
    }

    fn at(&self, inputs: &[&Fact]) -> Result<Option<Scan>> {
        let own = self.states() + self.sequences.len();
        if inputs.len() != own + self.captured {
            return Err(invalid!("takes {} operands, found {}", own + self.captured, inputs.len()));
        }
        self.length(inputs)?;
        let mut facts = vec![];
        for (i, ((_, old), new)) in self.body().inputs().zip(inputs).take(own).enumerate() {
            let new = match i.checked_sub(self.states()) {
                None => new.with_shape(new.shape.clone()),
                Some(k) => element(new, self.sequences[k])?,
            };
            facts.push(given(&old.fact, &new, &old.name)?);
        }
        facts.extend(given_captured(self.body(), &inputs[own..])?);
        let Some(body) = at_facts(self.body(), &facts)? else { return Ok(None) };
        Ok(Some(Scan { body: vec![body], ..self.clone() }))
    }

    /// The common length of the sequences.
    fn length(&self, inputs: &[&Fact]) -> Result<Dim> {
        let mut length: Option<Dim> = None;
        for (fact, track) in inputs.iter().skip(self.states()).zip(&self.sequences) {
            let d = &fact.shape[axis::one(track.axis, fact.rank())?];
            length = Some(match length {
                Some(Dim::Known(n)) => match d {
                    Dim::Known(m) if n != *m => {
                        return Err(invalid!("the sequences have {n} and {m} elements"));
                    }
                    _ => Dim::Known(n),
                },
                Some(Dim::Named(_)) if d.known().is_some() => d.clone(),
                Some(named) => named,
                None => d.clone(),
            });
        }
        length.ok_or_else(|| invalid!("has no sequence"))
    }
}

/// What is known of one element of a sequence.
pub(crate) fn element(sequence: &Fact, track: Track) -> Result<Fact> {
    let mut shape = sequence.shape.clone();
    shape.remove(axis::one(track.axis, shape.len())?);
    Ok(sequence.with_shape(shape))
}

/// Element `i` of a sequence.
fn element_at(t: &Tensor, track: Track, i: usize) -> Result<Tensor> {
    let at = axis::one(track.axis, t.rank())?;
    let i = if track.reverse { t.shape()[at] - 1 - i } else { i };
    let (mut shape, mut strides) = (t.shape().to_vec(), contiguous(t.shape()));
    shape.remove(at);
    let start = i * strides.remove(at) as usize;
    view(t, &shape, &strides, start)
}

impl Op for Scan {
    fn name(&self) -> &'static str {
        "Scan"
    }

    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        let at = self.at(inputs)?;
        let op = at.as_ref().unwrap_or(self);
        let (given, made) = (input_facts(op.body()), output_facts(op.body()));
        let length = self.length(inputs)?;
        let mut facts = vec![];
        for (i, (before, after)) in given.iter().zip(&made).take(self.states()).enumerate() {
            let differ = |(a, b): (&Dim, &Dim)| a.known().zip(b.known()).is_some_and(|(a, b)| a != b);
            if (before.dtype, before.rank()) != (after.dtype, after.rank())
                || before.shape.iter().zip(&after.shape).any(differ)
            {
                return Err(invalid!("state {i} is {before} before an iteration and {after} after it"));
            }
            facts.push(before.with_shape(outside_shape(before, inputs)));
        }
        for (one, track) in made.iter().skip(self.states()).zip(&self.collected) {
            let shape = with_axis(&outside_shape(one, inputs), track.axis, outside(&length, inputs))?;
            facts.push(one.with_shape(shape));
        }
        Ok(facts)
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        let facts: Vec<Fact> = inputs.iter().map(|t| Fact::of(t)).collect();
        let facts: Vec<&Fact> = facts.iter().collect();
        let (states, own) = (self.states(), self.states() + self.sequences.len());
        if inputs.len() != own + self.captured {
            return Err(invalid!("takes {} operands, found {}", own + self.captured, inputs.len()));
        }
        let length = self.length(&facts)?.known().unwrap_or(0);
        let clones = |x: &[&Tensor]| -> Vec<Tensor> { x.iter().map(|t| (*t).clone()).collect() };
        let (mut carried, captured) = (clones(&inputs[..states]), clones(&inputs[own..]));
        let mut collected = vec![vec![]; self.collected.len()];
        for i in 0..length {
            let mut given = std::mem::take(&mut carried);
            for (sequence, track) in inputs[states..own].iter().zip(&self.sequences) {
                given.push(element_at(sequence, *track, i)?);
            }
            given.extend(captured.iter().cloned());
            let mut made = run(self.body(), &given)?.into_iter();
            carried.extend(made.by_ref().take(states));
            for (all, one) in collected.iter_mut().zip(made) {
                all.push(one);
                element_count(&[all.len(), all[0].len()])?;
            }
        }
        for (k, (mut all, track)) in collected.into_iter().zip(&self.collected).enumerate() {
            if track.reverse {
                all.reverse();
            }
            carried.push(stacked(&all, track.axis, || {
                let at = self.at(&facts)?;
                Ok(output_facts(at.as_ref().unwrap_or(self).body())[states + k].clone())
            })?);
        }
        Ok(carried)
    }

    fn attributes(&self) -> Attributes {
        let axes = |tracks: &[Track]| Attribute::Ints(tracks.iter().map(|t| t.axis).collect());
        let directions =
            |tracks: &[Track]| Attribute::Ints(tracks.iter().map(|t| i64::from(t.reverse)).collect());
        vec![
            ("body", Attribute::Graph(self.body().clone())),
            ("num_scan_inputs", Attribute::Int(self.sequences.len() as i64)),
            ("scan_input_axes", axes(&self.sequences)),
            ("scan_input_directions", directions(&self.sequences)),
            ("scan_output_axes", axes(&self.collected)),
            ("scan_output_directions", directions(&self.collected)),
        ]
    }

    fn folds(&self) -> bool {
        false
    }

    /// Of all iterations, one where their number is not known.
    fn macs(&self, inputs: &[&Fact], _outputs: &[&Fact]) -> u64 {
        let length = self.length(inputs).ok().and_then(|d| d.known()).unwrap_or(1);
        self.body().macs().saturating_mul(length as u64)
    }

    fn bodies(&self) -> &[Graph] {
        &self.body
    }

    fn captured(&self) -> usize {
        self.captured
    }

    fn with_bodies(&self, bodies: Vec<Graph>, captured: usize) -> Result<Arc<dyn Op>> {
        let [body] = <[Graph; 1]>::try_from(bodies).map_err(|_| invalid!("Scan has one body"))?;
        Ok(Arc::new(Scan::new(body, self.sequences.clone(), self.collected.clone(), captured)?))
    }

    fn fitted(&self, inputs: &[&Fact]) -> Result<Option<Arc<dyn Op>>> {
        Ok(self.at(inputs)?.map(|op| Arc::new(op) as Arc<dyn Op>))
    }
}
