import hybridiff_compile
from hybridiff_compile.bench import models
from hybridiff_compile.debug import Dump, difference
from hybridiff_compile.ir import Phase
from hybridiff_compile.passes import LinkRanks, build_programs, run_passes
from tests import pipelines, toy


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
        "drained-3-drain-pipeline",
        "drained-4-link-ranks",
        "drained-5-guard-phase",
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


def test_each_captured_call_is_dumped_in_a_folder_of_its_own(tmp_path):
    with hybridiff_compile.optimize(pipelines.load("small-sd3"), dump=tmp_path) as model:
        for count in (1, 2):
            model.compile(num_images_per_prompt=count, **models.call_settings("tiny-sd3"))
        serial = [by_phase[Phase.SERIAL] for by_phase in model.programs()]
    folders = sorted(p.name for p in tmp_path.iterdir())
    assert folders == ["call1-2x4x16x16", "call2-4x4x16x16"]
    for folder, program in zip(folders, serial, strict=True):
        text = (tmp_path / folder / "serial-5-guard-phase.after.txt").read_text()
        assert text.endswith(f"{program}\n")
