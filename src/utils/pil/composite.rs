//! Pictures over each other.

use super::Raster;
use super::convert::{divided, muldiv255, premultiplied};

/// What `mask`, a grey picture of the same size, shows of `image`, which can be transparent.
pub(crate) fn masked(image: &Raster, mask: &Raster) -> Raster {
    let mut shown = premultiplied(image);
    for (pixel, share) in shown.bytes.chunks_exact_mut(4).zip(&mask.bytes) {
        for value in pixel {
            *value = muldiv255(*value, *share);
        }
    }
    divided(&shown)
}

/// `over` over `image`, both of the same size with transparency.
pub(crate) fn alpha_composite(image: &Raster, over: &Raster) -> Raster {
    let bytes = image.pixels().zip(over.pixels()).flat_map(|(below, above)| composite(below, above)).collect();
    Raster { width: image.width, height: image.height, channels: 4, bytes }
}

fn composite(below: &[u8], above: &[u8]) -> [u8; 4] {
    const PRECISION_BITS: u32 = 7;
    if above[3] == 0 {
        return [below[0], below[1], below[2], below[3]];
    }
    let shifted = |value: u32| ((value >> 8) + value) >> 8;
    let alpha = u32::from(above[3]);
    let blend = u32::from(below[3]) * (255 - alpha);
    let out_alpha = alpha * 255 + blend;
    let share = alpha * 255 * 255 * (1 << PRECISION_BITS) / out_alpha;
    let rest = 255 * (1 << PRECISION_BITS) - share;
    let mixed = |channel: usize| {
        let sum = u32::from(above[channel]) * share + u32::from(below[channel]) * rest;
        (shifted(sum + (0x80 << PRECISION_BITS)) >> PRECISION_BITS) as u8
    };
    [mixed(0), mixed(1), mixed(2), shifted(out_alpha + 0x80) as u8]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hides_all_hides_all_and_nothing_hides_nothing() {
        let pixel = |bytes: [u8; 4]| Raster { width: 1, height: 1, channels: 4, bytes: bytes.to_vec() };
        let below = pixel([10, 20, 30, 255]);
        assert_eq!(alpha_composite(&below, &pixel([200, 100, 50, 255])).bytes, [200, 100, 50, 255]);
        assert_eq!(alpha_composite(&below, &pixel([200, 100, 50, 0])), below);
        let mask = |share: u8| Raster { width: 1, height: 1, channels: 1, bytes: vec![share] };
        assert_eq!(masked(&below, &mask(255)), below);
        assert_eq!(masked(&below, &mask(0)).bytes[3], 0);
    }
}
