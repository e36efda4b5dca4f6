//! A gateway for language models: `demo-gateway --help`.

use std::{path::Path, process::ExitCode, time::Duration};

use clap::Parser;
use demo_gateway::{
    Gateway, StartError, alerts,
    cli::{Cli, Command, Serve},
    config::{self, Fault},
    replicas,
    simulate::simulate,
    store::export::{self, Export},
    telemetry::Telemetry,
};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How long the end of the program waits for the last spans to be sent.
const LAST_SPANS: Duration = Duration::from_secs(5);

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command {
        Some(Command::Check { config }) => check(&config),
        Some(Command::Rules { config, period }) => rules(config.as_deref(), period),
        Some(Command::Simulate(options)) => printed(simulate(&options)),
        Some(Command::Sla(options)) => printed(replicas::summary(&options).map(|text| text + "\n")),
        Some(Command::Export(options)) => export(&options),
        Some(Command::Serve(options)) => serve(&options),
        None => serve(&cli.serve),
    }
}

fn printed(text: Result<String, String>) -> ExitCode {
    match text {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
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

fn export(options: &Export) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let exported = match runtime {
        Ok(runtime) => runtime.block_on(export::export(options)),
        Err(error) => return fail(&error),
    };
    match exported {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn rules(path: Option<&Path>, period: Option<Duration>) -> ExitCode {
    let config = path.map_or_else(|| Ok(config::Config::default()), config::load);
    let mut config = match config {
        Ok(config) => config,
        Err(faults) => {
            tell(path.unwrap_or(Path::new("")), &faults);
            return ExitCode::FAILURE;
        }
    };
    config.objective.period = period.unwrap_or(config.objective.period);
    match alerts::rules::rules(&config) {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => fail(&error),
    }
}

fn serve(options: &Serve) -> ExitCode {
    let mut config = match options.to_config() {
        Ok(config) => config,
        Err(faults) => {
            let path = options.config.as_deref().unwrap_or(Path::new(""));
            tell(path, &faults);
            return ExitCode::FAILURE;
        }
    };
    config.trace = config.trace.or_environment(|name| std::env::var(name).ok());
    let mistakes = config.check();
    if !mistakes.is_empty() && !options.print_config {
        return fail(&StartError::Config(mistakes));
    }
    if options.print_config {
        return match config.to_toml() {
            Ok(text) => {
                print!("{text}");
                ExitCode::SUCCESS
            }
            Err(error) => fail(&error),
        };
    }
    let telemetry = match Telemetry::install(&config.trace) {
        Ok(telemetry) => telemetry,
        Err(error) => return fail(&*error),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => runtime.block_on(run(config, telemetry)),
        Err(error) => fail(&error),
    }
}

async fn run(config: config::Config, telemetry: Telemetry) -> ExitCode {
    let token_is_given = config.admin_token.is_some();
    // Before anybody is told to send requests, or signals.
    let (mut signals, mut hangup) = match (Signals::new(), signal(SignalKind::hangup())) {
        (Ok(signals), Ok(hangup)) => (signals, hangup),
        (Err(error), _) | (_, Err(error)) => return fail(&error),
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
    while signals.next().await == Wish::Reopen {
        gateway.reopen_logs();
    }
    tracing::info!("stopping: what is in flight may end; a second signal ends it at once");
    let ending = async {
        gateway.shutdown().await;
        telemetry.close(LAST_SPANS).await;
    };
    let again = async { while signals.next().await == Wish::Reopen {} };
    tokio::select! {
        () = ending => ExitCode::SUCCESS,
        () = again => ExitCode::FAILURE,
    }
}

/// What somebody asks for by a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    End,
    /// To open log files anew, as nginx does.
    Reopen,
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
    user: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            user: signal(SignalKind::user_defined1())?,
        })
    }

    async fn next(&mut self) -> Wish {
        tokio::select! {
            _ = self.interrupt.recv() => Wish::End,
            _ = self.terminate.recv() => Wish::End,
            _ = self.user.recv() => Wish::Reopen,
        }
    }
}

fn greet(gateway: &Gateway, token_is_given: bool) {
    let url = gateway.url();
    println!("listening on {url}");
    println!();
    println!("  dashboard  {url}/");
    println!("  requests   {url}/generate   {url}/v1/chat/completions");
    println!("  state      {url}/health   {url}/status   {url}/metrics");
    for (number, backend) in (1..).zip(gateway.embedded_backends()) {
        println!("  backend    embedded-{number} at {}", backend.url());
    }
    if let Some(log) = gateway.request_log() {
        println!("  log        {log}");
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
