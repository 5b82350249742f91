//! wip
mod support;
use support::{compile::*, object::Object, signatures};
#[test]
fn wip() {
    for c in compilers() {
        for (n, g) in [("ord", signatures::ordinary(1, c == Compiler::Gcc)), ("ymm", signatures::vectors(2, false)), ("zmm", signatures::vectors(2, true))] {
            for o in ["-O0", "-O2"] {
                let t = std::time::Instant::now();
                let name = format!("wip-{n}-{}{o}", c.command());
                let p = shared_object(&Build { name: &name, source: &g.source, extension: "c", compiler: c, flags: &[o, "-fpatchable-function-entry=21,16"] });
                let o = Object::load(&p);
                let h = o.address("hooked") as *const signatures::Driver;
                let t_ = o.address("twins") as *const signatures::Driver;
                let mut seen = std::collections::HashSet::new();
                for i in 0..g.signatures.len() {
                    // SAFETY: wip
                    let (a, b) = unsafe { ((*h.add(i))(), (*t_.add(i))()) };
                    assert_eq!(a, b, "{}", g.signatures[i]);
                    seen.insert(a);
                }
                println!("{name} {} {} {:?}", g.signatures.len(), seen.len(), t.elapsed());
            }
        }
    }
}
