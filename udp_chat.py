"""A chat for two over UDP: one socket, a thread to receive, one to send.

IPv4 only. Messages may get lost. Nothing is encrypted: others can read it,
and write as your friend. For example:

  python udp_chat.py 192.168.1.5 --port 5000
"""
import argparse
import errno
import os
import queue
import select
import signal
import socket
import sys
import textwrap
import threading
import time
import traceback
import unicodedata
from contextlib import suppress

from colorama import just_fix_windows_console
from termcolor import COLORS, colored

IP = "0.0.0.0"  # where we listen: at every IP of this machine
PORT = 1234  # where we listen
SEND_PORT = 1234  # where the friend listens
BYE = "Bye"  # ends the chat on both sides
COLOR = "cyan"  # of messages, on black; an unknown name is none
QUESTION = "Enter the IP of person you want to chat with : "


def open_socket(ip, port):
    """Return a UDP socket bound to (ip, port). OSError: taken, or not ours."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((ip, port))
    return sock


def ask_for_errors(sock):
    """Drop old reports that a datagram is lost; have recvfrom raise new ones."""
    sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # reading clears it
    if sys.platform == "linux":
        IP_RECVERR = 11  # see man 7 ip
        # 0 drops old reports, 1 asks for new ones.
        with suppress(OSError):  # what only imitates Linux may refuse
            sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 0)
            sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)


LOST = ("Your line is lost: it did not reach {} port {}.\n"
        "({}) Is the chat open there?")
STRANGER = ("{0} port {1} wrote: not shown. Your friend? Start again:\n"
            "python udp_chat.py {0} --port {2} --send-port {1}")


def recv(sock, peer, show, notice):
    """Show what peer, the friend's (ip, port), writes, until "Bye"."""
    text, strangers = "", set()
    while text != BYE:
        try:
            data, address = sock.recvfrom(65_535)  # no datagram is longer
            # Report three strangers, or six if this is the friend's IP: it may
            # be the friend, from a wrong port.
            limit = 6 if address[0] == peer[0] else 3
            if address == peer:
                text = data.decode(errors="backslashreplace").rstrip("\r\n")
                show(f"{address[0]} : {safe(text)}")
            elif address not in strangers and len(strangers) < limit:
                strangers.add(address)
                notice(STRANGER.format(*address, sock.getsockname()[1]))
        except OSError as error:  # a report: what we sent is lost
            ask_for_errors(sock)
            notice(LOST.format(*peer, error))
    notice(f"{peer[0]} said {BYE}: the chat is over.")


MAX_DATAGRAM = 1024  # bytes: many programs read no more
PAUSE = 0.0003  # seconds: in UDP a slow receiver cannot say "wait"


def send(sock, peer, lines, notice):
    """Send lines to peer, the friend's (ip, port), until "Bye"."""
    for text in lines:
        for data in datagrams(text):
            ask_for_errors(sock)  # or sendto might raise an old report
            try:
                sock.sendto(data, peer)
            except OSError as error:
                notice(LOST.format(*peer, error))
            if text == BYE:
                return
            time.sleep(PAUSE)


def datagrams(text):
    """Return text as a list of bytes (UTF-8), each at most MAX_DATAGRAM long."""
    data = text.encode()
    if len(data) <= MAX_DATAGRAM or len(text) == 1:
        return [data] if data else []  # an empty line sends nothing
    middle = len(text) // 2  # halves: a short rest might be just "Bye"
    return datagrams(text[:middle]) + datagrams(text[middle:])


# What ends the chat: Ctrl-C, kill; a closed window, Ctrl-\.
SIGNALS = {signal.SIGINT, signal.SIGTERM}
if os.name != "nt":  # nt is Windows
    SIGNALS |= {signal.SIGHUP, signal.SIGQUIT}


def start(sock, peer, lines, show, notice, ended):
    """Run recv and send in threads; each ends with ended(itself or its error)."""
    def run(function, *args):
        if os.name != "nt":  # leave the signals to the main thread
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            function(*args)
            ended(function)
        except Exception as error:
            if sock.fileno() != -1:  # -1: closed, the chat is over
                ended(error)

    for args in (recv, sock, peer, show, notice), (send, sock, peer, lines, notice):
        threading.Thread(target=run, args=args, daemon=True).start()


# ---- Text. You can stop reading here: the rest is no network ----

# Not printable, but needed by languages, emoji and web pages.
HARMLESS = "\xa0\xad\u200b\u200c\u200d\u200e\u200f\u202f\u3000\ufeff"


def safe(text):
    """Return text with what is not printable, like Escape, as \\x1b."""
    if text.isprintable():
        return text
    result = last = ""
    for char in text.expandtabs(4):
        if char.isprintable():
            result += char
        elif char != last:  # only the first of a run
            result += char if char in HARMLESS else ascii(char)[1:-1]
        last = char
    return result


def wrap(text, width):
    """Return the rows of text, cut at spaces to width (16 or more) columns."""
    if not text.isascii():
        # textwrap counts characters, so a \0 follows each wide one, like 日.
        text = "".join(
            char + "\0" if unicodedata.east_asian_width(char) in ("W", "F")
            else char for char in text)
        width -= 1  # if it cuts before a \0, the row is one column longer
    rows = []
    for line in text.split("\n"):
        rows += textwrap.wrap(line, max(16, width), break_on_hyphens=False)
    return [row.replace("\0", "") for row in rows]


# ---- The screen and the keyboard ----

readline = termios = None  # Windows has neither
with suppress(ImportError):
    import termios  # the settings of a terminal
with suppress(ImportError):
    import readline  # gives input() arrow keys and a history

# 0 is the keyboard and 1 the screen, unless they are files or pipes.
ESCAPES = os.isatty(0) and os.isatty(1)
SETTINGS = termios.tcgetattr(0) if termios and os.isatty(0) else None

QUEUE = queue.Queue(5_000)  # to be drawn; while it is full, recv waits


def show(text, message=True):
    """Queue text for the screen. Any thread may."""
    text += "\n"
    # In pieces, so that a full queue is not huge.
    for begin in range(0, len(text), 2_000):
        QUEUE.put((text[begin:begin + 2_000], message))


def notice(text):
    """Queue our own text, with a star that tells it from a message."""
    show("* " + text, message=False)


def draw_queued():
    """Draw what is queued, until a None comes."""
    while True:
        while os.name == "nt" and QUEUE.empty():
            time.sleep(0.05)  # on Windows get() would hold up Ctrl-C
        item = QUEUE.get()
        if item is None:
            return
        draw(*item)


# Escape, \x1b, begins a command to the terminal. These insert a row above the
# typed one.
ABOVE = (
    "\x1b7"  # Remember the place.
    "\n\x1b[A"  # Down and up: at the bottom that scrolls.
    "\r\x1b[L"  # Insert an empty row; the typed one moves down.
    "\x1b[?7l{}\x1b[?7h"  # Write, cut off at the window's edge.
    "\x1b8\x1b[B"  # Go back there, one row lower.
)


def draw(text, message):
    """Write text to the screen. Only the main thread may."""
    if not ESCAPES:
        print(text, end="", flush=True)
        return
    # Messages stand up to 48 columns right, so that 60 are left.
    margin = " " * max(0, min(48, columns() - 60)) if message else ""
    for row in wrap(text, columns() - len(margin)):
        if message and COLOR in COLORS:
            row = colored(row, COLOR, "on_black")
        print(ABOVE.format(margin + row), end="", flush=True)


def columns():
    """Return the window's width; if it says 0, guess."""
    return os.get_terminal_size(1).columns or 80


def read_lines():
    """Yield each line that is typed or piped in, and "Bye" at the end."""
    prompt = "> " if ESCAPES else ""
    scrolls = ESCAPES and "GNU" in str(readline.__doc__)  # macOS has another
    if scrolls:  # a long line stays in its row
        readline.parse_and_bind("set horizontal-scroll-mode on")
    while True:
        try:
            text = input(prompt)
        except (EOFError, KeyboardInterrupt):  # Ctrl-D, the end of a pipe
            notice(f"No more input: that is {BYE}.")
            text = BYE
        yield text
        # Of a line with more bytes, readline shows only the end.
        if scrolls and len((prompt + text).encode()) > columns() - 2:
            show(prompt + safe(text), message=False)


def restore(quiet):
    """Put the terminal back, after quiet seconds without a key (3 at most)."""
    if not SETTINGS:
        return
    with suppress(OSError):  # no shell, no groups
        if os.tcgetpgrp(0) != os.getpgrp():
            return  # the shell has the keyboard, after Ctrl-Z
    # input() still waits at 0: an empty file there gives it no more keys.
    keyboard = os.dup(0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    # What is typed now was for the friend, not the shell: drop it.
    latest = time.monotonic() + 3
    while select.select([keyboard], [], [], quiet)[0] and time.monotonic() < latest:
        termios.tcflush(keyboard, termios.TCIFLUSH)
    termios.tcsetattr(keyboard, termios.TCSANOW, SETTINGS)
    # Unless Ctrl-S stopped the screen: no colour, no prompt.
    if ESCAPES and select.select([], [1], [], 0.5)[1]:
        os.write(1, b"\x1b[?7h\x1b[m\r\x1b[J")


# ---- The start and the end ----

def arguments():
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(
        epilog=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("peer", nargs="?", help="your friend's IP or name")
    add("--ip", default=IP, help="listen only at this IP")
    add("--port", type=int, default=PORT, help=f"listen here (default: {PORT})")
    add("--send-port", type=int, help="your friend's port (default: the same)")
    args = parser.parse_args()
    if args.send_port is None:  # --port alone is for both
        args.send_port = SEND_PORT if args.port == PORT else args.port
    for port in args.port, args.send_port:
        if not 0 < port < 65_536:
            parser.error(f"{port} is no port: 1 to 65535 are")
    return args


IN_USE = """
Is the chat open in another terminal? End it, or both take another --port.
On one machine: --send-port 1084 there, --port 1084 --send-port 1234 here."""


def listen(ip, port):
    """Return a socket bound to (ip, port), or end the program and say why."""
    try:
        return open_socket(ip, port)
    except (OSError, TypeError) as error:  # not even a name
        problem = f"Cannot listen at {ascii(ip)[1:-1]} port {port}: {error}."
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            problem += IN_USE
        sys.exit(problem)


def own_ip(ip, friend):
    """Return the IP at which friend reaches us; None: there is no way."""
    with suppress(OSError), open_socket(ip, 0) as probe:
        probe.connect((friend, 9))  # sends nothing, chooses our IP
        return probe.getsockname()[0]


def find_friend(peer):
    """Return the IP of peer, an IP or a name; if it is empty, ask for one."""
    while True:
        name = peer or input(QUESTION).strip() or "127.0.0.1"
        with suppress(OSError, UnicodeError, TypeError):  # unknown
            ip = socket.gethostbyname(name)
            if ip != "0.0.0.0":  # nobody's
                return ip
        problem = f"Cannot find {ascii(name)[1:-1]}: give an IP like 192.168.1.5."
        if peer:
            sys.exit(problem)
        print(problem)


def ignore(*_):
    """Do nothing."""


def on_signals(handler):
    """Have handler called whenever a signal comes."""
    for number in SIGNALS:
        signal.signal(number, handler)


def interrupt(*_):
    """End what the main thread does, once."""
    on_signals(ignore)
    raise KeyboardInterrupt


def chat(sock, peer):
    """Chat with peer until one of the two says Bye."""
    outcomes = []  # recv or send, when it has returned; or an error

    def end(outcome):
        outcomes.append(outcome)
        if outcome is recv:
            sock.close()  # the friend has left: nothing is sent any more
        QUEUE.put(None)

    with suppress(KeyboardInterrupt):
        try:
            start(sock, peer, read_lines(), show, notice, end)
            draw_queued()
        except Exception as error:  # no thread, or the screen is lost
            outcomes.append(error)
        on_signals(ignore)  # nothing disturbs the end
    leave(sock, peer, outcomes)


def leave(sock, peer, outcomes):
    """Say Bye if nobody has, put the terminal back, raise an error."""
    time.sleep(0.05)  # send may just be saying it
    with suppress(OSError):  # the friend's Bye may just close sock
        if recv not in outcomes and send not in outcomes:
            sock.settimeout(1)  # second, if the network is stuck
            send(sock, peer, [BYE], notice=ignore)
    sock.close()
    with suppress(Exception):  # the terminal may be gone
        # To a friend who has left, somebody may still be typing.
        restore(quiet=1 if recv in outcomes else 0.05)
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome


def main():
    """Find the friend, listen, and chat."""
    # A notebook or IDLE has its own in stdout's place.
    if sys.stdout is not sys.__stdout__ or not (sys.stdin and sys.stdout):
        sys.exit("The chat needs a terminal: start it there.")
    sys.stderr = sys.stderr or sys.stdout  # input() wants one
    for stream in sys.stdin, sys.stdout:
        stream.reconfigure(errors="backslashreplace")
    just_fix_windows_console()  # it understands ABOVE then
    args = arguments()
    listen(args.ip, args.port).close()  # is the port free?
    on_signals(interrupt)
    if not args.peer:
        own = own_ip(args.ip, "192.0.2.1")  # that is: elsewhere
        if own:
            print(f"* Your IP is {own}: tell your friend.")
        print("* Enter alone: chat with yourself.")
    friend = find_friend(args.peer)
    sock = listen(args.ip, args.port)  # new: no old "Bye" in it
    own = own_ip(args.ip, friend) or "?"
    notice(f"Chatting with {friend} port {args.send_port} as {own}. "
           f"{BYE} ends it for both.")
    chat(sock, (friend, args.send_port))


if __name__ == "__main__":
    try:
        main()
        os._exit(0)  # a plain exit may crash: input() still waits
    except (KeyboardInterrupt, EOFError, OSError) as error:
        with suppress(OSError):
            print(f"\nNo friend, keyboard or screen: no chat. {error}", file=sys.stderr)
    except Exception:
        traceback.print_exc()
    os._exit(1)
