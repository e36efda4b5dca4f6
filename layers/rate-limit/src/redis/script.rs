//! The scripts, of which each is one decision of the server.

use std::sync::LazyLock;

/// Run by its hash, and sent whole where a server does not know it.
#[derive(Debug)]
pub(super) struct Script {
    pub(super) code: String,
    pub(super) hash: String,
}

impl Script {
    fn new(parts: &[&str]) -> Self {
        let code = parts.concat();
        let hash = redis::Script::new(&code).get_hash().to_owned();
        Self { code, hash }
    }
}

const COUNTS: &str = include_str!("lua/counts.lua");

macro_rules! scripts {
    ($($name:ident: $($part:expr),+;)+) => {
        $(pub(super) static $name: LazyLock<Script> = LazyLock::new(|| Script::new(&[$($part),+]));)+

        /// All of them, to be known by a server from the start.
        pub(super) fn all() -> impl Iterator<Item = &'static Script> {
            [$(&$name),+].into_iter().map(|script| &**script)
        }
    };
}

scripts! {
    TAKE: COUNTS, include_str!("lua/take.lua");
    SETTLE: COUNTS, include_str!("lua/settle.lua");
    RENEW: COUNTS, include_str!("lua/renew.lua");
    RESET: include_str!("lua/reset.lua");
    REPLICAS: include_str!("lua/replicas.lua");
    LEAVE: include_str!("lua/leave.lua");
    ADAPT: include_str!("lua/adapt.lua");
}
