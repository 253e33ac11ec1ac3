use std::collections::BTreeMap;

use super::*;

fn read(attributes: &[(&str, i64)], constants: Vec<Option<Tensor>>) -> Result<Arc<dyn Op>> {
    let attributes: BTreeMap<String, Attribute> =
        attributes.iter().map(|(k, v)| (k.to_string(), Attribute::Int(*v))).collect();
    let mut reading = Reading::new("MatMulNBits", 1, attributes, constants, 1);
    let made = MICROSOFT_READERS[0].1(&mut reading)?;
    reading.finish().map(|_| made)
}

const SMALL: [(&str, i64); 4] = [("K", 20), ("N", 2), ("bits", 4), ("block_size", 16)];

#[test]
fn attributes_are_read_and_written() {
    let g_idx = |groups: Vec<i32>| vec![None, None, None, None, Some(Tensor::vector(groups))];
    let trivial: Vec<i32> = (0..20).map(|k| k / 16).collect();
    let op = read(&SMALL, g_idx(trivial.clone())).unwrap();
    assert_eq!(op.attributes(), SMALL.map(|(k, v)| (k, Attribute::Int(v))));
    let level = read(&[&SMALL[..], &[("accuracy_level", 4)]].concat(), vec![]).unwrap();
    assert!(level.is::<MatMulNBits>().unwrap().wants_integers());
    assert_eq!(level.attributes().last(), Some(&("accuracy_level", Attribute::Int(4))));
    let with = |name: &'static str, value: i64| SMALL.map(|(k, v)| (k, if k == name { value } else { v }));
    let cases: [(Result<Arc<dyn Op>>, &str); 11] = [
        (read(&with("block_size", 8), vec![]), "block_size = 8 is not a power of two"),
        (read(&with("block_size", 48), vec![]), "block_size = 48 is not a power of two"),
        (read(&with("block_size", 0), vec![]), "block_size = 0 is not a size"),
        (read(&with("bits", 3), vec![]), "bits = 3"),
        (read(&with("bits", 16), vec![]), "bits = 16"),
        (read(&with("K", -1), vec![]), "K = -1 is not a size"),
        (read(&with("N", 1 << 40), vec![]), "is not a size"),
        (read(&SMALL[1..], vec![]), "attribute K is missing"),
        (read(&SMALL, g_idx(trivial.into_iter().rev().collect())), "g_idx"),
        (read(&SMALL, g_idx(vec![0; 3])), "g_idx"),
        (read(&SMALL, vec![None, None, None, None, None, None]), "input 4 that is not a constant"),
    ];
    for (i, (found, want)) in cases.into_iter().enumerate() {
        let message = found.expect_err(want).to_string();
        assert!(message.contains(want), "case {i}: {message}");
    }
}

/// Operands with K = 20, N = 2, two blocks of 16.
fn operands(bits: usize) -> Vec<Tensor> {
    let blob = 16 * bits / 8;
    let a = Tensor::new(&[1, 1, 20], (0..20).map(|k| (k % 3) as f32 - 1.0).collect()).unwrap();
    let b = Tensor::new(&[2, 2, blob], (0..4 * blob).map(|i| (i * 37) as u8).collect()).unwrap();
    vec![a, b, Tensor::vector(vec![0.5f32, 2.0, 1.0, 0.25])]
}

#[test]
fn products_are_those_of_the_dequantized_matrix() {
    for bits in [2, 4, 8] {
        let op = MatMulNBits { k: 20, n: 2, bits, block: 16, accuracy_level: None };
        let mut x = operands(bits);
        let (a, b) = (x[0].to_f32().unwrap(), x[1].slice::<u8>().unwrap().to_vec());
        let scales = x[2].to_f32().unwrap();
        let codes = |n: usize, k: usize| {
            let bit = (n * 2 + k / 16) * 16 * bits + k % 16 * bits;
            (b[bit / 8] >> (bit % 8)) as usize & ((1 << bits) - 1)
        };
        let want = |zero: &dyn Fn(usize, usize) -> f32| -> Vec<f32> {
            let term =
                |n: usize, k: usize| a[k] * (codes(n, k) as f32 - zero(n, k / 16)) * scales[2 * n + k / 16];
            (0..2).map(|n| (0..20).map(|k| term(n, k)).sum()).collect()
        };
        let run = |x: &[Tensor]| op.eval(&x.iter().collect::<Vec<_>>()).unwrap().remove(0);
        let y = run(&x);
        assert_eq!(y.shape(), [1, 1, 2]);
        assert_eq!(y.to_f32().unwrap(), want(&|_, _| (1 << (bits - 1)) as f32), "{bits} bits");
        // Zero points 1 and 2, then 3 and 0, each row in its own bytes.
        let packed = match bits {
            8 => vec![1u8, 2, 3, 0],
            _ => vec![1 | 2 << bits, 3],
        };
        x.push(Tensor::vector(packed));
        assert_eq!(run(&x).to_f32().unwrap(), want(&|n, b| [[1.0, 2.0], [3.0, 0.0]][n][b]), "{bits} bits");
        x[3] = Tensor::vector(vec![0.5f32, 1.5, 2.0, 0.25]);
        x.extend([Tensor::new(&[0], Vec::<f32>::new()).unwrap(), Tensor::vector(vec![10.0f32, -1.0])]);
        let mut shifted = want(&|n, b| [[0.5, 1.5], [2.0, 0.25]][n][b]);
        shifted.iter_mut().zip([10.0, -1.0]).for_each(|(y, bias)| *y += bias);
        assert_eq!(run(&x).to_f32().unwrap(), shifted, "{bits} bits");
    }
}

#[test]
fn operands_that_do_not_fit_are_errors() {
    let op = MatMulNBits { k: 20, n: 2, bits: 4, block: 16, accuracy_level: None };
    let zeros = |len: usize| Tensor::vector(vec![0u8; len]);
    let floats = |len: usize| Tensor::vector(vec![0f32; len]);
    let absent = Tensor::new(&[0], Vec::<f32>::new()).unwrap();
    let good = || operands(4);
    let put = |i: usize, t: Tensor| {
        let mut x = good();
        while x.len() <= i {
            x.push(absent.clone());
        }
        x[i] = t;
        x
    };
    let cases: [(Vec<Tensor>, &str); 11] = [
        (put(0, floats(19)), "A is f32[19], not rows of K = 20"),
        (put(0, Tensor::scalar(1f32)), "not rows of K = 20"),
        (put(0, zeros(20)), "not rows of K = 20 in f32"),
        (put(1, zeros(31)), "B is uint8[31], not 32 elements of uint8 for K = 20 in blocks of 16 and N = 2"),
        (put(1, floats(32)), "B is f32[32], not 32 elements of uint8"),
        (put(2, floats(5)), "scales is f32[5], not 4 elements"),
        (put(3, zeros(4)), "zero_points is uint8[4], not 2 elements"),
        (put(3, floats(2)), "zero_points is f32[2], not 4 elements"),
        (put(4, zeros(20)), "g_idx"),
        (put(5, floats(3)), "bias is f32[3], not 2 elements"),
        (good()[..2].to_vec(), "takes 3 to 6 inputs"),
    ];
    for (x, want) in cases {
        let facts: Vec<Fact> = x.iter().map(Fact::of).collect();
        let message = op.infer(&facts.iter().collect::<Vec<_>>()).expect_err(want).to_string();
        assert!(message.contains(want), "{message}");
    }
}
