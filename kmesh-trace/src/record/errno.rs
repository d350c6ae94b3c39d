//! The symbolic names of Linux error numbers.
//!
//! This table does not depend on the C library, so a capture from Linux reads the same on every system.

use std::fmt;

/// A Linux error number. Displayed as its symbolic name (`ECONNREFUSED`), or if it has none, as `E` and the number
/// (`E4711`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub u32);

/// The largest number that has a name.
const MAX_NAMED: u32 = 524;

impl Errno {
    /// Returns the error that is displayed as `text`.
    pub fn from_name(text: &str) -> Option<Self> {
        let number = text.strip_prefix('E')?;
        let unnamed = || number.parse().ok().filter(|errno| name(*errno).is_none());
        (1..=MAX_NAMED)
            .find(|errno| name(*errno) == Some(text))
            .or_else(unnamed)
            .map(Self)
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match name(self.0) {
            Some(name) => f.write_str(name),
            None => write!(f, "E{}", self.0),
        }
    }
}

/// Returns the symbolic name of an error number. The table is `include/uapi/asm-generic/errno.h`, which x86-64, aarch64
/// and most other architectures use, and which is a stable user API. It also has `ENOTSUPP`, a kernel-internal number
/// that some calls leak to user space.
pub const fn name(errno: u32) -> Option<&'static str> {
    Some(match errno {
        1 => "EPERM",
        2 => "ENOENT",
        3 => "ESRCH",
        4 => "EINTR",
        5 => "EIO",
        6 => "ENXIO",
        7 => "E2BIG",
        8 => "ENOEXEC",
        9 => "EBADF",
        10 => "ECHILD",
        11 => "EAGAIN",
        12 => "ENOMEM",
        13 => "EACCES",
        14 => "EFAULT",
        15 => "ENOTBLK",
        16 => "EBUSY",
        17 => "EEXIST",
        18 => "EXDEV",
        19 => "ENODEV",
        20 => "ENOTDIR",
        21 => "EISDIR",
        22 => "EINVAL",
        23 => "ENFILE",
        24 => "EMFILE",
        25 => "ENOTTY",
        26 => "ETXTBSY",
        27 => "EFBIG",
        28 => "ENOSPC",
        29 => "ESPIPE",
        30 => "EROFS",
        31 => "EMLINK",
        32 => "EPIPE",
        33 => "EDOM",
        34 => "ERANGE",
        35 => "EDEADLK",
        36 => "ENAMETOOLONG",
        37 => "ENOLCK",
        38 => "ENOSYS",
        39 => "ENOTEMPTY",
        40 => "ELOOP",
        42 => "ENOMSG",
        43 => "EIDRM",
        44 => "ECHRNG",
        45 => "EL2NSYNC",
        46 => "EL3HLT",
        47 => "EL3RST",
        48 => "ELNRNG",
        49 => "EUNATCH",
        50 => "ENOCSI",
        51 => "EL2HLT",
        52 => "EBADE",
        53 => "EBADR",
        54 => "EXFULL",
        55 => "ENOANO",
        56 => "EBADRQC",
        57 => "EBADSLT",
        59 => "EBFONT",
        60 => "ENOSTR",
        61 => "ENODATA",
        62 => "ETIME",
        63 => "ENOSR",
        64 => "ENONET",
        65 => "ENOPKG",
        66 => "EREMOTE",
        67 => "ENOLINK",
        68 => "EADV",
        69 => "ESRMNT",
        70 => "ECOMM",
        71 => "EPROTO",
        72 => "EMULTIHOP",
        73 => "EDOTDOT",
        74 => "EBADMSG",
        75 => "EOVERFLOW",
        76 => "ENOTUNIQ",
        77 => "EBADFD",
        78 => "EREMCHG",
        79 => "ELIBACC",
        80 => "ELIBBAD",
        81 => "ELIBSCN",
        82 => "ELIBMAX",
        83 => "ELIBEXEC",
        84 => "EILSEQ",
        85 => "ERESTART",
        86 => "ESTRPIPE",
        87 => "EUSERS",
        88 => "ENOTSOCK",
        89 => "EDESTADDRREQ",
        90 => "EMSGSIZE",
        91 => "EPROTOTYPE",
        92 => "ENOPROTOOPT",
        93 => "EPROTONOSUPPORT",
        94 => "ESOCKTNOSUPPORT",
        95 => "EOPNOTSUPP",
        96 => "EPFNOSUPPORT",
        97 => "EAFNOSUPPORT",
        98 => "EADDRINUSE",
        99 => "EADDRNOTAVAIL",
        100 => "ENETDOWN",
        101 => "ENETUNREACH",
        102 => "ENETRESET",
        103 => "ECONNABORTED",
        104 => "ECONNRESET",
        105 => "ENOBUFS",
        106 => "EISCONN",
        107 => "ENOTCONN",
        108 => "ESHUTDOWN",
        109 => "ETOOMANYREFS",
        110 => "ETIMEDOUT",
        111 => "ECONNREFUSED",
        112 => "EHOSTDOWN",
        113 => "EHOSTUNREACH",
        114 => "EALREADY",
        115 => "EINPROGRESS",
        116 => "ESTALE",
        117 => "EUCLEAN",
        118 => "ENOTNAM",
        119 => "ENAVAIL",
        120 => "EISNAM",
        121 => "EREMOTEIO",
        122 => "EDQUOT",
        123 => "ENOMEDIUM",
        124 => "EMEDIUMTYPE",
        125 => "ECANCELED",
        126 => "ENOKEY",
        127 => "EKEYEXPIRED",
        128 => "EKEYREVOKED",
        129 => "EKEYREJECTED",
        130 => "EOWNERDEAD",
        131 => "ENOTRECOVERABLE",
        132 => "ERFKILL",
        133 => "EHWPOISON",
        524 => "ENOTSUPP",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_tcp_errors_have_linux_numbers() {
        let cases = [
            (13, "EACCES"),
            (32, "EPIPE"),
            (101, "ENETUNREACH"),
            (103, "ECONNABORTED"),
            (104, "ECONNRESET"),
            (110, "ETIMEDOUT"),
            (111, "ECONNREFUSED"),
            (112, "EHOSTDOWN"),
            (113, "EHOSTUNREACH"),
        ];
        for (errno, name) in cases {
            assert_eq!(Errno(errno).to_string(), name);
            assert_eq!(Errno::from_name(name), Some(Errno(errno)));
        }
        for text in ["E", "ENOSUCH", "111", "E111", "", "é"] {
            assert_eq!(Errno::from_name(text), None, "{text}");
        }
    }

    #[test]
    fn unnamed_errors_are_displayed_by_number() {
        for (errno, text) in [
            (0, "E0"),
            (41, "E41"),
            (58, "E58"),
            (4711, "E4711"),
            (u32::MAX, "E4294967295"),
        ] {
            assert_eq!(Errno(errno).to_string(), text);
            assert_eq!(Errno::from_name(text), Some(Errno(errno)));
        }
    }

    /// The C library's messages are the only other table here. Both must know the same numbers.
    #[test]
    fn table_knows_the_same_numbers_as_the_c_library() {
        for errno in 1..=133 {
            let known = !std::io::Error::from_raw_os_error(errno)
                .to_string()
                .starts_with("Unknown error");
            assert_eq!(name(errno.unsigned_abs()).is_some(), known, "{errno}");
        }
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = (0..1000).filter_map(name).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
