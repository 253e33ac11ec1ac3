//! Pictures: decoding with a bound on size, resizing, cropping, colour.

use std::fs;
use std::io::Cursor;
use std::path::Path;

use image::imageops::{self, FilterType};
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, RgbImage};

use crate::error::{Error, Result, invalid};

/// The most pixels one picture may have, decoded or resized.
pub const MAX_PIXELS: u64 = 64 << 20;

/// 8-bit samples in rows of interleaved pixels, of 1 (gray) or 3 (RGB) channels.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) channels: usize,
    /// `[height][width][channels]`.
    pub(super) samples: Vec<u8>,
}

/// Decodes a JPEG or PNG file to RGB, told apart by content. Transparency is
/// dropped, an EXIF orientation is not applied (as in PIL and torchvision).
///
/// # Errors
/// If the file cannot be read, is neither format, is damaged, or has more than
/// [`MAX_PIXELS`]; all name the file.
pub fn read(path: &Path) -> Result<Picture> {
    let bytes = fs::read(path).map_err(|e| Error::io(path, e))?;
    decode(&bytes).map_err(|e| e.at(path.display().to_string()))
}

/// Decodes JPEG or PNG bytes as [`read`] does.
///
/// # Errors
/// Those of [`read`], without a file's name.
pub fn decode(bytes: &[u8]) -> Result<Picture> {
    let broken = |e: image::ImageError| invalid!("cannot be decoded: {e}");
    let format = image::guess_format(bytes).ok();
    let Some(format @ (ImageFormat::Jpeg | ImageFormat::Png)) = format else {
        return Err(invalid!("is neither a JPEG nor a PNG image; convert it"));
    };
    if format == ImageFormat::Jpeg && is_cut_short(bytes) {
        return Err(invalid!("cannot be decoded: the JPEG image is cut short"));
    }
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = Limits::default();
    // Four 16-bit channels, and the decoder's own copy.
    limits.max_alloc = Some(16 * MAX_PIXELS);
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(broken)?;
    let (width, height) = decoder.dimensions();
    check_pixels(width as usize, height as usize)?;
    let image = DynamicImage::from_decoder(decoder).map_err(broken)?.into_rgb8();
    Ok(Picture::of(image))
}

/// Whether a JPEG file has no end-of-image marker after its last start-of-scan
/// marker, where neither can be mistaken for samples. The decoder would fill
/// what is missing with gray.
fn is_cut_short(jpeg: &[u8]) -> bool {
    let last = |marker: [u8; 2]| jpeg.windows(2).rposition(|w| w == marker);
    last([0xff, 0xd9]) <= last([0xff, 0xda])
}

fn check_pixels(width: usize, height: usize) -> Result<()> {
    match (width as u64).checked_mul(height as u64) {
        Some(1..=MAX_PIXELS) => Ok(()),
        _ => Err(invalid!("{width} x {height} pixels: a picture has 1 to {MAX_PIXELS} pixels")),
    }
}

impl Picture {
    /// A picture of `samples` laid out `[height][width][channels]`.
    ///
    /// # Errors
    /// If there are not 1 or 3 channels, no pixels or too many, or another
    /// number of samples.
    pub fn new(width: usize, height: usize, channels: usize, samples: Vec<u8>) -> Result<Picture> {
        check_pixels(width, height)?;
        if !matches!(channels, 1 | 3) || samples.len() != width * height * channels {
            return Err(invalid!(
                "{} samples do not make a {width} x {height} picture of 1 or 3 channels ({channels} asked for)",
                samples.len()
            ));
        }
        Ok(Picture { width, height, channels, samples })
    }

    /// A picture of `samples` laid out `[channels][height][width]`.
    ///
    /// # Errors
    /// Those of [`Picture::new`].
    pub fn planar(width: usize, height: usize, channels: usize, samples: &[u8]) -> Result<Picture> {
        let plane = width.saturating_mul(height);
        let pixel = |i| samples.iter().skip(i).step_by(plane.max(1)).copied();
        Picture::new(width, height, channels, (0..plane.min(samples.len())).flat_map(pixel).collect())
    }

    fn of(image: RgbImage) -> Picture {
        let (width, height) = (image.width() as usize, image.height() as usize);
        Picture { width, height, channels: 3, samples: image.into_raw() }
    }

    /// Width in pixels.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Height in pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// 1 (gray) or 3 (RGB).
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// The samples, `[height][width][channels]`.
    pub fn samples(&self) -> &[u8] {
        &self.samples
    }

    /// One channel: ITU-R 601 luma in 16-bit fixed point, PIL's mode L:
    /// (19595 R + 38470 G + 7471 B + 32768) >> 16.
    pub fn to_gray(&self) -> Picture {
        if self.channels == 1 {
            return self.clone();
        }
        let luma = |p: &[u8; 3]| {
            let [r, g, b] = p.map(u32::from);
            ((19595 * r + 38470 * g + 7471 * b + 32768) >> 16) as u8
        };
        let samples = self.samples.as_chunks::<3>().0.iter().map(luma).collect();
        Picture { channels: 1, samples, ..*self }
    }

    /// Three channels; gray is repeated.
    pub fn to_rgb(&self) -> Picture {
        if self.channels == 3 {
            return self.clone();
        }
        let samples = self.samples.iter().flat_map(|&x| [x; 3]).collect();
        Picture { channels: 3, samples, ..*self }
    }

    /// The picture at another size. `filter` is stretched over the source
    /// pixels when shrinking (antialiased, as in PIL).
    ///
    /// # Errors
    /// If the new size has no pixels or too many.
    pub(super) fn resized(&self, width: usize, height: usize, filter: FilterType) -> Result<Picture> {
        check_pixels(width, height)?;
        if (width, height) == (self.width, self.height) {
            return Ok(self.clone());
        }
        let too_big = |_| invalid!("{} x {} pixels cannot be resized", self.width, self.height);
        let (w, h) =
            (u32::try_from(self.width).map_err(too_big)?, u32::try_from(self.height).map_err(too_big)?);
        let (to_w, to_h) = (u32::try_from(width).map_err(too_big)?, u32::try_from(height).map_err(too_big)?);
        let image = RgbImage::from_raw(w, h, self.to_rgb().samples)
            .ok_or_else(|| invalid!("{w} x {h} pixels cannot be resized"))?;
        let resized = Picture::of(imageops::resize(&image, to_w, to_h, filter));
        Ok(if self.channels == 1 { resized.first_channel() } else { resized })
    }

    /// The first of three channels that are equal.
    fn first_channel(&self) -> Picture {
        let samples = self.samples.iter().step_by(self.channels).copied().collect();
        Picture { channels: 1, samples, ..*self }
    }

    /// The middle of the picture. Where the margin is odd the offset is
    /// rounded half to even, as in torchvision.
    ///
    /// # Errors
    /// If the picture is smaller than the crop.
    pub fn centre_crop(&self, width: usize, height: usize) -> Result<Picture> {
        if width > self.width || height > self.height {
            return Err(invalid!(
                "a crop of {width} x {height} does not fit in {} x {} pixels; resize first",
                self.width,
                self.height
            ));
        }
        let offset = |margin: usize| margin / 2 + usize::from(margin % 4 == 3);
        let (left, top) = (offset(self.width - width), offset(self.height - height));
        let row = |y: usize| {
            let start = (y * self.width + left) * self.channels;
            &self.samples[start..start + width * self.channels]
        };
        let samples = (top..top + height).flat_map(row).copied().collect();
        Ok(Picture { width, height, channels: self.channels, samples })
    }
}

#[cfg(test)]
pub(super) mod tests;
