//! wip
mod support;
use support::{*, assembly::*, floor::Stores};
fn main() {
    let t = std::time::Instant::now();
    let c = copies(100_000, Padding::Sixteen, &[1,16,10_000,100_000], &["a","b"]);
    println!("made {:?}", t.elapsed());
    let n = c[0].count();
    let s = Stores::new(&c[0], "floor_counting_body", n);
    let before = memory::memory(c[0].object().path());
    let t = std::time::Instant::now(); s.attach(); println!("cold {:?}", t.elapsed());
    println!("{before:?} {:?}", memory::memory(c[0].object().path()));
    for _ in 0..5 { let t = std::time::Instant::now(); s.detach(); let u = t.elapsed(); s.attach(); println!("warm {u:?} {:?}", t.elapsed()-u); }
    let d = c[0].driver(100_000); unsafe { d(1) }; 
    let take: unsafe extern "C" fn() -> u64 = unsafe { c[0].object().function("take_counted") };
    println!("counted {}", unsafe { take() });
    let s = Stores::new(&c[0], "floor_body", n); s.attach();
    for (k, reps) in [(1, 100_000u64), (16, 6_000), (10_000, 3), (100_000, 1)] {
        let (a, b) = (c[0].driver(k), c[1].driver(k));
        let r = interleaved(51, &mut [Box::new(move || {unsafe { b(reps) };}), Box::new(move || {unsafe { a(reps) };})]);
        let per = (k as u64 * reps) as f64;
        println!("{k}: unhooked {:.2} floor {:.2}", median(&r[0])/per, median(&r[1])/per);
    }
    remove_files(&[&c[0], &c[1]]);
}
