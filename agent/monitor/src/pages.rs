//! Lets go of what a process has mapped of its program files and doesn't need while it is idle. Starting touches most of them
//! once; the kernel keeps them in its page cache, maps them again at the next touch, and may have the memory meanwhile.
//! Must touch nothing that was written to.

#![allow(unsafe_code, reason = "walking the loaded objects, and giving their read-only pages back")]

use std::ffi::{c_int, c_void};
use std::slice;

/// Unmaps every page of the program and its libraries that is as the file has it.
pub fn release_program() {
    // SAFETY: the callback has the signature that it must have, and no data.
    unsafe { libc::dl_iterate_phdr(Some(release_object), std::ptr::null_mut()) };
}

unsafe extern "C" fn release_object(
    info: *mut libc::dl_phdr_info,
    _size: usize,
    _data: *mut c_void,
) -> c_int {
    // SAFETY: the loader hands out a valid description with that many headers.
    let (base, headers) = unsafe {
        let info = &*info;
        if info.dlpi_phdr.is_null() {
            return 0;
        }
        (info.dlpi_addr, slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)))
    };
    for header in headers {
        if header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0 {
            let start = base.wrapping_add(header.p_vaddr);
            release_range(start, start.wrapping_add(header.p_memsz));
        }
    }
    0
}

/// Unmaps the whole pages of a segment that nobody can have written to: relocations are in writable segments alone.
fn release_range(start: u64, end: u64) {
    // SAFETY: asks for a number.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    let Ok(page) = u64::try_from(page) else { return };
    let (first, last) = (start.next_multiple_of(page), end / page * page);
    let (Ok(address), Ok(length)) =
        (usize::try_from(first), usize::try_from(last.saturating_sub(first)))
    else {
        return;
    };
    if length == 0 {
        return;
    }
    let address = std::ptr::without_provenance_mut::<c_void>(address);
    // SAFETY: the pages are a file's, mapped privately and not writable: a touch brings the same content back. What the kernel
    // refuses (its own object, the vdso) stays as it is.
    unsafe { libc::madvise(address, length, libc::MADV_DONTNEED) };
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_program_runs_on_without_its_pages_and_has_fewer_of_them() {
        let mapped = || {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find(|line| line.starts_with("RssFile:")).unwrap();
            line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
        };
        let text = format!("{:?}", (1, 2.5, "three"));
        let before = mapped();
        super::release_program();
        let after = mapped();
        assert_eq!(format!("{:?}", (1, 2.5, "three")), text);
        assert!(after < before, "{before} kB before, {after} kB after");
    }
}
