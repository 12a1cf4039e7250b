"""The report page in a browser: its filter, and the scripts it refuses."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from report_pages import CALIBRATION, HOSTILE, Page, bar_counts, write

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")


def browse(page: Path, fragment: str = "") -> tuple[Page, list[str]]:
    """The page as the browser leaves it after its script ran, and the lines on its console."""
    assert CHROMIUM
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"]
    command += ["--no-first-run", "--disable-background-networking", "--disable-component-update"]
    command += ["--disable-sync", f"--user-data-dir={page.parent / 'profile'}"]
    command += ["--enable-logging=stderr", "--v=0", "--dump-dom", f"{page.as_uri()}{fragment}"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    console = [line for line in ran.stderr.splitlines() if "CONSOLE" in line]
    return Page(ran.stdout), console


@needs_browser
def test_in_a_browser_the_filter_keeps_the_range_and_the_console_is_silent(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    scores = np.concatenate([rng.uniform(0, 100, 400), [40.0, 60.0, 39.96, 60.04]])
    paths = [f"{row} {HOSTILE[row % len(HOSTILE)]}" for row in range(len(scores))]
    page = write(
        tmp_path / "report.html", scores, path_of=paths.__getitem__, calibration=CALIBRATION
    )
    shown = np.round(scores, 1)

    seen, console = browse(page)
    assert console == []
    assert len(seen.faces) == 404 and not any(face.hidden for face in seen.faces)
    assert " 404 faces " in seen.words

    seen, console = browse(page, "#min=40&max=60&order=asc")
    assert console == []
    kept = [float(face.text[0]) for face in seen.faces if not face.hidden]
    assert kept == sorted(shown[(shown >= 40) & (shown <= 60)].tolist())
    assert f"{len(kept)} of 404 faces" in seen.words
    dark = [values for _, values in seen.tags if values.get("class") == "bar off"]
    assert 0 < len(dark) < len(bar_counts(seen.words))

    seen, console = browse(page, "#min=39.961")  # finer than what is shown: taken exactly
    assert console == []
    assert sum(not face.hidden for face in seen.faces) == np.sum(np.round(scores, 3) >= 39.961)
    assert np.sum(scores >= 39.961) < np.sum(shown >= 40.0)

    seen, console = browse(page, "#min=200")
    assert console == [] and all(face.hidden for face in seen.faces)
    assert "0 of 404 faces" in seen.words


@needs_browser
def test_in_a_browser_a_sample_says_how_many_of_all_are_in_the_range(tmp_path: Path) -> None:
    scores = np.random.default_rng(2).normal(50, 15, 20_000)
    page = write(tmp_path / "report.html", scores, max_faces=200)
    seen, console = browse(page, "#min=62.5")
    kept = sum(not face.hidden for face in seen.faces)
    inside = int(np.sum(np.round(scores, 1) >= 62.5))
    assert console == [] and 0 < kept < 200
    assert f"{kept} of the 200 sampled faces; {inside:,} of all 20,000 scores" in seen.words


@needs_browser
def test_in_a_browser_a_script_that_is_not_the_pages_own_is_refused(tmp_path: Path) -> None:
    page = write(tmp_path / "report.html", [1, 2])
    text = page.read_text("utf-8")
    smuggled = "<script>document.title = 'taken'</script></main>"
    page.write_text(text.replace("</main>", smuggled), "utf-8")
    seen, console = browse(page)
    assert "taken" not in seen.words
    assert any("Content Security Policy" in line for line in console)  # so the console is heard


@needs_browser
def test_in_a_browser_faces_are_shown_by_acceptance_name_and_group(tmp_path: Path) -> None:
    scores = [50.0, 10.0, 95.0, 70.0, 20.0]
    page = write(
        tmp_path / "report.html",
        scores,
        path_of=["A/one.jpg", "a/two.jpg", "a/three.jpg", "A/four.jpg", "b/five.jpg"].__getitem__,
        group_names=["A", "a", "a", "A", "b"],
        threshold=30.0,
        calibration=CALIBRATION,
    )

    def shown(fragment: str) -> list[str]:
        seen, console = browse(page, fragment)
        assert console == []
        return [face.text[0].strip() for face in seen.faces if not face.hidden]

    assert shown("") == ["95.0", "70.0", "50.0"]  # the accepted ones, group by group
    assert shown("#show=rest&order=asc") == ["10.0", "20.0"]
    assert shown("#order=desc") == ["95.0", "70.0", "50.0", "20.0", "10.0"]
    assert shown("#name=a%2Ft") == ["95.0", "10.0"]
    assert shown("#show=accepted&name=FOUR") == ["70.0"]
    assert shown("#order=nonsense&show=nonsense&min=15") == ["95.0", "70.0", "50.0", "20.0"]

    seen, _ = browse(page, "#name=five")
    heads = [values for _, values in seen.tags if values.get("class", "").startswith("group")]
    assert ["hidden" in values for values in heads] == [True, True, False]
