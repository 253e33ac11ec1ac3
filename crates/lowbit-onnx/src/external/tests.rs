use std::fs;

use crate::DataType;
use crate::TensorData;
use crate::proto::TensorProto;
use crate::sample::entry;

/// Keys and values of `external_data`.
type Entries<'a> = Vec<(&'a str, &'a str)>;

fn tensor(entries: &[(&str, &str)], len: i64) -> TensorProto {
    TensorProto {
        name: Some("w".to_owned()),
        data_type: Some(DataType::Uint8.to_onnx()),
        dims: vec![len],
        data_location: Some(1),
        external_data: entries.iter().map(|(k, v)| entry(k, v)).collect(),
        ..TensorProto::default()
    }
}

/// `model/w.bin` holds 0, 1 .. 9; `secret.bin` lies outside the folder.
fn folder() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let bytes: Vec<u8> = (0..10).collect();
    fs::create_dir_all(root.path().join("model/sub")).unwrap();
    for file in ["model/w.bin", "model/sub/w.bin", "secret.bin", "model-2.bin"] {
        fs::write(root.path().join(file), &bytes).unwrap();
    }
    root
}

#[test]
fn reads_the_range() {
    let root = folder();
    let folder = root.path().join("model");
    let cases: Vec<(Entries, i64, &[u8])> = vec![
        (vec![("location", "w.bin")], 10, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (vec![("location", "w.bin"), ("offset", "8")], 2, &[8, 9]),
        (vec![("location", "w.bin"), ("offset", "3"), ("length", "2")], 2, &[3, 4]),
        (vec![("location", "./sub/w.bin"), ("length", "1")], 1, &[0]),
        (vec![("location", "sub/./w.bin"), ("checksum", "unverified")], 1, &[0]),
        (vec![("location", "w.bin"), ("offset", "10"), ("length", "0")], 0, &[]),
        (vec![("length", "0002"), ("offset", "01"), ("location", "w.bin")], 2, &[1, 2]),
    ];
    for (entries, len, expected) in cases {
        let data = TensorData::from_proto(&tensor(&entries, len), Some(&folder)).unwrap();
        assert_eq!(data.bytes, expected, "{entries:?}");
    }
}

#[test]
fn refuses_what_is_not_in_the_folder_or_the_file() {
    let root = folder();
    let folder = root.path().join("model");
    let absolute = folder.join("w.bin");
    let outside = "is outside the folder of the model";
    let mut cases: Vec<(Entries, i64, &str)> = vec![
        (vec![("location", absolute.to_str().unwrap())], 1, outside),
        (vec![("location", "/etc/hostname")], 1, outside),
        (vec![("location", "../secret.bin")], 1, outside),
        (vec![("location", "sub/../w.bin")], 1, outside),
        (vec![("location", "sub/../../secret.bin")], 1, outside),
        (vec![("location", "../model-2.bin")], 1, outside),
        (vec![("location", "..")], 1, outside),
        (vec![("location", "absent.bin")], 1, "cannot find"),
        (vec![("location", "w\0.bin")], 1, "cannot find"),
        (vec![("location", "sub")], 1, "not a regular file"),
        (vec![("location", ".")], 1, "not a regular file"),
        (vec![("location", "w.bin")], 11, "11 bytes at offset 0 end after"),
        (vec![("location", "w.bin")], 1 << 50, "which has 10 bytes"),
        (vec![("location", "w.bin"), ("offset", "9")], 2, "2 bytes at offset 9 end after"),
        (vec![("location", "w.bin"), ("offset", "11")], 0, "0 bytes at offset 11 end after"),
        (vec![("location", "w.bin"), ("offset", "18446744073709551615")], 2, "end after"),
    ];
    for number in ["-1", "+1", "1.0", "", " 1", "0x1", "18446744073709551616"] {
        for key in ["offset", "length"] {
            cases.push((vec![("location", "w.bin"), (key, number)], 1, "not a number from 0"));
        }
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::symlink;
        symlink("../secret.bin", folder.join("link.bin")).unwrap();
        symlink("..", folder.join("up")).unwrap();
        symlink("loop.bin", folder.join("loop.bin")).unwrap();
        symlink("/dev/zero", folder.join("zero.bin")).unwrap();
        cases.push((vec![("location", "link.bin")], 1, outside));
        cases.push((vec![("location", "up/secret.bin")], 1, outside));
        cases.push((vec![("location", "loop.bin")], 1, "cannot find"));
        cases.push((vec![("location", "zero.bin")], 1, outside));
    }
    let mut failures = Vec::new();
    for (entries, len, expected) in cases {
        match TensorData::from_proto(&tensor(&entries, len), Some(&folder)) {
            Ok(data) => failures.push(format!("accepted {entries:?}: {data:?}")),
            Err(error) => {
                let message = error.to_string();
                if !message.contains(expected) || !message.contains("tensor \"w\": external data") {
                    failures.push(format!("{entries:?}: {message:?}, not {expected:?}"));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[cfg(unix)]
#[test]
fn follows_links_that_stay_inside() {
    let root = folder();
    let folder = root.path().join("model");
    std::os::unix::fs::symlink("w.bin", folder.join("inside.bin")).unwrap();
    std::os::unix::fs::symlink(&folder, root.path().join("alias")).unwrap();
    let data =
        TensorData::from_proto(&tensor(&[("location", "inside.bin")], 10), Some(&root.path().join("alias")));
    assert_eq!(data.unwrap().bytes.len(), 10);
}
