//! A real terminal: tmux is the terminal, keys are typed into it, and its screen is read.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::Pid;

use super::tracer::binary;
use super::{net, scratch_dir, test_timeout};

/// A separate terminal with a shell in it, in the network namespace of the thread that opens it.
pub struct Terminal {
    socket: String,
}

impl Terminal {
    pub fn open(columns: u32, lines: u32) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let terminal = Self {
            socket: format!("kmesh-trace-test-{}-{number}", std::process::id()),
        };
        let (columns, lines) = (columns.to_string(), lines.to_string());
        terminal.tmux(&[
            "-f",
            "/dev/null",
            "new-session",
            "-d",
            "-x",
            &columns,
            "-y",
            &lines,
            "exec bash --norc -i",
        ]);
        terminal.command("PS1='$ '; unset PROMPT_COMMAND; clear; echo BEFORE");
        terminal.wait("the shell", |screen| screen.lines().any(|line| line == "BEFORE"));
        terminal
    }

    fn tmux(&self, args: &[&str]) -> String {
        net::run("tmux", &[&["-L", &self.socket], args].concat())
    }

    /// Types keys, by tmux's names of them.
    pub fn keys(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys"], keys].concat());
    }

    /// Types `text` literally, without key names.
    pub fn text(&self, text: &str) {
        self.tmux(&["send-keys", "-l", "--", text]);
    }

    /// Types text and Enter.
    pub fn command(&self, text: &str) {
        self.text(text);
        self.keys(&["Enter"]);
    }

    pub fn resize(&self, columns: u32, lines: u32) {
        self.tmux(&["resize-window", "-x", &columns.to_string(), "-y", &lines.to_string()]);
    }

    /// Returns the lines on the screen.
    pub fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    /// Returns the lines on the screen and before them. A line that the terminal has wrapped is one line.
    pub fn unwrapped(&self) -> String {
        self.tmux(&["capture-pane", "-p", "-J", "-S", "-200"])
    }

    /// Returns what tmux knows about the terminal by this name.
    pub fn fact(&self, name: &str) -> String {
        self.tmux(&["display-message", "-p", &format!("#{{{name}}}")])
            .trim()
            .to_owned()
    }

    /// Records from now on what programs write to the terminal, so that a test also finds what was on the screen for a
    /// moment.
    pub fn record(&self) -> Recording {
        let path = scratch_dir().join(&self.socket);
        let recording = Recording(path);
        self.tmux(&["pipe-pane", "-o", &format!("cat > '{}'", recording.0.display())]);
        Self::wait_for("the recording", String::new, |_| recording.0.exists());
        recording
    }

    /// Waits for a screen that meets the condition, and returns it.
    pub fn wait(&self, what: &str, is_it: impl Fn(&str) -> bool) -> String {
        Self::wait_for(what, || self.screen(), is_it)
    }

    /// Waits until the unwrapped lines meet the condition, and returns them.
    pub fn wait_unwrapped(&self, what: &str, is_it: impl Fn(&str) -> bool) -> String {
        Self::wait_for(what, || self.unwrapped(), is_it)
    }

    fn wait_for(what: &str, capture: impl Fn() -> String, is_it: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + test_timeout();
        loop {
            let screen = capture();
            if is_it(&screen) {
                return screen;
            }
            assert!(Instant::now() < deadline, "{what} does not come:\n{screen}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Starts the tool's table, and waits until it is on the screen.
    pub fn table(&self, args: &str) {
        self.command(&format!(
            "'{}' --no-resolve -o table {args}",
            binary().to_string_lossy()
        ));
        self.wait("the table", |screen| screen.contains("CLIENT"));
        assert_eq!((&*self.fact("alternate_on"), &*self.fact("cursor_flag")), ("1", "0"));
    }

    /// Waits for the prompt, and checks that the screen is that from before the table, followed by the last window,
    /// with cursor and echo.
    pub fn is_restored(&self) {
        let screen = self.wait("the prompt", |screen| screen.trim_end().ends_with('$'));
        // The last window may have moved the text from before the table off the screen.
        let all = self.tmux(&["capture-pane", "-p", "-S", "-200"]);
        assert!(all.contains("BEFORE"), "{all}");
        assert_eq!(
            (&*self.fact("alternate_on"), &*self.fact("cursor_flag")),
            ("0", "1"),
            "{screen}"
        );
        // The terminal echoes and breaks lines again.
        self.command("stty -a | grep -o ' icanon\\| echo\\b'");
        self.wait("a sane terminal", |screen| {
            screen.lines().any(|line| line.trim() == "icanon") && screen.lines().any(|line| line.trim() == "echo")
        });
    }

    /// Returns the process that runs in the shell.
    pub fn tracer(&self) -> Pid {
        let shell = self.fact("pane_pid");
        let children = std::fs::read_to_string(format!("/proc/{shell}/task/{shell}/children")).expect("children");
        let tracer = children.split(' ').next().expect("a child of the shell");
        Pid::from_raw(tracer.trim().parse().expect("a pid"))
    }
}

/// A file with everything that was written to a terminal.
pub struct Recording(PathBuf);

impl Recording {
    /// Returns whether this text was written, in any colors.
    pub fn contains(&self, text: &str) -> bool {
        let bytes = std::fs::read(&self.0).unwrap_or_default();
        let written = String::from_utf8_lossy(&bytes);
        let mut parts = written.split("\x1b[");
        let mut plain = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            // The parameters of a control sequence end at its letter.
            let end = part.find(|char: char| char.is_ascii_alphabetic());
            plain += end.map_or("", |end| &part[end + 1..]);
        }
        plain.contains(text)
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        _ = std::fs::remove_file(&self.0);
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        _ = Command::new("tmux").args(["-L", &self.socket, "kill-server"]).status();
    }
}
