//! The process that owns a socket, and its container.

use std::fmt;

/// How the tracer found the process that owns a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessBy {
    /// The process called connect().
    Connect,
    /// The process closed this end.
    Close,
    /// The process owns the listening socket.
    Listener,
    /// A socket scan found the process holding a descriptor of the socket.
    Scan,
}

spelling!(ProcessBy {
    Connect => "connect",
    Close => "close",
    Listener => "listener",
    Scan => "scan",
});

/// The name of a process (`comm`): at most 15 bytes. The process chooses them, so they may be invalid UTF-8 or hostile
/// to a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Comm(pub [u8; 16]);

impl Comm {
    /// Returns the bytes before the first NUL.
    pub fn as_bytes(&self) -> &[u8] {
        let end = self.0.iter().position(|&byte| byte == 0).unwrap_or(self.0.len());
        &self.0[..end]
    }

    /// Returns a name that prints as `text`. Each U+FFFD, which stands for invalid UTF-8, becomes the byte 0xff: the
    /// original byte is not in the text.
    pub fn from_text(text: &str) -> Self {
        let mut bytes = [0; 16];
        let mut length = 0;
        for char in text.chars() {
            let mut encoded = [0; 4];
            let char = match char {
                char::REPLACEMENT_CHARACTER => &[0xff],
                char => char.encode_utf8(&mut encoded).as_bytes(),
            };
            let Some(to) = bytes.get_mut(length..length + char.len()) else {
                break;
            };
            to.copy_from_slice(char);
            length += char.len();
        }
        Self(bytes)
    }
}

/// The ID of a container: 64 hexadecimal digits, as the runtime and `kubectl` print it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ContainerId([u8; Self::DIGITS]);

impl ContainerId {
    /// The number of digits.
    pub const DIGITS: usize = 64;

    /// Parses an ID. Returns `None` unless `text` is 64 lowercase hexadecimal digits.
    pub fn new(text: &str) -> Option<Self> {
        let digits: [u8; Self::DIGITS] = text.as_bytes().try_into().ok()?;
        let is_digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        digits.iter().all(is_digit).then_some(Self(digits))
    }

    /// Returns the digits as text.
    pub fn as_str(&self) -> &str {
        // `new` accepts only ASCII digits, so the conversion cannot fail.
        str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The process that owns a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// The process ID in the initial pid namespace.
    pub pid: u32,
    /// The name of the thread-group leader.
    pub comm: Comm,
    /// How the tracer found the process.
    pub by: ProcessBy,
}
