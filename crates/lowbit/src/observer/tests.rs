use proptest::prelude::*;

use super::*;
use crate::scheme::{Format, Granularity, Mapping};

const AFFINE: Scheme = Scheme::new(Format::UINT8, Mapping::Affine);
const SYMMETRIC: Scheme = Scheme::new(Format::INT8, Mapping::Symmetric);
const INT4: Scheme = Scheme::new(Format::INT4, Mapping::Symmetric);

const PERCENTILE: ObserverConfig = ObserverConfig::Percentile { percentile: 99.9 };
const AVERAGE: ObserverConfig = ObserverConfig::MovingAverage { constant: 0.1 };
/// The kinds whose state does not depend on how the data was split.
const EXACT: [ObserverConfig; 4] =
    [ObserverConfig::MinMax, PERCENTILE, ObserverConfig::Entropy, ObserverConfig::Mse];

fn watched(config: ObserverConfig, scheme: Scheme, batches: &[Tensor]) -> AnyObserver {
    let mut o = AnyObserver::new(config, scheme).unwrap();
    for b in batches {
        o.observe(b).unwrap();
    }
    o
}

/// Evenly spread quantiles of the standard normal distribution.
fn normal(n: usize) -> Vec<f32> {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((state >> 33) as f64 + 0.5) / (1u64 << 31) as f64
    };
    let mut draw = || ((-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos()) as f32;
    (0..n).map(|_| draw()).collect()
}

fn squared_error(params: &QParams, x: &Tensor) -> f64 {
    let y = params.fake_quantize(x).unwrap();
    let pairs = x.slice::<f32>().unwrap().iter().zip(y.slice::<f32>().unwrap());
    pairs.map(|(x, y)| f64::from(x - y).powi(2)).sum()
}

fn batches() -> impl Strategy<Value = Vec<Tensor>> {
    let value = prop_oneof![3 => -1f32..1.0, 1 => -1000f32..1000.0, 1 => -1e-6f32..1e-6, 1 => Just(0.0), 1 => Just(-0.0)];
    let batch = prop::collection::vec(value, 12).prop_map(|x| Tensor::new(&[3, 4], x).unwrap());
    prop::collection::vec(batch, 2..6)
}

proptest! {
    #[test]
    fn merged_shards_equal_one_observer(batches in batches(), at in 0usize..6, channels in any::<bool>()) {
        let at = at.min(batches.len());
        for config in EXACT {
            let granularity = if channels { Granularity::Axis(1) } else { Granularity::Tensor };
            for scheme in [AFFINE.with(granularity), SYMMETRIC.with(granularity)] {
                let all = watched(config, scheme, &batches);
                let mut merged = watched(config, scheme, &batches[..at]);
                merged.merge(&watched(config, scheme, &batches[at..])).unwrap();
                prop_assert_eq!(&merged, &all);
                prop_assert_eq!(merged.ranges().unwrap(), all.ranges().unwrap());
            }
        }
    }

    #[test]
    fn merged_moving_averages_equal_one_but_for_rounding(batches in batches(), at in 0usize..6) {
        let at = at.min(batches.len());
        let all = watched(AVERAGE, AFFINE, &batches);
        let mut merged = watched(AVERAGE, AFFINE, &batches[..at]);
        merged.merge(&watched(AVERAGE, AFFINE, &batches[at..])).unwrap();
        let (a, b) = (merged.ranges().unwrap()[0], all.ranges().unwrap()[0]);
        prop_assert!((a.lo - b.lo).abs() <= 1e-3 && (a.hi - b.hi).abs() <= 1e-3, "{a:?} {b:?}");
    }

    #[test]
    fn merged_histograms_hold_all_counts(batches in batches()) {
        let config = ObserverConfig::Histogram { bins: 64 };
        let mut merged = watched(config, AFFINE, &batches[..1]);
        merged.merge(&watched(config, AFFINE, &batches[1..])).unwrap();
        let (Kind::Histogram(a), Kind::Histogram(b)) = (merged.kind(), watched(config, AFFINE, &batches).kind().clone())
        else { unreachable!() };
        prop_assert_eq!(a.range(), b.range());
        prop_assert_eq!(a.counts().iter().sum::<f32>(), 12.0 * batches.len() as f32);
    }

    #[test]
    fn serialization_preserves_state_and_ranges(batches in batches()) {
        let all = [AVERAGE, ObserverConfig::HISTOGRAM, ObserverConfig::Fixed { lo: -1.0, hi: 1.0 }];
        for config in EXACT.into_iter().chain(all) {
            let o = watched(config, AFFINE, &batches);
            let back: AnyObserver = serde_json::from_str(&serde_json::to_string(&o).unwrap()).unwrap();
            prop_assert_eq!(back.ranges().unwrap(), o.ranges().unwrap());
            prop_assert_eq!(back, o);
        }
    }

    #[test]
    fn ranges_lie_within_what_was_seen(batches in batches()) {
        let seen = watched(ObserverConfig::MinMax, AFFINE, &batches).ranges().unwrap()[0];
        for scheme in [AFFINE, SYMMETRIC, INT4, Scheme::new(Format::E4M3, Mapping::Symmetric)] {
            for config in [PERCENTILE, ObserverConfig::Entropy, ObserverConfig::Mse] {
                let r = watched(config, scheme, &batches).ranges().unwrap()[0];
                prop_assert!(seen.lo <= r.lo && r.lo <= r.hi && r.hi <= seen.hi, "{config} {r:?} {seen:?}");
            }
        }
    }
}

#[test]
fn percentiles_are_the_quantiles_of_the_data() {
    let one_to = |n: i32| (1..=n).map(|i| i as f32).collect::<Vec<_>>();
    let with_zeros: Vec<f32> = one_to(5000).into_iter().chain(vec![0.0; 5000]).collect();
    let both: Vec<f32> = one_to(5000).iter().flat_map(|&x| [x, -2.0 * x]).collect();
    for (name, x, scheme, percentile, lo, hi) in [
        ("all", one_to(10000), AFFINE, 100.0, 1.0, 10000.0),
        ("affine: half of the rest above", one_to(10000), AFFINE, 98.0, 100.0, 9900.0),
        ("symmetric: all of the rest above", one_to(10000), SYMMETRIC, 98.0, 1.0, 9800.0),
        ("zeros count", with_zeros, SYMMETRIC, 99.0, 0.0, 4900.0),
        ("two-sided affine", both.clone(), AFFINE, 98.0, -9800.0, 4900.0),
        ("two-sided symmetric", both, SYMMETRIC, 98.0, -9600.0, 5000.0),
    ] {
        let o = watched(ObserverConfig::Percentile { percentile }, scheme, &[Tensor::vector(x)]);
        let r = o.ranges().unwrap()[0];
        assert!((r.lo - lo).abs() <= 5.0 && (r.hi - hi).abs() <= 5.0, "{name}: {r:?}, not {lo}..{hi}");
    }
}

#[test]
fn mse_is_no_worse_than_any_other_kind() {
    let bell = normal(20000);
    let relu: Vec<f32> = bell.iter().map(|x| x.max(0.0)).collect();
    let relu6: Vec<f32> = bell.iter().map(|x| (4.0 * x).clamp(0.0, 6.0)).collect();
    let mut outlier = bell.clone();
    outlier[7] = 80.0;
    let skewed: Vec<f32> = bell.iter().map(|x| if *x < 0.0 { x * 0.05 } else { x * x * x }).collect();
    let cases = [("bell", bell), ("relu", relu), ("relu6", relu6), ("outlier", outlier), ("skewed", skewed)];
    let int4 = Scheme::new(Format::UINT4, Mapping::Affine);
    for (name, x) in cases {
        let x = Tensor::vector(x);
        for scheme in [AFFINE, SYMMETRIC, INT4, int4, Scheme::new(Format::E4M3, Mapping::Symmetric)] {
            let error = |config| {
                squared_error(&watched(config, scheme, std::slice::from_ref(&x)).qparams().unwrap(), &x)
            };
            let mse = error(ObserverConfig::Mse);
            for other in
                [ObserverConfig::MinMax, ObserverConfig::HISTOGRAM, ObserverConfig::Entropy, PERCENTILE]
            {
                let e = error(other);
                assert!(mse <= e * 1.01 + 1e-9, "{name}, {scheme}: mse {mse}, {other} {e}");
            }
        }
    }
}

#[test]
fn mse_of_each_group_is_no_worse_than_its_extremes() {
    let weight =
        Tensor::new(&[32, 256], normal(32 * 256).iter().map(|x| x * x * x * 0.01).collect()).unwrap();
    let block = Granularity::Block { axis: 1, size: 32 };
    for granularity in [Granularity::Axis(0), Granularity::Axis(1), block] {
        for scheme in [AFFINE, SYMMETRIC, INT4, Scheme::new(Format::INT16, Mapping::Symmetric)] {
            let error = |config| {
                let o = watched(config, scheme.with(granularity), std::slice::from_ref(&weight));
                squared_error(&o.qparams().unwrap(), &weight)
            };
            let (mse, extremes) = (error(ObserverConfig::Mse), error(ObserverConfig::MinMax));
            assert!(mse <= extremes * 1.01, "{granularity:?}, {scheme}: mse {mse}, min-max {extremes}");
            assert!(scheme != INT4 || mse < extremes * 0.9, "{granularity:?}: mse {mse}, min-max {extremes}");
        }
    }
}

#[test]
fn one_large_batch_equals_many_small_ones() {
    let x: Vec<f32> =
        normal(20000).iter().map(|x| if *x > 0.0 { x * 1e3 } else { x.min(-0.2) + 0.2 }).collect();
    let pieces: Vec<Tensor> = x.chunks(77).map(|x| Tensor::vector(x.to_vec())).collect();
    for config in EXACT {
        assert_eq!(
            watched(config, AFFINE, &[Tensor::vector(x.clone())]),
            watched(config, AFFINE, &pieces),
            "{config}"
        );
    }
}

#[test]
fn clipping_kinds_drop_an_outlier_and_keep_a_saturated_activation() {
    let mut outlier = normal(50000);
    outlier[7] = 40.0;
    let x = Tensor::vector(outlier);
    for config in [ObserverConfig::Entropy, ObserverConfig::Percentile { percentile: 99.99 }] {
        let hi = watched(config, SYMMETRIC, std::slice::from_ref(&x)).ranges().unwrap()[0].hi;
        assert!((2.5..6.0).contains(&hi), "{config}: {hi}");
    }
    let relu6 = Tensor::vector(normal(50000).iter().map(|x| (4.0 * x).clamp(0.0, 6.0)).collect());
    for config in
        [ObserverConfig::Entropy, ObserverConfig::Percentile { percentile: 99.99 }, ObserverConfig::Mse]
    {
        let r = watched(config, AFFINE, std::slice::from_ref(&relu6)).ranges().unwrap()[0];
        assert!(r.lo == 0.0 && (5.9..=6.0).contains(&r.hi), "{config}: {r:?}");
    }
}

#[test]
fn exact_zeros_do_not_move_the_error_search() {
    let x: Vec<f32> = normal(5000).iter().map(|x| x.abs()).collect();
    let padded: Vec<f32> = x.iter().copied().chain(vec![0.0; 50000]).collect();
    for config in [ObserverConfig::Mse, ObserverConfig::Entropy] {
        let plain = watched(config, INT4, &[Tensor::vector(x.clone())]).ranges().unwrap();
        let zeros = watched(config, INT4, &[Tensor::vector(padded.clone())]).ranges().unwrap();
        assert_eq!(plain[0].hi, zeros[0].hi, "{config}");
    }
}

#[test]
fn each_group_has_its_own_range() {
    let x = Tensor::new(&[2, 4], vec![1f32, -2.0, 3.0, -4.0, 10.0, -20.0, 30.0, -40.0]).unwrap();
    for (granularity, want) in [
        (Granularity::Tensor, vec![(-40.0, 30.0)]),
        (Granularity::Axis(0), vec![(-4.0, 3.0), (-40.0, 30.0)]),
        (Granularity::Axis(1), vec![(1.0, 10.0), (-20.0, -2.0), (3.0, 30.0), (-40.0, -4.0)]),
        (
            Granularity::Block { axis: 1, size: 2 },
            vec![(-2.0, 1.0), (-4.0, 3.0), (-20.0, 10.0), (-40.0, 30.0)],
        ),
    ] {
        for config in [ObserverConfig::MinMax, AVERAGE, ObserverConfig::Percentile { percentile: 100.0 }] {
            let o = watched(config, AFFINE.with(granularity), std::slice::from_ref(&x));
            let found: Vec<(f32, f32)> = o.ranges().unwrap().iter().map(|r| (r.lo, r.hi)).collect();
            assert_eq!(found, want, "{config}, {granularity:?}");
        }
    }
}

#[test]
fn what_cannot_be_observed_is_refused() {
    let channels = AFFINE.with(Granularity::Axis(0));
    let bad_configs = [
        (ObserverConfig::HISTOGRAM, channels, "observes whole tensors"),
        (ObserverConfig::Fixed { lo: 0.0, hi: 1.0 }, channels, "observes whole tensors"),
        (ObserverConfig::Fixed { lo: 1.0, hi: f32::NAN }, AFFINE, "is not a range"),
        (ObserverConfig::Histogram { bins: 1 }, AFFINE, "it takes 2 to"),
        (ObserverConfig::Percentile { percentile: 101.0 }, AFFINE, "does not lie in 0..100"),
        (ObserverConfig::MovingAverage { constant: f32::NAN }, AFFINE, "does not lie in 0..1"),
    ];
    for (config, scheme, want) in bad_configs {
        let e = AnyObserver::new(config, scheme).unwrap_err().to_string();
        assert!(e.contains(want), "{config}: {e}");
    }
    let fixed = AnyObserver::new(ObserverConfig::Fixed { lo: 0.0, hi: 1.0 }, AFFINE).unwrap();
    assert!(!fixed.is_empty() && fixed.ranges().is_ok(), "it waits for nothing");
    let rows = |n| Tensor::full(&[n, 2], 1f32).unwrap();
    let not_finite = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
    for config in EXACT.into_iter().chain([AVERAGE]) {
        let mut o = AnyObserver::new(config, channels).unwrap();
        o.observe(&Tensor::full(&[3, 0], 0f32).unwrap()).unwrap();
        assert!(o.is_empty() && o.ranges().unwrap_err().to_string().contains("saw no data"), "{config}");
        for bad in not_finite {
            let mut x = vec![1f32; 40];
            x[37] = bad;
            let e = o.observe(&Tensor::new(&[2, 20], x).unwrap()).unwrap_err().to_string();
            assert!(e.contains("element 37"), "{config}: {e}");
        }
        o.observe(&rows(2)).unwrap();
        assert!(o.observe(&rows(3)).unwrap_err().to_string().contains("scales [3]"), "{config}");
        assert!(
            o.observe(&Tensor::vector(vec![1i32])).unwrap_err().to_string().contains("int32"),
            "{config}"
        );
        assert!(o.observe_slice(&[1.0], &[2]).unwrap_err().to_string().contains("does not hold"), "{config}");
        assert!(o.merge(&watched(config, channels, &[rows(3)])).is_err(), "{config}");
        assert!(o.merge(&AnyObserver::new(config, AFFINE).unwrap()).is_err(), "{config}");
        assert!(o.merge(&AnyObserver::new(ObserverConfig::None, channels).unwrap()).is_err(), "{config}");
        assert_eq!(o.ranges().unwrap(), [Range { lo: 1.0, hi: 1.0 }; 2], "{config}");
    }
    let none = AnyObserver::new(ObserverConfig::None, AFFINE).unwrap();
    assert!(none.ranges().unwrap_err().to_string().contains("has no range"));
}

#[test]
fn histograms_leave_out_infinities() {
    let plain = watched(ObserverConfig::HISTOGRAM, AFFINE, &[Tensor::vector(vec![-1f32, 0.5, 2.0])]);
    let x = vec![f32::INFINITY, -1.0, 0.5, f32::NEG_INFINITY, 2.0];
    let mut o = watched(ObserverConfig::HISTOGRAM, AFFINE, &[Tensor::vector(x)]);
    assert_eq!(o, plain);
    o.observe(&Tensor::vector(vec![f32::INFINITY])).unwrap();
    assert_eq!(o, plain);
    assert!(o.observe(&Tensor::vector(vec![f32::NAN, f32::INFINITY])).is_err());
}

#[test]
fn extreme_values_do_no_harm() {
    let sets = [vec![f32::MIN, f32::MAX, 1.0], vec![1e-45, -1e-45], vec![f32::MIN, 0.0, 3.0], vec![0.0; 3]];
    for x in sets {
        for config in EXACT.into_iter().chain([ObserverConfig::HISTOGRAM, AVERAGE]) {
            for scheme in [AFFINE, SYMMETRIC, Scheme::new(Format::INT32, Mapping::Affine)] {
                let o = watched(config, scheme, &[Tensor::vector(x.clone()), Tensor::vector(vec![0.25f32])]);
                assert!(o.qparams().is_ok(), "{config} {scheme} {x:?}: {:?}", o.ranges());
            }
        }
    }
}

#[test]
fn a_damaged_state_is_refused() {
    let o = watched(ObserverConfig::Mse, AFFINE, &[Tensor::vector(vec![1f32, 2.0])]);
    let good = serde_json::to_string(&o).unwrap();
    for (from, to) in
        [("\"exponent\":-10", "\"exponent\":999"), ("2048,1", "9999,1"), ("\"hi\":2.0", "\"hi\":0.5")]
    {
        assert!(good.contains(from), "{good}");
        assert!(serde_json::from_str::<AnyObserver>(&good.replace(from, to)).is_err(), "{from}");
    }
}
