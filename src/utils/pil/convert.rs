//! From one mode to another.

use super::Raster;

/// `a b / 255`, rounded.
pub(super) fn muldiv255(a: u8, b: u8) -> u8 {
    let product = u32::from(a) * u32::from(b) + 128;
    (((product >> 8) + product) >> 8) as u8
}

/// The brightness of a colour (ITU-R 601-2).
fn luma(red: u8, green: u8, blue: u8) -> u8 {
    let sum = u32::from(red) * 19595 + u32::from(green) * 38470 + u32::from(blue) * 7471 + 0x8000;
    (sum >> 16) as u8
}

/// In colour; transparency is left out.
pub(crate) fn to_rgb(image: &Raster) -> Raster {
    match image.channels {
        1 | 2 => image.map(|pixel| [pixel[0]; 3]),
        3 => image.clone(),
        _ => image.map(|pixel| [pixel[0], pixel[1], pixel[2]]),
    }
}

/// In grey; transparency is left out.
pub(crate) fn to_grey(image: &Raster) -> Raster {
    match image.channels {
        1 => image.clone(),
        2 => image.map(|pixel| [pixel[0]]),
        _ => image.map(|pixel| [luma(pixel[0], pixel[1], pixel[2])]),
    }
}

/// In colour with transparency: what had none hides all.
pub(crate) fn to_rgba(image: &Raster) -> Raster {
    match image.channels {
        1 => image.map(|pixel| [pixel[0], pixel[0], pixel[0], 255]),
        2 => image.map(|pixel| [pixel[0], pixel[0], pixel[0], pixel[1]]),
        3 => image.map(|pixel| [pixel[0], pixel[1], pixel[2], 255]),
        _ => image.clone(),
    }
}

/// The negative of a grey picture.
pub(crate) fn invert(image: &Raster) -> Raster {
    image.map(|pixel| [255 - pixel[0]])
}

/// Colours multiplied by the transparency (`RGBA` to `RGBa`, `LA` to `La`).
pub(super) fn premultiplied(image: &Raster) -> Raster {
    match image.channels {
        2 => image.map(|pixel| [muldiv255(pixel[0], pixel[1]), pixel[1]]),
        _ => image.map(|pixel| {
            let alpha = pixel[3];
            [muldiv255(pixel[0], alpha), muldiv255(pixel[1], alpha), muldiv255(pixel[2], alpha), alpha]
        }),
    }
}

/// The way back from [`premultiplied`].
pub(super) fn divided(image: &Raster) -> Raster {
    let divide = |colour: u8, alpha: u8| match alpha {
        0 | 255 => colour,
        _ => (255 * u32::from(colour) / u32::from(alpha)).min(255) as u8,
    };
    match image.channels {
        2 => image.map(|pixel| [divide(pixel[0], pixel[1]), pixel[1]]),
        _ => image.map(|pixel| {
            let alpha = pixel[3];
            [divide(pixel[0], alpha), divide(pixel[1], alpha), divide(pixel[2], alpha), alpha]
        }),
    }
}
