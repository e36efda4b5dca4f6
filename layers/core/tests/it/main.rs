//! The core as the layers meet it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod defects;
mod follow;
mod gates;
mod respond;
mod settle;

use palisade_core::testing::CountingAllocator;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;
