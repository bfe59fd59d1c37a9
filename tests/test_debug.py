from hybridiff_compile.debug import Dump, difference
from hybridiff_compile.ir import Phase
from hybridiff_compile.passes import LinkRanks, build_programs, run_passes
from tests import toy


def test_difference_counts_what_came_and_went():
    text = difference(toy.split(), run_passes(toy.split(), (LinkRanks(),)))
    assert text == (
        "14 -> 17 nodes (-1 placeholder, +1 recv.default, +1 send.default, +2 wait_tensor.default)"
    )


def test_no_difference_says_so():
    assert difference(toy.split(), toy.split()) == "14 -> 14 nodes (same nodes)"


def test_dump_writes_every_program_before_and_after_each_pass(tmp_path):
    folder = tmp_path / "made" / "here"
    programs = build_programs(toy.captured().program, "paper", (Dump(folder),))
    stems = [
        "pipelined-3-skew-stages",
        "pipelined-4-link-ranks",
        "pipelined-5-guard-phase",
        "serial-1-split-cfg",
        "serial-2-cut-stages",
        "serial-4-link-ranks",
        "serial-5-guard-phase",
    ]
    expected = sorted(f"{s}.{when}.txt" for s in stems for when in ("before", "after"))
    assert sorted(p.name for p in folder.iterdir()) == expected
    head, after = (folder / "serial-5-guard-phase.after.txt").read_text().split("\n", 1)
    assert head.startswith("# guard-phase: 20 -> 32 nodes (+2 guard.default")
    assert after == f"{programs[Phase.SERIAL]}\n"
    before = (folder / "serial-1-split-cfg.before.txt").read_text()
    assert before == f"{toy.captured().program}\n"
