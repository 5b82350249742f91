//! What goes wrong around the library: other tools that write text, kernels that refuse,
//! address spaces that are full. Some of it cannot be undone, and is done in a child.

use std::process::Command;

/// Set in a child that [`in_child`] starts.
const CHILD: &str = "FENTRY_TEST_CHILD";

/// Runs `body` in a process of its own: this test's executable again, with only the test
/// `name`, in which this function then calls `body` instead of starting a child.
pub fn in_child(name: &str, body: impl FnOnce()) {
    if std::env::var_os(CHILD).is_some() {
        return body();
    }
    let output = Command::new(std::env::current_exe().expect("a test has an executable"))
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, "1")
        .output()
        .expect("a test can be started again");
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{name} in a child: {}\n{out}{err}", output.status);
    assert!(out.contains("1 passed"), "{name}: no such test in the child\n{out}{err}");
}

/// Writes `bytes` over the text at `address`, as another tool would: without asking.
///
/// # Safety
/// The bytes are in mapped text, and nothing executes them meanwhile.
pub unsafe fn overwrite(address: usize, bytes: &[u8]) {
    const PAGE: usize = 4096;
    let start = address & !(PAGE - 1);
    let length = address + bytes.len() - start;
    let protect = |access| {
        // SAFETY: the pages stay mapped, readable and executable.
        let failed = unsafe { libc::mprotect(start as *mut _, length, access) };
        assert_eq!(failed, 0, "mprotect: {}", std::io::Error::last_os_error());
    };
    protect(libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC);
    // SAFETY: made writable above; the caller promises that nothing executes them.
    unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, bytes.len()) };
    protect(libc::PROT_READ | libc::PROT_EXEC);
}

/// From now on, and for ever, this thread and its children cannot call `number`: the kernel
/// answers `ENOSYS`, as one does that is too old.
pub fn forbid_system_call(number: libc::c_long) {
    let statement = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    // BPF over `struct seccomp_data`, whose first word is the system call's number.
    let mut filter = [
        statement((libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, 0, 0, 0),
        statement((libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16, 0, 1, number as u32),
        statement(
            (libc::BPF_RET | libc::BPF_K) as u16,
            0,
            0,
            libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32,
        ),
        statement((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the filter is well-formed and lives through both calls, which copy it.
    let failed = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            | libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
    };
    assert_eq!(failed, 0, "seccomp: {}", std::io::Error::last_os_error());
}

/// Reserves, without access, every free page within 2 GiB (and a little more) of `address`.
pub fn fill_address_space_around(address: usize) {
    const REACH: usize = (2 << 30) + (64 << 20);
    let page = address & !4095;
    let (low, high) = (page - REACH, page + REACH);
    let maps = std::fs::read_to_string("/proc/self/maps").expect("/proc is mounted");
    let mut free_from = low;
    let fill = |from: usize, to: usize| {
        if from >= to {
            return;
        }
        let flags = libc::MAP_PRIVATE
            | libc::MAP_ANONYMOUS
            | libc::MAP_NORESERVE
            | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: no existing mapping is replaced (`MAP_FIXED_NOREPLACE`).
        let at = unsafe { libc::mmap(from as *mut _, to - from, libc::PROT_NONE, flags, -1, 0) };
        assert_ne!(at, libc::MAP_FAILED, "{from:#x}: {}", std::io::Error::last_os_error());
    };
    for line in maps.lines() {
        let range = line.split_ascii_whitespace().next().expect("a range");
        let (start, end) = range.split_once('-').expect("two addresses");
        let start = usize::from_str_radix(start, 16).expect("hexadecimal");
        let end = usize::from_str_radix(end, 16).expect("hexadecimal");
        if end <= free_from || start >= high {
            continue;
        }
        // The stack grows down into the free pages below it: leave it some.
        let until = if line.ends_with("[stack]") { start - (16 << 20) } else { start };
        fill(free_from, until.min(high));
        free_from = end;
    }
    // The highest page that a process may have ends here.
    fill(free_from, high.min((1 << 47) - 4096));
}
