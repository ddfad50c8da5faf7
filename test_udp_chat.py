"""Tests of udp_chat.py on real sockets, pipes and terminals, and the notebook."""
import json
import os
import pathlib
import queue
import re
import signal
import subprocess
import sys
import unicodedata
from unittest import mock

import pytest

import udp_chat
from udp_chat import BYE, LOST, QUESTION, datagrams, open_socket, recv, safe, send, wrap

FINE = "日😀👨‍👩‍👧می‌خواهم\u200e\u200f"
BAD = "\x1b[2J\x9b\r\n\u202e\u2028\u2029\U000e0041"
FRIEND, IPS = ("10.0.0.1", 1234), ["10.0.0.9", "10.0.0.1"]
STRANGER = ("{0} port {1} wrote: not shown. Your friend? Start again:\n"
            "python udp_chat.py {0} --port 4321 --send-port {1}")
NOTICE = "* Chatting with 127.0.0.1 port 54321. Bye ends it for both."
ENV = {name: value for name, value in os.environ.items() if "COLOR" not in name}
ENV |= {"TERM": "xterm", "PYTHONUTF8": "1", "INPUTRC": "/dev/fd/9"}
PIPES = {"stdin": -1, "stdout": -1, "stderr": -1, "env": ENV, "bufsize": 0}  # -1: PIPE
SHELL = """trap : INT; before=$(stty -g); "$@" 2>/dev/null 9<<E; echo code $?
set show-mode-in-prompt on
E
[ "$before" = "$(stty -g)" ] && echo same settings; stty -icanon min 0; cat"""  # unread
STARTED = "both.*>|>.*both"  # the terminal prints what is typed earlier
LONG = "a long one " * 7 + "a long one end"
HALF = dict(typed="helo\x1b[D", echo="helo\b", texts=["日本" + " word" * 10, "last"],
            then="l\rBye\r", sent=[b"hello", b"Bye"])
SHORT, LAST = "127.0.0.1 : 日本" + " word" * 8, ["127.0.0.1 : last", "> hello", "> Bye"]
TWO = [SHORT, "word word", *LAST]


def table(sentences, **columns):  # a test for each; columns have defaults
    rows = [tuple((columns | row).values()) for row in sentences.values()]
    return pytest.mark.parametrize(list(columns), rows, ids=list(sentences))


@table({
    "emoji, Persian and Hebrew stay": dict(call=(safe, FINE), gives=FINE),
    "what acts is spelled out": dict(call=(safe, BAD), gives=ascii(BAD)[1:-1]),
    "a tab is blanks": dict(call=(safe, "\t|\u200b\xad\ufeff|"), gives="    ||"),
    "wide letters are two": dict(call=(wrap, "日本" * 5, 17), gives=["日本" * 4, "日本"]),
    "no link is cut": dict(call=(wrap, "a to://b.de/cc-d", 0), gives=["a to://b.de/cc-d"]),
    "an empty line is not sent": dict(call=(datagrams, ""), gives=[]),
    "no rest is short": dict(call=(datagrams, "x" * 1025), gives=[b"x" * 512, b"x" * 513]),
    "no letter is cut": dict(call=(datagrams, "日é" * 300), gives=["日é".encode() * 150] * 2),
}, call=(), gives=None)
def test_text(call, gives):
    assert call[0](*call[1:]) == gives


@table({
    "nothing, and a byte that is not UTF-8": dict(got=[b"", b"\xe9"], shown=["", r"\xe9"]),
    "a newline in one row": dict(got=[b" a\n1.2.3.4 : b "], shown=[r" a\n1.2.3.4 : b "]),
    "what is lost, and goes on": dict(
        got=[ConnectionResetError(10054, "reset"), b"hi", OSError(90, "too long")],
        shown=["hi"], told=[LOST.format(*FRIEND, why) for why in ("reset", "too long")]),
    "3 strangers and 3 wrong ports, once; their Bye ends nothing": dict(
        got=[(b"Bye", (ip, n // 2)) for ip in IPS for n in range(9)],
        told=[STRANGER.format(ip, n) for ip in IPS for n in range(3)]),
}, got=[], shown=[], told=[])
def test_recv_shows(got, shown, told):
    got = [(item, FRIEND) if isinstance(item, bytes) else item for item in got]
    sock = mock.Mock(**{"recvfrom.side_effect": [*got, (b"Bye\n", FRIEND)]})
    sock.getsockname.return_value = ("0.0.0.0", 4321)
    recv(sock, FRIEND, (lines := []).append, (notices := []).append)
    assert lines == [f"10.0.0.1 : {text}" for text in [*shown, BYE]]
    assert notices == [*told, "10.0.0.1 said Bye: the chat is over."]


def test_notice_tells_a_kind_once_a_second_in_pieces(monkeypatch):
    clock = mock.Mock(**{"monotonic.side_effect": [0.2, 1.1, 1.1, 1.3]})
    monkeypatch.setattr(udp_chat, "time", clock)
    for text in "a: 1", "a: 2", "b: 3", "a: " + "x" * 2000:
        udp_chat.notice(text)
    assert 2000 < udp_chat.QUEUE.maxsize < 10_000
    texts = [udp_chat.QUEUE.get(timeout=1)[0] for _ in "1234"]
    assert texts == ["* a: 1\n", "* b: 3\n", "* a: " + "x" * 1995, "xxxxx\n"]


def free():  # an address where nobody listens
    with open_socket("127.0.0.1", 0) as probe:
        return probe.getsockname()


@pytest.fixture
def sock():
    with open_socket("127.0.0.1", 0) as sock:
        sock.settimeout(5)
        yield sock


@pytest.mark.skipif(sys.platform != "linux", reason="others report in other ways")
def test_reports_are_told_and_stop_nothing(sock):
    peer, lines, told = free(), [], []
    sock.setsockopt(1, 8, 50_000)  # SO_RCVBUF: reports could fill it
    send(sock, ("255.255.255.255", 9), ["a", BYE, "b"], told.append)
    send(sock, peer, ["hello?"] * 200, pytest.fail)
    with open_socket(*peer) as late:
        send(sock, peer, ["first"], pytest.fail)  # not stopped by an old report
        late.settimeout(5)
        assert late.recv(99) == b"first"
        sock.sendto(b"to nobody", free())
        send(late, sock.getsockname(), [*"abc" * 20, BYE], pytest.fail)
    recv(sock, peer, lines.append, told.append)
    refused = [LOST.format("255.255.255.255", 9, "Permission denied")] * 2
    assert lines[60:] and told[:3] == [*refused, LOST.format(*peer, "Connection refused")]


def test_a_slip_in_a_thread_ends_the_chat(sock, capsys):
    pytest.importorskip("termios")  # Windows has no masks; elsewhere threads mask Ctrl-C, 2
    ended, masks = queue.Queue(), []
    for told in 1, 0:
        lines = (masks.append(signal.pthread_sigmask(0, [])) or 1 / 0 for _ in "1")
        udp_chat.start(sock, FRIEND, lines, print, print, ended.put)
        assert send in iter(lambda: ended.get(timeout=5), None) and 2 in masks[0]
        assert capsys.readouterr().err.count("ZeroDivisionError:") == told
        sock.close()  # then it is not told


def program(sock, *args):  # its command, and where it listens
    mine, port = sock.getsockname()[1], (address := free())[1]
    ports = f"--port {port} --send-port {mine}".split()
    return [sys.executable, udp_chat.__file__, *ports, *args], address


def test_2000_lines_wait_for_a_reader(sock):
    command, address = program(sock)
    lines = [f"line {n} é😀 {'x' * 90}" for n in range(2000)] + [BYE]
    with subprocess.Popen(command, **PIPES) as chat:
        asked = b""
        while QUESTION.encode() not in asked:
            asked += chat.stdout.read(999)
        sock.sendto(b"Bye", address)  # of an old chat: ends nothing
        chat.stdin.write(b"0.0.0.0\n\none\r\n\xff\n")
        assert [sock.recv(99) for _ in "12"] == [b"one", rb"\xff"]
        send(sock, address, lines, pytest.fail)
        out, err = chat.communicate(timeout=10)
    wrong, right = out.decode().split(QUESTION)
    assert "find 0.0.0.0: " in wrong and right.splitlines() == [
        "* That is this machine.", NOTICE.replace("54321", command[5]),
        *(f"127.0.0.1 : {line}" for line in lines),
        "* 127.0.0.1 said Bye: the chat is over."]
    assert (chat.returncode, err) == (0, b"")


@pytest.mark.parametrize("args, says", {
    "--port 0": "0 is no port: 1 to 65535", "--send-port 65536": "65536 is no port",
    "--port TAKEN": "Is the chat open", "--ip " + "x" * 99: "Cannot listen on port",
    "\x1b[2J": r"Cannot find \x1b[2J: ", "": "No friend, no chat.",
}.items())
def test_wrong_arguments_get_a_sentence(sock, args, says):
    args = args.replace("TAKEN", str(sock.getsockname()[1])).split()
    with subprocess.Popen(program(sock, *args)[0], **PIPES) as chat:
        err = chat.communicate(timeout=9)[1].decode()
    assert chat.returncode and says in err and "Traceback" not in err


def test_one_port_serves_both_and_a_terminal_is_needed(monkeypatch):
    for argv, port in {"": 1234, "--port 1": 1, "--send-port 2": 2}.items():
        monkeypatch.setattr(sys, "argv", ["", *argv.split()])
        assert udp_chat.arguments().send_port == port
    with pytest.raises(SystemExit, match="^The chat needs a terminal: start it"):
        udp_chat.main()


def screen(output, columns):  # the 5 rows of a terminal, after those that have left it
    rows, y, x, wraps = [[] for _ in range(5)], 0, 0, True
    output = re.sub(r"\x1b\[\d*m", "", output)
    for token in re.findall(r"\x1b\[[?\d]*\w|\x1b.|.", output, re.S):
        top = len(rows) - 5
        match re.sub(r"\d+(?=G)", "", token):
            case "\x1b7": place = y - top, x
            case "\x1b8": y, x = place[0] + top, place[1]
            case "\x1b[A": y = max(y - 1, top)
            case "\x1b[B": y = min(y + 1, top + 4)
            case "\x1b[G": x = int(token[2:-1]) - 1
            case "\x1b[J": rows[y:] = [rows[y][:x]] + [[] for _ in rows[y + 1:]]
            case "\x1b[L": rows[y:] = [[]] + rows[y:-1]
            case "\x1b[?7h" | "\x1b[?7l": wraps = token[-1] == "h"
            case "\b": x -= 1
            case "\r": x = 0
            case "\n": y += 1
            case _:
                assert token.isprintable(), repr(token)  # or it is unknown here
                width = 1 + (unicodedata.east_asian_width(token) in "WF")
                if x + width > columns:
                    x, y = (0, y + 1) if wraps else (columns - width, y)
                    rows += [[]] * (y == len(rows))
                rows[y] += " " * (x - len(rows[y]))
                rows[y][x:x + width] = [token, ""][:width]
                x += width
        rows += [[]] * (y == len(rows))
    return ["".join(row).rstrip() for row in rows]


@table({
    "rows after 48 columns of 109": HALF | dict(columns=109, margin=48, rows=TWO),
    "rows after 20 columns of 80": HALF | dict(rows=TWO),
    "rows in 20 columns": HALF | dict(columns=20, margin=0, rows=[
        SHORT[:14], *["word word word word"] * 2, "word word", *LAST]),
    "a long line whole": dict(
        typed=LONG + "\r", echo="end\x1b[?7h", then="\x03", sent=[LONG.encode(), b"Bye"],
        rows=["<" + LONG[-51:], "> " + LONG[:78], LONG[79:]]),
    "nothing behind Bye": dict(then="Bye\rdate\r", rows=["> Bye"]),
    "the end at Ctrl-D": dict(then="\x04"),
    "the end at Ctrl-C, held": dict(typed="half", then="\x03\x03"),
    "the friend's Bye, and no later keys": dict(
        typed="half", texts=[BYE], then="date\r", sent=[],
        rows=["127.0.0.1 : Bye", "* 127.0.0.1 said Bye: the chat is over."]),
}, columns=80, margin=20, typed="", echo="", texts=[], then="", sent=[b"Bye"], rows=[])
def test_terminal_shows(sock, columns, margin, typed, echo, texts, then, sent, rows):
    pexpect = pytest.importorskip("termios") and pytest.importorskip("pexpect")
    if typed[9:] and "GNU" not in udp_chat.readline.__doc__:
        pytest.skip("libedit does not scroll a long line")
    command, address = program(sock, "127.0.0.1")
    pty = pexpect.spawn("/bin/sh", ["-c", SHELL, "sh", *command], timeout=5, env=ENV,
                        dimensions=(5, columns), encoding="utf-8")
    pty.logfile_read = mock.Mock(write=(log := []).append)
    pty.expect(STARTED)
    pty.send(typed)
    pty.expect_exact(echo or typed)
    send(sock, address, texts, pytest.fail)
    pty.expect_exact(rows[-1] if BYE in texts else [*texts, ""][-1])
    pty.send(then[:1])
    pty.send(then[1:])  # 0.05 s later
    pty.read()
    output = "".join(log).replace(str(sock.getsockname()[1]), "54321")
    cyan = [row for row in rows if row[0] in "1w"]
    assert re.findall(r"\x1b\[40m\x1b\[36m(.*?)\x1b\[0m", output) == cyan
    rows = [" " * margin * (row in cyan) + row for row in rows]
    rows = [*wrap(NOTICE, columns), *rows, "code 0", "same settings", ""]
    assert screen(output, columns)[-len(rows):] == rows
    sock.sendto(b"", sock.getsockname())
    assert list(iter(lambda: sock.recv(99), b"")) == sent


@pytest.mark.skipif("GNU" not in str(udp_chat.readline.__doc__), reason="libedit stops")
def test_kill_in_the_background_says_bye(sock):
    pexpect = pytest.importorskip("termios") and pytest.importorskip("pexpect")
    bash = pexpect.spawn("bash", ["--norc"], timeout=5, env=ENV)
    bash.sendline(" ".join(program(sock, "127.0.0.1")[0]))
    bash.expect(STARTED)
    bash.send("\x1a")
    bash.expect("Stopped")
    bash.sendline("bg; kill %1; wait; echo e\\nd")
    bash.expect("end")
    assert sock.recv(99) == b"Bye"


# ---- The notebook ----
NOTEBOOK = pathlib.Path(__file__).with_name("walkthrough.ipynb")
CELLS = {cell["id"]: "".join(cell["source"])
         for cell in json.loads(NOTEBOOK.read_text("utf-8"))["cells"]}
ANSWERS = {(10, "def deliver(*args):\n  while True: pass"): "takes too long"}
for n in (2, 4, 5, 7, 8, 9, 10):
    text = next(text for text in CELLS.values() if f"**Exercise {n}.**" in text)
    ANSWERS[n, re.search("```python\n(.*?)```", text, re.S)[1]] = "right"
    ANSWERS[n, CELLS[f"s{n}-try"]] = "not yet\n"


@pytest.mark.parametrize("answer, says", ANSWERS.items())
def test_the_check_of_an_exercise(answer, says, capsys):
    names = {"__name__": "__main__"}
    for name in "setup", "s10-friend", "s10-network", "", f"s{answer[0]}-check":
        parts = [text for key, text in CELLS.items() if name and key.startswith(name)]
        exec("\n".join(parts or [answer[1]]), names)
    assert says in capsys.readouterr().out


def printed(notebook):  # without numbers and pictures
    texts = [out.text for cell in notebook.cells for out in cell.get("outputs", [])]
    return re.sub(r"\d[\d.]*|[█░·]+", "#", "".join(texts)).splitlines()


def test_the_notebook_prints_what_it_has_saved(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "rfc3987_syntax", None)  # takes 4 s to import
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    saved, fresh = nbformat.read(NOTEBOOK, 4), nbformat.read(NOTEBOOK, 4)
    nbformat.validate(saved)
    nbclient.NotebookClient(fresh, timeout=60, kernel_name="python3",
                            resources={"metadata": {"path": NOTEBOOK.parent}}).execute()
    assert printed(fresh) == printed(saved) or sys.platform != "linux"  # where it was saved
