//! Look-ups of the C library (addresses of names, users) in a statically linked file.
//!
//! glibc does them by the modules that `/etc/nsswitch.conf` names, which it loads. A static file would load those of the
//! system that it runs on, made for another glibc: where there are none, or no C library at all, nothing is found, and
//! where they do not fit anything may happen. The modules `files` and `dns` are part of the file itself (glibc 2.34 or
//! newer built it), and are all that an API server's name takes: `/etc/hosts`, and the servers in `/etc/resolv.conf`.

use std::ffi::{CStr, c_char, c_int};

unsafe extern "C" {
    /// Declared in glibc's `nss.h`.
    fn __nss_configure_lookup(database: *const c_char, services: *const c_char) -> c_int;
}

/// What is looked up, and where: a host by the HTTP client, the user's home folder where `HOME` is not set.
const LOOKUPS: [(&CStr, &CStr); 2] = [(c"hosts", c"files dns"), (c"passwd", c"files")];

/// Keeps to the modules that are part of this file, whatever `/etc/nsswitch.conf` says. Wanted once, before any look-up.
pub fn load_nothing() {
    for (database, services) in LOOKUPS {
        // SAFETY: both are strings that end with NUL, which glibc copies what it needs of. It fails for want of memory alone,
        // and then leaves things as they were.
        _ = unsafe { __nss_configure_lookup(database.as_ptr(), services.as_ptr()) };
    }
}
