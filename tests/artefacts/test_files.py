"""Names that are held, folders that are exchanged, and what killed processes leave."""

import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
from support.refusal import refuse

from safety_subspaces.artefacts import files
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.files import clear_leavings, clear_partials, holding, replacing_folder, write_text
from safety_subspaces.artefacts.results import ResultFolder

ROOT = Path(__file__).parents[2]
HOLDER = """
import sys
sys.path[:0] = [{src!r}]
from pathlib import Path
from safety_subspaces.artefacts.files import holding, replacing, replacing_folder
with {held} as partial:
    {work}
    print("in the middle", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_process(held: str, work: str = "pass"):
    """A process that stands in the middle of a block until it is killed."""
    script = HOLDER.format(src=str(ROOT / "src"), held=held, work=work)
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"in the middle\n"
        yield
        os.kill(process.pid, signal.SIGKILL)


def write(target: Path, text: str, overwrite: bool = True) -> None:
    with replacing_folder(target, overwrite) as folder:
        (folder / "text").write_text(text)


def held(path: Path) -> None:
    with holding(path):
        pass


def test_a_name_is_held_by_one_process_and_free_when_that_is_killed(tmp_path):
    target = tmp_path / "out"
    with another_process(f"holding(Path({str(target)!r}))"):
        refuse(lambda: held(target), "another process is writing .*out; wait for it")
        refuse(lambda: write(target, "mine"), "another process is writing")
        assert not target.exists()
        clear_leavings(target)  # passes by
    held(target)
    with holding(target), holding(target):  # nested in one process
        assert (tmp_path / ".out.lock").is_file()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_writers_folder_is_taken_away_by_the_next_and_a_living_ones_is_not(tmp_path, caplog):
    target = tmp_path / "out"
    write(target, "earlier")
    folder = f"replacing_folder(Path({str(target)!r}), overwrite=True)"
    with another_process(folder, "(partial / 'text').write_text('half')"):
        refuse(lambda: write(target, "mine"), "another process")
        clear_leavings(target)
        assert (tmp_path / ".out.partial" / "text").read_text() == "half"
    assert (target / "text").read_text() == "earlier"
    with caplog.at_level("INFO"):
        clear_leavings(target)
    assert "took away" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_leavings_of_like_names_stay(tmp_path):
    for name in (".out2.partial", ".o.partial", ".out[1].partial-7", ".out1.partial-7", ".other.unfinished"):
        (tmp_path / name).mkdir()
    clear_leavings(tmp_path / "out")
    clear_leavings(tmp_path / "out[1]")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".o.partial", ".other.unfinished", ".out1.partial-7", ".out2.partial"
    ]  # fmt: skip


def test_half_written_files_of_dead_processes_go_and_those_of_living_ones_stay(tmp_path):
    dead = tmp_path / ".rows.json.partial-7"
    dead.write_text("half")
    with another_process(f"replacing(Path({str(tmp_path / 'living.json')!r}))", "partial.write_text('half')"):
        clear_partials(tmp_path)
        (left,) = tmp_path.iterdir()
        assert left.name.startswith(".living.json.partial-")
    clear_partials(tmp_path)
    assert list(tmp_path.iterdir()) == []


def fill_while_it_is_removed(folder: Path) -> None:
    with replacing_folder(folder / "out") as partial:
        write_text(partial / "first", "1")
        shutil.rmtree(folder)
        write_text(partial / "last", "2")  # makes the folder that it stands in


def test_a_folder_that_was_removed_while_it_was_filled_gets_no_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="removed while it was being filled"):
        fill_while_it_is_removed(tmp_path / "work")
    assert not (tmp_path / "work" / "out").exists()


@pytest.mark.parametrize("in_one_step", [True, False])
def test_a_folder_is_replaced_whole(tmp_path, monkeypatch, in_one_step):
    if not in_one_step:
        monkeypatch.setattr(files, "_renamed_in_one_step", lambda *_: False)
    target = tmp_path / "out"
    for text in ("one", "two"):
        write(target, text)
    assert (target / "text").read_text() == "two"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("in_one_step", [True, False])
def test_killed_while_it_replaces_a_folder_the_earlier_one_has_its_name(tmp_path, monkeypatch, in_one_step):
    target = tmp_path / "out"
    write(target, "earlier")
    pid = os.fork()
    if pid == 0:
        if not in_one_step:  # a system without exchange: there the kill comes between two renames
            monkeypatch.setattr(files, "_renamed_in_one_step", lambda *_: False)
        rename = Path.rename

        def rename_and_die(self, to):
            rename(self, to)
            os.kill(os.getpid(), signal.SIGKILL)

        monkeypatch.setattr(Path, "rename", rename_and_die)
        if in_one_step:
            monkeypatch.setattr(files, "remove", lambda _: os.kill(os.getpid(), signal.SIGKILL))
        write(target, "later")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    clear_leavings(target)
    assert (target / "text").read_text() == ("later" if in_one_step else "earlier")
    assert list(tmp_path.iterdir()) == [target]


def test_a_result_under_a_link_is_replaced_and_what_the_link_named_stays(tmp_path):
    elsewhere, target = tmp_path / "elsewhere", tmp_path / "out"
    write(elsewhere, "earlier")
    target.symlink_to(elsewhere)
    write(target, "later")
    assert (target / "text").read_text() == "later"
    assert (elsewhere / "text").read_text() == "earlier"
    assert sorted(tmp_path.iterdir()) == [elsewhere, target]


def test_where_nothing_can_be_written_is_said_before_anything_is(tmp_path):
    (tmp_path / "file").write_text("")
    refuse(lambda: held(tmp_path / "file" / "out"), "a part of its path is a file")
    refuse(lambda: held(Path("/proc/nothing/out")), "/proc/nothing/out cannot be made")


def test_an_input_that_changes_under_way_is_no_result(tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("one")

    def change(error) -> None:
        with ResultFolder(tmp_path / "out", "evaluate", {}, [str(prompts)]):
            status = prompts.stat()
            prompts.write_text("two")
            os.utime(prompts, ns=(status.st_atime_ns, status.st_mtime_ns))
            if error:
                raise error

    refuse(lambda: change(None), r"prompts.jsonl was changed while it was read.*run the command again")
    with pytest.raises(InputError, match="of its own"):
        change(InputError("of its own"))
    assert list(tmp_path.iterdir()) == [prompts]


def test_a_record_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safety_subspaces.artefacts.results.write_json", full)
    with pytest.raises(OSError, match="No space"), ResultFolder(tmp_path / "out", "evaluate", {}, []), nullcontext():
        pass
    assert list(tmp_path.iterdir()) == []
