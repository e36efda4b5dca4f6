//! The core as the layers meet it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod broken_off;
mod defects;
mod follow;
mod gates;
mod quantile;
mod respond;
mod settle;
mod untimed;

use palisade_core::testing::CountingAllocator;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;
