//! API tokens, with which people and programs use the controller.

use crate::context::Context;
use crate::options::name;
use crate::output::{Column, at};
use anyhow::Result;
use clap::Subcommand;
use comfy_table::Cell;
use serde_json::json;

#[derive(Debug, Subcommand)]
pub(crate) enum ApiToken {
    /// Create a token and print it; it is never shown again
    Create {
        /// Name of the token, such as its user
        #[arg(value_parser = name)]
        name: String,
    },
    /// List the tokens, without their texts
    List,
    /// Delete a token, so that it is refused from now on
    Delete {
        /// Id of the token, as `list` shows it
        #[arg(value_parser = name)]
        id: String,
    },
}

const COLUMNS: &[Column] = &[
    ("Id", |v| Cell::new(at(v, "/id"))),
    ("Name", |v| Cell::new(at(v, "/name"))),
    ("Created", |v| Cell::new(at(v, "/created"))),
];

impl ApiToken {
    /// Creates, lists or deletes API tokens. The text of a new token is printed once and stored nowhere.
    pub(crate) async fn run(&self, c: &Context) -> Result<()> {
        match self {
            Self::Create { name } => {
                let token = c.client.create_api_token(name).await?;
                if c.out.is_json() {
                    c.out.json(&token)?;
                } else {
                    c.out.line(&token.token);
                }
                c.wait_if_requested().await
            }
            Self::List => c.out.list(&c.client.api_tokens().await?, COLUMNS, "No tokens."),
            Self::Delete { id } => {
                c.client.delete_api_token(id).await?;
                c.report(&json!({"deleted": true}), &format!("Deleted token {id}."))
                    .await
            }
        }
    }
}
