//! Float convolutions of SqueezeNet 1.0 and MobileNet: an item is one
//! floating-point operation, so that Gitem/s reads as GFLOP/s.
//!
//!     RAYON_NUM_THREADS=1 cargo bench -p lowbit --bench conv

use divan::Bencher;
use divan::counter::ItemsCount;
use lowbit::Tensor;
use lowbit::op::{Fact, Op};
use lowbit::ops::conv::Conv;
use lowbit::ops::window::{Padding, Window};

fn main() {
    divan::main();
}

struct Case {
    name: &'static str,
    x: [usize; 4],
    w: [usize; 4],
    stride: usize,
    pad: usize,
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

const fn case(name: &'static str, x: [usize; 4], w: [usize; 4], stride: usize, pad: usize) -> Case {
    Case { name, x, w, stride, pad }
}

const CASES: [Case; 14] = [
    case("squeezenet stem 7x7s2", [1, 3, 227, 227], [96, 3, 7, 7], 2, 0),
    case("squeezenet 1x1 96-16@55", [1, 96, 55, 55], [16, 96, 1, 1], 1, 0),
    case("squeezenet 1x1 16-64@55", [1, 16, 55, 55], [64, 16, 1, 1], 1, 0),
    case("squeezenet 3x3 16-64@55", [1, 16, 55, 55], [64, 16, 3, 3], 1, 1),
    case("squeezenet 3x3 64-256@13", [1, 64, 13, 13], [256, 64, 3, 3], 1, 1),
    case("squeezenet 1x1 512-1000@13", [1, 512, 13, 13], [1000, 512, 1, 1], 1, 0),
    case("3x3 64-64@55", [1, 64, 55, 55], [64, 64, 3, 3], 1, 1),
    case("3x3 512-512@7", [1, 512, 7, 7], [512, 512, 3, 3], 1, 1),
    case("mobilenet stem 3x3s2", [1, 3, 224, 224], [8, 3, 3, 3], 2, 1),
    case("mobilenet 1x1 8-16@112", [1, 8, 112, 112], [16, 8, 1, 1], 1, 0),
    case("mobilenet 1x1 256-256@7", [1, 256, 7, 7], [256, 256, 1, 1], 1, 0),
    case("depthwise 64@112", [1, 64, 112, 112], [64, 1, 3, 3], 1, 1),
    case("depthwise 64@112s2", [1, 64, 112, 112], [64, 1, 3, 3], 2, 1),
    case("depthwise 128@14", [1, 128, 14, 14], [128, 1, 3, 3], 1, 1),
];

#[divan::bench(args = CASES, min_time = 0.3)]
fn convolution(bencher: Bencher, case: &Case) {
    let tensor = |shape: &[usize]| {
        let x = (0..shape.iter().product()).map(|i: usize| (i % 17) as f32 - 8.0);
        Tensor::new(shape, x.collect::<Vec<f32>>()).unwrap()
    };
    let (x, w, bias) = (tensor(&case.x), tensor(&case.w), tensor(&case.w[..1]));
    let conv = Conv {
        window: Window {
            strides: vec![case.stride; 2],
            padding: Padding::Explicit(vec![(case.pad, case.pad); 2]),
            ..Window::default()
        },
        group: case.x[1] / case.w[1],
        kernel: None,
    };
    let facts = [&x, &w, &bias].map(Fact::of);
    let facts: Vec<&Fact> = facts.iter().collect();
    let y = conv.infer(&facts).unwrap();
    let flop = 2 * conv.macs(&facts, &[&y[0]]);
    bencher.counter(ItemsCount::new(flop)).bench_local(|| conv.eval(&[&x, &w, &bias]).unwrap());
}
