//! The terminal of the table: keys, the alternate screen, and the way back.
//!
//! Two threads keep a slow user or a slow line from delaying anything else: one waits for keys, one draws. [`leave`]
//! restores the terminal before the program ends: when the drawing ends, in the panic hook, and before
//! [`crate::session::live`] exits at once.

mod job_control;

pub use job_control::JobControl;

use std::collections::VecDeque;
use std::io::{self, Write};
use std::panic;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossterm::event::{self, Event, KeyEvent, KeyEventKind};
use crossterm::style::Print;
use crossterm::terminal::{
    self, Clear, ClearType, DisableLineWrap, EnableLineWrap, EnterAlternateScreen, LeaveAlternateScreen,
};
use crossterm::{cursor, execute, queue};

use crate::blocking_io::Blocking;

use super::table::Screen;
use super::table::history::SharedHistory;
use super::table::view::{UiCommand, View, ViewOptions};

/// The maximum number of keys and other messages that wait for a slow terminal.
const MAX_MESSAGES: usize = 256;
/// The time that the end of the run waits for a terminal that does not read.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);
/// The maximum number of messages that are deferred until the table closes.
const MAX_DEFERRED: usize = 64;
/// The maximum number of messages that wait to be shown on the last line. More would hide the keys for too long.
const MAX_UNSEEN: usize = 2;
/// The time for which the last line shows a message in place of the keys.
const NOTICE_TIME: Duration = Duration::from_secs(5);

/// Whether the terminal shows the table.
static IS_ENTERED: AtomicBool = AtomicBool::new(false);
/// The messages for standard error while the table is on screen. `None` while it is not.
static DEFERRED: Mutex<Option<Deferred>> = Mutex::new(None);

#[derive(Debug, Default)]
struct Deferred {
    texts: VecDeque<String>,
    /// The messages that the screen has not shown yet. Each is shown for [`NOTICE_TIME`], one after the other.
    unseen: VecDeque<String>,
}

/// Wakes the drawing thread.
static WAKE: Mutex<Option<SyncSender<Message>>> = Mutex::new(None);

/// A message to the drawing thread.
#[derive(Debug)]
enum Message {
    /// The history has changed, or there is a notice.
    Refresh,
    Key(KeyEvent),
    Resized(u16, u16),
    /// Give the terminal back and stop the process.
    Suspend,
    /// The process was resumed.
    Resumed,
    /// Give the terminal back and confirm it.
    Shutdown(Sender<()>),
}

/// Tells the drawing thread about signals.
#[derive(Clone, Debug)]
pub struct SignalHandle {
    messages: SyncSender<Message>,
}

impl SignalHandle {
    /// SIGTSTP: gives the terminal back, and stops the process until SIGCONT.
    pub fn suspend(&self) {
        // If the queue is full, the terminal does not read, and nothing of the table is on it.
        _ = self.messages.try_send(Message::Suspend);
    }

    /// SIGCONT: draws everything anew, because another program may have used the terminal.
    pub fn resumed(&self) {
        _ = self.messages.try_send(Message::Resumed);
    }
}

/// The sink's handle of the screen. Dropping it gives the terminal back.
struct ScreenHandle {
    messages: SyncSender<Message>,
}

impl Screen for ScreenHandle {
    fn refresh(&mut self) {
        // If the queue is full, another message in it makes the thread draw.
        _ = self.messages.try_send(Message::Refresh);
    }
}

impl Drop for ScreenHandle {
    fn drop(&mut self) {
        let (left, confirmation) = channel();
        if self.messages.try_send(Message::Shutdown(left)).is_ok() {
            _ = confirmation.recv_timeout(LEAVE_TIMEOUT);
        }
        leave();
    }
}

/// A terminal that shows the table.
pub struct TableScreen {
    pub screen: Box<dyn Screen>,
    /// The commands of the user, except those to quit and to suspend.
    pub commands: Receiver<UiCommand>,
    pub signals: SignalHandle,
}

/// Shows `history` on the terminal. `on_command` is called with every command of the user but [`UiCommand::Suspend`].
pub fn start(
    options: ViewOptions,
    history: SharedHistory,
    on_command: impl Fn(&UiCommand) + Send + 'static,
) -> io::Result<TableScreen> {
    let hook = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        leave();
        hook(info);
    }));
    enter()?;
    let (messages, received) = sync_channel(MAX_MESSAGES);
    let (commands, sent_commands) = channel();
    *lock(&WAKE) = Some(messages.clone());
    let drawing = Drawing {
        view: View::new(options, history, terminal::size().unwrap_or((0, 0))),
        drawn: Drawn::default(),
        commands,
        notice_until: None,
        is_quitting: false,
    };
    thread::Builder::new().name("keys".to_owned()).spawn({
        let messages = messages.clone();
        move || forward_events(&messages)
    })?;
    thread::Builder::new().name("screen".to_owned()).spawn(move || {
        // If the thread ends early, even by a panic, no key could end the program any more.
        let quit = || on_command(&UiCommand::Quit);
        let _quit = CallOnDrop(&quit);
        _ = drawing.run(&received, &mut Blocking(io::stdout()), &on_command);
    })?;
    Ok(TableScreen {
        screen: Box::new(ScreenHandle {
            messages: messages.clone(),
        }),
        commands: sent_commands,
        signals: SignalHandle { messages },
    })
}

struct CallOnDrop<'a, F: Fn()>(&'a F);

impl<F: Fn()> Drop for CallOnDrop<'_, F> {
    fn drop(&mut self) {
        self.0();
    }
}

/// Forwards keys and changes of the size.
fn forward_events(messages: &SyncSender<Message>) {
    while let Ok(event) = event::read() {
        let message = match event {
            Event::Key(key) if key.kind != KeyEventKind::Release => Message::Key(key),
            Event::Resize(columns, lines) => Message::Resized(columns, lines),
            _ => continue,
        };
        if messages.send(message).is_err() {
            return;
        }
    }
}

/// The state of the drawing thread.
struct Drawing {
    view: View,
    drawn: Drawn,
    commands: Sender<UiCommand>,
    /// The end of the time for which a notice is shown.
    notice_until: Option<Instant>,
    /// Whether the user has quit. The window that was on the screen then stays there.
    is_quitting: bool,
}

impl Drawing {
    fn run(
        mut self,
        messages: &Receiver<Message>,
        out: &mut impl Write,
        on_command: &impl Fn(&UiCommand),
    ) -> io::Result<()> {
        self.draw(out)?;
        while let Some(message) = self.next(messages) {
            // All waiting messages are handled before the screen is drawn.
            for message in std::iter::once(message).chain(messages.try_iter()) {
                match message {
                    Message::Refresh => {}
                    Message::Key(key) => match self.view.key(key) {
                        None => {}
                        Some(UiCommand::Quit) => {
                            self.is_quitting = true;
                            on_command(&UiCommand::Quit);
                        }
                        // Like the terminal itself, this stops the whole job.
                        Some(UiCommand::Suspend) => job_control::stop_job(),
                        Some(command) => {
                            // Sending fails after the end of the run.
                            _ = self.commands.send(command.clone());
                            on_command(&command);
                        }
                    },
                    Message::Resized(columns, lines) => {
                        self.view.resize((columns, lines));
                        self.drawn.invalidate();
                    }
                    Message::Suspend => {
                        leave();
                        job_control::stop_process();
                        self.enter_again()?;
                    }
                    Message::Resumed => {
                        _ = terminal::disable_raw_mode();
                        self.enter_again()?;
                    }
                    Message::Shutdown(left) => {
                        self.refresh();
                        close(&self.view.final_lines());
                        _ = left.send(());
                        return Ok(());
                    }
                }
            }
            self.refresh();
            self.update_notice();
            self.draw(out)?;
        }
        Ok(())
    }

    /// Returns the next message. A notice whose time is over counts as a message.
    fn next(&self, messages: &Receiver<Message>) -> Option<Message> {
        let Some(until) = self.notice_until else {
            return messages.recv().ok();
        };
        match messages.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(message) => Some(message),
            Err(RecvTimeoutError::Timeout) => Some(Message::Refresh),
            Err(RecvTimeoutError::Disconnected) => None,
        }
    }

    fn refresh(&mut self) {
        if !self.is_quitting {
            self.view.refresh();
        }
    }

    fn update_notice(&mut self) {
        let now = Instant::now();
        if !self.view.has_notice() || self.notice_until.is_some_and(|until| until <= now) {
            let next = lock(&DEFERRED)
                .as_mut()
                .and_then(|deferred| deferred.unseen.pop_front());
            self.view.set_notice(next);
            self.notice_until = None;
        }
        if self.view.has_notice() {
            self.notice_until.get_or_insert(now + NOTICE_TIME);
        }
    }

    fn enter_again(&mut self) -> io::Result<()> {
        enter()?;
        self.view.resize(terminal::size().unwrap_or((0, 0)));
        self.drawn.invalidate();
        Ok(())
    }

    fn draw(&mut self, out: &mut impl Write) -> io::Result<()> {
        let bytes = self.drawn.update(self.view.lines());
        out.write_all(&bytes)?;
        out.flush()
    }
}

/// The lines on the screen.
#[derive(Debug, Default)]
struct Drawn {
    lines: Vec<String>,
    /// Whether the content of the screen is unknown.
    is_invalid: bool,
}

impl Drawn {
    fn invalidate(&mut self) {
        self.lines.clear();
        self.is_invalid = true;
    }

    /// Returns the bytes that draw `lines`. Lines that are on the screen already need no bytes.
    fn update(&mut self, lines: Vec<String>) -> Vec<u8> {
        let mut bytes = Vec::new();
        if std::mem::take(&mut self.is_invalid) {
            expect_written(queue!(bytes, Clear(ClearType::All)));
        }
        for (at, line) in (0_u16..).zip(&lines) {
            if self.lines.get(usize::from(at)) != Some(line) {
                // Clears first: after a line of the full width, the cursor is on its last character.
                let clear = Clear(ClearType::UntilNewLine);
                expect_written(queue!(bytes, cursor::MoveTo(0, at), clear, Print(line)));
            }
        }
        self.lines = lines;
        bytes
    }
}

fn expect_written(written: io::Result<()>) {
    debug_assert!(written.is_ok(), "writing to a Vec cannot fail");
}

/// Enters raw mode and the alternate screen, and hides the cursor.
fn enter() -> io::Result<()> {
    terminal::enable_raw_mode()?;
    IS_ENTERED.store(true, Ordering::Release);
    lock(&DEFERRED).get_or_insert_default();
    execute!(
        Blocking(io::stdout()),
        EnterAlternateScreen,
        DisableLineWrap,
        cursor::Hide
    )
}

/// Restores the terminal if it was entered, and prints the deferred messages.
pub fn leave() {
    close(&[]);
}

/// Restores the terminal, and prints `lines` and the deferred messages on it.
fn close(lines: &[String]) {
    if !IS_ENTERED.swap(false, Ordering::AcqRel) {
        return;
    }
    // The terminal may be gone, so errors are ignored.
    _ = execute!(
        Blocking(io::stdout()),
        cursor::Show,
        EnableLineWrap,
        LeaveAlternateScreen
    );
    _ = terminal::disable_raw_mode();
    for line in lines {
        _ = writeln!(Blocking(io::stdout()), "{}", line.trim_end());
    }
    let deferred = lock(&DEFERRED).take().unwrap_or_default();
    for text in deferred.texts {
        _ = writeln!(Blocking(io::stderr()), "kmesh-trace: {text}");
    }
}

/// Stores a message for standard error until the table closes, and shows it on the last line meanwhile. Returns `false`
/// if there is no table on the screen.
pub fn defer(text: &str) -> bool {
    match &mut *lock(&DEFERRED) {
        None => return false,
        Some(deferred) => {
            for (queue, max) in [(&mut deferred.texts, MAX_DEFERRED), (&mut deferred.unseen, MAX_UNSEEN)] {
                if queue.len() == max {
                    queue.pop_front();
                }
                queue.push_back(text.to_owned());
            }
        }
    }
    if let Some(wake) = &*lock(&WAKE) {
        // If the queue is full, another message in it makes the thread draw.
        _ = wake.try_send(Message::Refresh);
    }
    true
}

/// Locks a mutex. No thread can panic in the middle of a change of these values.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_changed_lines_are_written() {
        let lines = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        let mut drawn = Drawn::default();
        let first = drawn.update(lines(&["one", "two", "three"]));
        assert_eq!(
            String::from_utf8(first).unwrap(),
            "\x1b[1;1H\x1b[Kone\x1b[2;1H\x1b[Ktwo\x1b[3;1H\x1b[Kthree"
        );
        assert_eq!(drawn.update(lines(&["one", "two", "three"])), b"");
        let second = drawn.update(lines(&["one", "2", "three"]));
        assert_eq!(String::from_utf8(second).unwrap(), "\x1b[2;1H\x1b[K2");
        drawn.invalidate();
        let all = String::from_utf8(drawn.update(lines(&["one"]))).unwrap();
        assert_eq!(all, "\x1b[2J\x1b[1;1H\x1b[Kone");
    }
}
