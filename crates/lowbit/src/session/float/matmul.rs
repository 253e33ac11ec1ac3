//! Matrix products with a constant matrix.

use std::sync::Arc;

use lowbit_kernels::{MatrixMut, Rows};

use super::product::{PackedMatrix, WeightedRows};
use crate::error::{Result, invalid};
use crate::graph::{Builder, Graph, Kind, Var};
use crate::op::{Dim, Fact, Op, Operand, Prepared, Routine, View, ViewMut, eval_by_routine};
use crate::ops::linear::{Gemm, MatMul};
use crate::tensor::{DType, Tensor};

/// The graph with the constant right operand of every f32 `MatMul`, and of every
/// `Gemm` that is a plain product and a bias, packed.
pub fn pack_products(graph: &Graph) -> Result<Graph> {
    graph.rebuild(|b, _, node, inputs| {
        let Kind::Apply { op, .. } = &node.kind else { return b.copy(node, inputs) };
        match packed(b, &**op, inputs)? {
            Some(op) => b.apply_all(&node.name, Arc::new(op), &inputs[..1], &[&node.outputs[0].name]),
            None => b.copy(node, inputs),
        }
    })
}

fn packed(b: &Builder, op: &dyn Op, inputs: &[Var]) -> Result<Option<PackedMatMul>> {
    let transposed = match (op.is::<MatMul>(), op.is::<Gemm>()) {
        (Some(_), _) => false,
        (_, Some(g)) if !g.trans_a && g.alpha == 1.0 && g.beta == 1.0 => g.trans_b,
        _ => return Ok(None),
    };
    let constants: Option<Vec<&Tensor>> = inputs[1..].iter().map(|v| b.so_far().constant(*v)).collect();
    let Some(constants) = constants.filter(|_| b.so_far().constant(inputs[0]).is_none()) else {
        return Ok(None);
    };
    let (w, bias) = (constants[0], constants.get(1).filter(|t| !t.is_empty()));
    let columns = if transposed { 0 } else { 1 };
    let fits = |t: &&Tensor| t.dtype() == DType::F32 && t.shape() == [w.shape()[columns]];
    if w.dtype() != DType::F32 || w.rank() != 2 || !bias.is_none_or(fits) {
        return Ok(None);
    }
    let (depth, columns) = (w.shape()[1 - columns], w.shape()[columns]);
    let values = w.slice::<f32>()?;
    let at = |row: usize, column: usize| match transposed {
        true => values[column * depth + row],
        false => values[row * columns + column],
    };
    let bias = bias.map(|t| t.slice::<f32>()).transpose()?.map(Into::into);
    Ok(Some(PackedMatMul { weights: Arc::new(PackedMatrix::new(1, depth, columns, at)), bias }))
}

/// `y[.., n] = bias[n] + sum_k x[.., k] w[k][n]`, each a chain of fused
/// multiply-adds from the bias on: [`MatMul`] or [`Gemm`], bit for bit.
#[derive(Clone, Debug)]
struct PackedMatMul {
    weights: Arc<PackedMatrix>,
    bias: Option<Arc<[f32]>>,
}

impl Op for PackedMatMul {
    fn name(&self) -> &'static str {
        "PackedMatMul"
    }
    fn domain(&self) -> &'static str {
        "lowbit"
    }
    fn infer(&self, x: &[&Fact]) -> Result<Vec<Fact>> {
        let mut shape = x[0].shape.clone();
        match shape.last_mut() {
            Some(last) => *last = Dim::Known(self.weights.columns()),
            None => return Err(invalid!("a product of a scalar")),
        }
        Ok(vec![x[0].with_shape(shape)])
    }
    fn eval(&self, x: &[&Tensor]) -> Result<Vec<Tensor>> {
        eval_by_routine(self, x)
    }
    fn prepare(&self, x: &[Operand<'_>]) -> Result<Prepared> {
        let depth = self.weights.depth();
        match x[0].shape.split_last() {
            Some((&last, rows)) if last == depth && x[0].dtype == DType::F32 => {
                Prepared::routine(OfRows { op: self.clone(), rows: rows.iter().product() })
            }
            _ => Err(invalid!("expected f32 rows of {depth}, found {:?}", x[0].shape)),
        }
    }
    fn macs(&self, _: &[&Fact], y: &[&Fact]) -> u64 {
        y[0].elements().saturating_mul(self.weights.depth() as u64)
    }
}

/// A [`PackedMatMul`] of known size.
#[derive(Debug)]
struct OfRows {
    op: PackedMatMul,
    rows: usize,
}

impl Routine for OfRows {
    fn run(&self, x: &[View<'_>], y: ViewMut<'_>, _: &mut [u8]) -> Result<()> {
        let PackedMatMul { weights, bias } = &self.op;
        let (depth, columns, pitch) = (weights.depth(), weights.columns(), y.pitch);
        let product = WeightedRows {
            rows: Rows::strided(x[0].f32()?, depth, self.rows, depth),
            weights,
            columns: 0..columns,
            bias: bias.as_deref(),
            bounds: [f32::NEG_INFINITY, f32::INFINITY],
            out: MatrixMut::strided(y.f32()?, self.rows, columns, pitch),
        };
        product.run();
        Ok(())
    }
    fn strided(&self) -> bool {
        true
    }
    fn algorithm(&self) -> &'static str {
        "gemm"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(shape: &[usize], seed: u64) -> Tensor {
        let n = shape.iter().product::<usize>() as u64;
        let value = |i: u64| {
            ((i * 2 + 1 + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / 8_388_608.0 - 1.0
        };
        Tensor::new(shape, (0..n).map(value).collect()).unwrap()
    }

    /// What `op` gives for `x` when its other operands are packed, and by itself.
    fn both(op: impl Op + Clone, x: &Tensor, constants: &[Tensor]) -> [Tensor; 2] {
        let mut b = Builder::default();
        let mut inputs = vec![b.input("x", Fact::of(x))];
        inputs.extend(constants.iter().enumerate().map(|(i, t)| b.constant(&format!("c{i}"), t.clone())));
        let y = b.apply("y", Arc::new(op), &inputs).unwrap();
        let graph = b.finish([("y".to_string(), y)]).unwrap();
        let packed = pack_products(&graph).unwrap();
        assert!(packed.applied().all(|(_, _, op, _)| op.name() == "PackedMatMul"), "{packed}");
        [packed, graph].map(|g| g.run(std::slice::from_ref(x)).unwrap().remove(0))
    }

    #[test]
    fn packed_products_equal_plain_ones() {
        let cases: [(&[usize], [usize; 2]); 9] = [
            (&[3, 4], [4, 5]),
            (&[5], [5, 7]),
            (&[2, 3, 100], [100, 131]),
            (&[130, 70], [70, 300]),
            (&[7, 1025], [1025, 50]),
            (&[16, 2100], [2100, 97]),
            (&[2, 0, 4], [4, 5]),
            (&[2, 3, 0], [0, 5]),
            (&[2, 4], [4, 0]),
        ];
        for threads in [1, 2] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            for (x, [depth, columns]) in cases {
                let (x, w) = (noise(x, 1), noise(&[depth, columns], 2));
                let [got, want] = pool.install(|| both(MatMul, &x, std::slice::from_ref(&w)));
                assert_eq!(got, want, "{x:?} {w:?}");
                if x.rank() == 2 && columns > 0 {
                    let w = noise(&[columns, depth], 3);
                    let gemm = Gemm { trans_b: true, ..Gemm::default() };
                    let [got, want] = pool.install(|| both(gemm, &x, &[w, noise(&[columns], 4)]));
                    assert_eq!(got, want, "Gemm {x:?}");
                }
            }
        }
    }
}
