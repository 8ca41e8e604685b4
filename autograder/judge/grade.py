"""One submission from its file to its result.

Owns: the order of things: intake, a first worker that proves the contract is met, the hidden tests, then public
counterexamples from a fresh worker. Knows nothing of journals, other submissions or nbgrader.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from autograder.course import Course, Lab, seed_id
from autograder.gpu.turns import Turns
from autograder.intake import Rejected, take
from autograder.judge.functions import rehearse, remote_functions
from autograder.judge.remote import Plan, Session, TestEnded, remote
from autograder.judge.subject import Make, local
from autograder.judge.suite import HiddenTest, SuiteBroken, hidden_tests, not_here, run_test
from autograder.judge.verdicts import GroupResult, SubmissionResult, TestResult, TimingResult, Verdict, clean
from autograder.nvml import Gpu, gpus
from autograder.sandbox.launch import StartFailed, WorkerGone
from autograder.sandbox.limits import Limits
from labkit import checks, contracts

if TYPE_CHECKING:
    from autograder.gpu.stand import Stand
    from autograder.gpu.subject import Seen

COUNTEREXAMPLE_CHARS = 800
Judged = tuple[tuple[GroupResult, ...], tuple[TimingResult, ...]]


@dataclass(frozen=True)
class Job:
    """What to grade, named by content: the same job gives the same points."""

    lab: str
    path: str
    label: str
    sha256: str
    suite: str
    seed: int
    tier: str
    device: str = "cpu"
    sanitize: bool = False
    """Whether to look at the kernels' memory accesses too, where there is a GPU (gpu/sanitize.py)."""

    def result(
        self,
        status: str,
        seconds: float,
        groups: tuple[GroupResult, ...] = (),
        flags: tuple[str, ...] = (),
        timings: tuple[TimingResult, ...] = (),
    ) -> SubmissionResult:
        """The result of this job."""
        return SubmissionResult(
            lab=self.lab,
            submission=self.label,
            sha256=self.sha256,
            suite=self.suite,
            seed_id=seed_id(self.seed),
            device=self.device,
            seconds=round(seconds, 3),
            status=status,
            groups=groups,
            flags=tuple(clean(flag) for flag in flags),
            timings=timings,
        )


def grade(course: Course, job: Job, limits: Limits | None = None) -> SubmissionResult:
    """Grade one file. Never raises for what a student handed in; infra faults come back as status `infra`."""
    start = time.monotonic()
    lab = course.lab(job.lab)
    limits = limits or lab.limits(job.device)
    try:
        submission = take(Path(job.path), lab, limits)
    except Rejected as rejected:
        groups = _all(lab, [], Verdict.NOT_RUN, str(rejected))
        return job.result("rejected", time.monotonic() - start, groups, (str(rejected),))
    if submission.sha256 != job.sha256:
        return job.result("infra", time.monotonic() - start, flags=("INFRA: the file changed before it was graded",))
    try:
        tests = hidden_tests(lab)
        packages, environment = tuple(lab.suite.PACKAGES), lab.environment(job.device)
        gpu = job.device == "cuda"
        session = Session(Plan(submission.cells, job.tier, limits, packages, environment, gpu=gpu))
        turns = Turns(course.state, own_gpu().node, session.pardon)
        try:
            groups, timings = _judge(lab, tests, session, job, turns)
        finally:
            session.close()
    except (StartFailed, SuiteBroken) as fault:
        return job.result("infra", time.monotonic() - start, flags=(f"INFRA: {fault}",))
    seconds = time.monotonic() - start - turns.waited_s
    result = job.result("graded", seconds, groups, (*submission.flags, *session.flags), timings)
    return replace(result, gpu=own_gpu().name) if gpu else result


def own_gpu() -> Gpu:
    """This process's GPU, or one of no name that nobody takes turns on."""
    return next(iter(gpus()), Gpu("", "none"))


def _all(lab: Lab, tests: list[HiddenTest], verdict: Verdict, message: str) -> tuple[GroupResult, ...]:
    """Every group with every test at the same verdict; a group without tests is listed with one line saying why."""
    groups = []
    for group in lab.groups:
        names = [test.name for test in tests if test.group == group.id] or ["every test"]
        results = tuple(TestResult(name, verdict, message) for name in names)
        groups.append(GroupResult(group.id, group.title, group.points, results))
    return tuple(groups)


def _judge(lab: Lab, tests: list[HiddenTest], session: Session, job: Job, turns: Turns) -> Judged:
    (name, methods), *_ = lab.suite.PROVIDES.items()
    with ExitStack() as held:
        # It takes seconds to start, and so does the worker.
        stand = held.enter_context(_stand(turns)) if job.device == "cuda" else None
        try:
            faults = _contract_faults(session, lab.kind, name, methods)
        except TestEnded as ended:
            return _all(lab, tests, ended.verdict, ended.message), ()
        for fault in faults.values():
            session.note(fault)
        seen: Seen = []
        if stand is not None:
            make, reference = on_the_gpu(lab, name, session, faults, stand, seen)
        else:
            make = _by_wire(lab, name, session, faults)
            reference = local(lab.reference(name))
        examined = _examined(session, faults, stand) if job.sanitize and stand is not None else ()
        session.sealed = True
        groups, timings = _groups(lab, tests, session, job, make, reference, seen)
        return (*groups, *examined), timings


def _examined(session: Session, faults: Mapping[str, str], stand: Stand) -> tuple[GroupResult]:
    """What no point depends on: the accesses of the kernels in a public call. It costs the submission no time."""
    from autograder.gpu import sanitize
    from autograder.gpu.subject import FromWorker

    start = time.monotonic()
    found = sanitize.group(FromWorker(session, faults, stand.together), stand.together)
    session.pardon(time.monotonic() - start)
    return (found,)


def _by_wire(lab: Lab, name: str, session: Session, faults: Mapping[str, str]) -> Make:
    """The submission's object or functions in its worker."""
    methods = lab.suite.PROVIDES[name]
    if lab.kind != "functions":
        return remote(session, name, methods, faults)
    idle = rehearse(session, lab.suite.rehearsal(), faults)
    for fault in idle.values():
        session.note(fault)
    return remote_functions(session, methods, {**faults, **idle})


def _stand(turns: Turns) -> Stand:
    """Where plans are played. Torch and Triton stay out of a judge that needs no GPU."""
    from autograder.gpu.stand import Stand

    return Stand(turns)


def on_the_gpu(
    lab: Lab, name: str, session: Session, faults: Mapping[str, str], stand: Stand, seen: Seen
) -> tuple[Make, Make]:
    """The submission's functions, recorded there and played here, and the reference's.

    What is timed of the submission is added to `seen`. Raises: StartFailed.
    """
    from autograder.gpu.subject import FromHere, FromWorker, played
    from autograder.gpu.subject import rehearse as rehearse_on_the_gpu

    stand.prove(session.fresh)
    source = FromWorker(session, faults, stand.together)
    rehearse_on_the_gpu(session, source)
    methods = lab.suite.PROVIDES[name]
    make = played(source, stand, methods, seen)
    return make, played(FromHere(lab.reference(name)), stand, methods)


def _groups(
    lab: Lab, tests: list[HiddenTest], session: Session, job: Job, make: Make, reference: Make, seen: Seen
) -> Judged:
    """Every hidden test, and a public counterexample for each group in which one failed; what tests add to `seen` is
    told under their group."""
    by_group: dict[str, list[TestResult]] = {group.id: [] for group in lab.groups}
    unclear: set[str] = set()
    timings: list[TimingResult] = []
    for test in tests:
        known = len(seen)
        result = not_here(test, job.device) or run_test(test, make, job.seed, reference)
        by_group[test.group].append(result)
        timings += _timing_results(test.group, seen[known:])
        # Too slow is no property that an example could show.
        if result.counts and result.verdict is not Verdict.PASS and not test.timed:
            unclear.add(test.group)
    session.hurry = True
    # A fresh worker: the one that met the hidden tests could tell of them through its answers.
    session.fresh()
    groups = []
    for group in lab.groups:
        results = tuple(by_group[group.id])
        story = _counterexample(lab, group.id, session, make) if group.id in unclear else ""
        groups.append(GroupResult(group.id, group.title, group.points, results, story))
    return tuple(groups), tuple(timings)


def _timing_results(group: str, seen: Seen) -> list[TimingResult]:
    """What a student reads of the clock. Rounded, since a time and its share together tell how much was read."""
    found = []
    for case, timing in seen:
        times = (timing.student_us, timing.reference_us, timing.share, timing.reference_share)
        textbook = [None if t is None else float(f"{t:.3g}") for t in (timing.textbook_us, timing.textbook_share)]
        found.append(TimingResult(group, case, *(float(f"{time:.3g}") for time in times), *textbook))
    return found


def _contract_faults(session: Session, kind: str, name: str, methods: tuple[str, ...]) -> dict[str, str]:
    """Methods of the contract that are missing or take other arguments, each with the words for the student.

    Raises: TestEnded if there is no such class at all, for then nothing can be tested.
    """
    protocol = getattr(contracts, name)
    itself = int(kind == "class")
    counts = {m: [count + itself for count in _positional_counts(getattr(protocol, m))] for m in methods}
    try:
        reply = session.worker().request(
            session.plan.limits.call_s, op="describe", kind=kind, name=name, methods=counts
        )
    except WorkerGone as gone:
        session.close()
        raise TestEnded(Verdict.CRASHED, f"the process ended while {name} was looked up ({gone.kind})") from None
    found = reply.get("ok")
    if not isinstance(found, dict) or found.get("kind") != kind:
        what = "is not a class" if isinstance(found, dict) and found.get("kind") == "other" else "is missing"
        raise TestEnded(Verdict.MISSING, f"the class {name} {what}; see the remarks for cells that failed to run")
    reported = found.get("faults")
    faults = {}
    for method in methods:
        fault = reported.get(method) if isinstance(reported, dict) else "missing"
        called = f"{name}.{method}" if kind == "class" else f"the function {method}"
        if fault == "missing":
            faults[method] = f"{called} is missing"
        elif fault is not None:
            wanted = str(inspect.signature(getattr(protocol, method)))
            wanted = wanted if kind == "class" else wanted.replace("(self, ", "(", 1)
            faults[method] = f"{called} does not take the contract's arguments {wanted}"
    return faults


def _positional_counts(function: object) -> list[int]:
    """With how many arguments, besides self, the contract's callers call it: required only, and all."""
    assert callable(function)
    parameters = list(inspect.signature(function).parameters.values())[1:]
    required = sum(parameter.default is parameter.empty for parameter in parameters)
    return sorted({required, len(parameters)})


def _counterexample(lab: Lab, group: str, session: Session, make: Make) -> str:
    """The first public property of `group` that fails, in words."""
    try:
        results = checks.run(lab.id, group, make)
    except TestEnded as ended:
        return f"The public check of this group did not end here ({ended.message}); run it in your notebook."
    failed = next((result for result in results if not result.passed), None)
    if failed is None:
        return ""
    return clean(f"{failed.sentence} {failed.counterexample or ''}".strip()[:COUNTEREXAMPLE_CHARS])
