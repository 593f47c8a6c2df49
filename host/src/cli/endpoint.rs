//! `--endpoint` and `--timeout`, which every subcommand that talks to a cluster has.

use std::time::Duration;

use lockstep_client::{Client, Options};

/// Where the cluster is.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Endpoint {
    /// One or more nodes of the cluster; the leader is found from any
    #[arg(
        long = "endpoint",
        env = "LOCKSTEP_ENDPOINT",
        value_delimiter = ',',
        default_value = "127.0.0.1:7400",
        value_name = "HOST:PORT,..."
    )]
    endpoints: Vec<String>,
    /// How long to try, in seconds [default: 5, or 60 for what changes a cluster or a machine]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=600))]
    timeout: Option<u64>,
}

impl Endpoint {
    /// A client of each endpoint alone, with its address.
    pub(super) fn clients(&self) -> anyhow::Result<Vec<(String, Client)>> {
        let one = |endpoint: &String| Self { endpoints: vec![endpoint.clone()], ..self.clone() };
        let all = self.endpoints.iter();
        all.map(|endpoint| Ok((endpoint.clone(), one(endpoint).client()?))).collect()
    }

    /// A client; it dials at first use.
    pub(super) fn client(&self) -> anyhow::Result<Client> {
        let client = Client::with_options(self.endpoints.iter(), Options::default())?;
        Ok(match self.timeout {
            Some(seconds) => client.with_timeout(Duration::from_secs(seconds)),
            None => client,
        })
    }
}
