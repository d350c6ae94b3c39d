//! A Prometheus of a test's own.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::support::net;
use crate::support::sock::{V, free_port, wait_until};

const BETWEEN_QUESTIONS: Duration = Duration::from_millis(100);

/// Both programs come in one package.
pub fn missing() -> Result<(), String> {
    net::try_run("promtool", &["--version"])?;
    net::try_run("prometheus", &["--version"]).map(drop)
}

/// A running one.
pub struct Prometheus {
    folder: PathBuf,
    address: SocketAddr,
    child: Child,
}

impl Prometheus {
    /// Starts it; it scrapes `target` every second, and evaluates the rules of `deploy/`.
    pub fn scraping(target: SocketAddr) -> Self {
        let folder = std::env::temp_dir().join(format!(
            "kmesh-trace-prometheus-{}-{}",
            std::process::id(),
            net::inode()
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
        let address = V::Four.at(free_port(V::Four));
        let child = start(&folder, address);
        let started = Self { folder, address, child };
        started.wait_ready();
        started
    }

    /// Stops it.
    pub fn stop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again, with what it has stored.
    pub fn start_again(&mut self) {
        self.child = start(&self.folder, self.address);
        self.wait_ready();
    }

    fn wait_ready(&self) {
        wait_until("Prometheus", || {
            thread::sleep(BETWEEN_QUESTIONS);
            self.get("/-/ready").is_ok_and(|answer| answer.contains("is Ready"))
        });
    }

    fn get(&self, path: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(self.address)?;
        // In HTTP/1.0 no answer comes in chunks.
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// `/api/v1` and what follows: its data.
    pub fn api(&self, path: &str) -> Value {
        let answer = self.get(&format!("/api/v1{path}")).unwrap();
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        let mut value: Value = serde_json::from_str(body).unwrap();
        assert_eq!(value["status"], "success", "{path}: {value}");
        value["data"].take()
    }

    /// What a query gives, now or at that time: labels and value of each sample.
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

    /// The sum of its samples.
    pub fn sum(&self, query: &str, at: Option<f64>) -> f64 {
        self.query(query, at).iter().map(|(_, value)| value).sum()
    }

    /// Waits until the sum of a query has this value, and returns the time of a scrape that shows it.
    pub fn until(&self, query: &str, value: f64) -> f64 {
        let mut last = f64::NAN;
        let mut scraped = None;
        wait_until(&format!("{query} = {value}"), || {
            // Both at the same time. A scrape that fails in between leaves no sample for the second.
            let now = Some(now());
            last = self.sum(query, now);
            scraped = self
                .query(&format!("timestamp({query})"), now)
                .first()
                .map(|(_, time)| *time);
            let is_so = last == value && scraped.is_some();
            if !is_so {
                // Prometheus needs the processor more than these questions do.
                thread::sleep(BETWEEN_QUESTIONS);
            }
            is_so
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
        // After stop() there is nothing to end.
        self.child.kill().unwrap_or_default();
        _ = self.child.wait();
        fs::remove_dir_all(&self.folder).unwrap_or_default();
    }
}
