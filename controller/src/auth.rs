//! Authentication of the REST interface: by random API tokens, of which the store contains only hashes, and by login
//! tokens (JWT). A client gets a login token in exchange for an API token, by OAuth 2.0's client-credentials grant.

use crate::app::App;
use crate::asserted;
use crate::ca;
use crate::secret;
use crate::writer::{CAPTURES_PREFIX, DEPLOYMENTS_PREFIX, MONITORS_PREFIX, WriteError, Writer};
use anyhow::Context;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use uuid::Uuid;

/// The id of the admin token, which the controller creates at its first start.
pub(crate) const ADMIN: &str = "admin";
/// The file of the admin token in the data directory.
pub(crate) const ADMIN_FILE: &str = "admin.token";
/// Lifetime of a login token: one hour, about as long as that of Azure's access tokens. When it has passed, clients log
/// in again without asking the user.
pub(crate) const LOGIN_LIFETIME: Duration = Duration::from_secs(3600);
/// The key prefix of API tokens in the store.
const TOKENS_PREFIX: &str = "own/api-tokens/";
/// The key, in the store, of the document that contains the secret that signs login tokens.
const LOGIN_KEY_DOCUMENT: &str = "own/login-key";
/// First part of the text of an API token, which has the form `tmba.ID.SECRET`.
const TOKEN_PREFIX: &str = "tmba";

/// An API token without its secret, as stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ApiToken {
    /// The public part of the token's text, which is also the `client_id` of a login.
    pub(crate) id: String,
    /// A name for people, chosen when the token is created.
    pub(crate) name: String,
    /// The hash of the whole text (see [`secret::hash`]).
    hash: String,
    /// The time of the token's creation, in Unix seconds.
    pub(crate) created: u64,
}

impl ApiToken {
    /// Identifies the present text of the token without revealing the text. The text of the admin token can change.
    fn fingerprint(&self) -> String {
        secret::hash(&self.hash)[..16].to_owned()
    }
}

/// The claims of a login token. `appid` is the id of the API token, as in Azure's access tokens.
#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    aud: String,
    iss: String,
    tid: String,
    appid: String,
    /// The [`ApiToken::fingerprint`] of the API token at the time of the login. If the API token gets a new text, the
    /// login token becomes invalid.
    key: String,
    oid: String,
    sub: String,
    iat: u64,
    nbf: u64,
    exp: u64,
}

/// Why a request was not authorized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AuthError {
    /// There is no token, or it is not valid.
    Invalid,
    /// The login token has expired.
    Expired,
}

/// API tokens by id.
type Tokens = BTreeMap<String, ApiToken>;

/// The API tokens, and the key of login tokens.
pub(crate) struct Auth {
    tokens: Arc<RwLock<Tokens>>,
    login_key: Vec<u8>,
    /// The id of this controller's only tenant, derived from its authority's certificate.
    pub(crate) tenant: Uuid,
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Auth({})", self.tenant)
    }
}

/// The time of the system clock in Unix seconds.
pub(crate) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

impl Auth {
    /// Reads the API tokens of the store, and the key that signs login tokens; a missing key is created. If the file of
    /// the admin token is missing, as at the first start, creates a new admin token. The text in that file is the valid
    /// admin token: if the store has the hash of another text, that hash is replaced.
    ///
    /// # Errors
    /// A document is malformed or unknown, the file holds no admin token, or the store or the file cannot be written.
    pub(crate) async fn open(app: &App) -> anyhow::Result<Self> {
        let mut tokens = BTreeMap::new();
        for (key, document) in &app.own_documents {
            if key.starts_with(TOKENS_PREFIX) {
                let token: ApiToken =
                    serde_json::from_slice(document).with_context(|| format!("the store's document '{key}'"))?;
                tokens.insert(token.id.clone(), token);
            } else if ![LOGIN_KEY_DOCUMENT, ca::DOCUMENT, asserted::DOCUMENT].contains(&key.as_str())
                && !key.starts_with(DEPLOYMENTS_PREFIX)
                && !key.starts_with(MONITORS_PREFIX)
                && !key.starts_with(CAPTURES_PREFIX)
            {
                anyhow::bail!("the store holds a document '{key}' that this version does not know");
            }
        }
        let login_key = match app.own_documents.get(LOGIN_KEY_DOCUMENT) {
            Some(key) => key.clone(),
            None => {
                let key = rand::random::<[u8; 32]>().to_vec();
                app.writer
                    .set_document(LOGIN_KEY_DOCUMENT.into(), Some(key.clone()))
                    .await?;
                key
            }
        };
        let auth = Self {
            tokens: Arc::new(RwLock::new(tokens)),
            login_key,
            tenant: Uuid::new_v5(&Uuid::NAMESPACE_OID, app.authority.der()),
        };
        auth.load_admin_token(app).await?;
        Ok(auth)
    }

    /// Reads or creates the file of the admin token, and stores the hash of its text.
    async fn load_admin_token(&self, app: &App) -> anyhow::Result<()> {
        let path = app.data_dir.join(ADMIN_FILE);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text.trim().to_owned(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let text = token_text(ADMIN);
                secret::write_private(&path, format!("{text}\n").as_bytes())?;
                if self.get(ADMIN).is_some() {
                    tracing::warn!(file = %path.display(), "the file of the admin token was missing: a new token replaces the old one");
                } else {
                    tracing::info!(file = %path.display(), "admin token created");
                }
                text
            }
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
        };
        anyhow::ensure!(
            text.strip_prefix(TOKEN_PREFIX)
                .is_some_and(|t| t.starts_with(&format!(".{ADMIN}."))),
            "{} does not hold an admin token; remove the file, and the next start creates a new one",
            path.display()
        );
        if self.find(&text).is_none() {
            let token = ApiToken {
                id: ADMIN.into(),
                name: ADMIN.into(),
                hash: secret::hash(&text),
                created: now(),
            };
            self.put(&app.writer, token).await?;
        }
        Ok(())
    }

    fn read<T>(&self, f: impl FnOnce(&BTreeMap<String, ApiToken>) -> T) -> T {
        f(&self.tokens.read().unwrap_or_else(PoisonError::into_inner))
    }

    async fn put(&self, writer: &Writer, token: ApiToken) -> Result<(), WriteError> {
        let document = serde_json::to_vec(&token).map_err(|e| WriteError::Store(e.to_string()))?;
        let id = token.id.clone();
        self.store_then_apply(writer, id, Some(document), |tokens| {
            tokens.insert(token.id.clone(), token);
        })
        .await
    }

    /// Writes a token's document, then applies the change in memory. Runs in a separate task, so that both are done
    /// even if the caller is cancelled between the two.
    async fn store_then_apply(
        &self,
        writer: &Writer,
        id: String,
        document: Option<Vec<u8>>,
        change: impl FnOnce(&mut Tokens) + Send + 'static,
    ) -> Result<(), WriteError> {
        let (writer, tokens) = (writer.clone(), self.tokens.clone());
        let task = tokio::spawn(async move {
            writer.set_document(format!("{TOKENS_PREFIX}{id}"), document).await?;
            change(&mut tokens.write().unwrap_or_else(PoisonError::into_inner));
            Ok(())
        });
        task.await.unwrap_or_else(|e| Err(WriteError::Store(e.to_string())))
    }

    /// Creates a token with a random id. `name` need not be unique. Returns the token and its text when the token is
    /// durable. The text is not stored, so it cannot be shown again.
    pub(crate) async fn create(&self, writer: &Writer, name: &str) -> Result<(ApiToken, String), WriteError> {
        let id = public_part();
        let text = token_text(&id);
        let token = ApiToken {
            hash: secret::hash(&text),
            id,
            name: name.to_owned(),
            created: now(),
        };
        self.put(writer, token.clone()).await?;
        Ok((token, text))
    }

    /// Deletes a token; login tokens that were issued for it become invalid. Returns, when the deletion is durable,
    /// whether the token existed. The caller must refuse to delete the admin token, because this method does not check
    /// that.
    pub(crate) async fn delete(&self, writer: &Writer, id: &str) -> Result<bool, WriteError> {
        if self.get(id).is_none() {
            return Ok(false);
        }
        let deleted = id.to_owned();
        self.store_then_apply(writer, id.to_owned(), None, move |tokens| {
            tokens.remove(&deleted);
        })
        .await?;
        Ok(true)
    }

    /// All API tokens without their texts, ordered by id.
    pub(crate) fn list(&self) -> Vec<ApiToken> {
        self.read(|tokens| tokens.values().cloned().collect())
    }

    fn get(&self, id: &str) -> Option<ApiToken> {
        self.read(|tokens| tokens.get(id).cloned())
    }

    /// The token with this text. `None`: the text has another form, its id is unknown, or its secret is wrong.
    fn find(&self, text: &str) -> Option<ApiToken> {
        let mut parts = text.split('.');
        let (TOKEN_PREFIX, id) = (parts.next()?, parts.next()?) else {
            return None;
        };
        self.get(id).filter(|token| secret::matches(text, &token.hash))
    }

    /// Checks the value of the `Authorization` header: `Bearer` with an API token or a login token. Returns the id of
    /// the API token.
    ///
    /// # Errors
    /// [`AuthError::Expired`]: a login token that was valid has expired. [`AuthError::Invalid`]: there is no token, or
    /// this controller has not issued it. A login token is also invalid if its API token was deleted or has got another
    /// text.
    pub(crate) fn check(&self, authorization: Option<&str>) -> Result<String, AuthError> {
        let text = authorization.and_then(|value| {
            let (scheme, text) = value.trim().split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| text.trim())
        });
        let text = text.ok_or(AuthError::Invalid)?;
        if text.starts_with(TOKEN_PREFIX) {
            return self.find(text).map(|token| token.id).ok_or(AuthError::Invalid);
        }
        let mut validation = Validation::new(Algorithm::HS256);
        // The audience need not be checked: clients choose it when they log in, and no other controller accepts a
        // signature of this controller.
        validation.validate_aud = false;
        validation.validate_nbf = true;
        let key = DecodingKey::from_secret(&self.login_key);
        match jsonwebtoken::decode::<Claims>(text, &key, &validation) {
            Ok(token) => {
                let known = self.get(&token.claims.appid);
                let known = known.filter(|t| t.fingerprint() == token.claims.key);
                known.map(|t| t.id).ok_or(AuthError::Invalid)
            }
            Err(e) if matches!(e.kind(), jsonwebtoken::errors::ErrorKind::ExpiredSignature) => Err(AuthError::Expired),
            Err(_) => Err(AuthError::Invalid),
        }
    }

    /// Logs in with the id and the text of an API token. Returns a login token (JWT) that is valid for
    /// [`LOGIN_LIFETIME`]; `audience` and `issuer` become its claims unchecked. `None`: no API token has this id, or
    /// `text` is not its text.
    pub(crate) fn login(&self, id: &str, text: &str, audience: &str, issuer: &str) -> Option<String> {
        let token = self.find(text.trim()).filter(|t| t.id == id)?;
        let iat = now();
        let object = Uuid::new_v5(&self.tenant, token.id.as_bytes()).to_string();
        let claims = Claims {
            aud: audience.to_owned(),
            iss: issuer.to_owned(),
            tid: self.tenant.to_string(),
            key: token.fingerprint(),
            appid: token.id,
            oid: object.clone(),
            sub: object,
            iat,
            nbf: iat,
            exp: iat + LOGIN_LIFETIME.as_secs(),
        };
        let key = EncodingKey::from_secret(&self.login_key);
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key).ok()
    }
}

/// A new text for a token, with a random secret.
fn token_text(id: &str) -> String {
    format!("{TOKEN_PREFIX}.{id}.{}", secret::random())
}

/// A random id of a token: 16 lower-case hexadecimal digits, which need no escaping in paths and contain no dot.
pub(crate) fn public_part() -> String {
    format!("{:016x}", rand::random::<u64>())
}

#[cfg(test)]
mod golden {
    use super::{ApiToken, Claims};
    use tombolo_golden::golden;

    #[test]
    fn documents_of_api_tokens() {
        let token = ApiToken {
            id: "0123456789abcdef".into(),
            name: "ci".into(),
            hash: "ab".repeat(32),
            created: 1_800_000_000,
        };
        golden!().document("api_token", &token);
    }

    /// A login token stays valid when the controller is restarted with another version, because the claims keep their
    /// names.
    #[test]
    fn claims_of_logins() {
        let claims = Claims {
            aud: "aud".into(),
            iss: "iss".into(),
            tid: "tid".into(),
            appid: "appid".into(),
            key: "key".into(),
            oid: "oid".into(),
            sub: "sub".into(),
            iat: 1_800_000_000,
            nbf: 1_800_000_000,
            exp: 1_800_003_600,
        };
        golden!().document("login_claims", &claims);
    }
}
