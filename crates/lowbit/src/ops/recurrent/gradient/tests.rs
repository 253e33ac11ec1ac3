//! Gradients of recurrent operators against finite differences.

use super::*;
use crate::ops::differences::{Case, check};

fn op(cell: Cell, direction: Direction) -> Recurrent {
    let count = if direction == Direction::Bidirectional { 2 } else { 1 };
    let activations = cell.functions().repeat(count);
    Recurrent { cell, direction, hidden: None, activations, clip: None, batch_first: false }
}

const CELLS: [Cell; 5] = [
    Cell::Rnn,
    Cell::Lstm { input_forget: false },
    Cell::Lstm { input_forget: true },
    Cell::Gru { linear_before_reset: false },
    Cell::Gru { linear_before_reset: true },
];
const DIRECTIONS: [Direction; 3] = [Direction::Forward, Direction::Reverse, Direction::Bidirectional];

/// All operands, of these sizes.
fn case(op: Recurrent, [steps, batch, input, hidden]: [usize; 4], lengths: Option<&[i32]>) -> Case {
    let (d, width) = (op.activations.len() / op.cell.functions().len(), op.cell.gates() * hidden);
    let (x, state) = match op.batch_first {
        true => ([batch, steps, input], [batch, d, hidden]),
        false => ([steps, batch, input], [d, batch, hidden]),
    };
    let mut shapes: Vec<Vec<usize>> =
        vec![x.into(), vec![d, width, input], vec![d, width, hidden], vec![d, 2 * width], state.into()];
    if let Cell::Lstm { .. } = op.cell {
        shapes.extend([state.to_vec(), vec![d, 3 * hidden]]);
    }
    let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
    let lengths = lengths.unwrap_or_default().to_vec();
    Case::new(op, &shapes).insert(4, Tensor::vector(lengths))
}

#[test]
fn gradients_of_all_cells_and_directions() {
    let cases = CELLS.into_iter().flat_map(|cell| {
        DIRECTIONS.into_iter().flat_map(move |direction| {
            [
                case(op(cell, direction), [3, 2, 3, 4], None),
                case(op(cell, direction), [4, 3, 2, 5], Some(&[2, 4, 0])),
                case(Recurrent { batch_first: true, ..op(cell, direction) }, [2, 3, 2, 3], Some(&[2, 1, 2])),
            ]
        })
    });
    check(cases);
}

#[test]
fn gradients_of_other_functions() {
    let all = [
        Activation::Tanh,
        Activation::Sigmoid,
        Activation::Affine { alpha: 0.75, beta: -0.25 },
        Activation::ScaledTanh { alpha: 1.5, beta: 0.75 },
        Activation::HardSigmoid { alpha: 0.05, beta: 0.4 },
        Activation::Softplus,
    ];
    let cases = all.into_iter().flat_map(|f| {
        CELLS.map(|cell| {
            let activations = vec![f; cell.functions().len()];
            case(Recurrent { activations, ..op(cell, Direction::Forward) }, [3, 2, 2, 3], None)
                .map(|x| 0.5 * x)
        })
    });
    check(cases);
}

/// Functions with corners (of Softsign, the derivative has one), on both sides of
/// them.
#[test]
fn slopes_beside_corners() {
    let cases: [(Activation, [(f32, f32); 4]); 7] = [
        (Activation::Softsign, [(-1.0, 0.25), (0.0, 1.0), (1.0, 0.25), (3.0, 0.0625)]),
        (Activation::Relu, [(-2.0, 0.0), (-0.5, 0.0), (0.5, 1.0), (2.0, 1.0)]),
        (Activation::LeakyRelu { alpha: 0.25 }, [(-2.0, 0.25), (-0.5, 0.25), (0.5, 1.0), (2.0, 1.0)]),
        (Activation::LeakyRelu { alpha: -1.0 }, [(-2.0, -1.0), (-0.5, -1.0), (0.5, 1.0), (2.0, 1.0)]),
        (Activation::ThresholdedRelu { alpha: 1.0 }, [(-2.0, 0.0), (0.5, 0.0), (1.0, 1.0), (2.0, 1.0)]),
        (
            Activation::HardSigmoid { alpha: 0.5, beta: 0.5 },
            [(-2.0, 0.0), (-0.5, 0.5), (0.5, 0.5), (2.0, 0.0)],
        ),
        (
            Activation::Elu { alpha: 2.0 },
            [(-2.0, 2.0 * (-2f32).exp()), (-0.5, 2.0 * (-0.5f32).exp()), (0.5, 1.0), (2.0, 1.0)],
        ),
    ];
    for (f, points) in cases {
        let x = points.map(|p| p.0);
        let (mut y, mut g) = (x, [2.0; 4]);
        f.apply(&mut y);
        f.times_slope(&mut g, &x, &y);
        for (g, (x, slope)) in g.iter().zip(points) {
            assert!((g - 2.0 * slope).abs() < 1e-6, "{f:?} at {x}: {g}");
        }
    }
}

#[test]
fn the_clip_stops_gradients() {
    for cell in CELLS {
        let clipped = |clip| Recurrent { clip: Some(clip), ..op(cell, Direction::Forward) };
        // Nothing is as large as 100, and everything larger than 0.
        check([case(clipped(100.0), [3, 2, 2, 3], None)]);
        let inputs: Vec<Tensor> = [&[1, 1, 2][..], &[1, cell.gates() * 3, 2], &[1, cell.gates() * 3, 3]]
            .map(|shape| Tensor::full(shape, 1f32).unwrap())
            .into();
        let inputs: Vec<&Tensor> = inputs.iter().collect();
        let op = clipped(0.0);
        let y = crate::op::Op::eval(&op, &inputs).unwrap();
        let g = [Some(Tensor::full(y[0].shape(), 1f32).unwrap())];
        let at = Reverse { inputs: &inputs, outputs: &[&y[0]], gradients: &g, wanted: &[true; 3] };
        for (i, by) in vjp(&op, &at).unwrap().into_iter().enumerate() {
            let by = by.unwrap();
            assert!(by.slice::<f32>().unwrap().iter().all(|g| *g == 0.0), "{cell:?}, operand {i}: {by:?}");
        }
    }
}

#[test]
fn sequences_of_no_steps_pass_states_on() {
    let sizes = [[0, 2, 3, 4], [3, 0, 3, 4]];
    check(
        CELLS.into_iter().flat_map(|cell| sizes.map(|sizes| case(op(cell, Direction::Reverse), sizes, None))),
    );
}
