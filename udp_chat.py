#!/usr/bin/env python3
# /// script
# dependencies = ["termcolor>=2.1", "colorama>=0.4.6"]  # for: uv run udp_chat.py
# ///
"""A chat for two over UDP, not encrypted: one socket, a thread to receive, one to send."""
import _signal  # signal itself loads too slowly to catch an early Ctrl-C
if __name__ == "__main__":  # Ctrl-C (2), a closed pipe (13): end without a traceback
    for number in _signal.valid_signals() & {2, 13}:
        _signal.signal(number, _signal.SIG_DFL)

import argparse
import contextlib
import os
import queue
import select
import shutil
import signal
import socket
import sys
import textwrap
import threading
import time
import unicodedata

from colorama import just_fix_windows_console
from termcolor import COLORS, colored
readline = termios = None  # Windows has neither
with contextlib.suppress(ImportError):
    import termios  # the settings of a terminal
    import readline  # gives input() arrow keys and a history

IP = "0.0.0.0"  # where we listen: at every address of this machine
PORT = 1234  # where we listen; below 1024 often only for administrators
SEND_PORT = PORT  # where the friend listens: the same, so both hosts run this very file
BUFFER_SIZE = 65_535  # bytes; no datagram is larger, and recvfrom drops what does not fit
MAX_DATAGRAM = 1024  # the most bytes we send in one; many programs read no more at once
PAUSE = 0.0003  # seconds after each datagram: in UDP a slow receiver cannot say "wait"
BYE = "Bye"  # ends the chat on both sides
COLOR = "cyan"  # of messages; a name that termcolor does not know means no colour
NOTICE_COLOR = "yellow"  # of what the program itself says
SIGNALS = signal.valid_signals() & {1, 2, 3, 13, 15}  # closed window, ^C, ^\, pipe, kill
QUESTION = "Enter the IP of person you want to chat with : "
UNKNOWN = ("Not shown: a message from {0} port {1}. If that is your friend, start again:\n"
           "python udp_chat.py {0} --port {2} --send-port {1}")
IP_RECVERR = 11 if sys.platform == "linux" else None  # asks for errors, see man 7 ip
SAVE, RESTORE, UP, DOWN = "\x1b7", "\x1b8", "\x1b[A", "\x1b[B"  # move the cursor
INSERT_ROW, NO_WRAP, WRAP = "\x1b[L", "\x1b[?7l", "\x1b[?7h"  # wrap: long rows
MAKE_ROOM = SAVE + "\n" + RESTORE + DOWN + UP  # on the last row "\n" scrolls; UP follows
ROW_BEGIN = MAKE_ROOM + SAVE + "\r" + INSERT_ROW + NO_WRAP
ROW_END = RESTORE + DOWN + WRAP  # back to the row where we type, which is one lower now
RESET = WRAP + "\x1b[m\x1b[J"  # no colour, and nothing below


# ---- The network: the socket and bind, recv, send, the threads --------------------------
def open_socket(ip, port):
    """Return a UDP socket bound to (ip, port). OSError: port taken, or ip not ours."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1_000_000)  # bytes, for bursts
    if hasattr(socket, "SO_EXCLUSIVEADDRUSE"):  # else Windows lets two share a port
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
    sock.bind((ip, port))
    return sock


def ask_for_errors(sock):
    """Have later calls raise OSError if a host reports an error; forget older reports."""
    sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # reading the last one clears it
    if IP_RECVERR:  # Linux must be asked; it keeps a list, which takes buffer room
        sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 0)  # off: empties the list
        sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)


def recv(sock, peer, show, notice):
    """Call show("IP : text") for messages from peer, the friend's (ip, port), until "Bye".

    Strangers and network errors go to notice(text). Raises OSError once sock is closed."""
    errors, wrong_ports, strangers = set(), set(), set()  # reported already
    while True:
        try:
            data, address = sock.recvfrom(BUFFER_SIZE)
        except BlockingIOError:  # nothing old is left to read: now wait for more
            sock.setblocking(True)
        except OSError as error:  # about what we sent; ConnectionError: port closed
            ask_for_errors(sock)  # raises OSError, too, if sock is closed
            why = "Nobody listens" if isinstance(error, ConnectionError) else error.strerror
            once(notice, f"{why} at {peer[0]} port {peer[1]}", error.errno, errors)
        else:
            if address == peer:
                errors.clear()  # the friend is there: the next error is news
                text = data.decode(errors="backslashreplace").rstrip("\r\n")  # nc's Enter
                show(f"{peer[0]} : {safe(text)}")
                if text == BYE and sock.getblocking():  # an older one ends nothing
                    notice(f"{peer[0]} said {BYE}: the chat is over.")
                    return
            elif address[1] != 0:  # nobody can reply to port 0
                told = wrong_ports if address[0] == peer[0] else strangers  # 8 for each
                once(notice, UNKNOWN.format(*address, sock.getsockname()[1]), address, told)


def once(notice, text, item, told):
    """Call notice(text) unless item is in the set told, or told is full."""
    if item not in told and len(told) < 8:  # forgers must not flood the screen
        told.add(item)
        notice(text)


def send(sock, peer, lines, notice):
    """Send lines to peer, the friend's (ip, port), until "Bye"; notice(text) on failure."""
    for text in lines:
        for data in datagrams(text):
            try:
                ask_for_errors(sock)  # or sendto might raise an old error instead
                sock.sendto(data, peer)
            except OSError as error:
                notice(f"Not sent ({error.strerror}): {safe(data.decode())}")
            time.sleep(PAUSE)
        if text == BYE:
            return


def start(sock, peer, lines, show, notice, end):
    """Start recv and send in daemon threads; each calls end(exit code) when it ends."""
    def run(function, *args):
        if hasattr(signal, "pthread_sigmask"):  # else signals may miss the main thread
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            function(sock, peer, *args, notice)
            time.sleep(0.1)  # seconds: our "Bye" may still cause an error
            end(0)
        except Exception as error:  # or the other thread would go on alone
            notice(f"An error in {function.__name__} ended the chat: {error!r}")
            end(1)
    sock.setblocking(False)  # recvfrom raises once no older message is left
    threading.Thread(target=run, args=(recv, show), daemon=True).start()
    threading.Thread(target=run, args=(send, lines), daemon=True).start()


# ---- From here on it is about text, the terminal and the start: you can stop reading -----
def datagrams(text):
    """Return text as UTF-8, halved until each piece has at most MAX_DATAGRAM bytes."""
    data = text.encode(errors="backslashreplace")
    if len(data) <= MAX_DATAGRAM or len(text) == 1:  # 1: or a tiny MAX never ends
        return [data] if data else []  # an empty line sends nothing
    middle = len(text) // 2  # halves, as a short rest might be just "Bye"
    return datagrams(text[:middle]) + datagrams(text[middle:])


def safe(text):
    """Return text with control characters, like Escape, spelled out, like \\x1b."""
    return "".join(
        char.encode("unicode_escape").decode()
        if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")
        and char not in "\u200c\u200d"  # joiners: Persian and emoji families need them
        else char for char in text)


def wrap(text, width):
    """Return the rows of text, at most width columns wide, cut at spaces if possible."""
    wide = "".join("\0" + char if unicodedata.east_asian_width(char) in "WF" else char
                   for char in text)  # \0 holds the second column of a wide one, like 日
    rows = textwrap.wrap(wide, max(1, width - 1), break_on_hyphens=False) or [""]
    return [row.replace("\0", "") for row in rows]  # one cut from its \0 is a column wider


class Terminal:
    """The screen and the keyboard. Any thread may call show; only the main one writes."""
    def __init__(self):
        just_fix_windows_console()  # makes Windows' console obey escape sequences
        able = sys.stdout is sys.__stdout__  # else colorama wrapped it: an old Windows
        sys.stdout = sys.__stdout__
        for stream in (sys.stdin, sys.stdout):
            stream.reconfigure(errors="backslashreplace")  # never a UnicodeError
        self.keyboard, self.screen = os.dup(0), os.dup(1)  # copies, see exit
        self.escapes = able and os.isatty(1) and os.environ.get("TERM") != "dumb"
        self.prompt = "> " if os.isatty(0) and self.escapes else ""
        self.settings = termios.tcgetattr(0) if os.isatty(0) and termios else None
        self.typing = self.left = False  # is a line half typed; did we end the chat
        self.output = queue.Queue(80_000)  # rows; while it is full, recv has to wait
        os.environ.pop("COLUMNS", None)  # a wrong one would hide the window's width
        if readline:
            readline.parse_and_bind("set horizontal-scroll-mode on")  # we type in one row
            readline.parse_and_bind("set convert-meta off")  # else LC_ALL=C bars é

    def show(self, text, color=COLOR, indent=48):  # columns, fewer if narrow
        """Queue text, to be written above the line that is being typed, which stays."""
        if not self.escapes:
            for start in range(0, len(text) + 1, 1000):  # bounds the queue's bytes
                self.output.put((text + "\n")[start:start + 1000])
            return
        encoding = sys.stdout.encoding  # if it lacks 日: \u65e5, which is wider
        text = text.encode(encoding, "backslashreplace").decode(encoding, "replace")
        width = shutil.get_terminal_size().columns
        margin = " " * min(indent, width - 32)  # at least 32 columns are for text
        color = color if color in COLORS else None
        for row in wrap(text, width - len(margin)):
            self.output.put(ROW_BEGIN + colored(margin + row, color) + ROW_END)

    def notice(self, text):
        """Queue the program's own text; each line of it makes a row."""
        for line in f"* {text}".split("\n"):
            self.show(line, NOTICE_COLOR, indent=0)

    def write(self):
        """Write what is in the queue, until an exit code comes; return that."""
        while True:
            with contextlib.suppress(queue.Empty):  # on Windows get() holds up Ctrl-C
                item = self.output.get(timeout=0.2 if os.name == "nt" else None)
                if isinstance(item, int):
                    return item
                if not self.left:  # whoever leaves need not wait for the rest
                    print(item, end="", flush=True)

    def lines(self):
        """Yield each line that is typed or piped in; the end of input counts as "Bye"."""
        while True:
            self.typing = bool(self.prompt)
            try:
                text = input(self.prompt).rstrip("\r")  # a Windows file in a pipe
                self.typing = False
            except (EOFError, OSError):  # Ctrl-D, the end of a pipe, a lost terminal
                text = BYE
            self.left = bool(self.prompt) and text == BYE
            yield text

    def exit(self, code, quiet=0.05):
        """End the program after quiet seconds without a key: the shell must get none."""
        with contextlib.suppress(Exception):  # the terminal may be gone
            if self.settings:
                os.dup2(os.open(os.devnull, os.O_RDWR), 0)  # now input(), which is still in
                os.dup2(0, 1)  # its thread, can neither print a prompt nor change settings
            if self.escapes and (not termios or select.select([], [self.screen], [], 1)[1]):
                os.write(self.screen, ("\n" * self.typing + RESET).encode())
            if self.settings and os.tcgetpgrp(self.keyboard) == os.getpgrp():  # foreground
                while select.select([self.keyboard], [], [], quiet)[0]:
                    termios.tcflush(self.keyboard, termios.TCIFLUSH)
                termios.tcsetattr(self.keyboard, termios.TCSANOW, self.settings)
        os._exit(code)  # nothing milder ends a thread that waits in input()


def arguments():
    """Return the command line's arguments; the constants are their defaults."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", metavar="PEER", nargs="?", help="your friend's address")
    parser.add_argument("--ip", default=IP, help="address to listen on (%(default)s: all)")
    parser.add_argument("--port", type=int, default=PORT, help="to listen on (%(default)s)")
    parser.add_argument("--send-port", type=int, default=SEND_PORT, help="friend's port")
    return parser.parse_args()


def meet(args, sock):
    """Say where we listen; return the friend's (ip, port), asking if PEER is missing."""
    tell = ""  # our address on the way to usual networks, to any, to the friend
    for host in ("10.0.0.1", "192.168.0.1", "192.168.1.1", "192.0.2.1", args.peer):
        with contextlib.suppress(Exception), open_socket(args.ip, 0) as probe:
            probe.connect((host, 9))  # sends nothing, so any port will do; sets our address
            own = probe.getsockname()[0]
            tell = "" if own.startswith("127.") else f"; tell your friend: {own}"
    print("* Listening on {} port {}{}".format(*sock.getsockname(), tell))
    if not args.peer:  # not by input(): Ctrl-C would leave the terminal changed
        print(QUESTION, end="" if sys.stdin.isatty() else "\n", flush=True)
        answer = sys.stdin.readline() or sys.exit("\nWithout an address there is no chat.")
        args.peer = answer.strip() or "127.0.0.1"  # Enter alone: this machine
    try:
        if not any(map(str.isalpha, args.peer)):
            socket.inet_pton(socket.AF_INET, args.peer)  # or 10.1 would mean 10.0.0.1
        socket.htons(args.send_port)  # only checks that the port fits into 16 bits
        return socket.gethostbyname(args.peer), args.send_port
    except Exception:
        sys.exit(f"Cannot reach {safe(args.peer)} port {args.send_port}.\n"
                 "Give an IPv4 address like 192.168.1.5, or a name; port 65535 at most.")


def main():
    """Listen, find the friend, chat."""
    args = arguments()
    try:
        sock = open_socket(args.ip, args.port)
    except Exception as error:
        sys.exit(f"Cannot listen on {safe(args.ip)} port {args.port} ({error}).\n"
                 "Is the chat open in another terminal? Try another --port, or no --ip.")
    try:
        terminal = Terminal()
        peer = meet(args, sock)
    except Exception:  # stdin or stdout is closed, or IDLE's
        sys.exit("The chat needs a terminal: start it there, with python udp_chat.py")
    def say_bye(*_):
        sock.setblocking(False)  # the end must not wait for the network
        send(sock, peer, [BYE], notice=lambda text: None)
        terminal.exit(0)
    for number in SIGNALS:
        signal.signal(number, say_bye)
    terminal.notice("Chatting with {} port {}; {} ends it for both.".format(*peer, BYE))
    start(sock, peer, terminal.lines(), terminal.show, terminal.notice, terminal.output.put)
    with contextlib.suppress(OSError):
        terminal.exit(terminal.write(), quiet=0.05 if terminal.left else 1)
    say_bye()  # only if write failed: nobody reads our output any more


if __name__ == "__main__":
    main()
