//! A graph run again and again.

use std::sync::Arc;

use super::{
    at_facts, check_condition, given, given_captured, input_facts, output_facts, outside, outside_shape, run,
    stacked,
};
use crate::error::{Result, invalid};
use crate::graph::Graph;
use crate::op::{Attribute, Attributes, Dim, Fact, Op, optional, optional_fact};
use crate::tensor::{Tensor, element_count};

/// `trips, condition, carried... -> carried..., collected...`:
///
/// ```text
/// for i in 0..trips while condition:
///     condition, carried..., collected[i]... = body(i, condition, carried...)
/// ```
///
/// Left-out trips have no end, and a left-out condition holds at first; the
/// body's counts even then, as in onnxruntime. A negative number of trips is
/// none. The shapes of carried values may change.
#[derive(Clone, Debug)]
pub struct Loop {
    body: Vec<Graph>,
    carried: usize,
    captured: usize,
}

impl Loop {
    /// The operator that repeats `body` with `carried` carried values.
    ///
    /// # Errors
    /// If the body has not as many inputs and outputs as that takes.
    pub fn new(body: Graph, carried: usize, captured: usize) -> Result<Loop> {
        let (inputs, outputs) = (body.inputs().len(), body.outputs().len());
        if inputs != 2 + carried + captured {
            return Err(invalid!(
                "the body takes {} inputs, not iteration, condition and {carried} carried values",
                inputs.saturating_sub(captured)
            ));
        }
        if outputs < 1 + carried {
            return Err(invalid!(
                "the body has {outputs} outputs, fewer than condition and {carried} carried values"
            ));
        }
        Ok(Loop { body: vec![body], carried, captured })
    }

    fn body(&self) -> &Graph {
        &self.body[0]
    }

    /// The operands' number, checked: operands before the captured may be left
    /// out at the end.
    fn check_arity(&self, found: usize) -> Result<()> {
        let all = 2 + self.carried + self.captured;
        if found == all || (all == 2 && found < 2) {
            return Ok(());
        }
        Err(invalid!("takes {all} operands, found {found}"))
    }

    fn at(&self, inputs: &[&Fact]) -> Result<Option<Loop>> {
        self.check_arity(inputs.len())?;
        if let Some(trips) = optional_fact(inputs, 0)
            && !(trips.dtype.is_integer() && trips.shape.iter().all(|d| d.known().is_none_or(|n| n == 1)))
        {
            return Err(invalid!("the trip count is {trips}, not one integer"));
        }
        if let Some(condition) = optional_fact(inputs, 1) {
            check_condition(condition)?;
        }
        let stored = input_facts(self.body());
        let rest = inputs.get(2..).unwrap_or_default();
        let (carried, captured) = rest.split_at(self.carried);
        let mut start = vec![];
        for ((_, old), new) in self.body().inputs().skip(2).zip(carried) {
            let mut fact = given(&old.fact, &unvalued(new), &old.name)?;
            for (axis, d) in old.fact.shape.iter().enumerate().filter(|(i, d)| **d == Dim::any(&old.name, *i))
            {
                fact.shape[axis] = d.clone();
            }
            start.push(fact);
        }
        let captured = given_captured(self.body(), captured)?;
        let names: Vec<String> = self.body().inputs().skip(2).map(|(_, v)| v.name.clone()).collect();
        let facts = |carried: &[Fact]| [&stored[..2], carried, &captured].concat();
        if facts(&start) == stored {
            return Ok(None);
        }
        let body = settled(start, &names, |carried| {
            let made = at_facts(self.body(), &facts(carried))?;
            Ok(made.unwrap_or_else(|| self.body().clone()))
        })?;
        Ok(Some(Loop { body: vec![body], ..self.clone() }))
    }

    /// The number of iterations, where it is known before the run.
    fn trips(&self, inputs: &[&Fact]) -> Dim {
        let body = self.body();
        let condition = optional_fact(inputs, 1).map_or(Some(true), super::branch::taken);
        let given = body.inputs().nth(1).map(|(v, _)| v);
        let never_ends = body.outputs().next().is_some_and(|(_, kept)| match body.constant(kept) {
            Some(t) => t.item::<bool>().is_ok_and(|x| x),
            None => given == Some(kept),
        });
        let trips = optional_fact(inputs, 0).and_then(|f| f.sizes.as_deref());
        match (condition, trips) {
            (Some(false), _) => Dim::Known(0),
            (Some(true), Some([n])) if n.as_integer().is_some_and(|n| n <= 0) => Dim::Known(0),
            (Some(true), Some([n])) if never_ends => n.clone(),
            _ => Dim::unknown(),
        }
    }
}

/// What is known of a value that changes from one iteration to the next.
fn unvalued(fact: &Fact) -> Fact {
    fact.with_shape(fact.shape.clone())
}

/// The body of a loop whose carried values, named `names`, are `start` at
/// first: `body` of facts that hold in every iteration. A dimension `i` of `x`
/// that changes is `any(x.i)`.
///
/// # Errors
/// What `body` reports, or if a type or a rank changes.
pub fn settled(
    start: Vec<Fact>,
    names: &[String],
    mut body: impl FnMut(&[Fact]) -> Result<Graph>,
) -> Result<Graph> {
    let mut facts: Vec<Fact> = start.iter().map(unvalued).collect();
    loop {
        let made = body(&facts)?;
        let before = facts.clone();
        let outputs = output_facts(&made);
        for ((fact, name), next) in facts.iter_mut().zip(names).zip(outputs.iter().skip(1)) {
            if (fact.dtype, fact.rank()) != (next.dtype, next.rank()) {
                return Err(invalid!(
                    "carried value {name} is {fact} before an iteration and {next} after it"
                ));
            }
            for (axis, (d, next)) in fact.shape.iter_mut().zip(&next.shape).enumerate() {
                if d != next {
                    *d = Dim::any(name, axis);
                }
            }
        }
        if facts == before {
            return Ok(made);
        }
    }
}

impl Op for Loop {
    fn name(&self) -> &'static str {
        "Loop"
    }

    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        let at = self.at(inputs)?;
        let op = at.as_ref().unwrap_or(self);
        let made = output_facts(op.body());
        check_condition(&made[0]).map_err(|e| e.at("output 0 of the body"))?;
        let carried = op.body().inputs().skip(2).zip(inputs.iter().skip(2)).take(self.carried);
        let last = carried.map(|((_, body), start)| {
            let same = |(inside, start): (&Dim, &Dim)| match inside == start {
                true => inside.clone(),
                false => Dim::unknown(),
            };
            start.with_shape(body.fact.shape.iter().zip(&start.shape).map(same).collect())
        });
        let trips = op.trips(inputs);
        let collected = made[1 + self.carried..].iter().map(|one| {
            let shape = std::iter::once(outside(&trips, inputs)).chain(outside_shape(one, inputs));
            one.with_shape(shape.collect())
        });
        Ok(last.chain(collected).collect())
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        self.check_arity(inputs.len())?;
        let trips = match optional(inputs, 0).map(Tensor::integers).transpose()?.as_deref() {
            None => i64::MAX,
            Some([n]) => *n,
            Some(_) => return Err(invalid!("the trip count is not one integer")),
        };
        let condition = optional(inputs, 1).map(Tensor::item::<bool>).transpose();
        let mut goes_on = condition.map_err(|e| e.at("condition"))?.unwrap_or(true);
        let rest = inputs.get(2..).unwrap_or_default();
        let mut carried: Vec<Tensor> = rest[..self.carried].iter().map(|t| (*t).clone()).collect();
        let captured: Vec<Tensor> = rest[self.carried..].iter().map(|t| (*t).clone()).collect();
        let mut scalars = self.body().inputs().map(|(_, v)| v.fact.known_shape().unwrap_or_default());
        let (count_shape, condition_shape) =
            (scalars.next().unwrap_or_default(), scalars.next().unwrap_or_default());
        let mut collected = vec![vec![]; self.body().outputs().len() - 1 - self.carried];
        let mut i = 0;
        while goes_on && i < trips {
            let mut given = vec![
                Tensor::scalar(i).reshaped(&count_shape)?,
                Tensor::scalar(goes_on).reshaped(&condition_shape)?,
            ];
            given.append(&mut carried);
            given.extend(captured.iter().cloned());
            let mut made = run(self.body(), &given)?.into_iter();
            let condition = made.next().ok_or_else(|| invalid!("the body has no condition"))?;
            goes_on = condition.item::<bool>().map_err(|e| e.at("the body's condition"))?;
            carried.extend(made.by_ref().take(self.carried));
            i += 1;
            for (all, one) in collected.iter_mut().zip(made) {
                all.push(one);
                element_count(&[all.len(), all[0].len()])?;
            }
        }
        let facts: Vec<Fact> = inputs.iter().map(|t| Fact::of(t)).collect();
        for (k, all) in collected.iter().enumerate() {
            carried.push(stacked(all, 0, || {
                let at = self.at(&facts.iter().collect::<Vec<_>>())?;
                Ok(output_facts(at.as_ref().unwrap_or(self).body())[1 + self.carried + k].clone())
            })?);
        }
        Ok(carried)
    }

    fn attributes(&self) -> Attributes {
        vec![("body", Attribute::Graph(self.body().clone()))]
    }

    fn folds(&self) -> bool {
        false
    }

    /// Of all iterations, one where their number is not known.
    fn macs(&self, inputs: &[&Fact], _outputs: &[&Fact]) -> u64 {
        let trips = optional_fact(inputs, 0).and_then(|f| f.sizes.as_deref()?.first()?.as_integer());
        self.body().macs().saturating_mul(trips.map_or(1, |n| n.max(0) as u64))
    }

    fn bodies(&self) -> &[Graph] {
        &self.body
    }

    fn captured(&self) -> usize {
        self.captured
    }

    fn with_bodies(&self, bodies: Vec<Graph>, captured: usize) -> Result<Arc<dyn Op>> {
        let [body] = <[Graph; 1]>::try_from(bodies).map_err(|_| invalid!("Loop has one body"))?;
        Ok(Arc::new(Loop::new(body, self.carried, captured)?))
    }

    fn fitted(&self, inputs: &[&Fact]) -> Result<Option<Arc<dyn Op>>> {
        Ok(self.at(inputs)?.map(|op| Arc::new(op) as Arc<dyn Op>))
    }
}
