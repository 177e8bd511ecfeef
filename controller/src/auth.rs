//! Who may use the REST interface: random tokens, of which only hashes are kept, and short-lived signed ones that stand
//! for them after a login.

use crate::app::App;
use crate::ca;
use crate::secret;
use crate::writer::DEPLOYMENTS;
use crate::writer::{WriteError, Writer};
use anyhow::Context;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use uuid::Uuid;

/// The token that is made at the first start.
pub(crate) const ADMIN: &str = "admin";
/// Where the admin token stands in the data directory.
pub(crate) const ADMIN_FILE: &str = "admin.token";
/// How long a login lasts.
pub(crate) const LOGIN_LIFE: Duration = Duration::from_secs(3600);
const TOKENS: &str = "own/api-tokens/";
const LOGIN_KEY: &str = "own/login-key";
/// First part of a token's text.
const KIND: &str = "tmba";

/// A token for the REST interface, without its text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ApiToken {
    /// Public part of the text; `client_id` of a login.
    pub(crate) id: String,
    /// Chosen by its maker.
    pub(crate) name: String,
    /// Of the whole text.
    hash: String,
    /// Unix seconds.
    pub(crate) created: u64,
}

impl ApiToken {
    /// Tells this text of the token from others, and says nothing of it.
    fn fingerprint(&self) -> String {
        secret::hash(&self.hash)[..16].to_owned()
    }
}

/// What a login token says. `appid` names the token that it stands for.
#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    aud: String,
    iss: String,
    tid: String,
    appid: String,
    /// Which text of that token: another one ends the login (see [`ApiToken::fingerprint`]).
    key: String,
    oid: String,
    sub: String,
    iat: u64,
    nbf: u64,
    exp: u64,
}

/// Why a caller was not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// No token, or none that is valid.
    Invalid,
    /// A login that is over.
    Expired,
}

/// By id.
type Tokens = BTreeMap<String, ApiToken>;

/// All tokens.
pub(crate) struct Auth {
    tokens: Arc<RwLock<Tokens>>,
    login_key: Vec<u8>,
    /// The one tenant of this controller.
    pub(crate) tenant: Uuid,
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Auth({})", self.tenant)
    }
}

/// Unix seconds.
pub(crate) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

impl Auth {
    /// Reads the tokens. At the first start, and whenever its file is gone, makes a new admin token; the file's content
    /// is the one that holds.
    pub(crate) async fn open(app: &App) -> anyhow::Result<Self> {
        let mut tokens = BTreeMap::new();
        for (key, document) in &app.own_documents {
            if key.starts_with(TOKENS) {
                let token: ApiToken =
                    serde_json::from_slice(document).with_context(|| format!("the store's document '{key}'"))?;
                tokens.insert(token.id.clone(), token);
            } else if key != LOGIN_KEY && key != ca::DOCUMENT && !key.starts_with(DEPLOYMENTS) {
                anyhow::bail!("the store holds a document '{key}' that this program does not know");
            }
        }
        let login_key = match app.own_documents.get(LOGIN_KEY) {
            Some(key) => key.clone(),
            None => {
                let key = rand::random::<[u8; 32]>().to_vec();
                app.writer.set_document(LOGIN_KEY.into(), Some(key.clone())).await?;
                key
            }
        };
        let auth = Self {
            tokens: Arc::new(RwLock::new(tokens)),
            login_key,
            tenant: Uuid::new_v5(&Uuid::NAMESPACE_OID, app.authority.der()),
        };
        auth.settle_admin(app).await?;
        Ok(auth)
    }

    async fn settle_admin(&self, app: &App) -> anyhow::Result<()> {
        let path = app.data_dir.join(ADMIN_FILE);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text.trim().to_owned(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let text = token_text(ADMIN);
                secret::write_private(&path, format!("{text}\n").as_bytes())?;
                if self.get(ADMIN).is_some() {
                    tracing::warn!(file = %path.display(), "the admin token's file was gone: a new token replaces it");
                } else {
                    tracing::info!(file = %path.display(), "admin token made");
                }
                text
            }
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
        };
        anyhow::ensure!(
            text.strip_prefix(KIND)
                .is_some_and(|t| t.starts_with(&format!(".{ADMIN}."))),
            "{} holds no admin token: remove it, and a new one is made",
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
        self.settle(writer, id, Some(document), |tokens| {
            tokens.insert(token.id.clone(), token);
        })
        .await
    }

    /// Stores, then changes what is looked at. A task of its own: a caller that goes away in between must not leave the
    /// two apart.
    async fn settle(
        &self,
        writer: &Writer,
        id: String,
        document: Option<Vec<u8>>,
        change: impl FnOnce(&mut Tokens) + Send + 'static,
    ) -> Result<(), WriteError> {
        let (writer, tokens) = (writer.clone(), self.tokens.clone());
        let task = tokio::spawn(async move {
            writer.set_document(format!("{TOKENS}{id}"), document).await?;
            change(&mut tokens.write().unwrap_or_else(PoisonError::into_inner));
            Ok(())
        });
        task.await.unwrap_or_else(|e| Err(WriteError::Store(e.to_string())))
    }

    /// Makes a token; its text is seen only here.
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

    /// Withdraws a token, with the logins that stand for it. Says whether it was there.
    pub(crate) async fn delete(&self, writer: &Writer, id: &str) -> Result<bool, WriteError> {
        if self.get(id).is_none() {
            return Ok(false);
        }
        let gone = id.to_owned();
        self.settle(writer, id.to_owned(), None, move |tokens| {
            tokens.remove(&gone);
        })
        .await?;
        Ok(true)
    }

    /// All tokens, in order of id.
    pub(crate) fn list(&self) -> Vec<ApiToken> {
        self.read(|tokens| tokens.values().cloned().collect())
    }

    fn get(&self, id: &str) -> Option<ApiToken> {
        self.read(|tokens| tokens.get(id).cloned())
    }

    /// The token whose text this is.
    fn find(&self, text: &str) -> Option<ApiToken> {
        let mut parts = text.split('.');
        let (KIND, id) = (parts.next()?, parts.next()?) else {
            return None;
        };
        self.get(id).filter(|token| secret::matches(text, &token.hash))
    }

    /// Lets a caller in by the value of the `Authorization` header. Returns the id of the token.
    pub(crate) fn check(&self, authorization: Option<&str>) -> Result<String, Refused> {
        let text = authorization.and_then(|value| {
            let (scheme, text) = value.trim().split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| text.trim())
        });
        let text = text.ok_or(Refused::Invalid)?;
        if text.starts_with(KIND) {
            return self.find(text).map(|token| token.id).ok_or(Refused::Invalid);
        }
        let mut validation = Validation::new(Algorithm::HS256);
        validation.validate_aud = false;
        validation.validate_nbf = true;
        let key = DecodingKey::from_secret(&self.login_key);
        match jsonwebtoken::decode::<Claims>(text, &key, &validation) {
            Ok(token) => {
                let known = self.get(&token.claims.appid);
                let known = known.filter(|t| t.fingerprint() == token.claims.key);
                known.map(|t| t.id).ok_or(Refused::Invalid)
            }
            Err(e) if matches!(e.kind(), jsonwebtoken::errors::ErrorKind::ExpiredSignature) => Err(Refused::Expired),
            Err(_) => Err(Refused::Invalid),
        }
    }

    /// A login with a token's id and text. Returns a signed token for [`LOGIN_LIFE`]; none: they do not belong together.
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
            exp: iat + LOGIN_LIFE.as_secs(),
        };
        let key = EncodingKey::from_secret(&self.login_key);
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key).ok()
    }
}

fn token_text(id: &str) -> String {
    format!("{KIND}.{id}.{}", secret::random())
}

/// A random public part of a token: lower-case hex, so that it may stand in paths and between dots.
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

    /// A login outlives a restart of the controller by another version.
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
