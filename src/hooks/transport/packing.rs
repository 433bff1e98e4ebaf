//! Where weights wait on the host, and which of that memory is pinned.

use super::image::Image;
use super::staging::Staging;
use super::{Lane, TransferDevice};
use crate::error::{Error, Result};
use crate::hooks::residency::Weight;
use crate::torch::{PAGE, trim_host_memory, whole_pages};
use tch::Tensor;

/// How long a piece of pinned memory becomes before another is begun, in bytes. The pieces are filled one after the other,
/// so that this, or one group, is how far memory rises above the model's size meanwhile.
const PIECE: usize = 64 << 20;

/// The longest buffer for weights that are not pinned ahead, in bytes: beyond it, copies do not get faster.
const LONGEST_STAGING: usize = 64 << 20;

/// What is pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::hooks) struct Pinning {
    /// Whether weights wait in pinned memory, or pass through some on their way.
    pub(in crate::hooks) ahead: bool,
    /// How much may be pinned in all, in bytes.
    pub(in crate::hooks) limit: Option<usize>,
}

impl Pinning {
    /// How much may be pinned ahead, and how long each of the two buffers for the rest is.
    fn budget(self, images: &[Image]) -> (usize, usize) {
        let largest = images.iter().map(|image| image.bytes).max().unwrap_or(PAGE);
        let staging = largest.next_multiple_of(PAGE).min(LONGEST_STAGING);
        let staging = self.limit.map_or(staging, |limit| staging.min(limit / 4 / PAGE * PAGE)).max(PAGE);
        match (self.ahead, self.limit) {
            (false, _) => (0, staging),
            (true, None) => (usize::MAX, staging),
            (true, Some(limit)) => {
                let fits = pieces(images, limit).iter().map(Vec::len).sum::<usize>() == images.len();
                (if fits { limit } else { limit.saturating_sub(2 * staging) }, staging)
            }
        }
    }
}

/// Which groups are pinned, each inner list in one piece of memory: in order, as long as the pieces take no more than
/// `budget` bytes.
fn pieces(images: &[Image], budget: usize) -> Vec<Vec<usize>> {
    let (mut pieces, mut closed, mut open): (Vec<Vec<usize>>, usize, usize) = (vec![], 0, 0);
    for (group, image) in images.iter().enumerate().filter(|(_, image)| !image.is_in_file()) {
        let (begun, length) = match open + image.bytes {
            together if open > 0 && together <= PIECE => (false, together),
            _ => (true, image.bytes),
        };
        let before = if begun { closed + open.next_multiple_of(PAGE) } else { closed };
        if before.saturating_add(length.next_multiple_of(PAGE)) > budget {
            continue;
        }
        (closed, open) = (before, length);
        match pieces.last_mut() {
            Some(piece) if !begun => piece.push(group),
            _ => pieces.push(vec![group]),
        }
    }
    pieces
}

/// A group that is ready to be sent.
#[derive(Debug)]
pub(super) struct Cargo {
    pub(super) image: Image,
    /// The bytes of the image in pinned memory, where the weights are views of them.
    pinned: Option<Tensor>,
}

/// Where all groups wait.
#[derive(Debug)]
pub(super) struct Hold<D: TransferDevice> {
    cargo: Vec<Cargo>,
    /// Before the memory it pins: dropped in this order.
    pinned: Vec<D::Pinned>,
    staging: Option<Staging<D>>,
}

impl<D: TransferDevice> Hold<D> {
    /// Nothing.
    pub(super) fn empty() -> Self {
        Self { cargo: vec![], pinned: vec![], staging: None }
    }

    /// Packs all `groups`. Weights that are pinned ahead move into the pinned memory, which takes the place of what they
    /// had; if that fails midway, they are the same numbers in either place.
    pub(super) fn pack(device: &D, groups: &[Vec<Weight>], pinning: Pinning) -> Result<Self> {
        groups.iter().flatten().try_for_each(Weight::close_gaps)?;
        let images = groups.iter().map(|weights| Image::of(weights)).collect::<Result<Vec<_>>>()?;
        let (budget, staging) = pinning.budget(&images);
        let mut hold = Self::empty();
        let pieces = if budget == 0 { vec![] } else { pieces(&images, budget) };
        hold.cargo = images.into_iter().map(|image| Cargo { image, pinned: None }).collect();
        for piece in pieces {
            let bytes = piece.iter().filter_map(|&group| hold.cargo.get(group)).map(|cargo| cargo.image.bytes).sum();
            let memory = whole_pages(bytes)?;
            let mut start = 0;
            for group in piece {
                let (Some(cargo), Some(weights)) = (hold.cargo.get_mut(group), groups.get(group)) else { continue };
                let bytes = memory.f_narrow(0, start as i64, cargo.image.bytes as i64)?;
                start += cargo.image.bytes;
                move_in(&mut cargo.image, weights, &bytes)?;
                cargo.pinned = Some(bytes);
            }
            // Not before the pages are written, so that they are taken one by one as the weights leave others.
            hold.pinned.push(device.pin(&memory)?);
            trim_host_memory();
        }
        if hold.cargo.iter().any(|cargo| cargo.pinned.is_none()) {
            hold.staging = Some(Staging::new(device, staging)?);
        }
        Ok(hold)
    }

    pub(super) fn image(&self, group: usize) -> Option<&Image> {
        self.cargo.get(group).map(|cargo| &cargo.image)
    }

    /// Sends `group` to `buffer`, which is at least as long as it is.
    pub(super) fn send(&mut self, device: &D, group: usize, weights: &[Weight], buffer: &Tensor) -> Result<()> {
        match (self.cargo.get(group), &mut self.staging) {
            (Some(Cargo { image, pinned: Some(bytes) }), _) => {
                device.copy(bytes, &buffer.f_narrow(0, 0, image.bytes as i64)?)
            }
            (Some(Cargo { image, pinned: None }), Some(staging)) => staging.send(device, image, weights, buffer),
            _ => Err(Error::Argument(format!("group {group} was not packed"))),
        }
    }

    /// Whether all weights still wait where they were packed.
    pub(super) fn holds(&self, groups: &[Vec<Weight>]) -> Result<bool> {
        if self.cargo.len() != groups.len() {
            return Ok(false);
        }
        for (cargo, weights) in self.cargo.iter().zip(groups) {
            if !cargo.image.holds(weights)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Gives all pinned memory back, once the device has read what it was given. Weights stay where they are.
    pub(super) fn unpin(&mut self, device: &D) {
        if self.pinned.is_empty() && self.staging.is_none() {
            return;
        }
        if let Err(error) = device.record(Lane::Copy).and_then(|event| device.synchronize(&event)) {
            tracing::debug!(target: "tch_diffusers::hooks", "memory is unpinned, though copies cannot be waited for: {error}");
        }
        *self = Self::empty();
    }
}

/// Moves weights into `bytes`, and notes where they are then.
fn move_in(image: &mut Image, weights: &[Weight], bytes: &Tensor) -> Result<()> {
    for ((weight, view), part) in weights.iter().zip(image.views(bytes)?).zip(&mut image.parts) {
        part.address = view.data_ptr() as usize;
        weight.move_to(view)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images(sizes: &[usize]) -> Vec<Image> {
        sizes.iter().map(|&bytes| Image { bytes, parts: vec![] }).collect()
    }

    #[test]
    fn groups_share_pieces_up_to_a_length() {
        let images = images(&[PIECE / 2, PIECE / 2, 256, 2 * PIECE, 256]);
        assert_eq!(pieces(&images, usize::MAX), [vec![0, 1], vec![2], vec![3], vec![4]]);
    }

    #[test]
    fn what_is_pinned_stays_within_the_limit() {
        let sizes = [3 * PAGE, 256, 40 * PAGE, 2 * PAGE, 512];
        for limit in (4..60).map(|pages| pages * PAGE) {
            let images = images(&sizes);
            let (budget, staging) = Pinning { ahead: true, limit: Some(limit) }.budget(&images);
            let pieces = pieces(&images, budget);
            let pinned: usize = pieces
                .iter()
                .map(|piece| piece.iter().map(|&group| sizes[group]).sum::<usize>().next_multiple_of(PAGE))
                .sum();
            let all = pieces.iter().map(Vec::len).sum::<usize>() == sizes.len();
            let total = if all { pinned } else { pinned + 2 * staging };
            assert!(total <= limit, "{total} of {limit}");
            assert_eq!(all, limit >= 46 * PAGE);
        }
    }

    #[test]
    fn nothing_is_pinned_ahead_where_weights_pass_through() {
        let (budget, staging) = Pinning { ahead: false, limit: None }.budget(&images(&[700, 9000]));
        assert_eq!((budget, staging), (0, 3 * PAGE));
    }
}
