"""What udp_chat.py promises, a sentence a test.

First we play the friend with a socket of our own. Then the
program runs in pipes, in a terminal; at last the notebook."""
import json
import os
import pathlib
import queue
import re
import subprocess
import sys

import pytest

import udp_chat
from udp_chat import BYE, datagrams, recv, safe, send, wrap

parametrize = pytest.mark.parametrize
on_linux = sys.platform == "linux"
linux = pytest.mark.skipif(not on_linux, reason="for Linux")
ENV = {k: v for k, v in os.environ.items() if "COLOR" not in k}
ENV |= {"TERM": "xterm", "PYTHONUTF8": "1", "INPUTRC": os.devnull}

def new_socket(ip="127.0.0.1", port=0):
    sock = udp_chat.open_socket(ip, port)
    sock.settimeout(5)
    return sock

@pytest.fixture
def me():
    with new_socket() as sock:
        yield sock

friend = me  # a fixture of the same make

def at(sock):
    return sock.getsockname()

def nobody():  # where nobody listens
    with new_socket() as sock:
        return at(sock)

def hear(me, friend):  # what recv tells until the friend's Bye
    friend.sendto(b"Bye\n", at(me))
    messages, notices = [], []
    recv(me, at(friend), messages.append, notices.append)
    assert messages.pop() == "127.0.0.1 : Bye"
    assert notices.pop().endswith("Bye: the chat is over.")
    return messages, notices

def got(friend):  # what has arrived
    friend.sendto(b"(end)", at(friend))
    return list(iter(lambda: friend.recv(2000), b"(end)"))

# ---- A message ----
@parametrize("data, shown", {
    b"": "",
    b" Bye": " Bye",  # ends nothing
    b"caf\xe9": r"caf\xe9",  # no UTF-8
    b"a\n1.2.3.4 : b": r"a\n1.2.3.4 : b",  # no second row
    b"x" * 9000: "x" * 9000,
}.items(), ids=ascii)
def test_a_message_is_one_row(me, friend, data, shown):
    friend.sendto(data, at(me))
    assert hear(me, friend) == ([f"127.0.0.1 : {shown}"], [])

# ---- A stranger ----
def test_a_stranger_is_told_once(me, friend):
    with new_socket() as stranger:
        stranger.sendto(b"Bye", at(me))
        stranger.sendto(b"Bye", at(me))
        theirs = at(stranger)[1]
    messages, [told] = hear(me, friend)
    assert messages == []
    assert told.endswith(f"{at(me)[1]} --send-port {theirs}")

@linux  # which has a 127.0.0.2
def test_a_crowd_hides_no_wrong_port(me, friend):
    for ip in ["127.0.0.2"] * 9 + ["127.0.0.1"] * 9:
        with new_socket(ip) as stranger:
            stranger.sendto(b"hello", at(me))
    told = [notice.split()[0] for notice in hear(me, friend)[1]]
    assert told == ["127.0.0.2"] * 3 + ["127.0.0.1"] * 3

# ---- A lost line ----
@linux
def test_a_lost_line_is_told(me):
    peer, told = nobody(), []
    send(me, ("255.255.255.255", 9), ["to all"], told.append)
    assert "([Errno 13] Permission denied)" in told[0]
    me.setsockopt(1, 8, 50_000)  # room that reports could fill
    send(me, peer, ["lost"] * 200, print)
    with new_socket(*peer) as friend:
        send(me, peer, ["hello"], print)  # no old report
        assert friend.recv(99) == b"hello"
        me.sendto(b"lost", nobody())
        told = hear(me, friend)[1]
    assert "lost: it did not reach 127.0.0.1 port" in told[0]
    assert "([Errno 111] Connection refused)" in told[0]

# ---- Sending ----
def test_lines_are_sent_until_bye(me, friend):
    lines = ["one", "", "日本", BYE, "late"]
    send(me, at(friend), lines, print)
    assert got(friend) == [b"one", "日本".encode(), b"Bye"]

def test_a_long_line_is_halved_and_no_piece_is_bye():
    assert datagrams("x" * 1024) == [b"x" * 1024]
    tail = datagrams("x" * 1024 + "Bye")
    assert tail == [b"x" * 513, b"x" * 511 + b"Bye"]
    assert datagrams("日é" * 300) == ["日é".encode() * 150] * 2

# ---- The two threads ----
def test_a_thread_tells_its_end(me, friend):
    told = queue.Queue()
    for lines in [BYE], [None]:  # which is no text
        args = lines, print, print, told.put
        udp_chat.start(me, at(friend), *args)
        friend.sendto(b"Bye", at(me))
    ends = [told.get(timeout=5) for _ in range(4)]
    assert ends.count(recv) == 2 and send in ends
    assert AttributeError in map(type, ends)

# ---- Text ----
@parametrize("text, shown", {
    "日👨‍👩‍👧می‌خواهم\u200e": "日👨‍👩‍👧می‌خواهم\u200e",
    "\x1b[2J\x9b": r"\x1b[2J\x9b",  # commands to the terminal
    "\u202e\u2028": r"\u202e\u2028",  # turn a row, break it
    "hi" + "\0" * 99: r"hi\x00",  # from a program in C
}.items(), ids=ascii)
def test_what_acts_is_spelled_out(text, shown):
    assert safe(text) == shown

def test_rows_fit_the_window_and_no_link_is_cut():
    assert wrap("see to://b.de/c-d", 16) == ["see", "to://b.de/c-d"]
    assert wrap("日本" * 5, 17) == ["日本" * 4, "日本"]  # 2 columns
    assert wrap("a narrow window", 1) == ["a narrow window"]

# ---- The program, in pipes ----
def command(friend, *args):  # and where it listens
    address = nobody()
    ports = f"--port {address[1]} --send-port {at(friend)[1]}"
    args = [udp_chat.__file__, *ports.split(), *args]
    return [sys.executable, *args], address

def run(command, typed=""):
    return subprocess.run(
        command, input=typed, env=ENV, timeout=9,
        capture_output=True, encoding="utf-8")

def test_a_pipe_answers_and_is_sent(friend):
    chat = run(command(friend)[0], "0.0.0.0\n\none\n")
    assert got(friend) == [b"one", b"Bye"]
    assert "yourself.\nEnter the IP" in chat.stdout
    assert "Cannot find 0.0.0.0: " in chat.stdout
    assert " as 127.0.0.1. Bye ends it" in chat.stdout
    assert chat.stdout.endswith("* No more input: that is Bye.\n")
    assert (chat.returncode, chat.stderr) == (0, "")

def test_2000_lines_wait_and_an_old_bye_is_gone(friend):
    args, address = command(friend)
    lines = [f"{n} é😀 {'x' * 90}" for n in range(2000)]
    pipes = {"stdin": -1, "stdout": -1}
    with subprocess.Popen(args, env=ENV, **pipes) as chat:
        while chat.stdout.read(1) != b"w":  # Enter ... you w
            pass
        friend.sendto(b"Bye", address)
        os.write(chat.stdin.fileno(), b"127.0.0.1\nhello\n")
        assert friend.recv(99) == b"hello"
        send(friend, address, [*lines, BYE], print)
        shown = chat.communicate(timeout=9)[0].decode()
    assert all(f"127.0.0.1 : {line}" in shown for line in lines)

@parametrize("args, says", {
    "--port 0": "0 is no port: 1 to 65535 are",
    "--send-port 65536": "65536 is no port",
    "--port TAKEN": "another terminal? End it, or",
    "--ip \u200e1.2.3.4": "hostname failed.\n",
    "\x1b[2J": r"Cannot find \x1b[2J: give an",
    "": "No friend, keyboard or screen: no chat.",
}.items(), ids=ascii)
def test_what_is_wrong_gets_a_sentence(friend, args, says):
    args = args.replace("TAKEN", str(at(friend)[1]))
    chat = run(command(friend, *args.split())[0])
    assert chat.returncode and says in chat.stderr
    assert "Traceback" not in chat.stderr

def test_one_port_is_enough(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["", "--port", "7"])
    assert udp_chat.arguments().send_port == 7

@linux
def test_a_closed_pipe_says_bye(friend):
    args, address = command(friend, "127.0.0.1")
    pipes = {"stdin": -1, "stdout": -1, "stderr": -1}
    with subprocess.Popen(args, **pipes) as chat:
        chat.stdout.close()
        assert friend.recv(99) == b"Bye"
        assert chat.stderr.read().endswith(b"Broken pipe\n")
    assert chat.returncode == 1

# ---- The program, in a terminal ----
@pytest.fixture
def terminal(friend, request):
    pexpect = pytest.importorskip("pexpect")
    args, address = command(friend, "127.0.0.1")
    shell = """trap : INT QUIT; a=$(stty -g); "$@"; echo code $?
               [ $a = $(stty -g) ] && echo same; exec cat"""
    pty = pexpect.spawn(
        "sh", ["-c", shell, "sh", *args], env=ENV, timeout=5,
        dimensions=(24, getattr(request, "param", 80)))
    pty.address = address
    pty.expect(b"both.*>|>.*both")  # any order
    yield pty
    pty.expect(b"code 0\r\nsame\r\n")  # the settings
    pty.sendeof()
    assert pty.read().strip() == b""  # no key is the shell's

@parametrize("keys", [
    "Bye\rls\r", "\x04", "no\x03\x03", "Bye\r\x03", "\x1c"])
def test_each_end_says_bye_once(terminal, friend, keys):
    terminal.send(keys)
    terminal.expect(b"(?=code)")
    assert got(friend) == [b"Bye"]

@parametrize("terminal, margin", [(109, 48), (80, 20), (58, 0)],
             indirect=["terminal"])
def test_a_message_is_drawn_above(terminal, friend, margin):
    terminal.send("helo\x1b[D")
    terminal.expect_exact(b"helo\b")
    text = "日本" + " word" * 8
    send(friend, terminal.address, [text + " next"], print)
    row = f"\x1b[40m\x1b[36m127.0.0.1 : {text}\x1b[0m"
    terminal.expect_exact(
        ("\x1b7\r\n\x1b[A\r\x1b[L\x1b[?7l" + " " * margin + row
         + "\x1b[?7h\x1b8\x1b[B\x1b7").encode())
    terminal.send("l\rBye\r")
    assert friend.recv(99) == b"hello"

@parametrize("terminal", [80, 0], indirect=True)
def test_a_scrolled_line_is_shown_again(terminal, friend):
    for text in "x" * 72 + " all", "x" * 72 + " tail":
        terminal.send(text + "\r")
        assert friend.recv(999) == text.encode()
    terminal.send("Bye\r")
    terminal.expect(b"(?=code)")
    gnu = "GNU" in udp_chat.readline.__doc__  # not libedit
    assert (b"\r<" in terminal.before) == gnu
    assert (b"tail\x1b[?7h" in terminal.before) == gnu
    assert b"all\x1b[?7h" not in terminal.before

def test_a_friend_who_has_left_gets_nothing(terminal, friend):
    terminal.send("half")
    terminal.expect_exact(b"half")
    friend.sendto(b"Bye", terminal.address)
    terminal.expect_exact(b"the chat is over.")
    terminal.send("ls\r")
    terminal.expect(b"(?=code)")
    assert got(friend) == []

# ---- The notebook ----
HERE = pathlib.Path(__file__).parent
NOTEBOOK = HERE / "walkthrough.ipynb"

def cells():
    return json.loads(NOTEBOOK.read_text("utf-8"))["cells"]

@parametrize("number", [2, 7, 9])
def test_an_exercise_is_checked(number, capsys):
    text = {c["id"]: "".join(c["source"]) for c in cells()}
    parts = [f"s{number}-{x}" for x in ("exercise", "try", "check")]
    task, stub, check = [text[part] for part in parts]
    right = re.search("```python\n(.*?)```", task, re.S)[1]
    setup = text["setup"] + "\n" + text["setup-guess"]
    for answer in stub, right:
        exec("\n".join([setup, answer, check]), {})
    assert capsys.readouterr().out == "not yet\nright\n"

def printed(cells):  # but for numbers and pictures
    outs = [o for cell in cells for o in cell.get("outputs", [])]
    text = "".join("".join(out["text"]) for out in outs)
    return re.sub(r"\d[\d.]*|[█░=·]+", "#", text).split("\n")

@linux  # where the outputs were saved
def test_the_notebook_prints_what_it_saved(tmp_path):
    pytest.importorskip("nbconvert")
    convert = "-m nbconvert --to notebook --execute --stdout"
    fresh = subprocess.run(
        [sys.executable, *convert.split(), NOTEBOOK],
        env={**os.environ, "IPYTHONDIR": str(tmp_path)},
        capture_output=True).stdout
    fresh = json.loads(fresh)["cells"]
    assert printed(fresh) == printed(cells())

def test_no_answer_is_in_sight():
    for cell in cells():
        if cell["source"][0].startswith("guess ="):
            text = cell["outputs"][0]["text"]
            assert text[0] == "What happened:\n"
            assert cell["metadata"]["jupyter"]["outputs_hidden"]
