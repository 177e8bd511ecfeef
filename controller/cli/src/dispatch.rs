//! Runs the command that the command line names.

use crate::args::{Arguments, Command};
use crate::command::{lab, status};
use crate::context::Context;
use crate::options::Format;
use anyhow::Result;
use clap::CommandFactory as _;
use clap_complete::Shell;
use std::path::Path;
use std::process::ExitCode;

/// Runs the command. Returns its exit code if it has worked. If the command has failed, the caller of this function
/// reports the error and chooses the exit code.
pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode> {
    let global = arguments.global;
    let command = match arguments.command {
        Command::Login(login) => return login.run(&global).await.map(|()| ExitCode::SUCCESS),
        Command::Lab(arguments) => return lab::run(arguments, global.output == Format::Json).await,
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "tombolo", &mut std::io::stdout());
            return Ok(ExitCode::SUCCESS);
        }
        Command::Manual { dir } => {
            write_manual(&dir)?;
            return Ok(ExitCode::SUCCESS);
        }
        other => other,
    };
    let context = &Context::new(global)?;
    match command {
        Command::Login(_) | Command::Lab(_) | Command::Completions { .. } | Command::Manual { .. } => Ok(()),
        Command::Status => status::run(context).await,
        Command::Apply(c) => return c.run(context).await,
        Command::Diff(c) => return c.run(context).await,
        Command::Group(c) => c.run(context).await,
        Command::Vnet(c) => c.run(context).await,
        Command::Subnet(c) => c.run(context).await,
        Command::Peering(c) => c.run(context).await,
        Command::Nic(c) => c.run(context).await,
        Command::PublicIp(c) => c.run(context).await,
        Command::RouteTable(c) => c.run(context).await,
        Command::Nsg(c) => c.run(context).await,
        Command::FlowLog(c) => c.run(context).await,
        Command::Lb(c) => c.run(context).await,
        Command::Gateway(c) => c.run(context).await,
        Command::Connection(c) => c.run(context).await,
        Command::LocalGateway(c) => c.run(context).await,
        Command::Circuit(c) => c.run(context).await,
        Command::Plain(c) => c.run(context).await,
        Command::Agent(c) => c.run(context).await,
        Command::Token(c) => c.run(context).await,
        Command::ApiToken(c) => c.run(context).await,
        Command::Settings(c) => c.run(context).await,
        Command::Routes(c) => c.run(context).await,
        Command::Explain(c) => return c.run(context).await,
        Command::Reach(c) => return c.run(context).await,
        Command::Assertion(c) => c.run(context).await,
        Command::Check(c) => return c.run(context).await,
        Command::Capture(c) => c.run(context).await,
        Command::Ping(c) => return c.run(context).await,
        Command::Trace(c) => return c.run(context).await,
        Command::Monitor(c) => c.run(context).await,
        Command::Usage(c) => c.run(context).await,
        Command::Link(c) => c.run(context).await,
        Command::Wait(c) => c.run(context).await,
        Command::Backup(c) => c.run(context).await,
    }
    .map(|()| ExitCode::SUCCESS)
}

/// Writes a manual page for each command, and the completions of bash, zsh and fish. Does not create `dir`.
fn write_manual(dir: &Path) -> std::io::Result<()> {
    clap_mangen::generate_to(Arguments::command(), dir)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut Arguments::command(), "tombolo", dir)?;
    }
    Ok(())
}
