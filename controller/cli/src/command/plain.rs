//! Commands for the kinds of resources that have no properties except region and tags. They are generated from
//! [`Kind`]. Other kinds share the parts of these commands that set tags.

use crate::context::Context;
use crate::options::name;
use crate::output::{Column, at, text};
use anyhow::Result;
use clap::{ArgMatches, Args, Command, Error, FromArgMatches, Subcommand};
use comfy_table::Cell;
use serde_json::{Value, json};
use tombolo_proto::arm::Kind;

/// A kind and the verb of its command.
#[derive(Debug)]
pub(crate) struct Plain {
    kind: Kind,
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Create {
        /// Name of the resource
        #[arg(value_parser = name)]
        name: String,
        #[command(flatten)]
        own: RegionAndTags,
    },
    List,
    Show {
        /// Name of the resource
        #[arg(value_parser = name)]
        name: String,
    },
    #[command(flatten)]
    Other(UpdateOrDelete),
}

/// The options of a new resource that set its region and its tags.
#[derive(Debug, Args)]
pub(crate) struct RegionAndTags {
    /// Region [default: the resource group's]
    #[arg(short, long)]
    location: Option<String>,
    /// Tags of the resource
    #[arg(long, value_name = "NAME=VALUE", num_args = 1.., value_delimiter = ',', value_parser = tag)]
    tags: Option<Vec<(String, String)>>,
}

impl RegionAndTags {
    /// Sets the region and the tags of a body. What is not given stays; a body without a region gets that of the group.
    pub(crate) async fn apply_to(&self, body: &mut Value, c: &Context) -> Result<()> {
        if self.location.is_some() || body.get("location").is_none() {
            body["location"] = json!(c.location(self.location.as_deref()).await?);
        }
        if let Some(tags) = &self.tags {
            body["tags"] = object(tags);
        }
        Ok(())
    }
}

/// The commands that change the tags of a resource, or delete it, which are the same for several kinds.
#[derive(Debug, Subcommand)]
pub(crate) enum UpdateOrDelete {
    /// Change the tags of a resource
    Update {
        /// Name of the resource
        #[arg(value_parser = name)]
        name: String,
        /// Tags that replace all present tags of the resource; if the option has no value, all tags are removed
        #[arg(long, required = true, value_name = "NAME=VALUE", num_args = 0.., value_delimiter = ',', value_parser = tag)]
        tags: Vec<(String, String)>,
    },
    /// Delete a resource
    Delete {
        /// Name of the resource
        #[arg(value_parser = name)]
        name: String,
    },
}

impl UpdateOrDelete {
    /// Replaces all tags of a resource of this kind, or deletes it.
    pub(crate) async fn run(&self, c: &Context, kind: Kind) -> Result<()> {
        match self {
            Self::Update { name, tags } => c.update(kind, name, |body| body["tags"] = object(tags)).await,
            Self::Delete { name } => c.remove(kind, name).await,
        }
    }
}

/// Parses a tag, `NAME=VALUE`.
fn tag(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("'{text}' is not a tag: write NAME=VALUE")),
    }
}

/// Returns the kinds whose commands this module generates, with the names of these commands.
fn kinds() -> impl Iterator<Item = (Kind, &'static str)> {
    Kind::all().filter_map(|kind| Some((kind, kind.plain_command()?)))
}

/// Returns the command of a kind with its verbs.
fn command(kind: Kind, name: &'static str) -> Command {
    let title = kind.title();
    let article = if title.starts_with(['a', 'e', 'i', 'o', 'u']) {
        "an"
    } else {
        "a"
    };
    let mut plural = format!("{title}s");
    let verbs = [
        ("create", format!("Create {article} {title}")),
        ("list", format!("List {plural}")),
        ("show", format!("Show {article} {title}")),
        ("update", format!("Change {article} {title}")),
        ("delete", format!("Delete {article} {title}")),
    ];
    plural[..1].make_ascii_uppercase();
    let command = Command::new(name)
        .about(plural)
        .subcommand_required(true)
        .arg_required_else_help(true);
    let command = Verb::augment_subcommands(command);
    verbs.into_iter().fold(command, |command, (verb, about)| {
        command.mut_subcommand(verb, |c| c.about(about))
    })
}

impl FromArgMatches for Plain {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let (name, below) = matches
            .subcommand()
            .ok_or_else(|| Error::new(clap::error::ErrorKind::MissingSubcommand))?;
        let (kind, _) = kinds()
            .find(|(_, command)| *command == name)
            .ok_or_else(|| Error::new(clap::error::ErrorKind::InvalidSubcommand))?;
        Ok(Self {
            kind,
            verb: Verb::from_arg_matches(below)?,
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Subcommand for Plain {
    fn augment_subcommands(all: Command) -> Command {
        kinds().fold(all, |all, (kind, name)| all.subcommand(command(kind, name)))
    }

    fn augment_subcommands_for_update(all: Command) -> Command {
        Self::augment_subcommands(all)
    }

    fn has_subcommand(name: &str) -> bool {
        kinds().any(|(_, command)| command == name)
    }
}

const COLUMNS: &[Column] = &[
    ("Name", |v| Cell::new(at(v, "/name"))),
    ("Location", |v| Cell::new(at(v, "/location"))),
    ("Tags", |v| {
        let tags = v.get("tags").and_then(Value::as_object).into_iter().flatten();
        let tags: Vec<_> = tags
            .map(|(name, value)| format!("{name}={}", text(Some(value))))
            .collect();
        Cell::new(tags.join(", "))
    }),
];

/// Returns the `tags` of a body.
fn object(tags: &[(String, String)]) -> Value {
    tags.iter().map(|(name, value)| (name.clone(), json!(value))).collect()
}

impl Plain {
    /// Creates, changes, deletes or prints resources of one kind. An update replaces all tags of a resource.
    pub(crate) async fn run(&self, c: &Context) -> Result<()> {
        let kind = self.kind;
        match &self.verb {
            Verb::Create { name, own } => {
                let mut body = json!({"properties": {}});
                own.apply_to(&mut body, c).await?;
                c.put(&c.item(kind, name)?, &body, &format!("Created {kind} {name}."))
                    .await
            }
            Verb::List => c.out.list(&c.list(kind).await?, COLUMNS, &format!("No {kind}s.")),
            Verb::Show { name } => c.show(kind, name, COLUMNS).await,
            Verb::Other(verb) => verb.run(c, kind).await,
        }
    }
}
