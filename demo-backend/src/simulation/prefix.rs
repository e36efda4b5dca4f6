//! Which beginnings of prompts are still known from earlier ones.

use std::collections::{HashMap, VecDeque};

use crate::rng::{hash, mix};

/// Blocks of 16 tokens, as vLLM keeps them.
const BLOCK_TOKENS: u32 = 16;
const BLOCK_BYTES: usize = BLOCK_TOKENS as usize * super::words::BYTES_PER_TOKEN;

/// Keeps the blocks of prompts that were seen last; a block counts only together with all before it.
#[derive(Debug)]
pub(crate) struct PrefixCache {
    capacity: usize,
    /// When each block was touched last.
    blocks: HashMap<u64, u64>,
    /// Touches in order, also those that a later touch of the same block has made void.
    touches: VecDeque<(u64, u64)>,
    clock: u64,
}

impl PrefixCache {
    /// Room for this many blocks of 16 tokens.
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            blocks: HashMap::new(),
            touches: VecDeque::new(),
            clock: 0,
        }
    }

    /// How many tokens of the prompt's beginning are known, and from now on all of its whole blocks.
    pub(crate) fn look_up(&mut self, prompt: &str) -> u32 {
        if self.capacity == 0 {
            return 0;
        }
        let mut chain = 0;
        let hashes: Vec<u64> = prompt
            .as_bytes()
            .chunks_exact(BLOCK_BYTES)
            .take(self.capacity)
            .map(|block| {
                chain = mix(chain ^ hash(block));
                chain
            })
            .collect();
        let known = hashes
            .iter()
            .take_while(|hash| self.blocks.contains_key(*hash))
            .count();
        // The beginning last: it is worth more than what follows it, which is of no use without it.
        for hash in hashes.into_iter().rev() {
            self.touch(hash);
        }
        self.evict();
        known as u32 * BLOCK_TOKENS
    }

    fn touch(&mut self, hash: u64) {
        self.clock += 1;
        self.blocks.insert(hash, self.clock);
        self.touches.push_back((self.clock, hash));
    }

    fn evict(&mut self) {
        while self.blocks.len() > self.capacity {
            let Some((touched, hash)) = self.touches.pop_front() else {
                return;
            };
            if self.blocks.get(&hash) == Some(&touched) {
                self.blocks.remove(&hash);
            }
        }
        if self.touches.len() > 2 * self.capacity {
            let blocks = &self.blocks;
            self.touches
                .retain(|(touched, hash)| blocks.get(hash) == Some(touched));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn prompt(blocks: &[u8]) -> String {
        blocks
            .iter()
            .map(|block| char::from(b'a' + block).to_string().repeat(BLOCK_BYTES))
            .collect()
    }

    #[test]
    fn what_two_prompts_begin_with_is_known_the_second_time() {
        let mut cache = PrefixCache::new(100);
        assert_eq!(cache.look_up(&prompt(&[1, 2, 3])), 0);
        assert_eq!(cache.look_up(&prompt(&[1, 2, 4])), 32);
        assert_eq!(
            cache.look_up(&prompt(&[2, 3])),
            0,
            "in the middle it is no beginning"
        );
        assert_eq!(cache.look_up(&(prompt(&[1]) + "and more")), 16);
    }

    #[test]
    fn what_was_not_asked_for_the_longest_is_forgotten_first() {
        let mut cache = PrefixCache::new(2);
        cache.look_up(&prompt(&[1]));
        cache.look_up(&prompt(&[2]));
        cache.look_up(&prompt(&[1]));
        cache.look_up(&prompt(&[3]));
        assert_eq!(cache.look_up(&prompt(&[1])), 16);
        assert_eq!(cache.look_up(&prompt(&[2])), 0);
    }

    #[test]
    fn the_end_of_a_prompt_is_forgotten_before_its_beginning() {
        let mut cache = PrefixCache::new(3);
        cache.look_up(&prompt(&[1, 2, 3]));
        cache.look_up(&prompt(&[9]));
        assert_eq!(cache.look_up(&prompt(&[1, 2, 3])), 32);
    }

    #[test]
    fn no_capacity_knows_nothing() {
        let mut cache = PrefixCache::new(0);
        assert_eq!(cache.look_up(&prompt(&[1])), 0);
        assert_eq!(cache.look_up(&prompt(&[1])), 0);
    }

    proptest! {
        /// Against a list that is sorted anew at each step.
        #[test]
        fn it_knows_what_a_sorted_list_knows(
            prompts in proptest::collection::vec(proptest::collection::vec(0_u8..5, 0..5), 0..200),
            capacity in 1_usize..8,
        ) {
            let mut cache = PrefixCache::new(capacity);
            let mut list: Vec<Vec<u8>> = Vec::new();
            for blocks in prompts {
                let prefixes: Vec<Vec<u8>> =
                    (1..=blocks.len().min(capacity)).map(|end| blocks[..end].to_vec()).collect();
                let known = prefixes.iter().take_while(|prefix| list.contains(prefix)).count();
                prop_assert_eq!(cache.look_up(&prompt(&blocks)) as usize, known * 16);
                for prefix in prefixes.into_iter().rev() {
                    list.retain(|other| *other != prefix);
                    list.push(prefix);
                }
                let excess = list.len().saturating_sub(capacity);
                list.drain(..excess);
                prop_assert!(cache.touches.len() <= 2 * capacity);
            }
        }
    }
}
