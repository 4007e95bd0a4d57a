"""What tables and lists of lines say."""

from finetune.report.tables import verification_lines


def check(name: str, state: str, says: str, details: int = 0) -> dict[str, object]:
    return {"check": name, "state": state, "says": says, "details": [f"fault {i}" for i in range(details)]}


def test_a_verification_is_a_line_for_each_check_its_faults_and_a_count() -> None:
    checks = [
        check("hash", "ok", "as recorded"),
        check("report", "failed", "3 differences", 3),
        check("accuracy", "not checked", "no --data"),
    ]
    assert verification_lines({"checkpoint": "a.safetensors", "sha256": "0123456789abcdef", "checks": checks}) == [
        "a.safetensors, sha256 0123456789ab…",
        "  hash      ok           as recorded",
        "  report    FAILED       3 differences",
        "                         fault 0",
        "                         fault 1",
        "                         fault 2",
        "  accuracy  not checked  no --data",
        "1 ok, 1 FAILED, 1 not checked",
    ]


def test_of_very_many_faults_the_first_are_shown_and_the_rest_counted() -> None:
    found = {"checkpoint": "a", "sha256": "", "checks": [check("numbers", "failed", "many", 23)]}
    lines = verification_lines(found)
    assert len(lines) == 1 + 1 + 20 + 1 + 1 and lines[-2].strip() == "and 3 more"
    few = verification_lines(found | {"checks": [check("numbers", "failed", "some", 20)]})
    assert len(few) == 1 + 1 + 20 + 1 and "more" not in few[-2]
