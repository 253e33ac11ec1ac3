use std::fs;
use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::*;

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut gz = GzEncoder::new(vec![], Compression::default());
    gz.write_all(bytes).unwrap();
    gz.finish().unwrap()
}

fn idx_bytes(dims: &[u32], data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 8, u8::try_from(dims.len()).unwrap()];
    bytes.extend(dims.iter().flat_map(|d| d.to_be_bytes()));
    bytes.extend(data);
    bytes
}

#[test]
fn cifar_records_are_read_plain_and_compressed() {
    let dir = tempfile::tempdir().unwrap();
    let mut bytes = vec![];
    for label in [3u8, 9] {
        bytes.push(label);
        for channel in 0..3u8 {
            bytes.extend([label * 10 + channel; 1024]);
        }
    }
    // A gzip file may have several members.
    let halves = [gz(&bytes[..4000]), gz(&bytes[4000..])].concat();
    for (name, content) in [("a.bin", bytes.clone()), ("a.bin.gz", gz(&bytes)), ("b.bin.gz", halves)] {
        let path = dir.path().join(name);
        fs::write(&path, content).unwrap();
        let records = cifar(&path).unwrap();
        assert_eq!((records.len(), &records.labels), (2, &Some(vec![3, 9])), "{name}");
        let picture = records.picture(1).unwrap();
        assert_eq!(
            (picture.width(), picture.height(), &picture.samples()[..6]),
            (32, 32, &[90, 91, 92, 90, 91, 92][..])
        );
    }
}

#[test]
fn idx_pictures_are_read_with_the_labels_beside_them() {
    let dir = tempfile::tempdir().unwrap();
    let images = idx_bytes(&[2, 2, 3], &(0..12).collect::<Vec<u8>>());
    let labels = idx_bytes(&[2], &[7, 1]);
    for (image_name, label_name) in [
        ("a-images-idx3-ubyte", "a-labels-idx1-ubyte"),
        ("b-images-idx3-ubyte.gz", "b-labels-idx1-ubyte.gz"),
        ("c-images.idx3-ubyte", "c-labels.idx1-ubyte.gz"),
        ("d-images-idx3-ubyte.gz", "d-labels-idx1-ubyte"),
    ] {
        let compress =
            |name: &str, bytes: &[u8]| if name.ends_with("gz") { gz(bytes) } else { bytes.to_vec() };
        let path = dir.path().join(image_name);
        fs::write(&path, compress(image_name, &images)).unwrap();
        assert_eq!(idx(&path).unwrap().labels, None, "{image_name}");
        fs::write(dir.path().join(label_name), compress(label_name, &labels)).unwrap();
        let records = idx(&path).unwrap();
        assert_eq!((records.len(), &records.labels), (2, &Some(vec![7, 1])), "{image_name}");
        let picture = records.picture(1).unwrap();
        assert_eq!((picture.width(), picture.height(), picture.channels()), (3, 2, 1));
        assert_eq!(picture.samples(), [6, 7, 8, 9, 10, 11]);
    }
}

#[test]
fn wrong_files_are_refused_by_name() {
    let pictures = idx_bytes(&[1, 2, 2], &[0; 4]);
    type Read = fn(&Path) -> Result<Records>;
    let cases: [(&str, Read, Vec<u8>, &str); 12] = [
        ("empty.bin", cifar, vec![], "0 bytes are not CIFAR-10 records"),
        ("cut.bin", cifar, vec![0; 3072], "3072 bytes are not"),
        ("plain.bin.gz", cifar, vec![0; 3073], "cannot be read"),
        ("cut.bin.gz", cifar, gz(&[1; 3073])[..20].to_vec(), "cannot be read"),
        ("empty-ubyte", idx, vec![], "header is cut short"),
        ("magic-ubyte", idx, vec![1; 16], "does not begin with 0, 0"),
        ("floats-ubyte", idx, vec![0, 0, 13, 3, 0, 0, 0, 0], "element type 0xd"),
        ("labels-ubyte", idx, idx_bytes(&[2], &[0; 2]), "of 1 dimensions"),
        ("cut-ubyte", idx, pictures[..17].to_vec(), "take 4 bytes, found 1"),
        ("long-ubyte", idx, [&pictures[..], &[0]].concat(), "more than the 4 bytes"),
        ("huge-ubyte", idx, idx_bytes(&[u32::MAX; 3], &[]), "do not make 1 to"),
        ("none-ubyte", idx, idx_bytes(&[0, 28, 28], &[]), "do not make 1 to"),
    ];
    let dir = tempfile::tempdir().unwrap();
    let mut failures = vec![];
    for (name, read, bytes, expected) in &cases {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        match read(&path) {
            Err(e) if e.to_string().contains(expected) && e.to_string().contains(name) => {}
            other => failures.push(format!("{name}: {other:?}, expected {expected:?}")),
        }
    }
    fs::write(dir.path().join("x-images-idx3-ubyte"), &pictures).unwrap();
    fs::write(dir.path().join("x-labels-idx1-ubyte"), idx_bytes(&[3], &[0; 3])).unwrap();
    let message = idx(&dir.path().join("x-images-idx3-ubyte")).unwrap_err().to_string();
    if !message.contains("x-labels-idx1-ubyte: has labels of shape [3] for 1 pictures") {
        failures.push(message);
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn a_bomb_is_stopped_at_the_size_expected() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bomb-ubyte.gz");
    let bomb = [idx_bytes(&[1, 1, 1], &[0]), vec![0; 8 << 20]].concat();
    fs::write(&path, gz(&bomb)).unwrap();
    assert!(idx(&path).unwrap_err().to_string().contains("more than the 1 bytes"));
}
