//! Every command, end to end, on the demo's model.

use std::fs;

use lowbit::data::npz;
use lowbit::tensor::Tensor;
use serde_json::Value;

use crate::folder::Folder;

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn demo_quantizes_without_loss() {
    let folder = Folder::new();
    let demo = folder.json(&["demo", "--output", "out"]);
    for (i, name) in ["float", "int8"].into_iter().enumerate() {
        let model = &demo["models"][i];
        assert_eq!(model["model"], name);
        assert!(number(&model["top1"]) > 0.985, "{model}");
        assert!(number(&model["latency"]["median_ms"]) > 0.0, "{model}");
    }
    assert_eq!((number(&demo["coverage"]), number(&demo["samples"])), (1.0, 450.0));
    assert!(number(&demo["worst_sqnr_db"]) > 20.0, "{demo}");
    let float = fs::metadata(folder.path("out/digits.onnx")).unwrap().len();
    assert!(fs::metadata(folder.path("out/digits.int8.onnx")).unwrap().len() < float / 2);
    // What the demo suggests to try next works.
    let text = folder.text(&["demo", "--output", "out"]);
    let suggested: Vec<&str> = text.lines().filter_map(|l| l.trim().strip_prefix("lowbit ")).collect();
    assert_eq!(suggested.len(), 4, "{text}");
    for line in suggested {
        folder.text(&line.split(' ').collect::<Vec<_>>());
    }
}

#[test]
fn quantize_writes_a_model_and_its_preprocessing() {
    let folder = Folder::new();
    let summary = folder.json(&["quantize", "digits.onnx", "--data", "calibration.npz"]);
    assert_eq!(summary["output"], "digits.int8.onnx");
    assert_eq!((number(&summary["coverage"]), number(&summary["weights"])), (1.0, 6.0));
    assert_eq!(number(&summary["calibration_samples"]), 128.0);
    assert!(number(&summary["int8_bytes"]) < 0.5 * number(&summary["float_bytes"]));
    let preprocess = fs::read_to_string(folder.path("digits.int8.preprocess.toml")).unwrap();
    assert!(preprocess.contains("scale = 0.0625"), "{preprocess}");

    let scores = &folder.json(&["eval", "digits.onnx", "digits.int8.onnx", "--data", "test.npz"])["scores"];
    assert!(number(&scores[0]["top1"]) > 0.985 && number(&scores[1]["agreement"]) > 0.985, "{scores}");
    assert!(number(&scores[1]["paired"]["p"]) > 0.1, "{scores}");
}

#[test]
fn qat_trains_fewer_bits_and_goes_on_from_its_checkpoint() {
    let folder = Folder::new();
    let bits = ["--weights", "int4", "--activations", "uint4"];
    let command = |more: &[&str]| {
        let model =
            ["qat", "digits.onnx", "--data", "calibration.npz", "--test", "test.npz", "--rate", "0.01"];
        folder.json(&[&model[..], &bits, more].concat())
    };
    let trained = command(&["--epochs", "6", "--checkpoint", "run.safetensors", "-o", "a.onnx"]);
    assert_eq!((number(&trained["steps"]), number(&trained["samples"])), (24.0, 128.0));
    assert_eq!(number(&trained["agreement"]["differ"]), 0.0, "{trained}");
    assert!(number(&trained["evaluation"]["scores"][1]["agreement"]) > 0.9, "{trained}");
    // The training has ended: going on trains no more.
    command(&["--epochs", "6", "--checkpoint", "run.safetensors", "-o", "b.onnx"]);
    assert_eq!(fs::read(folder.path("a.onnx")).unwrap(), fs::read(folder.path("b.onnx")).unwrap());
    command(&["--epochs", "6", "-o", "c.onnx"]);
    assert_eq!(fs::read(folder.path("a.onnx")).unwrap(), fs::read(folder.path("c.onnx")).unwrap());
}

#[test]
fn qat_obeys_its_options() {
    let folder = Folder::new();
    // The only labelled samples of the demo.
    let common =
        ["qat", "digits.onnx", "--data", "test.npz", "--samples", "96", "--epochs", "2", "-o", "q.onnx"];
    let mut models = vec![];
    for (options, agreement) in [
        (&["--labels", "--smoothing", "0.1"][..], 0.9),
        (&["--batch-norm-steps", "4"], 0.9),
        (&["--ranges", "moving-average", "--observe-until", "3"], 0.9),
        (&["--ranges", "clipped"], 0.9),
        (&["--ranges", "learned-with-offset", "--delay", "1"], 0.9),
        (&["--optimizer", "adamw", "--schedule", "half-cosine", "--flip"], 0.9),
    ] {
        let trained = folder.json(&[&common[..], options].concat());
        assert_eq!(number(&trained["steps"]), 6.0, "{options:?}");
        assert_eq!(number(&trained["agreement"]["differ"]), 0.0, "{options:?}: {trained}");
        let reached = number(&trained["evaluation"]["scores"][1]["agreement"]);
        assert!(reached > agreement, "{options:?}: {reached}");
        models.push(fs::read(folder.path("q.onnx")).unwrap());
    }
    for (i, model) in models.iter().enumerate() {
        assert!(models[..i].iter().all(|other| other != model), "option {i} changes nothing");
    }
}

#[test]
fn doctor_mends_a_model_and_says_how() {
    let folder = Folder::new();
    let rules = "preset = \"default\"\n[[rule]]\nregex = \".\"\nactivation = { format = \"uint8\", \
                 mapping = \"affine\" }\nweight = { format = \"int2-narrow\", mapping = \"symmetric\" }\n";
    fs::write(folder.path("rules.toml"), rules).unwrap();
    let command = |more: &[&str]| {
        let args = ["doctor", "digits.onnx", "--data", "calibration.npz", "--eval", "test.npz"];
        folder.json(&[&args[..], more].concat())
    };
    let healthy = command(&["--drop", "1"]);
    assert_eq!((&healthy["met"], healthy["trials"].as_array().unwrap().len()), (&Value::from(true), 1));
    let mended = command(&["--config", "rules.toml", "--agreement", "95", "-o", "mended.onnx"]);
    assert_eq!(mended["met"], true, "{mended}");
    let best = &mended["trials"][mended["best"].as_u64().unwrap() as usize];
    assert!(number(&best["measured"]["scores"]["agreement"]) >= 0.95, "{best}");
    // The model on disk is the one that was found, and its rules make it again.
    let scores = &folder.json(&["eval", "digits.onnx", "mended.onnx", "--data", "test.npz"])["scores"];
    assert_eq!(scores[1]["agreement"], best["measured"]["scores"]["agreement"]);
    let again = "doctor digits.onnx --data calibration.npz --eval test.npz --config rules.toml --agreement 95 \
                 -o mended.onnx --report";
    let text = folder.text(&again.split(' ').collect::<Vec<_>>());
    assert!(text.contains("reached") && text.contains("the best"), "{text}");
    let page = fs::read_to_string(folder.path("mended.report.html")).unwrap();
    assert!(page.contains("quantized throughout") && page.contains("Sensitivity"), "{text}");
}

#[test]
fn quantize_obeys_its_options() {
    let folder = Folder::new();
    fs::write(folder.path("rules.toml"), "preset = \"tensorrt\"\n[[rule]]\nop = \"Gemm\"\nfloat = true\n")
        .unwrap();
    let all: &[(&[&str], &str, &str)] = &[
        (&["--skip", "classifier*"], "", "classifier"),
        (&["--config", "rules.toml"], "int8-narrow symmetric", "classifier"),
        (&["--per-tensor"], "int8 symmetric", ""),
        (&["--calibrator", "percentile=99.9"], "", ""),
        (&["--calibrator", "entropy", "--batch", "32"], "", ""),
        (&["--calibrator", "measured", "--smooth", "0.5", "--correct-bias", "off"], "", ""),
        (&["--preset", "x86", "--samples", "16"], "", ""),
    ];
    for (options, weights, float) in all {
        let args =
            [&["quantize", "digits.onnx", "--data", "calibration.npz", "-o", "q.onnx"][..], options].concat();
        let summary = folder.json(&args);
        let fallbacks = summary["session"]["fallbacks"].as_array().unwrap();
        let found: Vec<&str> = fallbacks.iter().map(|f| f["node"].as_str().unwrap()).collect();
        assert_eq!(found, float.split_terminator(',').collect::<Vec<_>>(), "{options:?}");
        let quantized = folder.json(&["inspect", "q.onnx"])["quantized"].clone();
        let weight = quantized.as_array().unwrap().iter().find(|q| q["place"] == "weight").unwrap();
        if *options == ["--per-tensor"] {
            assert_eq!(weight["scheme"], *weights, "{options:?}");
        }
        assert_eq!(
            weight["scale"].as_array().unwrap().len() == 1,
            *options == ["--per-tensor"],
            "{options:?}"
        );
        let scores = &folder.json(&["eval", "q.onnx", "--data", "test.npz"])["scores"];
        assert!(number(&scores[0]["top1"]) > 0.97, "{options:?}: {scores}");
    }
}

#[test]
fn report_is_a_page_of_all_that_was_measured() {
    let folder = Folder::quantized();
    let models = ["report", "digits.onnx", "digits.int8.onnx"];
    let report = folder.json(
        &[&models[..], &["--data", "test.npz", "--samples", "40", "--shadow", "--sensitivity"]].concat(),
    );
    assert_eq!(report["output"], "digits.int8.report.html");
    let page = fs::read_to_string(folder.path("digits.int8.report.html")).unwrap();
    assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>"), "{page}");
    assert_eq!(number(&report["bytes"]), page.len() as f64);
    for section in ["summary", "layers", "sensitivity", "weights", "activations", "provenance"] {
        assert!(page.contains(&format!("<section id=\"{section}\"")), "{section}");
    }
    for (i, least) in [(0, 1.0), (1, 0.95)] {
        let model = &report["models"][i];
        assert!(number(&model["score"]["agreement"]) >= least && number(&model["score"]["top1"]) > 0.9);
        assert!(number(&model["bytes"]) > 0.0 && number(&model["latency"]["median_ms"]) > 0.0, "{model}");
    }
    let distributions = report["distributions"].as_array().unwrap();
    let places = |place: &str| distributions.iter().filter(|d| d["place"] == place).count();
    assert!(places("activation") >= 6 && places("weight") == 6, "{distributions:?}");
    let image = distributions.iter().find(|d| d["name"] == "image").unwrap();
    assert_eq!(number(&image["elements"]), 40.0 * 64.0, "{image}");
    assert_eq!((number(&report["samples"]), &report["missing"]), (40.0, &serde_json::json!([])));

    // Without labels there is agreement alone.
    let report = folder
        .json(&[&models[..], &["--data", "calibration.npz", "--samples", "8", "-o", "page.html"]].concat());
    assert_eq!((report["output"].as_str(), &report["shadow"]), (Some("page.html"), &Value::Null));
    assert!(report["models"][1]["score"]["top1"].is_null());
    let text = folder.text(&[&models[..], &["--data", "calibration.npz", "--samples", "8"]].concat());
    assert!(text.contains("agreement") && text.contains("written to digits.int8.report.html"), "{text}");
}

#[test]
fn quantize_rounds_weights_as_asked() {
    let folder = Folder::new();
    let file = |options: &[&str], name: &str| {
        let args = ["quantize", "digits.onnx", "--data", "calibration.npz", "-o", name];
        folder.json(&[&args[..], options].concat());
        fs::read(folder.path(name)).unwrap()
    };
    let default = file(&[], "default.onnx");
    let [nearest, gptq] = ["nearest", "gptq"].map(|how| file(&["--rounding", how], &format!("{how}.onnx")));
    assert!(default == gptq && gptq != nearest);
    let output_sqnr = |model: &str| {
        let args = ["compare", "digits.onnx", model, "--data", "calibration.npz"];
        let comparison = folder.json(&args);
        number(&comparison["values"].as_array().unwrap().last().unwrap()["sqnr_db"])
    };
    let [nearest, gptq] = ["nearest.onnx", "gptq.onnx"].map(output_sqnr);
    assert!(gptq > nearest, "{gptq} dB after {nearest} dB");
}

#[test]
fn the_dynamic_method_needs_no_data() {
    let folder = Folder::new();
    for preset in ["dynamic", "dynamic-rows"] {
        let args =
            ["quantize", "digits.onnx", "--method", "dynamic", "--preset", preset, "-o", "dynamic.onnx"];
        let summary = folder.json(&args);
        assert_eq!(number(&summary["activations"]), 0.0);
        assert!(number(&summary["weights"]) > 0.0 && summary["calibration_samples"].is_null(), "{summary}");
        let args = ["eval", "digits.onnx", "dynamic.onnx", "--data", "test.npz"];
        let scores = &folder.json(&args)["scores"];
        assert!(number(&scores[1]["agreement"]) > 0.99, "{preset}: {scores}");
    }
}

#[test]
fn weights_alone_are_quantized_to_any_format() {
    let folder = Folder::new();
    let cases: [(&[&str], f64, f64); 5] = [
        (&[], 0.99, 0.5),
        (&["--weights", "uint4", "--block", "16", "--data", "calibration.npz", "--awq"], 0.97, 0.4),
        (&["--weights", "nf4", "--data", "calibration.npz"], 0.95, 0.45),
        (&["--weights", "kmeans4"], 0.95, 0.45),
        (&["--weights", "fp16"], 1.0, 0.7),
    ];
    for (options, agreement, size) in cases {
        let args = ["quantize", "digits.onnx", "--method", "weight-only", "-o", "small.onnx"];
        let summary = folder.json(&[&args[..], options].concat());
        assert_eq!(number(&summary["activations"]), 0.0);
        let ratio = number(&summary["int8_bytes"]) / number(&summary["float_bytes"]);
        assert!(number(&summary["weights"]) > 0.0 && ratio < size, "{options:?}: {summary}");
        let scores = &folder.json(&["eval", "digits.onnx", "small.onnx", "--data", "test.npz"])["scores"];
        assert!(number(&scores[1]["agreement"]) >= agreement, "{options:?}: {scores}");
    }
}

#[test]
fn quantize_equalizes_as_much_as_asked() {
    let folder = Folder::new();
    let quantized = |options: &[&str], name: &str| {
        let args =
            [&["quantize", "digits.onnx", "--data", "calibration.npz", "-o", name][..], options].concat();
        folder.json(&args);
        fs::read(folder.path(name)).unwrap()
    };
    let is_recorded = |file: &[u8]| file.windows(16).any(|w| w == b"lowbit.equalized");
    let [default, none, whole] = [
        quantized(&[], "default.onnx"),
        quantized(&["--equalize", "0"], "none.onnx"),
        quantized(&["--equalize", "1"], "whole.onnx"),
    ];
    assert!(is_recorded(&whole) && !is_recorded(&none));
    assert!(default == none);
    for model in ["none.onnx", "whole.onnx"] {
        let args = ["compare", "digits.onnx", model, "--data", "test.npz", "--samples", "64"];
        let comparison = folder.json(&args);
        let values = comparison["values"].as_array().unwrap();
        assert!(values.iter().all(|v| number(&v["sqnr_db"]) > 20.0), "{model}: {comparison}");
    }
}

#[test]
fn quantizing_twice_gives_the_same_bytes() {
    let folder = Folder::quantized();
    folder.json(&["quantize", "digits.onnx", "--data", "calibration.npz", "-o", "again.onnx"]);
    let read = |name| fs::read(folder.path(name)).unwrap();
    assert!(read("digits.int8.onnx") == read("again.onnx"));
}

#[test]
fn run_prints_classes_or_writes_outputs() {
    let folder = Folder::quantized();
    fs::write(folder.path("names.txt"), "zero\none\ntwo\nthree\nfour\nfive\nsix\nseven\neight\nnine\n")
        .unwrap();
    let args = ["run", "digits.int8.onnx", "--data", "test.npz", "--samples", "40", "--top", "2"];
    let samples = folder.json(&[&args[..], &["--labels", "names.txt"]].concat());
    let labels = npz::read(&folder.path("test.npz")).unwrap()[1].1.integers().unwrap();
    let names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"];
    let right = samples.as_array().unwrap().iter().zip(&labels).filter(|(sample, label)| {
        let class = &sample["classes"][0];
        assert_eq!(class["name"], names[class["class"].as_u64().unwrap() as usize]);
        assert!(number(&class["score"]) >= number(&sample["classes"][1]["score"]));
        class["class"].as_i64() == Some(**label)
    });
    assert!(right.count() >= 38, "{samples}");
    assert!(folder.text(&args).contains("score"));

    for reference in [&[][..], &["--reference"]] {
        let write = ["run", "digits.int8.onnx", "--data", "test.npz", "--batch", "7", "--output", "out.npz"];
        folder.text(&[&write[..], reference].concat());
        let outputs = npz::read(&folder.path("out.npz")).unwrap();
        assert_eq!((outputs[0].0.as_str(), outputs[0].1.shape()), ("output", &[450, 10][..]));
    }
}

#[test]
fn inspect_shows_every_stage() {
    let folder = Folder::quantized();
    let float = folder.json(&["inspect", "digits.onnx"]);
    assert_eq!(float["summary"]["operators"]["Conv"], 5);
    assert_eq!(float["summary"]["operators"]["BatchNormalization"], 5);
    assert_eq!((number(&float["coverage"]), number(&float["opsets"][0][1])), (0.0, 13.0));
    let int8 = folder.json(&["inspect", "digits.int8.onnx"]);
    assert_eq!(number(&int8["coverage"]), 1.0);
    assert_eq!(int8["summary"]["macs"], float["summary"]["macs"]);
    for (model, stage, says) in [
        ("digits.onnx", "graph", "BatchNormalization("),
        ("digits.onnx", "fused", "Conv("),
        ("digits.onnx", "points", "int8-narrow symmetric per channel"),
        ("digits.int8.onnx", "quantized", "image_dq"),
        ("digits.int8.onnx", "lowered", "QConv("),
    ] {
        let args = ["inspect", model, "--stage", stage];
        let text = folder.text(&args);
        assert!(text.contains(says), "{stage}: {text}");
        folder.json(&args);
    }
    assert!(!folder.text(&["inspect", "digits.onnx", "--stage", "fused"]).contains("BatchNormalization("));
    assert!(folder.text(&["inspect", "digits.int8.onnx"]).contains("100.00 % of MACs"));
}

#[test]
fn compare_finds_the_damage() {
    let folder = Folder::quantized();
    let good = ["compare", "digits.onnx", "digits.int8.onnx", "--data", "test.npz", "--samples", "64"];
    let comparison = folder.json(&good);
    assert_eq!(comparison["damage"].as_array().unwrap().len(), 0);
    assert!(number(&comparison["outputs"][0]["sqnr_db"]) > 20.0, "{comparison}");
    assert!(comparison["values"].as_array().unwrap().len() > 10, "{comparison}");
    assert!(folder.text(&good).contains("output output: SQNR"));
    let worst = folder.text(&[&good[..], &["--worst", "2"]].concat());
    assert_eq!(
        worst.lines().filter(|l| l.ends_with(" good") && !l.starts_with("output output:")).count(),
        2,
        "{worst}"
    );

    let rules = "[[rule]]
        [rule.activation]
        format = \"uint2\"
        mapping = \"affine\"
        [rule.weight]
        format = \"int2\"
        mapping = \"symmetric\"";
    fs::write(folder.path("rules.toml"), rules).unwrap();
    folder.json(&[
        "quantize",
        "digits.onnx",
        "--data",
        "calibration.npz",
        "--config",
        "rules.toml",
        "-o",
        "bad.onnx",
    ]);
    let bad = ["compare", "digits.onnx", "bad.onnx", "--data", "test.npz", "--samples", "64"];
    let text = folder.text(&bad);
    assert!(text.contains("BROKEN: output output") && text.contains("the damage starts at node "), "{text}");
    let damage = folder.json(&bad)["damage"][0].clone();
    assert!(number(&damage["after_db"]) < 8.0 && damage["output"] == "output", "{damage}");
}

#[test]
fn compare_tells_own_errors_from_inherited_ones() {
    let folder = Folder::quantized();
    let args =
        ["compare", "digits.onnx", "digits.int8.onnx", "--data", "test.npz", "--samples", "32", "--shadow"];
    let shadow = folder.json(&args);
    let values = shadow["values"].as_array().unwrap();
    assert!(values.len() > 10, "{shadow}");
    for v in values {
        assert!(v["own"]["sqnr_db"].is_null() || number(&v["own"]["sqnr_db"]) > 25.0, "{v}");
    }
    let last = values.last().unwrap();
    assert!(number(&last["inherited_db"]) < number(&last["own"]["sqnr_db"]), "{last}");
    let worst = folder.text(&[&args[..], &["--worst", "3"]].concat());
    assert!(worst.contains("own SQNR dB") && worst.lines().count() == 6, "{worst}");
}

#[test]
fn compare_shows_the_weights() {
    let folder = Folder::quantized();
    let args = ["compare", "digits.onnx", "digits.int8.onnx", "--weights"];
    let weights = folder.json(&args);
    let weights = weights.as_array().unwrap();
    assert_eq!(weights.iter().filter(|w| w["op"] == "Conv").count(), 5);
    for w in weights {
        assert!(number(&w["sqnr_db"]) > 30.0, "{w}");
        let shape = w["shape"].as_array().unwrap();
        assert!(
            shape.iter().any(|n| n.as_u64() == Some(w["channels_db"].as_array().unwrap().len() as u64)),
            "{w}"
        );
    }
    let worst = folder.text(&[&args[..], &["--worst", "2"]].concat());
    assert!(worst.contains("worst channels") && worst.ends_with("2 weights\n"), "{worst}");
    let neither = folder.run(&args[..3]);
    assert!(!neither.status.success() && String::from_utf8_lossy(&neither.stderr).contains("--data"));
}

#[test]
fn check_says_what_deserves_attention() {
    let folder = Folder::new();
    let check = |options: &[&str]| {
        let args = ["check", "digits.onnx", "--data", "calibration.npz", "--untimed"];
        folder.json(&[&args[..], options].concat())
    };
    let codes = |checked: &Value| -> Vec<String> {
        let findings = checked["findings"].as_array().unwrap();
        findings.iter().map(|f| f["code"].as_str().unwrap().to_string()).collect()
    };
    let healthy = check(&["--eval", "test.npz"]);
    assert_eq!((number(&healthy["samples"]), number(&healthy["evaluated"])), (128.0, 450.0));
    assert_eq!(codes(&healthy), [""; 0], "{healthy}");
    let last = healthy["advice"]["convergence"].as_array().unwrap().last().unwrap();
    assert_eq!((number(&last["from"]), number(&last["to"])), (64.0, 128.0), "{last}");
    assert!(healthy["advice"]["enough"].is_boolean());
    let dynamic = check(&["--preset", "dynamic"]);
    assert!(codes(&dynamic).iter().all(|code| code == "LB-Q301"), "{dynamic}");
    assert!(dynamic["advice"]["enough"].is_null(), "{dynamic}");

    fs::write(folder.path("rules.toml"), "preset = \"default\"\n[[rule]]\nop = \"Gemm\"\nfloat = true\n")
        .unwrap();
    let in_float = check(&["--config", "rules.toml"]);
    assert_eq!(codes(&in_float), ["LB-Q301"], "{in_float}");
    assert_eq!(in_float["findings"][0]["subject"], "classifier");

    let (_, images) = npz::read(&folder.path("test.npz")).unwrap().remove(0);
    let values = images.to_f32().unwrap();
    let write = |name: &str, x: Vec<f32>| {
        npz::write(&folder.path(name), [("x", &Tensor::new(images.shape(), x).unwrap())]).unwrap();
    };
    write("inverted.npz", values.iter().map(|x| 16.0 - x).collect());
    let unlike = check(&["--eval", "inverted.npz"]);
    assert!(codes(&unlike).contains(&"LB-Q402".to_string()), "{unlike}");

    write("nan.npz", (0..values.len()).map(|i| if i == 700 { f32::NAN } else { values[i] }).collect());
    let broken = folder.run(&["check", "digits.onnx", "--data", "nan.npz"]);
    let text = String::from_utf8(broken.stdout).unwrap();
    assert_eq!(broken.status.code(), Some(1));
    assert!(text.contains("errors:\n  LB-Q102 image: has 1 NaN and 0 infinite elements"), "{text}");

    let text = folder.text(&["check", "digits.onnx", "--data", "calibration.npz"]);
    assert!(text.contains("\n128 calibration samples\nranges: from 64 to 128 samples"), "{text}");
}

#[test]
fn sensitivity_ranks_the_layers() {
    let folder = Folder::new();
    let args = ["sensitivity", "digits.onnx", "--data", "test.npz", "--samples", "64"];
    let found = folder.json(&[&args[..], &["--resume", "state.jsonl"]].concat());
    let layers = found["layers"].as_array().unwrap();
    let ranked = found["ranked"].as_array().unwrap();
    assert!(layers.len() > 5 && ranked.len() == layers.len(), "{found}");
    let sqnr =
        |name: &Value| number(&layers.iter().find(|l| l["layer"] == *name).unwrap()["scores"]["sqnr_db"]);
    assert!(ranked.windows(2).all(|w| sqnr(&w[0]) <= sqnr(&w[1])), "{found}");
    assert!(number(&found["everything"]["sqnr_db"]) < sqnr(&ranked[0]), "{found}");
    assert!(number(&found["float_top1"]) > 0.9 && number(&layers[0]["scores"]["agreement"]) > 0.9, "{found}");
    // A file of results is all that a second run needs.
    assert_eq!(fs::read_to_string(folder.path("state.jsonl")).unwrap().lines().count(), layers.len() + 2);
    let again = folder.json(&[&args[..], &["--resume", "state.jsonl"]].concat());
    assert_eq!(again["ranked"], found["ranked"]);
    let mixed = folder.run(&[&args[..], &["--resume", "state.jsonl", "--all-but-one"]].concat());
    assert!(String::from_utf8_lossy(&mixed.stderr).contains("another model"));

    let text = folder.text(&[&args[..], &["--all-but-one", "--metric", "top1", "--worst", "2"]].concat());
    assert!(text.contains("layer in float") && text.contains("float top-1"), "{text}");
    let blocks = folder.json(&[&args[..], &["--by", "*", "--metric", "kl"]].concat());
    assert_eq!(blocks["layers"][0]["layer"], "*");
    assert!(blocks["layers"][0]["scores"]["kl"] == blocks["everything"]["kl"], "{blocks}");
    let args = ["sensitivity", "digits.onnx", "--data", "calibration.npz", "--metric", "top1"];
    let unlabelled = folder.run(&args);
    assert!(String::from_utf8_lossy(&unlabelled.stderr).contains("labels"));
}

#[test]
fn bench_profiles_every_node() {
    let folder = Folder::quantized();
    for (model, options) in [
        ("digits.int8.onnx", &["--batch", "3", "--threads", "1"][..]),
        ("digits.int8.onnx", &["--reference"]),
        ("digits.int8.onnx", &["--fastest", "--batch", "3"]),
        ("digits.onnx", &["--dim", "N=3"]),
    ] {
        let args = [&["bench", model, "--runs", "3"][..], options].concat();
        let profile = folder.json(&args);
        assert!(
            number(&profile["latency"]["min_ms"]) <= number(&profile["latency"]["median_ms"]),
            "{profile}"
        );
        let batch = if options == ["--reference"] { 1.0 } else { 3.0 };
        assert_eq!(number(&profile["macs"]), 699_744.0 * batch, "{options:?}");
        assert_eq!(profile.get("report").is_some(), options.contains(&"--fastest"), "{profile}");
        let text = folder.text(&args);
        assert_eq!(text.contains("MACs in int8"), options.contains(&"--fastest"), "{text}");
        assert!(text.contains("GMAC/s") && text.contains("residual.first.0"), "{text}");
    }
}

#[test]
fn every_command_has_help_with_an_example() {
    let folder = Folder::new();
    let help = folder.text(&["--help"]);
    for command in ["quantize", "run", "eval", "compare", "sensitivity", "check", "inspect", "bench", "demo"]
    {
        assert!(help.contains(command), "{help}");
        let help = folder.text(&[command, "--help"]);
        assert!(help.contains("Example") && help.contains(&format!("lowbit {command}")), "{help}");
    }
}

#[test]
fn models_for_a_target_have_nothing_to_remark() {
    let folder = Folder::new();
    for target in ["onnxruntime", "tensorrt", "openvino", "session"] {
        let quantize = ["quantize", "digits.onnx", "--data", "calibration.npz", "-o", "q.onnx"];
        let summary = folder.json(&[&quantize[..], &["--target", target]].concat());
        assert_eq!(number(&summary["coverage"]), 1.0, "{target}: {summary}");
        let lint = folder.json(&["lint", "q.onnx", "--target", target, "--strict"]);
        assert_eq!((&lint["remarks"], number(&lint["coverage"])), (&Value::Array(vec![]), 1.0), "{lint}");
        let scores = &folder.json(&["eval", "q.onnx", "--data", "test.npz"])["scores"];
        assert!(number(&scores[0]["top1"]) > 0.97, "{target}: {scores}");
    }
}

#[test]
fn lint_says_what_does_not_run_in_int8() {
    let folder = Folder::quantized();
    let lint = folder.json(&["lint", "digits.int8.onnx", "--target", "tensorrt"]);
    let remarks = lint["remarks"].as_array().unwrap();
    assert!(remarks.iter().any(|r| r["code"] == "LB-T101" && r["level"] == "refused"), "{lint}");
    assert_eq!(number(&lint["coverage"]), 0.0);
    let text = folder.text(&["lint", "digits.int8.onnx", "--target", "tensorrt"]);
    assert!(text.contains("LB-T101") && text.contains("would not load"), "{text}");
    for (model, target, fails) in [
        ("digits.int8.onnx", "tensorrt", true),
        ("digits.onnx", "onnxruntime", true),
        ("digits.onnx", "session", true),
        ("digits.int8.onnx", "onnxruntime", false),
    ] {
        let output = folder.run(&["lint", model, "--target", target, "--strict"]);
        assert_eq!(output.status.code(), Some(i32::from(fails)), "{model} {target}");
        assert!(output.stderr.is_empty() && !output.stdout.is_empty(), "{model} {target}");
    }
}

#[test]
fn inspect_shows_what_a_model_was_made_from() {
    let folder = Folder::new();
    assert!(folder.json(&["inspect", "digits.onnx"])["provenance"].is_null());
    let made = |name: &str, more: &[&str]| {
        let args = ["quantize", "digits.onnx", "--data", "calibration.npz", "-o", name];
        folder.json(&[&args[..], more].concat());
        folder.json(&["inspect", name])["provenance"].clone()
    };
    let first = made("a.onnx", &[]);
    assert_eq!((&first["command"], &first["samples"]), (&Value::from("quantize"), &Value::from(128)));
    assert!(first["codes"].as_str().unwrap().contains("activation uint8"), "{first}");
    assert_eq!(first["model"].as_str().unwrap().len(), 64);
    // The settings are rules that give the same model again, byte for byte.
    fs::write(folder.path("again.toml"), first["settings"].as_str().unwrap()).unwrap();
    assert_eq!(made("b.onnx", &["--config", "again.toml"]), first);
    assert_eq!(fs::read(folder.path("a.onnx")).unwrap(), fs::read(folder.path("b.onnx")).unwrap());
    let fewer = made("c.onnx", &["--samples", "16", "--per-tensor"]);
    assert_ne!(fewer["data"], first["data"]);
    assert_ne!(fewer["settings"], first["settings"]);
    assert_eq!(fewer["model"], first["model"]);
    assert_eq!(made("d.onnx", &["--target", "tensorrt"])["command"], "quantize --target tensorrt");
    let text = folder.text(&["inspect", "a.onnx"]);
    assert!(text.contains(first["model"].as_str().unwrap()) && text.contains("128 samples"), "{text}");

    let train = ["qat", "digits.onnx", "--data", "calibration.npz", "--epochs", "1", "-o", "q.onnx"];
    folder.json(&train);
    let trained = folder.json(&["inspect", "q.onnx"])["provenance"].clone();
    assert_eq!((&trained["command"], &trained["data"]), (&Value::from("qat"), &first["data"]));
    assert!(trained["settings"].as_str().unwrap().contains("epochs = 1"), "{trained}");
}
