//! Error messages with hints, and exit codes.

use owo_colors::OwoColorize as _;
use std::fmt;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use tombolo_client::Error;
use tombolo_client::manifest::ApplyError;

/// A mistake in the command line or the configuration, with a hint how to correct it. The exit code is 2.
#[derive(Debug)]
pub(crate) struct UsageError {
    what: String,
    hint: String,
}

impl UsageError {
    /// An error with this message. `hint` is shown after "try:".
    pub(crate) fn new(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            hint: hint.into(),
        }
    }
}

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for UsageError {}

/// A resource that the command line names does not exist. This program has found that out by itself, without a 404 from
/// the controller. The exit code is 3, as for a 404.
#[derive(Debug)]
pub(crate) struct NotFound(pub(crate) String);

impl fmt::Display for NotFound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NotFound {}

/// The command has worked, and its result is negative: for example, a packet would be dropped. The exit code is 1.
#[derive(Debug)]
pub(crate) struct NegativeResult(pub(crate) String);

impl fmt::Display for NegativeResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NegativeResult {}

/// Prints an error with its hint to standard error, and returns the exit code: 1 for a negative result, 2 for wrong
/// usage, 3 for a resource that does not exist, 4 for any other failure. So a script can distinguish "B is not
/// reachable" (1) from "the controller did not answer" (4).
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

/// Returns the error and its causes in one line. Omits a cause whose text is contained in the text before it.
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
    if error.chain().any(|c| c.is::<UsageError>()) {
        2
    } else if error.chain().any(|c| c.is::<NotFound>()) || client_error(error).is_some_and(Error::is_not_found) {
        3
    } else if error.chain().any(|c| c.is::<NegativeResult>()) {
        1
    } else {
        4
    }
}

/// Returns the next step for the user; `None` if there is no advice beyond the message.
fn hint(error: &anyhow::Error) -> Option<String> {
    if let Some(usage) = error.chain().find_map(|c| c.downcast_ref::<UsageError>()) {
        return Some(usage.hint.clone());
    }
    if let Some(ApplyError::Step { done, .. }) = error.chain().find_map(|c| c.downcast_ref::<ApplyError>())
        && *done > 0
        && !matches!(client_error(error), Some(Error::Unreachable { .. }))
    {
        return Some(format!(
            "{done} change(s) before this one are done; correct the file and apply it again to continue from here"
        ));
    }
    client_hint(client_error(error)?)
}

fn client_hint(error: &Error) -> Option<String> {
    let hint = match error {
        Error::Unreachable { base, .. } => format!(
            "is the controller running, and is its address correct? Start it with `tombolo-controller --data-dir DIR \
             --listen ADDR:PORT`, check it with `curl -k {base}/fabric/v1/health`"
        ),
        Error::Certificate { .. } => {
            "name the controller's CA with --ca DIR/ca.pem (DIR: its data folder), TOMBOLO_CA, or `tombolo login --ca`; \
             the host of the URL must be one that the certificate names"
                .to_owned()
        }
        Error::Timeout { .. } => "the controller is reachable but did not answer in time; see its log".to_owned(),
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
                "the other half lost its counterpart: return it to Initiated with `tombolo peering update`, or delete it, \
                 then create this half again (P14)"
                    .to_owned()
            }
            (_, "RemoteVnetHasNoGateways") => {
                "create a gateway in the remote VNet first: `tombolo gateway create` (P20)".to_owned()
            }
            (_, "XRemotePeeringTransitNotAllowed") => {
                "set the flag on the remote half first: `tombolo peering update VNET/NAME --allow-gateway-transit` (P20)"
                    .to_owned()
            }
            (_, "InUseSubnetCannotBeDeleted") => {
                "delete or move the network interfaces and gateways in it first: `tombolo nic list`, `tombolo gateway list`"
                    .to_owned()
            }
            (_, "VirtualNetworkGatewayCannotBeDeleted") => {
                "delete its connections first: `tombolo connection list`".to_owned()
            }
            _ => return None,
        },
    };
    Some(hint)
}
