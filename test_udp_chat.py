"""Tests of udp_chat.py on real sockets, pipes, pseudo-terminals and, where the system lets us, two hosts."""
import contextlib
import json
import os
import pathlib
import queue
import re
import select
import socket
import subprocess
import sys
import threading
from unittest import mock

import pytest

import udp_chat
from udp_chat import BYE, MAX_DATAGRAM, columns, datagrams, recv, safe, send, wrap

try:
    import fcntl
    import pty
    import struct
    import termios
except ImportError:
    pty = None

HERE = pathlib.Path(__file__).parent
CHAT = [sys.executable, str(HERE / "udp_chat.py")]
LINUX = pytest.mark.skipif(not udp_chat.IP_RECVERR, reason="only Linux reports this so")
PTY = pytest.mark.skipif(pty is None, reason="this system has no pseudo-terminals")
FAMILY, PERSIAN, ACCENT = "👨‍👩‍👧", "می‌خواهم", "e\u0301"


# ---- Text ------------------------------------------------------------------------------------

@pytest.mark.parametrize("text, shown", [
    ("plain é 日本 😀", "plain é 日本 😀"), (FAMILY, FAMILY), (PERSIAN, PERSIAN), (ACCENT, ACCENT),
    ("\x1b[2J", r"\x1b[2J"), ("a\nb\rc\td", r"a\nb\rc\td"), ("\x7f\x9b\0", r"\x7f\x9b\x00"),
    ("\u202egnp", r"\u202egnp"), ("\u2028\u2066\U000e0041", r"\u2028\u2066\U000e0041")])
def test_safe(text, shown):
    assert safe(text) == shown


@pytest.mark.parametrize("text", ["", "hi", "é" * 5000, "日本" * 999, "😀" * 257, "x" * 1024 + BYE, "\udcff"])
def test_datagrams(text):
    pieces = list(datagrams(text))
    assert "".join(piece.decode() for piece in pieces) == text.replace("\udcff", r"\udcff")
    assert all(0 < len(piece) <= MAX_DATAGRAM and piece != BYE.encode() for piece in pieces)


@pytest.mark.parametrize("text", ["", " " + "日" * 99, "to be or not to be " * 9, "日本語" * 40, "x" * 99, FAMILY * 20, "❤\ufe0f" * 30])
@pytest.mark.parametrize("width", [2, 20, 33])
def test_wrap(text, width):
    rows = wrap(text, width)
    assert "".join(rows) == text
    assert all(sum(map(columns, row)) <= width for row in rows)


@pytest.mark.parametrize("text, width", [("a", 1), ("日", 2), ("👋", 2), (ACCENT, 1), ("❤\ufe0f", 2), ("می\u200c", 2)])
def test_columns(text, width):
    assert sum(map(columns, text)) == width


def test_wrap_words():
    assert wrap("the quick brown fox", 11) == ["the quick ", "brown fox"]


# ---- recv and send, between two sockets ------------------------------------------------------

@pytest.fixture
def ends():
    """Two bound sockets; one that does not answer in 5 seconds fails its test."""
    with udp_chat.open_socket("127.0.0.1", 0) as one, udp_chat.open_socket("127.0.0.1", 0) as two:
        one.settimeout(5)
        two.settimeout(5)
        yield one, two


@contextlib.contextmanager
def receiving(sock, peer):
    """Run recv in a thread and yield the lists it fills; on leaving, wait until it has seen its Bye."""
    shown, notices = [], []
    thread = threading.Thread(target=recv, args=(sock, peer, shown.append, notices.append), daemon=True)
    thread.start()
    yield shown, notices
    thread.join(5)
    assert not thread.is_alive()


@pytest.mark.parametrize("data, shown", [
    ("héllo 日本 😀".encode(), "héllo 日本 😀"), (b"", ""), (b"caf\xe9 \xff", r"caf\xe9 \xff"), (b"from nc\n", "from nc"),
    (b"hi\n10.0.0.9 : forged", r"hi\n10.0.0.9 : forged"), (b"\x1b]0;title\x07", r"\x1b]0;title\x07"),
    (b"x" * 65_507, "x" * 65_507), (b"bye", "bye"), (b"Bye bye", "Bye bye")])
def test_recv(ends, data, shown):
    one, two = ends
    with receiving(one, two.getsockname()) as (lines, notices):
        two.sendto(data, one.getsockname())
        two.sendto(b"Bye\n", one.getsockname())
    assert lines == ["127.0.0.1 : " + shown, "127.0.0.1 : Bye"] and notices == []


def test_both_ways(ends):
    one, two = ends
    with receiving(one, two.getsockname()) as (left, _), receiving(two, one.getsockname()) as (right, _):
        send(one, two.getsockname(), ["", "hello", "x" * 3000], print)
        send(two, one.getsockname(), ["hi", BYE, "too late"], print)
    assert [line.split(" : ")[1] for line in left] == ["hi", BYE]
    words = [line.split(" : ")[1] for line in right]
    assert words[0] == "hello" and "".join(words[1:]) == "x" * 3000 + BYE


def test_strangers(ends):
    one, two = ends
    with receiving(one, two.getsockname()) as (shown, notices):
        for _ in range(30):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
                stranger.sendto(b"I am your friend", one.getsockname())
                stranger.sendto(b"Bye", one.getsockname())
        two.sendto(b"Bye", one.getsockname())
    assert shown == ["127.0.0.1 : Bye"]
    assert len(notices) == len(set(notices)) == udp_chat.STRANGERS and "--send-port" in notices[0]


@LINUX
def test_nobody_listens(ends):
    one, two = ends
    peer, shown, notices = two.getsockname(), queue.Queue(), queue.Queue()
    two.close()
    threading.Thread(target=recv, args=(one, peer, shown.put, notices.put), daemon=True).start()
    send(one, peer, ["hello?"] * 400, notices.put)  # as many error reports as would fill the receive buffer
    assert "Nobody listens" in notices.get(timeout=1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as late:
        late.bind(peer)
        for text in (*map(str, range(50)), BYE):
            late.sendto(text.encode(), one.getsockname())
    assert [shown.get(timeout=5) for _ in range(51)][-1] == "127.0.0.1 : Bye"
    assert notices.empty()


def test_closed(ends):
    ends[0].close()
    assert recv(ends[0], ends[1].getsockname(), print, pytest.fail) is None


def test_windows():
    """Windows reports from recvfrom; here a stand-in for the socket does."""
    peer, shown, notices = ("10.0.0.1", 1234), [], []
    reset, long = ConnectionResetError(10054, "reset"), OSError(10040, "too long")
    events = [reset, reset, long, (b"hi", peer), long, (b"Bye", peer)]
    recv(mock.Mock(**{"recvfrom.side_effect": events}), peer, shown.append, notices.append)
    assert shown == ["10.0.0.1 : hi", "10.0.0.1 : Bye"]
    assert len(notices) == 3 and "Nobody listens" in notices[0] and notices[1] == notices[2]


@LINUX
def test_late_report_costs_no_line(ends):
    one, two = ends
    peer = two.getsockname()
    two.close()
    one.sendto(b"to nobody", peer)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as late:
        late.settimeout(5)
        late.bind(peer)
        send(one, peer, ["hello"], pytest.fail)
        assert late.recv(99) == b"hello"


def test_not_sent(ends):
    notices = []
    send(ends[0], ("255.255.255.255", 9), ["lost"], notices.append)  # forbidden without SO_BROADCAST
    assert [notice.split(": ")[1] for notice in notices] == ["lost", BYE]


# ---- The program, in pipes -------------------------------------------------------------------

def free_port():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def start(*args, env=None, before=(), **pipes):
    pipes = pipes or {name: subprocess.PIPE for name in ("stdin", "stdout", "stderr")}
    keep = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    process = subprocess.Popen([*before, *CHAT, *map(str, args)], env={**keep, "TERM": "xterm", "PYTHONIOENCODING": "utf-8", **(env or {})}, **pipes)
    watchdog = threading.Timer(20, process.kill)  # no test waits for ever
    watchdog.daemon = True
    watchdog.start()
    return process


def test_pipes_lose_nothing():
    here, there = free_port(), free_port()
    receiver = start("127.0.0.1", "--port", there, "--send-port", here)
    lines = [receiver.stdout.readline(), receiver.stdout.readline()]  # now it listens
    sender = start("127.0.0.1", "--port", here, "--send-port", there)
    sender.communicate("".join(f"line {n} é😀\n" for n in range(2000)).encode(), timeout=20)
    out, err = receiver.communicate(timeout=10)
    words = [f"127.0.0.1 : line {n} é😀" for n in range(2000)] + ["127.0.0.1 : Bye"]
    assert out.decode().splitlines() == words and err == b""
    assert b"\x1b" not in b"".join(lines) and (sender.returncode, receiver.returncode) == (0, 0)


def test_alone():
    port = free_port()
    with start("--port", port, "--send-port", port) as chat:
        out, err = chat.communicate(b"192.168.1\n\n" + b"hello me\n" * 200 + b"\xff\xfe\n", timeout=10)
    out = out.decode()
    assert chat.returncode == 0 and err == b"" and "Enter the IP of person" in out and "No way to 192.168.1 " in out
    assert out.count("hello me") == 200 and out.splitlines()[-3:] == ["127.0.0.1 : hello me", r"127.0.0.1 : \xff\xfe", "127.0.0.1 : Bye"]


@pytest.mark.parametrize("args, code, sentence", [
    (["--port", "70000"], 2, "70000 is not a port"), (["--send-port", "x"], 2, "x is not a port"),
    (["--ip", "192.0.2.77"], 1, "Cannot listen on 192.0.2.77"), (["--ip", "é" * 99], 1, "leave --ip out"),
    (["no.such.host.invalid"], 1, "No way to no.such.host.invalid"), (["x" * 99], 1, "No way to xxx"),
    (["192.168.1"], 1, "No way to 192.168.1 "),
    (["--port", "TAKEN"], 1, "choose another --port")])
def test_errors(ends, args, code, sentence):
    taken = ends[0].getsockname()[1]
    with start("--port", free_port(), *(taken if arg == "TAKEN" else arg for arg in args)) as chat:
        out, err = chat.communicate(timeout=10)
    assert chat.returncode == code and sentence in err.decode() and b"Traceback" not in err


def test_output_closed(ends):
    port = free_port()
    chat = start("127.0.0.1", "--port", port, "--send-port", ends[0].getsockname()[1])
    chat.stdout.readline(), chat.stdout.readline()
    chat.stdout.close()
    ends[0].sendto(b"nobody reads this", ("127.0.0.1", port))
    assert ends[0].recv(99) == BYE.encode() and chat.wait(5) == 0 and chat.stderr.read() == b""


# ---- The program, in a terminal --------------------------------------------------------------

def screen(raw, cols=80, rows=24):
    """Return the rows that a terminal shows after raw, for the sequences that the chat and readline use."""
    grid, x, y, saved, wraps = [[" "] * cols for _ in range(rows)], 0, 0, (0, 0), True
    for arg, code, esc, char in re.findall(r"\x1b\[([?0-9;]*)([@-~])|\x1b(.)|(.)", raw, re.S):
        n = int(arg) if arg.isdecimal() else 1
        full = x == cols and char >= " "
        if full:
            x, full = (0, True) if wraps else (cols - 1, False)
        if esc == "D" or char == "\n" or full:
            y += 1
            if y == rows:
                y, grid = y - 1, [*grid[1:], [" "] * cols]
        if arg == "?7":
            wraps = code == "h"
        elif esc == "7":
            saved = x, y
        elif esc == "8":
            x, y = saved
        elif code == "L":
            grid[y:] = [[" "] * cols, *grid[y:-1]]
        elif code in tuple("@PK"):
            blank = [" "] * (cols if code == "K" else n)
            grid[y][x:] = ([*blank, *grid[y][x:]] if code == "@" else [*grid[y][x + n:], *blank] if code == "P" else blank)[:cols - x]
        elif code in tuple("ABCD") or char == "\b":
            dx, dy = {"A": (0, -n), "B": (0, n), "C": (n, 0)}.get(code, (-n, 0))
            x, y = x + dx, min(max(0, y + dy), rows - 1)
        elif char == "\r":
            x = 0
        elif char >= " ":
            grid[y][x] = char
            x += 1
    return ["".join(row).rstrip() for row in grid]


class Terminal:
    """The program on a pseudo-terminal; raw is all it has printed, sock the friend."""

    def __init__(self, sock, cols=80, rows=24, ready="> $", **options):
        self.sock, self.port, self.data, self.size, self.ready = sock, free_port(), b"", (cols, rows), ready
        self.master, self.tty = pty.openpty()
        fcntl.ioctl(self.tty, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))
        self.before = termios.tcgetattr(self.tty)
        self.process = start("127.0.0.1", "--port", self.port, "--send-port", sock.getsockname()[1],
                             stdin=self.tty, stdout=self.tty, stderr=self.tty, start_new_session=True,
                             preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0), **options)

    def __enter__(self):
        return self.until(self.ready)

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.tty)

    @property
    def raw(self):
        return self.data.decode(errors="replace")

    def until(self, pattern):
        """Read until pattern is what the screen's text ends with or has; at most 5 seconds."""
        while not re.search(pattern, self.raw):
            assert select.select([self.master], [], [], 5)[0], f"never saw {pattern}: {self.raw!r}"
            self.data += os.read(self.master, 65536)
        return self

    def type(self, text):
        os.write(self.master, text.encode())
        return self

    def hear(self, text):
        self.sock.sendto(text.encode(), ("127.0.0.1", self.port))
        return self

    def ends_well(self):
        assert self.process.wait(5) == 0 and termios.tcgetattr(self.tty) == self.before
        while select.select([self.master], [], [], 0)[0]:
            self.data += os.read(self.master, 65536)
        assert "Traceback" not in self.raw and "Fatal" not in self.raw
        return screen(self.raw, *self.size)


@PTY
@pytest.mark.parametrize("cols, rows", [(80, 24), (20, 5)])
def test_typed_line(ends, cols, rows):
    with Terminal(ends[0], cols, rows) as chat:
        chat.type("helo\x1b[D").until("helo")
        for text in ("one", "日本語" * 9, "a long message " * 6, FAMILY * 9):
            chat.hear(text)
        chat.hear("last").until("last")
        assert screen(chat.raw, cols, rows)[-1 if rows == 5 else 12:][-12:].count("> helo") == 1
        chat.type("l\n")
        assert ends[0].recv(99) == b"hello"
        rows_shown = screen(chat.until(r"\n> $").raw, cols, rows)
        assert "> hello" in rows_shown and any("last" in row for row in rows_shown)


@PTY
@pytest.mark.parametrize("keys", ["Bye\n", "\x03", "\x04", "half\x03", "half a line"])
@pytest.mark.parametrize("hidden", ["", "readline termios"])
def test_leaving(ends, tmp_path, keys, hidden):
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nfor name in {hidden.split()}: sys.modules[name] = None")
    with Terminal(ends[0], env={"PYTHONPATH": str(tmp_path)}) as chat:
        chat.type(keys)
        if keys == "half a line":
            chat.until(keys).hear(BYE)
        else:
            assert ends[0].recv(99) == BYE.encode()
        shown = chat.ends_well()
        if keys == "half a line":
            assert "> half a line" in shown and chat.raw.endswith("\n")


@PTY
def test_long_line(ends):
    text = "\t".join(["a long line"] * 9) + "é日本語" * 20
    with Terminal(ends[0], 40) as chat:
        chat.type(text).until("日本語").hear("arrives meanwhile").until("meanwhile")
        rows = [row for row in screen(chat.raw, 40) if row]
        assert "meanwhile" in rows[-2] and "a long" not in "".join(rows)
        chat.type("\n").until(r"語\x1b[^\r]*> $")
        assert ends[0].recv(999).decode() == text
        rows = screen(chat.raw, 40)
    assert "".join(rows).replace(" ", "").endswith(("> " + safe(text)).replace(" ", "") + ">")
    assert sum("arrives meanwhile" in row for row in rows) == 1


@PTY
def test_letters_that_the_locale_lacks(ends):
    with Terminal(ends[0], env={"PYTHONIOENCODING": "latin-1"}) as chat:
        chat.hear("Привет, как дела? end").until("end").hear(BYE)
        rows = chat.ends_well()
    assert r"\u041f\u0440\u0438\u0432" in "".join(row.strip() for row in rows)


@PTY
def test_interrupted_paste(ends):
    with Terminal(ends[0]) as chat:
        chat.type("words without an end " * 150 + "\x03")
        assert ends[0].recv(99) == BYE.encode()
        chat.ends_well()


@PTY
def test_bye_at_every_moment(ends):
    for n in range(30):
        with Terminal(ends[0]) as chat:
            chat.type("words\n" * (n % 4) + "wor" * (n % 3)).hear(BYE).ends_well()


@PTY
@pytest.mark.parametrize("env, escapes", [({}, "\x1b[36m"), ({"NO_COLOR": "1"}, "\x1b[L"), ({"TERM": "dumb"}, "")])
def test_colours(ends, env, escapes):
    with Terminal(ends[0], ready="Chatting", env=env) as chat:  # a dumb terminal shows no prompt
        chat.hear("hi \x1b[0m").until("hi").hear(BYE).ends_well()
    assert escapes in chat.raw and (escapes or "\x1b" not in chat.raw)
    assert ("\x1b[36m" in chat.raw) == (env == {}) and r"127.0.0.1 : hi \x1b[0m" in chat.raw


# ---- Two hosts ------------------------------------------------------------------------------

@pytest.fixture
def hosts():
    """Two network namespaces with the article's addresses and a cable between them."""
    names = [f"chat{os.getpid()}{end}" for end in "ab"]
    def ip(*args):
        return subprocess.run(["ip", *args], capture_output=True, check=True)
    try:
        ip("netns", "add", names[0])
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"network namespaces are not to be had here: {error}")
    try:
        ip("netns", "add", names[1])
        ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        for name, address in zip(names, ("192.168.1.4/24", "192.168.1.5/24")):
            ip("-n", name, "address", "add", address, "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
        yield names, ip
    finally:
        for name in names:
            ip("netns", "delete", name)


def test_two_hosts(hosts):
    names, ip = hosts
    chats = [start(before=("ip", "netns", "exec", name)) for name in names]
    def tell(chat, text):
        chat.stdin.write(text.encode() + b"\n")
        chat.stdin.flush()
    for chat, own, other in zip(chats, "45", "54"):
        assert f"tell your friend: 192.168.1.{own}" in chat.stdout.readline().decode()
        tell(chat, "192.168.1." + other)
        assert b"Enter the IP" in chat.stdout.readline() and b"Chatting" in chat.stdout.readline()
    tell(chats[0], "hello")
    assert chats[1].stdout.readline() == b"192.168.1.4 : hello\n"
    ip("-n", names[1], "link", "set", "cable", "down")
    tell(chats[1], "into the void")
    assert re.match(rb"\* Not sent \(.*\): into the void\n", chats[1].stdout.readline())
    ip("-n", names[1], "link", "set", "cable", "up")
    tell(chats[1], "back again")
    assert chats[0].stdout.readline() == b"192.168.1.5 : back again\n"
    chats[0].stdin.close()
    assert chats[1].stdout.readline() == b"192.168.1.4 : Bye\n"
    assert [chat.wait(5) for chat in chats] == [0, 0] and chats[0].stderr.read() + chats[1].stderr.read() == b""


# ---- The notebook ---------------------------------------------------------------------------

NOTEBOOK = HERE / "walkthrough.ipynb"
CELLS = {cell["id"]: "".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text("utf-8"))["cells"]}
GIVEN = {8: ["s8-play-def"], 10: ["s10-relay", "s10-acknowledge", "s10-carry"]}  # cells that a check needs
WRONG = {  # for each exercise a wrong answer, and a word of what its check says about it
    2: ("def open_door():\n    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)", "did you bind it"),
    3: ("port, send_port = 6000, 5000", "crossed over"),
    4: ("def shout(data):\n    return data.decode().upper()", "did you encode it"),
    5: ("def in_order(cards):\n    return [data.decode().split(':', 1)[1] for data in cards]", "came twice"),
    6: ("def receive_or_none(sock, seconds):\n    sock.settimeout(seconds)\n    try:\n        return sock.recvfrom(9)\n"
        "    except TimeoutError:\n        return None", "part of the pair"),
    7: ("def ask_all(socks):\n    return [sock.recvfrom(9)[0] for sock in socks]", "one after the other"),
    8: ("def numbered(show):\n    return lambda text: show('0 ' + text)", "the first should be"),
    9: ("command = 'python udp_chat.py 127.0.0.1 --port 5000 --send-port 6000'", "taken"),
    10: ("deliver = lambda sock, peer, number, text: sock.sendto(f'{number}:{text}'.encode(), peer) and 1", "send again")}


@pytest.mark.parametrize("n", WRONG)
def test_exercise(n, capsys):
    pytest.importorskip("IPython")
    stub, mark, check = CELLS[f"s{n}-try"].partition("# ---- the check")
    solution = re.findall(r"```python\n(.*?)```", "\n".join(text for name, text in CELLS.items() if f"Exercise {n}." in text), re.S)[-1]
    names = {"__name__": "__main__"}
    for name in ["setup", *GIVEN.get(n, [])]:
        exec(CELLS[name], names)
    for answer, says in ((stub, "not done yet"), (solution, "right")):
        exec(answer + mark + check, names)
        assert says in capsys.readouterr().out
    wrong, says = WRONG[n]
    with pytest.raises(AssertionError, match=says):
        exec(wrong + "\n" + mark + check, names)


def outputs(nb):
    """Return for each cell what it prints, without times, and the texts and words of its pictures."""
    return {cell.id: (re.sub(r"\d+\.\d+ s\b", "#", "".join(out.get("text", "") for out in cell.outputs)),
                      [re.sub(r"[\d.]+", "#", str(out.data)) for out in cell.outputs if "data" in out])
            for cell in nb.cells if cell.cell_type == "code"}


def test_notebook(monkeypatch):
    monkeypatch.setitem(sys.modules, "rfc3987_syntax", None)  # an optional check of URLs: 4 seconds to import
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    saved = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(saved)
    assert len(CELLS) == len(saved.cells)  # every cell has an id of its own
    fresh = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(fresh, timeout=60, kernel_name="python3", resources={"metadata": {"path": HERE}}).execute()
    assert outputs(fresh) == outputs(saved)
