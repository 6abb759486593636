//! The only place that calls libnftnl directly: expressions, sets and elements that the nftnl crate has no types for.
//!
//! Offers safe wrappers that own what they allocate. Must not know what a service is, nor send anything.

#![allow(
    unsafe_code,
    reason = "libnftnl is a C library; nftnl's safe types lack maps and concatenations"
)]

use std::alloc::{Layout, handle_alloc_error};
use std::ffi::{CStr, CString, c_char, c_void};
use std::ptr::NonNull;

use nftnl::expr::Expression;
use nftnl::{MsgType, NlMsg, ProtoFamily, Rule};
use nftnl_sys as sys;

/// Elements in one message of 64 KiB: an IPv6 key with a chain's name takes some 110 bytes.
pub(super) const ELEMENTS_MAX: usize = 512;

/// An attribute's value.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Number(u32),
    Bytes(Vec<u8>),
    Text(CString),
}

/// Any nftables expression, by name and attributes.
#[derive(Debug, Clone)]
pub(super) struct Expr {
    pub(super) name: &'static CStr,
    pub(super) attributes: Vec<(u32, Value)>,
}

/// C's allocation failed: what the standard library does then.
fn out_of_memory<T>() -> NonNull<T> {
    handle_alloc_error(Layout::new::<T>())
}

/// libnftnl numbers attributes in u32 constants and takes u16.
fn attribute(number: u32) -> u16 {
    u16::try_from(number).unwrap_or(u16::MAX)
}

fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

impl Expression for Expr {
    fn to_expr(&self, _rule: &Rule<'_>) -> NonNull<sys::nftnl_expr> {
        // SAFETY: the name is a C string; the result is checked for null.
        let expr = NonNull::new(unsafe { sys::nftnl_expr_alloc(self.name.as_ptr()) })
            .unwrap_or_else(out_of_memory);
        for (number, value) in &self.attributes {
            // SAFETY: `expr` was just allocated; libnftnl copies what the pointers lead to, and the lengths are theirs.
            let result = unsafe {
                match value {
                    Value::Number(number_value) => {
                        sys::nftnl_expr_set_u32(expr.as_ptr(), attribute(*number), *number_value);
                        0
                    }
                    Value::Bytes(bytes) => sys::nftnl_expr_set(
                        expr.as_ptr(),
                        attribute(*number),
                        bytes.as_ptr().cast::<c_void>(),
                        length(bytes),
                    ),
                    Value::Text(text) => {
                        sys::nftnl_expr_set_str(expr.as_ptr(), attribute(*number), text.as_ptr())
                    }
                }
            };
            if result < 0 {
                out_of_memory::<u8>();
            }
        }
        expr
    }
}

/// A set or map: what it is, or some of its elements.
#[derive(Debug)]
pub(super) struct Set {
    set: NonNull<sys::nftnl_set>,
    family: ProtoFamily,
}

/// Types and lengths of a map.
#[derive(Debug, Clone, Copy)]
pub(super) struct SetShape {
    pub(super) key_type: u32,
    pub(super) key_bytes: u32,
    /// Type and length of the data; none: a set.
    pub(super) data: Option<(u32, u32)>,
}

/// What an element leads to.
#[derive(Debug)]
pub(super) enum ElementData<'a> {
    None,
    Verdict(i32, Option<&'a CStr>),
    Bytes(&'a [u8]),
}

impl Set {
    pub(super) fn new(table: &CStr, name: &CStr, family: ProtoFamily) -> Set {
        // SAFETY: the result is checked for null; both names are C strings that libnftnl copies.
        unsafe {
            let set = NonNull::new(sys::nftnl_set_alloc()).unwrap_or_else(out_of_memory);
            let raw = set.as_ptr();
            let family_number = u32::from(family as u16);
            sys::nftnl_set_set_u32(raw, attribute(sys::NFTNL_SET_FAMILY), family_number);
            let named = [(sys::NFTNL_SET_TABLE, table), (sys::NFTNL_SET_NAME, name)];
            for (number, text) in named {
                if sys::nftnl_set_set_str(raw, attribute(number), text.as_ptr()) < 0 {
                    out_of_memory::<u8>();
                }
            }
            Set { set, family }
        }
    }

    pub(super) fn shape(&mut self, shape: SetShape, id: u32) {
        let mut numbers = vec![
            (sys::NFTNL_SET_ID, id),
            (sys::NFTNL_SET_KEY_TYPE, shape.key_type),
            (sys::NFTNL_SET_KEY_LEN, shape.key_bytes),
        ];
        if let Some((data_type, data_bytes)) = shape.data {
            numbers.push((sys::NFTNL_SET_FLAGS, super::nft::SET_IS_MAP));
            numbers.push((sys::NFTNL_SET_DATA_TYPE, data_type));
            numbers.push((sys::NFTNL_SET_DATA_LEN, data_bytes));
        }
        for (number, value) in numbers {
            // SAFETY: `set` is alive; the call copies a number.
            unsafe {
                sys::nftnl_set_set_u32(self.set.as_ptr(), attribute(number), value);
            }
        }
    }

    pub(super) fn push(&mut self, key: &[u8], data: &ElementData<'_>) {
        // SAFETY: the element is checked for null and handed to the set, which frees it; libnftnl copies keys, data and
        // chain names, whose lengths are given.
        unsafe {
            let element = NonNull::new(sys::nftnl_set_elem_alloc()).unwrap_or_else(out_of_memory);
            let raw = element.as_ptr();
            let set_bytes = |number: u32, bytes: &[u8]| {
                let pointer = bytes.as_ptr().cast::<c_void>();
                if sys::nftnl_set_elem_set(raw, attribute(number), pointer, length(bytes)) < 0 {
                    out_of_memory::<u8>();
                }
            };
            set_bytes(sys::NFTNL_SET_ELEM_KEY, key);
            match data {
                ElementData::None => {}
                ElementData::Bytes(bytes) => set_bytes(sys::NFTNL_SET_ELEM_DATA, bytes),
                ElementData::Verdict(verdict, chain) => {
                    let number = attribute(sys::NFTNL_SET_ELEM_VERDICT);
                    sys::nftnl_set_elem_set_u32(raw, number, verdict.cast_unsigned());
                    if let Some(chain) = chain {
                        let number = attribute(sys::NFTNL_SET_ELEM_CHAIN);
                        if sys::nftnl_set_elem_set_str(raw, number, chain.as_ptr()) < 0 {
                            out_of_memory::<u8>();
                        }
                    }
                }
            }
            sys::nftnl_set_elem_add(self.set.as_ptr(), raw);
        }
    }
}

impl Drop for Set {
    fn drop(&mut self) {
        // SAFETY: allocated by `new`, freed once; frees the elements too.
        unsafe { sys::nftnl_set_free(self.set.as_ptr()) };
    }
}

fn build_header(
    buffer: *mut c_void,
    message: i32,
    family: ProtoFamily,
    flags: i32,
    sequence: u32,
) -> *mut sys::libc::nlmsghdr {
    let short = |number: i32| u16::try_from(number).unwrap_or_default();
    // SAFETY: only called from `NlMsg::write`, whose caller promises the room.
    unsafe {
        sys::nftnl_nlmsg_build_hdr(
            buffer.cast::<c_char>(),
            short(message),
            family as u16,
            short(flags | libc::NLM_F_ACK),
            sequence,
        )
    }
}

/// The message that makes a set.
#[derive(Debug)]
pub(super) struct SetMessage<'a>(pub(super) &'a Set);

// SAFETY: a set's description is some hundred bytes.
unsafe impl NlMsg for SetMessage<'_> {
    unsafe fn write(&self, buffer: *mut c_void, sequence: u32, _: MsgType) {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_APPEND;
        let header = build_header(buffer, libc::NFT_MSG_NEWSET, self.0.family, flags, sequence);
        // SAFETY: the header lies in the caller's buffer; the set is alive.
        unsafe { sys::nftnl_set_nlmsg_build_payload(header, self.0.set.as_ptr()) };
    }
}

/// The message that adds or deletes the elements pushed to a set.
#[derive(Debug)]
pub(super) struct ElementsMessage<'a>(pub(super) &'a Set);

// SAFETY: callers push at most `ELEMENTS_MAX` elements, which fit the largest message.
unsafe impl NlMsg for ElementsMessage<'_> {
    unsafe fn write(&self, buffer: *mut c_void, sequence: u32, message: MsgType) {
        let (message, flags) = match message {
            MsgType::Add => (libc::NFT_MSG_NEWSETELEM, libc::NLM_F_CREATE | libc::NLM_F_EXCL),
            MsgType::Del => (libc::NFT_MSG_DELSETELEM, 0),
        };
        let header = build_header(buffer, message, self.0.family, flags, sequence);
        // SAFETY: the header lies in the caller's buffer; the set is alive.
        unsafe { sys::nftnl_set_elems_nlmsg_build_payload(header, self.0.set.as_ptr()) };
    }
}
