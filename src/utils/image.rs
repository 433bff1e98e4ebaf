//! Pictures as PNG files, with what made them written inside.

use crate::error::{Error, Result};
use image::{ColorType, DynamicImage};
use std::cell::Cell;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Error as IoError, Seek, Write};
use std::path::Path;

/// The longest keyword that PNG knows, in bytes.
const LONGEST_KEYWORD: usize = 79;

/// How long the packed texts of a PNG may be together once they are unpacked, in bytes.
const LONGEST_TEXT: usize = 1 << 24;

/// Writes `image`, 8-bit colour or grey, to `path`, with `texts` as the file's text chunks: keyword and value, such as
/// `prompt` and `a cat`.
///
/// The file is written beside `path` and renamed, so that `path` never holds half a picture. Texts of ASCII become
/// `tEXt` chunks, others `iTXt`.
///
/// # Errors
/// [`Error::Argument`] for a keyword that PNG does not allow; [`Error::Unsupported`] for other pictures;
/// [`Error::Io`] if the file cannot be written.
pub fn write_png<T: AsRef<str>>(path: &Path, image: &DynamicImage, texts: &[(T, T)]) -> Result<()> {
    let bytes = encode_png(image, texts)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().suffix(".png.part").tempfile_in(folder).map_err(Error::io(path))?;
    file.write_all(&bytes).and_then(|()| readable_by_all(file.as_file())).map_err(Error::io(path))?;
    file.persist(path).map_err(|error| Error::Io { path: path.into(), source: error.error })?;
    Ok(())
}

/// The text chunks of the PNG file at `path`: keywords and values, those of `iTXt` chunks last.
///
/// # Errors
/// [`Error::Io`] if the file cannot be read, or is no PNG.
pub fn read_png_text(path: &Path) -> Result<Vec<(String, String)>> {
    let file = File::open(path).map_err(Error::io(path))?;
    parse_png_text(path, BufReader::new(file))
}

/// As [`read_png_text`], of a file that is open, or in memory; errors name it as `path`.
///
/// # Errors
/// [`Error::Io`] if it is no PNG.
pub fn parse_png_text(path: &Path, file: impl BufRead + Seek) -> Result<Vec<(String, String)>> {
    let failed = |error: png::DecodingError| Error::Io { path: path.into(), source: IoError::other(error) };
    let mut reader = png::Decoder::new(file).read_info().map_err(failed)?;
    // Texts may follow the pixels.
    reader.finish().map_err(failed)?;
    let info = reader.info();
    let latin1 = info.uncompressed_latin1_text.iter().map(|chunk| Ok((chunk.keyword.clone(), chunk.text.clone())));
    // A chunk of a few kilobytes can stand for gigabytes: what is longer than the limit is refused while it is unpacked.
    let room = Cell::new(LONGEST_TEXT);
    let unpacked = |keyword: &str, text: Result<String, png::DecodingError>| {
        let text = text?;
        room.set(room.get().saturating_sub(text.len()));
        Ok((keyword.to_string(), text))
    };
    let compressed = info.compressed_latin1_text.iter().map(|chunk| {
        let mut chunk = chunk.clone();
        unpacked(&chunk.keyword.clone(), chunk.decompress_text_with_limit(room.get()).and_then(|()| chunk.get_text()))
    });
    let utf8 = info.utf8_text.iter().map(|chunk| {
        let mut chunk = chunk.clone();
        unpacked(&chunk.keyword.clone(), chunk.decompress_text_with_limit(room.get()).and_then(|()| chunk.get_text()))
    });
    latin1.chain(compressed).chain(utf8).collect::<Result<_, png::DecodingError>>().map_err(failed)
}

/// The bytes of a PNG file.
fn encode_png<T: AsRef<str>>(image: &DynamicImage, texts: &[(T, T)]) -> Result<Vec<u8>> {
    let color = match image.color() {
        ColorType::L8 => png::ColorType::Grayscale,
        ColorType::Rgb8 => png::ColorType::Rgb,
        other => return Err(Error::Unsupported(format!("a PNG of {other:?}: convert it to Rgb8 or L8"))),
    };
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(BufWriter::new(&mut bytes), image.width(), image.height());
    encoder.set_color(color);
    encoder.set_depth(png::BitDepth::Eight);
    for (keyword, text) in texts {
        check_keyword(keyword.as_ref())?;
        let (keyword, text) = (keyword.as_ref().to_string(), text.as_ref().to_string());
        if text.is_ascii() { encoder.add_text_chunk(keyword, text) } else { encoder.add_itxt_chunk(keyword, text) }
            .map_err(failed)?;
    }
    let mut writer = encoder.write_header().map_err(failed)?;
    writer.write_image_data(image.as_bytes()).map_err(failed)?;
    writer.finish().map_err(failed)?;
    Ok(bytes)
}

fn failed(error: png::EncodingError) -> Error {
    Error::Argument(format!("the picture cannot be written as PNG: {error}"))
}

fn check_keyword(keyword: &str) -> Result<()> {
    let printable = keyword.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic());
    if !printable || keyword.trim() != keyword || !(1..=LONGEST_KEYWORD).contains(&keyword.len()) {
        return Err(Error::Argument(format!(
            "`{keyword}` is no PNG keyword: use 1 to {LONGEST_KEYWORD} ASCII letters"
        )));
    }
    Ok(())
}

/// Temporary files are private; a picture gets the mode that other new files have.
#[cfg(unix)]
fn readable_by_all(file: &File) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(std::fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
fn readable_by_all(_: &File) -> std::io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_TEXTS: [(&str, &str); 0] = [];

    fn gradient() -> DynamicImage {
        image::RgbImage::from_fn(5, 3, |x, y| image::Rgb([x as u8 * 50, y as u8 * 80, 255])).into()
    }

    #[test]
    fn a_picture_comes_back_with_its_texts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cat.png");
        let texts =
            [("prompt", "a cat, high quality"), ("seed", "42"), ("negative prompt", "flou, \u{e9}t\u{e9} \u{732b}")];
        write_png(&path, &gradient(), &texts).unwrap();
        assert_eq!(image::open(&path).unwrap(), gradient());
        let read = read_png_text(&path).unwrap();
        assert_eq!(read, texts.map(|(keyword, text)| (keyword.to_string(), text.to_string())));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_write_leaves_the_old_picture() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cat.png");
        write_png(&path, &gradient(), &NO_TEXTS).unwrap();
        let before = std::fs::read(&path).unwrap();
        for keyword in ["", " seed", "se\u{e9}d", &"k".repeat(80)] {
            let error = write_png(&path, &DynamicImage::new_rgb8(2, 2), &[(keyword, "1")]).unwrap_err();
            assert!(matches!(error, Error::Argument(_)), "{error}");
        }
        assert_eq!(std::fs::read(&path).unwrap(), before);
        assert!(matches!(write_png(&folder.path().join("no/cat.png"), &gradient(), &NO_TEXTS), Err(Error::Io { .. })));
    }

    #[test]
    fn a_grey_picture_stays_grey() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("grey.png");
        let grey = DynamicImage::from(image::GrayImage::from_fn(4, 2, |x, y| image::Luma([(x * 60 + y) as u8])));
        write_png(&path, &grey, &NO_TEXTS).unwrap();
        assert_eq!(image::open(&path).unwrap(), grey);
        let error = write_png(&path, &DynamicImage::new_rgba8(1, 1), &NO_TEXTS).unwrap_err();
        assert!(matches!(error, Error::Unsupported(_)), "{error}");
    }

    #[test]
    fn a_file_that_is_no_png_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cat.png");
        std::fs::write(&path, "meow").unwrap();
        let error = read_png_text(&path).unwrap_err().to_string();
        assert!(error.contains("cat.png"), "{error}");
    }
}
