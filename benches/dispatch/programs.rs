//! As many programs as functions: the dispatchers.

use fentry::emit::x86_64::{Check, Dispatcher, Kcfi, Preamble};
use fentry::emit::{Mitigations, Stride};
use fentry::encode::CodeBuffer;
use fentry::encode::x86_64::{
    Condition, Mem, Reg, add_imm, add_reg, call, cmp_load64, jcc, mov_imm32, mov_imm64, mov_load32,
    mov_reg_reg, mov_store64, nop, pop, push, ret, xor_reg32,
};

use crate::ground::Ground;
use crate::support::common::Random;
use crate::support::{Work, interleaved, median, ratio};

/// How many calls one timed run makes.
const CALLS: usize = 1 << 15;
const SIZES: [u32; 6] = [4, 16, 64, 256, 1024, 4096];
/// Where the index is in what a program gets first.
const INDEX: Mem = Mem::at(Reg::Rdi, 64);
/// Where the end of the indexes stands, in the page of data.
const END: Mem = Mem::at(Reg::Rdi, 128);

const PREAMBLE: Preamble =
    Preamble::Kcfi(Kcfi { hash: 0x1234_5678, arity: None, padding: 0, endbr64: false });

/// Dispatches one run's indexes; returns the sum of what the programs return.
type Driver = unsafe extern "C" fn(indexes: *const u32, end: *const u32) -> u64;

/// In which order functions are called.
#[derive(Clone, Copy, Debug)]
enum Order {
    /// One after the other, round and round, each from a place of its own: what a processor
    /// that knows where it comes from can learn.
    Cyclic,
    /// At random, all from one place.
    Random,
}

/// The indexes of one run's calls.
fn indexes(size: u32, order: Order) -> Vec<u32> {
    let mut random = Random::new(u64::from(size));
    (0..CALLS as u32)
        .map(|call| match order {
            Order::Cyclic => call % size,
            Order::Random => random.below(size as usize) as u32,
        })
        .collect()
}

/// A program that returns its number.
fn program(ground: &mut Ground, number: u32) -> u64 {
    ground.emit(1, |code| {
        while code.here() % 16 != 11 {
            nop(code, 1).expect("there is room");
        }
        let entry = PREAMBLE.emit(code).expect("there is room");
        mov_imm32(code, Reg::Rax, number).expect("there is room");
        ret(code).expect("there is room");
        entry
    })
}

/// A loop over indexes that calls `target` with each in the context.
fn driver(ground: &mut Ground, target: u64, size: u32, order: Order) -> Driver {
    let data = ground.data();
    let emit = |code: &mut CodeBuffer<'_>| {
        let start = code.here();
        push(code, Reg::Rbx)?;
        push(code, Reg::R12)?;
        mov_reg_reg(code, Reg::Rbx, Reg::Rdi)?;
        mov_imm64(code, Reg::Rdi, data)?;
        mov_store64(code, END, Reg::Rsi)?;
        xor_reg32(code, Reg::R12, Reg::R12)?;
        let again = code.here();
        let places = match order {
            Order::Cyclic => size as i32,
            Order::Random => 1,
        };
        for place in 0..places {
            mov_load32(code, Reg::Rax, Mem::at(Reg::Rbx, 4 * place))?;
            mov_store64(code, INDEX, Reg::Rax)?;
            call(code, target)?;
            add_reg(code, Reg::R12, Reg::Rax)?;
        }
        add_imm(code, Reg::Rbx, 4 * places)?;
        cmp_load64(code, Reg::Rbx, END)?;
        jcc(code, Condition::NotEqual, again)?;
        mov_reg_reg(code, Reg::Rax, Reg::R12)?;
        pop(code, Reg::R12)?;
        pop(code, Reg::Rbx)?;
        ret(code)?;
        Ok::<u64, fentry::encode::EncodeError>(start)
    };
    let start = ground.emit(64, |code| emit(code).expect("there is room, and everything is near"));
    // SAFETY: what was emitted there is of this type.
    unsafe { core::mem::transmute(start as usize) }
}

/// Measures one size in one order.
fn measure(size: u32, order: Order) -> String {
    let mut ground = Ground::new();
    let entries: Vec<u64> = (0..size).map(|number| program(&mut ground, number)).collect();
    let list: Vec<(u32, u64)> = (0..).zip(entries.iter().copied()).collect();
    let column = entries.as_ptr() as u64;
    let indexed = Dispatcher::Indexed { column, stride: Stride::Eight };
    let search = Dispatcher::Search(&list);
    let forms = [
        (indexed, Mitigations::empty()),
        (indexed, Mitigations::LFENCE),
        (indexed, Mitigations::RETPOLINE),
        (indexed, Mitigations::RETPOLINE | Mitigations::CFI),
        (search, Mitigations::empty()),
    ];
    let mut drivers = vec![driver(&mut ground, entries[0], size, order)];
    for (dispatcher, mitigations) in forms {
        let check = PREAMBLE.check();
        assert_ne!(check, Check::None);
        let hardening = ground.hardening(mitigations, check);
        let emit = |code: &mut CodeBuffer<'_>| dispatcher.emit(code, &hardening);
        let target = ground.emit(64, |code| emit(code).expect("there is room"));
        drivers.push(driver(&mut ground, target, size, order));
    }
    ground.seal();
    line(size, order, &drivers)
}

fn line(size: u32, order: Order, drivers: &[Driver]) -> String {
    let indexes = indexes(size, order);
    let range = indexes.as_ptr_range();
    let run = |driver: Driver| {
        // SAFETY: the indexes are all of programs that there are.
        unsafe { driver(range.start, range.end) }
    };
    let sum: u64 = indexes.iter().map(|&index| u64::from(index)).sum();
    let (direct, dispatched) = drivers.split_first().expect("there are six");
    assert_eq!(run(*direct), 0, "program 0 returns its number");
    for driver in dispatched {
        assert_eq!(run(*driver), sum, "each index runs its own program");
    }
    let mut works: Vec<Work<'_>> = drivers
        .iter()
        .map(|&driver| {
            Box::new(move || {
                core::hint::black_box(run(driver));
            }) as Work<'_>
        })
        .collect();
    let times = interleaved(41, &mut works);
    let ns = |which: usize| median(&times[which]) / CALLS as f64;
    let [_, indexed, _, retpoline, _, search] = &times[..] else {
        unreachable!("one for each driver")
    };
    format!(
        "dispatch: programs={size} order={} direct_ns={:.2} indexed_ns={:.2} lfence_ns={:.2} \
         retpoline_ns={:.2} retpoline_kcfi_ns={:.2} search_ns={:.2} search_to_indexed={:.3} \
         search_to_retpoline={:.3}",
        match order {
            Order::Cyclic => "cyclic",
            Order::Random => "random",
        },
        ns(0),
        ns(1),
        ns(2),
        ns(3),
        ns(4),
        ns(5),
        ratio(search, indexed),
        ratio(search, retpoline),
    )
}

/// The lines of all sizes in all orders.
pub fn lines() -> Vec<String> {
    let sizes = |order| SIZES.map(|size| measure(size, order));
    [Order::Cyclic, Order::Random].into_iter().flat_map(sizes).collect()
}
