"""Tests of udp_chat.py on real sockets, pipes and pseudo-terminals; then of the notebook."""
import json
import os
import pathlib
import queue
import re
import signal
import socket
import subprocess
import sys
from unittest import mock

import pytest

import udp_chat
from udp_chat import BYE, MAX_DATAGRAM, RESET, open_socket, recv, safe, send, wrap

ENV = {**os.environ, "TERM": "xterm", "PYTHONUTF8": "1", "COLUMNS": "300"}  # COLUMNS is wrong
ENV.pop("NO_COLOR", None)
ENV.pop("FORCE_COLOR", None)
PIPES = dict.fromkeys(["stdin", "stdout", "stderr"], subprocess.PIPE) | {"env": ENV}

# ---- The tables ------------------------------------------------------------------------------
FAMILY, PERSIAN, REMOTE = "👨‍👩‍👧", "می‌خواهم", ("10.0.0.1", 1234)
TEXTS = [  # a function, a text and perhaps a width, and the result
    (safe, ["日😀" + FAMILY + PERSIAN], "日😀" + FAMILY + PERSIAN),  # these do nothing
    (safe, ["a\nb\rc\td"], r"a\nb\rc\td"),  # would forge a row, or write over one
    (safe, ["\x1b[2J\x7f\x9b\0"], r"\x1b[2J\x7f\x9b\x00"),  # Escape and others that act
    (safe, ["\u202e\u2028\U000e0041"], r"\u202e\u2028\U000e0041"),  # direction, row, hidden
    (wrap, ["", 20], [""]),
    (wrap, ["the quick brown fox", 12], ["the quick", "brown fox"]),  # cut at a space
    (wrap, ["x" * 25, 11], ["x" * 10, "x" * 10, "x" * 5]),  # there is none
    (wrap, ["日本語日本語", 5], ["日本", "語日", "本語"]),  # two columns each
    (wrap, ["ab", 0], ["a", "b"]),  # a window that says that it has no columns
]
PIECES = [  # a text, the most bytes of a datagram, and how many it makes
    ("", MAX_DATAGRAM, 0),  # an empty line is not sent
    ("x" * 1024 + BYE, MAX_DATAGRAM, 2),  # the rest must not say Bye
    ("日é" * 2000, MAX_DATAGRAM, 16),  # three bytes and two, never cut inside
    ("😀" * 257, MAX_DATAGRAM, 2),  # four
    ("\udcff" * 400, MAX_DATAGRAM, 4),  # a byte that is no letter on this keyboard
    ("a😀", 3, 2),  # no room for one character: an end all the same
]
COMMAND = ("Not shown: a message from 10.0.0.1 port 5555. If that is your friend, "
           "start again:\npython udp_chat.py 10.0.0.1 --port 4321 --send-port 5555")
HI, WRONG = (b"hi", REMOTE), (b"Bye", (REMOTE[0], 5555))
CLOSED, LARGE = ConnectionResetError(10054, "reset"), OSError(90, "Message too long")
STRANGERS = [(b"Bye", (f"10.0.9.{n // 2}", 7)) for n in range(60)]
RECEIVED = [  # what a socket gives, what is shown of it, and how the notices begin
    ([(b"", REMOTE)], [""], []),  # an empty datagram is a message
    ([(b"caf\xe9 \xff", REMOTE)], [r"caf\xe9 \xff"], []),  # not UTF-8
    ([(b" from nc  \n", REMOTE)], [" from nc  "], []),  # Enter is nc's, blanks the friend's
    ([(b"hi\n10.0.0.9 : x", REMOTE)], [r"hi\n10.0.0.9 : x"], []),  # no second row
    ([(b"Bye bye", REMOTE)], ["Bye bye"], []),  # not the word that ends
    ([CLOSED, CLOSED, LARGE], [], ["Nobody listens at 10.0.0.1", "Message too long at"]),
    ([CLOSED, HI, CLOSED], ["hi"], ["Nobody listens"] * 2),  # it was there meanwhile
    ([*STRANGERS, WRONG, WRONG], [], ["Not shown: a message from 10.0.9."] * 8 + [COMMAND]),
    ([(b"Bye", (REMOTE[0], 0))], [], []),  # nobody can reply to port 0
]
WRONG_ARGUMENTS = [  # and a part of the sentence
    (["--port", "x"], "invalid int value"),
    (["--port", "70000"], "port must be 0-65535"),
    (["--port", "TAKEN"], "open in another terminal"),
    (["--ip", "x" * 99], "or no --ip"),  # longer than a name may be
    (["no.such.host.invalid"], "Cannot reach no.such.host.invalid"),
    (["\x1b[2J"], r"Cannot reach \x1b[2J"),  # our own sentences are safe, too
    (["192.168.1"], "Cannot reach 192.168.1 "),  # would be 192.168.0.1
    (["::1"], "IPv4 address"),
    (["localhost", "--send-port", "70000"], "65535 at most"),
]
ANSWERS = [  # exercise, answer, and a part of what its check says
    (2, "open_door = lambda: socket.socket(type=socket.SOCK_DGRAM)", "did you bind it"),
    (2, "open_door = lambda: new_socket().bind('127.0.0.1', 0)", "one pair: bind((ip"),
    (3, "port, send_port = 6000, 5000", "crossed over"),
    (3, "port, send_port = '5000', 6000", "without quotes"),
    (4, "shout = bytes.upper", "still lower case"),
    (4, "shout = lambda data: data.decode().swapcase().encode()", "for Zoë it returns zOË"),
    (5, "in_order = lambda got: sorted({d.decode().split(':', 1)[1] for d in got})", "both"),
    (5, "in_order = lambda got: [d.decode().split(':') for d in got]", "only the texts"),
    (5, "in_order = lambda got: ['é', 'no', 'no', '4:1']", "have to make a, b"),
    (6, "receive_or_none = lambda sock, seconds: sock.recv(9)", "catch the TimeoutError"),
    (6, "def receive_or_none(sock, seconds):\n  while True: pass", "it does not end: a loop"),
    (7, "ask_all = lambda socks: [sock.recvfrom(9)[0] for sock in socks]", "one after"),
    (8, "numbered = lambda show: lambda text: show('1 ' + text)", "count outside"),
    (7, "ask_all = lambda socks: [b'c', b'a', b'b']", "from two sockets"),
    (9, "command = 'copy udp_chat.py 127.0.0.1 --port 6000 --send-port 5000'", "begins with"),
    (9, "command = 'uv run udp_chat.py 127.0.0.1 --port 6000 --send-port 5000'", "right"),
    (9, "command = '$ py udp_chat.py localhost --send=5000 --port 6000'", "right"),
    (10, "deliver = lambda sock, peer, n, text: sock.sendto(b'0:a', peer) or 1", "until b'ack"),
]
ROWS, HALF = ["日本" * 9, "a long one " * 6, FAMILY * 9, "last"], "helo\x1b[D"  # a cursor key
TERMINAL = [  # columns; typed; friend's texts; shown; typed then; sent; the end of the output
    (80, HALF, ROWS, "last", "l\rBye\r", [b"hello", b"Bye"], "lo\b\n> Bye\n"),  # no more
    (20, HALF, ROWS, "one a\x1b.*last", "l\rBye\r", [b"hello", b"Bye"], "lo\b\n> Bye\n"),
    (80, "", [], "", "Bye\rdate\r", [b"Bye"], "Bye\n"),  # the rest is not for the shell
    (80, "", [], "", "\x04", [b"Bye"], "\n"),  # Ctrl-D
    (80, "", [], "", "\x03", [b"Bye"], "\n"),  # Ctrl-C
    (80, "", [], "", "\x03\x03", [b"Bye"], "\n"),
    (80, "", [], "", "\x1c", [b"Bye"], "\n"),  # Ctrl-\
    (80, "half a line", [], "", "\x03", [b"Bye"], "\n"),
    (80, "", [], "", signal.SIGTERM, [b"Bye"], "\n"),
    (80, "", [BYE], "over.*\n", "date\r", [], ""),  # meant for the friend
    (80, "wor", [BYE], "over.*\n", "date\r", [], ""),
]
SHELL = """trap : INT QUIT TERM; before=$(stty -g); "$@"; echo code $?
[ "$before" = "$(stty -g)" ] && echo same settings; stty -icanon min 0; cat  # unread keys"""


# ---- The functions ---------------------------------------------------------------------------
@pytest.mark.parametrize("function, arguments, result", TEXTS)
def test_text(function, arguments, result):
    assert function(*arguments) == result


@pytest.mark.parametrize("text, most, count", PIECES)
def test_datagrams(monkeypatch, text, most, count):
    monkeypatch.setattr(udp_chat, "MAX_DATAGRAM", most)
    pieces = [data.decode() for data in udp_chat.datagrams(text)]
    assert len(pieces) == count and BYE not in pieces
    assert "".join(pieces).encode() == text.encode(errors="backslashreplace")


@pytest.fixture
def ends():
    """Two bound sockets; a wait of 5 seconds fails the test."""
    with open_socket("127.0.0.1", 0) as one, open_socket("127.0.0.1", 0) as two:
        one.settimeout(5)
        two.settimeout(5)
        yield one, two


@pytest.mark.parametrize("events, shown, notices", RECEIVED)
def test_recv(events, shown, notices):
    sock = mock.Mock(**{"recvfrom.side_effect": [*events, (b"Bye\n", REMOTE)]})
    sock.getsockname.return_value = ("0.0.0.0", 4321)
    lines, told = [], []
    recv(sock, REMOTE, lines.append, told.append)
    assert lines == [f"10.0.0.1 : {text}" for text in [*shown, BYE]]
    assert told.pop() == "10.0.0.1 said Bye: the chat is over."
    assert [text[:len(start)] for text, start in zip(told, notices, strict=True)] == notices


@pytest.mark.skipif(sys.platform != "linux", reason="other systems report in other ways")
def test_reports(ends):
    (one, two), peer = ends, ends[1].getsockname()
    two.close()
    assert one.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) > 212_992  # the usual bytes
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 50_000)
    send(one, peer, ["hello?"] * 200, pytest.fail)  # reports that could fill it
    with open_socket(*peer) as late:
        send(one, peer, ["first"], pytest.fail)  # sent, and no old report raised in its place
        assert late.recv(99) == b"first"
        one.sendto(b"to nobody", ("127.0.0.1", 9))
        send(late, one.getsockname(), [*map(str, range(50)), BYE], pytest.fail)
    lines, told = [], []
    recv(one, peer, lines.append, told.append)
    assert len(lines) == 51 and told[0] == f"Nobody listens at 127.0.0.1 port {peer[1]}"
    one.close()
    with pytest.raises(OSError):  # and does not go on for ever
        recv(one, peer, print, print)


def test_errors_in_send(ends):
    told = queue.Queue()
    send(ends[0], ("255.255.255.255", 9), ["a\tb", BYE, "c"], told.put)  # needs SO_BROADCAST
    assert [told.get(timeout=5).split("): ")[1] for _ in range(2)] == [r"a\tb", BYE]
    udp_chat.start(ends[0], ends[1].getsockname(), map(int, "x"), *[told.put] * 3)
    assert "An error in send ended the chat: ValueError" in told.get(timeout=5)
    assert told.get(timeout=5) == 1  # the exit code
    ends[1].sendto(b"Bye", ends[0].getsockname())  # ends the other thread


# ---- The program, in pipes -------------------------------------------------------------------
def program(sock, *args):
    """Return the command line of a program whose friend is sock, and where it listens."""
    with open_socket("127.0.0.1", 0) as probe:
        address = probe.getsockname()
    ports = ["--port", str(address[1]), "--send-port", str(sock.getsockname()[1])]
    return [sys.executable, udp_chat.__file__, *ports, *args], address


def test_pipes(ends):
    command, address = program(ends[0])
    lines = [f"line {n} é😀 {'x' * 90}" for n in range(2000)]
    with subprocess.Popen(command, **PIPES) as chat:
        start = [chat.stdout.readline() for _ in "12"]
        send(ends[0], address, ["old", BYE], pytest.fail)  # which ends nothing
        chat.stdin.write(b"\none\r\n\xff\n" + b"x" * 1500 + b"\n")  # Enter alone: this machine
        chat.stdin.flush()
        assert [ends[0].recv(2000) for _ in "123"] == [b"one", rb"\xff", b"x" * 750]
        send(ends[0], address, [*lines, BYE], pytest.fail)  # nobody reads yet: a slow screen
        out, err = chat.communicate(timeout=10)
    assert b"Listening" in start[0] and b"Enter the IP of person" in start[1]
    words = [line.split(" : ", 1)[-1] for line in out.decode().splitlines()]
    assert words[1:] == ["old", BYE, *lines, BYE, "* 127.0.0.1 said Bye: the chat is over."]
    assert (chat.returncode, err) == (0, b"")


@pytest.mark.parametrize("args, sentence", WRONG_ARGUMENTS)
def test_wrong_arguments(ends, args, sentence):
    taken = str(ends[0].getsockname()[1])
    command = program(ends[0], *(taken if arg == "TAKEN" else arg for arg in args))[0]
    done = subprocess.run(command, env=ENV, capture_output=True, timeout=10)
    assert sentence in done.stderr.decode() and b"Traceback" not in done.stderr


@pytest.mark.parametrize("count", [1, 200])  # into a closed pipe; more than a pipe holds
def test_nobody_reads(ends, count):
    pytest.importorskip("termios")  # Windows has no such signal or pipe
    command, address = program(ends[0], "127.0.0.1")
    with subprocess.Popen(command, **PIPES) as chat:
        assert b"Listening" in chat.stdout.readline() and b"Chatting" in chat.stdout.readline()
        if count == 1:
            chat.stdout.close()
        send(ends[0], address, ["x" * 1000] * count, pytest.fail)
        if count > 1:
            chat.send_signal(signal.SIGINT)
        assert ends[0].recv(99) == b"Bye" and chat.wait(5) == 0
        assert chat.stderr.read() == b""


# ---- The program, in a terminal --------------------------------------------------------------
@pytest.mark.parametrize("columns, typed, texts, shown, then, sent, end", TERMINAL)
def test_terminal(ends, columns, typed, texts, shown, then, sent, end):
    pytest.importorskip("termios")  # not on Windows
    pexpect = pytest.importorskip("pexpect")  # comes along with jupyter
    command, address = program(ends[0])
    pty = pexpect.spawn("/bin/sh", ["-c", SHELL, "sh", *command], timeout=5,
                        env=ENV, dimensions=(5, columns), encoding="utf-8")
    pty.delaybeforesend = None
    pty.expect_exact("chat with : ")
    pty.send("127.0.0.1\r")
    pty.expect("33m.*both.*>|>.*33m.*both")  # the prompt, and the first notice in yellow
    pty.send(typed)
    pty.expect_exact(typed.replace("\x1b[D", "\b"))
    send(ends[0], address, texts, pytest.fail)
    pty.expect(shown)
    if isinstance(then, str):
        pty.send(then)
    else:
        os.killpg(pty.pid, then)
    assert [ends[0].recv(99) for _ in sent] == sent
    printed = pty.read().replace("\r\n", "\n").replace("\r\x1b[6G", "")  # libedit's cursor
    assert printed.endswith(end + RESET + "code 0\nsame settings\n")


# ---- The notebook ----------------------------------------------------------------------------
NOTEBOOK = pathlib.Path(__file__).with_name("walkthrough.ipynb")
CELLS = {cell["id"]: "".join(cell["source"])
         for cell in json.loads(NOTEBOOK.read_text("utf-8"))["cells"]}
GIVEN = {6: ["s6-measure"], 7: ["s7-slow", "s7-watch"], 9: ["s9-words", "s9-understood"],
         10: ["s10-lossy", "s10-friend", "s10-answers"]}
for n in range(2, 11):
    text = next(text for text in CELLS.values() if f"**Exercise {n}.**" in text)
    ANSWERS.append((n, re.search("```python\n(.*?)```", text, re.S)[1], "right"))
    ANSWERS.append((n, CELLS[f"s{n}-try"], "the three dots are still there"))


@pytest.mark.parametrize("n, answer, says", ANSWERS)
def test_exercise(n, answer, says, capsys):
    names = {"__name__": "__main__"}
    for source in [CELLS["setup"], *(CELLS[name] for name in GIVEN.get(n, [])), answer]:
        exec(source, names)
    exec(CELLS[f"s{n}-try-check"], names)
    assert says in capsys.readouterr().out


def printed(notebook):  # without the ports
    return {cell.id: re.sub(r"\d{3,5}", "#", "".join(out.text for out in cell.outputs))
            for cell in notebook.cells if cell.cell_type == "code"}


def test_notebook(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "rfc3987_syntax", None)  # checks URLs: 4 s to import
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    saved, fresh = nbformat.read(NOTEBOOK, 4), nbformat.read(NOTEBOOK, 4)
    nbformat.validate(saved)
    nbclient.NotebookClient(fresh, timeout=60, kernel_name="python3",
                            resources={"metadata": {"path": NOTEBOOK.parent}}).execute()
    assert printed(fresh) == printed(saved) or sys.platform != "linux"  # where it was saved
