"""Errors and notes that tell a user what to do: each is caused, and what it says is typed."""

from __future__ import annotations

import pickle
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import tyro

import eval_edc
from dataset.containers.pack import write_records
from generate_pseudo_labels import gen_datalist, gen_pseudo_labels
from sdd_fiqa.errors import UserError

LIST = "generate_pseudo_labels/gen_datalist.py"
LABEL = "generate_pseudo_labels/gen_pseudo_labels.py"
PEOPLE, EACH = 8, 5

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Embeddings of images that are not there, their list, scores, and a pair list."""
    folder = tmp_path_factory.mktemp("project")
    rng = np.random.default_rng(0)
    people = np.repeat(np.arange(PEOPLE), EACH)
    paths = [f"faces/p{who}/{number}.jpg" for number, who in enumerate(people)]
    noise = rng.uniform(0.3, 1.5, (len(people), 1))
    features = rng.normal(size=(PEOPLE, 8))[people] + noise * rng.normal(size=(len(people), 8))
    (folder / "annotations/feats_npy").mkdir(parents=True)
    np.save(folder / "annotations/feats_npy/Embedding_Features.npy", features)
    lines = [f"{path}\t{who}\n" for path, who in zip(paths, people, strict=True)]
    (folder / "annotations/DATA.labelpath").write_text("".join(lines))
    scores = [f"{path};{-one:.4f}\n" for path, one in zip(paths, noise[:, 0], strict=True)]
    (folder / "theirs.csv").write_text("image;quality\n" + "".join(scores))
    (folder / "scores.csv").write_text("path;score\n" + "".join(scores))
    templates = [
        f"{path}\tt{who}_{number % EACH // 2}\t{who}\n"
        for number, (path, who) in enumerate(zip(paths, people, strict=True))
    ]
    (folder / "templates.txt").write_text("".join(templates))
    pairs = [f"{one}\t{other}\t0\n" for one, other in zip(paths, paths[EACH:], strict=False)]
    (folder / "pairs.txt").write_text("".join([f"{paths[0]}\t{paths[1]}\t1\n", *pairs]))
    return folder


@pytest.fixture
def edc(project: Path, run_script: Run) -> Run:
    def run(*flags: object, scores: str = "scores.csv") -> subprocess.CompletedProcess[str]:
        feats = "annotations/feats_npy/Embedding_Features.npy"
        files = ("--feats", feats, "--image-list", "annotations/DATA.labelpath")
        out = ("--scores", scores, "--out-dir", "edc")
        return run_script("eval_edc.py", *files, *out, *flags, cwd=project)

    return run


@pytest.fixture
def typed_at(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a `main` in this process: faster than a script, but Python's warnings are not seen."""

    def run(
        main: Callable[..., int], cwd: Path, *flags: object
    ) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(cwd)
        args = [*map(str, flags)]
        try:
            code = tyro.cli(main, args=args)
        except UserError as error:
            return subprocess.CompletedProcess(args, 1, "", f"error: {error}\n")
        return subprocess.CompletedProcess(args, code, *capsys.readouterr())

    return run


@pytest.fixture
def typed(project: Path, typed_at: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """As `edc`, in this process, and without the figure."""
    monkeypatch.setattr(eval_edc, "plot_curves", lambda *_: None)

    def run(*flags: object, scores: str = "scores.csv") -> subprocess.CompletedProcess[str]:
        files = ("--feats", "annotations/feats_npy", "--image-list", "annotations/DATA.labelpath")
        out = ("--scores", scores, "--out-dir", "edc")
        return typed_at(eval_edc.main, project, *files, *out, *flags)

    return run


def refused(done: subprocess.CompletedProcess[str], pattern: str) -> tuple[str, ...]:
    """What the groups of a pattern find in the line of an error, the last one."""
    line = done.stderr.splitlines()[-1]
    found = re.search(pattern, line + "\n")
    assert done.returncode == 1 and line.startswith("error: ") and found, done.stderr
    return found.groups()


def test_a_false_match_rate_that_is_out_of_reach(typed: Run) -> None:
    flags = ("--templates", "templates.txt")
    done = typed("--fmr", "1e-5", *flags)
    (fmr,) = refused(done, r"--fmr 1e-05: too few impostor pairs .700.; use (\S+)\n")
    done = typed("--fmr", fmr, *flags)
    (fmr,) = refused(done, r"too few impostor pairs of templates .\d+.; use (\S+)\n")
    assert typed("--fmr", fmr, *flags).returncode == 0


@pytest.mark.parametrize(
    ("wrong", "advice", "right"),
    [
        ("--fmr 0.3 --bootstrap 5", r"at least (\d+)\n", "--fmr 0.3 --bootstrap {}"),
        ("--fmr 0.3 --advise-at 0.2", "must be one of (--fmr)\n", "{} 0.3 0.2 --advise-at 0.2"),
        (
            "--fmr 0.3 --protocol iso --limit 0.2",
            r"add (\S+) to --limit\n",
            "--fmr 0.3 --protocol iso --limit 0.2 {}",
        ),
        (
            "--fmr 0.3 --protocol iso --discard pairs",
            "--discard: leave (them) out\n",
            "--fmr 0.3 --protocol iso",
        ),
        (
            "--fmr 0.3 --pairs pairs.txt --max-images-per-id 3",
            "compare: leave out (--max-images-per-id), --min",
            "--fmr 0.3 --pairs pairs.txt",
        ),
        ("--fmr 0.3 --pairs annotations/DATA.labelpath", r"leave (--pairs) out\n", "--fmr 0.3"),
        ("--fmr 0.3 --seed -1", r"must be (\d+) or more", "--fmr 0.3 --seed {}"),
        ("--fmr 2", r"must be between 0 and (1)\n", "--fmr 0.{}"),
        ("--fmr 0.3 --limit 2", r"at most (\S+)\n", "--fmr 0.3 --limit {}"),
        ("--fmr 0.3 --min-images-per-id 6", "no identity has (6) usable images", "--fmr 0.3"),
    ],
)
def test_settings_that_do_not_go_together(typed: Run, wrong: str, advice: str, right: str) -> None:
    (word,) = refused(typed(*wrong.split()), advice)
    done = typed(*right.format(word).split())
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("written", "advice", "line"),
    [
        ("{path};0,85", r"typed\.csv:2: score 0,85 is not a finite number; write (\S+)\n", 1),
        ("{path};85 %", r"typed\.csv:2: score 85 % is not a finite number; write (\S+)\n", 1),
        ("{path};NA", r"typed\.csv:2: score NA .*; leave it (empty) where there is none\n", 1),
    ],
)
def test_scores_that_are_no_numbers(
    project: Path, typed: Run, written: str, advice: str, line: int
) -> None:
    lines = (project / "scores.csv").read_text().splitlines()
    path = lines[line].partition(";")[0]
    lines[line] = written.format(path=path)
    (project / "typed.csv").write_text("\n".join(lines) + "\n")
    (word,) = refused(typed("--fmr", "0.1", scores="typed.csv"), advice)
    lines[line] = f"{path};{'' if word == 'empty' else word}"
    (project / "typed.csv").write_text("\n".join(lines) + "\n")
    done = typed("--fmr", "0.1", scores="typed.csv")
    assert done.returncode == (3 if word == "empty" else 0), done.stderr


def test_a_name_to_leave_out_that_is_not_listed(project: Path, typed: Run) -> None:
    (project / "names.txt").write_text("faces/p0/0.jpg\nnobody.jpg\n")
    flags = ("--fmr", "0.1", "--exclude", "names.txt")
    (line,) = refused(typed(*flags), r"names\.txt:(\d+): nobody\.jpg .*; take the line out\n")
    lines = (project / "names.txt").read_text().splitlines(keepends=True)
    del lines[int(line) - 1]
    (project / "names.txt").write_text("".join(lines))
    assert typed(*flags).returncode == 0


def test_a_column_that_is_not_named(project: Path, typed: Run) -> None:
    lines = (project / "scores.csv").read_text().splitlines()[1:]
    (project / "bare.csv").write_text("".join(line.replace(";", ";0;") + "\n" for line in lines))
    zero, column = refused(
        typed("--fmr", "0.3", scores="bare.csv"),
        r"or add --score-column (\d) \(here 0\) or (\d) \(here -\S+\)\n",
    )
    done = typed("--fmr", "0.3", "--score-column", column, scores="bare.csv")
    assert "without a header: path in column 1, score in column 3" in done.stdout
    assert "bare gives every image" not in done.stdout
    done = typed("--fmr", "0.3", "--score-column", zero, scores="bare.csv")
    assert "bare gives every image the same score" in done.stdout


def test_scores_whose_direction_is_another(project: Path, typed: Run) -> None:
    (project / "worse.csv").write_text((project / "scores.csv").read_text().replace(";-", ";"))
    advice = "- discarding by worse raises the error: try with --lower-is-better"
    assert advice in typed("--fmr", "0.1", scores="worse.csv").stdout
    right = typed("--fmr", "0.1", "--lower-is-better", scores="worse.csv")
    assert "raises the error" not in right.stdout and "lower is better" in right.stdout


def test_an_identity_that_makes_most_pairs(project: Path, typed: Run) -> None:
    lines = (project / "annotations/DATA.labelpath").read_text().splitlines()
    others = [
        line.partition("\t")[0] for row, line in enumerate(lines) if row >= EACH and row % EACH
    ]
    (project / "few.txt").write_text("\n".join(others) + "\n")
    flags = ("--fmr", "0.3", "--min-images-per-id", "1", "--exclude", "few.txt")
    found = re.search(r"one identity makes 100% .*: see (--\S+)\n", typed(*flags).stdout)
    assert found
    (project / "few.txt").write_text("\n".join(others[::2]) + "\n")
    flags = ("--fmr", "0.3", "--exclude", "few.txt", found[1], "2")
    assert "one identity makes" not in typed(*flags).stdout


def test_columns_of_other_names(typed: Run) -> None:
    done = typed("--fmr", "0.1", scores="theirs.csv")
    *flags, columns = refused(
        done, r"the columns path and score; it has: (.*) \((\S+) and (\S+) name others; "
    )[::-1]
    image, quality = columns.split(", ")
    done = typed("--fmr", "0.1", flags[1], image, flags[0], quality, scores="theirs.csv")
    assert done.returncode == 0, done.stderr
    assert "`;`-separated with the columns image and quality" in done.stdout


@pytest.mark.parametrize(
    ("flag", "line", "form"),
    [
        ("--templates", "faces/p0/0.jpg", "path template person"),
        ("--group", "faces/p0/0.jpg", "path group"),
        ("--pairs", "faces/p0/0.jpg faces/p0/1.jpg yes", "image image 0|1"),
    ],
)
def test_lists_of_another_form(project: Path, typed: Run, flag: str, line: str, form: str) -> None:
    (project / "list.txt").write_text(f"{line}\n" * 2)
    assert (
        form
        in refused(typed(flag, "list.txt", "--fmr", "0.1"), r"list\.txt:[12]: expected (.*)")[0]
    )
    values = {"image": "", "template": "t{0}", "person": "{1}", "group": "g{1}", "0|1": "{2}"}
    lines = []
    for row in range(0, PEOPLE * EACH, 2):
        names = iter(f"faces/p{(row + i) // EACH}/{row + i}.jpg" for i in range(2))
        same = int(row // EACH == (row + 1) // EACH)
        words = [values.get(word, "") or next(names) for word in form.split()]
        lines.append("\t".join(words).format(row, row // EACH, same))
    (project / "list.txt").write_text("\n".join(lines) + "\n")
    done = typed(flag, "list.txt", "--fmr", "0.5")
    assert done.returncode in (0, 3), done.stderr


def test_a_number_with_an_underscore(project: Path, run_script: Run, edc: Run) -> None:
    lists = project / "annotations/DATA.labelpath"
    whole = lists.read_text()
    lists.write_text(whole.replace("7.jpg\t1\n", "7.jpg\t0_1\n"))
    form = r"DATA\.labelpath:8: expected `<path> TAB <identity index>`, a number after the TAB"
    refused(run_script(LABEL, cwd=project), form)
    lists.write_text(whole)
    assert run_script(LABEL, cwd=project).returncode == 0
    assert "'0_1' is not a number" in run_script(LABEL, "--seed", "0_1", cwd=project).stderr


def test_identities_by_another_part_of_the_path(
    project: Path, run_script: Run, typed_at: Run
) -> None:
    features = np.load(project / "annotations/feats_npy/Embedding_Features.npy")
    paths = [line.split("\t")[0] for line in (project / "theirs.csv").read_text().split("\n")[1:-1]]
    names = [path.partition(";")[0] for path in paths]
    for name, row in zip(names, features, strict=True):
        file = project / "mine" / Path(name).with_suffix(".npy")
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, row)
    (project / "names.txt").write_text("\n".join(names) + "\n")
    flags = ("--feature-root", "mine", "--image-list-file", "names.txt", "--score-dst", "scores")
    (fix,) = refused(run_script(LABEL, *flags, cwd=project), r"identity; try (--id-key-index -2)\b")
    done = run_script(LABEL, *flags, *fix.split(), cwd=project)
    assert done.returncode == 0, done.stderr
    assert "40 of 40 images of 8 identities" in done.stdout
    takes = r"has no part -9 .*; try --id-key-index -2 \(of \S+ and \S+, -2 takes p0 and p7, "
    refused(typed_at(gen_pseudo_labels.main, project, *flags, "--id-key-index", -9), takes)
    missing = refused(
        typed_at(gen_pseudo_labels.main, project, "--feature-root", "mine"),
        r"needs (\S+) and (\S+) too\n",
    )
    more = (*flags[:2], missing[0], "names.txt", missing[1], "scores", *fix.split())
    assert typed_at(gen_pseudo_labels.main, project, *more).returncode == 0
    (project / "there.txt").write_text("".join(f"/data/{name}\n" for name in names))
    more = (*flags[:3], "there.txt", *flags[4:], *fix.split())
    (flag,) = refused(
        typed_at(gen_pseudo_labels.main, project, *more), "not below (--image-root) .*; give the"
    )
    done = typed_at(gen_pseudo_labels.main, project, *more, flag, "/data/")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("wrong", "advice", "right"),
    [
        ("--level-share 0.5", "part of (--level-identities); give both", "--level-share 0.5 {}"),
        ("--min-images-per-id 6", "least (--min-images-per-id); .* lower that number", "{} 5"),
        ("--fix-num 36", "leaves 35 images .*, or use (--fix-num 35) in", "{}"),
        ("--process-num -1", r"must be (0) or", "--process-num {}"),
        ("--score-dst x", "goes with (--feature-root)", ""),
        ("--load-feature True --feature-root x", "needs (--image-list-file) and", ""),
    ],
)
def test_settings_of_labels(
    project: Path, typed_at: Run, wrong: str, advice: str, right: str
) -> None:
    flags = ("--device", "cpu")
    done = typed_at(gen_pseudo_labels.main, project, *flags, *wrong.split())
    (word,) = refused(done, advice)
    done = typed_at(gen_pseudo_labels.main, project, *flags, *right.format(word).split())
    assert done.returncode == 0, done.stderr


def test_embeddings_of_another_order(project: Path, typed: Run, typed_at: Run) -> None:
    features = np.load(project / "annotations/feats_npy/Embedding_Features.npy")
    (project / "mixed/feats_npy").mkdir(parents=True)
    order = np.arange(len(features)).reshape(PEOPLE, EACH).T.ravel()
    np.save(project / "mixed/feats_npy/Embedding_Features.npy", features[order])
    shutil.copy(project / "annotations/DATA.labelpath", project / "mixed")
    doubt = "do the rows of the embeddings belong to "
    done = typed_at(gen_pseudo_labels.main, project, "--out-dir", "mixed", "--device", "cpu")
    assert "note: most images are hardly more similar to their identity than to o" in done.stderr
    assert doubt in done.stderr
    assert doubt in typed("--fmr", "0.3", "--feats", "mixed").stdout
    done = typed_at(gen_pseudo_labels.main, project, "--device", "cpu")
    assert doubt not in done.stderr and doubt not in typed("--fmr", "0.3").stdout


def test_constant_embeddings(project: Path, run_script: Run, typed: Run) -> None:
    out = project / "flat"
    (out / "feats_npy").mkdir(parents=True)
    shutil.copy(project / "annotations/DATA.labelpath", out)
    np.save(out / "feats_npy/Embedding_Features.npy", np.full((PEOPLE * EACH, 1), 2.0))
    done = run_script(LABEL, "--out-dir", "flat", cwd=project)
    refused(done, "all distances are equal up to rounding, so they cannot be put on a scale")
    np.save(out / "feats.npy", 1 + np.random.default_rng(0).normal(0, 1e-7, (PEOPLE * EACH, 8)))
    done = typed("--fmr", "0.1", "--feats", "flat/feats.npy")
    refused(done, "feats.npy: its embeddings are equal up to rounding, .* another recogniser")


def test_embeddings_that_are_too_large(project: Path, run_script: Run, edc: Run) -> None:
    file = project / "annotations/feats_npy/Embedding_Features.npy"
    features = np.load(file)
    try:
        np.save(file, features * 1e300)
        advice = (
            r"row 0 \(faces/p0/0\.jpg\) is too large for float32; divide each row by its length\n"
        )
        done = run_script(LABEL, cwd=project)
        refused(done, advice)
        assert "Warning" not in done.stderr
        done = edc("--fmr", "0.1")
        refused(
            done, r"40 images without an embedding by annotations \(zero, not finite or too large"
        )
        assert "Warning" not in done.stderr
        np.save(file, features / np.linalg.norm(features, axis=1, keepdims=True))
        assert run_script(LABEL, cwd=project).returncode == 0
        assert edc("--fmr", "0.1").returncode == 0
    finally:
        np.save(file, features)


def test_a_path_with_two_scores(project: Path, typed: Run) -> None:
    once = (project / "scores.csv").read_text()
    (project / "twice.csv").write_text(once + "faces/p0/0.jpg;7\n")
    path, scores = refused(
        typed("--fmr", "0.1", scores="twice.csv"),
        r"twice\.csv: (\S+) is listed twice, with the scores (.*); keep one\n",
    )
    assert path == "faces/p0/0.jpg" and scores.endswith(" and 7")
    lines = once.splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith(path + ";")] + [f"{path};7\n"]
    (project / "twice.csv").write_text("".join(kept))
    assert typed("--fmr", "0.1", scores="twice.csv").returncode == 0
    (project / "twice.csv").write_text(once + lines[1])  # the same row again is taken once
    assert typed("--fmr", "0.1", scores="twice.csv").returncode == 0


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Faces of two people, 12 and 10, in a .rec whose records all have the id 0; and in a tar."""
    folder = tmp_path_factory.mktemp("album")
    rng = np.random.default_rng(0)
    with write_records(folder / "album.rec") as records, tarfile.open(folder / "a.tar", "w") as tar:
        for number in range(22):
            pixels = cv2.resize(rng.integers(0, 255, (7, 7, 3), np.uint8), (112, 112))
            person, image = float(number >= 12), folder / f"p{number >= 12}/{number}.png"
            image.parent.mkdir(exist_ok=True)
            cv2.imwrite(str(image), pixels)
            records.add((person,), image.read_bytes(), 0)
            tar.add(image, f"{person}/{number}.png")
        records.keys[:] = type(records.keys)("q", range(22))
    return folder


def test_too_few_people_in_a_container_are_told_before_embeddings(
    album: Path, run_script: Run
) -> None:
    done = run_script(LIST, "--data-root", "album.rec", cwd=album)
    assert done.returncode == 0, done.stderr
    advice = r"note: the largest identity leaves 10 images of others, .* use (--fix-num 10) in "
    found = re.search(advice, done.stderr)
    assert found, done.stderr
    (album / "annotations/feats_npy").mkdir()
    features = np.random.default_rng(0).normal(size=(22, 8))
    np.save(album / "annotations/feats_npy/Embedding_Features.npy", features)
    refused(run_script(LABEL, cwd=album), "leaves 10 images of others.* use --fix-num 10 in")
    assert run_script(LABEL, *found[1].split(), cwd=album).returncode == 0


def test_an_index_that_is_lost_or_of_another_file(album: Path, run_script: Run) -> None:
    model = ("--model", "small", "--device", "cpu")
    (album / "old.txt").write_text("".join(f"album.rec#{key}\n" for key in range(22)))
    (album / "album.idx").unlink()
    done = run_script("eval.py", "old.txt", *model, cwd=album)
    assert done.returncode == 3, done.stderr
    why = "the index has no record 0; it is a rebuilt one: get the lost one, or make the list again"
    assert f"album.rec#0,,{why}" in (album / "scores.csv").read_text().replace('"', "")
    assert run_script(LIST, "--data-root", "album.rec", cwd=album).returncode == 0
    done = run_script("eval.py", "annotations/DATA.labelpath", *model, cwd=album)
    assert done.returncode == 0, done.stderr
    (album / "album.idx").write_text("".join(f"{key}\t{key + 8}\n" for key in range(22)))
    done = run_script(LIST, "--data-root", "album.rec", cwd=album)
    refused(done, r"album.idx: belongs to another file .* or delete it to have it rebuilt\n")
    (album / "album.idx").unlink()
    assert run_script(LIST, "--data-root", "album.rec", cwd=album).returncode == 0
    lines = (album / "album.idx").read_text().splitlines(keepends=True)
    (album / "album.idx").write_text("".join(lines[:-5]))
    done = run_script(LIST, "--data-root", "album.rec", cwd=album)
    assert "album.idx: seems to be older than album.rec" in done.stderr
    assert "or delete it to have it rebuilt\n" in done.stderr and "17 im" in done.stdout
    (album / "album.idx").unlink()
    assert "22 images" in run_script(LIST, "--data-root", "album.rec", cwd=album).stdout


def test_folders_of_people(album: Path, typed_at: Run) -> None:
    for person in range(2):
        for image in (album / f"p{bool(person)}").iterdir():
            nested = album / "nested" / f"p{person}" / "photos" / image.name
            nested.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(image, nested)
    flags = ("--data-root", "nested", "--out-dir", "nested_list")
    done = typed_at(gen_datalist.main, album, *flags)
    found = re.search(
        r"note: all 22 images have one identity; try (--id-key-index -3) ", done.stderr
    )
    assert found, done.stderr
    fix = found[1].split()
    assert "22 images of 2 identities" in typed_at(gen_datalist.main, album, *flags, *fix).stdout
    (most,) = refused(
        typed_at(gen_datalist.main, album, *flags, *fix, "--min-images-per-id", 13),
        r"\(the largest has (\d+)\); lower --min-images-per-id\n",
    )
    done = typed_at(gen_datalist.main, album, *flags, *fix, "--min-images-per-id", most)
    assert "12 images of 1 identity" in done.stdout, done.stderr
    (index,) = refused(
        typed_at(gen_datalist.main, album, *flags, "--id-key-index", -1),
        "; (-2) is the folder it lies in",
    )
    assert typed_at(gen_datalist.main, album, *flags, "--id-key-index", index).returncode == 0
    (fix,) = refused(
        typed_at(gen_datalist.main, album, *flags, "--id-key-index", -5),
        r"has a part -5 .*; try (--id-key-index -3) \(of \S+ and \S+, -2 takes photos and photos",
    )
    assert typed_at(gen_datalist.main, album, *flags, *fix.split()).returncode == 0
    flags = ("--data-root", "pTrue", "--out-dir", "flat_list")
    refused(
        typed_at(gen_datalist.main, album, *flags),
        "put each person's images into a folder of their own",
    )
    (album / "own").mkdir()
    shutil.copytree(album / "pTrue", album / "own/ann")
    done = typed_at(gen_datalist.main, album, "--data-root", "own", *flags[2:])
    assert "10 images of 1 identity" in done.stdout
    (suffix,) = refused(
        typed_at(gen_datalist.main, album, "--data-root", "own", *flags[2:], "--to-rec", "a.bin"),
        r"must end in (\S+)\n",
    )
    done = typed_at(
        gen_datalist.main, album, "--data-root", "own", *flags[2:], "--to-rec", f"own{suffix}"
    )
    assert "own.rec: 10 images" in done.stdout
    refused(
        typed_at(gen_datalist.main, album, "--data-root", "own.rec", *flags[2:], *fix.split()),
        "(--id-key-index) -3: is for folders; own.rec names identities itself",
    )
    assert typed_at(gen_datalist.main, album, "--data-root", "own.rec", *flags[2:]).returncode == 0
    with tarfile.open(album / "people.tar", "w") as tar:
        tar.add(album / "pTrue", "pTrue")
    done = typed_at(gen_datalist.main, album, "--data-root", "people.tar")
    refused(done, "unpack a tar of folders of people")


def test_a_set_of_pairs_that_holds_pixels(album: Path, typed_at: Run) -> None:
    pixels = [np.full((112, 112, 3), 60 * number, np.uint8) for number in range(4)]
    (album / "set.bin").write_bytes(pickle.dumps(([face.tobytes() for face in pixels], [1, 0])))
    flags = ("--data-root", "set.bin", "--out-dir", "pairs")
    done = typed_at(gen_datalist.main, album, *flags)
    refused(
        done, r"set\.bin: .*no entry is an image file's bytes, which cv2\.imencode makes of pix"
    )
    files = [cv2.imencode(".png", face)[1].tobytes() for face in pixels]
    (album / "set.bin").write_bytes(pickle.dumps((files, [1, 0])))
    assert "pairs.txt: 2 pairs" in typed_at(gen_datalist.main, album, *flags).stdout


def test_a_compressed_tar(album: Path, run_script: Run) -> None:
    subprocess.run(["gzip", "a.tar"], cwd=album, check=True)
    refused(run_script(LIST, "--data-root", "a.tar.gz", cwd=album), "at random; unpack it first\n")
    subprocess.run(["gzip", "-d", "a.tar.gz"], cwd=album, check=True)
    done = run_script("eval.py", "a.tar", "--model", "small", "--device", "cpu", cwd=album)
    assert done.returncode == 0, done.stderr
