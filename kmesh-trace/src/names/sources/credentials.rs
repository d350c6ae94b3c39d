//! Who asks: tokens, passwords, and the programs that a kubeconfig names to get them (exec plugins).

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use chrono::DateTime;
use http::HeaderValue;
use rustix::process::{Signal, set_parent_process_death_signal};
use serde::Deserialize;
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;
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
    /// Not at all.
    None,
    /// By a token.
    Token(HeaderValue),
    /// By the token in a file, which is read at each request: it may be renewed.
    TokenFile(PathBuf),
    /// By a program's output.
    Plugin(Plugin),
}

/// What a request is sent with.
#[derive(Clone, Default)]
pub struct Grant {
    /// The `Authorization` header.
    pub authorization: Option<HeaderValue>,
    /// A client certificate.
    pub identity: Option<Identity>,
}

impl Credentials {
    /// Returns credentials with user and password.
    pub fn basic(user: &str, password: &str) -> Result<Self, SourceError> {
        basic_auth(user, password).map(Self::Token)
    }

    /// Returns credentials with this token; `source` says where it is from.
    pub fn token(token: &str, source: &str) -> Result<Self, SourceError> {
        bearer(token, source).map(Self::Token)
    }

    /// Returns what to send with the next request. An exec plugin runs when there is nothing valid.
    pub async fn grant(&self) -> Result<Grant, SourceError> {
        let authorization = match self {
            Self::None => None,
            Self::Token(header) => Some(header.clone()),
            Self::TokenFile(path) => {
                let text = String::from_utf8_lossy(&read_file(path)?).into_owned();
                Some(bearer(&text, &path.display().to_string())?)
            }
            Self::Plugin(plugin) => return plugin.grant().await,
        };
        Ok(Grant {
            authorization,
            identity: None,
        })
    }

    /// Forgets what an exec plugin has given: the server rejects it.
    pub fn forget(&self) {
        if let Self::Plugin(plugin) = self {
            *plugin.granted.lock().unwrap_or_else(PoisonError::into_inner) = None;
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

/// An exec plugin of a kubeconfig.
pub struct Plugin {
    /// The program.
    pub command: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Environment variables for it.
    pub env: Vec<(String, String)>,
    /// Its version of the protocol.
    pub api_version: String,
    /// What the user should do when the program is not there.
    pub install_hint: Option<String>,
    /// The server, if the program wants to know it.
    pub cluster: Option<serde_json::Value>,
    granted: Mutex<Option<Granted>>,
    /// Held while the plugin runs; when it failed last, and why.
    failed: tokio::sync::Mutex<Option<(Instant, SourceError)>>,
}

#[derive(Clone)]
struct Granted {
    grant: Grant,
    /// When it expires, in nanoseconds since the epoch.
    expires: Option<i64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
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
    /// Returns a plugin that has not run yet.
    pub fn new(command: PathBuf, args: Vec<String>, env: Vec<(String, String)>, api_version: String) -> Self {
        Self {
            command,
            args,
            env,
            api_version,
            install_hint: None,
            cluster: None,
            granted: Mutex::default(),
            failed: tokio::sync::Mutex::default(),
        }
    }

    fn valid(&self) -> Option<Grant> {
        let granted = self.granted.lock().unwrap_or_else(PoisonError::into_inner);
        let granted = granted.as_ref()?;
        let is_valid = granted.expires.is_none_or(|at| now().0 < at - RENEW_BEFORE_NS);
        is_valid.then(|| granted.grant.clone())
    }

    async fn grant(&self) -> Result<Grant, SourceError> {
        // All kinds of objects are asked for at once, but the plugin runs once.
        let mut failed = self.failed.lock().await;
        if let Some(grant) = self.valid() {
            return Ok(grant);
        }
        if let Some((at, error)) = &*failed
            && at.elapsed() < RETRY_INTERVAL
        {
            return Err(error.clone());
        }
        let granted = timeout(PLUGIN_TIMEOUT, self.run()).await.unwrap_or_else(|_| {
            let seconds = PLUGIN_TIMEOUT.as_secs();
            Err(self.error(&format!("has not ended within {seconds} s")))
        });
        let granted = granted.inspect_err(|error| *failed = Some((Instant::now(), error.clone())))?;
        let grant = granted.grant.clone();
        *self.granted.lock().unwrap_or_else(PoisonError::into_inner) = Some(granted);
        Ok(grant)
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
            let problem = self.error(&format!("cannot be run: {}", error::io(&error)));
            match &self.install_hint {
                Some(hint) => problem.remedy(&error::one_line(hint)),
                None => problem,
            }
        })?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let (output, errors) = tokio::join!(read_all(stdout), read_all(stderr));
        let status = child.wait().await.map_err(|error| self.error(&error::io(&error)))?;
        if !status.success() {
            // Standard output is never quoted: tokens are printed there.
            let errors = error::one_line(&String::from_utf8_lossy(&errors));
            let why = if errors.is_empty() {
                "it says nothing on standard error"
            } else {
                &errors
            };
            return Err(self.error(&format!("failed with {status}: {why}")));
        }
        self.granted(&output)
    }

    fn granted(&self, output: &[u8]) -> Result<Granted, SourceError> {
        let parsed = serde_json::from_slice::<ExecCredential>(output).ok();
        let status = parsed.and_then(|credential| credential.status);
        let status = status.ok_or_else(|| self.error("printed no ExecCredential with a status"))?;
        let data = |text: String, what: &str| Pem::Data(text.into_bytes(), format!("the {what} of the exec plugin"));
        let identity = match (status.client_certificate_data, status.client_key_data) {
            (Some(certificate), Some(key)) => Some(Identity {
                certificate: data(certificate, "certificate"),
                key: data(key, "key"),
            }),
            _ => None,
        };
        let source = format!("the output of the exec plugin {}", self.command.display());
        let authorization = status.token.map(|token| bearer(&token, &source)).transpose()?;
        if authorization.is_none() && identity.is_none() {
            return Err(self.error("gave neither a token nor a certificate"));
        }
        let expires = status.expiration_timestamp.as_deref();
        let expires = expires.and_then(|time| DateTime::parse_from_rfc3339(time).ok()?.timestamp_nanos_opt());
        Ok(Granted {
            grant: Grant {
                authorization,
                identity,
            },
            expires,
        })
    }
}

/// Makes the kernel kill the program when the thread that starts it ends: that is at the end of the tool, even if it is
/// killed.
fn end_with_tool(command: &mut Command) {
    let before_exec = || set_parent_process_death_signal(Some(Signal::KILL)).map_err(Into::into);
    // SAFETY: between fork and exec the closure does one system call, prctl(2), and neither allocates nor locks.
    unsafe {
        command.pre_exec(before_exec);
    }
}

async fn read_all(stream: Option<impl tokio::io::AsyncRead + Unpin>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        // What can be read is read: what is wrong shows in the output.
        _ = stream.take(MAX_OUTPUT).read_to_end(&mut bytes).await;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(script: &str) -> Result<Grant, String> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let args = vec!["-c".to_owned(), script.to_owned()];
        let plugin = Plugin::new(
            "/bin/sh".into(),
            args,
            vec![],
            "client.authentication.k8s.io/v1".to_owned(),
        );
        runtime.block_on(plugin.grant()).map_err(|error| error.to_string())
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
