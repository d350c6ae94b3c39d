//! By what a server's certificate is checked, where nobody says.

use kube::Config;

/// The library asks the system for certificates of authorities even where a file of them is named or none is needed, and
/// fails where the system has none, as in a container that holds one file. There it is given an empty list in their place.
pub fn only_where_needed(config: &mut Config) {
    let is_checked = config.cluster_url.scheme_str() == Some("https") && !config.accept_invalid_certs;
    let is_needed = is_checked && config.root_cert_file.is_none();
    if !is_needed && config.root_cert.is_none() {
        config.root_cert = Some(Vec::new());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_is_asked_where_it_must_be() {
        let cases = [
            ("http://a/", false, None, false),
            ("https://a/", false, None, true),
            ("https://a/", true, None, false),
            ("https://a/", false, Some("ca.crt"), false),
        ];
        for (url, insecure, file, asked) in cases {
            let mut config = Config::new(http::Uri::from_static(url));
            config.accept_invalid_certs = insecure;
            config.root_cert_file = file.map(Into::into);
            only_where_needed(&mut config);
            assert_eq!(config.root_cert.is_none(), asked, "{url} {insecure}");
        }
    }
}
