//! Errors for people: what happened, then what to do. And the exit code.

use owo_colors::OwoColorize as _;
use std::fmt;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use tombolo_client::Error;
use tombolo_client::manifest::ApplyError;

/// A mistake that the user can mend without the controller.
#[derive(Debug)]
pub(crate) struct Usage {
    what: String,
    hint: String,
}

impl Usage {
    pub(crate) fn new(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            hint: hint.into(),
        }
    }
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Usage {}

/// Something named on the command line does not exist, as this program itself found out.
#[derive(Debug)]
pub(crate) struct NotFound(pub(crate) String);

impl fmt::Display for NotFound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NotFound {}

/// The answer to what was asked is no. No failure of asking.
#[derive(Debug)]
pub(crate) struct No(pub(crate) String);

impl fmt::Display for No {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for No {}

/// Prints an error and says with which code to exit: 1 the answer is no, 2 usage, 3 not found, 4 it could not be done.
/// A script can tell "not reachable" from "could not be asked".
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let (mark, hint_mark) = if colour {
        ("error:".red().bold().to_string(), "  try:".cyan().bold().to_string())
    } else {
        ("error:".to_owned(), "  try:".to_owned())
    };
    eprintln!("{mark} {}", text(error));
    if let Some(hint) = hint(error) {
        eprintln!("{hint_mark} {hint}");
    }
    ExitCode::from(code(error))
}

/// The chain of causes in one line; a cause that its parent quotes already is left out.
fn text(error: &anyhow::Error) -> String {
    let mut out = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if out.is_empty() {
            out = cause;
        } else if !out.contains(&cause) {
            out.push_str(": ");
            out.push_str(&cause);
        }
    }
    out
}

fn client_error(error: &anyhow::Error) -> Option<&Error> {
    error
        .chain()
        .find_map(|cause| match cause.downcast_ref::<ApplyError>() {
            Some(ApplyError::Read(e) | ApplyError::Step { source: e, .. }) => Some(e),
            _ => cause.downcast_ref::<Error>(),
        })
}

fn code(error: &anyhow::Error) -> u8 {
    if error.chain().any(|c| c.is::<Usage>()) {
        2
    } else if error.chain().any(|c| c.is::<NotFound>()) || client_error(error).is_some_and(Error::is_not_found) {
        3
    } else if error.chain().any(|c| c.is::<No>()) {
        1
    } else {
        4
    }
}

/// What to do about it.
fn hint(error: &anyhow::Error) -> Option<String> {
    if let Some(usage) = error.chain().find_map(|c| c.downcast_ref::<Usage>()) {
        return Some(usage.hint.clone());
    }
    if let Some(ApplyError::Step { done, .. }) = error.chain().find_map(|c| c.downcast_ref::<ApplyError>())
        && *done > 0
        && !matches!(client_error(error), Some(Error::Unreachable { .. }))
    {
        return Some(format!(
            "{done} change(s) before it are done; mend the file and apply again, it goes on from here"
        ));
    }
    client_hint(client_error(error)?)
}

fn client_hint(error: &Error) -> Option<String> {
    let hint = match error {
        Error::Unreachable { base, .. } => format!(
            "is the controller running, and is its address right? Start it with `tombolo-controller --data-dir DIR \
             --listen ADDR:PORT`, check it with `curl -k {base}/fabric/v1/health`"
        ),
        Error::Certificate { .. } => {
            "give the controller's CA: --ca DIR/ca.pem (DIR: its data folder), or TOMBOLO_CA, or `tombolo login --ca`; \
             the host must be written as the certificate has it"
                .to_owned()
        }
        Error::Timeout { .. } => "the controller is reached but slow; see its log".to_owned(),
        Error::Protocol { .. } => "is this a Tombolo controller, of the same version as this program?".to_owned(),
        Error::Invalid(_) => return None,
        Error::Api(e) => match (e.status, e.code.as_str()) {
            (401, _) => {
                "the token is missing or wrong: --token-file DIR/admin.token (DIR: the controller's data folder), \
                 TOMBOLO_TOKEN_FILE, or `tombolo login`"
                    .to_owned()
            }
            (404, "ResourceGroupNotFound") => {
                "create it with `tombolo group create NAME`, or see `tombolo group list`".to_owned()
            }
            (_, "RemotePeeringIsDisconnected") => {
                "the other half lost its counterpart: `tombolo peering update` it (back to Initiated), or delete it, \
                 then create this half again (P14)"
                    .to_owned()
            }
            (_, "RemoteVnetHasNoGateways") => {
                "create a gateway in the remote VNet first: `tombolo gateway create` (P20)".to_owned()
            }
            (_, "XRemotePeeringTransitNotAllowed") => {
                "set it on the remote half first: `tombolo peering update VNET/NAME --allow-gateway-transit` (P20)"
                    .to_owned()
            }
            (_, "InUseSubnetCannotBeDeleted") => {
                "delete or move what lives in it first: `tombolo nic list`, `tombolo gateway list`".to_owned()
            }
            (_, "VirtualNetworkGatewayCannotBeDeleted") => {
                "delete its connections first: `tombolo connection list`".to_owned()
            }
            _ => return None,
        },
    };
    Some(hint)
}
