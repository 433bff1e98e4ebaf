//! SentencePiece's compiled normalisation, held to what it may be before it is used.
//!
//! The format is that of `spm_precompiled`: a length, a double-array trie (Aoe 1989) from text to places, and what stands at
//! these places. That crate trusts the trie; one from a broken file would end the process.

use crate::error::{Error, Result};
use tokenizers::normalizers::Precompiled;

/// The normaliser of these bytes.
///
/// # Errors
/// [`Error::Tokenizer`] if they are broken.
pub(super) fn charsmap(bytes: &[u8]) -> Result<Precompiled> {
    check(bytes).ok_or_else(|| Error::Tokenizer("the normaliser (`precompiled_charsmap`) is broken".into()))?;
    Precompiled::from(bytes).map_err(|error| Error::Tokenizer(error.to_string()))
}

/// `None` if a look-up in the trie could leave it, or find a place where no text begins.
fn check(bytes: &[u8]) -> Option<()> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    let (trie, texts) = rest.split_at_checked(length)?;
    if length % 4 != 0 {
        return None;
    }
    let texts = std::str::from_utf8(texts).ok()?;
    let units: Vec<u32> =
        trie.chunks_exact(4).map(|unit| u32::from_le_bytes([unit[0], unit[1], unit[2], unit[3]])).collect();
    let base = |place: usize, unit: u32| place ^ (((unit >> 10) << ((unit & (1 << 9)) >> 6)) as usize);
    let mut seen = vec![false; units.len()];
    let mut open = vec![base(0, *units.first()?)];
    while let Some(node) = open.pop() {
        for byte in 1..=0xff {
            let place = node ^ byte;
            let unit = *units.get(place)?;
            if unit & ((1 << 31) | 0xff) != byte as u32 || std::mem::replace(&mut seen[place], true) {
                continue;
            }
            let child = base(place, unit);
            if unit & (1 << 8) != 0 {
                let text = *units.get(child)? & ((1 << 31) - 1);
                texts.is_char_boundary(text as usize).then_some(())?;
            }
            open.push(child);
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 256 units in which `a` leads to a text, and the texts.
    fn trie(place_of_text: u32, texts: &[u8]) -> Vec<u8> {
        let mut units = vec![0u32; 512];
        units[0] = 256 << 10;
        units[256 ^ 0x61] = 0x61 | (1 << 8) | ((0x61 ^ 0x02) << 10);
        units[256 ^ 0x02] = (1 << 31) | place_of_text;
        let trie: Vec<u8> = units.iter().flat_map(|unit| unit.to_le_bytes()).collect();
        [&(trie.len() as u32).to_le_bytes()[..], &trie, texts].concat()
    }

    #[test]
    fn a_sound_trie_is_used() {
        assert_eq!(charsmap(&trie(2, b"x\0yz\0")).unwrap().normalize_string("cab"), "cyzb");
    }

    #[test]
    fn broken_tries_are_refused() {
        assert!(charsmap(&trie(9, b"x\0yz\0")).is_err());
        assert!(charsmap(&trie(1, "é\0".as_bytes())).is_err());
        assert!(charsmap(&trie(0, &[0xff])).is_err());
        let mut out_of_bounds = trie(0, b"x\0");
        out_of_bounds[4..8].copy_from_slice(&(4096u32 << 10).to_le_bytes());
        assert!(charsmap(&out_of_bounds).is_err());
        for bytes in [&[][..], &[0, 0, 0, 0], &[255, 255, 255, 255, 0], &[4, 0, 0, 0, 1]] {
            assert!(charsmap(bytes).is_err(), "{bytes:?}");
        }
    }
}
