//! From code that all functions share to a function's own: the thunk's direct call against
//! a table of calls and a column of addresses.
//!
//! Each form has a body that puts the caller's return address away, calls the origin, and
//! returns; nothing else. All keep calls and returns balanced.

use fentry::addr::Origin;
use fentry::emit::x86_64::{Bodies, CallTable, Check, EXIT_THUNK_SIZE, Kept, TARGET, exit_thunk};
use fentry::emit::{EmitError, Mitigations};
use fentry::encode::CodeBuffer;
use fentry::encode::x86_64::{
    Condition, Mem, Reg, Scale, add_imm, add_reg, call, jcc, jmp, lea, mov_imm32, mov_imm64,
    mov_load64, mov_reg_reg, mov_store64, pop, push, ret, sub_imm, test_reg, xor_reg32,
};

use crate::ground::Ground;
use crate::support::{Work, interleaved, median, ratio};

/// Numbers of functions, and how often all of them are called in a timed run.
const ROWS: [(usize, u64); 4] = [(1, 20_000), (16, 1_250), (256, 80), (4096, 5)];

/// Calls every function so many times, and adds up what they return.
type Driver = unsafe extern "C" fn(u64) -> u64;

/// How the shared body arrives at the origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// Not hooked: the function is its origin.
    Unhooked,
    /// A thunk of 32 bytes for each function, which calls it.
    Thunk,
    /// An address for each function, called indirectly.
    Pointer(Mitigations),
    /// A row of a call table for each function.
    Table(Mitigations),
}

const RETPOLINE: Mitigations = Mitigations::RETPOLINE.union(Mitigations::SLS);
const FORMS: [Form; 6] = [
    Form::Unhooked,
    Form::Thunk,
    Form::Pointer(Mitigations::empty()),
    Form::Table(Mitigations::empty()),
    Form::Pointer(RETPOLINE),
    Form::Table(RETPOLINE),
];

/// Takes the caller's return address off the stack, to the page of data.
fn take_caller(code: &mut CodeBuffer<'_>, data: u64) -> Result<(), EmitError> {
    pop(code, Reg::Rcx)?;
    mov_imm64(code, Reg::R10, data)?;
    Ok(mov_store64(code, Mem::at(Reg::R10, 0), Reg::Rcx)?)
}

/// Returns to the caller.
fn give_caller(code: &mut CodeBuffer<'_>, data: u64) -> Result<(), EmitError> {
    mov_imm64(code, Reg::R10, data)?;
    mov_load64(code, Reg::Rcx, Mem::at(Reg::R10, 0))?;
    push(code, Reg::Rcx)?;
    Ok(ret(code)?)
}

/// The bodies of the thunks: `enter` finds the caller's return address above its own.
fn bodies(code: &mut CodeBuffer<'_>, data: u64) -> Result<Bodies, EmitError> {
    let enter = code.here();
    mov_load64(code, Reg::Rcx, Mem::at(Reg::Rsp, 8))?;
    mov_imm64(code, Reg::R10, data)?;
    mov_store64(code, Mem::at(Reg::R10, 0), Reg::Rcx)?;
    // Neither zero nor a carry: the origin runs.
    test_reg(code, Reg::Rsp, Reg::Rsp)?;
    ret(code)?;
    let exit = code.here();
    give_caller(code, data)?;
    Ok(Bodies { enter, exit, kept: Kept::OnSideStack })
}

/// The column of origins, and the functions as their callers know them.
fn functions(ground: &mut Ground, form: Form, origins: &[Origin]) -> Vec<u64> {
    let data = ground.data();
    let near = "there is room, and everything is near";
    // As close together as the form allows.
    let each = |ground: &mut Ground, size: u64, emit: &dyn Fn(&mut CodeBuffer<'_>, u32, Origin)| {
        let each = (0..).zip(origins);
        each.map(|(index, &origin)| {
            ground.emit(size, |code| {
                let start = code.here();
                emit(code, index, origin);
                start
            })
        })
        .collect()
    };
    let body = match form {
        Form::Unhooked => return origins.iter().map(|origin| origin.get()).collect(),
        Form::Thunk => {
            let mut made = Bodies { enter: 0, exit: 0, kept: Kept::OnSideStack };
            ground.emit(64, |code| {
                made = bodies(code, data).expect(near);
                made.enter
            });
            return each(ground, EXIT_THUNK_SIZE as u64, &|code, index, origin| {
                exit_thunk(code, index, made, origin).expect(near);
            });
        }
        Form::Pointer(mitigations) => {
            let hardening = ground.hardening(mitigations, Check::None);
            let column = Vec::leak(origins.iter().map(|origin| origin.get()).collect());
            ground.emit(64, |code| {
                let body = code.here();
                let emit = |code: &mut CodeBuffer<'_>| {
                    take_caller(code, data)?;
                    mov_imm64(code, Reg::R10, column.as_ptr() as u64)?;
                    let origin = Mem::at(Reg::R10, 0).indexed(TARGET, Scale::Eight);
                    mov_load64(code, TARGET, origin)?;
                    hardening.emit_indirect_call(code)?;
                    give_caller(code, data)
                };
                emit(code).expect(near);
                body
            })
        }
        Form::Table(mitigations) => {
            let hardening = ground.hardening(mitigations, Check::None);
            let table = CallTable { origins, endbr64: false };
            let select = ground.emit(64, |code| table.emit(code, &hardening).expect(near));
            ground.emit(64, |code| {
                let body = code.here();
                let emit = |code: &mut CodeBuffer<'_>| {
                    take_caller(code, data)?;
                    hardening.emit_call(code, select)?;
                    give_caller(code, data)
                };
                emit(code).expect(near);
                body
            })
        }
    };
    each(ground, 16, &|code, index, _| {
        mov_imm32(code, TARGET, index).expect(near);
        jmp(code, body).expect(near);
    })
}

/// Straight calls of all functions, in a loop.
fn driver(ground: &mut Ground, functions: &[u64]) -> Driver {
    let emit = |code: &mut CodeBuffer<'_>| {
        let start = code.here();
        push(code, Reg::Rbx)?;
        push(code, Reg::R12)?;
        mov_reg_reg(code, Reg::Rbx, Reg::Rdi)?;
        xor_reg32(code, Reg::R12, Reg::R12)?;
        let again = code.here();
        for &function in functions {
            mov_imm32(code, Reg::Rdi, 1)?;
            call(code, function)?;
            add_reg(code, Reg::R12, Reg::Rax)?;
        }
        sub_imm(code, Reg::Rbx, 1)?;
        jcc(code, Condition::NotEqual, again)?;
        mov_reg_reg(code, Reg::Rax, Reg::R12)?;
        pop(code, Reg::R12)?;
        pop(code, Reg::Rbx)?;
        ret(code)?;
        Ok::<u64, EmitError>(start)
    };
    let start = ground.emit(64, |code| emit(code).expect("there is room, and everything is near"));
    // SAFETY: what was emitted there is of this type.
    unsafe { core::mem::transmute(start as usize) }
}

fn line((count, times): (usize, u64)) -> String {
    let mut drivers = Vec::new();
    for form in FORMS {
        let mut ground = Ground::new();
        let origins: Vec<Origin> = (0..count as i32)
            .map(|number| {
                Origin::new(ground.emit(16, |code| {
                    let start = code.here();
                    lea(code, Reg::Rax, Mem::at(Reg::Rdi, number)).expect("there is room");
                    add_imm(code, Reg::Rax, 1).expect("there is room");
                    ret(code).expect("there is room");
                    start
                }))
            })
            .collect();
        let functions = functions(&mut ground, form, &origins);
        drivers.push(driver(&mut ground, &functions));
        ground.seal();
    }
    let run = |driver: Driver| {
        // SAFETY: it takes any number.
        unsafe { driver(times) }
    };
    let sum = times * (0..count as u64).map(|number| number + 2).sum::<u64>();
    for (driver, form) in drivers.iter().zip(FORMS) {
        assert_eq!(run(*driver), sum, "{form:?}: every function is called");
    }
    let mut works: Vec<Work<'_>> = drivers
        .iter()
        .map(|&driver| {
            Box::new(move || {
                core::hint::black_box(run(driver));
            }) as Work<'_>
        })
        .collect();
    let all = interleaved(101, &mut works);
    let calls = count as f64 * times as f64;
    let ns = |which: usize| median(&all[which]) / calls;
    format!(
        "dispatch: functions={count} unhooked_ns={:.2} thunk_ns={:.2} pointer_ns={:.2} \
         table_ns={:.2} pointer_retpoline_ns={:.2} table_retpoline_ns={:.2} \
         table_to_thunk={:.3} table_retpoline_to_thunk={:.3}",
        ns(0),
        ns(1),
        ns(2),
        ns(3),
        ns(4),
        ns(5),
        ratio(&all[3], &all[1]),
        ratio(&all[5], &all[1]),
    )
}

/// The lines of all numbers of functions.
pub fn lines() -> Vec<String> {
    ROWS.map(line).into()
}
