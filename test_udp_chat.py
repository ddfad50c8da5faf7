"""Tests of udp_chat.py on real sockets, pipes and terminals, then of the notebook."""
import io
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

ENV = {name: value for name, value in os.environ.items() if "COLOR" not in name}
ENV |= {"TERM": "xterm", "PYTHONUTF8": "1", "COLUMNS": "300"}  # a wrong one
PIPES = dict.fromkeys(["stdin", "stdout", "stderr"], subprocess.PIPE) | {"env": ENV}


def table(sentences, **columns):
    """Test each {sentence: {column: value}}; columns are the defaults."""
    rows = [tuple((columns | row).values()) for row in sentences.values()]
    return pytest.mark.parametrize(list(columns), rows, ids=list(sentences))


# ---- Functions ----
FINE = "日😀👨‍👩‍👧می‌خواهم\u200e\u200f"
BAD = "\x1b[2J\x9b\r\n\u202e\u2028\u2029\U000e0041"


@table({
    "emoji, Persian and Hebrew stay": dict(call=(safe, FINE), gives=FINE),
    "what acts is spelled out": dict(call=(safe, BAD), gives=ascii(BAD)[1:-1]),
    "a tab is blanks": dict(call=(safe, "a\tb"), gives="a   b"),
    "what is invisible goes": dict(call=(safe, "a\u200bb\xadc\ufeffd"), gives="abcd"),
    "rows end at a newline": dict(call=(wrap, "a\nb", 20), gives=["a", "b"]),
    "wide letters are two": dict(call=(wrap, "日本" * 5, 17), gives=["日本" * 4, "日本"]),
    "no link is cut": dict(call=(wrap, "go ab.de/f-g", 16), gives=["go ab.de/f-g"]),
    "0 columns are 16": dict(call=(wrap, "a-" * 9, 0), gives=["a-" * 8, "a-"]),
    "an empty line is not sent": dict(call=(datagrams, ""), gives=[]),
    "no rest says Bye": dict(call=(datagrams, "x" * 1022 + BYE),
                             gives=[b"x" * 512, b"x" * 510 + b"Bye"]),
    "no letter is cut": dict(call=(datagrams, "日é" * 300), gives=["日é".encode() * 150] * 2),
}, call=(), gives=None)
def test_text(call, gives):
    assert call[0](*call[1:]) == gives


FRIEND, IPS = ("10.0.0.1", 1234), ["10.0.0.9", "10.0.0.1"]
STRANGER = ("{0} port {1} wrote: not shown. Your friend? Start again:\n"
            "python udp_chat.py {0} --port 4321 --send-port {1}")


@table({
    "an empty datagram": dict(got=[b""], shown=[""]),
    "a byte that is not UTF-8": dict(got=[b"caf\xe9"], shown=[r"caf\xe9"]),
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
    lines, notices = [], []
    recv(sock, FRIEND, lines.append, notices.append)
    assert lines == [f"10.0.0.1 : {text}" for text in [*shown, BYE]]
    assert notices == [*told, "10.0.0.1 said Bye: the chat is over."]


def test_notice_tells_a_kind_once_a_second_in_pieces(monkeypatch):
    clock = mock.Mock(**{"monotonic.side_effect": [0.2, 1.1, 1.1, 1.3]})
    monkeypatch.setattr(udp_chat, "time", clock)
    for text in "a: 1", "a: 2", "b: 3", "a: " + "x" * 2000:
        udp_chat.notice(text)
    texts = [udp_chat.QUEUE.get(timeout=1)[0] for _ in "1234"]
    assert texts == ["* a: 1\n", "* b: 3\n", "* a: " + "x" * 1995, "xxxxx\n"]


# ---- Sockets ----
def free():  # an address where nobody listens
    with open_socket("127.0.0.1", 0) as probe:
        return probe.getsockname()


@pytest.fixture
def sock():
    with open_socket("127.0.0.1", 0) as sock:
        sock.settimeout(5)  # or the test fails
        yield sock


@pytest.mark.skipif(sys.platform != "linux", reason="others report in other ways")
def test_reports_are_told_and_stop_nothing(sock):
    peer, lines, told = free(), [], []
    sock.setsockopt(1, 8, 50_000)  # SO_RCVBUF: reports could fill it
    send(sock, peer, ["hello?"] * 200, pytest.fail)
    with open_socket(*peer) as late:
        send(sock, peer, ["first"], pytest.fail)  # not stopped by an old report
        late.settimeout(5)
        assert late.recv(99) == b"first"
        sock.sendto(b"to nobody", free())
        send(late, sock.getsockname(), [*"abc" * 20, BYE], pytest.fail)
    recv(sock, peer, lines.append, told.append)
    assert len(lines) == 61 and told[0] == LOST.format(*peer, "Connection refused")


def test_send_tells_a_refusal_and_stops_after_bye(sock):
    told = []
    send(sock, ("255.255.255.255", 9), ["a", BYE, "c"], told.append)  # needs SO_BROADCAST
    assert len(told) == 2 and "lost: it did not reach 255.255.255.255 port 9 (" in told[0]


def test_a_slip_in_a_thread_is_told_and_ends_the_chat(sock, capsys):
    ended, lines = queue.Queue(), (1 / 0 for _ in "1")
    udp_chat.start(sock, sock.getsockname(), lines, print, print, ended.put)
    assert ended.get(timeout=5) is send and "ZeroDivision" in capsys.readouterr().err


# ---- Pipes ----
def program(sock, *args):
    """Return the command of a chat with sock, and the address where it listens."""
    mine, port = sock.getsockname()[1], (address := free())[1]
    ports = f"--port {port} --send-port {mine}".split()
    return [sys.executable, udp_chat.__file__, *ports, *args], address


def test_2000_lines_wait_for_a_reader(sock):
    command, address = program(sock)
    lines = [f"line {n} é😀 {'x' * 90}" for n in range(2000)]
    with subprocess.Popen(command, **PIPES, bufsize=0) as chat:
        asked = b""
        while QUESTION.encode() not in asked:
            asked += chat.stdout.read(999)
        sock.sendto(b"Bye", address)  # of an old chat: ends nothing
        chat.stdin.write(b"0.0.0.0\n\none\r\n\xff\n")  # then Enter alone
        assert [sock.recv(99) for _ in "12"] == [b"one", rb"\xff"]
        send(sock, address, [*lines, BYE], pytest.fail)
        out, err = chat.communicate(timeout=10)
    wrong, right = out.decode().split(QUESTION)
    assert "find 0.0.0.0: " in wrong and right.splitlines() == [
        "* That is this machine.",
        f"* Chatting with 127.0.0.1 port {sock.getsockname()[1]}. Bye ends it for both.",
        *(f"127.0.0.1 : {line}" for line in [*lines, BYE]),
        "* 127.0.0.1 said Bye: the chat is over."]
    assert (chat.returncode, err) == (0, b"")


@pytest.mark.parametrize("args, says", {
    "--port 0": "0 is no port: 1 to 65535 are", "--send-port 65536": "65536 is no port",
    "--port TAKEN": "Is the chat open in another", "--ip " + "x" * 99: "Cannot listen on",
    "\x1b[2J": r"Cannot find \x1b[2J: ", "": "No friend, no chat.",
}.items())
def test_wrong_arguments_get_a_sentence(sock, args, says):
    args = args.replace("TAKEN", str(sock.getsockname()[1])).split()
    done = subprocess.run(program(sock, *args)[0], env=ENV, capture_output=True, timeout=9,
                          stdin=subprocess.DEVNULL)
    assert done.returncode and says in done.stderr.decode()
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("argv, port", {"": 1234, "--port 1": 1, "--send-port 1": 1}.items())
def test_the_port_of_the_friend(monkeypatch, argv, port):
    monkeypatch.setattr(sys, "argv", ["", *argv.split()])
    assert udp_chat.arguments().send_port == port


def test_a_notebook_is_no_terminal():  # pytest's stdout is not Python's own either
    with pytest.raises(SystemExit, match="^The chat needs a terminal: start it"):
        udp_chat.main()


@pytest.mark.parametrize("count", [0, 200], ids=["a closed pipe", "a full one and Ctrl-C"])
def test_bye_at(sock, count):
    pytest.importorskip("termios")  # Windows has no such signal or pipe
    command, address = program(sock, "127.0.0.1")
    with subprocess.Popen(command, **PIPES, bufsize=0) as chat:
        while b"Chatting" not in chat.stdout.readline():
            pass
        send(sock, address, ["x" * 1000] * count, pytest.fail)
        chat.send_signal(signal.SIGINT) if count else chat.stdout.close()
        sock.sendto(b"closed?", address)
        assert (sock.recv(99), chat.wait(5), chat.stderr.read()) == (b"Bye", 0, b"")


# ---- Terminals ----
def screen(output, columns):
    """Return the six rows of a terminal, after those that scrolled away."""
    rows, y, x, wraps = [[] for _ in range(6)], 0, 0, True
    for token in re.findall(r"\x1b\[[?\d]*\w|\x1b.|.", output, re.S):
        top = len(rows) - 6
        match re.sub(r"\d+(?=[mG])", "", token):
            case "\x1b7": place = y - top, x
            case "\x1b8": y, x = place[0] + top, place[1]
            case "\x1b[A": y = max(y - 1, top)
            case "\x1b[B": y = min(y + 1, top + 5)
            case "\x1b[G": x = int(token[2:-1]) - 1
            case "\x1b[J": rows[y:] = [rows[y][:x]] + [[] for _ in rows[y + 1:]]
            case "\x1b[L": rows[y:] = [[]] + rows[y:-1]
            case "\x1b[m": pass
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


SHELL = """trap : INT TERM; before=$(stty -g); "$@"; echo code $?
[ "$before" = "$(stty -g)" ] && echo same settings; stty -icanon min 0; cat"""  # unread
STARTED = "both.*>|>.*both"  # the terminal prints what is typed earlier
NOTICE = "* Chatting with 127.0.0.1 port 54321. Bye ends it for both."
LONG = "a long one " * 7 + "a long one end"
HALF = dict(typed="helo\x1b[D", echo="helo\b", texts=["日本" + " word" * 10, "last"],
            then="l\rBye\r", sent=[b"hello", b"Bye"])
SHORT = "127.0.0.1 : 日本" + " word" * 8
LAST = ["127.0.0.1 : last", "> hello", "> Bye"]


@table({
    "rows after 48 columns of 120": HALF | dict(
        columns=120, margin=48, rows=[SHORT + " word word", *LAST]),
    "rows after 20 columns of 80": HALF | dict(rows=[SHORT, "word word", *LAST]),
    "rows after 0 of 60": HALF | dict(columns=60, margin=0, rows=[SHORT, "word word", *LAST]),
    "rows in 20 columns": HALF | dict(columns=20, margin=0, rows=[
        SHORT[:14], *["word word word word"] * 2, "word word", *LAST]),
    "a long line whole": dict(
        typed=LONG + "\r", echo="one end\x1b[?7h", then="\x03",
        sent=[LONG.encode(), b"Bye"], rows=["<" + LONG[-51:], "> " + LONG[:78], LONG[79:]]),
    "nothing behind Bye": dict(then="Bye\rdate\r", rows=["> Bye"]),
    "the end at Ctrl-D": dict(then="\x04"),
    "the end at Ctrl-C": dict(typed="half", then="\x03\x03"),
    "the end at SIGTERM": dict(typed="half", then=15),
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
                        dimensions=(6, columns), encoding="utf-8")
    pty.logfile_read = io.StringIO()
    pty.expect(STARTED)
    pty.send(typed)
    pty.expect_exact(echo or typed)
    send(sock, address, texts, pytest.fail)
    pty.expect_exact(rows[-1] if BYE in texts else [*texts, ""][-1])
    for some in (then[:1], then[1:]) if isinstance(then, str) else ():
        pty.send(some)  # the second 0.05 s later
    if then == 15:
        os.killpg(pty.pid, 15)
    pty.read()
    output = pty.logfile_read.getvalue().replace(str(sock.getsockname()[1]), "54321")
    cyan = [row for row in rows if row[0] in "1w"]
    assert re.findall(r"\x1b\[40m\x1b\[36m(.*?)\x1b\[0m", output) == cyan
    rows = [" " * margin * (row in cyan) + row for row in rows]
    rows = [*wrap(NOTICE, columns), *rows, "code 0", "same settings", ""]
    assert screen(output, columns)[-len(rows):] == rows
    sock.sendto(b"", sock.getsockname())
    assert list(iter(lambda: sock.recv(99), b"")) == sent


def test_the_background_leaves_the_keyboard_to_the_shell(sock):
    pexpect = pytest.importorskip("termios") and pytest.importorskip("pexpect")
    bash = pexpect.spawn("/bin/bash", ["--norc"], timeout=5, env=ENV | {"HISTFILE": ""})
    for keys, answer in {
        "old=$(stty -g); " + " ".join(program(sock, "127.0.0.1")[0]) + "\r": STARTED,
        "\x1a": "Stopped",
        "bg; kill %1; wait %1; [ $old = $(stty -g) ] && echo s\\ame\r": "same",
    }.items():
        bash.send(keys)
        bash.expect(answer)
    assert sock.recv(99) == b"Bye"


# ---- The notebook ----
NOTEBOOK = pathlib.Path(__file__).with_name("walkthrough.ipynb")
CELLS = {cell["id"]: "".join(cell["source"])
         for cell in json.loads(NOTEBOOK.read_text("utf-8"))["cells"]}
ANSWERS = {  # the number of the exercise and an answer: a part of what its check says
    (2, "open_door = lambda: socket.socket(type=socket.SOCK_DGRAM)"): "not bound",
    (2, "open_door = lambda: socket.socket().bind('', 0)"): "one pair: bind((ip",
    (4, "shout = bytes.upper"): "decode, upper, encode",
    (4, "shout = lambda data: data.decode.upper()"): "brackets is missing",
    (10, "def deliver(*args):\n  while True: pass"): "does not end",
}
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


def printed(notebook):  # without ports, times and the pictures made of them
    texts = {cell.id: "".join(out.text for out in cell.get("outputs", []))
             for cell in notebook.cells}
    return {name: re.sub(r"\d[\d.]*|[█░·]+", "#", text) for name, text in texts.items()}


def test_the_notebook_prints_what_it_has_saved(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "rfc3987_syntax", None)  # checks URLs: 4 s to import
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    saved, fresh = nbformat.read(NOTEBOOK, 4), nbformat.read(NOTEBOOK, 4)
    nbformat.validate(saved)
    nbclient.NotebookClient(fresh, timeout=60, kernel_name="python3",
                            resources={"metadata": {"path": NOTEBOOK.parent}}).execute()
    assert printed(fresh) == printed(saved) or sys.platform != "linux"  # where it was saved
