"""A chat for two over UDP: one socket, a thread to receive, one to send.

IPv4 only. Messages may get lost. Nothing is encrypted: others can read it,
and write as your friend. Examples:

  python udp_chat.py
  python udp_chat.py 192.168.1.5 --port 5000
"""
import argparse
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
PORT = 1234  # where both listen
BYE = "Bye"  # ends the chat on both sides
COLOR = "cyan"  # of messages, on black; an unknown name is none


def open_socket(ip, port):
    """Return a UDP socket bound to (ip, port). OSError: taken, or not ours."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((ip, port))
    return sock


def ask_for_errors(sock):
    """Forget old error reports, and have recvfrom raise new ones."""
    sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if sys.platform == "linux":
        # It has to be asked, and may refuse: 11 is IP_RECVERR, see man 7 ip.
        # 0 empties its list of reports.
        with suppress(OSError):
            sock.setsockopt(socket.IPPROTO_IP, 11, 0)
            sock.setsockopt(socket.IPPROTO_IP, 11, 1)


LOST = ("Your line is lost: it did not reach {} port {} ({}).\n"
        "Write again when your friend has started.")
STRANGER = ("{0} port {1} wrote: not shown. Your friend? Start again:\n"
            "python udp_chat.py {0} --port {2} --send-port {1}")


def recv(sock, peer, show, notice):
    """Show what peer, the friend's (ip, port), writes, until "Bye"."""
    text, strangers = "", set()
    while text != BYE:
        try:
            data, address = sock.recvfrom(65_535)  # no datagram is longer
            # At most 3 strangers are told; 6 at the friend's IP: wrong ports
            limit = 6 if address[0] == peer[0] else 3
            if address == peer:
                text = data.decode(errors="backslashreplace").rstrip("\r\n")
                show(f"{address[0]} : {safe(text)}")
            elif address not in strangers and len(strangers) < limit:
                strangers.add(address)
                notice(STRANGER.format(*address, sock.getsockname()[1]))
        except OSError as error:  # a report about what we sent
            ask_for_errors(sock)
            notice(LOST.format(*peer, error.strerror))
    notice(f"{peer[0]} said {BYE}: the chat is over.")


MAX_DATAGRAM = 1024  # bytes: many programs read no more
PAUSE = 0.0003  # seconds: in UDP a slow receiver cannot say "wait"


def send(sock, peer, lines, notice):
    """Send lines to peer, the friend's (ip, port), until "Bye"."""
    for text in lines:
        for data in datagrams(text):
            try:
                ask_for_errors(sock)  # or sendto might raise an old report
                sock.sendto(data, peer)
            except OSError as error:
                notice(LOST.format(*peer, error.strerror))
            time.sleep(PAUSE)
        if text == BYE:
            time.sleep(0.1)  # a report may come back
            return


def datagrams(text):
    """Return text as UTF-8, halved until no piece is over MAX_DATAGRAM."""
    data = text.encode()
    if len(data) <= MAX_DATAGRAM:
        return [data] if data else []  # an empty line sends nothing
    middle = len(text) // 2  # halves: a short rest might be just "Bye"
    return datagrams(text[:middle]) + datagrams(text[middle:])


def start(sock, peer, lines, show, notice, ended):
    """Run recv and send in threads; each ends with ended(itself)."""
    def run(function, argument):
        if os.name != "nt":  # Ctrl-C and others are for the main thread
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            function(sock, peer, argument, notice)
        except Exception:  # or the other thread would go on alone
            if sock.fileno() != -1:  # else the chat has closed it
                traceback.print_exc()
        finally:
            ended(function)

    for args in (recv, show), (send, lines):
        threading.Thread(target=run, args=args, daemon=True).start()


# ---- Text, the terminal, the start: you can stop reading here ----

def safe(text):
    """Return text with control characters, like Escape, as \\x1b."""
    if text.isprintable():
        return text
    # Some invisible ones go; Persian, Hebrew and emoji need others.
    text = text.expandtabs(4).translate({0xAD: "", 0x200B: "", 0xFEFF: ""})
    needed = "\u200c\u200d\u200e\u200f"
    return "".join(
        ascii(char)[1:-1] if char not in needed
        and unicodedata.category(char) in "Cc Cf Cs Zl Zp" else char
        for char in text)


def wrap(text, width):
    """Return the rows of text, at most width columns, cut at spaces."""
    # A \0 is the second column of a wide character, like 日. A row that is
    # cut between the two is one column wider than it counts.
    wide = "".join(
        "\0" + char if unicodedata.east_asian_width(char) in "WF" else char
        for char in text)
    width = max(16, width - (wide != text))  # 0: the window does not tell
    return [row.replace("\0", "") for line in wide.split("\n")
            for row in textwrap.wrap(line, width, break_on_hyphens=False)]


try:
    import termios
    import readline  # gives input() arrow keys and a history
except ImportError:  # on Windows
    readline = termios = None

# 0 is the keyboard, 1 the screen, unless it is a file or a pipe.
ESCAPES = os.isatty(0) and os.isatty(1) and os.getenv("TERM") != "dumb"
SETTINGS = os.isatty(0) and termios and termios.tcgetattr(0)

QUEUE = queue.Queue(5_000)  # while full, recv waits
TOLD = {}  # when each kind came


def show(text, color=COLOR, indent=48):
    """Queue text for the screen, indented if it is wide. Any thread may."""
    text += "\n"
    for begin in range(0, len(text), 2_000):
        QUEUE.put((text[begin:begin + 2_000], color, indent))


def notice(text):
    """Queue our own text, each kind at most once a second."""
    kind, now = text.split(":")[0], time.monotonic()
    if now > TOLD.get(kind, -1) + 1:
        TOLD[kind] = now
        show("* " + text, None, 0)


def draw_queued():
    """Draw what is queued until a thread ends; return its function."""
    while True:
        while os.name == "nt" and QUEUE.empty():
            time.sleep(0.05)  # on Windows get() would hold up Ctrl-C
        item = QUEUE.get()
        if callable(item):
            return item
        draw(*item)


# Inserts a row above the one where somebody types.
ABOVE = (
    "\x1b7\n"  # Remember the place; scroll if that is at the bottom.
    "\x1b8\x1b[B\x1b[A"  # Go back: one row higher after scrolling.
    "\x1b7\r\x1b[L"  # Remember it again; push the typed row down.
    "\x1b[?7l{}\x1b[?7h"  # Write, cut off at the window's edge.
    "\x1b8\x1b[B"  # Go back to the typed row, one lower now.
)


def draw(text, color, indent):
    """Write text to the screen. Only the main thread may."""
    if not ESCAPES:
        print(text, end="", flush=True)
        return
    width = os.get_terminal_size(1).columns
    margin = " " * min(indent, max(0, width - 60))
    for row in wrap(text, width - len(margin)):
        if color in COLORS:
            row = colored(row, color, "on_black")
        print(ABOVE.format(margin + row), end="", flush=True)


def read_lines():
    """Yield each line that is typed or piped in, and "Bye" at the end."""
    if readline:  # type in one row, our prompt alone
        readline.parse_and_bind("set horizontal-scroll-mode on")
        readline.parse_and_bind("set show-mode-in-prompt off")
    prompt = "> " if ESCAPES else ""
    scrolls = prompt and "GNU" in str(readline.__doc__)  # libedit does not
    while True:
        while in_background():
            time.sleep(0.1)
        text = BYE  # at Ctrl-D, or the end of a pipe
        with suppress(EOFError, KeyboardInterrupt, OSError):
            text = input(prompt).rstrip("\r")  # a Windows file
        if in_background():
            continue  # that was for the shell
        # The row of a long line, in bytes, shows only its end.
        if scrolls and len(text.encode()) > os.get_terminal_size(1).columns - 4:
            show(prompt + safe(text), None, 0)
        yield text


def in_background():
    """Return whether a shell has the keyboard, after Ctrl-Z and bg."""
    with suppress(OSError):
        return SETTINGS and os.tcgetpgrp(0) != os.getpgrp()


def restore(quiet):
    """Put the terminal back, after quiet seconds without a key."""
    if SETTINGS and not in_background():
        # input() still waits. From now on it gets nothing.
        keyboard = os.dup(0)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        while select.select([keyboard], [], [], quiet)[0]:
            termios.tcflush(keyboard, termios.TCIFLUSH)
        if ESCAPES and select.select([], [1], [], 0.5)[1]:
            os.write(1, b"\x1b[?7h\x1b[m\r\x1b[J")  # no colour, no prompt
        termios.tcsetattr(keyboard, termios.TCSANOW, SETTINGS)


def arguments():
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(
        epilog=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("peer", nargs="?", help="your friend's IP or name")
    add("--ip", default=IP, help="listen only at this IP")
    add("--port", type=int, default=PORT,
        help="listen on this port (default: %(default)s)")
    add("--send-port", type=int,
        help="your friend listens on this port (default: the same)")
    args = parser.parse_args()
    if args.send_port is None:
        args.send_port = args.port
    for port in args.port, args.send_port:
        if not 0 < port < 65_536:
            parser.error(f"{port} is no port: 1 to 65535 are")
    return args


QUESTION = "Enter the IP of person you want to chat with (Enter alone: this machine) : "


def find_friend(args):
    """Return the friend's IP; ask for it if args has no peer."""
    own = None
    for ip in "10.0.0.1", "192.168.0.1", "192.168.1.1", "192.0.2.1":
        with suppress(OSError), open_socket(args.ip, 0) as probe:
            probe.connect((ip, 9))  # sends nothing, only sets our IP
            own = probe.getsockname()[0]
    if own:
        print(f"* Your IP is {own}: tell your friend.")
    while True:
        answer = safe(args.peer or input(QUESTION).strip() or "127.0.0.1")
        ip = "0.0.0.0"  # nobody's
        with suppress(OSError, UnicodeError):
            ip = socket.gethostbyname(answer)
        # A lone 1 would be 0.0.0.1.
        if ip != "0.0.0.0" and (ip == answer or answer.strip("0123456789.")):
            if ip in (own, "127.0.0.1"):
                print("* That is this machine.")
            return ip
        problem = f"Cannot find {answer}: give an IP like 192.168.1.5."
        if args.peer:
            sys.exit(problem)
        print(problem)


SIGNALS = signal.valid_signals() & {1, 2, 3, 15}  # window closed, ^C, ^\, kill


def leave(*_):
    """End the chat, and take no more signals."""
    for number in SIGNALS:
        signal.signal(number, lambda *_: None)
    raise KeyboardInterrupt


def chat(sock, peer):
    """Chat with peer, the friend's (ip, port), then end the program."""
    ended = None
    try:
        for number in SIGNALS:
            signal.signal(number, leave)
        start(sock, peer, read_lines(), show, notice, QUEUE.put)
        with suppress(OSError):  # the screen may be lost
            ended = draw_queued()
        leave()  # no signal disturbs the end
    except KeyboardInterrupt:
        if not ended:
            send(sock, peer, [BYE], notice=str)  # str tells nobody
    finally:
        sock.close()  # from here on nothing is sent
        with suppress(Exception):  # the terminal may be gone
            # What is typed to a friend who has left is not for the shell.
            restore(quiet=1 if ended is recv else 0.05)
    os._exit(0)  # only this ends a thread that waits in input()


def main():
    """Find the friend and listen."""
    # A notebook or IDLE has its own in stdout's place.
    if sys.stdout is not sys.__stdout__ or not (sys.stdin and sys.stdout):
        sys.exit("The chat needs a terminal: start it there.")
    for stream in sys.stdin, sys.stdout:
        stream.reconfigure(errors="backslashreplace")
    just_fix_windows_console()  # it obeys ABOVE then
    args = arguments()
    try:
        open_socket(args.ip, args.port).close()  # is the port free?
        peer = find_friend(args), args.send_port
        sock = open_socket(args.ip, args.port)  # without an old "Bye" in it
    except (OSError, UnicodeError) as error:
        sys.exit(f"Cannot listen on port {args.port}: {error}. Is the chat open "
                 "in another terminal,\nor by another user of this machine? "
                 "End it, or both take --port 5000.")
    notice(f"Chatting with {peer[0]} port {peer[1]}. {BYE} ends it for both.")
    chat(sock, peer)


if __name__ == "__main__":
    try:
        main()
    except (KeyboardInterrupt, EOFError):
        sys.exit("\nNo friend, no chat.")

# /// script
# dependencies = ["termcolor>=2.1", "colorama>=0.4.6"]
# ///
