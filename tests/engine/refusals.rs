//! What is refused, and that refusing changes nothing.

use fentry::attach::{AttachError, Attachment, Cookies, Lanes, SiteNop};
use fentry::layout::x86_64::{IBT, PLAIN_UNPADDED};
use fentry::patch::{CheckError, Conflict, PatchError, Poke, Protocol};

use crate::bench::{Bench, Kind, Outcome, program, run};
use crate::fake::{Failing, Fault};

const A: Attachment<'static> = program(0x1900_0000, Cookies::Position);
const NOP: [u8; 5] = [0x0f, 0x1f, 0x44, 0x00, 0x00];

/// The error of an operation that must have stored nothing.
fn refused<T: core::fmt::Debug>(
    bench: &mut Bench,
    operation: impl FnOnce(&mut Bench) -> Outcome<T>,
) -> AttachError<Fault> {
    bench.world.arm(Failing::None);
    let text = bench.world.text();
    let error = operation(bench).unwrap_err();
    assert_eq!(bench.stores(), 0, "{error}");
    assert_eq!(text.differences(&bench.world.text()), [], "{error}");
    error
}

fn conflicts(pokes: &[Poke]) -> Vec<Conflict> {
    pokes.iter().filter_map(Poke::conflict).collect()
}

#[test]
fn foreign_bytes_at_3_of_100_sites_are_named_with_what_was_found() {
    for protocol in [Protocol::ShortJump, Protocol::Breakpoint] {
        let mut bench = Bench::of(protocol, Kind::PLAIN, 100);
        let all = bench.all();
        let foreign = [(17, [0xcc, 0x1f, 0x44, 0, 0]), (18, [0xe8, 1, 2, 3, 4]), (99, [0; 5])];
        for (function, bytes) in foreign {
            bench.world.overwrite(bench.site(function), &bytes);
        }
        let found = foreign.map(|(function, found)| Conflict::Changed {
            site: bench.functions[function].layout.site(bench.functions[function].entry),
            expected: NOP,
            found,
        });
        let error = refused(&mut bench, |bench| bench.attach(&all, &[A]));
        let expected = CheckError::Conflicts { count: 3, first: found[0] };
        assert_eq!(error, AttachError::Patch(PatchError::Check(expected)));
        assert_eq!(conflicts(&bench.pokes), found);

        // A buffer that was used before names none of what it named then.
        let ids = bench.ids(&(0..18).collect::<Vec<_>>());
        let Bench { engine, pokes, .. } = &mut bench;
        // SAFETY: nobody executes the text.
        let error = unsafe { engine.attach(&ids, &[A], pokes) }.unwrap_err();
        let expected = CheckError::Conflicts { count: 1, first: found[0] };
        assert_eq!(error, AttachError::Patch(PatchError::Check(expected)));
        assert_eq!(conflicts(&bench.pokes), found[..1]);

        for (function, _) in foreign {
            bench.world.overwrite(bench.site(function), &NOP);
        }
        let _lanes = bench.attach(&all, &[A]).unwrap();
        assert!(all.iter().all(|&function| bench.runs(function).len() == 1));
    }
}

#[test]
fn a_site_that_was_changed_while_attached_is_not_detached_over() {
    let mut bench = Bench::of(Protocol::ShortJump, Kind::PLAIN, 3);
    let lanes = bench.attach(&[0, 1, 2], &[A]).unwrap();
    let ours = bench.world.overwrite(bench.site(1), &[0xe8, 9, 9, 9, 0]);
    for operation in [
        |bench: &mut Bench, lanes| bench.detach(&[0, 1, 2], lanes),
        |bench: &mut Bench, lanes| bench.set_enabled(&[0, 1, 2], lanes, false),
    ] {
        let error = refused(&mut bench, |bench| operation(bench, lanes));
        let site = bench.functions[1].layout.site(bench.functions[1].entry);
        let first = Conflict::Changed { site, expected: ours, found: [0xe8, 9, 9, 9, 0] };
        let expected = CheckError::Conflicts { count: 1, first };
        assert_eq!(error, AttachError::Patch(PatchError::Check(expected)));
    }
    bench.world.overwrite(bench.site(1), &ours);
    bench.detach(&[0, 1, 2], lanes).unwrap();
}

#[test]
fn a_slot_that_is_somebody_elses_is_refused() {
    let foreign = [0x8b, 0x05, 0, 0, 0];
    let another = [0xb8, 2, 0, 0, 0];
    for found in [foreign, another] {
        let mut bench = Bench::new(Protocol::ShortJump, &[Kind::PLAIN, Kind::of(IBT)]);
        let vacant = bench.world.overwrite(bench.slot(1), &found);
        let error = refused(&mut bench, |bench| bench.attach(&[0, 1], &[A]));
        let slot = bench.functions[1].layout.slot(bench.functions[1].entry).unwrap();
        assert_eq!(error, AttachError::SlotTaken { slot, found });
        bench.world.overwrite(bench.slot(1), &vacant);
        let lanes = bench.attach(&[0, 1], &[A]).unwrap();
        // One of ours that somebody has overwritten since.
        let ours = bench.world.overwrite(bench.slot(1), &found);
        let error = refused(&mut bench, |bench| bench.detach(&[0, 1], lanes));
        assert_eq!(error, AttachError::SlotTaken { slot, found });
        bench.world.overwrite(bench.slot(1), &ours);
        bench.detach(&[0, 1], lanes).unwrap();
    }
}

#[test]
fn a_function_twice_is_refused() {
    for kind in [Kind::PLAIN, Kind::of(PLAIN_UNPADDED)] {
        let mut bench = Bench::of(Protocol::ShortJump, kind, 3);
        let entry = bench.functions[1].entry;
        let site = kind.layout.site(entry);
        let duplicate = AttachError::Patch(PatchError::Check(CheckError::Duplicate { site }));
        let error = refused(&mut bench, |bench| bench.attach(&[1, 0, 1], &[A]));
        assert_eq!(error, duplicate);
        let lanes = bench.attach(&[0, 1], &[A]).unwrap();
        let error = refused(&mut bench, |bench| bench.detach(&[1, 1], lanes));
        assert_eq!(error, duplicate);
        bench.detach(&[0, 1], lanes).unwrap();
    }
    let mut bench = Bench::of(Protocol::ShortJump, Kind::PLAIN.nop(SiteNop::OneByte), 2);
    let site = bench.functions[0].layout.site(bench.functions[0].entry);
    let error = refused(&mut bench, |bench| bench.prepare(&[0, 0]));
    assert_eq!(error, AttachError::Patch(PatchError::Check(CheckError::Duplicate { site })));
}

#[test]
fn ids_of_another_engine_are_refused() {
    let other = Bench::of(Protocol::ShortJump, Kind::PLAIN, 5);
    let mut bench = Bench::of(Protocol::ShortJump, Kind::PLAIN, 4);
    let lanes = bench.attach(&[0], &[A]).unwrap();
    bench.ids.push(other.ids[4]);
    let unknown = AttachError::UnknownFunction { index: 4 };
    assert_eq!(refused(&mut bench, |bench| bench.attach(&[0, 4], &[A])), unknown);
    assert_eq!(refused(&mut bench, |bench| bench.detach(&[0, 4], lanes)), unknown);
    assert_eq!(refused(&mut bench, |bench| bench.set_enabled(&[0, 4], lanes, false)), unknown);
    assert_eq!(refused(&mut bench, |bench| bench.prepare(&[0, 4])), unknown);
    assert_eq!(bench.engine.entry(other.ids[4]), None);
}

#[test]
fn empty_lists_and_missing_cookies_are_refused() {
    let mut bench = Bench::of(Protocol::ShortJump, Kind::PLAIN, 3);
    let lanes = bench.attach(&[0], &[A]).unwrap();
    let no_functions = AttachError::NoFunctions;
    assert_eq!(refused(&mut bench, |bench| bench.attach(&[], &[A])), no_functions);
    assert_eq!(refused(&mut bench, |bench| bench.detach(&[], lanes)), no_functions);
    assert_eq!(refused(&mut bench, |bench| bench.set_enabled(&[], lanes, true)), no_functions);
    assert_eq!(refused(&mut bench, |bench| bench.attach(&[0], &[])), AttachError::NoPrograms);
    let few = program(0x1900_0000, Cookies::Each(&[1, 2]));
    for (functions, count) in [(&[0, 1, 2][..], 3), (&[0], 1)] {
        let wrong = AttachError::CookieCount { cookies: 2, functions: count };
        assert_eq!(refused(&mut bench, |bench| bench.attach(functions, &[few])), wrong);
    }
    assert_eq!(bench.runs(0), [run(0x1900_0000, 0)]);
    bench.prepare(&[]).unwrap();
}

#[test]
fn too_small_a_buffer_is_refused_with_the_size_it_needs() {
    for (kind, needed) in
        [(Kind::PLAIN, 10), (Kind::of(PLAIN_UNPADDED), 20), (Kind::PLAIN.nop(SiteNop::OneByte), 10)]
    {
        let mut bench = Bench::of(Protocol::ShortJump, kind, 10);
        assert_eq!(bench.engine.pokes_needed(&bench.ids), needed);
        for room in 0..needed {
            let operation = |bench: &mut Bench| -> Outcome<Option<Lanes>> {
                let mut pokes = vec![Poke::EMPTY; room];
                let Bench { engine, ids, .. } = bench;
                // SAFETY: nobody executes the text.
                unsafe {
                    match kind.nop {
                        SiteNop::OneByte => {
                            engine.prepare(ids, &mut pokes, |_| Ok(())).map(|()| None)
                        }
                        _ => engine.attach(ids, &[A], &mut pokes).map(Some),
                    }
                }
            };
            assert_eq!(refused(&mut bench, operation), AttachError::Scratch { needed });
        }
    }
}

#[test]
fn a_site_in_two_words_needs_the_breakpoint() {
    // The site is at 7 modulo 8.
    let kinds = [Kind::PLAIN, Kind::PLAIN.shift(7)];
    let mut bench = Bench::new(Protocol::ShortJump, &kinds);
    let site = bench.functions[1].layout.site(bench.functions[1].entry);
    assert_eq!(site.get() % 8, 7);
    let error = refused(&mut bench, |bench| bench.attach(&[0, 1], &[A]));
    let first = Conflict::Straddles { site };
    let expected = CheckError::Conflicts { count: 1, first };
    assert_eq!(error, AttachError::Patch(PatchError::Check(expected)));
    assert_eq!(conflicts(&bench.pokes), [first]);

    let mut bench = Bench::new(Protocol::Breakpoint, &kinds);
    let lanes = bench.attach(&[0, 1], &[A]).unwrap();
    assert_eq!(bench.runs(1), [run(0x1900_0000, 1)]);
    bench.detach(&[0, 1], lanes).unwrap();
    assert_eq!(bench.site_bytes(1), NOP);
}

#[test]
fn one_byte_nops_are_refused_until_they_are_prepared_and_settled() {
    let kinds = [Kind::PLAIN, Kind::PLAIN.nop(SiteNop::OneByte)];
    let mut bench = Bench::new(Protocol::Breakpoint, &kinds);
    let not_prepared = AttachError::NotPrepared { entry: bench.functions[1].entry };
    assert_eq!(refused(&mut bench, |bench| bench.attach(&[0, 1], &[A])), not_prepared);

    // A thread stands in a site: the new nops stay, and still nothing can be attached.
    let ids = bench.ids(&[0, 1]);
    let mut pokes = vec![Poke::EMPTY; 2];
    let inside = Fault::Unmapped { address: 42 };
    let site = bench.site(1);
    let settle = |pokes: &[Poke]| {
        assert_eq!(pokes.iter().map(|poke| poke.site.get()).collect::<Vec<_>>(), [site]);
        Err(inside)
    };
    // SAFETY: nobody executes the text.
    let error = unsafe { bench.engine.prepare(&ids, &mut pokes, settle) };
    assert_eq!(error, Err(AttachError::Text(inside)));
    assert_eq!(bench.site_bytes(1), [0x66, 0x66, 0x66, 0x66, 0x90]);
    assert_eq!(refused(&mut bench, |bench| bench.attach(&[0, 1], &[A])), not_prepared);

    bench.prepare(&[0, 1]).unwrap();
    let _lanes = bench.attach(&[0, 1], &[A]).unwrap();
    assert_eq!(bench.runs(1), [run(0x1900_0000, 1)]);
}

#[test]
fn a_site_that_holds_something_else_is_not_prepared() {
    let mut bench = Bench::of(Protocol::ShortJump, Kind::PLAIN.nop(SiteNop::OneByte), 3);
    bench.world.overwrite(bench.site(2), &[0x90, 0x90, 0xcc, 0x90, 0x90]);
    let error = refused(&mut bench, |bench| bench.prepare(&[0, 1, 2]));
    let site = bench.functions[2].layout.site(bench.functions[2].entry);
    let found = [0x90, 0x90, 0xcc, 0x90, 0x90];
    let first = Conflict::Changed { site, expected: [0x90; 5], found };
    let expected = CheckError::Conflicts { count: 1, first };
    assert_eq!(error, AttachError::Patch(PatchError::Check(expected)));
}
