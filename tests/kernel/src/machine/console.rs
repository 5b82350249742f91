//! Output to the emulator's debug port, and the switch.

use core::fmt::{self, Write};

use crate::cpu::{out8, out32};

/// QEMU's `isa-debugcon` and Bochs' `port_e9_hack`.
const DEBUG: u16 = 0xe9;
/// QEMU's `isa-debug-exit`.
const QEMU_EXIT: u16 = 0x501;
/// Bochs: writing `Shutdown` ends it.
const BOCHS_EXIT: u16 = 0x8900;

/// The debug port. Only one processor writes at a time: the first, or one that reports a fault
/// and ends everything.
pub struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            // SAFETY: the port does nothing but print.
            unsafe { out8(DEBUG, byte) };
        }
        Ok(())
    }
}

/// Prints a line.
#[macro_export]
macro_rules! println {
    ($($argument:tt)*) => {{
        use core::fmt::Write;
        // The console cannot fail, and a message that cannot be formatted is not worth more.
        let _ = writeln!($crate::console::Console, $($argument)*);
    }};
}

/// Ends the emulation.
pub fn power_off() -> ! {
    // SAFETY: nothing runs on.
    unsafe {
        out32(QEMU_EXIT, 0);
        for byte in *b"Shutdown" {
            out8(BOCHS_EXIT, byte);
        }
    }
    loop {
        core::hint::spin_loop();
    }
}
