//! One integral over an interval, with the roundings of `scipy.integrate.quad`.

/// The nodes of the 21-point Kronrod rule on [-1, 1], the ten that are above 0, from the outside in. Every second
/// one, from the second on, is of the 10-point Gauss rule.
const NODES: [f64; 10] = [
    0.995_657_163_025_808_1,
    0.973_906_528_517_171_7,
    0.930_157_491_355_708_2,
    0.865_063_366_688_984_5,
    0.780_817_726_586_416_9,
    0.679_409_568_299_024_4,
    0.562_757_134_668_604_7,
    0.433_395_394_129_247_2,
    0.294_392_862_701_460_2,
    0.148_874_338_981_631_22,
];

/// Their weights, and that of 0.
const WEIGHTS: [f64; 11] = [
    0.011_694_638_867_371_874,
    0.032_558_162_307_964_725,
    0.054_755_896_574_351_995,
    0.075_039_674_810_919_96,
    0.093_125_454_583_697_6,
    0.109_387_158_802_297_64,
    0.123_491_976_262_065_84,
    0.134_709_217_311_473_34,
    0.142_775_938_577_060_09,
    0.147_739_104_901_338_49,
    0.149_445_554_002_916_9,
];

/// The integral of `f` from `low` to `high` by one application of the 21-point rule.
///
/// QUADPACK's QAGS, which SciPy calls, begins with it and halves the interval only where its error is too large. For a
/// polynomial of low degree without a change of sign it never is.
pub(super) fn gauss_kronrod(f: impl Fn(f64) -> f64, low: f64, high: f64) -> f64 {
    let (centre, half_length) = (0.5 * (low + high), 0.5 * (high - low));
    let mut sum = WEIGHTS[10] * f(centre);
    // In the order of QUADPACK: first the nodes of the Gauss rule.
    for node in (1..10).step_by(2).chain((0..10).step_by(2)) {
        let offset = half_length * NODES[node];
        sum += WEIGHTS[node] * (f(centre - offset) + f(centre + offset));
    }
    sum * half_length
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cubic_is_integrated_exactly() {
        let integral = gauss_kronrod(|x| 4.0 * x * x * x - x + 2.0, 1.0, 3.0);
        assert!((integral - 80.0).abs() < 1e-12, "{integral}");
        assert!((gauss_kronrod(|_| 1.0, 0.3, 0.7) - 0.4).abs() < 1e-16);
    }
}
