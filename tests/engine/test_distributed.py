"""Processes of one run compute, agree and end together."""

import signal

from many_processes import LIMIT_S, outputs, processes

from fastdhm.engine import distributed


def test_a_process_alone_is_the_first_of_one():
    assert (distributed.rank(), distributed.count()) == (0, 1)


def test_what_any_process_answers_all_know_at_the_next_call():
    program = """
    with d.joined(torch.device("cpu")):
        step = 0
        agreed = d.Agreed(lambda: 15 * (step >= 2 and d.rank() == 1))
        for step in range(5):
            print(agreed())
    """
    assert outputs(program, 2) == ["0\n0\n0\n15\n15\n"] * 2


def test_no_thread_of_the_group_outlives_it():
    """The interpreter's end would crash those; torch's compiler must not keep the group either."""
    program = """
    with d.joined(torch.device("cpu")):
        import torch._dynamo
        for _ in range(3):
            agreed = d.Agreed(lambda: 0)  # none asks for its answer
            agreed()
    names = [open(f"/proc/self/task/{task}/comm").read() for task in os.listdir("/proc/self/task")]
    print([name for name in names if "gloo" in name])
    """
    assert outputs(program, 2) == ["[]\n"] * 2


def test_the_first_goes_first_whatever_it_takes(tmp_path):
    program = f"""
    path = {str(tmp_path / "built")!r}
    with d.joined(torch.device("cpu")):
        for turn in range(2):
            with d.in_turn():
                if d.rank() == 0:
                    time.sleep(0.5)
                    open(path + str(turn), "w").close()
                assert os.path.exists(path + str(turn))
    """
    outputs(program, 2)


def test_processes_that_were_given_different_things_say_so():
    program = """
    from fastdhm.errors import UserError
    with d.joined(torch.device("cpu")):
        d.check_alike("", {"lr": 1})
        try: d.check_alike("", {"lr": d.rank() / 10})
        except UserError as error: print(error)
    """
    for out in outputs(program, 2):
        assert "has lr 0.1, and process 0 on " in out and "has 0.0: give all processes the same" in out


def test_who_loses_a_process_ends_and_says_so():
    program = """
    import signal
    from fastdhm.errors import UserError
    try:
        with d.joined(torch.device("cpu")):
            if d.rank() == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            d.sum_(torch.zeros(1))
    except UserError as error: print(error)
    """
    ended = processes(program, 2)
    assert [child.returncode for child, *_ in ended] == [0, -signal.SIGKILL]
    assert "another process of this run ended" in ended[0][1]


def test_who_does_not_answer_is_not_waited_for_without_end():
    program = """
    import signal
    from fastdhm.errors import UserError
    try:
        with d.joined(torch.device("cpu")):
            if d.rank() == 1:
                os.kill(os.getpid(), signal.SIGSTOP)
            d.sum_(torch.zeros(1))
    except UserError as error: print(error)
    """
    first, second = processes(program, 2, seconds=3, wait=False)
    try:
        out, err = first.communicate(timeout=LIMIT_S)
        assert "did not answer for 3 s" in out, err
    finally:
        second.kill()
        second.communicate()


def test_rows_computed_by_turns_are_put_in_order_bit_for_bit():
    """One row, fewer blocks than processes, a short last block, several pieces; NaN and -0.0 as they are."""
    program = """
    d.PIECE_BYTES = 64
    with d.joined(torch.device("cpu")):
        for rows, total in ((1, 1), (4, 3), (4, 23), (1, 10), (8, 16), (3, 7)):
            whole = torch.arange(total * 2.0).view(total, 2).mul(-1)
            whole[-1, 1] = torch.nan
            blocks = whole.split(rows)[d.rank()::d.count()]
            own = torch.cat([*blocks, whole[:0]])
            for to_all in (True, False):
                got = d.gathered(own, rows, total, to_all=to_all)
                expected = whole if to_all or d.rank() == 0 else whole[:0]
                assert torch.equal(got.view(torch.int32), expected.view(torch.int32)), (rows, total, to_all)
    """
    outputs(program, 3)
