"""The example of teacher assistants: each link teaches the next, and the direct student is told beside them."""

from pathlib import Path

import pytest

from examples.digits import assistants


def test_each_link_teaches_the_next_and_the_direct_student_stands_beside(monkeypatch, capsys):
    monkeypatch.chdir(Path(__file__).parents[2])
    asked = []

    def taught(teacher, width, *_):
        asked.append((type(teacher).__name__ if not isinstance(teacher, int) else teacher, width))
        return width, width / 100

    monkeypatch.setattr(assistants, "taught", taught)
    found = assistants.main()
    assert asked == [("DigitsConvNet", 16), (16, 10), (10, 6), ("DigitsConvNet", 6)]
    assert list(found.values()) == [0.16, 0.1, 0.06, 0.06]
    assert "width 6, by the teacher directly" in capsys.readouterr().out


def test_a_link_is_a_fit_whose_student_can_teach():
    teacher = assistants.DigitsConvNet(width=3)
    student, accuracy = assistants.taught(teacher, 2, 1, 1, None)
    assert 0.0 <= accuracy <= 1.0
    assert sum(p.numel() for p in student.parameters()) < sum(p.numel() for p in teacher.parameters())
    again, same = assistants.taught(teacher, 2, 1, 1, None)
    assert same == pytest.approx(accuracy)
    assert again is not student
