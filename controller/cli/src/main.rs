//! `tombolo`: the command line of the client and the lab.

mod args;
mod command;
mod config;
mod context;
mod dispatch;
mod failure;
#[cfg(test)]
mod golden;
mod options;
mod output;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    // This call fails only if a provider is installed already; that provider is used then.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let arguments = args::Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("error: cannot start: {e}");
            return ExitCode::from(4);
        }
    };
    match runtime.block_on(dispatch::run(arguments)) {
        Ok(code) => code,
        Err(e) => failure::report(&e),
    }
}
