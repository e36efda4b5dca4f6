//! Start times of the attempts that nobody has heard from, oldest first. No allocation once it has grown.

const NONE: u32 = u32::MAX;

/// A linked list in a vector: attempts start in order and end in any order.
#[derive(Debug)]
pub(crate) struct Outstanding {
    nodes: Vec<Node>,
    oldest: u32,
    newest: u32,
    free: u32,
}

#[derive(Clone, Copy, Debug)]
struct Node {
    start: u64,
    before: u32,
    after: u32,
}

impl Default for Outstanding {
    fn default() -> Self {
        Self {
            nodes: Vec::new(),
            oldest: NONE,
            newest: NONE,
            free: NONE,
        }
    }
}

impl Outstanding {
    #[inline]
    pub(crate) fn oldest(&self) -> Option<u64> {
        self.nodes.get(self.oldest as usize).map(|node| node.start)
    }

    #[inline]
    pub(crate) fn push(&mut self, start: u64) -> u32 {
        let node = Node {
            start,
            before: self.newest,
            after: NONE,
        };
        let at = self.place(node);
        match self.nodes.get_mut(self.newest as usize) {
            Some(newest) => newest.after = at,
            None => self.oldest = at,
        }
        self.newest = at;
        at
    }

    #[inline]
    pub(crate) fn remove(&mut self, at: u32) -> u64 {
        let Node {
            start,
            before,
            after,
        } = self.nodes[at as usize];
        match self.nodes.get_mut(before as usize) {
            Some(node) => node.after = after,
            None => self.oldest = after,
        }
        match self.nodes.get_mut(after as usize) {
            Some(node) => node.before = before,
            None => self.newest = before,
        }
        self.nodes[at as usize].after = self.free;
        self.free = at;
        start
    }

    #[inline]
    fn place(&mut self, node: Node) -> u32 {
        if self.free == NONE {
            self.nodes.push(node);
            return self.nodes.len() as u32 - 1;
        }
        let at = self.free;
        self.free = self.nodes[at as usize].after;
        self.nodes[at as usize] = node;
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_the_smallest_that_is_left() {
        let mut list = Outstanding::default();
        let mut model = Vec::new();
        let mut coin = 7u64;
        for start in 0..1000u64 {
            model.push((start, list.push(start)));
            coin = coin.wrapping_mul(6364136223846793005).wrapping_add(1);
            if (coin >> 33) % 5 < 3 {
                let (start, at) = model.swap_remove((coin >> 40) as usize % model.len());
                assert_eq!(list.remove(at), start);
            }
            assert_eq!(list.oldest(), model.iter().map(|&(start, _)| start).min());
        }
    }
}
