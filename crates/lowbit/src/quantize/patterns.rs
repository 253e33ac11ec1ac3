//! Functions that models spell out in several operators.

use std::f64::consts;

use crate::graph::{Graph, Uses, Var};
use crate::ops::binary::Arithmetic;
use crate::ops::reduce::{Reduce, Reduction};
use crate::ops::unary::Unary;
use crate::tensor::DType;

/// A function that several nodes of a graph compute.
#[derive(Clone, Debug, PartialEq)]
pub struct Pattern {
    /// The function.
    pub function: Function,
    /// Its operand.
    pub x: Var,
    /// The values computed on the way, the result last.
    pub values: Vec<Var>,
}

/// What is recognized.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Function {
    /// `x / 2 (1 + erf(x / sqrt 2))`, or its approximation
    /// `x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`, the factors in any order.
    Gelu {
        /// Whether it is the approximation.
        tanh: bool,
    },
    /// `x / sqrt(mean(x^2) + epsilon)` over the last axis: RMS normalization
    /// without its scale, and the last half of a layer normalization.
    RootMeanSquare {
        /// Added to the mean.
        epsilon: f32,
    },
}

/// The functions that f32 values of the graph spell out, where nothing else
/// reads what is computed on the way.
pub fn patterns(graph: &Graph) -> Vec<Pattern> {
    let uses = graph.uses();
    let found = graph.applied().filter_map(|(v, node, op, _)| {
        let arithmetic = op.is::<Arithmetic>()?;
        let float = node.outputs[0].fact.dtype == DType::F32;
        let spelled = Spelled { graph, uses: &uses };
        match arithmetic {
            Arithmetic::Mul if float => spelled.gelu(v).or_else(|| spelled.root_mean_square(v)),
            Arithmetic::Div if float => spelled.root_mean_square(v),
            _ => None,
        }
    });
    found.collect()
}

struct Spelled<'a> {
    graph: &'a Graph,
    uses: &'a Uses,
}

/// A product, taken apart.
#[derive(Default)]
struct Factors {
    /// What is no constant.
    values: Vec<Var>,
    /// The product of the constants.
    constant: f64,
    /// The products that were taken apart.
    nodes: Vec<Var>,
}

impl Spelled<'_> {
    /// The constant of one element that `v` is.
    fn scalar(&self, v: Var) -> Option<f64> {
        self.graph.constant(v).filter(|t| t.len() == 1)?.item::<f32>().ok().map(f64::from)
    }

    /// The operands of `v`, if `wanted` makes it.
    fn operands(&self, wanted: Arithmetic, v: Var) -> Option<[Var; 2]> {
        let (op, inputs) = self.graph.made_by::<Arithmetic>(v)?;
        (*op == wanted).then(|| [inputs[0], inputs[1]])
    }

    /// The operand of `v`, if `wanted` makes it and nothing else reads it.
    fn operand(&self, wanted: Unary, v: Var) -> Option<Var> {
        let (op, inputs) = self.graph.made_by::<Unary>(v)?;
        (*op == wanted && self.uses.of(v) == 1).then(|| inputs[0])
    }

    /// `v` less a constant term of `term`, in either order.
    fn without(&self, term: impl Fn(f64) -> bool, v: Var) -> Option<Var> {
        let [a, b] = self.operands(Arithmetic::Add, v)?;
        [(a, b), (b, a)].into_iter().find(|(_, c)| self.scalar(*c).is_some_and(&term)).map(|(x, _)| x)
    }

    /// Takes the product `v` apart, down to values that are read elsewhere too.
    fn factors(&self, v: Var, root: bool, of: &mut Factors) {
        let inner = root || self.uses.of(v) == 1;
        if let Some(c) = self.scalar(v) {
            of.constant *= c;
        } else if let Some([a, b]) = self.operands(Arithmetic::Mul, v).filter(|_| inner) {
            of.nodes.push(v);
            self.factors(a, false, of);
            self.factors(b, false, of);
        } else if let Some(([x, _], c)) =
            self.operands(Arithmetic::Div, v).filter(|_| inner).and_then(|d| Some((d, self.scalar(d[1])?)))
        {
            of.nodes.push(v);
            of.constant /= c;
            self.factors(x, false, of);
        } else {
            of.values.push(v);
        }
    }

    fn taken_apart(&self, v: Var, root: bool) -> Factors {
        let mut of = Factors { constant: 1.0, ..Factors::default() };
        self.factors(v, root, &mut of);
        of
    }

    /// `x` and `1 + f(..x..)` times one half.
    fn gelu(&self, y: Var) -> Option<Pattern> {
        let product = self.taken_apart(y, true);
        let [a, b] = product.values[..] else { return None };
        if !near(product.constant, 0.5) {
            return None;
        }
        let (tanh, mut nodes) = [(a, b), (b, a)].into_iter().find_map(|(x, sum)| {
            let inner = self.without(|c| c == 1.0, sum).filter(|_| self.uses.of(sum) == 1)?;
            let (function, nodes) = match self.operand(Unary::Erf, inner) {
                Some(scaled) => (false, self.scaled(scaled, consts::FRAC_1_SQRT_2, |v| v == x)?),
                None => (true, self.cubic(self.operand(Unary::Tanh, inner)?, x)?),
            };
            Some(((function, x), [nodes, vec![inner, sum]].concat()))
        })?;
        nodes.extend(product.nodes);
        nodes.sort_unstable();
        Some(Pattern { function: Function::Gelu { tanh: tanh.0 }, x: tanh.1, values: nodes })
    }

    /// The products of which `v = scale * x` is made, where `is` says what x is.
    fn scaled(&self, v: Var, scale: f64, is: impl Fn(Var) -> bool) -> Option<Vec<Var>> {
        let product = self.taken_apart(v, false);
        let [x] = product.values[..] else { return None };
        (near(product.constant, scale) && is(x)).then_some(product.nodes)
    }

    /// The values of which `v = sqrt(2 / pi) (x + 0.044715 x^3)` is made.
    fn cubic(&self, v: Var, x: Var) -> Option<Vec<Var>> {
        let product = self.taken_apart(v, false);
        let [sum] = product.values[..] else { return None };
        let [a, b] = self.operands(Arithmetic::Add, sum).filter(|_| self.uses.of(sum) == 1)?;
        let cube = if a == x { b } else { a };
        let cubed = self.taken_apart(cube, false);
        let is_cube = match cubed.values[..] {
            [p] => self
                .operands(Arithmetic::Pow, p)
                .is_some_and(|[base, n]| base == x && self.scalar(n) == Some(3.0)),
            ref all => all.len() == 3 && all.iter().all(|v| *v == x),
        };
        let fits = near(product.constant, (2.0 / consts::PI).sqrt()) && near(cubed.constant, 0.044_715);
        if !is_cube || !fits || (a != x && b != x) {
            return None;
        }
        let power = cubed.values.iter().copied().filter(|v| *v != x);
        Some([product.nodes, cubed.nodes.clone(), power.collect(), vec![sum]].concat())
    }

    /// `x / sqrt(..)`, or `x` times its reciprocal.
    fn root_mean_square(&self, y: Var) -> Option<Pattern> {
        let over = |x: Var, root: Var| {
            let sum = self.operand(Unary::Sqrt, root)?;
            let mut epsilon = 0.0;
            let mean = self.without(|_| true, sum).filter(|_| self.uses.of(sum) == 1)?;
            self.operands(Arithmetic::Add, sum)?
                .iter()
                .for_each(|c| epsilon += self.scalar(*c).unwrap_or(0.0));
            let (reduce, inputs) = self.graph.made_by::<Reduce>(mean)?;
            let last = self.graph.fact(x).rank() as i64 - 1;
            let axes = match (&reduce.axes, inputs.get(1)) {
                (Some(axes), _) => axes.clone(),
                (None, Some(axes)) => self.graph.constant(*axes)?.integers().ok()?,
                (None, None) => return None,
            };
            let of_rows = reduce.to == Reduction::Mean && reduce.keepdims && (axes == [-1] || axes == [last]);
            let square = inputs[0];
            let is_square = match self.operands(Arithmetic::Pow, square) {
                Some([base, n]) => base == x && self.scalar(n) == Some(2.0),
                None => self.operands(Arithmetic::Mul, square)? == [x, x],
            };
            let alone = self.uses.of(mean) == 1 && self.uses.of(square) == 1;
            (of_rows && is_square && alone).then(|| (epsilon as f32, vec![square, mean, sum, root]))
        };
        let ((epsilon, mut values), x) = if let Some([x, root]) = self.operands(Arithmetic::Div, y) {
            if self.scalar(x) == Some(1.0) {
                return None;
            }
            (over(x, root)?, x)
        } else {
            let [a, b] = self.operands(Arithmetic::Mul, y)?;
            [(a, b), (b, a)].into_iter().find_map(|(x, inverse)| {
                let root = match self.operand(Unary::Reciprocal, inverse) {
                    Some(root) => root,
                    None => {
                        let [one, root] = self.operands(Arithmetic::Div, inverse)?;
                        (self.scalar(one) == Some(1.0) && self.uses.of(inverse) == 1).then_some(root)?
                    }
                };
                let (epsilon, mut values) = over(x, root)?;
                values.push(inverse);
                Some(((epsilon, values), x))
            })?
        };
        values.push(y);
        Some(Pattern { function: Function::RootMeanSquare { epsilon }, x, values })
    }
}

/// Equal but for the rounding of exporters.
fn near(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-4 * b.abs()
}
