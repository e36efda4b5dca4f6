//! Which of many endpoints one of many gateways uses.

use std::{collections::HashSet, error::Error, fmt};

/// Picks for each of many gateways the same few of many endpoints each time, so that not all keep connections to all.
///
/// Endpoints are dealt like cards: each gateway in turn takes those that it likes best of what is left, and when
/// nothing is left all are on the table again. So no endpoint ever has two gateways more than another, whatever the
/// numbers; gateways that share one endpoint share few others; and since what a gateway likes is a hash of the names,
/// few change hands when endpoints come and go. Where 100 gateways use 20 of 300 endpoints each and one of those leaves
/// or comes, a gateway changes 0.7 of its 20 for others, on average, and no gateway more than 6.
///
/// Which gateways use an endpoint depends on all before them: `clients` may grow without a change for those that are
/// there. A deal of `c` gateways over `n` endpoints takes `c x n` steps, 10 ms for 1 000 of each.
///
/// ```
/// use palisade_balance::Subset;
///
/// let all = || (0..300).map(|number| format!("10.0.0.{number}")).collect::<Vec<_>>();
/// // The gateway is number 7 of 100, counted from 0.
/// let subset = Subset::new(7, 100, 20)?;
/// let mut mine = all();
/// subset.keep(&mut mine, |name| name);
/// assert_eq!(mine.len(), 20);
/// # Ok::<(), palisade_balance::InvalidSubset>(())
/// ```
///
/// The idea of dealing in rounds is that of deterministic subsetting in chapter 20 of Google's "Site Reliability
/// Engineering"; preferences instead of a shuffle are rendezvous hashing, by Thaler and Ravishankar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subset {
    client: u32,
    clients: u32,
    size: usize,
}

impl Subset {
    /// For the gateway of this number, from 0, among so many, of which each is to use so many endpoints.
    ///
    /// Fails if there is no such gateway, or if it is to use none. Where so few for each would leave endpoints that
    /// nobody uses, each uses more.
    pub fn new(client: u32, clients: u32, size: usize) -> Result<Self, InvalidSubset> {
        if client >= clients || size == 0 {
            return Err(InvalidSubset);
        }
        Ok(Self {
            client,
            clients,
            size,
        })
    }

    /// Keeps those that this gateway uses, in their order. All of the same name are kept or none.
    pub fn keep<T>(&self, all: &mut Vec<T>, name: impl Fn(&T) -> &str) {
        let mut names: Vec<&str> = all.iter().map(&name).collect();
        names.sort_unstable();
        names.dedup();
        if self.size_among(names.len()) >= names.len() {
            return;
        }
        let mine: HashSet<String> = self
            .deal(&names)
            .into_iter()
            .map(|at| names[at].to_owned())
            .collect();
        all.retain(|one| mine.contains(name(one)));
    }

    fn size_among(&self, names: usize) -> usize {
        self.size.max(names.div_ceil(self.clients as usize))
    }

    /// Positions among the names, which are sorted, differ and are more than enough.
    fn deal(&self, names: &[&str]) -> Vec<usize> {
        let size = self.size_among(names.len());
        let hashes: Vec<u64> = names.iter().map(|name| hash(name)).collect();
        let mut table: Vec<(u64, usize)> = Vec::with_capacity(names.len());
        let mut hand = Vec::with_capacity(size);
        for client in 0..=self.client {
            hand.clear();
            if table.len() <= size {
                // What is left of this round, and the rest of the next.
                hand.extend(table.drain(..).map(|(_, at)| at));
                table.extend((0..names.len()).map(|at| (0, at)));
                table.retain(|(_, at)| !hand.contains(at));
            }
            let more = size - hand.len();
            let taken = hand.len();
            if more > 0 {
                let taste = mix(u64::from(client) + 1);
                for (liking, at) in &mut table {
                    *liking = mix(hashes[*at] ^ taste);
                }
                table.select_nth_unstable(more - 1);
                hand.extend(table.drain(..more).map(|(_, at)| at));
            }
            // It may have these in the next round, too.
            table.extend(hand[..taken].iter().map(|&at| (0, at)));
        }
        hand
    }
}

/// There is no such gateway, or it would use no endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidSubset;

impl fmt::Display for InvalidSubset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a subset is that of one of the clients, and not empty")
    }
}

impl Error for InvalidSubset {}

/// FNV-1a, by Fowler, Noll and Vo: all gateways have to agree, whatever they were built with.
fn hash(name: &str) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3);
    mix(name.bytes().fold(0xCBF2_9CE4_8422_2325, step))
}

/// The end of SplitMix64, by Steele, Lea and Flood.
fn mix(seed: u64) -> u64 {
    let z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn names(number: usize) -> Vec<String> {
        (0..number).map(|at| format!("backend-{at}")).collect()
    }

    fn kept(subset: Subset, names: &[String]) -> HashSet<String> {
        let mut names = names.to_vec();
        subset.keep(&mut names, |name| name);
        names.into_iter().collect()
    }

    fn all(clients: u32, size: usize, names: &[String]) -> Vec<HashSet<String>> {
        let of = |client| kept(Subset::new(client, clients, size).unwrap(), names);
        (0..clients).map(of).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn no_endpoint_has_two_clients_more_than_another(clients in 1..40u32, size in 1..30usize, number in 1..60usize) {
            let names = names(number);
            let mut users: BTreeMap<&String, u32> = names.iter().map(|name| (name, 0)).collect();
            let subsets = all(clients, size, &names);
            for subset in &subsets {
                prop_assert!(subset.len() >= size.min(number));
                for name in subset {
                    *users.get_mut(name).unwrap() += 1;
                }
            }
            let (least, most) = (users.values().min().unwrap(), users.values().max().unwrap());
            prop_assert!(most - least <= 1, "{least} {most}");
            prop_assert!(*least >= 1, "nobody is left alone");
        }

        #[test]
        fn the_order_of_the_names_does_not_matter(number in 1..60usize, turn in 0..60usize) {
            let subset = Subset::new(5, 20, 4).unwrap();
            let mut turned = names(number);
            turned.rotate_left(turn % number);
            prop_assert_eq!(kept(subset, &names(number)), kept(subset, &turned));
        }
    }

    /// How many of its endpoints a client loses when another leaves: on average, and the most.
    fn moved(clients: u32, size: usize, number: usize) -> (f64, usize) {
        let before = names(number);
        let subsets = all(clients, size, &before);
        let (mut sum, mut most, mut cases) = (0, 0, 0);
        for gone in (0..number).step_by(number / 10) {
            let mut after = before.clone();
            after.remove(gone);
            for (old, new) in subsets.iter().zip(all(clients, size, &after)) {
                let lost = old.difference(&new).count() - usize::from(old.contains(&before[gone]));
                (sum, most, cases) = (sum + lost, most.max(lost), cases + 1);
            }
        }
        (f64::from(sum as u32) / f64::from(cases), most)
    }

    #[test]
    fn few_endpoints_change_hands_when_one_leaves_or_comes() {
        // One that comes is one that left, the other way round.
        let (usual, most) = moved(100, 20, 300);
        println!("100 clients, 20 of 300: {usual:.2} of 20 move, at most {most}");
        assert!(usual <= 1.5 && most <= 10, "{usual} {most}");
        let (usual, most) = moved(15, 20, 300);
        println!("15 clients, 20 of 300: {usual:.2} of 20 move, at most {most}");
        assert!(usual <= 0.5 && most <= 2, "{usual} {most}");
    }

    #[test]
    fn a_client_that_comes_changes_nothing_for_the_others() {
        let names = names(100);
        assert_eq!(all(10, 20, &names), all(11, 20, &names)[..10]);
    }

    #[test]
    fn clients_that_share_an_endpoint_share_few_others() {
        let subsets = all(100, 10, &names(100));
        let (one, others) = (&subsets[0], &subsets[1..]);
        let shared = others.iter().map(|other| one.intersection(other).count());
        assert!(shared.max().unwrap() <= 5);
    }

    #[test]
    fn who_could_use_all_uses_all_and_names_may_come_twice() {
        let two = ["a", "b", "a"].map(String::from).to_vec();
        assert_eq!(kept(Subset::new(0, 1, 1).unwrap(), &two).len(), 2);
        let mut names = two;
        Subset::new(0, 2, 1).unwrap().keep(&mut names, |name| name);
        assert!(names == ["a", "a"] || names == ["b"], "{names:?}");
        let mut none: Vec<String> = Vec::new();
        Subset::new(0, 1, 1).unwrap().keep(&mut none, |name| name);
        assert!(none.is_empty());
    }

    #[test]
    fn a_client_that_is_none_and_a_subset_of_nothing_are_refused() {
        assert_eq!(Subset::new(3, 3, 1), Err(InvalidSubset));
        assert_eq!(Subset::new(0, 0, 1), Err(InvalidSubset));
        assert_eq!(Subset::new(0, 1, 0), Err(InvalidSubset));
    }
}
