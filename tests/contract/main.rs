//! The laws of Tower and of palisade, the same for every layer.
//!
//! A crate of `layers/` without a row in the table below fails `every_crate_has_a_row`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod inner;
mod laws;

use std::{fs, path::Path};

use palisade::gate::GateLayer;
use palisade_core::testing::CountingAllocator;
use tower::Layer;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Whether a layer is ready when the service inside it is, or for reasons of its own.
#[derive(Clone, Copy, PartialEq)]
enum Readiness {
    OfInner,
    Own,
}

macro_rules! table {
    ($($row:ident $crate_name:literal {
        layer: $layer:expr,
        readiness: $readiness:expr,
        allocations: $allocations:expr,
    })*) => {
        const ROWS: &[&str] = &[$($crate_name),*];
        $(mod $row {
            use super::*;

            laws::all!($layer, $readiness, $allocations);
        })*
    };
}

table! {
    no_gate "core" {
        layer: |inner| GateLayer::new(()).layer(inner),
        readiness: Readiness::OfInner,
        allocations: 0,
    }
}

#[test]
fn every_crate_has_a_row() {
    let layers = Path::new(env!("CARGO_MANIFEST_DIR")).join("layers");
    for entry in fs::read_dir(layers).unwrap() {
        let name = entry.unwrap().file_name();
        let name = name.to_str().unwrap();
        assert!(
            ROWS.contains(&name),
            "layers/{name} obeys no law yet: add a row"
        );
    }
}
