//! Runs a Prometheus server for the tests.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::support::net;
use crate::support::sock::{IpVersion, free_port, wait_until};

/// The pause between two queries, so that Prometheus gets the processor.
const QUERY_PAUSE: Duration = Duration::from_millis(100);

/// Checks that both programs of the Debian package are installed.
pub fn check_installed() -> Result<(), String> {
    net::try_run("promtool", &["--version"])?;
    net::try_run("prometheus", &["--version"]).map(drop)
}

/// A Prometheus server. Dropping it kills it and removes its data.
pub struct Prometheus {
    folder: PathBuf,
    address: SocketAddr,
    child: Child,
}

impl Prometheus {
    /// Starts a server that scrapes `target` every second, and evaluates the rules of `deploy/`.
    pub fn scraping(target: SocketAddr) -> Self {
        let folder = std::env::temp_dir().join(format!(
            "kmesh-trace-prometheus-{}-{}",
            std::process::id(),
            net::current_netns()
        ));
        fs::create_dir_all(&folder).unwrap();
        let rules = crate::folder().join("prometheus/rules.yaml");
        let config = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}\n\
             rule_files: [\"{}\"]\n\
             scrape_configs:\n- {{job_name: kmesh-trace, static_configs: [{{targets: [\"{target}\"]}}]}}\n",
            rules.canonicalize().unwrap().display()
        );
        fs::write(folder.join("prometheus.yml"), config).unwrap();
        let address = IpVersion::V4.at(free_port(IpVersion::V4));
        let child = start(&folder, address);
        let prometheus = Self { folder, address, child };
        prometheus.wait_ready();
        prometheus
    }

    pub fn stop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        self.child.wait().unwrap();
    }

    /// Starts the server again with its data.
    pub fn restart(&mut self) {
        self.child = start(&self.folder, self.address);
        self.wait_ready();
    }

    fn wait_ready(&self) {
        wait_until("Prometheus is ready", || {
            thread::sleep(QUERY_PAUSE);
            self.get("/-/ready").is_ok_and(|response| response.contains("is Ready"))
        });
    }

    fn get(&self, path: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(self.address)?;
        // An HTTP/1.0 response is not chunked.
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
        let mut response = String::new();
        stream.read_to_string(&mut response)?;
        Ok(response)
    }

    /// Requests `/api/v1` with this path, and returns the data.
    pub fn api(&self, path: &str) -> Value {
        let response = self.get(&format!("/api/v1{path}")).unwrap();
        let body = response.split_once("\r\n\r\n").unwrap().1;
        let mut value: Value = serde_json::from_str(body).unwrap();
        assert_eq!(value["status"], "success", "{path}: {value}");
        value["data"].take()
    }

    /// Runs a query for the present or for a time. Returns the labels and the value of each sample.
    pub fn query(&self, query: &str, at: Option<f64>) -> Vec<(Value, f64)> {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let at = at.map(|at| format!("&time={at:.3}")).unwrap_or_default();
        let data = self.api(&format!("/query?query={encoded}{at}"));
        let samples = data["result"].as_array().unwrap().iter();
        samples
            .map(|sample| {
                (
                    sample["metric"].clone(),
                    sample["value"][1].as_str().unwrap().parse().unwrap(),
                )
            })
            .collect()
    }

    /// Returns the sum of the samples of a query.
    pub fn sum(&self, query: &str, at: Option<f64>) -> f64 {
        self.query(query, at).iter().map(|(_, value)| value).sum()
    }

    /// Waits until the sum of a query has this value, and returns the time of a scrape that shows it.
    pub fn wait_for(&self, query: &str, value: f64) -> f64 {
        let mut last = f64::NAN;
        let mut scraped = None;
        wait_until(&format!("{query} = {value}"), || {
            // Both queries for the same time. After a failed scrape the second has no sample.
            let now = Some(now());
            last = self.sum(query, now);
            scraped = self
                .query(&format!("timestamp({query})"), now)
                .first()
                .map(|(_, time)| *time);
            let is_met = last == value && scraped.is_some();
            if !is_met {
                thread::sleep(QUERY_PAUSE);
            }
            is_met
        });
        scraped.unwrap_or_else(|| panic!("{query} is {last}"))
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

fn start(folder: &Path, address: SocketAddr) -> Child {
    Command::new("prometheus")
        .arg(format!("--config.file={}", folder.join("prometheus.yml").display()))
        .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
        .arg(format!("--web.listen-address={address}"))
        .arg("--log.level=error")
        .stdin(Stdio::null())
        .spawn()
        .unwrap()
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // After stop() the process has ended.
        self.child.kill().unwrap_or_default();
        _ = self.child.wait();
        fs::remove_dir_all(&self.folder).unwrap_or_default();
    }
}
