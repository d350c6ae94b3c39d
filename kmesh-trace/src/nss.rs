//! Name service look-ups (hosts, users) of a statically linked glibc.
//!
//! glibc loads the modules that `/etc/nsswitch.conf` names. A static executable would load the modules of the system
//! that it runs on, which belong to another version of glibc: the look-up fails, or the process crashes. glibc 2.34 and
//! newer contain the modules `files` and `dns`, which are enough for the name of an API server: they read `/etc/hosts`
//! and ask the servers in `/etc/resolv.conf`.

use std::ffi::{CStr, c_char, c_int};

unsafe extern "C" {
    /// Sets the modules that glibc asks for a database. Declared in glibc's `nss.h`.
    fn __nss_configure_lookup(database: *const c_char, services: *const c_char) -> c_int;
}

/// The databases that the tool uses, and their modules. The HTTP client looks up hosts; `passwd` has the home folder of
/// the user if `HOME` is not set.
const MODULES: [(&CStr, &CStr); 2] = [(c"hosts", c"files dns"), (c"passwd", c"files")];

/// Makes glibc use only the modules that it contains. Call this function before any look-up.
pub fn use_static_modules() {
    for (database, services) in MODULES {
        // SAFETY: both arguments are strings that end with NUL, and glibc copies them. The call fails only if memory is
        // exhausted, and then it changes nothing.
        _ = unsafe { __nss_configure_lookup(database.as_ptr(), services.as_ptr()) };
    }
}
