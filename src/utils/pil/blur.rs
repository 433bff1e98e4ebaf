//! Gaussian blur, as three box blurs whose boxes have soft edges (Gwosdek et al. 2011, "Theoretical Foundations of Gaussian
//! Convolution by Extended Box Filtering").

use super::Raster;

const PASSES: usize = 3;

/// `image` blurred by a Gaussian of standard deviation `radius`, in pixels.
pub(crate) fn gaussian_blur(image: &Raster, radius: f32) -> Raster {
    if radius <= 0.0 || image.bytes.is_empty() {
        return image.clone();
    }
    let weights = Weights::new(box_radius(radius));
    let mut blurred = image.clone();
    for _ in 0..PASSES {
        let stride = blurred.width * blurred.channels;
        for row in blurred.bytes.chunks_exact_mut(stride) {
            blur_lines(row, image.width, image.channels, [image.channels, 1], weights);
        }
    }
    let stride = image.width * image.channels;
    for _ in 0..PASSES {
        blur_lines(&mut blurred.bytes, image.height, stride, [stride, 1], weights);
    }
    blurred
}

/// The radius of a box whose repeated blur is the Gaussian's.
fn box_radius(radius: f32) -> f32 {
    let sigma2 = radius * radius / PASSES as f32;
    let length = (12.0 * f64::from(sigma2) + 1.0).sqrt() as f32;
    let whole = ((f64::from(length) - 1.0) / 2.0).floor() as f32;
    let fraction = (2.0 * whole + 1.0) * (whole * (whole + 1.0) - 3.0 * sigma2);
    whole + fraction / (6.0 * (sigma2 - (whole + 1.0) * (whole + 1.0)))
}

/// The weights of a box's pixels, of 24 bits after the point.
#[derive(Clone, Copy, Debug)]
struct Weights {
    radius: usize,
    inside: u32,
    edge: u32,
}

impl Weights {
    fn new(radius: f32) -> Self {
        const ONE: u32 = 1 << 24;
        let whole = radius as u32;
        let inside = (ONE as f32 / (radius * 2.0 + 1.0)) as u32;
        Self { radius: whole as usize, inside, edge: (ONE - (whole * 2 + 1) * inside) / 2 }
    }
}

/// Blurs `lines` lines of `length` values that lie side by side: value by value `between` apart, line by line `apart`.
fn blur_lines(values: &mut [u8], length: usize, lines: usize, [between, apart]: [usize; 2], weights: Weights) {
    let Weights { radius, inside, edge } = weights;
    let mut line = vec![0; length];
    for number in 0..lines {
        for (place, value) in line.iter_mut().enumerate() {
            *value = u32::from(values[place * between + number * apart]);
        }
        let last = length - 1;
        // Beyond its ends a line goes on as it ends.
        let mut sum = line[0] * (radius as u32 + 1) + (0..radius).map(|place| line[place.min(last)]).sum::<u32>();
        for place in 0..length {
            let (before, after) = (place.saturating_sub(radius + 1), place + radius);
            sum = sum + line[after.min(last)] - line[before];
            let edges = line[before] + line[(after + 1).min(last)];
            let blurred = (sum * inside + edges * edge + (1 << 23)) >> 24;
            values[place * between + number * apart] = blurred as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_picture_stays_plain() {
        let plain = Raster { width: 9, height: 3, channels: 3, bytes: vec![77; 81] };
        for radius in [0.5, 2.0, 4.0, 33.0] {
            assert_eq!(gaussian_blur(&plain, radius), plain, "{radius}");
        }
    }

    #[test]
    fn a_point_spreads_evenly_to_all_sides() {
        let mut point = Raster::black(9, 9, 1);
        point.bytes[40] = 255;
        let blurred = gaussian_blur(&point, 1.0);
        assert!(blurred.bytes[40] > blurred.bytes[41] && blurred.bytes[41] > 0);
        for other in [39, 31, 49] {
            assert_eq!(blurred.bytes[41], blurred.bytes[other]);
        }
    }
}
