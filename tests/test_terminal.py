import os
import signal

import pytest

from autoreg.terminal import stop_on_interrupt


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_to_stop(number: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    handler = signal.getsignal(number)
    with stop_on_interrupt() as stopped:
        assert not stopped.is_set()
        os.kill(os.getpid(), number)
        assert stopped.is_set()
        assert signal.getsignal(number) == handler
    assert "press Ctrl-C again" in capsys.readouterr().err


def test_the_second_ctrl_c_interrupts(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), stop_on_interrupt():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert capsys.readouterr().err.count("stopping") == 1


def test_torchrun_may_signal_more_than_once(capsys: pytest.CaptureFixture[str]) -> None:
    with stop_on_interrupt(launched=True) as stopped:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopped.is_set()
    assert capsys.readouterr().err == "\nstopping after this step\n"
    with stop_on_interrupt(launched=True, quiet=True):
        os.kill(os.getpid(), signal.SIGINT)
    assert capsys.readouterr().err == ""
