//! Kubeconfigs: how to reach an API server, and as whom. What works with kubectl works here, apart from what an error names.
//!
//! No error quotes a kubeconfig: there are tokens and keys in it.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderName, HeaderValue, Uri};
use serde::Deserialize;

use super::credentials::{Credentials, Plugin};
use super::error::{self, SourceError};
use super::http_client::HttpClient;
use super::proxy::Proxy;
use super::proxy::has_valid_port;
use super::tls::{Identity, Pem, TlsSettings};
use crate::config::ApiServer;
use crate::names::objects::file::yaml_error;

/// What a pod is given to prove who it is, and to verify the API server.
pub const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// The largest kubeconfig, in bytes.
const MAX_BYTES: u64 = 8 << 20;

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct Kubeconfig {
    current_context: Option<String>,
    clusters: Option<Vec<Named<Cluster>>>,
    users: Option<Vec<Named<User>>>,
    contexts: Option<Vec<Named<Context>>>,
}

#[derive(Deserialize)]
struct Named<T> {
    name: String,
    #[serde(alias = "cluster", alias = "user", alias = "context")]
    value: Option<T>,
    /// The folder of the file: relative paths start there.
    #[serde(skip)]
    folder: PathBuf,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct Cluster {
    server: Option<String>,
    certificate_authority: Option<String>,
    certificate_authority_data: Option<String>,
    insecure_skip_tls_verify: Option<bool>,
    tls_server_name: Option<String>,
    proxy_url: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct User {
    client_certificate: Option<String>,
    client_certificate_data: Option<String>,
    client_key: Option<String>,
    client_key_data: Option<String>,
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<String>,
    username: Option<String>,
    password: Option<String>,
    r#as: Option<String>,
    as_groups: Option<Vec<String>>,
    exec: Option<Exec>,
    auth_provider: Option<serde_json::Value>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Exec {
    command: String,
    args: Option<Vec<String>>,
    env: Option<Vec<EnvVar>>,
    api_version: String,
    install_hint: Option<String>,
    provide_cluster_info: bool,
}

#[derive(Deserialize)]
struct EnvVar {
    name: String,
    value: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Context {
    cluster: Option<String>,
    user: Option<String>,
}

/// Where a kubeconfig comes from.
struct Origin {
    label: String,
    /// Whether the user named the file. Only such a file may name a program to run.
    is_named: bool,
}

/// Returns a client for the API server that the flags name. All files are read, and can be used.
pub fn client(api_server: &ApiServer) -> Result<HttpClient, SourceError> {
    let context = api_server.context.as_deref();
    let (files, origin) = match &api_server.kubeconfig {
        Some(path) => (vec![path.clone()], named(path.display().to_string())),
        None => match found() {
            Some(found) => found,
            None => return in_pod(context),
        },
    };
    let must_exist = api_server.kubeconfig.is_some() || !origin.is_named;
    let config = read_all(&files, must_exist)?;
    let client = config.client(context, &origin);
    client.map_err(|error| error.at(&format!("{} (--kubeconfig) cannot be used", origin.label)))
}

fn named(label: String) -> Origin {
    Origin { label, is_named: true }
}

/// Finds the kubeconfig as kubectl does.
fn found() -> Option<(Vec<PathBuf>, Origin)> {
    if let Some(value) = env::var_os("KUBECONFIG").filter(|value| !value.is_empty()) {
        let files = env::split_paths(&value).filter(|path| !path.as_os_str().is_empty());
        return Some((files.collect(), named("$KUBECONFIG".to_owned())));
    }
    let path = env::home_dir()?.join(".kube/config");
    path.exists().then(|| {
        let label = path.display().to_string();
        (vec![path], Origin { label, is_named: false })
    })
}

/// Reads and merges files. The first file that has a name, or a current context, decides it.
fn read_all(files: &[PathBuf], must_exist: bool) -> Result<Kubeconfig, SourceError> {
    let mut all = Kubeconfig::default();
    let mut read_any = false;
    for path in files {
        let text = match read_text(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !must_exist => continue,
            text => text.map_err(|error| {
                SourceError::new(format!(
                    "cannot use {} (--kubeconfig): {}",
                    path.display(),
                    error::io(&error)
                ))
            })?,
        };
        read_any = true;
        let one = parse(&text).map_err(|error| error.at(&format!("cannot use {} (--kubeconfig)", path.display())))?;
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        all.current_context = all
            .current_context
            .filter(|name| !name.is_empty())
            .or(one.current_context);
        merge(&mut all.clusters, one.clusters, &folder);
        merge(&mut all.users, one.users, &folder);
        merge(&mut all.contexts, one.contexts, &folder);
    }
    match read_any {
        true => Ok(all),
        false => Err(SourceError::new(
            "no file in $KUBECONFIG exists (--kubeconfig)".to_owned(),
        )),
    }
}

fn read_text(path: &Path) -> io::Result<String> {
    if fs::metadata(path)?.len() > MAX_BYTES {
        return Err(io::Error::other("the file has more than 8 MiB"));
    }
    fs::read_to_string(path)
}

fn parse(text: &str) -> Result<Kubeconfig, SourceError> {
    if text.trim().is_empty() {
        return Ok(Kubeconfig::default());
    }
    serde_saphyr::from_str(text).map_err(|error| SourceError::new(yaml_error(&error).to_string()))
}

fn merge<T>(all: &mut Option<Vec<Named<T>>>, more: Option<Vec<Named<T>>>, folder: &Path) {
    let all = all.get_or_insert_default();
    for mut one in more.into_iter().flatten() {
        if all.iter().all(|known| known.name != one.name) {
            one.folder = folder.to_owned();
            all.push(one);
        }
    }
}

fn find<'a, T>(what: &str, name: &str, all: &'a Option<Vec<Named<T>>>) -> Result<(&'a T, &'a Path), SourceError> {
    let found = all.iter().flatten().find(|one| one.name == name);
    match found.and_then(|found| Some((found.value.as_ref()?, found.folder.as_path()))) {
        Some(found) => Ok(found),
        None => Err(SourceError::new(format!("there is no {what} {name}"))),
    }
}

impl Kubeconfig {
    fn client(&self, context: Option<&str>, origin: &Origin) -> Result<HttpClient, SourceError> {
        let context = context
            .or(self.current_context.as_deref())
            .filter(|name| !name.is_empty());
        let context =
            context.ok_or_else(|| SourceError::new("it has no current context".to_owned()).remedy("--context=NAME"))?;
        let (context, _) = find("context", context, &self.contexts)?;
        let (cluster, cluster_folder) = find(
            "cluster",
            context.cluster.as_deref().unwrap_or_default(),
            &self.clusters,
        )?;
        let nobody = User::default();
        let (user, user_folder) = match context.user.as_deref().filter(|name| !name.is_empty()) {
            Some(name) => find("user", name, &self.users)?,
            None => (&nobody, Path::new("")),
        };
        let mut tls = TlsSettings {
            ca: pem(
                &cluster.certificate_authority_data,
                &cluster.certificate_authority,
                "certificate-authority-data",
                cluster_folder,
            )?,
            identity: user.identity(user_folder)?,
            insecure: cluster.insecure_skip_tls_verify == Some(true),
            names: Vec::new(),
        };
        let has_tls = tls.ca.is_some() || tls.identity.is_some() || tls.insecure;
        let server = server_url(non_empty(&cluster.server).unwrap_or_default(), has_tls)?;
        let name = non_empty(&cluster.tls_server_name).or(server.host());
        tls.names = name.map(str::to_owned).into_iter().collect();
        let proxy = match non_empty(&cluster.proxy_url) {
            Some(url) => Some(Proxy::parse(url).map_err(|error| error.at(&"proxy-url"))?),
            None => Proxy::from_environment(&server)?,
        };
        let client = HttpClient {
            credentials: user.credentials(cluster, &server, user_folder, origin)?,
            headers: user.impersonation()?,
            server,
            tls,
            proxy,
        };
        check_tls(&client)?;
        Ok(client)
    }
}

/// Reads the files for TLS once, so that what is wrong with them is known at the start.
pub fn check_tls(client: &HttpClient) -> Result<(), SourceError> {
    let is_https = client.server.scheme_str() == Some("https");
    match is_https {
        true => client.tls.client_config(None).map(drop),
        false => Ok(()),
    }
}

impl User {
    fn identity(&self, folder: &Path) -> Result<Option<Identity>, SourceError> {
        let certificate = pem(
            &self.client_certificate_data,
            &self.client_certificate,
            "client-certificate-data",
            folder,
        )?;
        let key = pem(&self.client_key_data, &self.client_key, "client-key-data", folder)?;
        match (certificate, key) {
            (Some(certificate), Some(key)) => Ok(Some(Identity { certificate, key })),
            (None, None) => Ok(None),
            (Some(_), None) => Err(SourceError::new(
                "the user has a client certificate, but no key".to_owned(),
            )),
            (None, Some(_)) => Err(SourceError::new(
                "the user has a client key, but no certificate".to_owned(),
            )),
        }
    }

    fn credentials(
        &self,
        cluster: &Cluster,
        server: &Uri,
        folder: &Path,
        origin: &Origin,
    ) -> Result<Credentials, SourceError> {
        if let Some(path) = non_empty(&self.token_file) {
            return Ok(Credentials::TokenFile(folder.join(path)));
        }
        if let Some(token) = non_empty(&self.token) {
            return Credentials::token(token, "the kubeconfig");
        }
        if let Some(user) = non_empty(&self.username) {
            return Credentials::basic(user, self.password.as_deref().unwrap_or_default());
        }
        if let Some(exec) = &self.exec {
            return match origin.is_named {
                true => exec.plugin(cluster, server, folder).map(Credentials::Plugin),
                false => Err(SourceError::new(
                    "it names a program to run (exec), which only a file that you name may do".to_owned(),
                )
                .remedy("--kubeconfig=PATH")),
            };
        }
        match self.auth_provider {
            Some(_) => Err(SourceError::new(
                "its auth-provider is not supported: Kubernetes replaced them by exec plugins in 1.26".to_owned(),
            )),
            None => Ok(Credentials::None),
        }
    }

    fn impersonation(&self) -> Result<Vec<(HeaderName, HeaderValue)>, SourceError> {
        let user = self.r#as.iter().map(|user| ("impersonate-user", user));
        let groups = self
            .as_groups
            .iter()
            .flatten()
            .map(|group| ("impersonate-group", group));
        user.chain(groups)
            .map(|(name, value)| {
                let value = HeaderValue::from_str(value)
                    .map_err(|_| SourceError::new(format!("its {name} cannot be sent in a header")))?;
                Ok((HeaderName::from_static(name), value))
            })
            .collect()
    }
}

impl Exec {
    fn plugin(&self, cluster: &Cluster, server: &Uri, folder: &Path) -> Result<Plugin, SourceError> {
        if self.command.is_empty() {
            return Err(SourceError::new("its exec plugin has no command".to_owned()));
        }
        let command = match self.command.contains('/') {
            true => folder.join(&self.command),
            false => PathBuf::from(&self.command),
        };
        let env = self
            .env
            .iter()
            .flatten()
            .map(|one| (one.name.clone(), one.value.clone()));
        let args = self.args.clone().unwrap_or_default();
        let mut plugin = Plugin::new(command, args, env.collect(), self.api_version.clone());
        plugin.install_hint = self.install_hint.clone();
        plugin.cluster = self.provide_cluster_info.then(|| {
            serde_json::json!({
                "server": server.to_string(),
                "certificate-authority-data": cluster.certificate_authority_data,
                "insecure-skip-tls-verify": cluster.insecure_skip_tls_verify == Some(true),
                "tls-server-name": cluster.tls_server_name,
            })
        });
        Ok(plugin)
    }
}

fn non_empty(text: &Option<String>) -> Option<&str> {
    text.as_deref().map(str::trim).filter(|text| !text.is_empty())
}

/// Returns the data, else the file. Line breaks inside the base64 are allowed.
fn pem(data: &Option<String>, file: &Option<String>, name: &str, folder: &Path) -> Result<Option<Pem>, SourceError> {
    if let Some(data) = non_empty(data) {
        let compact: String = data.split_whitespace().collect();
        let decoded = STANDARD
            .decode(compact)
            .map_err(|_| SourceError::new(format!("its {name} is not base64")))?;
        return Ok(Some(Pem::Data(decoded, format!("its {name}"))));
    }
    Ok(non_empty(file).map(|path| Pem::File(folder.join(path))))
}

/// Parses the URL of a server. Without a scheme it is https if anything about TLS is set, as in kubectl.
fn server_url(text: &str, has_tls: bool) -> Result<Uri, SourceError> {
    let invalid = || SourceError::new("the server of its cluster is not a URL".to_owned());
    if text.is_empty() {
        return Err(SourceError::new("its cluster has no server".to_owned()));
    }
    let scheme = if has_tls { "https" } else { "http" };
    let text = match text.contains("://") {
        true => text.to_owned(),
        false => format!("{scheme}://{text}"),
    };
    let uri: Uri = text.parse().map_err(|_| invalid())?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err(SourceError::new(
            "the server of its cluster is neither http nor https".to_owned(),
        ));
    }
    let authority = uri.authority().ok_or_else(invalid)?;
    if authority.as_str().contains('@') {
        return Err(SourceError::new(
            "the server of its cluster has a user in the URL, which is not supported: use username and password"
                .to_owned(),
        ));
    }
    match authority.host().is_empty() || !has_valid_port(authority) {
        true => Err(invalid()),
        false => Ok(uri),
    }
}

/// Returns a client with the service account of this pod.
fn in_pod(context: Option<&str>) -> Result<HttpClient, SourceError> {
    if context.is_some() {
        return Err(SourceError::new(
            "--context: there is no kubeconfig, neither $KUBECONFIG nor ~/.kube/config".to_owned(),
        )
        .remedy("--kubeconfig=PATH"));
    }
    let variable = |name| env::var(name).ok().filter(|value: &String| !value.is_empty());
    let none = || {
        SourceError::new(
            "--kubeconfig: there is none, neither $KUBECONFIG nor ~/.kube/config, and no service account of a pod"
                .to_owned(),
        )
        .remedy("--kubeconfig=PATH (sudo has another home and keeps no variables)")
    };
    let host = variable("KUBERNETES_SERVICE_HOST").ok_or_else(none)?;
    let port = variable("KUBERNETES_SERVICE_PORT").unwrap_or_else(|| "443".to_owned());
    let folder = Path::new(SERVICE_ACCOUNT);
    if !folder.join("token").exists() {
        return Err(none());
    }
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    let server = server_url(&format!("https://{host}:{port}"), true)?;
    let client = HttpClient {
        proxy: Proxy::from_environment(&server)?,
        server,
        tls: TlsSettings {
            ca: Some(Pem::File(folder.join("ca.crt"))),
            names: vec![host],
            ..TlsSettings::default()
        },
        credentials: Credentials::TokenFile(folder.join("token")),
        headers: Vec::new(),
    };
    check_tls(&client)?;
    Ok(client)
}

#[cfg(test)]
mod tests;
