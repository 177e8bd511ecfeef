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
    /// Creates a join token, with which one agent can join once. If `ttl` is `None`, the token has the controller's
    /// default lifetime.
    ///
    /// # Errors
    /// Any [`Error`]. It is an [`Error::Api`] if the binding names a resource that does not exist or has an agent
    /// already, or if the agent's name is in use.
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

    /// Lists the join tokens that were not used yet.
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

    /// Lists the agent packages that the controller serves.
    ///
    /// # Errors
    /// Any [`Error`]: the controller cannot be reached, or refuses the request.
    pub async fn packages(&self) -> Result<Packages, Error> {
        let response = self.fabric(Method::GET, "packages", Body::None).await?;
        self.typed(response).await
    }

    /// Creates a token for the REST interface. Only this answer contains the token's text.
    ///
    /// # Errors
    /// Any [`Error`]: the controller cannot be reached, or refuses the request.
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

    /// Lists the tokens for the REST interface, without their texts.
    ///
    /// # Errors
    /// Any [`Error`]: the controller cannot be reached, or refuses the request.
    pub async fn api_tokens(&self) -> Result<Vec<Value>, Error> {
        let response = self.fabric(Method::GET, "api-tokens", Body::None).await?;
        Ok(self.typed::<ListResponse<_>>(response).await?.value)
    }

    /// Deletes a token for the REST interface. Requests with it are refused from then on.
    ///
    /// # Errors
    /// Any [`Error`]: the controller cannot be reached, or refuses the request.
    pub async fn delete_api_token(&self, id: &str) -> Result<(), Error> {
        self.fabric(Method::DELETE, &format!("api-tokens/{id}"), Body::None)
            .await
            .map(drop)
    }
}
