use proptest::prelude::*;

use super::*;

/// `width` x `height` pixels, encoded, each from its column and row.
pub(in crate::data) fn encoded(
    format: ImageFormat,
    width: u32,
    height: u32,
    pixel: impl Fn(u32, u32) -> [u8; 3],
) -> Vec<u8> {
    let mut bytes = Cursor::new(vec![]);
    RgbImage::from_fn(width, height, |x, y| image::Rgb(pixel(x, y))).write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// A PNG's bytes up to its pixels, claiming this size.
fn png_header(width: u32, height: u32) -> Vec<u8> {
    let mut chunk = b"IHDR".to_vec();
    chunk.extend(width.to_be_bytes());
    chunk.extend(height.to_be_bytes());
    chunk.extend([8, 2, 0, 0, 0]);
    let mut crc = flate2::Crc::new();
    crc.update(&chunk);
    let mut bytes = b"\x89PNG\r\n\x1a\n\0\0\0\x0d".to_vec();
    bytes.extend(chunk);
    bytes.extend(crc.sum().to_be_bytes());
    // An empty IDAT chunk: decoders read on to the first one.
    let mut crc = flate2::Crc::new();
    crc.update(b"IDAT");
    bytes.extend(b"\0\0\0\0IDAT");
    bytes.extend(crc.sum().to_be_bytes());
    bytes
}

#[test]
fn png_and_jpeg_are_decoded() {
    let png = encoded(ImageFormat::Png, 3, 2, |x, y| [x as u8, y as u8, 200]);
    let picture = decode(&png).unwrap();
    assert_eq!((picture.width(), picture.height(), picture.channels()), (3, 2, 3));
    assert_eq!(picture.samples()[..9], [0, 0, 200, 1, 0, 200, 2, 0, 200]);
    assert_eq!(picture.samples()[9..], [0, 1, 200, 1, 1, 200, 2, 1, 200]);

    let jpeg = encoded(ImageFormat::Jpeg, 16, 8, |_, _| [200, 100, 50]);
    let picture = decode(&jpeg).unwrap();
    assert_eq!((picture.width(), picture.height()), (16, 8));
    for p in picture.samples().as_chunks::<3>().0 {
        assert!(p.iter().zip([200u8, 100, 50]).all(|(a, b)| a.abs_diff(b) <= 3), "{p:?}");
    }
}

#[test]
fn unreadable_pictures_are_refused_by_name() {
    let png = encoded(ImageFormat::Png, 40, 40, |x, y| [(x * 6) as u8, (y * 6) as u8, (x * y) as u8]);
    let jpeg = encoded(ImageFormat::Jpeg, 40, 40, |x, y| [(x * 6) as u8, (y * 6) as u8, (x * y) as u8]);
    let cases = [
        ("empty", vec![], "neither a JPEG nor a PNG"),
        ("text", b"hello".to_vec(), "neither a JPEG nor a PNG"),
        ("gif", b"GIF89a\x01\x00\x01\x00\x00\x00\x00;".to_vec(), "neither a JPEG nor a PNG"),
        ("png-cut", png[..png.len() / 2].to_vec(), "cannot be decoded"),
        ("jpeg-cut-in-header", jpeg[..20].to_vec(), "cannot be decoded"),
        ("jpeg-cut", jpeg[..jpeg.len() - 200].to_vec(), "cannot be decoded"),
        ("bomb", png_header(60_000, 60_000), "67108864 pixels"),
        ("wide-bomb", png_header(0x7fff_ffff, 0x7fff_ffff), "cannot be decoded"),
    ];
    let dir = tempfile::tempdir().unwrap();
    let mut failures = vec![];
    for (name, bytes, expected) in &cases {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        match read(&path) {
            Err(e) if e.to_string().contains(expected) && e.to_string().contains(name) => {}
            other => failures.push(format!("{name}: {other:?}, expected {expected:?}")),
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
    assert!(read(&dir.path().join("missing.png")).unwrap_err().to_string().contains("missing.png"));
}

#[test]
fn crops_keep_the_middle() {
    // (side, crop, first sample kept): odd margins round half to even.
    for (side, crop, first) in
        [(4, 4, 0), (4, 2, 1), (5, 4, 0), (5, 2, 2), (7, 2, 2), (9, 2, 4), (256, 227, 14)]
    {
        let row: Vec<u8> = (0..side).map(|x| x as u8).collect();
        let picture = Picture::new(side, 1, 1, row).unwrap().centre_crop(crop, 1).unwrap();
        assert_eq!((picture.width(), picture.samples()[0]), (crop, first), "{crop} of {side}");
    }
    let column = Picture::new(1, 5, 3, (0..15).collect()).unwrap().centre_crop(1, 3).unwrap();
    assert_eq!(column.samples(), [3, 4, 5, 6, 7, 8, 9, 10, 11]);
    assert!(column.centre_crop(2, 3).unwrap_err().to_string().contains("2 x 3 does not fit in 1 x 3"));
}

#[test]
fn colours_are_converted() {
    let rgb = Picture::new(4, 1, 3, vec![255, 0, 0, 0, 255, 0, 0, 0, 255, 255, 255, 255]).unwrap();
    let gray = rgb.to_gray();
    // What PIL's convert("L") gives.
    assert_eq!(gray.samples(), [76, 150, 29, 255]);
    assert_eq!(gray.to_rgb().samples(), [76, 76, 76, 150, 150, 150, 29, 29, 29, 255, 255, 255]);
    let planar = Picture::planar(2, 1, 3, &[1, 2, 3, 4, 5, 6]).unwrap();
    assert_eq!(planar.samples(), [1, 3, 5, 2, 4, 6]);
}

#[test]
fn shrinking_averages_and_growing_interpolates() {
    let checks = Picture::new(8, 8, 1, (0..64).map(|i| ((i + i / 8) % 2 * 200) as u8).collect()).unwrap();
    let small = checks.resized(2, 2, FilterType::Triangle).unwrap();
    assert!(small.samples().iter().all(|&x| x.abs_diff(100) <= 10), "{small:?}");
    let ramp = Picture::new(2, 1, 1, vec![0, 100]).unwrap().resized(4, 1, FilterType::Triangle).unwrap();
    assert_eq!((ramp.samples(), ramp.channels()), ([0, 25, 75, 100].as_slice(), 1));
    assert!(checks.resized(1 << 14, 1 << 14, FilterType::Triangle).is_err());
    assert!(checks.resized(0, 4, FilterType::Triangle).is_err());
}

#[test]
fn a_wrong_number_of_samples_is_refused() {
    for (w, h, c, n) in [(2, 2, 3, 11), (2, 2, 2, 8), (0, 2, 1, 0), (usize::MAX, 2, 1, 4)] {
        assert!(Picture::new(w, h, c, vec![0; n]).is_err(), "{w} {h} {c} {n}");
        assert!(Picture::planar(w, h, c, &vec![0; n]).is_err(), "{w} {h} {c} {n}");
    }
}

proptest! {
    #[test]
    fn damaged_pictures_do_not_panic(at in any::<prop::sample::Index>(), byte: u8, jpeg: bool) {
        let format = if jpeg { ImageFormat::Jpeg } else { ImageFormat::Png };
        let mut bytes = encoded(format, 9, 9, |x, y| [(x * 20) as u8, (y * 20) as u8, 7]);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let _ = decode(&bytes);
        let _ = decode(&bytes[..at]);
    }
}
