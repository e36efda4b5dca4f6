//! The program around [`demo_backend`]: arguments, serve, stop.

mod args;

use std::{
    error::Error,
    io::{self, Write},
    process::{self, ExitCode},
};

use clap::Parser;
use demo_backend::MockBackend;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::args::Args;

/// What a shell shows for a program that was killed: it is what a crash is to look like.
const CRASHED: i32 = 137;

#[tokio::main]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo-backend: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> Result<(), Box<dyn Error>> {
    let listen = args.listen.clone();
    let (mut terminate, mut interrupt) = signals()?;
    let backend = args.builder().await?.start().await;
    let backend = backend.map_err(|error| format!("--listen {listen}: {error}"))?;
    announce(&backend)?;
    tokio::select! {
        () = backend.crashed() => process::exit(CRASHED),
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tokio::select! {
        () = backend.stop() => Ok(()),
        // Who says it twice does not want to wait.
        _ = terminate.recv() => Err("stopped with requests in flight".into()),
        _ = interrupt.recv() => Err("stopped with requests in flight".into()),
    }
}

/// Listened to before the first line is out: who reads that may send one at once.
fn signals() -> io::Result<(Signal, Signal)> {
    Ok((
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    ))
}

fn announce(backend: &MockBackend) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "listening on {}", backend.url())?;
    out.flush()
}
