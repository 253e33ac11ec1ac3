use std::collections::BTreeSet;

use super::*;

/// The examples of `docs/findings.md`, one of each kind.
fn examples() -> Vec<Finding> {
    let range = |lo, hi| Range { lo, hi };
    [
        ("mask", Symptom::Uncalibrated),
        ("log_probability", Symptom::NotFinite { nan: 3, infinite: 0, sample: "cat_07.jpg".into() }),
        ("aux", Symptom::Zero),
        ("scale", Symptom::Constant { constant: 0.5 }),
        ("conv_dw_1_relu", Symptom::DeadChannels { channels: vec![2, 3, 7], of: 8 }),
        ("hidden", Symptom::Saturating { below: 0.0, above: 0.0324, range: range(0.0, 6.0) }),
        ("layer3", Symptom::UnlikeChannels { channels: vec![0, 5, 9], of: 12, codes: 3.24 }),
        ("conv_pw_1", Symptom::BiasOverflow { channels: vec![4] }),
        ("conv_dw_1", Symptom::UnlikeWeightChannels { channels: vec![1, 6], of: 8, codes: 2.06 }),
        (
            "Gelu",
            Symptom::InFloat {
                nodes: vec!["/layer1/Gelu".into(), "/layer2/Gelu".into()],
                reason: "it has no integer form".into(),
                share: Some(0.0),
            },
        ),
        ("/layer1/MatMul", Symptom::Spared { sqnr_db: 4.21 }),
        ("DynamicFakeQuantize", Symptom::OwnOperator { nodes: 2 }),
        (
            "several nodes",
            Symptom::Slower {
                nodes: vec![("pool".into(), String::new()), ("softmax".into(), String::new())],
            },
        ),
        (
            "input",
            Symptom::BeyondRange { share: 0.25, calibrated: range(-1.0, 1.0), found: range(-128.0, 127.0) },
        ),
        ("input", Symptom::UnlikeInput { channel: 2, calibrated: [0.0, 1.0], found: [0.41, 0.26] }),
    ]
    .into_iter()
    .map(|(subject, symptom)| Finding::new(subject, symptom))
    .collect()
}

/// The words `LB-Q` with digits, after each of which `separator` may come.
fn codes(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
    words
        .filter(|w| w.strip_prefix("LB-Q").is_some_and(|n| n.parse::<u16>().is_ok()))
        .map(Into::into)
        .collect()
}

#[test]
fn each_code_has_its_section() {
    let docs = include_str!("../../../../../docs/findings.md");
    let sections: Vec<&str> = docs.split("\n## ").skip(1).collect();
    let titles: Vec<String> = sections.iter().flat_map(|s| codes(s.lines().next().unwrap())).collect();
    let mut sorted = titles.clone();
    sorted.sort();
    assert_eq!(titles, sorted, "in order, each once");
    assert_eq!(titles.iter().cloned().collect::<BTreeSet<_>>(), codes(include_str!("../finding.rs")));
    assert_eq!(examples().len(), titles.len());
    for finding in examples() {
        let section = sections.iter().find(|s| s.starts_with(finding.code())).unwrap();
        let line = format!("\n    {finding}\n");
        assert!(section.contains(&line), "{} lacks:{line}", finding.code());
    }
}

#[test]
fn json_has_everything() {
    let finding = Finding::new("conv", Symptom::BiasOverflow { channels: vec![4, 6] });
    let (text, suggestion) = (finding.text(), finding.suggestion());
    assert_eq!(
        serde_json::to_value(&finding).unwrap(),
        serde_json::json!({
            "code": "LB-Q201", "severity": "note", "subject": "conv", "symptom": "bias-overflow",
            "channels": [4, 6], "text": text, "suggestion": suggestion,
        })
    );
    for finding in examples() {
        let json = serde_json::to_value(&finding).unwrap();
        assert!(json["symptom"].is_string() && json["code"] == finding.code(), "{json}");
    }
}

#[test]
fn gravity_depends_on_what_it_costs() {
    let not_finite = |nan| Symptom::NotFinite { nan, infinite: 1, sample: "0".into() };
    let in_float = |share| Symptom::InFloat { nodes: vec![], reason: String::new(), share };
    for (symptom, severity) in [
        (Symptom::Uncalibrated, Severity::Error),
        (not_finite(1), Severity::Error),
        (not_finite(0), Severity::Warning),
        (in_float(None), Severity::Warning),
        (in_float(Some(0.5)), Severity::Warning),
        (in_float(Some(0.001)), Severity::Note),
        (Symptom::OwnOperator { nodes: 1 }, Severity::Note),
    ] {
        assert_eq!(Finding::new("x", symptom.clone()).severity(), severity, "{symptom:?}");
    }
}

#[test]
fn numbers_are_short() {
    assert_eq!([0.0, 1e-6, 0.0324, 0.5].map(percent), ["0 %", "less than 0.01 %", "3.24 %", "50 %"]);
    assert_eq!([0.0, -1.5, 127.0, 1e6, 1e-4].map(short), ["0", "-1.500", "127.0", "1.00e6", "1.00e-4"]);
    assert_eq!((some(&[1, 2]), some(&[1; 9])), ("1, 2".into(), "1, 1, 1, 1, 1, 1, 1, 1, ...".into()));
}
