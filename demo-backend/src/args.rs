//! The arguments of the program.

use std::{env, error::Error, net::SocketAddr, time::Duration};

use clap::Parser;
use demo_backend::{Builder, Fault, Forward, Lengths, MockBackend, span};
use tokio::net::lookup_host;

/// A simulated LLM server with faults on demand.
///
/// Prints `listening on http://ADDR` as soon as it answers. SIGTERM or Ctrl-C: ends what is in flight, 30 s at most.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Args {
    /// Where to listen; port 0 picks a free one.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8001")]
    pub(crate) listen: String,
    /// The name in `backend_id` and `x-instance-id` [default: backend-PORT].
    #[arg(long, env = "INSTANCE_ID")]
    id: Option<String>,
    /// Two runs with the same seed and requests have the same answers and faults.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// How many requests are served together; 0 for no limit.
    #[arg(long, value_name = "N", default_value_t = 8)]
    slots: usize,
    /// How many may wait for a slot; more get 503.
    #[arg(long, value_name = "N", default_value_t = 1024)]
    queue: usize,
    /// Shared among those that are being answered; 0 for no limit.
    #[arg(long, value_name = "X", default_value = "400", value_parser = rate, allow_negative_numbers = true)]
    tokens_per_second: f64,
    /// From a slot to the first token, for an empty prompt.
    #[arg(long, value_name = "D", default_value = "50ms", value_parser = span::parse)]
    first_token: Duration,
    /// What each token of the prompt adds to that.
    #[arg(long, value_name = "D", default_value = "100us", value_parser = span::parse)]
    prompt_token: Duration,
    /// How many blocks of 16 tokens of earlier prompts are known; 0 for none.
    #[arg(long, value_name = "BLOCKS", default_value_t = 4096)]
    prefix_cache: usize,
    /// How many tokens answers have.
    #[arg(long, value_name = "N|MIN-MAX", default_value = "16-160")]
    tokens: Lengths,
    /// Something that goes wrong, such as `error,status=503,share=0.5,from=10s,for=5s`; can be repeated.
    ///
    /// Faults: latency (delay= | min=,max= | median=,sigma=), error (status=, retry-after=), rate-limit (retry-after=), hang,
    /// refuse, reset (after=), stall (after=), drip (bytes=, every=), malformed (after=), content-length (by=), crash.
    /// All take share=, from=, for= and on=requests|health|all. The same live: POST /chaos.
    #[arg(long, value_name = "SPEC")]
    fault: Vec<Fault>,
    /// Forwards to OpenAI, or what speaks its API, with the key in this environment variable.
    #[arg(long, value_name = "VAR")]
    openai_key_env: Option<String>,
    /// Where that is.
    #[arg(
        long,
        value_name = "URL",
        env = "OPENAI_BASE_URL",
        default_value = "https://api.openai.com/v1"
    )]
    openai_base_url: String,
}

impl Args {
    /// The backend that they describe.
    pub(crate) async fn builder(self) -> Result<Builder, Box<dyn Error>> {
        let mut builder = MockBackend::builder()
            .listen(address(&self.listen).await?)
            .seed(self.seed)
            .slots(self.slots)
            .queue(self.queue)
            .tokens_per_second(self.tokens_per_second)
            .first_token(self.first_token)
            .prompt_token(self.prompt_token)
            .prefix_cache(self.prefix_cache)
            .tokens(self.tokens)
            // Nobody could look at it.
            .recording(0);
        if let Some(id) = self.id {
            builder = builder.id(id);
        }
        for fault in self.fault {
            builder = builder.fault(fault);
        }
        if let Some(name) = self.openai_key_env {
            let key =
                env::var(&name).map_err(|error| format!("--openai-key-env {name}: {error}"))?;
            let forward = Forward::new(&self.openai_base_url, &key);
            builder =
                builder.forward(forward.map_err(|error| format!("--openai-base-url: {error}"))?);
        }
        Ok(builder)
    }
}

async fn address(listen: &str) -> Result<SocketAddr, Box<dyn Error>> {
    let found = lookup_host(listen).await;
    let mut found = found.map_err(|error| format!("--listen {listen}: {error}"))?;
    Ok(found
        .next()
        .ok_or_else(|| format!("--listen {listen}: no such address"))?)
}

fn rate(text: &str) -> Result<f64, String> {
    let rate: Option<f64> = text.parse().ok();
    rate.filter(|rate| rate.is_finite() && *rate >= 0.0)
        .ok_or_else(|| "a number of at least 0".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn mistake(args: &[&str]) -> String {
        let args = ["demo-backend"].iter().chain(args);
        Args::try_parse_from(args).unwrap_err().to_string()
    }

    #[test]
    fn the_arguments_fit_together() {
        Args::command().debug_assert();
    }

    #[test]
    fn all_arguments_of_the_contract_are_read() {
        let line = "demo-backend --listen 127.0.0.1:0 --id one --seed 7 --slots 4 --tokens-per-second 50.5 \
             --first-token 20ms --tokens 5-9 --fault hang,share=0.1 --fault latency,delay=5ms --openai-key-env KEY";
        let args = Args::try_parse_from(line.split_whitespace()).unwrap();
        assert_eq!((args.seed, args.slots), (7, 4));
        assert_eq!(args.id.as_deref(), Some("one"));
        assert_eq!(args.tokens_per_second, 50.5);
        assert_eq!(args.first_token, Duration::from_millis(20));
        assert_eq!(args.tokens, "5-9".parse().unwrap());
        assert_eq!(args.fault.len(), 2);
        assert_eq!(args.openai_key_env.as_deref(), Some("KEY"));
    }

    #[test]
    fn no_limits_can_be_said() {
        let args = [
            "demo-backend",
            "--first-token",
            "0s",
            "--tokens-per-second",
            "0",
        ];
        let args = Args::try_parse_from(args).unwrap();
        assert_eq!(
            (args.first_token, args.tokens_per_second),
            (Duration::ZERO, 0.0)
        );
    }

    #[test]
    fn mistakes_say_which_argument_and_why() {
        for (args, says) in [
            (
                ["--fault", "error,status=abc"],
                r#"column 7: status: "abc" is no number from 400 to 599"#,
            ),
            (
                ["--fault", "explode"],
                r#""explode" is no fault; there are latency"#,
            ),
            (["--first-token", "20"], r#""20" is no span of time"#),
            (
                ["--tokens", "9-5"],
                r#""9-5" is neither a number of tokens nor a range"#,
            ),
            (["--tokens-per-second", "-1"], "a number of at least 0"),
            (["--slots", "many"], "invalid digit"),
        ] {
            let said = mistake(&args);
            assert!(said.contains(says) && said.contains(args[0]), "{said}");
        }
    }

    #[tokio::test]
    async fn a_key_that_is_not_there_is_a_mistake() {
        let args = ["demo-backend", "--openai-key-env", "NO_SUCH_VARIABLE_HERE"];
        let args = Args::try_parse_from(args).unwrap();
        let error = args.builder().await.unwrap_err().to_string();
        assert!(
            error.contains("--openai-key-env NO_SUCH_VARIABLE_HERE"),
            "{error}"
        );
    }
}
