//! Kubeconfigs: how to reach an API server, and with which credentials. What works with kubectl works here, apart
//! from what an error names.
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
use super::proxy::{Proxy, has_valid_port};
use super::tls::{Identity, Pem, TlsSettings};
use crate::config::ApiServer;
use crate::names::objects::file::yaml_error;

/// The folder with a pod's service account: a token, and the CA certificate of the API server.
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
    namespace: Option<String>,
}

/// Where a kubeconfig comes from.
struct KubeconfigOrigin {
    label: String,
    /// Whether the user named the file. Only such a file may name a program to run.
    is_named: bool,
}

/// The namespace of a context that names none.
const DEFAULT_NAMESPACE: &str = "default";

/// Returns a client for the API server that the flags name. All files have been read, and can be used.
pub fn client(api_server: &ApiServer) -> Result<HttpClient, SourceError> {
    client_and_namespace(api_server).map(|(client, _)| client)
}

/// Returns a client as [`client`] does, and the namespace of its context.
pub fn client_and_namespace(api_server: &ApiServer) -> Result<(HttpClient, String), SourceError> {
    let context = api_server.context.as_deref();
    let (files, origin) = match &api_server.kubeconfig {
        Some(path) => (vec![path.clone()], named(path.display().to_string())),
        None => match find_files() {
            Some(found) => found,
            None => return in_pod(context),
        },
    };
    let must_exist = api_server.kubeconfig.is_some() || !origin.is_named;
    let kubeconfig = read_all(&files, must_exist)?;
    let unusable = |error: SourceError| error.at(&format!("{} (--kubeconfig) cannot be used", origin.label));
    let client = kubeconfig.client(context, &origin).map_err(unusable)?;
    let namespace = non_empty(&kubeconfig.context(context).map_err(unusable)?.namespace);
    Ok((client, namespace.unwrap_or(DEFAULT_NAMESPACE).to_owned()))
}

fn named(label: String) -> KubeconfigOrigin {
    KubeconfigOrigin { label, is_named: true }
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// Finds the kubeconfig as kubectl does.
fn find_files() -> Option<(Vec<PathBuf>, KubeconfigOrigin)> {
    if let Some(value) = env::var_os("KUBECONFIG").filter(|value| !value.is_empty()) {
        let files = env::split_paths(&value).filter(|path| !path.as_os_str().is_empty());
        return Some((files.collect(), named("$KUBECONFIG".to_owned())));
    }
    let path = env::home_dir()?.join(".kube/config");
    let label = path.display().to_string();
    path.exists()
        .then(|| (vec![path], KubeconfigOrigin { label, is_named: false }))
}

/// Reads and merges files. The first file that has a name, or a current context, decides it.
fn read_all(files: &[PathBuf], must_exist: bool) -> Result<Kubeconfig, SourceError> {
    let mut all = Kubeconfig::default();
    let mut has_read_any = false;
    for path in files {
        let text = read_text(path);
        if !must_exist && matches!(&text, Err(error) if error.kind() == io::ErrorKind::NotFound) {
            continue;
        }
        has_read_any = true;
        let parsed = text
            .map_err(|error| SourceError::new(error::io(&error)))
            .and_then(|text| parse(&text));
        let one = parsed.map_err(|error| error.at(&format!("cannot use {} (--kubeconfig)", path.display())))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        all.current_context = all
            .current_context
            .filter(|name| !name.is_empty())
            .or(one.current_context);
        merge(&mut all.clusters, one.clusters, folder);
        merge(&mut all.users, one.users, folder);
        merge(&mut all.contexts, one.contexts, folder);
    }
    match has_read_any {
        true => Ok(all),
        false => {
            let paths: Vec<_> = files.iter().map(|path| path.display().to_string()).collect();
            let problem = format!("no file in $KUBECONFIG exists (--kubeconfig): {}", paths.join(", "));
            Err(SourceError::new(problem))
        }
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
    for one in more.into_iter().flatten() {
        if all.iter().all(|known| known.name != one.name) {
            let folder = folder.to_owned();
            all.push(Named { folder, ..one });
        }
    }
}

fn find<'a, T>(what: &str, name: &str, all: &'a Option<Vec<Named<T>>>) -> Result<(&'a T, &'a Path), SourceError> {
    let found = all.iter().flatten().find(|one| one.name == name);
    let found = found.and_then(|found| Some((found.value.as_ref()?, &*found.folder)));
    found.ok_or_else(|| SourceError::new(format!("there is no {what} {name}")))
}

impl Kubeconfig {
    /// Returns the context with this name, or the current one.
    fn context(&self, name: Option<&str>) -> Result<&Context, SourceError> {
        let name = name.or(self.current_context.as_deref()).filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| SourceError::new("it has no current context").remedy("--context=NAME"))?;
        find("context", name, &self.contexts).map(|(context, _)| context)
    }

    fn client(&self, context: Option<&str>, origin: &KubeconfigOrigin) -> Result<HttpClient, SourceError> {
        let context = self.context(context)?;
        let cluster = context.cluster.as_deref().unwrap_or_default();
        let (cluster, cluster_folder) = find("cluster", cluster, &self.clusters)?;
        let no_user = User::default();
        let (user, user_folder) = match context.user.as_deref().filter(|name| !name.is_empty()) {
            Some(name) => find("user", name, &self.users)?,
            None => (&no_user, Path::new("")),
        };
        let ca = (&cluster.certificate_authority_data, &cluster.certificate_authority);
        let mut tls = TlsSettings {
            ca: pem(ca, "certificate-authority-data", cluster_folder)?,
            identity: user.identity(user_folder)?,
            insecure: cluster.insecure_skip_tls_verify == Some(true),
            names: Vec::new(),
        };
        let has_tls = tls.ca.is_some() || tls.identity.is_some() || tls.insecure;
        let server = server_url(non_empty(&cluster.server).unwrap_or_default(), has_tls)?;
        let name = non_empty(&cluster.tls_server_name).or(server.host());
        tls.names.extend(name.map(str::to_owned));
        let client = HttpClient {
            proxy: match non_empty(&cluster.proxy_url) {
                Some(url) => Some(Proxy::parse(url).map_err(|error| error.at("proxy-url"))?),
                None => Proxy::from_environment(&server)?,
            },
            credentials: user.credentials(cluster, &server, user_folder, origin)?,
            headers: user.impersonation()?,
            server,
            tls,
        };
        check_tls(&client)?;
        Ok(client)
    }
}

/// Reads the files for TLS once, so that what is wrong with them is known at the start.
pub fn check_tls(client: &HttpClient) -> Result<(), SourceError> {
    match client.server.scheme_str() {
        Some("https") => client.tls.client_config(None).map(drop),
        _ => Ok(()),
    }
}

impl User {
    fn identity(&self, folder: &Path) -> Result<Option<Identity>, SourceError> {
        let certificate = (&self.client_certificate_data, &self.client_certificate);
        let certificate = pem(certificate, "client-certificate-data", folder)?;
        let key = pem((&self.client_key_data, &self.client_key), "client-key-data", folder)?;
        match (certificate, key) {
            (Some(certificate), Some(key)) => Ok(Some(Identity { certificate, key })),
            (None, None) => Ok(None),
            (Some(_), None) => Err(SourceError::new("the user has a client certificate, but no key")),
            (None, Some(_)) => Err(SourceError::new("the user has a client key, but no certificate")),
        }
    }

    fn credentials(
        &self,
        cluster: &Cluster,
        server: &Uri,
        folder: &Path,
        origin: &KubeconfigOrigin,
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
        match (&self.exec, &self.auth_provider) {
            (Some(exec), _) if origin.is_named => exec.plugin(cluster, server, folder).map(Credentials::Plugin),
            (Some(_), _) => {
                let problem = "it names a program to run (exec), which only a file that you name may do";
                Err(SourceError::new(problem).remedy("--kubeconfig=PATH"))
            }
            (None, Some(_)) => Err(SourceError::new(
                "its auth-provider is not supported: Kubernetes replaced them by exec plugins in 1.26",
            )),
            (None, None) => Ok(Credentials::None),
        }
    }

    fn impersonation(&self) -> Result<Vec<(HeaderName, HeaderValue)>, SourceError> {
        let user = self.r#as.iter().map(|user| ("impersonate-user", user));
        let groups = self
            .as_groups
            .iter()
            .flatten()
            .map(|group| ("impersonate-group", group));
        let headers = user.chain(groups).map(|(name, value)| {
            let invalid = |_| SourceError::new(format!("its {name} cannot be sent in a header"));
            Ok((
                HeaderName::from_static(name),
                HeaderValue::from_str(value).map_err(invalid)?,
            ))
        });
        headers.collect()
    }
}

impl Exec {
    fn plugin(&self, cluster: &Cluster, server: &Uri, folder: &Path) -> Result<Plugin, SourceError> {
        if self.command.is_empty() {
            return Err(SourceError::new("its exec plugin has no command"));
        }
        let command = match self.command.contains('/') {
            true => folder.join(&self.command),
            false => PathBuf::from(&self.command),
        };
        let env = self.env.iter().flatten();
        let env = env.map(|one| (one.name.clone(), one.value.clone())).collect();
        let args = self.args.clone().unwrap_or_default();
        let mut plugin = Plugin::new(command, args, env, self.api_version.clone());
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
fn pem(
    (data, file): (&Option<String>, &Option<String>),
    name: &str,
    folder: &Path,
) -> Result<Option<Pem>, SourceError> {
    if let Some(data) = non_empty(data) {
        let compact: String = data.split_whitespace().collect();
        let decoded = STANDARD.decode(compact);
        let decoded = decoded.map_err(|_| SourceError::new(format!("its {name} is not base64")))?;
        return Ok(Some(Pem::Data(decoded, format!("its {name}"))));
    }
    Ok(non_empty(file).map(|path| Pem::File(folder.join(path))))
}

/// Parses the URL of a server. Without a scheme it is https if anything about TLS is set, as in kubectl.
fn server_url(text: &str, has_tls: bool) -> Result<Uri, SourceError> {
    let invalid = || SourceError::new("the server of its cluster is not a URL");
    let scheme = if has_tls { "https" } else { "http" };
    let text = match text.contains("://") {
        _ if text.is_empty() => return Err(SourceError::new("its cluster has no server")),
        true => text.to_owned(),
        false => format!("{scheme}://{text}"),
    };
    let uri: Uri = text.parse().map_err(|_| invalid())?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err(SourceError::new("the server of its cluster is neither http nor https"));
    }
    let authority = uri.authority().ok_or_else(invalid)?;
    if authority.as_str().contains('@') {
        return Err(SourceError::new(
            "the server of its cluster has a user in the URL, which is not supported: use username and password",
        ));
    }
    match authority.host().is_empty() || !has_valid_port(authority) {
        true => Err(invalid()),
        false => Ok(uri),
    }
}

/// Returns a client with the service account of this pod, and the pod's namespace.
fn in_pod(context: Option<&str>) -> Result<(HttpClient, String), SourceError> {
    if context.is_some() {
        let problem = "--context: there is no kubeconfig, neither $KUBECONFIG nor ~/.kube/config";
        return Err(SourceError::new(problem).remedy("--kubeconfig=PATH"));
    }
    let folder = Path::new(SERVICE_ACCOUNT);
    let host = variable("KUBERNETES_SERVICE_HOST").filter(|_| folder.join("token").exists());
    let host = host.ok_or_else(|| {
        SourceError::new(
            "--kubeconfig: there is none, neither $KUBECONFIG nor ~/.kube/config, and no service account of a pod",
        )
        .remedy("--kubeconfig=PATH (sudo has another home and keeps no variables)")
    })?;
    let port = variable("KUBERNETES_SERVICE_PORT").unwrap_or_else(|| "443".to_owned());
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
    let namespace = fs::read_to_string(folder.join("namespace")).ok();
    let namespace = non_empty(&namespace).unwrap_or(DEFAULT_NAMESPACE).to_owned();
    Ok((client, namespace))
}

#[cfg(test)]
mod tests;
