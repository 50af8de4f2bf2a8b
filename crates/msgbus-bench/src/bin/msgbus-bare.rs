//! `msgbus-bare`: the bare servers that msgbusd is compared with. They are a separate program because the
//! compiler inlines less in a larger one, which makes them 10 % slower.

use std::{net::SocketAddr, thread};

use anyhow::bail;
use msgbus_bench::bare::{self, Push};
use msgbusd::Workers;
use pico_args::Arguments;
use tokio::runtime;

const USAGE: &str = "\
usage: msgbus-bare --bind ADDRESS [--push nowhere|proxy|each|batches|at-once] [--size N] [--threads N] [--stealing]

A server that does nothing, or no more than push. Without pushing it answers a pull with a message of N bytes
[128]. Each of the threads keeps its connections, unless it may steal from others.
";

fn main() -> anyhow::Result<()> {
    let mut args = Arguments::from_env();
    let address: SocketAddr = args.value_from_str("--bind")?;
    let push = args.opt_value_from_str("--push")?.unwrap_or(Push::Nowhere);
    let size = args.opt_value_from_str("--size")?.unwrap_or(128);
    let threads = args
        .opt_value_from_str("--threads")?
        .unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from));
    let stealing = args.contains("--stealing");
    if let Some(rest) = args.finish().first() {
        bail!("unexpected argument: {}\n{USAGE}", rest.display());
    }
    // Each connection needs a file descriptor. If the limit cannot be raised, accepting fails with an error.
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    if stealing {
        let runtime =
            runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
        runtime.block_on(async { bare::serve(address, push, size, Workers::current()).await })
    } else {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(bare::serve(address, push, size, Workers::pinned(threads)?))
    }
}
