//! The command line, and the environment where the command line says nothing.

use std::{path::PathBuf, time::Duration};

use clap::{
    Args, Parser, Subcommand, ValueEnum,
    builder::{PossibleValuesParser, TypedValueParser},
};

use crate::{
    config::{
        self, Affinity, Backend, Config, Discovery, Fault, Format, Secret, Strategy, Switch,
        parse_duration,
    },
    replicas::Sla,
    simulate::Simulate,
    store::export::Export,
};

/// A gateway for language models.
///
/// Without any argument it serves on 127.0.0.1:8000 with three simulated backends.
#[derive(Debug, Parser)]
#[command(
    version,
    args_conflicts_with_subcommands = true,
    after_help = "Logs go to stderr, as far as PALISADE_LOG says: `info`, `debug`, `warn`. For a line for every request see --access-log; on SIGUSR1 its file is opened anew, for those who rotate it. SIGINT and SIGTERM let requests end, a second one does not."
)]
pub struct Cli {
    /// What to do; `serve` when nothing is said.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The options of `serve`.
    #[command(flatten)]
    pub serve: Serve,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serves requests.
    Serve(Box<Serve>),
    /// Prints every mistake in a configuration file, with its place; exit status 1 if there is any.
    Check {
        /// The file.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Writes the request log into a file, or to the standard output.
    Export(Export),
    /// Adds up what several gateways have counted, and prints how it goes with all of them, as JSON.
    Sla(Sla),
    /// Prints the alerts on the objective, as a file of rules for Prometheus.
    Rules {
        /// The configuration [default: the objective that holds without one].
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// What an error budget is for, instead of `objective.period`; windows scale with it.
        #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
        period: Option<Duration>,
    },
    /// Shows in virtual time what balancing makes of endpoints that are slow, fail or hang.
    Simulate(Box<Simulate>),
}

/// The options of `serve`. What is said here counts more than the file.
#[derive(Clone, Debug, Default, Args)]
pub struct Serve {
    /// The configuration, as TOML.
    #[arg(long, env = "PALISADE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where to listen; port 0 picks a free one [default: 127.0.0.1:8000].
    #[arg(long, env = "PALISADE_LISTEN", value_name = "HOST:PORT")]
    pub listen: Option<String>,
    /// A backend; may be said more than once, in the environment with blanks between.
    #[arg(
        long = "backend",
        env = "PALISADE_BACKEND",
        value_name = "[ID=]URL[,weight=W][,max_connections=N][,zone=Z][,priority=N]",
        value_delimiter = ' '
    )]
    pub backends: Vec<Backend>,
    /// How many simulated backends run inside while no other is named [default: 3].
    #[arg(long, env = "PALISADE_EMBEDDED_BACKENDS", value_name = "N")]
    pub embedded_backends: Option<usize>,
    /// What `/admin` asks for [default: made up and printed].
    #[arg(
        long,
        env = "PALISADE_ADMIN_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true
    )]
    pub admin_token: Option<Secret>,
    /// Where several gateways count together, as redis://USER:PASSWORD@HOST:PORT/DATABASE [default: each for itself].
    // No parser that could fail: its error would show the password.
    #[arg(
        long,
        env = "PALISADE_REDIS",
        value_name = "URL",
        hide_env_values = true
    )]
    pub redis: Option<Secret>,
    /// Where requests are logged: postgres://USER:PASSWORD@HOST:PORT/DATABASE, sqlite:PATH, or `off` [default: a SQLite
    /// file in the data folder].
    // No parser that could fail: its error would show the password.
    #[arg(
        long,
        env = "PALISADE_STORE",
        value_name = "URL",
        hide_env_values = true
    )]
    pub store: Option<Secret>,
    /// Where files are kept [default: a folder that goes when the gateway does].
    #[arg(long, env = "PALISADE_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Whether the rules for who may ask how often hold [default: default].
    #[arg(long, env = "PALISADE_RATE_LIMIT", value_enum)]
    pub rate_limit: Option<Switch>,
    /// How backends are chosen [default: adaptive].
    #[arg(long, env = "PALISADE_STRATEGY", value_name = "NAME", value_parser = strategy())]
    pub strategy: Option<Strategy>,
    /// What requests have in common that should go to the same backend, with `--strategy consistent_hash`
    /// [default: session].
    #[arg(long, env = "PALISADE_AFFINITY", value_enum)]
    pub affinity: Option<Affinity>,
    /// Where the gateway is: backends of the same zone come first [default: nowhere, all are alike].
    #[arg(long, env = "PALISADE_ZONE", value_name = "ZONE")]
    pub zone: Option<String>,
    /// Where backends are found besides those that are named; followed as long as the gateway runs.
    #[arg(
        long,
        env = "PALISADE_DISCOVERY",
        value_name = "file:PATH|dns:HOST:PORT|srv:NAME"
    )]
    pub discovery: Option<Discovery>,
    /// Where spans of requests and attempts go: a collector of OpenTelemetry, over HTTP unless the file says gRPC
    /// [default: OTEL_EXPORTER_OTLP_ENDPOINT, or nowhere].
    #[arg(long, env = "PALISADE_OTLP", value_name = "URL")]
    pub otlp: Option<String>,
    /// How a line for each request looks [default: off].
    #[arg(long, env = "PALISADE_ACCESS_LOG", value_enum)]
    pub access_log: Option<Format>,
    /// How often each backend is asked for its health [default: 5s].
    #[arg(long, env = "PALISADE_HEALTH_INTERVAL", value_name = "DURATION", value_parser = parse_duration)]
    pub health_interval: Option<Duration>,
    /// How long `/readyz` says 503 before the port closes [default: 0s].
    #[arg(long, env = "PALISADE_DRAIN_DELAY", value_name = "DURATION", value_parser = parse_duration)]
    pub drain_delay: Option<Duration>,
    /// Prints the configuration that would be used, without its secrets, and exits.
    #[arg(long)]
    pub print_config: bool,
}

impl Serve {
    /// The file, with what was said beside it.
    ///
    /// # Errors
    ///
    /// All that is wrong in the file.
    pub fn to_config(&self) -> Result<Config, Vec<Fault>> {
        let mut config = match &self.config {
            Some(path) => config::load(path)?,
            None => Config::default(),
        };
        let Self {
            config: _,
            listen,
            backends,
            embedded_backends,
            admin_token,
            redis,
            store,
            data_dir,
            rate_limit,
            strategy,
            affinity,
            zone,
            discovery,
            otlp,
            access_log,
            health_interval,
            drain_delay,
            print_config: _,
        } = self.clone();
        set(&mut config.listen, listen);
        set(&mut config.embedded_backends, embedded_backends);
        set(&mut config.rate_limit, rate_limit);
        set(&mut config.strategy, strategy);
        set(&mut config.affinity, affinity);
        config.zone = zone.or(config.zone);
        config.discovery = discovery.or(config.discovery);
        config.trace.otlp = otlp.or(config.trace.otlp);
        set(&mut config.access_log.format, access_log);
        set(&mut config.health_interval, health_interval);
        set(&mut config.drain_delay, drain_delay);
        if admin_token.is_some() {
            config.admin_token = admin_token;
        }
        if let Some(url) = redis {
            config.redis.get_or_insert_default().set_url(url);
        }
        config.store.url = store.or(config.store.url);
        config.data_dir = data_dir.or(config.data_dir);
        if !backends.is_empty() {
            config.backends = backends;
        }
        Ok(config)
    }
}

fn set<T>(setting: &mut T, said: Option<T>) {
    if let Some(said) = said {
        *setting = said;
    }
}

/// By the names of the layer.
fn strategy() -> impl TypedValueParser<Value = Strategy> {
    PossibleValuesParser::new(config::strategies()).try_map(|name| name.parse::<Strategy>())
}

impl ValueEnum for Affinity {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        Some(self.name().into())
    }
}

impl ValueEnum for Format {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Off, Self::Json, Self::Text]
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        Some(match self {
            Self::Off => "off".into(),
            Self::Json => "json".into(),
            Self::Text => "text".into(),
        })
    }
}

impl ValueEnum for Switch {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Default, Self::Off]
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        Some(match self {
            Self::Default => "default".into(),
            Self::Off => "off".into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(args: &[&str]) -> Config {
        let args = [&["demo-gateway"], args].concat();
        let cli = Cli::try_parse_from(args).unwrap();
        let serve = match cli.command {
            Some(Command::Serve(serve)) => *serve,
            _ => cli.serve,
        };
        serve.to_config().unwrap()
    }

    #[test]
    fn options_go_with_and_without_the_name_of_the_command() {
        assert_eq!(read(&["--listen", "[::1]:0"]).listen, "[::1]:0");
        assert_eq!(read(&["serve", "--listen", "[::1]:0"]).listen, "[::1]:0");
        let config = read(&[
            "--backend",
            "a=http://10.0.0.1:1,weight=2",
            "--backend",
            "http://10.0.0.2:1",
            "--rate-limit",
            "off",
            "--strategy",
            "round_robin",
            "--health-interval",
            "500ms",
        ]);
        let names: Vec<_> = config.backends.iter().map(Backend::name).collect();
        assert_eq!(names, ["a", "10.0.0.2:1"]);
        assert_eq!(config.backends[0].weight, 2.0);
        assert_eq!(config.rate_limit, Switch::Off);
        assert_eq!(config.strategy, Strategy::RoundRobin);
        assert_eq!(config.health_interval, Duration::from_millis(500));
    }

    #[test]
    fn strategies_go_by_the_names_of_the_layer() {
        for strategy in Strategy::ALL {
            let config = read(&["--strategy", strategy.name()]);
            assert_eq!(config.strategy, strategy);
            let file = format!("strategy = \"{strategy}\"");
            assert_eq!(config::parse(&file).unwrap().strategy, strategy);
            let printed = config.to_toml().unwrap();
            assert!(printed.contains(&file), "{printed}");
        }
        let error = Cli::try_parse_from(["demo-gateway", "--strategy", "magic"]);
        let told = error.unwrap_err().to_string();
        for strategy in Strategy::ALL {
            assert!(told.contains(strategy.name()), "{told}");
        }
    }

    #[test]
    fn where_requests_go_can_be_said_on_the_command_line() {
        let config = read(&[
            "--zone",
            "east",
            "--affinity",
            "prompt",
            "--discovery",
            "dns:llm.internal:8000",
            "--backend",
            "a=http://10.0.0.1:1,zone=west,priority=2,max_connections=7",
        ]);
        assert_eq!(config.check(), []);
        assert_eq!(config.zone.as_deref(), Some("east"));
        assert_eq!(config.affinity, Affinity::Prompt);
        assert_eq!(
            config.discovery.unwrap().dns.as_deref(),
            Some("llm.internal:8000")
        );
        let backend = &config.backends[0];
        assert_eq!(
            (
                backend.zone.as_deref(),
                backend.priority,
                backend.max_connections
            ),
            (Some("west"), 2, 7)
        );
    }

    #[test]
    fn what_does_not_exist_is_an_error() {
        for args in [
            &["--strategy", "magic"][..],
            &["--affinity", "love"],
            &["--discovery", "carrier-pigeon"],
            &["--backend", "http://a,priority=-1"],
            &["--backend", "http://a,zone=two words"],
            &["--backend", "https://a"],
            &["--health-interval", "5"],
            &["dance"],
            &["check"],
            &["simulate", "--policy", "magic"],
            &["simulate", "--all", "--scenario", "slow1"],
        ] {
            let args = [&["demo-gateway"], args].concat();
            assert!(Cli::try_parse_from(&args).is_err(), "{args:?}");
        }
    }

    #[test]
    fn a_store_that_is_named_comes_before_the_one_in_the_file() {
        let config = read(&["--redis", "redis://:hunter2@127.0.0.1/3"]);
        let redis = config.redis.as_ref().unwrap();
        assert_eq!(
            redis.url.as_ref().unwrap().reveal(),
            "redis://:hunter2@127.0.0.1/3"
        );
        assert_eq!(redis.prefix, "palisade");
        // Told when it starts, by the check of all.
        let wrong = read(&["--redis", "http://:hunter2@127.0.0.1"]);
        let mistakes = wrong.check();
        assert_eq!(mistakes[0].path, "redis.url");
        let shown = format!("{config:?}{wrong:?}{mistakes:?}");
        assert!(!shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn the_help_names_every_option() {
        use clap::CommandFactory;

        let help = Cli::command().render_long_help().to_string();
        for option in [
            "--redis",
            "PALISADE_REDIS",
            "PALISADE_STORE",
            "--data-dir",
            "export",
            "--listen",
            "--backend",
            "PALISADE_ADMIN_TOKEN",
            "--print-config",
            "--zone",
            "PALISADE_AFFINITY",
            "--discovery",
            "--otlp",
            "PALISADE_ACCESS_LOG",
            "SIGUSR1",
            "consistent_hash",
            "check",
            "rules",
            "simulate",
        ] {
            assert!(help.contains(option), "{help}");
        }
    }
}
