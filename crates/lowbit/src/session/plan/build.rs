//! From a graph and the shapes of its inputs to a plan.

use std::collections::HashMap;

use super::memory::{Span, arrange};
use super::{MOST_OPERANDS, Place, Plan, Region, Step, Work, size_of_dtype};
use crate::error::Result;
use crate::graph::{Graph, Kind, Node, Uses, Var};
use crate::op::{Op, Operand, Prepared};
use crate::tensor::{DType, Tensor, element_count};

/// The plan of `graph` for inputs of these shapes.
///
/// # Errors
/// If an operator does not fit these shapes; the error names the node.
pub fn plan<'a>(graph: &Graph, shapes: impl IntoIterator<Item = &'a [usize]>) -> Result<Plan> {
    let graph = graph.at_shapes(shapes)?;
    let mut planner = Planner {
        graph: &graph,
        uses: graph.uses(),
        places: HashMap::new(),
        buffers: vec![],
        steps: vec![],
        loose: vec![],
    };
    for (i, (v, _)) in graph.inputs().enumerate() {
        planner.places.insert(v, Value::Input(i));
    }
    for (v, node) in graph.nodes() {
        planner.node(v, node).map_err(|e| e.at(&node.name))?;
    }
    let end = planner.steps.len();
    let results: Vec<Value> = graph.outputs().map(|(_, v)| planner.places[&v].clone()).collect();
    results.iter().for_each(|value| planner.used(value, end));
    let Planner { buffers, steps, loose, .. } = planner;
    let roots = Roots::of(&buffers);
    let (offsets, bytes) = arrange(&roots.spans);
    let place = |value: &Value| value.place(&buffers, &roots, &offsets);
    let outputs = results.iter().map(place).collect();
    let scratch = steps.iter().map(|step| step.work.scratch()).max().unwrap_or(0);
    let steps = steps
        .into_iter()
        .enumerate()
        .map(|(i, step)| Step {
            node: step.node,
            work: step.work,
            operands: step.operands.iter().map(place).collect(),
            results: step.results.iter().map(place).collect(),
            freed: (0..loose.len()).filter(|&l| loose[l] == i).collect(),
        })
        .collect();
    Ok(Plan { steps, bytes, scratch, loose: loose.len(), outputs, graph })
}

struct Planner<'a> {
    graph: &'a Graph,
    uses: Uses,
    places: HashMap<Var, Value>,
    buffers: Vec<Buffer>,
    steps: Vec<Draft>,
    /// The last step that reads each value outside the arena.
    loose: Vec<usize>,
}

/// A step whose values have no addresses yet.
struct Draft {
    node: Var,
    work: Work,
    operands: Vec<Value>,
    results: Vec<Value>,
}

/// Where a value will lie.
#[derive(Clone)]
enum Value {
    Input(usize),
    Constant(Tensor),
    /// In a buffer, perhaps under another shape than the buffer's.
    Buffer {
        index: usize,
        shape: Vec<usize>,
    },
    Loose(usize),
}

/// A value that a routine writes.
struct Buffer {
    dtype: DType,
    /// Elements, in rows of `width`.
    rows: usize,
    width: usize,
    first: usize,
    last: usize,
    /// Whether the rows may lie apart.
    strided: bool,
    /// Whether it is read under another shape.
    aliased: bool,
    /// The buffer that this one is a part of, and the row and column there.
    part_of: Option<(usize, [usize; 2])>,
}

impl Planner<'_> {
    fn node(&mut self, v: Var, node: &Node) -> Result<()> {
        let (op, inputs) = match &node.kind {
            Kind::Input => return Ok(()),
            Kind::Const(t) => {
                self.places.insert(v, Value::Constant(t.clone()));
                return Ok(());
            }
            Kind::Apply { op, inputs } => (op, inputs),
        };
        match self.prepare(v, node, &**op, inputs)? {
            Prepared::Alias => {
                let shape = node.outputs[0].fact.known_shape().unwrap_or_default();
                let value = match &self.places[&inputs[0]] {
                    Value::Buffer { index, .. } => {
                        self.buffers[*index].aliased = true;
                        Value::Buffer { index: *index, shape }
                    }
                    Value::Constant(t) => Value::Constant(t.reshaped(&shape)?),
                    // Of the caller, or made anew in each run.
                    Value::Input(_) | Value::Loose(_) => return self.evaluated(v, node, inputs),
                };
                self.places.insert(v, value);
                Ok(())
            }
            Prepared::Join { axis } => self.joined(v, node, inputs, axis),
            Prepared::Routine(routine) => {
                let result = self.buffer(v, routine.strided())?;
                self.step(v, Work::Routine(routine), inputs, result);
                Ok(())
            }
            Prepared::Eval => self.evaluated(v, node, inputs),
        }
    }

    /// How the operator runs; by evaluation unless all values have known shapes
    /// and types that the arena holds.
    fn prepare(&self, v: Var, node: &Node, op: &dyn Op, inputs: &[Var]) -> Result<Prepared> {
        let shapes: Option<Vec<Vec<usize>>> =
            inputs.iter().chain([&v]).map(|v| self.graph.fact(*v).known_shape()).collect();
        let held = |v: &Var| matches!(self.graph.fact(*v).dtype, DType::F32 | DType::U8 | DType::I8);
        let viewable = inputs.iter().all(|v| held(v) || self.graph.constant(*v).is_some()) && held(&v);
        let Some(shapes) = shapes.filter(|_| viewable && node.outputs.len() == 1) else {
            return Ok(Prepared::Eval);
        };
        let operands: Vec<Operand> = inputs
            .iter()
            .zip(&shapes)
            .map(|(v, shape)| Operand {
                dtype: self.graph.fact(*v).dtype,
                shape,
                constant: self.graph.constant(*v),
            })
            .collect();
        Ok(match op.prepare(&operands)? {
            Prepared::Routine(_) if inputs.len() > MOST_OPERANDS => Prepared::Eval,
            prepared => prepared,
        })
    }

    /// A step that makes tensors of its own.
    fn evaluated(&mut self, v: Var, node: &Node, inputs: &[Var]) -> Result<()> {
        let Kind::Apply { op, .. } = &node.kind else { return Ok(()) };
        let at = self.steps.len();
        let operands: Vec<Value> = inputs.iter().map(|v| self.places[v].clone()).collect();
        operands.iter().for_each(|value| self.used(value, at));
        let mut results = vec![];
        for slot in 0..node.outputs.len() {
            let value = Value::Loose(self.loose.len());
            self.loose.push(at);
            self.places.insert(v.output(slot), value.clone());
            results.push(value);
        }
        self.steps.push(Draft { node: v, work: Work::Eval(op.clone()), operands, results });
        Ok(())
    }

    /// A concatenation. A part that is made for it alone is made in its place;
    /// the others are copied there.
    fn joined(&mut self, v: Var, node: &Node, inputs: &[Var], axis: usize) -> Result<()> {
        let shape = node.outputs[0].fact.known_shape().unwrap_or_default();
        let outer: usize = shape[..axis].iter().product();
        let last = axis + 1 == shape.len();
        let (rows, width) = rows_and_width(&shape)?;
        // Without outer rows, or along the last axis, a part is a rectangle of rows.
        if !(last || outer <= 1) {
            return self.evaluated(v, node, inputs);
        }
        let value = self.buffer(v, true)?;
        let whole = self.buffers.len() - 1;
        let mut at = 0;
        for input in inputs {
            let part_shape = self.graph.fact(*input).known_shape().unwrap_or_default();
            let (part_rows, part_width) = rows_and_width(&part_shape)?;
            let place = if last { [0, at] } else { [at, 0] };
            at += if last { part_width } else { part_rows };
            let index = match &self.places[input] {
                Value::Buffer { index, .. } if self.is_free(*index, *input, part_width, last) => *index,
                _ => {
                    let now = self.steps.len();
                    let dtype = self.graph.fact(v).dtype;
                    self.buffers.push(Buffer {
                        dtype,
                        rows: part_rows,
                        width: part_width,
                        first: now,
                        last: now,
                        strided: true,
                        aliased: false,
                        part_of: None,
                    });
                    let index = self.buffers.len() - 1;
                    self.step(v, Work::Copy, &[*input], Value::Buffer { index, shape: part_shape });
                    index
                }
            };
            self.buffers[index].part_of = Some((whole, place));
        }
        debug_assert_eq!(at, if last { width } else { rows });
        self.places.insert(v, value);
        Ok(())
    }

    /// Whether a buffer may become a part of another: read once, under its own
    /// shape, and, for rows that lie apart, written by a routine that can.
    fn is_free(&self, index: usize, v: Var, width: usize, last: bool) -> bool {
        let buffer = &self.buffers[index];
        !buffer.aliased
            && self.uses.of(v) == 1
            && buffer.part_of.is_none()
            && buffer.width == width
            && (buffer.strided || !last)
    }

    fn buffer(&mut self, v: Var, strided: bool) -> Result<Value> {
        let fact = self.graph.fact(v);
        let shape = fact.known_shape().unwrap_or_default();
        let (rows, width) = rows_and_width(&shape)?;
        let now = self.steps.len();
        let dtype = fact.dtype;
        self.buffers.push(Buffer {
            dtype,
            rows,
            width,
            first: now,
            last: now,
            strided,
            aliased: false,
            part_of: None,
        });
        Ok(Value::Buffer { index: self.buffers.len() - 1, shape })
    }

    fn step(&mut self, v: Var, work: Work, inputs: &[Var], result: Value) {
        let at = self.steps.len();
        let operands: Vec<Value> = inputs.iter().map(|v| self.places[v].clone()).collect();
        operands.iter().for_each(|value| self.used(value, at));
        if !matches!(work, Work::Copy) {
            self.places.insert(v, result.clone());
        }
        self.steps.push(Draft { node: v, work, operands, results: vec![result] });
    }

    fn used(&mut self, value: &Value, step: usize) {
        match value {
            Value::Buffer { index, .. } => self.buffers[*index].last = self.buffers[*index].last.max(step),
            Value::Loose(i) => self.loose[*i] = self.loose[*i].max(step),
            Value::Input(_) | Value::Constant(_) => {}
        }
    }
}

/// Rows of the last axis, and their width.
fn rows_and_width(shape: &[usize]) -> Result<(usize, usize)> {
    let n = element_count(shape)?;
    let width = shape.last().copied().unwrap_or(1);
    Ok((n.checked_div(width).unwrap_or(0), width))
}

/// The buffers that are no part of another, with the lives of their parts.
struct Roots {
    /// For each buffer its root, and the row and column there.
    of: Vec<(usize, [usize; 2])>,
    spans: Vec<Span>,
}

impl Roots {
    fn of(buffers: &[Buffer]) -> Roots {
        let mut spans: Vec<Span> = buffers
            .iter()
            .map(|b| Span { size: b.rows * b.width * size_of_dtype(b.dtype), first: b.first, last: b.last })
            .collect();
        let of = (0..buffers.len())
            .map(|i| {
                let (mut root, mut at) = (i, [0, 0]);
                while let Some((whole, [row, column])) = buffers[root].part_of {
                    (root, at) = (whole, [at[0] + row, at[1] + column]);
                }
                (root, at)
            })
            .collect::<Vec<_>>();
        for (i, (root, _)) in of.iter().enumerate() {
            if *root != i {
                spans[*root].first = spans[*root].first.min(spans[i].first);
                spans[*root].last = spans[*root].last.max(spans[i].last);
                spans[i].size = 0;
            }
        }
        Roots { of, spans }
    }
}

impl Value {
    fn place(&self, buffers: &[Buffer], roots: &Roots, offsets: &[usize]) -> Place {
        match self {
            Value::Input(i) => Place::Input(*i),
            Value::Constant(t) => Place::Constant(t.clone()),
            Value::Loose(i) => Place::Loose(*i),
            Value::Buffer { index, shape } => {
                let buffer = &buffers[*index];
                let (root, [row, column]) = roots.of[*index];
                let pitch = buffers[root].width;
                // A part without elements lies where the whole does, which may have none either.
                let before = if buffer.rows * buffer.width == 0 { 0 } else { row * pitch + column };
                let start = offsets[root] + before * size_of_dtype(buffer.dtype);
                Place::Arena(Region {
                    dtype: buffer.dtype,
                    shape: shape.clone(),
                    start,
                    rows: buffer.rows,
                    width: buffer.width,
                    pitch,
                })
            }
        }
    }
}
