//! The commands `create`, `update`, `list`, `show` and `delete` of all kinds of children of load balancers. A kind gives
//! its options and how they become properties; everything else is the same for all kinds.

use super::part::Part;
use crate::context::Context;
use crate::options::{Child, child, name};
use anyhow::Result;
use clap::{Arg, ArgMatches, Args, Command, Error, FromArgMatches, Subcommand, error::ErrorKind};
use serde_json::Value;
use std::fmt::Debug;

/// A kind of children of load balancers.
pub(crate) trait ChildKind: Debug + 'static {
    /// The options of `create`, beside the name.
    type New: Args + Debug;
    /// The options of `update`, beside the name.
    type Changes: Args + Debug;
    /// The children in the body of a load balancer.
    const PART: Part;
    /// Words of the help texts.
    const HELP: Help;

    /// Returns the properties of a new child of `balancer`.
    fn complete(new: &Self::New, c: &Context, balancer: &Value) -> Result<Value>;

    /// Returns the properties of a child of `balancer` whose options are given; none if no option is given.
    fn changes(given: &Self::Changes, c: &Context, balancer: &Value) -> Result<Value>;
}

/// Words of the help texts for a kind of children.
pub(crate) struct Help {
    /// The noun.
    pub(super) noun: &'static str,
    /// What stands for the name of a child in `LB/NAME`.
    pub(super) place: &'static str,
    /// What follows `Create or replace a NOUN`.
    pub(super) create: &'static str,
    /// What follows `List the NOUNs of a load balancer`.
    pub(super) list: &'static str,
    /// What follows `Delete a NOUN`.
    pub(super) delete: &'static str,
    /// Options of `update` that change something, for the message that none is given.
    pub(super) options: &'static str,
}

/// A command for children of the kind `K`.
#[derive(Debug)]
pub(crate) enum Children<K: ChildKind> {
    Create(Child, K::New),
    Update(Child, K::Changes),
    /// Has the name of the load balancer.
    List(String),
    Show(Child),
    Delete(Child),
}

/// The names of the positional arguments.
const NAME: &str = "name";
const BALANCER: &str = "balancer";

impl<K: ChildKind> Children<K> {
    /// Creates, changes, deletes or prints children. An update without an option is a
    /// [`UsageError`](crate::failure::UsageError).
    pub(super) async fn run(&self, c: &Context) -> Result<()> {
        match self {
            Self::Create(name, new) => K::PART.create(c, name, |balancer| K::complete(new, c, balancer)).await,
            Self::Update(name, given) => {
                let changes = |balancer: &Value| K::changes(given, c, balancer);
                K::PART.update(c, name, K::HELP.options, changes).await
            }
            Self::List(balancer) => K::PART.list(c, balancer).await,
            Self::Show(name) => K::PART.show(c, name).await,
            Self::Delete(name) => K::PART.delete(c, name).await,
        }
    }
}

/// Returns the command of a verb without arguments.
fn verb(verb: &'static str, about: String) -> Command {
    Command::new(verb).about(about)
}

impl<K: ChildKind> Subcommand for Children<K> {
    fn augment_subcommands(all: Command) -> Command {
        let Help {
            noun,
            place,
            create,
            list,
            delete,
            ..
        } = K::HELP;
        let named = |command: Command| {
            let help = format!("Name of the {noun}, as LB/{place}");
            command.arg(
                Arg::new(NAME)
                    .required(true)
                    .value_name("NAME")
                    .value_parser(child)
                    .help(help),
            )
        };
        let of_balancer = Arg::new(BALANCER)
            .required(true)
            .value_name("BALANCER")
            .value_parser(name)
            .help("Name of the load balancer");
        let new = named(verb("create", format!("Create or replace a {noun}{create}")));
        let changes = named(verb("update", format!("Change a {noun}")));
        all.subcommand(K::New::augment_args(new))
            .subcommand(K::Changes::augment_args(changes))
            .subcommand(verb("list", format!("List the {noun}s of a load balancer{list}")).arg(of_balancer))
            .subcommand(named(verb("show", format!("Show a {noun}"))))
            .subcommand(named(verb("delete", format!("Delete a {noun}{delete}"))))
    }

    fn augment_subcommands_for_update(all: Command) -> Command {
        Self::augment_subcommands(all)
    }

    fn has_subcommand(name: &str) -> bool {
        ["create", "update", "list", "show", "delete"].contains(&name)
    }
}

impl<K: ChildKind> FromArgMatches for Children<K> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let (verb, below) = matches
            .subcommand()
            .ok_or_else(|| Error::new(ErrorKind::MissingSubcommand))?;
        let missing = || Error::new(ErrorKind::MissingRequiredArgument);
        let name = || below.get_one::<Child>(NAME).cloned().ok_or_else(missing);
        Ok(match verb {
            "create" => Self::Create(name()?, K::New::from_arg_matches(below)?),
            "update" => Self::Update(name()?, K::Changes::from_arg_matches(below)?),
            "list" => Self::List(below.get_one::<String>(BALANCER).cloned().ok_or_else(missing)?),
            "show" => Self::Show(name()?),
            "delete" => Self::Delete(name()?),
            _ => return Err(Error::new(ErrorKind::InvalidSubcommand)),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
