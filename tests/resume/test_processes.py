"""Every process finds its own state in the checkpoint; two processes do in test_kill_and_resume.py."""

from lightning_kd.fit.resume import processes


def test_one_process_finds_its_own_state():
    states = processes.gather({"log": 1})
    assert states == [{"log": 1}]
    assert processes.mine(states) == {"log": 1}


def test_the_states_of_another_number_of_processes_are_nobodys():
    assert processes.mine([{"log": 1}, {"log": 2}]) is None
