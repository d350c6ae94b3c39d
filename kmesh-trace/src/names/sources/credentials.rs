//! How a client proves who it is: tokens, passwords, and the programs that a kubeconfig names to get them (exec
//! plugins).

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use chrono::DateTime;
use http::HeaderValue;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::error::{self, SourceError};
use super::now;
use super::proxy::basic_auth;
use super::tls::{Identity, Pem, read_file};

/// The longest time for an exec plugin.
const PLUGIN_TIMEOUT: Duration = Duration::from_secs(60);
/// The shortest time between a failure of an exec plugin and its next run.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// The most output of an exec plugin that is read, in bytes.
const MAX_OUTPUT: u64 = 1 << 20;
/// Credentials are renewed when they expire within this time.
const RENEW_BEFORE_NS: i64 = 10_000_000_000;

/// How a client proves who it is, besides a client certificate in its settings.
#[expect(clippy::large_enum_variant, reason = "there is one for each source")]
pub enum Credentials {
    None,
    /// The value of the `Authorization` header.
    Token(HeaderValue),
    /// The token in a file, which is read at each request: it may be renewed.
    TokenFile(PathBuf),
    Plugin(Plugin),
}

#[derive(Clone, Default)]
pub struct Grant {
    /// The value of the `Authorization` header.
    pub authorization: Option<HeaderValue>,
    pub identity: Option<Identity>,
}

impl Credentials {
    pub fn basic(user: &str, password: &str) -> Result<Self, SourceError> {
        basic_auth(user, password).map(Self::Token)
    }

    /// Returns credentials with this token; `source` names its origin in errors.
    pub fn token(token: &str, source: &str) -> Result<Self, SourceError> {
        bearer(token, source).map(Self::Token)
    }

    /// Returns what to send with the next request. An exec plugin runs when there is nothing valid.
    pub async fn grant(&self) -> Result<Grant, SourceError> {
        let authorization = match self {
            Self::None => None,
            Self::Token(header) => Some(header.clone()),
            Self::TokenFile(path) => {
                let text = read_file(path)?;
                Some(bearer(&String::from_utf8_lossy(&text), &path.display().to_string())?)
            }
            Self::Plugin(plugin) => return plugin.grant().await,
        };
        let identity = None;
        Ok(Grant {
            authorization,
            identity,
        })
    }

    /// Forgets what an exec plugin has given: the server rejects it.
    pub fn forget(&self) {
        // A plugin that runs gives something new anyway.
        if let Self::Plugin(plugin) = self
            && let Ok(mut state) = plugin.state.try_lock()
        {
            state.granted = None;
        }
    }
}

fn bearer(token: &str, source: &str) -> Result<HeaderValue, SourceError> {
    let token = token.trim();
    if token.is_empty() {
        return Err(SourceError::new(format!("{source} has no token")));
    }
    // The library's error could quote the token.
    let mut header = HeaderValue::from_str(&format!("Bearer {token}"))
        .map_err(|_| SourceError::new(format!("the token in {source} has characters that no token has")))?;
    header.set_sensitive(true);
    Ok(header)
}

pub struct Plugin {
    command: PathBuf,
    args: Vec<String>,
    env: Vec<(String, String)>,
    /// The plugin's version of the protocol.
    api_version: String,
    /// What the user should do when the program does not exist.
    pub install_hint: Option<String>,
    /// The server, if the program wants to know it.
    pub cluster: Option<serde_json::Value>,
    /// Locked while the plugin runs.
    state: Mutex<PluginState>,
}

#[derive(Default)]
struct PluginState {
    granted: Option<Granted>,
    /// When the plugin failed last, and why.
    failed: Option<(Instant, SourceError)>,
}

struct Granted {
    grant: Grant,
    /// When it expires, in nanoseconds since the epoch.
    expires: Option<i64>,
}

#[derive(Deserialize)]
struct ExecCredential {
    status: Option<ExecStatus>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ExecStatus {
    expiration_timestamp: Option<String>,
    token: Option<String>,
    client_certificate_data: Option<String>,
    client_key_data: Option<String>,
}

impl Plugin {
    pub fn new(command: PathBuf, args: Vec<String>, env: Vec<(String, String)>, api_version: String) -> Self {
        Self {
            command,
            args,
            env,
            api_version,
            install_hint: None,
            cluster: None,
            state: Mutex::default(),
        }
    }

    async fn grant(&self) -> Result<Grant, SourceError> {
        // All kinds of objects are requested at once, but the plugin runs once.
        let mut state = self.state.lock().await;
        if let Some(Granted { grant, expires }) = &state.granted
            && expires.is_none_or(|at| now().0 < at - RENEW_BEFORE_NS)
        {
            return Ok(grant.clone());
        }
        if let Some((at, error)) = &state.failed
            && at.elapsed() < RETRY_INTERVAL
        {
            return Err(error.clone());
        }
        let granted = timeout(PLUGIN_TIMEOUT, self.run()).await.unwrap_or_else(|_| {
            let seconds = PLUGIN_TIMEOUT.as_secs();
            Err(self.error(&format!("has not ended within {seconds} s")))
        });
        let granted = granted.inspect_err(|error| state.failed = Some((Instant::now(), error.clone())))?;
        Ok(state.granted.insert(granted).grant.clone())
    }

    fn error(&self, problem: &str) -> SourceError {
        SourceError::new(format!("the exec plugin {} {problem}", self.command.display()))
    }

    async fn run(&self) -> Result<Granted, SourceError> {
        let mut info = serde_json::json!({
            "apiVersion": self.api_version, "kind": "ExecCredential", "spec": {"interactive": false},
        });
        if let Some(cluster) = &self.cluster {
            info["spec"]["cluster"] = cluster.clone();
        }
        let mut command = Command::new(&self.command);
        command
            .args(&self.args)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .env("KUBERNETES_EXEC_INFO", info.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        end_with_tool(&mut command);
        let mut child = command.spawn().map_err(|error| {
            let hint = self.install_hint.as_deref().unwrap_or_default();
            let problem = format!("cannot be run: {}", error::io(&error));
            self.error(&problem).remedy(&error::one_line(hint))
        })?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let (output, errors) = tokio::join!(read_all(stdout), read_all(stderr));
        let status = child.wait().await.map_err(|error| self.error(&error::io(&error)))?;
        if !status.success() {
            // Standard output is never quoted: tokens are printed there.
            let errors = error::one_line(&String::from_utf8_lossy(&errors));
            let errors = if errors.is_empty() {
                "nothing on standard error"
            } else {
                &errors
            };
            return Err(self.error(&format!("failed with {status}: {errors}")));
        }
        self.granted(&output)
    }

    fn granted(&self, output: &[u8]) -> Result<Granted, SourceError> {
        let parsed = serde_json::from_slice::<ExecCredential>(output).ok();
        let status = parsed.and_then(|credential| credential.status);
        let status = status.ok_or_else(|| self.error("printed no ExecCredential with a status"))?;
        let pem = |text: String, what: &str| Pem::Data(text.into_bytes(), format!("the {what} of the exec plugin"));
        let certificate = status.client_certificate_data.map(|text| pem(text, "certificate"));
        let key = status.client_key_data.map(|text| pem(text, "key"));
        let identity = certificate
            .zip(key)
            .map(|(certificate, key)| Identity { certificate, key });
        let source = format!("the output of the exec plugin {}", self.command.display());
        let authorization = status.token.map(|token| bearer(&token, &source)).transpose()?;
        if authorization.is_none() && identity.is_none() {
            return Err(self.error("gave neither a token nor a certificate"));
        }
        let expires = status.expiration_timestamp.as_deref();
        Ok(Granted {
            grant: Grant {
                authorization,
                identity,
            },
            expires: expires.and_then(|time| DateTime::parse_from_rfc3339(time).ok()?.timestamp_nanos_opt()),
        })
    }
}

/// Makes the kernel kill the program when the thread that starts it ends: that is at the end of the tool, even if it is
/// killed.
#[cfg(target_os = "linux")]
fn end_with_tool(command: &mut Command) {
    use rustix::process::{Signal, set_parent_process_death_signal};

    let before_exec = || set_parent_process_death_signal(Some(Signal::KILL)).map_err(Into::into);
    // SAFETY: between fork and exec the closure does one system call, prctl(2), and neither allocates nor locks.
    unsafe {
        command.pre_exec(before_exec);
    }
}

/// Does nothing: only Linux can do that.
#[cfg(not(target_os = "linux"))]
fn end_with_tool(_: &mut Command) {}

async fn read_all(stream: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        // An error of the stream shows in the output, which is not complete.
        _ = stream.take(MAX_OUTPUT).read_to_end(&mut bytes).await;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::sources::test_server::runtime;

    fn grant(script: &str) -> Result<Grant, String> {
        let args = vec!["-c".to_owned(), script.to_owned()];
        let version = "client.authentication.k8s.io/v1".to_owned();
        let plugin = Plugin::new("/bin/sh".into(), args, vec![], version);
        runtime().block_on(plugin.grant()).map_err(|error| error.to_string())
    }

    #[test]
    fn plugin_gives_a_token() {
        let printed =
            r#"echo warning: renewing >&2; printf '%s' '{"kind":"ExecCredential","status":{"token":" s3cret\n"}}'"#;
        assert_eq!(grant(printed).ok().unwrap().authorization.unwrap(), "Bearer s3cret");
    }

    #[test]
    fn output_of_a_plugin_is_never_quoted() {
        let cases = [
            ("echo s3cret; echo 'no\u{1b}[2J session' >&2; exit 3", "no[2J session"),
            ("echo s3cret; exit 3", "nothing on standard error"),
            ("echo s3cret", "printed no ExecCredential"),
            (
                r#"echo '{"status":{"tok":"s3cret"}}'"#,
                "neither a token nor a certificate",
            ),
            (
                r#"printf '{"status":{"token":"s3cret\\u0007"}}'"#,
                "characters that no token has",
            ),
        ];
        for (script, part) in cases {
            let error = grant(script).err().unwrap();
            assert!(error.contains(part) && !error.contains("s3cret"), "{script}: {error}");
        }
    }

    #[test]
    fn tokens_are_trimmed_and_never_quoted() {
        assert!(bearer(" s3cret\n", "x").is_ok_and(|header| header == "Bearer s3cret"));
        for token in ["s3\ncret", "", "\n"] {
            let error = bearer(token, "/token").unwrap_err().to_string();
            assert!(error.contains("/token") && !error.contains("cret"), "{error}");
        }
    }
}
