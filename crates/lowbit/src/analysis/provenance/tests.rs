use super::*;

#[test]
fn what_is_recorded_is_read_back() {
    let mut graph = Graph::default();
    assert_eq!(Provenance::of(&graph), None);
    let with_data = Provenance {
        version: "1".into(),
        command: "quantize".into(),
        settings: "preset = \"default\"\n".into(),
        codes: String::new(),
        model: "ab".into(),
        data: Some("cd".into()),
        samples: Some(3),
    };
    let without = Provenance { data: None, samples: None, ..with_data.clone() };
    for recorded in [with_data, without] {
        recorded.record(&mut graph).unwrap();
        assert_eq!(Provenance::of(&graph), Some(recorded));
    }
    graph.metadata.insert(SAMPLES.into(), "-3 million".into());
    assert_eq!(Provenance::of(&graph).unwrap().samples, None);
}
