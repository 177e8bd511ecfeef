//! Calls about the join tokens of agents, the packages that new machines install, and API tokens.

use crate::client::{Body, Client};
use crate::error::Error;
use reqwest::Method;
use serde_json::{Value, json};
use std::time::Duration;
use tombolo_proto::fabric::{
    ApiTokenRequest, Binding, ListResponse, NewApiToken, NewToken, Packages, Token, TokenRequest,
};
use tombolo_proto::id::AgentId;

impl Client {
    /// Creates a join token, with which one agent can join once. `ttl` is the token's lifetime, from one second to 30
    /// days; fractions of a second are cut off. `None`: one hour. Only this answer contains the token's text.
    ///
    /// # Errors
    /// Any [`Error`]. It is an [`Error::Api`] if the binding names a resource that does not exist or has an agent
    /// already, if the agent's name is in use, or if `ttl` is out of range.
    pub async fn create_token(
        &self,
        agent: &AgentId,
        binding: &Binding,
        ttl: Option<Duration>,
    ) -> Result<NewToken, Error> {
        let body = json!(TokenRequest {
            agent: agent.clone(),
            binding: binding.clone(),
            ttl_seconds: ttl.map(|t| t.as_secs()),
        });
        let response = self.fabric(Method::POST, "tokens", Body::Json(&body)).await?;
        self.typed(response).await
    }

    /// Lists the join tokens that were not used yet, without their texts. Expired ones are listed until they are
    /// deleted.
    ///
    /// # Errors
    /// Any [`Error`]: the controller cannot be reached, or refuses the request.
    pub async fn tokens(&self) -> Result<Vec<Token>, Error> {
        let response = self.fabric(Method::GET, "tokens", Body::None).await?;
        Ok(self.typed::<ListResponse<_>>(response).await?.value)
    }

    /// Deletes the unused join token with this `id`, so that nobody can join with the token. `id` is not the token's
    /// text. Succeeds also if no such token exists, for example because it was used. An agent that has joined with the
    /// token is not affected.
    ///
    /// # Errors
    /// Any [`Error`]: the controller cannot be reached, or refuses the request.
    pub async fn delete_token(&self, id: &str) -> Result<(), Error> {
        self.fabric(Method::DELETE, &format!("tokens/{id}"), Body::None)
            .await
            .map(drop)
    }

    /// Lists the agent packages that the controller serves, at most 16, ordered by name. The controller reads each
    /// package for its SHA-256. The list is empty if their folder does not exist.
    ///
    /// # Errors
    /// Any [`Error`]: the controller cannot be reached, or refuses the request. If the controller cannot read a package
    /// or the folder, it is an [`Error::Api`] with status 500.
    pub async fn packages(&self) -> Result<Packages, Error> {
        let response = self.fabric(Method::GET, "packages", Body::None).await?;
        self.typed(response).await
    }

    /// Creates a token for the REST interface. It does not expire. `name` is for people: 1 to 80 bytes, not blank,
    /// without control characters. It need not be unique. Only this answer contains the token's text.
    ///
    /// # Errors
    /// Any [`Error`]: the controller cannot be reached, or refuses the request. An invalid `name` is an [`Error::Api`]
    /// with status 400.
    pub async fn create_api_token(&self, name: &str) -> Result<NewApiToken, Error> {
        let response = self
            .fabric(
                Method::POST,
                "api-tokens",
                Body::Json(&json!(ApiTokenRequest { name: name.to_owned() })),
            )
            .await?;
        self.typed(response).await
    }

    /// Lists the tokens for the REST interface, without their texts. Each is a JSON object with `id`, `name` and
    /// `created` (Unix time in seconds).
    ///
    /// # Errors
    /// Any [`Error`]: the controller cannot be reached, or refuses the request.
    pub async fn api_tokens(&self) -> Result<Vec<Value>, Error> {
        let response = self.fabric(Method::GET, "api-tokens", Body::None).await?;
        Ok(self.typed::<ListResponse<_>>(response).await?.value)
    }

    /// Deletes the token for the REST interface with this `id`, which is not the token's text. Requests with it, or
    /// with a login token that was issued for it, are refused from then on. Succeeds also if no such token exists.
    ///
    /// # Errors
    /// Any [`Error`]: the controller cannot be reached, or refuses the request. The token `admin` cannot be deleted:
    /// [`Error::Api`] with status 409.
    pub async fn delete_api_token(&self, id: &str) -> Result<(), Error> {
        self.fabric(Method::DELETE, &format!("api-tokens/{id}"), Body::None)
            .await
            .map(drop)
    }
}
