//! The terminal that a table is drawn on: keys, the alternate screen, and the way back out of it.
//!
//! Two threads of their own, so that neither a person nor a slow line holds anything up: one waits for keys, one draws.
//! The newest window replaces one that has not been drawn yet. Whatever ends the program, [`leave`] is called before: when
//! the drawing ends, by the hook of panics, and by [`crate::session::live`] before it exits at once.

mod jobs;

pub use jobs::Jobs;

use std::collections::VecDeque;
use std::io::{self, Write};
use std::panic;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crossterm::event::{self, Event, KeyEvent, KeyEventKind};
use crossterm::style::Print;
use crossterm::terminal::{
    self, Clear, ClearType, DisableLineWrap, EnableLineWrap, EnterAlternateScreen, LeaveAlternateScreen,
};
use crossterm::{cursor, execute, queue};

use crate::blocking_io::Blocking;

use super::table::view::{Ask, Begin, View};
use super::table::{Screen, Told};

/// Keys and the like that wait for a terminal that is slow.
const WAITING: usize = 256;
/// How long the end waits for a terminal that does not read.
const PATIENCE: Duration = Duration::from_secs(1);
/// What is said meanwhile and kept, to be said afterwards.
const NOTES: usize = 64;

/// Whether the terminal is ours.
static ENTERED: AtomicBool = AtomicBool::new(false);
/// What is said while the screen hides standard error; none while it does not.
static HELD: Mutex<Option<VecDeque<String>>> = Mutex::new(None);

/// What the drawing thread is told.
#[derive(Debug)]
enum Message {
    /// There is a window to show.
    News,
    Key(KeyEvent),
    Resized(u16, u16),
    /// Stop the program.
    Suspend,
    /// It runs again.
    Resumed,
    /// Leave, and say so.
    Over(Sender<()>),
}

/// A word with the drawing thread for whoever listens for signals.
#[derive(Clone, Debug)]
pub struct Handle {
    messages: SyncSender<Message>,
}

impl Handle {
    /// SIGTSTP: gives the terminal back, and stops until SIGCONT.
    pub fn suspend(&self) {
        // Full: the terminal does not read, and there is nothing on it to be restored.
        _ = self.messages.try_send(Message::Suspend);
    }

    /// SIGCONT: whoever had the terminal meanwhile may have left anything on it.
    pub fn resumed(&self) {
        _ = self.messages.try_send(Message::Resumed);
    }
}

/// The newest window that is not drawn yet.
type Slot = Arc<Mutex<Option<Told>>>;

/// The writer's side.
struct Sheet {
    slot: Slot,
    messages: SyncSender<Message>,
}

impl Screen for Sheet {
    fn show(&mut self, told: Told) {
        *lock(&self.slot) = Some(told);
        // Full: whatever is in there makes it look.
        _ = self.messages.try_send(Message::News);
    }
}

impl Drop for Sheet {
    fn drop(&mut self) {
        let (left, over) = channel();
        if self.messages.try_send(Message::Over(left)).is_ok() {
            _ = over.recv_timeout(PATIENCE);
        }
        leave();
    }
}

/// Takes the terminal. What is to be shown goes to the first, what is asked for comes out of the second; `quit` is called when
/// a person wants an end.
pub fn start(begin: Begin, quit: impl Fn() + Send + 'static) -> io::Result<(Box<dyn Screen>, Receiver<Ask>, Handle)> {
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        leave();
        before(info);
    }));
    enter()?;
    let (messages, told) = sync_channel(WAITING);
    let (asks, asked) = channel();
    let slot = Slot::default();
    let view = View::new(begin, terminal::size().unwrap_or((0, 0)));
    let drawing = Drawing {
        view,
        drawn: Drawn::default(),
        slot: Arc::clone(&slot),
        asks,
    };
    thread::Builder::new().name("keys".to_owned()).spawn({
        let messages = messages.clone();
        move || listen(&messages)
    })?;
    thread::Builder::new().name("screen".to_owned()).spawn(move || {
        // Without a screen, whether it is gone or its thread panicked, nobody could end the program by a key.
        let _quit = Finally(&quit);
        _ = drawing.run(&told, &mut Blocking(io::stdout()), &quit);
    })?;
    let sheet = Sheet {
        slot,
        messages: messages.clone(),
    };
    Ok((Box::new(sheet), asked, Handle { messages }))
}

/// Calls this however its scope is left.
struct Finally<'a, F: Fn()>(&'a F);

impl<F: Fn()> Drop for Finally<'_, F> {
    fn drop(&mut self) {
        self.0();
    }
}

/// Sends on what is typed.
fn listen(messages: &SyncSender<Message>) {
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

/// The drawing thread's state.
struct Drawing {
    view: View,
    drawn: Drawn,
    slot: Slot,
    asks: Sender<Ask>,
}

impl Drawing {
    fn run(mut self, messages: &Receiver<Message>, out: &mut impl Write, quit: &impl Fn()) -> io::Result<()> {
        self.draw(out)?;
        while let Ok(message) = messages.recv() {
            // All that waits is dealt with before anything is drawn.
            for message in std::iter::once(message).chain(messages.try_iter()) {
                match message {
                    Message::News => {}
                    Message::Key(key) => match self.view.key(key) {
                        None => {}
                        Some(Ask::Quit) => quit(),
                        // As the terminal itself does it: to all of the job, us included.
                        Some(Ask::Suspend) => jobs::stop_all(),
                        // Nobody obeys any more once the end has begun.
                        Some(ask) => _ = self.asks.send(ask),
                    },
                    Message::Resized(columns, lines) => {
                        self.view.resize((columns, lines));
                        self.drawn.forget();
                    }
                    Message::Suspend => {
                        leave();
                        jobs::stop_this();
                        self.again()?;
                    }
                    Message::Resumed => {
                        _ = terminal::disable_raw_mode();
                        self.again()?;
                    }
                    Message::Over(left) => {
                        leave();
                        _ = left.send(());
                        return Ok(());
                    }
                }
            }
            if let Some(told) = lock(&self.slot).take() {
                self.view.window(Arc::new(told));
            }
            self.view
                .note(lock(&HELD).as_ref().and_then(|held| held.back().cloned()));
            self.draw(out)?;
        }
        Ok(())
    }

    fn again(&mut self) -> io::Result<()> {
        enter()?;
        self.view.resize(terminal::size().unwrap_or((0, 0)));
        self.drawn.forget();
        Ok(())
    }

    fn draw(&mut self, out: &mut impl Write) -> io::Result<()> {
        let bytes = self.drawn.change(self.view.lines());
        out.write_all(&bytes)?;
        out.flush()
    }
}

/// What stands on the screen.
#[derive(Debug, Default)]
struct Drawn {
    lines: Vec<String>,
    /// Nothing is known of what stands there.
    fresh: bool,
}

impl Drawn {
    fn forget(&mut self) {
        self.lines.clear();
        self.fresh = true;
    }

    /// The bytes that make the screen show these lines: of lines that stand there already, none.
    fn change(&mut self, lines: Vec<String>) -> Vec<u8> {
        let mut bytes = Vec::new();
        if std::mem::take(&mut self.fresh) {
            kept(queue!(bytes, Clear(ClearType::All)));
        }
        for (at, line) in (0_u16..).zip(&lines) {
            if self.lines.get(usize::from(at)) != Some(line) {
                // First cleared: behind a line as wide as the screen the cursor stands on its last character.
                let clear = Clear(ClearType::UntilNewLine);
                kept(queue!(bytes, cursor::MoveTo(0, at), clear, Print(line)));
            }
        }
        self.lines = lines;
        bytes
    }
}

fn kept(written: io::Result<()>) {
    debug_assert!(written.is_ok(), "memory takes all");
}

/// Takes the terminal: keys as they are pressed, a screen of its own, no cursor.
fn enter() -> io::Result<()> {
    terminal::enable_raw_mode()?;
    ENTERED.store(true, Ordering::Release);
    lock(&HELD).get_or_insert_default();
    execute!(
        Blocking(io::stdout()),
        EnterAlternateScreen,
        DisableLineWrap,
        cursor::Hide
    )
}

/// Gives the terminal back as it was, if it was taken, and says what was held back.
pub fn leave() {
    if !ENTERED.swap(false, Ordering::AcqRel) {
        return;
    }
    // Each as well as it goes: there may be nobody there any more.
    _ = execute!(
        Blocking(io::stdout()),
        cursor::Show,
        EnableLineWrap,
        LeaveAlternateScreen
    );
    _ = terminal::disable_raw_mode();
    let held = lock(&HELD).take().unwrap_or_default();
    for text in held {
        _ = writeln!(Blocking(io::stderr()), "kmesh-trace: {text}");
    }
}

/// Keeps what is to be said on standard error until the screen is gone, if it is there. False: say it now.
pub fn defer(text: &str) -> bool {
    match &mut *lock(&HELD) {
        None => false,
        Some(held) => {
            if held.len() == NOTES {
                held.pop_front();
            }
            held.push_back(text.to_owned());
            true
        }
    }
}

/// A thread that panicked has left nothing half done in these.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changed_is_sent() {
        let lines = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        let mut drawn = Drawn::default();
        let first = drawn.change(lines(&["one", "two", "three"]));
        assert_eq!(
            String::from_utf8(first).unwrap(),
            "\x1b[1;1H\x1b[Kone\x1b[2;1H\x1b[Ktwo\x1b[3;1H\x1b[Kthree"
        );
        assert_eq!(drawn.change(lines(&["one", "two", "three"])), b"");
        let second = drawn.change(lines(&["one", "2", "three"]));
        assert_eq!(String::from_utf8(second).unwrap(), "\x1b[2;1H\x1b[K2");
        drawn.forget();
        let all = String::from_utf8(drawn.change(lines(&["one"]))).unwrap();
        assert_eq!(all, "\x1b[2J\x1b[1;1H\x1b[Kone");
    }
}
