use proptest::prelude::*;

use super::*;
use crate::ops::differences::{Case, check};
use crate::tensor::DType;

fn counted(shape: &[usize]) -> Tensor {
    let n: usize = shape.iter().product();
    Tensor::new(shape, (0..n as i32).collect()).unwrap()
}

fn run(op: &dyn Op, inputs: &[&Tensor]) -> Vec<Tensor> {
    let known = facts(inputs);
    let inferred = op.infer(&known.iter().collect::<Vec<_>>()).unwrap();
    let found = op.eval(inputs).unwrap();
    for (f, t) in inferred.iter().zip(&found) {
        assert_eq!((f.dtype, f.known_shape().unwrap().as_slice()), (t.dtype(), t.shape()), "{op:?}");
    }
    found
}

fn split(axis: i64, parts: usize) -> Split {
    Split { axis, parts, listed: false }
}

#[test]
fn values_are_moved() {
    let i = |x: &[i64]| Tensor::vector(x.to_vec());
    let cases: [(&dyn Op, Tensor, Option<Tensor>, &[usize], &[i32]); 7] = [
        (&Transpose::default(), counted(&[2, 3]), None, &[3, 2], &[0, 3, 1, 4, 2, 5]),
        (
            &Transpose { perm: Some(vec![1, 0, 2]) },
            counted(&[2, 2, 2]),
            None,
            &[2, 2, 2],
            &[0, 1, 4, 5, 2, 3, 6, 7],
        ),
        (&Tile, counted(&[2, 2]), Some(i(&[1, 2])), &[2, 4], &[0, 1, 0, 1, 2, 3, 2, 3]),
        (&Tile, counted(&[1, 2]), Some(i(&[2, 0])), &[2, 0], &[]),
        (
            &DepthToSpace { block: 2, channel_first: false },
            counted(&[1, 8, 1, 1]),
            None,
            &[1, 2, 2, 2],
            &[0, 2, 4, 6, 1, 3, 5, 7],
        ),
        (
            &DepthToSpace { block: 2, channel_first: true },
            counted(&[1, 8, 1, 1]),
            None,
            &[1, 2, 2, 2],
            &[0, 1, 2, 3, 4, 5, 6, 7],
        ),
        (&SpaceToDepth { block: 2 }, counted(&[1, 2, 2, 2]), None, &[1, 8, 1, 1], &[0, 4, 1, 5, 2, 6, 3, 7]),
    ];
    for (op, x, operand, shape, expected) in cases {
        let inputs: Vec<&Tensor> = std::iter::once(&x).chain(&operand).collect();
        assert_eq!(run(op, &inputs), [Tensor::new(shape, expected.to_vec()).unwrap()], "{op:?}");
    }
}

#[test]
fn parts_have_their_sizes() {
    let x = counted(&[2, 5]);
    let sizes = |parts: Vec<Tensor>| parts.iter().map(|t| t.shape()[1]).collect::<Vec<_>>();
    assert_eq!(sizes(run(&split(1, 2), &[&x])), [3, 2]);
    assert_eq!(sizes(run(&split(-1, 4), &[&x])), [2, 2, 1, 0]);
    let listed = Split { axis: 1, parts: 3, listed: true };
    assert_eq!(sizes(run(&listed, &[&x, &Tensor::vector(vec![1i64, 0, 4])])), [1, 0, 4]);
    let n = Fact::new(DType::F32, [Dim::Named("N".into())]);
    assert_eq!(split(0, 2).infer(&[&n]).unwrap()[1].shape, [Dim::Named("(N/2)".into())]);
}

#[test]
fn split_is_read_in_every_form() {
    let ints = |name: &str, x: &[i64]| (name.to_string(), Attribute::Ints(x.to_vec()));
    let mut a = Reading::new("Split", 11, [ints("split", &[1, 2])].into(), vec![None], 2);
    let op = Split::read(&mut a).unwrap();
    assert_eq!(a.finish().unwrap().1, [(1, Tensor::vector(vec![1i64, 2]))]);
    assert_eq!(op.is::<Split>(), Some(&Split { axis: 0, parts: 2, listed: true }));

    let count = |n| [("num_outputs".to_string(), Attribute::Int(n))].into();
    let op = Split::read(&mut Reading::new("Split", 18, count(3), vec![None], 3)).unwrap();
    assert_eq!((op.written(18).0.len(), op.written(13).0.len()), (2, 1));
    assert!(Split::read(&mut Reading::new("Split", 18, count(2), vec![None], 3)).is_err());
}

#[test]
fn operands_that_do_not_fit_are_refused() {
    let f = |shape: &[usize]| Fact::new(DType::F32, shape.to_vec());
    let list = |x: &[i64]| Fact::of(&Tensor::vector(x.to_vec()));
    let cases: Vec<(&dyn Op, Vec<Fact>)> = vec![
        (&Concat { axis: 2 }, vec![f(&[2, 3]), f(&[2, 3])]),
        (&Concat { axis: 0 }, vec![f(&[2, 3]), f(&[2, 4])]),
        (&Concat { axis: 0 }, vec![f(&[2, 3]), list(&[1])]),
        (&Concat { axis: 0 }, vec![]),
        (&Tile, vec![f(&[2, 3]), list(&[1])]),
        (&Tile, vec![f(&[2]), list(&[-1])]),
        (&Split { axis: 0, parts: 2, listed: true }, vec![f(&[3]), list(&[1, 1])]),
        (&Split { axis: 0, parts: 2, listed: true }, vec![f(&[3]), list(&[4, -1])]),
        (&Split { axis: 0, parts: 0, listed: false }, vec![f(&[3])]),
        (&DepthToSpace { block: 2, channel_first: false }, vec![f(&[1, 6, 2, 2])]),
        (&DepthToSpace { block: 0, channel_first: false }, vec![f(&[1, 8, 2, 2])]),
        (&SpaceToDepth { block: 2 }, vec![f(&[1, 8, 3, 2])]),
    ];
    for (op, inputs) in cases {
        assert!(op.infer(&inputs.iter().collect::<Vec<_>>()).is_err(), "{op:?}");
    }
    for perm in [vec![0], vec![0, 0], vec![0, 2]] {
        assert!(Transpose { perm: Some(perm) }.infer(&[&f(&[2, 3])]).is_err());
    }
    let x = Tensor::scalar(0u8).reshaped(&[1, 1]).unwrap();
    assert!(Tile.eval(&[&x, &Tensor::vector(vec![i64::MAX, 3])]).is_err());
}

#[test]
fn named_sizes_add_up() {
    let n = || Dim::Named("N".into());
    let x = Fact::new(DType::F32, [n(), n(), Dim::Known(3)]);
    let y = Fact::new(DType::F32, [Dim::Known(2), n(), Dim::Known(3)]);
    let joined = Concat { axis: -1 }.infer(&[&x, &y]).unwrap().remove(0);
    assert_eq!(joined.shape, [Dim::Known(2), n(), Dim::Known(6)]);
    let joined = Concat { axis: 1 }.infer(&[&x, &x]).unwrap().remove(0);
    assert_eq!(joined.shape[1], Dim::Named("(N+N)".into()));
}

fn shape_and_order() -> impl Strategy<Value = (Vec<usize>, Vec<usize>)> {
    prop::collection::vec(0usize..4, 1..5).prop_flat_map(|shape| {
        let order: Vec<usize> = (0..shape.len()).collect();
        (Just(shape), Just(order).prop_shuffle())
    })
}

proptest! {
    #[test]
    fn a_transpose_is_undone_by_its_inverse((shape, perm) in shape_and_order()) {
        let mut inverse = vec![0; perm.len()];
        for (i, &p) in perm.iter().enumerate() {
            inverse[p] = i;
        }
        let x = counted(&shape);
        let y = run(&Transpose { perm: Some(perm) }, &[&x]).remove(0);
        prop_assert_eq!(run(&Transpose { perm: Some(inverse) }, &[&y]), [x]);
    }

    #[test]
    fn a_split_is_undone_by_a_concat((shape, perm) in shape_and_order(), parts in 1usize..5) {
        let axis = perm[0] as i64;
        let x = counted(&shape);
        let pieces = run(&split(axis, parts), &[&x]);
        prop_assert_eq!(run(&Concat { axis }, &pieces.iter().collect::<Vec<_>>()), [x]);
    }

    #[test]
    fn space_to_depth_is_undone_by_depth_to_space(n in 0usize..3, c in 1usize..4, h in 1usize..4, b in 1usize..4) {
        let x = counted(&[n, c, h * b, 2 * b]);
        let y = run(&SpaceToDepth { block: b }, &[&x]).remove(0);
        prop_assert_eq!(run(&DepthToSpace { block: b, channel_first: false }, &[&y]), [x]);
    }
}

#[test]
fn gradients_are_those_of_differences() {
    let list = |x: &[i64]| Tensor::vector(x.to_vec());
    let perm = |p: &[usize]| Transpose { perm: Some(p.to_vec()) };
    let split = |axis, parts, listed| Split { axis, parts, listed };
    check([
        Case::new(Transpose::default(), &[&[2, 3, 4]]),
        Case::new(perm(&[2, 0, 1]), &[&[2, 3, 4]]),
        Case::new(perm(&[0, 2, 3, 1]), &[&[1, 3, 2, 5]]),
        Case::new(Concat { axis: 0 }, &[&[2, 3], &[1, 3], &[0, 3]]),
        Case::new(Concat { axis: -1 }, &[&[2, 3, 1], &[2, 3, 4]]),
        Case::new(Concat { axis: 1 }, &[&[2, 3, 2]]),
        Case::new(split(0, 3, false), &[&[7, 2]]),
        Case::new(split(-1, 2, true), &[&[2, 5]]).and(list(&[1, 4])),
        Case::new(Tile, &[&[2, 3]]).and(list(&[3, 2])),
        Case::new(Tile, &[&[2, 1, 3]]).and(list(&[1, 4, 1])),
        Case::new(Tile, &[&[2]]).and(list(&[0])),
        Case::new(DepthToSpace { block: 2, channel_first: false }, &[&[2, 8, 3, 1]]),
        Case::new(DepthToSpace { block: 2, channel_first: true }, &[&[2, 8, 3, 1]]),
        Case::new(DepthToSpace { block: 3, channel_first: true }, &[&[1, 9, 2, 2]]),
        Case::new(SpaceToDepth { block: 2 }, &[&[2, 3, 4, 6]]),
    ]);
}

#[test]
fn a_part_of_a_split_that_nothing_reads_has_no_gradient() {
    let op = Split { axis: 0, parts: 2, listed: false };
    let x = Tensor::vector(vec![1f32, 2., 3.]);
    let y = op.eval(&[&x]).unwrap();
    let gradients = [None, Some(Tensor::vector(vec![5f32]))];
    let at = Reverse { inputs: &[&x], outputs: &[&y[0], &y[1]], gradients: &gradients, wanted: &[true] };
    assert_eq!(op.vjp(&at).unwrap(), [Some(Tensor::vector(vec![0f32, 0., 5.]))]);
}
