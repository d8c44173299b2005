//! One end of a connection, on top of nghttp2: the file with unsafe code.
//!
//! nghttp2 calls back while it receives or sends. The callbacks only move bytes between its memory
//! and [`State`]; all decisions are the caller's, between two calls. No panic crosses a C frame: see
//! [`guard`].

#![allow(unsafe_code)]

use std::alloc::Layout;
use std::collections::{BTreeMap, VecDeque};
use std::ffi::{c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::{self, NonNull};

use libnghttp2_sys as sys;

use crate::frame_counter::{FrameCounter, Role, has_part};
use crate::{Error, Event, Field, HEADER_BOMB, Headers, Limits, StreamId, code};

/// Frames that a call allows: its headers, and the pings and updates of windows that come with it.
const FRAMES_PER_CALL: u32 = 8;

/// One end of a connection. It uses only what nghttp2 1.52, that of Debian 12, has.
pub struct Session {
    raw: NonNull<sys::nghttp2_session>,
    /// Allocated with `Box`. A pointer, because the callbacks have it, too.
    state: NonNull<State>,
}

// SAFETY: nghttp2 and the state have no ties to a thread, and each method takes `&mut self` or only
// reads.
unsafe impl Send for Session {}

/// What the callbacks work on.
struct State {
    limits: Limits,
    events: VecDeque<Event>,
    /// The headers that are arriving. Frames of others can't come between.
    headers: Headers,
    /// The bodies that are not sent yet.
    outgoing: BTreeMap<StreamId, Outgoing>,
    /// Number of their bytes.
    unsent: usize,
    /// Number of bytes of bodies that were sent.
    taken: u64,
    /// Streams to reset when what is submitted has been sent: a reset would overtake it.
    answered_early: Vec<StreamId>,
    /// A ping to send when the announcement of the end has been sent, which it would overtake.
    last_ping: Option<[u8; 8]>,
    /// Number of further control frames.
    budget: u32,
    frames: FrameCounter,
    /// Number of frames with a part of a body that were taken, and of those that were ignored: on
    /// closed streams.
    parts_taken: u64,
    parts_ignored: u64,
    is_flooded: bool,
    /// Whether the peer was told so.
    is_calmed: bool,
    /// Whether nghttp2 has failed for good, and must not be called again.
    is_dead: bool,
    /// The last stream that a client has opened.
    last_stream: StreamId,
}

/// The rest of a body.
#[derive(Default)]
struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
    /// The trailers, once it is known that the body ends.
    end: Option<Vec<Field>>,
    /// Whether nghttp2 has asked for more than there was.
    is_waiting: bool,
}

impl Session {
    /// Returns a server's end.
    pub fn server(limits: Limits) -> Self {
        let settings = [
            setting(sys::NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, limits.streams),
            setting(
                sys::NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE,
                limits.header_list,
            ),
        ];
        Session::new(limits, Role::Server, &settings)
    }

    /// Returns a client's end.
    pub fn client(limits: Limits) -> Self {
        let settings = [
            setting(sys::NGHTTP2_SETTINGS_ENABLE_PUSH, 0),
            setting(
                sys::NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE,
                limits.header_list,
            ),
        ];
        Session::new(limits, Role::Client, &settings)
    }

    /// As any allocation in Rust, this aborts the program if the system lacks memory, which is the
    /// only error of the calls here.
    fn new(limits: Limits, role: Role, settings: &[sys::nghttp2_settings_entry]) -> Self {
        let state = Box::new(State {
            limits,
            events: VecDeque::new(),
            headers: Headers::default(),
            outgoing: BTreeMap::new(),
            unsent: 0,
            taken: 0,
            answered_early: Vec::new(),
            last_ping: None,
            budget: limits.control_frames,
            frames: FrameCounter::new(role),
            parts_taken: 0,
            parts_ignored: 0,
            is_flooded: false,
            is_calmed: false,
            is_dead: false,
            last_stream: 0,
        });
        let new = match role {
            Role::Server => sys::nghttp2_session_server_new2,
            Role::Client => sys::nghttp2_session_client_new2,
        };
        let state = NonNull::from(Box::leak(state));
        let (mut callbacks, mut option, mut raw) =
            (ptr::null_mut(), ptr::null_mut(), ptr::null_mut());
        let check = |error: c_int| {
            if error != 0 {
                std::alloc::handle_alloc_error(Layout::new::<State>());
            }
        };
        // SAFETY: each pointer that is passed was returned by the call before. `new` copies the
        // callbacks and the option; the settings are copied, too.
        unsafe {
            check(sys::nghttp2_session_callbacks_new(&mut callbacks));
            sys::nghttp2_session_callbacks_set_on_begin_headers_callback(
                callbacks,
                Some(on_begin_headers),
            );
            sys::nghttp2_session_callbacks_set_on_header_callback(callbacks, Some(on_header));
            sys::nghttp2_session_callbacks_set_on_data_chunk_recv_callback(
                callbacks,
                Some(on_data),
            );
            sys::nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, Some(on_frame));
            sys::nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, Some(on_close));
            sys::nghttp2_session_callbacks_set_on_frame_send_callback(callbacks, Some(on_sent));
            check(sys::nghttp2_option_new(&mut option));
            // Versions before 1.60 keep closed streams otherwise.
            sys::nghttp2_option_set_no_closed_streams(option, 1);
            check(new(&mut raw, callbacks, state.as_ptr().cast(), option));
            sys::nghttp2_option_del(option);
            sys::nghttp2_session_callbacks_del(callbacks);
            check(sys::nghttp2_submit_settings(
                raw,
                0,
                settings.as_ptr(),
                settings.len(),
            ));
            Session {
                raw: NonNull::new_unchecked(raw),
                state,
            }
        }
    }

    fn raw(&self) -> *mut sys::nghttp2_session {
        self.raw.as_ptr()
    }

    fn state(&mut self) -> &mut State {
        // SAFETY: the state lives as long as the session. Callbacks use it only during calls of
        // nghttp2, while no reference of ours lives.
        unsafe { self.state.as_mut() }
    }

    /// Returns an error of nghttp2, after which it must not be called.
    fn checked(&mut self, result: c_int) -> Result<(), Error> {
        let error = match result {
            sys::NGHTTP2_ERR_FLOODED | TOO_MANY_CONTINUATIONS => Error::Flood,
            fatal if fatal < sys::NGHTTP2_ERR_FATAL => Error::Broken(fatal),
            _ => return Ok(()),
        };
        let state = self.state();
        state.is_dead = true;
        state.is_flooded |= error == Error::Flood;
        Err(error)
    }

    /// Takes bytes from the peer. See [`Session::next_event`] for what they mean.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let state = self.state();
        if state.is_dead {
            return Err(Error::Broken(sys::NGHTTP2_ERR_INVALID_STATE));
        }
        let count = state.frames.count(bytes);
        state.spend(count);
        if !state.is_flooded {
            // SAFETY: the session is live, and the bytes are read during the call.
            let used =
                unsafe { sys::nghttp2_session_mem_recv(self.raw(), bytes.as_ptr(), bytes.len()) };
            self.checked(c_int::try_from(used.min(0)).unwrap_or(c_int::MIN))?;
            self.state().spend_ignored();
        }
        match self.state().is_flooded {
            true => {
                self.terminate(code::ENHANCE_YOUR_CALM);
                Err(Error::Flood)
            }
            false => Ok(()),
        }
    }

    /// Returns what has arrived, one after the other.
    pub fn next_event(&mut self) -> Option<Event> {
        self.state().events.pop_front()
    }

    /// Answers a request with headers. A body follows, by [`Session::send`], or the answer `ends`
    /// here. Returns whether the stream is still there.
    pub fn respond(&mut self, stream: StreamId, headers: &[Field], ends: bool) -> bool {
        if !self.can_send(stream) {
            return false;
        }
        self.allow(FRAMES_PER_CALL);
        let provider = self.body(stream, ends);
        let fields = name_values(headers);
        // SAFETY: the session is live; the headers and the provider are copied.
        let error = unsafe {
            sys::nghttp2_submit_response(
                self.raw(),
                stream,
                fields.as_ptr(),
                fields.len(),
                provider.as_ref().map_or(ptr::null(), ptr::from_ref),
            )
        };
        self.submitted(stream, error)
    }

    /// Sends a request: headers, and a body that follows by [`Session::send`] unless the request
    /// `ends` here. Returns its stream, or `None` if the peer takes no more.
    pub fn request(&mut self, headers: &[Field], ends: bool) -> Option<StreamId> {
        self.allow(FRAMES_PER_CALL);
        // SAFETY: the session is live.
        let allowed = !self.state().is_dead
            && unsafe { sys::nghttp2_session_check_request_allowed(self.raw()) } != 0;
        if !allowed {
            return None;
        }
        let provider = (!ends).then_some(PROVIDER);
        let fields = name_values(headers);
        // SAFETY: the session is live; the headers and the provider are copied.
        let stream = unsafe {
            sys::nghttp2_submit_request(
                self.raw(),
                ptr::null(),
                fields.as_ptr(),
                fields.len(),
                provider.as_ref().map_or(ptr::null(), ptr::from_ref),
                ptr::null_mut(),
            )
        };
        if stream < 0 {
            return None;
        }
        self.body(stream, ends);
        Some(stream)
    }

    /// Sends a part of a body, as far as the windows allow now, the rest later.
    pub fn send(&mut self, stream: StreamId, mut bytes: Vec<u8>) {
        let state = self.state();
        if let Some(outgoing) = state.outgoing.get_mut(&stream) {
            state.unsent += bytes.len();
            match outgoing.bytes.is_empty() {
                true => outgoing.bytes = bytes,
                false => outgoing.bytes.append(&mut bytes),
            }
            self.resume(stream);
        }
    }

    /// Ends a body, with trailers unless they are empty.
    pub fn finish(&mut self, stream: StreamId, trailers: Vec<Field>) {
        if let Some(outgoing) = self.state().outgoing.get_mut(&stream) {
            outgoing.end = Some(trailers);
            self.resume(stream);
        }
    }

    /// Ends a stream in both directions.
    pub fn reset(&mut self, stream: StreamId, code: u32) {
        if !self.state().is_dead {
            // SAFETY: the session is live.
            let error = unsafe { sys::nghttp2_submit_rst_stream(self.raw(), 0, stream, code) };
            let _ = self.checked(error);
        }
    }

    /// Tells the peer, once the answer has been sent, to send no more of the request, unless that
    /// has ended.
    pub fn stop(&mut self, stream: StreamId) {
        self.state().answered_early.push(stream);
    }

    /// Sends a ping.
    pub fn ping(&mut self, data: [u8; 8]) {
        if !self.state().is_dead {
            // SAFETY: the session is live, and the 8 bytes are copied.
            let error = unsafe { sys::nghttp2_submit_ping(self.raw(), 0, data.as_ptr()) };
            let _ = self.checked(error);
        }
    }

    /// Tells a client that no more streams will be taken soon, and sends a ping after that: the
    /// first step of the end. The second, [`Session::go_away`], is due when the ping is answered:
    /// until then, streams are taken.
    pub fn announce_end(&mut self, ping: [u8; 8]) {
        if !self.state().is_dead {
            // SAFETY: the session is live.
            let error = unsafe { sys::nghttp2_submit_shutdown_notice(self.raw()) };
            let _ = self.checked(error);
            self.state().last_ping = Some(ping);
        }
    }

    /// Takes no more streams. Those that were opened so far go on.
    pub fn go_away(&mut self) {
        self.go_away_after(StreamId::MAX);
    }

    /// Takes no more streams, and gives those after `last` back: the client may open them
    /// elsewhere, as if it had not opened them here.
    pub fn go_away_after(&mut self, last: StreamId) {
        if !self.state().is_dead {
            // SAFETY: the session is live, and there is no opaque data.
            let error = unsafe {
                let last = last.min(sys::nghttp2_session_get_last_proc_stream_id(self.raw()));
                sys::nghttp2_submit_goaway(self.raw(), 0, last, code::NO_ERROR, ptr::null(), 0)
            };
            let _ = self.checked(error);
        }
    }

    /// Ends the session and all of its streams.
    pub fn terminate(&mut self, code: u32) {
        if !self.state().is_dead {
            // SAFETY: the session is live.
            let error = unsafe { sys::nghttp2_session_terminate_session(self.raw(), code) };
            let _ = self.checked(error);
        }
    }

    /// Allows the peer `frames` more frames that carry nothing, up to the limit.
    pub fn allow(&mut self, frames: u32) {
        let state = self.state();
        state.budget = (state.budget.saturating_add(frames)).min(state.limits.control_frames);
    }

    /// Appends all that is to be sent now. Call it after all else, before bytes are awaited.
    pub fn take_output(&mut self, output: &mut Vec<u8>) {
        self.take_frames(output);
        if let Some(data) = self.state().last_ping.take() {
            self.ping(data);
            self.take_frames(output);
        }
        for stream in std::mem::take(&mut self.state().answered_early) {
            if self.state().is_dead {
                break;
            }
            // SAFETY: the session is live. Each is 1 if that end has ended the stream, and -1
            // without a stream.
            let ended = unsafe {
                (
                    sys::nghttp2_session_get_stream_local_close(self.raw(), stream),
                    sys::nghttp2_session_get_stream_remote_close(self.raw(), stream),
                )
            };
            match ended {
                // The rest of the answer waits for room.
                (0, _) => self.state().answered_early.push(stream),
                (1, 0) => {
                    self.reset(stream, code::NO_ERROR);
                    self.take_frames(output);
                }
                _ => {}
            }
        }
        // Frames end where the output does, so that one more can follow.
        let state = self.state();
        if std::mem::take(&mut state.is_flooded) && state.is_dead {
            state.is_calmed = true;
            output.extend_from_slice(&[0, 0, 8, 7, 0, 0, 0, 0, 0]);
            output.extend_from_slice(&state.last_stream.to_be_bytes());
            output.extend_from_slice(&code::ENHANCE_YOUR_CALM.to_be_bytes());
        }
    }

    fn take_frames(&mut self, output: &mut Vec<u8>) {
        while !self.state().is_dead {
            let mut bytes = ptr::null();
            // SAFETY: the session is live; the bytes are valid until the next call.
            let sent = unsafe { sys::nghttp2_session_mem_send(self.raw(), &mut bytes) };
            match usize::try_from(sent) {
                Ok(0) => return,
                // SAFETY: nghttp2 has set `bytes` to that number of bytes.
                Ok(sent) => {
                    output.extend_from_slice(unsafe { std::slice::from_raw_parts(bytes, sent) });
                }
                Err(_) => {
                    let _ = self.checked(sys::NGHTTP2_ERR_NOMEM);
                }
            }
        }
    }

    /// Returns whether both ends have nothing more to say.
    pub fn is_over(&self) -> bool {
        // SAFETY: the state lives as long as the session.
        let is_dead = unsafe { self.state.as_ref() }.is_dead;
        // SAFETY: the session is live.
        is_dead
            || unsafe {
                sys::nghttp2_session_want_read(self.raw()) == 0
                    && sys::nghttp2_session_want_write(self.raw()) == 0
            }
    }

    /// Returns the number of bytes of bodies that the peer's windows have no room for yet.
    pub fn unsent(&self) -> usize {
        // SAFETY: the state lives as long as the session.
        unsafe { self.state.as_ref() }.unsent
    }

    /// Returns the number of those bytes in this stream.
    pub fn unsent_in(&self, stream: StreamId) -> usize {
        // SAFETY: the state lives as long as the session.
        let outgoing = unsafe { self.state.as_ref() }.outgoing.get(&stream);
        outgoing.map_or(0, |outgoing| outgoing.bytes.len() - outgoing.sent)
    }

    /// Returns the number of bytes of bodies that the peer's windows had room for so far.
    pub fn taken(&self) -> u64 {
        // SAFETY: the state lives as long as the session.
        unsafe { self.state.as_ref() }.taken
    }

    /// Returns whether the peer was told that it causes too much work.
    pub fn is_calmed(&self) -> bool {
        // SAFETY: the state lives as long as the session.
        unsafe { self.state.as_ref() }.is_calmed
    }

    /// Returns whether the stream is there, and this end has not ended it.
    fn can_send(&mut self, stream: StreamId) -> bool {
        // SAFETY: the session is live.
        !self.state().is_dead
            && unsafe { sys::nghttp2_session_get_stream_local_close(self.raw(), stream) } == 0
    }

    /// Makes room for a body, unless the message `ends` without one.
    fn body(&mut self, stream: StreamId, ends: bool) -> Option<sys::nghttp2_data_provider> {
        if !ends {
            self.state().outgoing.entry(stream).or_default();
        }
        (!ends).then_some(PROVIDER)
    }

    fn submitted(&mut self, stream: StreamId, error: c_int) -> bool {
        if error != 0 {
            self.state().forget(stream);
            let _ = self.checked(error);
        }
        error == 0
    }

    /// Lets nghttp2 ask again for a body that it waits for.
    fn resume(&mut self, stream: StreamId) {
        let outgoing = self.state().outgoing.get_mut(&stream);
        let waits = outgoing.is_some_and(|outgoing| std::mem::take(&mut outgoing.is_waiting));
        if waits && !self.state().is_dead {
            // SAFETY: the session is live.
            let error = unsafe { sys::nghttp2_session_resume_data(self.raw(), stream) };
            let _ = self.checked(error);
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // SAFETY: both were allocated in `new`, and nobody else has them. nghttp2 calls no callback
        // here.
        unsafe {
            sys::nghttp2_session_del(self.raw());
            drop(Box::from_raw(self.state.as_ptr()));
        }
    }
}

impl State {
    /// Takes frames from the budget.
    fn spend(&mut self, frames: u32) {
        let rest = self.budget.checked_sub(frames);
        self.is_flooded |= rest.is_none();
        self.budget = rest.unwrap_or(0);
    }

    /// Takes the parts of bodies from the budget that nghttp2 has ignored. One may not be whole yet.
    fn spend_ignored(&mut self) {
        let known = self.parts_taken + self.parts_ignored;
        let ignored = self.frames.parts.saturating_sub(known + 1);
        self.parts_ignored += ignored;
        self.spend(u32::try_from(ignored).unwrap_or(u32::MAX));
    }

    fn forget(&mut self, stream: StreamId) {
        if let Some(outgoing) = self.outgoing.remove(&stream) {
            self.unsent -= outgoing.bytes.len() - outgoing.sent;
        }
    }
}

/// `NGHTTP2_ERR_TOO_MANY_CONTINUATIONS`, of which not all versions have the name.
const TOO_MANY_CONTINUATIONS: c_int = -905;

/// Asks for bodies.
const PROVIDER: sys::nghttp2_data_provider = sys::nghttp2_data_provider {
    source: sys::nghttp2_data_source {
        ptr: ptr::null_mut(),
    },
    read_callback: Some(read_body),
};

fn setting(id: sys::nghttp2_settings_id, value: u32) -> sys::nghttp2_settings_entry {
    sys::nghttp2_settings_entry {
        settings_id: id as i32,
        value,
    }
}

/// Returns the headers as nghttp2 wants them, which points into `fields`. It only reads them.
fn name_values(fields: &[Field]) -> Vec<sys::nghttp2_nv> {
    let name_value = |field: &Field| sys::nghttp2_nv {
        name: field.name.as_ptr().cast_mut(),
        value: field.value.as_ptr().cast_mut(),
        namelen: field.name.len(),
        valuelen: field.value.len(),
        flags: sys::NGHTTP2_NV_FLAG_NONE as u8,
    };
    fields.iter().map(name_value).collect()
}

/// Calls `callback` with the state that nghttp2 was given. A panic ends the session in place of the
/// program: it must not unwind through nghttp2.
///
/// # Safety
///
/// `user_data` is the state of a live session, and nobody else uses it.
unsafe fn guard<R>(user_data: *mut c_void, failed: R, callback: impl FnOnce(&mut State) -> R) -> R {
    // SAFETY: as above.
    let state = unsafe { &mut *user_data.cast::<State>() };
    catch_unwind(AssertUnwindSafe(|| callback(state))).unwrap_or(failed)
}

const OK: c_int = 0;
const FAILED: c_int = sys::NGHTTP2_ERR_CALLBACK_FAILURE;

unsafe extern "C" fn on_begin_headers(
    _: *mut sys::nghttp2_session,
    frame: *const sys::nghttp2_frame,
    user_data: *mut c_void,
) -> c_int {
    // SAFETY: nghttp2 passes the session's state, and a valid frame, all kinds of which begin with
    // a header.
    unsafe {
        let stream = (*frame).hd.stream_id;
        guard(user_data, FAILED, |state| {
            state.headers = Headers::with_room();
            state.last_stream = state.last_stream.max(stream);
            OK
        })
    }
}

unsafe extern "C" fn on_header(
    _: *mut sys::nghttp2_session,
    _: *const sys::nghttp2_frame,
    name: *const u8,
    name_length: usize,
    value: *const u8,
    value_length: usize,
    _: u8,
    user_data: *mut c_void,
) -> c_int {
    // SAFETY: nghttp2 passes the session's state, and name and value, which end with a NUL that
    // does not count, so that they are never null.
    unsafe {
        let name = std::slice::from_raw_parts(name, name_length);
        let value = std::slice::from_raw_parts(value, value_length);
        guard(user_data, FAILED, |state| {
            let limit = state.limits.header_list as usize;
            state.headers.push(name, value, limit);
            state.is_flooded |= state.headers.size > limit * HEADER_BOMB;
            OK
        })
    }
}

unsafe extern "C" fn on_data(
    _: *mut sys::nghttp2_session,
    _: u8,
    stream: i32,
    data: *const u8,
    length: usize,
    user_data: *mut c_void,
) -> c_int {
    // SAFETY: nghttp2 passes the session's state, and a part of what it received, which is not
    // empty.
    unsafe {
        let data = std::slice::from_raw_parts(data, length);
        guard(user_data, FAILED, |state| {
            state.events.push_back(Event::Data(stream, data.to_vec()));
            OK
        })
    }
}

unsafe extern "C" fn on_frame(
    _: *mut sys::nghttp2_session,
    frame: *const sys::nghttp2_frame,
    user_data: *mut c_void,
) -> c_int {
    // SAFETY: nghttp2 passes the session's state and a valid frame, of the kind that its header
    // says.
    unsafe {
        let header = (*frame).hd;
        let has = |flag: u32| u32::from(header.flags) & flag != 0;
        let kind = u32::from(header.type_);
        guard(user_data, FAILED, |state| {
            let event = match kind {
                sys::NGHTTP2_HEADERS => Some(Event::Headers(
                    header.stream_id,
                    std::mem::take(&mut state.headers),
                )),
                sys::NGHTTP2_PING if has(sys::NGHTTP2_FLAG_ACK) => {
                    Some(Event::Pong((*frame).ping.opaque_data))
                }
                sys::NGHTTP2_GOAWAY => Some(Event::GoAway {
                    last: (*frame).goaway.last_stream_id,
                    code: (*frame).goaway.error_code,
                }),
                _ => None,
            };
            state.events.extend(event);
            let has_part = has_part(header.type_, header.flags, header.length);
            state.parts_taken += u64::from(has_part);
            if matches!(kind, sys::NGHTTP2_HEADERS | sys::NGHTTP2_DATA)
                && has(sys::NGHTTP2_FLAG_END_STREAM)
            {
                state.events.push_back(Event::End(header.stream_id));
            }
            OK
        })
    }
}

unsafe extern "C" fn on_close(
    _: *mut sys::nghttp2_session,
    stream: i32,
    code: u32,
    user_data: *mut c_void,
) -> c_int {
    // SAFETY: nghttp2 passes the session's state.
    unsafe {
        guard(user_data, FAILED, |state| {
            state.forget(stream);
            state.events.push_back(Event::Closed(stream, code));
            OK
        })
    }
}

unsafe extern "C" fn on_sent(
    _: *mut sys::nghttp2_session,
    frame: *const sys::nghttp2_frame,
    user_data: *mut c_void,
) -> c_int {
    // SAFETY: nghttp2 passes the session's state and a valid frame, of the kind that its header
    // says.
    unsafe {
        let is_goaway = u32::from((*frame).hd.type_) == sys::NGHTTP2_GOAWAY;
        let is_calm = is_goaway && (*frame).goaway.error_code == code::ENHANCE_YOUR_CALM;
        guard(user_data, FAILED, |state| {
            state.is_calmed |= is_calm;
            OK
        })
    }
}

/// Copies the next part of a body.
unsafe extern "C" fn read_body(
    session: *mut sys::nghttp2_session,
    stream: i32,
    buffer: *mut u8,
    room: usize,
    flags: *mut u32,
    _: *mut sys::nghttp2_data_source,
    user_data: *mut c_void,
) -> isize {
    // SAFETY: nghttp2 passes the session's state, `room` bytes to write to, and valid flags. It
    // allows to submit trailers here, which calls no callback.
    unsafe {
        guard(user_data, FAILED as isize, |state| {
            let Some(outgoing) = state.outgoing.get_mut(&stream) else {
                return sys::NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE as isize;
            };
            let rest = &outgoing.bytes[outgoing.sent..];
            let part = &rest[..rest.len().min(room)];
            ptr::copy_nonoverlapping(part.as_ptr(), buffer, part.len());
            let (copied, is_all) = (part.len(), part.len() == rest.len());
            outgoing.sent += copied;
            state.unsent -= copied;
            state.taken += copied as u64;
            if is_all {
                outgoing.bytes.clear();
                outgoing.sent = 0;
                match outgoing.end.take() {
                    None if copied == 0 => {
                        outgoing.is_waiting = true;
                        return sys::NGHTTP2_ERR_DEFERRED as isize;
                    }
                    None => {}
                    Some(trailers) => {
                        *flags |= sys::NGHTTP2_DATA_FLAG_EOF;
                        if !trailers.is_empty() {
                            *flags |= sys::NGHTTP2_DATA_FLAG_NO_END_STREAM;
                            let fields = name_values(&trailers);
                            let error = sys::nghttp2_submit_trailer(
                                session,
                                stream,
                                fields.as_ptr(),
                                fields.len(),
                            );
                            if error != 0 {
                                return sys::NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE as isize;
                            }
                        }
                    }
                }
            } else if outgoing.sent > outgoing.bytes.len() / 2 {
                // A peer that always leaves something must not make it grow.
                outgoing.bytes.drain(..outgoing.sent);
                outgoing.sent = 0;
            }
            copied as isize
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_peer_has_taken_is_not_kept() {
        let (mut server, mut client) = (
            Session::server(Limits::default()),
            Session::client(Limits::default()),
        );
        let fields = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/"),
            (":authority", "a"),
        ];
        let fields = fields.map(|(name, value)| Field::new(name, value));
        let stream = client.request(&fields, true).unwrap();
        let mut exchange = |server: &mut Session| {
            let (mut asked, mut said) = (Vec::new(), Vec::new());
            client.take_output(&mut asked);
            server.receive(&asked).unwrap();
            server.take_output(&mut said);
            client.receive(&said).unwrap();
        };
        exchange(&mut server);
        assert!(server.respond(stream, &[Field::new(":status", "200")], false));
        // More than the window, so that some is always left.
        for _ in 0..100 {
            server.send(stream, vec![0; 200_000 - server.unsent()]);
            exchange(&mut server);
            let unsent = server.unsent();
            assert!(unsent > 0);
            let kept = server.state().outgoing[&stream].bytes.len();
            assert!(kept <= 2 * unsent, "{kept} for {unsent}");
        }
    }
}
