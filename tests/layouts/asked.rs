//! Options that do not go together, and `.config` files of kernels that cannot be had here.

use fentry::layout::{
    Arch, Compiler, Config, FineIbt, Function, Kernel, KernelError, LandingPad, LayoutError,
    Options, OptionsError,
};

fn config(arch: Arch, compiler: Compiler, flags: &str) -> Result<Config, OptionsError> {
    Options::parse(arch, compiler, flags.split_whitespace())?.config(Function::ANY)
}

#[test]
fn options_that_do_not_go_together_are_named() {
    let gcc = |flags: &str| config(Arch::X86_64, Compiler::Gcc, flags);
    let llvm = |flags: &str| config(Arch::X86_64, Compiler::Llvm(21), flags);
    let value = |option| Err(OptionsError::Value { option });
    let unknown = |option| Err(OptionsError::NotKnown { option });
    assert_eq!(gcc("-fpatchable-function-entry=many"), value("-fpatchable-function-entry"));
    assert_eq!(gcc("-fpatchable-function-entry=70000"), value("-fpatchable-function-entry"));
    assert_eq!(gcc("-fcf-protection=some"), value("-fcf-protection"));
    assert_eq!(
        config(Arch::Aarch64, Compiler::Gcc, "-mbranch-protection=bti+x"),
        value("-mbranch-protection")
    );
    assert_eq!(
        config(Arch::Aarch64, Compiler::Gcc, "-fpatchable-function-entry=20000"),
        value("-fpatchable-function-entry")
    );
    let more = OptionsError::MoreBefore { nops: 11, nops_before: 16 };
    assert_eq!(gcc("-fpatchable-function-entry=11,16"), Err(more));
    assert_eq!(
        more.to_string(),
        "-fpatchable-function-entry=11,16 asks for more nops before the entry than in all: \
         make it 21,16"
    );
    assert_eq!(gcc("-pg -mfentry"), Err(OptionsError::FentryCalls));
    assert_eq!(
        gcc("-pg -mfentry -mnop-mcount -fpatchable-function-entry=5"),
        Err(OptionsError::TwoSites)
    );
    assert_eq!(llvm("-mfentry -mnop-mcount"), unknown("-mfentry"));
    assert_eq!(gcc("-fsanitize=kcfi"), unknown("-fsanitize=kcfi"));
    assert_eq!(
        llvm("-fpatchable-function-entry=26,16"),
        Err(OptionsError::SiteNotFive { site: 10 })
    );
}

#[test]
fn the_last_option_counts() {
    let llvm = |flags: &str| config(Arch::X86_64, Compiler::Llvm(21), flags);
    let plain = Ok(Config::X86_64.with_padding(16).with_site(5));
    let nops = "-fpatchable-function-entry=21,16";
    assert_eq!(llvm(&format!("-fpatchable-function-entry=5 {nops}")), plain);
    assert_eq!(llvm(&format!("{nops} -fcf-protection -fcf-protection=none")), plain);
    assert_eq!(llvm(&format!("{nops} -fsanitize=kcfi -fno-sanitize=all")), plain);
    assert_eq!(llvm(&format!("{nops} -mfentry -mno-fentry")), plain);
    assert_eq!(llvm(&format!("{nops} -fsanitize=kcfi -Os -O2")), plain.map(|c| c.with_kcfi(16)));
    // rustc's own names, as in Linux's Makefile.
    let rustc = "-Zpatchable-function-entry=16,16 -Zcf-protection=branch -Zsanitizer=kcfi";
    let rust = Config::X86_64.with_padding(16).with_kcfi(16);
    assert_eq!(llvm(rustc), Ok(rust.with_landing_pad(LandingPad::Endbr64)));
}

/// `FUNCTION_PADDING_BYTES` and `FUNCTION_ALIGNMENT` as arch/x86/Kconfig of Linux 7.2 computes
/// them, and where the hash is then: `CFI_OFFSET` less the opcode.
#[test]
fn kernels_with_kcfi_and_fineibt() {
    const BASE: &str = "CONFIG_X86_64=y\nCONFIG_X86_KERNEL_IBT=y\nCONFIG_CALL_PADDING=y\n\
                        CONFIG_DYNAMIC_FTRACE=y\nCONFIG_HAVE_FENTRY=y\n# CONFIG_ARM64 is not set\n";
    for (alignment, padding) in [(16, 11), (32, 27), (64, 59)] {
        for name in ["CONFIG_CFI_CLANG", "CONFIG_CFI"] {
            let cfi = format!("{BASE}{name}=y\nCONFIG_FUNCTION_PADDING_BYTES={padding}\n");
            let kernel = Kernel::parse(&cfi).unwrap();
            assert_eq!(kernel.compiled().before_entry(), alignment);
            assert_eq!(kernel.compiled().hash(), Some(1 - alignment as i32));
            let tail = if alignment == 16 { 5 } else { 16 };
            assert_eq!(kernel.slot(), Ok(tail));

            let thunks = Kernel::parse(&format!("{cfi}CONFIG_CALL_THUNKS=y\n")).unwrap();
            let fineibt = Kernel::parse(&format!("{cfi}CONFIG_FINEIBT=y\n")).unwrap();
            assert!(thunks.may_have_call_depth() && !thunks.may_have_fineibt());
            assert!(fineibt.may_have_fineibt() && !fineibt.may_have_call_depth());
            for kernel in [thunks, fineibt] {
                let layout = kernel.layout().unwrap();
                if alignment == 16 {
                    assert!(matches!(kernel.slot(), Err(LayoutError::NoRoom { .. })));
                    assert_eq!(layout.slot_kind(), None);
                } else {
                    assert!(layout.slot_kind().is_some());
                }
                assert_eq!(layout.landing_pad(), LandingPad::Endbr64);
            }
            for preamble in FineIbt::ALL {
                let running = fineibt.compiled().with_fineibt(preamble);
                assert_eq!(running.slot().ok(), fineibt.slot().ok());
            }
        }
    }
    let missing = Kernel::parse(BASE);
    let option = "CONFIG_FUNCTION_PADDING_BYTES";
    assert_eq!(missing, Err(KernelError::Number { option }));
    assert_eq!(Kernel::parse("CONFIG_RISCV=y\n"), Err(KernelError::Architecture));
}

#[test]
fn kernels_for_arm64() {
    const BASE: &str = "CONFIG_ARM64=y\nCONFIG_DYNAMIC_FTRACE=y\nCONFIG_ARM64_BTI_KERNEL=y\n\
                        CONFIG_DYNAMIC_FTRACE_WITH_ARGS=y\n";
    let compiled = |more: &str| Kernel::parse(&format!("{BASE}{more}")).unwrap().compiled();
    let plain = Config::AARCH64.with_landing_pad(LandingPad::BtiC).with_site(8);
    assert_eq!(compiled(""), plain);
    assert_eq!(compiled("CONFIG_ARM64_PTR_AUTH_KERNEL=y\n"), plain.with_sign_return());
    assert_eq!(compiled("CONFIG_CFI=y\n").hash(), Some(-4));
    let ops = compiled("CONFIG_DYNAMIC_FTRACE_WITH_CALL_OPS=y\n");
    assert_eq!(ops, plain.with_padding(8).with_ops_literal());
    assert!(matches!(ops.slot(), Err(LayoutError::NoRoom { largest: 0, .. })));
}
