//! libpq, PostgreSQL's client library, loaded with dlopen(3) when the first connection is made.
//!
//! Diesel is linked with libpq. A program that is linked with the library itself loads it, and the
//! 25 libraries that it needs, at every start, and starts nowhere without it. This crate defines the
//! functions that Diesel calls; each forwards to the library's. So a server without a store on
//! PostgreSQL needs no libpq, and one with such a store has the system's, with its security updates.
//!
//! The functions also remember what Diesel does not tell: the socket of a connection ([`Handle`]),
//! and the SQLSTATE of an error ([`take_sqlstate`]).

// The functions' names and signatures are libpq's.
#![allow(non_snake_case, unsafe_code)]

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::ptr::{NonNull, null_mut};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// The library's name and version of its binary interface, the same since PostgreSQL 8.2.
const LIBRARY: &CStr = c"libpq.so.5";

/// `PG_DIAG_SQLSTATE`, the field of an error with its code.
const SQLSTATE: c_int = b'C' as c_int;

/// `CONNECTION_BAD`, `PGRES_FATAL_ERROR` and `PQTRANS_UNKNOWN`: the states of what there is not.
const CONNECTION_BAD: c_uint = 1;
const FATAL_ERROR: c_uint = 7;
const TRANSACTION_UNKNOWN: c_uint = 4;

/// What is said of it.
const EMPTY: &CStr = c"";

thread_local! {
    static HANDLE: RefCell<Option<Handle>> = const { RefCell::new(None) };
    static CODE: Cell<Option<[u8; 5]>> = const { Cell::new(None) };
}

/// Returns the version of the library as a number, 150018 for 15.18.
///
/// # Errors
///
/// Says what is missing if it can't be loaded.
pub fn version() -> Result<i32, String> {
    let functions = functions().map_err(|why| why.to_string_lossy().into_owned())?;
    // SAFETY: it takes nothing, and is that function of libpq.
    Ok(unsafe { (functions.PQlibVersion)() })
}

/// Ends the process. If libpq is loaded, this skips the exit handlers of it and its libraries
/// (OpenSSL, Kerberos): other threads may be in their functions, which abort or crash then.
pub fn exit(status: u8) -> ! {
    if LOADED.get().is_some_and(Result::is_ok) {
        // SAFETY: it takes a number, and ends everything.
        unsafe { libc::_exit(status.into()) };
    }
    std::process::exit(status.into())
}

/// By this, another thread ends a call of the thread that has the connection.
#[derive(Clone, Debug, Default)]
pub struct Handle(Arc<Mutex<Target>>);

#[derive(Debug, Default)]
struct Target {
    /// The connection's socket, by a descriptor of our own: libpq closes its own whenever a
    /// connection is lost, and the number may then be that of something else.
    socket: Option<OwnedFd>,
    is_ended: bool,
}

impl Handle {
    /// From now on this is the handle of the connection that this thread has, one at a time: from
    /// its opening on.
    pub fn adopt(&self) {
        HANDLE.set(Some(self.clone()));
    }

    /// Begins a job, which may be ended again.
    pub fn begin(&self) {
        self.target().is_ended = false;
    }

    /// Shuts the connection down: a call that waits for the server ends at once. One that is being
    /// opened is shut down as soon as it is open.
    pub fn shut_down(&self) {
        let mut target = self.target();
        target.is_ended = true;
        if let Some(socket) = &target.socket {
            shut_down(socket.as_raw_fd());
        }
    }

    fn target(&self) -> MutexGuard<'_, Target> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns that of this thread, if it has one.
    fn of_this_thread() -> Option<Handle> {
        HANDLE.with_borrow(Clone::clone)
    }
}

/// Returns the SQLSTATE of the last error of this thread, and forgets it.
pub fn take_sqlstate() -> Option<[u8; 5]> {
    CODE.take()
}

/// Shuts the connection of this socket down, in both directions. The socket stays open; when it is
/// closed, the server is told at once: otherwise one that waits to send more would wait for another
/// minute.
fn shut_down(socket: RawFd) {
    let reset = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    // SAFETY: the option is of this type and size, and is copied. What is no such socket refuses it.
    unsafe {
        libc::setsockopt(
            socket,
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const reset).cast(),
            size_of_val(&reset) as libc::socklen_t,
        );
    }
    // SAFETY: it takes numbers.
    unsafe { libc::shutdown(socket, libc::SHUT_RDWR) };
}

/// The library's functions, or why it can't be loaded, since it was first needed.
static LOADED: OnceLock<Result<Functions, CString>> = OnceLock::new();

/// Returns the library's functions, or why it can't be loaded.
fn functions() -> Result<&'static Functions, &'static CStr> {
    let load = || Functions::load().map_err(|why| CString::new(why).unwrap_or_default());
    LOADED.get_or_init(load).as_ref().map_err(CString::as_c_str)
}

/// Returns what dlerror(3) says.
fn last_error() -> String {
    // SAFETY: it returns null or a string that lives until the next such call of this thread.
    let said = unsafe { libc::dlerror() };
    match said.is_null() {
        true => "the reason is unknown".to_string(),
        // SAFETY: it is no null pointer.
        false => unsafe { CStr::from_ptr(said) }
            .to_string_lossy()
            .into_owned(),
    }
}

/// Declares the functions of libpq that are called here: a table of them, as the library has them.
/// Each of the first group is also defined under its name for Diesel, and forwards; without a
/// library, it returns the value behind `else`.
macro_rules! functions {
    (
        forward { $(fn $name:ident($($argument:ident: $type:ty),*) -> $result:ty, else $default:expr;)* }
        call { $(fn $called:ident($($called_type:ty),*) -> $called_result:ty;)* }
    ) => {
        /// The library's functions.
        struct Functions {
            $($name: unsafe extern "C" fn($($type),*) -> $result,)*
            $($called: unsafe extern "C" fn($($called_type),*) -> $called_result,)*
        }

        impl Functions {
            /// Loads the library.
            fn load() -> Result<Self, String> {
                // SAFETY: loading it runs nothing but its and its libraries' constructors.
                let library = unsafe { libc::dlopen(LIBRARY.as_ptr(), libc::RTLD_NOW) };
                if library.is_null() {
                    let why = last_error();
                    return Err(format!("libpq is missing (on Debian: apt install libpq5): {why}"));
                }
                let find = |name: &str| {
                    let name = CString::new(name).unwrap_or_default();
                    // SAFETY: the library is never closed, and the name ends with a zero.
                    let function = unsafe { libc::dlsym(library, name.as_ptr()) };
                    let too_old = || format!("libpq is too old: {}", last_error());
                    NonNull::new(function).map(NonNull::as_ptr).ok_or_else(too_old)
                };
                // SAFETY: the signatures are those of libpq-fe.h.
                unsafe {
                    Ok(Functions {
                        $($name: std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($type),*) -> $result>(find(stringify!($name))?),)*
                        $($called: std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($called_type),*) -> $called_result>(find(stringify!($called))?),)*
                    })
                }
            }
        }

        $(
            #[unsafe(no_mangle)]
            unsafe extern "C" fn $name($($argument: $type),*) -> $result {
                match functions() {
                    // SAFETY: the arguments are the caller's, for this function.
                    Ok(functions) => unsafe { (functions.$name)($($argument),*) },
                    Err(_) => $default,
                }
            }
        )*
    };
}

functions! {
    forward {
        fn PQclear(result: *mut c_void) -> (), else ();
        fn PQcmdTuples(result: *mut c_void) -> *mut c_char, else null_mut();
        fn PQconsumeInput(connection: *mut c_void) -> c_int, else 0;
        fn PQexec(connection: *mut c_void, query: *const c_char) -> *mut c_void, else null_mut();
        fn PQfname(result: *const c_void, column: c_int) -> *mut c_char, else null_mut();
        fn PQfreemem(memory: *mut c_void) -> (), else ();
        fn PQftype(result: *const c_void, column: c_int) -> c_uint, else 0;
        fn PQgetCopyData(connection: *mut c_void, buffer: *mut *mut c_char, is_async: c_int) -> c_int, else -2;
        fn PQgetResult(connection: *mut c_void) -> *mut c_void, else null_mut();
        fn PQgetisnull(result: *const c_void, row: c_int, column: c_int) -> c_int, else 1;
        fn PQgetlength(result: *const c_void, row: c_int, column: c_int) -> c_int, else 0;
        fn PQgetvalue(result: *const c_void, row: c_int, column: c_int) -> *mut c_char, else null_mut();
        fn PQnfields(result: *const c_void) -> c_int, else 0;
        fn PQnotifies(connection: *mut c_void) -> *mut c_void, else null_mut();
        fn PQntuples(result: *const c_void) -> c_int, else 0;
        fn PQprepare(connection: *mut c_void, name: *const c_char, query: *const c_char, count: c_int, types: *const c_uint) -> *mut c_void, else null_mut();
        fn PQputCopyData(connection: *mut c_void, buffer: *const c_char, length: c_int) -> c_int, else -1;
        fn PQputCopyEnd(connection: *mut c_void, error: *const c_char) -> c_int, else -1;
        fn PQresultErrorMessage(result: *const c_void) -> *mut c_char, else EMPTY.as_ptr().cast_mut();
        fn PQresultStatus(result: *const c_void) -> c_uint, else FATAL_ERROR;
        fn PQsendQueryParams(connection: *mut c_void, query: *const c_char, count: c_int, types: *const c_uint, values: *const *const c_char, lengths: *const c_int, formats: *const c_int, result_format: c_int) -> c_int, else 0;
        fn PQsendQueryPrepared(connection: *mut c_void, name: *const c_char, count: c_int, values: *const *const c_char, lengths: *const c_int, formats: *const c_int, result_format: c_int) -> c_int, else 0;
        fn PQsetNoticeProcessor(connection: *mut c_void, processor: *mut c_void, context: *mut c_void) -> *mut c_void, else null_mut();
        fn PQsetSingleRowMode(connection: *mut c_void) -> c_int, else 0;
        fn PQstatus(connection: *const c_void) -> c_uint, else CONNECTION_BAD;
        fn PQtransactionStatus(connection: *const c_void) -> c_uint, else TRANSACTION_UNKNOWN;
    }
    call {
        fn PQconnectdb(*const c_char) -> *mut c_void;
        fn PQerrorMessage(*const c_void) -> *mut c_char;
        fn PQfinish(*mut c_void) -> ();
        fn PQlibVersion() -> c_int;
        fn PQresultErrorField(*const c_void, c_int) -> *mut c_char;
        fn PQsocket(*const c_void) -> c_int;
    }
}

/// Opens a connection, and remembers its socket.
#[unsafe(no_mangle)]
unsafe extern "C" fn PQconnectdb(options: *const c_char) -> *mut c_void {
    let Ok(functions) = functions() else {
        return null_mut();
    };
    // SAFETY: the argument is the caller's, for this function.
    let connection = unsafe { (functions.PQconnectdb)(options) };
    // SAFETY: the function takes null, too.
    let socket = unsafe { (functions.PQsocket)(connection) };
    if let Some(handle) = Handle::of_this_thread() {
        let mut target = handle.target();
        target.socket = duplicate(socket);
        if let (Some(socket), true) = (&target.socket, target.is_ended) {
            shut_down(socket.as_raw_fd());
        }
    }
    connection
}

/// Returns another descriptor of a socket.
fn duplicate(socket: RawFd) -> Option<OwnedFd> {
    // SAFETY: it takes numbers, and refuses what is no descriptor.
    let copy = unsafe { libc::fcntl(socket, libc::F_DUPFD_CLOEXEC, 0) };
    // SAFETY: it is new, and nobody else's.
    (copy >= 0).then(|| unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Closes a connection.
#[unsafe(no_mangle)]
unsafe extern "C" fn PQfinish(connection: *mut c_void) {
    let Ok(functions) = functions() else {
        return;
    };
    // SAFETY: the argument is the caller's, for this function.
    unsafe { (functions.PQfinish)(connection) };
    if let Some(handle) = Handle::of_this_thread() {
        handle.target().socket = None;
    }
}

/// Returns what is wrong with a connection: without a library, that.
#[unsafe(no_mangle)]
unsafe extern "C" fn PQerrorMessage(connection: *const c_void) -> *mut c_char {
    match functions() {
        // SAFETY: the argument is the caller's, for this function.
        Ok(functions) => unsafe { (functions.PQerrorMessage)(connection) },
        Err(why) => why.as_ptr().cast_mut(),
    }
}

/// Returns a part of an error, and remembers its SQLSTATE.
#[unsafe(no_mangle)]
unsafe extern "C" fn PQresultErrorField(result: *const c_void, field: c_int) -> *mut c_char {
    let Ok(functions) = functions() else {
        return null_mut();
    };
    // SAFETY: the arguments are the caller's, for this function.
    let value = unsafe { (functions.PQresultErrorField)(result, field) };
    if field == SQLSTATE && !value.is_null() {
        // SAFETY: it is no null pointer, and the result has the string.
        let code = unsafe { CStr::from_ptr(value) };
        CODE.set(code.to_bytes().try_into().ok());
    }
    value
}
