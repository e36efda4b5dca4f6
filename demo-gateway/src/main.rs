//! A gateway for language models: `demo-gateway --help`.

use std::{io::IsTerminal, path::Path, process::ExitCode};

use clap::Parser;
use demo_gateway::{
    Gateway,
    cli::{Cli, Command, Serve},
    config::{self, Fault},
    simulate::simulate,
};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command {
        Some(Command::Check { config }) => check(&config),
        Some(Command::Simulate(options)) => match simulate(&options) {
            Ok(text) => {
                print!("{text}");
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        },
        Some(Command::Serve(options)) => serve(&options),
        None => serve(&cli.serve),
    }
}

fn check(path: &Path) -> ExitCode {
    match config::load(path) {
        Ok(_) => {
            println!("{}: no mistakes", path.display());
            ExitCode::SUCCESS
        }
        Err(faults) => {
            for fault in &faults {
                println!("{}:{fault}", path.display());
            }
            ExitCode::FAILURE
        }
    }
}

fn serve(options: &Serve) -> ExitCode {
    let config = match options.to_config() {
        Ok(config) => config,
        Err(faults) => {
            let path = options.config.as_deref().unwrap_or(Path::new(""));
            tell(path, &faults);
            return ExitCode::FAILURE;
        }
    };
    if options.print_config {
        return match config.to_toml() {
            Ok(text) => {
                print!("{text}");
                ExitCode::SUCCESS
            }
            Err(error) => fail(&error),
        };
    }
    let filter = EnvFilter::try_from_env("PALISADE_LOG");
    let filter = filter.unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => runtime.block_on(run(config)),
        Err(error) => fail(&error),
    }
}

async fn run(config: config::Config) -> ExitCode {
    let token_is_given = config.admin_token.is_some();
    // Before anybody is told to send requests, or signals.
    let (interrupt, terminate, mut hangup) = match (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
        signal(SignalKind::hangup()),
    ) {
        (Ok(interrupt), Ok(terminate), Ok(hangup)) => (interrupt, terminate, hangup),
        (Err(error), _, _) | (_, Err(error), _) | (_, _, Err(error)) => return fail(&error),
    };
    // Whoever asks for a new configuration does not want the requests to be cut off.
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            tracing::warn!("SIGHUP changes nothing: the configuration cannot be read anew yet");
        }
    });
    let gateway = match Gateway::start(config).await {
        Ok(gateway) => gateway,
        Err(error) => return fail(&error),
    };
    greet(&gateway, token_is_given);
    let mut signals = Signals {
        interrupt,
        terminate,
    };
    signals.next().await;
    tracing::info!("stopping: what is in flight may end; a second signal ends it at once");
    tokio::select! {
        () = gateway.shutdown() => ExitCode::SUCCESS,
        () = signals.next() => ExitCode::FAILURE,
    }
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

fn greet(gateway: &Gateway, token_is_given: bool) {
    let url = gateway.url();
    println!("listening on {url}");
    println!();
    println!("  requests   {url}/generate   {url}/v1/chat/completions");
    println!("  state      {url}/health   {url}/status   {url}/metrics");
    for (number, backend) in (1..).zip(gateway.embedded_backends()) {
        println!("  backend    embedded-{number} at {}", backend.url());
    }
    if token_is_given {
        println!("  admin      {url}/admin with the token that was given");
    } else {
        println!(
            "  admin      {url}/admin with `authorization: Bearer {}`",
            gateway.admin_token()
        );
    }
    println!();
    println!(
        "  curl {url}/generate -H 'content-type: application/json' -d '{{\"prompt\":\"Hello\"}}'"
    );
}

fn tell(path: &Path, faults: &[Fault]) {
    for fault in faults {
        eprintln!("{}:{fault}", path.display());
    }
}

fn fail(error: &dyn std::error::Error) -> ExitCode {
    eprint!("{error}");
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.for_each(|cause| eprint!(": {cause}"));
    eprintln!();
    ExitCode::FAILURE
}
