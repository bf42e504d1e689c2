//! Which keys may have a row in `consents`: a Bloom filter in layers, read and written without a lock.
//!
//! "No" is certain and costs some loads from memory; that is the answer for nearly everything a flood of strangers sends.
//! "Perhaps" is for the cache and the store to decide. What is revoked stays in here until the next start, which costs a
//! question to the store and nothing else.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use super::index::Key;

/// Keys of the first layer. Each further one has room for so many times more as ...
const FIRST: usize = 4096;
/// ... this: a server pays for the keys that it has.
const GROWTH: usize = 8;
/// Together some 19 million keys and 38 MB. What is beyond makes "perhaps" more frequent.
const LAYERS: usize = 5;
/// Bits for each key: with [`PROBES`] one stranger in some 400 is a "perhaps".
const BITS: usize = 16;
const PROBES: u64 = 4;

#[derive(Debug)]
struct Layer {
    words: Box<[AtomicU64]>,
    keys: AtomicUsize,
    most: usize,
}

impl Layer {
    fn new(most: usize) -> Layer {
        let words = (0..most * BITS / 64).map(|_| AtomicU64::new(0)).collect();
        Layer { words, keys: AtomicUsize::new(0), most }
    }

    /// Where the bits of a key are: word and mask. A key is the output of an HMAC, so its bytes are as good as any hash.
    fn places(&self, key: &Key) -> impl Iterator<Item = (&AtomicU64, u64)> {
        let (first, step) = u128::from_le_bytes(*key).to_halves();
        let bits = self.words.len() as u64 * 64;
        (0..PROBES).map(move |probe| {
            let bit = first.wrapping_add(step.wrapping_mul(probe)) % bits;
            (&self.words[usize::try_from(bit / 64).unwrap_or(0)], 1 << (bit % 64))
        })
    }

    fn contains(&self, key: &Key) -> bool {
        self.places(key).all(|(word, mask)| word.load(Ordering::SeqCst) & mask != 0)
    }
}

trait Halves {
    fn to_halves(self) -> (u64, u64);
}

impl Halves for u128 {
    /// The second is odd, so that the places of a key differ.
    fn to_halves(self) -> (u64, u64) {
        (self as u64, (self >> 64) as u64 | 1)
    }
}

/// The filter. Before [`Filter::complete`] everything is "perhaps".
#[derive(Debug, Default)]
pub(super) struct Filter {
    layers: [OnceLock<Layer>; LAYERS],
    is_complete: AtomicBool,
}

impl Filter {
    /// A key has, or is about to have, a row.
    pub(super) fn insert(&self, key: &Key) {
        if self.contains(key) {
            return;
        }
        let mut most = FIRST;
        for (number, layer) in self.layers.iter().enumerate() {
            let layer = layer.get_or_init(|| Layer::new(most));
            if number + 1 == LAYERS || layer.keys.load(Ordering::Relaxed) < layer.most {
                layer.keys.fetch_add(1, Ordering::Relaxed);
                for (word, mask) in layer.places(key) {
                    word.fetch_or(mask, Ordering::SeqCst);
                }
                return;
            }
            most *= GROWTH;
        }
    }

    /// Every row there is has been inserted.
    pub(super) fn complete(&self) {
        self.is_complete.store(true, Ordering::SeqCst);
    }

    /// The key certainly has no row.
    pub(super) fn excludes(&self, key: &Key) -> bool {
        self.is_complete.load(Ordering::SeqCst) && !self.contains(key)
    }

    fn contains(&self, key: &Key) -> bool {
        self.layers.iter().map_while(OnceLock::get).any(|layer| layer.contains(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u32) -> Key {
        let mut key = Key::default();
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &number.to_le_bytes());
        key.copy_from_slice(&digest.as_ref()[..16]);
        key
    }

    #[test]
    fn nothing_is_certain_before_all_rows_were_read() {
        let filter = Filter::default();
        filter.insert(&key(1));
        assert!(!filter.excludes(&key(1)) && !filter.excludes(&key(2)));
        filter.complete();
        assert!(!filter.excludes(&key(1)) && filter.excludes(&key(2)));
    }

    #[test]
    fn no_key_is_forgotten_and_few_others_are_taken_for_one() {
        let filter = Filter::default();
        filter.complete();
        // Three layers.
        let many = 50_000;
        for number in 0..many {
            filter.insert(&key(number));
            filter.insert(&key(number));
        }
        assert!((0..many).all(|number| !filter.excludes(&key(number))));
        let wrong = (many..2 * many).filter(|number| !filter.excludes(&key(*number))).count();
        assert!(wrong < many as usize / 100, "{wrong}");
        let layers: Vec<&Layer> = filter.layers.iter().filter_map(OnceLock::get).collect();
        assert_eq!(layers.len(), 3, "they grow with what is in them");
        // What is there already takes no place again.
        let keys: usize = layers.iter().map(|layer| layer.keys.load(Ordering::Relaxed)).sum();
        assert!(keys <= many as usize, "{keys}");
    }
}
