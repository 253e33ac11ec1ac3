//! Constant matrices in few bits: what the engine computes with them, and in how much memory.

use std::sync::Arc;

use lowbit::graph::{Builder, Graph, Var};
use lowbit::op::{Dim, Fact, Op};
use lowbit::ops::gather::Gather;
use lowbit::ops::layout::Transpose;
use lowbit::ops::linear::{Gemm, MatMul};
use lowbit::ops::lookup::LookupDequantize;
use lowbit::ops::nbits::MatMulNBits;
use lowbit::ops::quantize::DequantizeLinear;
use lowbit::session::Session;
use lowbit::{DType, Tensor, onnx};
use proptest::prelude::*;

/// Numbers that look random.
fn noise(seed: usize, n: usize) -> impl Iterator<Item = u32> {
    (0..n).map(move |i| {
        let x = (i as u32).wrapping_add(1000 * seed as u32).wrapping_mul(0x9e37_79b9) ^ 0x5bd1_e995;
        (x ^ x >> 13).wrapping_mul(0x85eb_ca6b) >> 8
    })
}

/// In -1..1.
fn floats(seed: usize, shape: &[usize]) -> Tensor {
    let n = shape.iter().product();
    Tensor::new(shape, noise(seed, n).map(|x| x as f32 / (1 << 23) as f32 - 1.0).collect()).unwrap()
}

/// In 0.01..0.11.
fn scales(seed: usize, shape: &[usize]) -> Tensor {
    let n = shape.iter().product();
    Tensor::new(shape, noise(seed, n).map(|x| 0.01 + x as f32 / (1 << 24) as f32 / 10.0).collect()).unwrap()
}

/// All codes of a type, but for infinities and NaN.
fn codes(dtype: DType, seed: usize, shape: &[usize]) -> Tensor {
    let n: usize = shape.iter().product();
    match dtype.integer_range() {
        Some((lo, hi)) if lo < 0 => {
            let code = |x: u32| (lo + i64::from(x) % (hi - lo + 1)) as i8;
            Tensor::coded(dtype, shape, noise(seed, n).map(code).collect()).unwrap()
        }
        Some((_, hi)) => {
            let code = |x: u32| (i64::from(x) % (hi + 1)) as u8;
            Tensor::coded(dtype, shape, noise(seed, n).map(code).collect()).unwrap()
        }
        None => {
            let most = (1u32 << dtype.bits()) * 3 / 8;
            Tensor::coded(dtype, shape, noise(seed, n).map(|x| (x % most) as u8).collect()).unwrap()
        }
    }
}

/// What shares a scale of a matrix.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Scales {
    Tensor,
    Columns,
    Blocks(usize),
}

/// Where a matrix is read.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Reader {
    MatMul,
    /// Of the transposed matrix.
    Transposed,
    /// Of the transposed matrix, with a bias.
    Gemm,
    /// Rows of the transposed matrix.
    Gather,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    dtype: DType,
    depth: usize,
    columns: usize,
    scales: Scales,
    zeros: bool,
    /// Whether the codes index a table.
    table: bool,
    reader: Reader,
}

impl Case {
    /// A graph with the matrix as codes, and a DequantizeLinear.
    fn graph(self) -> Graph {
        let Case { dtype, depth, columns, reader, .. } = self;
        let transposed = reader != Reader::MatMul;
        let of = |depth: usize| if transposed { [columns, depth] } else { [depth, columns] };
        let mut b = Builder::default();
        let any = Dim::Named("M".into());
        let x = match reader {
            Reader::Gather => b.input("x", Fact::new(DType::I64, [any])),
            _ => b.input("x", Fact::new(DType::F32, [any, Dim::Known(depth)])),
        };
        let (block, shape) = match self.scales {
            Scales::Tensor => (0, vec![]),
            Scales::Columns => (0, vec![columns]),
            Scales::Blocks(size) => (size, of(depth.div_ceil(size)).to_vec()),
        };
        let axis = match self.scales {
            Scales::Columns => i64::from(!transposed),
            _ => i64::from(transposed),
        };
        let dq: Arc<dyn Op> = match self.table {
            true => Arc::new(LookupDequantize { axis, block }),
            false => Arc::new(DequantizeLinear { axis, block, dtype: None }),
        };
        let mut inputs =
            vec![b.constant("q", codes(dtype, 1, &of(depth))), b.constant("s", scales(2, &shape))];
        if self.table {
            inputs.insert(1, b.constant("t", floats(7, &[1 << dtype.bits()])));
        } else if self.zeros {
            inputs.push(b.constant("z", codes(dtype, 3, &shape)));
        }
        let mut w = b.apply("w", dq, &inputs).unwrap();
        if reader == Reader::Transposed {
            w = b.apply("t", Arc::new(Transpose { perm: Some(vec![1, 0]) }), &[w]).unwrap();
        }
        let (op, inputs): (Arc<dyn Op>, Vec<Var>) = match reader {
            Reader::MatMul | Reader::Transposed => (Arc::new(MatMul), vec![x, w]),
            Reader::Gather => (Arc::new(Gather { axis: 0 }), vec![w, x]),
            Reader::Gemm => {
                let bias = b.constant("bias", floats(4, &[columns]));
                (Arc::new(Gemm { trans_b: true, ..Gemm::default() }), vec![x, w, bias])
            }
        };
        let y = b.apply("y", op, &inputs).unwrap();
        b.finish([("y".to_string(), y)]).unwrap()
    }

    fn input(self, m: usize) -> Tensor {
        match self.reader {
            Reader::Gather => {
                let n = self.columns as i64;
                Tensor::vector(noise(5, m).map(|x| i64::from(x) % n - n / 2).collect::<Vec<_>>())
            }
            _ => floats(6, &[m, self.depth]),
        }
    }
}

fn names(session: &Session) -> Vec<&'static str> {
    session.graph().applied().map(|(_, _, op, _)| op.name()).collect()
}

/// Bytes of the constants that a compiled graph holds outside its operators.
fn constants(session: &Session) -> usize {
    let graph = session.graph();
    graph.nodes().filter_map(|(v, _)| graph.constant(v)).map(Tensor::byte_len).sum()
}

const DTYPES: [DType; 9] = [
    DType::I2,
    DType::U2,
    DType::I4,
    DType::U4,
    DType::F4E2M1,
    DType::I8,
    DType::U8,
    DType::F8E4M3,
    DType::F8E5M2,
];

#[test]
fn products_and_rows_of_codes_are_those_of_the_matrix_in_f32() {
    let mut failures = vec![];
    let tables = [DType::U2, DType::U4, DType::U8].map(|dtype| (dtype, true));
    for (dtype, table) in DTYPES.map(|dtype| (dtype, false)).into_iter().chain(tables) {
        for scales in [Scales::Tensor, Scales::Columns, Scales::Blocks(32), Scales::Blocks(64)] {
            for reader in [Reader::MatMul, Reader::Transposed, Reader::Gemm, Reader::Gather] {
                let zeros = dtype.is_integer() && scales != Scales::Columns && !table;
                let case = Case { dtype, depth: 96, columns: 131, scales, zeros, table, reader };
                let (graph, want) =
                    (case.graph(), if reader == Reader::Gather { "LowBitGather" } else { "LowBitMatMul" });
                let session = Session::compile(&graph).unwrap();
                let per_tensor_rows =
                    reader == Reader::Gather && dtype.bits() == 8 && scales == Scales::Tensor && !table;
                if names(&session) != [want] && !(per_tensor_rows && dtype.is_integer()) {
                    failures.push(format!("{case:?}: {:?}", names(&session)));
                }
                for m in [1, 3, 20] {
                    let x = [case.input(m)];
                    if session.run(&x).unwrap() != graph.run(&x).unwrap() {
                        failures.push(format!("{case:?}, {m} rows: other values"));
                    }
                }
                if !per_tensor_rows && constants(&session) != 0 {
                    failures.push(format!("{case:?}: {} bytes of constants", constants(&session)));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn case() -> impl Strategy<Value = Case> {
    let scales = prop_oneof![
        Just(Scales::Tensor),
        Just(Scales::Columns),
        prop::sample::select(vec![16, 32, 64, 128, 256]).prop_map(Scales::Blocks)
    ];
    let reader = prop::sample::select(vec![Reader::MatMul, Reader::Transposed, Reader::Gemm, Reader::Gather]);
    (prop::sample::select(DTYPES.to_vec()), 1..300usize, 1..300usize, scales, any::<bool>(), reader).prop_map(
        |(dtype, depth, columns, scales, zeros, reader)| Case {
            dtype,
            depth,
            columns,
            scales,
            zeros: zeros && dtype.is_integer(),
            table: false,
            reader,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn codes_of_any_matrix_give_the_products_of_the_matrix_in_f32(case in case(), m in 1..12usize) {
        let graph = case.graph();
        let session = Session::compile(&graph).unwrap();
        let x = [case.input(m)];
        prop_assert_eq!(session.run(&x).unwrap(), graph.run(&x).unwrap());
    }
}

/// A product of `[N, K]` codes in blocks.
fn n_bits(op: &MatMulNBits, zeros: Option<Tensor>, bias: bool) -> Graph {
    let mut b = Builder::default();
    let x = b.input("x", Fact::new(DType::F32, [Dim::Named("M".into()), Dim::Known(op.k)]));
    let bytes = codes(DType::U8, 1, &[op.n, op.blocks(), op.block * op.bits / 8]);
    let mut inputs = vec![x, b.constant("b", bytes), b.constant("s", scales(2, &[op.n * op.blocks()]))];
    inputs.push(match zeros {
        Some(zeros) => b.constant("z", zeros),
        None => b.absent(),
    });
    if bias {
        inputs.push(b.absent());
        inputs.push(b.constant("bias", floats(3, &[op.n])));
    }
    let y = b.apply("y", Arc::new(op.clone()), &inputs).unwrap();
    b.finish([("y".to_string(), y)]).unwrap()
}

#[test]
fn products_of_n_bits_run_on_their_codes() {
    for bits in [2, 4, 8] {
        for (k, n, block) in [(64, 16, 16), (70, 33, 32), (300, 131, 128), (40, 5, 256)] {
            let op = MatMulNBits { k, n, bits, block, accuracy_level: None };
            let of_row = op.blocks().div_ceil(8 / bits);
            let packed = codes(DType::U8, 5, &[n, of_row]);
            let fractions = floats(6, &[n * op.blocks()]);
            for (zeros, float) in [(None, false), (Some(packed), false), (Some(fractions), true)] {
                let case = format!("{op:?} {zeros:?}");
                let graph = n_bits(&op, zeros.clone(), !float);
                let session = Session::compile(&graph).unwrap();
                let want = if float { "PackedMatMul" } else { "LowBitMatMul" };
                assert_eq!(names(&session), [want], "{case}");
                let integers = MatMulNBits { accuracy_level: Some(4), ..op.clone() };
                let in_int8 = Session::compile(&n_bits(&integers, zeros, !float)).unwrap();
                for m in [1, 7] {
                    let x = [floats(7, &[m, k])];
                    let y = graph.run(&x).unwrap();
                    assert_eq!(session.run(&x).unwrap(), y, "{case}");
                    let (got, want) = (in_int8.run(&x).unwrap()[0].to_f32().unwrap(), y[0].to_f32().unwrap());
                    let square = |x: f32| f64::from(x).powi(2);
                    let noise: f64 = got.iter().zip(&want).map(|(a, b)| square(a - b)).sum();
                    let signal: f64 = want.iter().map(|&x| square(x)).sum();
                    // Codes of 8 bits: about 40 dB.
                    assert!(noise <= signal * 1e-3, "{case}, {m} rows: {noise} of {signal}");
                    assert_eq!(noise > 0.0, !float, "{case}, {m} rows: computes in f32");
                }
                let macs = if float { 0 } else { (k * n) as u64 };
                assert_eq!(
                    (session.report().integer_macs, in_int8.report().integer_macs),
                    (0, macs),
                    "{case}"
                );
            }
        }
    }
}

#[test]
fn a_matrix_of_several_readers_is_packed_once() {
    let mut b = Builder::default();
    let indices = b.input("i", Fact::new(DType::I64, [1]));
    let inputs = [b.constant("q", codes(DType::I4, 1, &[500, 64])), b.constant("s", scales(2, &[500, 2]))];
    let dq = DequantizeLinear { axis: 1, block: 32, dtype: None };
    let w = b.apply("w", Arc::new(dq), &inputs).unwrap();
    let x = b.apply("x", Arc::new(Gather { axis: 0 }), &[w, indices]).unwrap();
    let t = b.apply("t", Arc::new(Transpose { perm: None }), &[w]).unwrap();
    let y = b.apply("y", Arc::new(MatMul), &[x, t]).unwrap();
    let graph = b.finish([("y".to_string(), y)]).unwrap();
    let bytes = allocation_counter::measure(|| drop(Session::compile(&graph).unwrap())).bytes_max;
    // Of codes of one byte, of packed ones with their scales, and as much again while packing.
    assert!(bytes < 500 * 64 * 3, "{bytes} bytes");
    let session = Session::compile(&graph).unwrap();
    assert_eq!(names(&session), ["LowBitGather", "LowBitMatMul"]);
    let x = [Tensor::vector(vec![-3i64])];
    assert_eq!(session.run(&x).unwrap(), graph.run(&x).unwrap());
    let outside = [Tensor::vector(vec![500i64])];
    let message = session.run(&outside).unwrap_err().to_string();
    assert!(message.contains("index 500 is out of range for size 500"), "{message}");
}

#[test]
fn steady_runs_of_one_row_allocate_nothing() {
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        for level in [None, Some(4)] {
            let op = MatMulNBits { k: 1024, n: 2048, bits: 4, block: 32, accuracy_level: level };
            let session = Session::compile(&n_bits(&op, None, true)).unwrap();
            for m in [1, 5] {
                let x = [floats(1, &[m, 1024])];
                pool.install(|| {
                    let mut y = session.run(&x).unwrap();
                    session.run_into(&x, &mut y).unwrap();
                    let steady = allocation_counter::measure(|| session.run_into(&x, &mut y).unwrap());
                    assert_eq!(steady.count_total, 0, "{threads} threads, {m} rows, level {level:?}");
                });
            }
        }
    }
}

#[test]
fn codes_of_a_table_survive_saving() {
    let (scales, reader) = (Scales::Blocks(32), Reader::MatMul);
    let case = Case { dtype: DType::U4, depth: 70, columns: 9, scales, zeros: false, table: true, reader };
    let graph = case.graph();
    let path = std::env::temp_dir().join(format!("lowbit-table-{}.onnx", std::process::id()));
    onnx::save(&graph, &path).unwrap();
    let again = onnx::load(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let x = [case.input(3)];
    assert_eq!(again.run(&x).unwrap(), graph.run(&x).unwrap());
    assert_eq!(names(&Session::compile(&again).unwrap()), ["LowBitMatMul"]);
}
