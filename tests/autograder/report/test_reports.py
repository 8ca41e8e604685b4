"""What students and staff read: the right words, the right numbers, and nothing of a student's that acts."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from autograder.judge.verdicts import GroupResult, SubmissionResult, TestResult, TimingResult, Verdict
from autograder.report.class_report import class_page, csv_rows, write_class_report
from autograder.report.html import Feedback, Gradebook, feedback_page
from autograder.report.spreadsheet import safe_field
from autograder.report.table import Line, summary_table
from autograder.report.text import WORDS, points_text, report_text

ATTACK = '"><script>alert(1)</script><img src=x onerror="alert(2)"><svg/onload=alert(3)>'
ESCAPES = "\x1b[2J\x1b]0;title\x07\u202egnp\r"


def result(
    tables: str = "PPWR", growth: str = "PP", *, flags: tuple[str, ...] = (), status: str = "graded", text: str = ""
) -> SubmissionResult:
    """Two groups whose tests end as the letters say: Pass, Wrong, Raised."""
    ends = {"P": Verdict.PASS, "W": Verdict.WRONG, "R": Verdict.RAISED}

    def group(name: str, points: float, letters: str) -> GroupResult:
        tests = tuple(TestResult(f"test_{name}_{i}_holds", ends[c], f"said {text}") for i, c in enumerate(letters))
        return GroupResult(name, f"All about {name}", points, tests, f"an example {text}" if "W" in letters else "")

    groups = (group("tables", 10, tables), group("growth", 5, growth)) if status == "graded" else ()
    return SubmissionResult("lab", "x.ipynb", "0", "1", "s", "cpu", 1.0, status, groups, flags)


class Tags(HTMLParser):
    """The tags and attributes of a page, as a browser would see them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))


def assert_inert(page: str) -> None:
    for tag, attributes in Tags(page).seen:
        assert tag not in ("script", "img", "iframe", "link", "object", "embed", "a", "form")
        assert not [name for name in attributes if name.startswith("on")]
        assert not {"href", "src", "srcset", "style"} & set(attributes)


class TestText:
    def test_the_whole_report_reads_like_this(self) -> None:
        assert report_text(result(flags=("cell 4 failed",))) == (
            "Score from the autograder: 10 of 15 points.\n"
            "Remark: cell 4 failed\n"
            "\n"
            "All about tables: 5 of 10 points\n"
            "  [x] passed: tables 0 holds\n"
            "  [x] passed: tables 1 holds\n"
            "  [ ] wrong result: tables 2 holds. said \n"
            "  [ ] raised an error: tables 3 holds. said \n"
            "An example that you can try yourself:\n"
            "    an example \n"
            "\n"
            "All about growth: 5 of 5 points\n"
            "  [x] passed: growth 0 holds\n"
            "  [x] passed: growth 1 holds\n"
        )

    def test_a_rejected_submission_says_that_every_group_has_none(self) -> None:
        text = report_text(result(status="rejected", flags=("x.ipynb is not valid JSON",)))
        assert text == (
            "This submission could not be graded, so every graded group has 0 points.\n"
            "Remark: x.ipynb is not valid JSON\n\n"
        )

    def test_every_verdict_has_words(self) -> None:
        assert set(WORDS) == set(Verdict)
        assert len(set(WORDS.values())) == len(WORDS)

    def test_a_terminal_is_given_nothing_to_act_on(self) -> None:
        text = report_text(result(flags=(ESCAPES,), text=ESCAPES))
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e]", text)

    @pytest.mark.parametrize(
        ("points", "text"), [(10.0, "10"), (11.67, "11.67"), (0.0, "0"), (0.5, "0.5"), (100.0, "100")]
    )
    def test_points_have_no_needless_zeros(self, points: float, text: str) -> None:
        assert points_text(points) == text


class TestFeedbackPage:
    def test_it_names_score_groups_tests_and_counterexample(self) -> None:
        page = feedback_page(Feedback("ada", "lab", result(text="b < a")))
        assert "<strong>10 of 15 points</strong>" in page
        assert "<h2>All about tables</h2>\n<p>5 of 10 points</p>" in page
        assert '<strong class="bad">wrong result</strong>: tables 2 holds. said b &lt; a' in page
        assert "<pre>an example b &lt; a</pre>" in page

    def test_nothing_in_it_runs_or_loads(self) -> None:
        cells = [("markdown", ATTACK), ("code", f"'''{ATTACK}'''")]
        book = Gradebook({"tables": (1.0, 10.0)}, comments=[ATTACK])
        page = feedback_page(Feedback(ATTACK, ATTACK, result(flags=(ATTACK,), text=ATTACK), book, cells))
        assert_inert(page)
        assert "Content-Security-Policy" in page

    def test_it_has_language_title_one_heading_and_a_main_part(self) -> None:
        tags = [tag for tag, _ in Tags(feedback_page(Feedback("ada", "lab", result()))).seen]
        assert tags.count("h1") == tags.count("main") == tags.count("title") == 1
        assert '<html lang="en">' in feedback_page(Feedback("ada", "lab", result()))

    def test_a_penalty_for_lateness_is_named_and_taken_off(self) -> None:
        book = Gradebook({"tables": (5.0, 10.0), "growth": (5.0, 5.0)}, late_penalty=2.0)
        page = feedback_page(Feedback("ada", "lab", result(), book))
        assert "<strong>8 of 15 points</strong> after a penalty of 2 for lateness" in page

    def test_a_rejected_submission_gives_its_reason(self) -> None:
        page = feedback_page(Feedback("ada", "lab", result(status="rejected", flags=("it is empty",))))
        assert "could not be graded" in page
        assert '<p class="remark">it is empty</p>' in page


def timed(*shares: float, group: str = "growth", case: str = "unequal lengths", us: float = 131.0) -> SubmissionResult:
    """A result whose group `growth` was timed; the reference reaches 90 % everywhere."""
    timings = [
        TimingResult(group, f"{case}, batch {n} of {len(shares)}", us, 118.0, share, 0.9)
        for n, share in enumerate(shares, 1)
    ]
    return replace(result(), timings=tuple(timings))


class TestSpeed:
    def test_the_page_tells_times_and_shares_of_each_case_in_its_group(self) -> None:
        page = feedback_page(Feedback("ada", "lab", timed(0.8, 0.2)))
        _, growth = page.split("<h2>All about growth</h2>")
        first, second = growth.split("<p>Unequal lengths, batch 1 of 2</p>")[1].split("batch 2 of 2</p>")
        for case, share in ((first, "80.0"), (second, "20.0")):
            assert f"yours: {share} %, 131 \u00b5s" in case
            assert f'<rect class="bar" width="{share}%"' in case
            assert "the reference: 90.0 %, 118 \u00b5s" in case
            assert '<rect class="other" width="90.0%"' in case
            assert "the read ceiling: 100.0 %" in case
        assert "geometric mean: yours 40.0 %, the reference 90.0 %" in second

    def test_a_textbooks_kernel_stands_between_the_student_and_the_reference(self) -> None:
        whole = timed(0.8, 0.2)
        shares = zip(whole.timings, (0.4, 0.1), strict=True)
        first, second = (replace(t, textbook_us=262.0, textbook_share=share) for t, share in shares)
        page = feedback_page(Feedback("ada", "lab", replace(whole, timings=(first, second))))
        rows = page.split("<p>Unequal lengths, batch 1 of 2</p>")[1].split("</ul>")[0].split("<li>")[1:]
        assert [row.split(":")[0].removeprefix("<span>") for row in rows] == [
            "yours", "a textbook's kernel", "the reference", "the read ceiling",
        ]  # fmt: skip
        assert "40.0 %, 262 \u00b5s" in rows[1]
        assert '<rect class="other" width="40.0%"' in rows[1]
        assert "geometric mean: yours 40.0 %, a textbook's kernel 20.0 %, the reference 90.0 %" in page
        # Timed in one of two cases it has no mean.
        page = feedback_page(Feedback("ada", "lab", replace(whole, timings=(first, whole.timings[1]))))
        assert "geometric mean: yours 40.0 %, the reference 90.0 %" in page

    def test_a_result_keeps_the_textbooks_time_and_one_from_before_has_none(self) -> None:
        whole = timed(0.8)
        told = replace(whole, timings=(replace(whole.timings[0], textbook_us=262.0, textbook_share=0.4),))
        assert SubmissionResult.from_json(told.to_json()) == told
        older = whole.to_json()
        for timing in older["timings"]:
            del timing["textbook_us"], timing["textbook_share"]
        assert SubmissionResult.from_json(older) == whole

    def test_the_kind_of_gpu_is_named_where_there_was_one(self) -> None:
        graded = replace(timed(0.8), gpu=f"NVIDIA X{ATTACK}")
        page = feedback_page(Feedback("ada", "lab", graded))
        assert "<p>Graded on a GPU: NVIDIA X" in page
        assert_inert(page)
        assert "Graded on a GPU: NVIDIA X" in report_text(graded).splitlines()[1]
        assert "a GPU" not in feedback_page(Feedback("ada", "lab", result())) + report_text(result())
        assert SubmissionResult.from_json(graded.to_json()) == graded
        older = graded.to_json()
        del older["gpu"]
        assert SubmissionResult.from_json(older) == replace(graded, gpu="")

    def test_nothing_of_speed_is_shown_where_nothing_was_timed(self) -> None:
        page = feedback_page(Feedback("ada", "lab", timed(0.8)))
        tables, growth = page.split("<h2>All about growth</h2>")
        assert '<figure class="speed">' in growth
        assert "<figure" not in tables
        assert "<figure" not in feedback_page(Feedback("ada", "lab", result()))
        assert "ceiling" not in report_text(result())

    def test_the_text_has_one_line_in_the_group_that_was_timed(self) -> None:
        lines = report_text(timed(0.8, 0.2)).splitlines()
        assert [line for line in lines if "ceiling" in line] == [
            "Share of the read ceiling: yours 40.0 %, the reference 90.0 %."
        ]
        assert lines.index("All about growth: 5 of 5 points") + 3 == next(
            i for i, line in enumerate(lines) if "ceiling" in line
        )

    def test_the_figure_is_text_with_bars_that_no_screen_reader_reads(self) -> None:
        page = feedback_page(Feedback("ada", "lab", timed(0.8, case=ATTACK)))
        assert_inert(page)
        seen = Tags(page).seen
        assert [tag for tag, _ in seen].count("figcaption") == 1
        assert all(attributes.get("aria-hidden") == "true" for tag, attributes in seen if tag == "svg")

    def test_a_bar_ends_at_the_ceiling_and_the_number_tells_the_truth(self) -> None:
        page = feedback_page(Feedback("ada", "lab", timed(1.015)))
        assert "yours: 101.5 %" in page
        assert '<rect class="bar" width="100.0%"' in page

    @pytest.mark.parametrize(
        ("us", "text"),
        [(9.5, "9.5 \u00b5s"), (999.0, "999 \u00b5s"), (1e3, "1 ms"), (52_400.0, "52.4 ms"), (2.5e6, "2.5 s")],
    )
    def test_times_have_three_figures_at_most(self, us: float, text: str) -> None:
        assert f"80.0 %, {text}</span>" in feedback_page(Feedback("ada", "lab", timed(0.8, us=us)))

    def test_a_very_slow_kernel_has_a_page_as_well(self) -> None:
        assert "yours: 0.0 %" in feedback_page(Feedback("ada", "lab", timed(0.00001)))


class TestClassReport:
    CLASS = (
        ("ada", result("PPPP", "PP")),
        ("bob", result("PPWR", "PP")),
        ("cyd", result("WWWW", "WW")),
        ("dan", result(status="rejected", flags=("not JSON",))),
    )

    def test_rows_hold_points_by_group_and_in_total(self) -> None:
        assert csv_rows(self.CLASS) == [
            ["student", "status", "tables", "growth", "score", "max_score", "remarks"],
            ["ada", "graded", 10.0, 5.0, 15.0, 15, ""],
            ["bob", "graded", 5.0, 5.0, 10.0, 15, ""],
            ["cyd", "graded", 0.0, 0.0, 0.0, 15, ""],
            ["dan", "rejected", 0.0, 0.0, 0.0, 15, "not JSON"],
        ]

    def test_the_figure_counts_every_submission_and_says_so_in_words(self) -> None:
        page = class_page("lab", self.CLASS)
        assert 'aria-label="Number of submissions by points. 0-1.5: 2; 9-10.5: 1; 13.5-15: 1."' in page
        assert "4 submissions. Median 5 of 15 points." in page

    def test_group_shares_count_a_rejected_submission_as_nothing(self) -> None:
        page = class_page("lab", self.CLASS)
        assert '<th scope="row">All about tables</th><td class="number">38%</td>' in page
        assert '<th scope="row">All about growth</th><td class="number">50%</td>' in page

    def test_the_tests_that_fail_most_come_first_with_how_they_ended(self) -> None:
        page = class_page("lab", self.CLASS)
        first = page.index('<td>tables 2 holds</td><td class="number">2</td><td>wrong result 2</td>')
        second = page.index(
            '<td>tables 3 holds</td><td class="number">2</td><td>raised an error 1, wrong result 1</td>'
        )
        last = page.index('<td>tables 0 holds</td><td class="number">1</td>')
        assert first < second < last

    def test_a_test_that_could_not_run_on_this_device_is_no_failure_of_anybody(self) -> None:
        elsewhere = TestResult("test_speed_holds", Verdict.NOT_RUN, "on a GPU", counts=False)
        one = result("PP", "PP")
        group = GroupResult("speed", "Speed", 5, (elsewhere,))
        page = class_page("lab", [("ada", replace(one, groups=(*one.groups, group)))])
        assert "Every test passed for everybody." in page

    def test_nothing_in_it_runs_or_loads(self) -> None:
        assert_inert(class_page(ATTACK, [(ATTACK, result(flags=(ATTACK,), text=ATTACK))]))

    def test_files_are_written_and_a_formula_stays_text(self, tmp_path: Path) -> None:
        page, table = write_class_report("lab", [("=1+1", result(flags=("a, b",)))], tmp_path / "new")
        assert page.read_text().startswith("<!doctype html>")
        [row] = csv.DictReader(io.StringIO(table.read_text()))
        assert (row["student"], row["remarks"], row["score"]) == ("'=1+1", "a, b", "10.0")

    def test_half_a_surrogate_pair_is_replaced_wherever_it_stands(self, tmp_path: Path) -> None:
        torn = result("PWWW", flags=("x\ud800y",), text="\ud800")
        page, table = write_class_report("lab", [("a\ud800", torn)], tmp_path)
        assert "x\ufffdy" in page.read_text(encoding="utf-8")
        [row] = csv.DictReader(io.StringIO(table.read_text(encoding="utf-8")))
        assert (row["student"], row["remarks"]) == ("a\ufffd", "x\ufffdy")
        cells = [("code", "\ud800")]
        feedback_page(Feedback("\ud800", "\ud800", torn, Gradebook({}, comments=["\ud800"]), cells)).encode()

    def test_no_result_is_an_error_that_says_what_to_do(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="no graded submission to lab: run `course autograde lab` first"):
            write_class_report("lab", [], tmp_path)

    def test_speeds_of_different_kinds_of_gpu_are_told_apart(self) -> None:
        fast, faster = (replace(timed(0.8), gpu=name) for name in ("NVIDIA X", f"NVIDIA Y{ATTACK}"))
        alike = class_page("lab", [("ada", fast), ("bob", fast), ("eve", result())])
        assert "<p>Speed was graded: 2 on NVIDIA X.</p>" in alike
        mixed = class_page("lab", [("ada", fast), ("bob", faster), ("eve", fast)])
        assert "Speed was graded on GPUs of 2 kinds: 2 on NVIDIA X, 1 on NVIDIA Y" in mixed
        assert_inert(mixed)
        assert "Speed was graded" not in class_page("lab", [("ada", result())])

    def test_a_class_of_rejected_submissions_has_a_report(self) -> None:
        assert "<p>No test ran.</p>" in class_page("lab", [("ada", result(status="rejected"))])


def test_the_table_shows_groups_score_and_remark_and_obeys_no_markup() -> None:
    console = Console(width=140, file=io.StringIO(), color_system=None)
    lines = [
        Line("[red]ada[/red]", result(flags=("a remark",))),
        Line("bob", result(status="rejected", flags=(ESCAPES,))),
        Line("cyd", result(), score=12.5),
        Line("dan", None, note="nothing was submitted"),
    ]
    console.print(summary_table("lab", lines))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    rows = [re.split(r"\s{2,}", line.strip()) for line in shown.splitlines()]
    assert ["[red]ada[/red]", "5", "5", "10", "15", "a remark"] in rows
    assert ["cyd", "5", "5", "12.5", "15"] in rows
    assert ["dan", "-", "-", "-", "-", "nothing was submitted"] in rows
    assert "\x1b" not in shown


def test_a_narrow_terminal_gets_one_line_a_submission_without_groups() -> None:
    console = Console(width=72, file=io.StringIO(), color_system=None)
    console.print(summary_table("lab", [Line("a/" + "long_name_" * 9, result(flags=("many words " * 30,)))]))
    [line] = [line for line in console.file.getvalue().splitlines() if "name_" in line]  # type: ignore[attr-defined]
    assert len(line) <= 72
    assert "many words" in line
    assert " 10 " in line
    assert " 15 " in line


@pytest.mark.parametrize(
    ("value", "field"),
    [(None, ""), ("=\ud800", "'=\ufffd"), (1.5, "1.5"), (-1.0, "-1.0"), ("-1", "'-1"), ("\tx", "'\tx"), ("a=1", "a=1")],
)
def test_numbers_stay_numbers_and_formulas_become_text(value: object, field: str) -> None:
    assert safe_field(value) == field
