use super::*;
use crate::analysis::{
    BINS, ChannelRange, Damage, LayerScore, Mapped, Paired, Place, Scores, ShadowError, ValueError, Verdict,
};
use crate::qparams::Range;
use crate::scheme::Mapping;

fn value(name: &str, db: f64) -> ValueError {
    ValueError {
        value: name.into(),
        node: format!("{name}_node"),
        op: "Conv".into(),
        sqnr_db: db,
        mse: 0.001,
        cosine: 0.9,
        max_abs: 0.5,
        amplitude: 6.0,
        verdict: Verdict::of(db),
    }
}

fn distribution(name: &str, place: Place, in_codes: bool) -> Distribution {
    let mapped = |mapping| Mapped {
        mapping,
        range: (!in_codes).then_some(Range { lo: -2.0, hi: 6.0 }),
        mse: 1e-4,
        sqnr_db: 30.0,
    };
    let channel = |i: u16| ChannelRange {
        elements: Range { lo: -1.0, hi: f32::from(i) },
        codes: Range { lo: -1.5, hi: f32::from(i) + 0.5 },
    };
    Distribution {
        name: name.into(),
        place,
        scheme: "int4 symmetric".into(),
        in_codes,
        lo: -3.0,
        hi: 7.0,
        counts: (0..BINS as u64).collect(),
        clip_lo: if in_codes { -8.0 } else { -2.0 },
        clip_hi: if in_codes { 7.0 } else { 6.0 },
        step: Some(if in_codes { 1.0 } else { 8.0 / 15.0 }),
        elements: 8128,
        clipped: 100,
        not_finite: 1,
        mse: 1e-4,
        sqnr_db: 30.0,
        mappings: vec![mapped(Mapping::Affine), mapped(Mapping::Symmetric)],
        channels: if place == Place::Weight { (0..700).map(channel).collect() } else { vec![] },
    }
}

/// A report with everything, in which each name and text is `name`.
fn whole(name: &str) -> Report {
    let errors = vec![value(name, 35.0), value("b", f64::NAN), value("c", f64::INFINITY), value("d", 5.0)];
    let scores = Scores { sqnr_db: 20.0, mse: 0.1, kl: Some(0.2), agreement: Some(0.9), top1: Some(0.5) };
    let layers = (0..25).map(|i| LayerScore {
        layer: format!("{name}{i}"),
        nodes: vec![],
        scores: Scores { sqnr_db: f64::from(i), ..scores.clone() },
    });
    let score = |name: &str, paired| Score {
        name: name.into(),
        top1: Some(0.59),
        top5: Some(0.8),
        agreement: 0.925,
        paired,
        ms_per_sample: 1.0,
    };
    let latency = Latency { median_ms: 0.5, min_ms: 0.4, p90_ms: 0.6 };
    let model = |name: &str, paired| Measured {
        name: name.into(),
        bytes: Some(1_900_000),
        score: Some(score(name, paired)),
        latency: Some(latency),
        coverage: Some(1.0),
    };
    let step = |kept| Step {
        title: name.into(),
        text: name.into(),
        agreement: Some(0.9),
        top1: Some(0.5),
        latency_ms: Some(if kept { 2.0 } else { 1.0 }),
        bytes: Some(1000),
        kept,
    };
    let noted = |severity| Noted {
        code: name.into(),
        severity,
        subject: name.into(),
        text: name.into(),
        suggestion: name.into(),
    };
    let shadows = errors.iter().map(|e| ShadowError {
        own: e.clone(),
        inherited_db: 30.0,
        whole: e.clone(),
        own_metric: None,
        whole_metric: None,
    });
    Report {
        title: name.into(),
        data: name.into(),
        samples: 400,
        models: vec![model(name, None), model(name, Some(Paired::new(3, 1)))],
        shadow: Some(Shadow { samples: 400, values: shadows.collect() }),
        comparison: Some(Comparison {
            samples: 400,
            outputs: vec![value(name, 5.0)],
            damage: vec![Damage {
                output: name.into(),
                sqnr_db: 5.0,
                value: name.into(),
                node: name.into(),
                before_db: 20.0,
                after_db: 5.0,
                per_tensor_weights: true,
            }],
            values: errors,
        }),
        weights: vec![WeightError {
            node: name.into(),
            op: name.into(),
            shape: vec![4, 3],
            sqnr_db: 30.0,
            mse: 0.1,
            max_abs: 1.0,
            verdict: Verdict::Good,
            channels_db: vec![20.0, f64::INFINITY],
        }],
        distributions: vec![
            distribution(name, Place::Weight, true),
            distribution(name, Place::Weight, false),
            distribution(name, Place::Activation, false),
        ],
        drawn: 1,
        sensitivity: Some((
            Metric::Sqnr,
            Sensitivity {
                samples: 400,
                all_but_one: false,
                float_top1: Some(0.59),
                everything: scores.clone(),
                layers: layers.collect(),
            },
        )),
        steps: vec![step(false), step(true)],
        findings: vec![noted(Severity::Note), noted(Severity::Error), noted(Severity::Warning)],
        provenance: Some(Provenance {
            version: "1".into(),
            command: name.into(),
            settings: name.into(),
            codes: name.into(),
            model: name.into(),
            data: Some(name.into()),
            samples: Some(100),
        }),
        missing: vec![(name.into(), name.into())],
    }
}

/// What is wrong with the nesting of a page's tags, if anything.
fn unbalanced(page: &str) -> Option<String> {
    let (mut open, mut rest) = (Vec::<&str>::new(), page);
    while let Some(at) = rest.find('<') {
        let end = at + rest[at..].find('>')?;
        let tag = &rest[at + 1..end];
        if tag.contains('<') || tag.matches('"').count() % 2 == 1 {
            return Some(format!("<{tag}>"));
        }
        let name = tag.split([' ', '/']).find(|s| !s.is_empty()).unwrap_or_default();
        match tag {
            _ if tag.starts_with('!') || name == "meta" => {}
            _ if tag.starts_with('/') => match open.pop() {
                Some(expected) if expected == name => {}
                other => return Some(format!("</{name}> closes {other:?}")),
            },
            _ => open.push(name),
        }
        rest = &rest[end + 1..];
    }
    (!open.is_empty()).then(|| format!("{open:?} stay open"))
}

#[test]
fn tags_are_balanced() {
    for (page, fine) in [
        ("<!DOCTYPE html><a><b c=\"d\"></b></a>", true),
        ("<a><b></a></b>", false),
        ("<a>", false),
        ("<a b=\"></a>", false),
    ] {
        assert_eq!(unbalanced(page).is_none(), fine, "{page}");
    }
    for report in [Report::default(), whole("conv")] {
        assert_eq!(unbalanced(&report.html()), None);
    }
}

#[test]
fn names_are_escaped() {
    let name = "<script>alert('x')</script>\"&<";
    let page = whole(name).html();
    assert_eq!(unbalanced(&page), None);
    assert!(!page.contains("<script") && !page.contains("\"&<"), "{page}");
    assert!(page.matches("&lt;script&gt;").count() > 30);
    // All that an attribute may hold of a name is text.
    assert!(!page.contains(" onload=") && !page.contains("javascript:"));
}

#[test]
fn the_page_is_whole_in_itself() {
    let page = whole("conv").html();
    assert_eq!(page, whole("conv").html());
    for outside in ["http", "url(", "@import", "src=", "<link", "<script", "NaN\"", "inf\""] {
        assert!(!page.contains(outside), "{outside}");
    }
    let links = page.match_indices("href=\"").map(|(i, s)| &page[i + s.len()..]);
    for link in links {
        let target = link.strip_prefix('#').and_then(|l| l.split_once('"')).unwrap().0;
        assert!(page.contains(&format!("<section id=\"{target}\"")), "{target}");
    }
}

#[test]
fn each_part_makes_a_section() {
    const IDS: [&str; 8] =
        ["summary", "findings", "layers", "sensitivity", "weights", "activations", "steps", "provenance"];
    let sections = |report: &Report| -> Vec<&str> {
        let page = report.html();
        assert_eq!(unbalanced(&page), None);
        IDS.into_iter().filter(|id| page.contains(&format!("<section id=\"{id}\""))).collect()
    };
    let all = whole("conv");
    assert_eq!(sections(&all), IDS);
    assert_eq!(sections(&Report::default()), [""; 0]);
    assert!(Report::default().html().contains("Nothing was measured"));
    let cases: [(Report, &[&str]); 8] = [
        (Report { models: all.models.clone(), ..Report::default() }, &["summary"]),
        (Report { comparison: all.comparison.clone(), ..Report::default() }, &["summary", "layers"]),
        (Report { shadow: all.shadow.clone(), ..Report::default() }, &["layers"]),
        (Report { weights: all.weights.clone(), ..Report::default() }, &["weights"]),
        (Report { sensitivity: all.sensitivity.clone(), ..Report::default() }, &["sensitivity"]),
        (Report { steps: all.steps.clone(), ..Report::default() }, &["steps"]),
        (Report { missing: all.missing.clone(), ..Report::default() }, &["findings"]),
        (Report { provenance: all.provenance.clone(), ..Report::default() }, &["provenance"]),
    ];
    for (report, ids) in cases {
        assert_eq!(sections(&report), ids);
    }
}

#[test]
fn what_is_measured_is_shown() {
    let page = whole("conv").html();
    for text in [
        "+0.00 points",
        "59.00\u{a0}%",
        "1.9\u{a0}MB",
        "Broken: ",
        "The other 5 layers",
        "Drawn: 1 of 2 weights, those of least SQNR",
        "16 codes",
        "Affine against symmetric",
        "1 not finite",
    ] {
        assert!(page.contains(text), "{text}");
    }
    let gravest = page.find(">error<").unwrap();
    assert!(gravest < page.find(">warning<").unwrap() && gravest < page.find(">note<").unwrap());
    // 16 codes are lines through the picture, from end to end.
    let lines = page.split("class=\"codes\" d=\"").nth(1).unwrap().split('"').next().unwrap();
    assert_eq!((lines.matches('M').count(), lines.matches("V8").count()), (16, 16), "{lines}");

    // What is said of many subjects is said once.
    let said = |subject: usize| Noted { subject: format!("n{subject}."), ..whole("c").findings[0].clone() };
    let page = Report { findings: (0..20).map(said).collect(), ..Report::default() }.html();
    assert_eq!((page.matches(">note<").count(), page.matches("and 8 more").count()), (1, 1));
    assert!((0..20).all(|i| page.contains(&format!("n{i}."))), "{page}");
}
