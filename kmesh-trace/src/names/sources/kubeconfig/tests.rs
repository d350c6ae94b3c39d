//! Kubeconfigs as users write them.

use super::*;

/// A kubeconfig with these members of cluster and user.
fn config(cluster: &str, user: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
         contexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
         clusters:\n- name: k\n  cluster:\n    {cluster}\n\
         users:\n- name: u\n  user:\n    {user}\n"
    )
}

fn client_of(text: &str) -> Result<HttpClient, String> {
    let config = parse(text).map_err(|error| error.to_string())?;
    config
        .client(None, &named("x".to_owned()))
        .map_err(|error| error.to_string())
}

fn error_of(text: &str) -> String {
    client_of(text).err().unwrap_or_default()
}

#[test]
fn server_without_scheme_is_completed_as_by_kubectl() {
    let url = |cluster: &str| client_of(&config(cluster, "token: t")).unwrap().server.to_string();
    assert_eq!(url("server: 127.0.0.1:7701"), "http://127.0.0.1:7701/");
    assert_eq!(
        url("server: 127.0.0.1:7701\n    insecure-skip-tls-verify: true"),
        "https://127.0.0.1:7701/"
    );
    assert_eq!(url("server: http://a/k8s/clusters/c-1"), "http://a/k8s/clusters/c-1");
}

#[test]
fn errors_quote_nothing_of_the_file() {
    let good = "server: http://127.0.0.1:1";
    let data = "client-certificate-data: s3cret!\n    client-key-data: s3cret!";
    let proxy = format!("{good}\n    proxy-url: ftp://me:s3cret@p");
    let cases = [
        (
            config("server: https://me:s3cret@host", "token: t"),
            "a user in the URL",
        ),
        (config("server: 's3cret s3cret'", "token: t"), "not a URL"),
        (config("server: 127.0.0.1:s3cret", "token: t"), "not a URL"),
        (config("server: https://host:99999", "token: s3cret"), "not a URL"),
        (config("server: ftp://s3cret", "token: t"), "neither http nor https"),
        (config(good, data), "not base64"),
        (config(good, "token: \"s3cret\\u0007\""), "characters that no token has"),
        (config(good, "token: s3cret\n    token: [s3cret\n"), "line"),
        (config(good, "token: [s3cret]"), "at line 12 column"),
        (config(&proxy, "token: t"), "proxy-url"),
        (
            config(good, "auth-provider: {name: s3cret}"),
            "auth-provider is not supported",
        ),
        (config(good, "exec: {args: [s3cret]}"), "no command"),
    ];
    for (text, part) in cases {
        let error = error_of(&text);
        assert!(error.contains(part) && !error.contains("s3cret"), "{text}: {error}");
    }
}

#[test]
fn only_a_named_file_may_run_a_program() {
    let text = config(
        "server: http://127.0.0.1:1",
        "exec: {command: get-token, apiVersion: v1}",
    );
    assert!(client_of(&text).is_ok());
    let origin = KubeconfigOrigin {
        label: "x".to_owned(),
        is_named: false,
    };
    let error = parse(&text).unwrap().client(None, &origin).err().unwrap();
    assert!(error.to_string().contains("--kubeconfig=PATH"), "{error}");
}

#[test]
fn files_that_do_not_exist_are_skipped_among_several() {
    let folder = env::temp_dir().join(format!("kmesh-trace-kubeconfig-{}", std::process::id()));
    fs::create_dir_all(folder.join("sub")).unwrap();
    let (first, second) = (folder.join("sub/first"), folder.join("second"));
    fs::write(&first, config("server: http://first", "tokenFile: token")).unwrap();
    fs::write(&second, config("server: http://second", "tokenFile: token")).unwrap();
    let files = [folder.join("missing"), first, second];
    let config = read_all(&files, false).unwrap();
    let client = config.client(None, &named("x".to_owned())).unwrap();
    assert_eq!(client.server, "http://first/");
    // A relative path starts at its own file.
    assert!(matches!(client.credentials, Credentials::TokenFile(path) if path == folder.join("sub/token")));
    let error = read_all(&files, true).err().unwrap().to_string();
    assert!(error.contains("No such file"), "{error}");
    let error = read_all(&files[..1], false).err().unwrap().to_string();
    assert!(error.contains(&*files[0].to_string_lossy()), "{error}");
    fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn base64_may_have_line_breaks() {
    let data = Some("aGVs\n  bG8=\n".to_owned());
    let pem = pem((&data, &None), "x", Path::new("")).unwrap().unwrap();
    assert!(matches!(pem, Pem::Data(bytes, _) if bytes == b"hello"));
}

#[test]
fn users_are_impersonated() {
    let text = config("server: http://a", "token: t\n    as: jane\n    as-groups: [dev, ops]");
    let headers = client_of(&text).unwrap().headers;
    let shown = headers.iter().map(|(name, value)| format!("{name}={value:?}"));
    let expected = [
        "impersonate-user=\"jane\"",
        "impersonate-group=\"dev\"",
        "impersonate-group=\"ops\"",
    ];
    assert_eq!(shown.collect::<Vec<_>>(), expected);
}
