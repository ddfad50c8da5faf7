#!/usr/bin/env python3
# /// script
# requires-python = ">=3.10"
# dependencies = ["termcolor>=2.1", "colorama>=0.4.6"]
# ///
"""A chat for two over UDP: one socket, one thread that receives, one that sends.

on two hosts, each with the other's address:
  python udp_chat.py 192.168.1.5
on one machine, in two terminals:
  python udp_chat.py 127.0.0.1 --port 1234 --send-port 1084
  python udp_chat.py 127.0.0.1 --port 1084 --send-port 1234

Nothing is encrypted or confirmed, and anyone can forge a sender's address.
"""
import argparse
import contextlib
import itertools
import math
import os
import shutil
import signal
import socket
import sys
import threading
import time
import unicodedata

from termcolor import COLORS, colored

try:
    import termios
    import readline  # gives input() arrow keys and a history
except ImportError:  # Windows has neither
    readline = termios = None

IP = "0.0.0.0"  # where we listen: at every address of this machine
PORT = 1234  # where we listen; below 1024 it takes administrator rights
SEND_PORT = PORT  # where the friend listens: the same, so that both hosts run this very file
# (with 1234 and 1084, one of the two hosts would need them the other way round)
BUFFER_SIZE = 65_535  # bytes: no datagram is larger, and recvfrom drops what does not fit
MAX_DATAGRAM = 1024  # bytes that we send in one: a plain recvfrom(1024) reads no more (at least 16)
PAUSE = 0.0003  # seconds after each one: UDP has no way for a slow receiver to say "wait"
BYE = "Bye"  # ends the chat on both sides
GRACE = 0.1  # seconds from our Bye to the end, for a late "nobody listens"
STRANGERS = 8  # addresses that we warn of: a flood of forged ones must not fill the screen
COLOR = "cyan"  # of messages; a name that termcolor knows, any other means none
NOTICE_COLOR = "yellow"  # of what the program itself says
INDENT = 48  # columns in front of a message (six tabs), fewer on a narrow screen
PROMPT = "> "  # in front of what we type
QUESTION = "Enter the IP of person you want to chat with : "
IP_RECVERR = 11 if sys.platform == "linux" else None  # see ip(7); Python has no name for it until 3.14


# ---- The network: the socket, bind, recv and send -------------------------------------------

def open_socket(ip, port):
    """Return a UDP socket bound to (ip, port). Raises OSError if the port is taken or ip not ours."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    hear_errors(sock)
    sock.bind((ip, port))  # without SO_REUSEADDR, or a second program could take the port unseen
    return sock


def hear_errors(sock):
    """Make Linux report, by an OSError of the next call, what could not be delivered (ip(7)).

    It also keeps a list of the reports, which would fill the receive buffer; "off" empties it.
    """
    if IP_RECVERR:
        sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 0)
        sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)


def recv(sock, peer, show, notice):
    """Call show("IP : text") for each message from peer, up to and with "Bye".

    peer is (ip, port), ip in numbers. The first few strangers, and each new network error, go to
    notice(text). They end nothing.
    """
    strangers, trouble = set(), None
    while True:
        try:
            data, address = sock.recvfrom(BUFFER_SIZE)
        except OSError as error:  # something we sent did not arrive: Linux and Windows tell us here
            if sock.fileno() == -1:  # closed
                return
            hear_errors(sock)
            if error.errno != trouble:
                trouble = error.errno
                # A ConnectionError is the answer of their system, by ICMP: "port unreachable".
                reason = "Nobody listens" if isinstance(error, ConnectionError) else error.strerror
                notice(f"{reason} at {peer[0]} port {peer[1]}: what you send is lost until that changes.")
            continue
        if address == peer:
            trouble = None
            text = data.decode(errors="backslashreplace").rstrip("\r\n")  # nc sends the newline, too
            show(f"{address[0]} : {safe(text)}")
            if text == BYE:
                return
        elif address not in strangers and len(strangers) < STRANGERS:
            strangers.add(address)
            notice("Not shown: a message from {0} port {1}. If that is your friend, start again with: "
                   "udp_chat.py {0} --port {2} --send-port {1}".format(*address, sock.getsockname()[1]))


def send(sock, peer, lines, notice):
    """Send each of lines to peer, up to and with "Bye"; if they end without it, say it.

    What could not be sent goes to notice(text).
    """
    for text in itertools.chain(lines, [BYE]):
        for data in datagrams(text):
            try:
                try:
                    sock.sendto(data, peer)
                except OSError:  # may be about an earlier datagram; then this one has not gone yet
                    sock.sendto(data, peer)
            except OSError as error:
                notice(f"Not sent ({error.strerror}): {safe(data.decode())}")
            time.sleep(PAUSE)
        if text == BYE:
            return


def datagrams(text):
    """Yield text as UTF-8 in pieces of at most MAX_DATAGRAM bytes, never cut inside a character.

    They are about equally long, because a short last one could happen to say "Bye".
    """
    data = text.encode(errors="backslashreplace")
    while data:
        size = math.ceil(len(data) / math.ceil(len(data) / MAX_DATAGRAM))
        piece = data[:size].decode(errors="ignore").encode()  # ignore: drops half a character
        yield piece
        data = data[len(piece):]


# ---- The threads ----------------------------------------------------------------------------

def chat(sock, peer, terminal):
    """Run recv in a thread of its own and send in the main thread, until somebody says Bye."""
    def receive():
        try:
            recv(sock, peer, terminal.show, terminal.notice)
        except OSError:  # nobody reads our output any more
            terminal.farewell()
        terminal.leave()

    terminal.farewell = lambda: send(sock, peer, [], notice=lambda text: None)
    receiver = threading.Thread(target=receive, daemon=True)
    receiver.start()
    try:
        send(sock, peer, iter(terminal.read, None), terminal.notice)  # for ever: it never returns None
    except (EOFError, OSError):  # Ctrl-D, the end of a pipe, a terminal that is gone
        terminal.farewell()
    receiver.join(GRACE)
    terminal.leave()


# ---- The terminal ---------------------------------------------------------------------------

def safe(text):
    """Return text with control and format characters, which act on a terminal, made visible, like \\x1b."""
    return "".join(
        char.encode("unicode_escape").decode()
        if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")
        and char not in "\u200c\u200d"  # joiners: Persian and emoji families need them
        else char for char in text)


def columns(char):
    """Return how many columns char takes on a screen."""
    if unicodedata.category(char) in ("Mn", "Me", "Cf") and char != "\ufe0f":  # that one makes emoji wide
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" or char >= "\U0001f000" else 1


def wrap(text, width):
    """Return text in rows of at most width columns, broken at a space if one is near."""
    rows, start, space, used = [], 0, 0, 0
    for end, char in enumerate(text):
        used += columns(char)
        if used > width:
            word = sum(map(columns, text[space:end + 1])) if space > start else width
            cut, used = (space, word) if word < width / 2 else (end, columns(char))
            rows.append(text[start:cut])
            start = cut
        if char == " ":
            space = end + 1
    return [*rows, text[start:]]


class Terminal:
    """The screen and the keyboard; plain lines in a pipe, a file or a dumb terminal."""

    # A row above the cursor's, wherever that is: make sure of a row below it, save the cursor,
    # insert a row, fill it (cut, not wrapped), restore the cursor, go one down.
    ROW = "\x1bD\x1b[A\x1b7\r\x1b[L\x1b[?7l{}\x1b8\x1b[B\x1b[?7h"

    def __init__(self):
        for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
            if getattr(sys, name) is None:  # closed by the shell, as in <&-
                setattr(sys, name, open(os.devnull, mode))
        sys.stdin.reconfigure(errors="backslashreplace")  # for bytes that the locale cannot decode
        if sys.platform == "win32":
            from colorama import just_fix_windows_console  # not on top: it takes time, and only here
            just_fix_windows_console()
        keyboard = sys.stdin.isatty()
        self.rows = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self.prompt = PROMPT if keyboard and self.rows else ""
        self.modes = termios.tcgetattr(0) if keyboard and termios else None  # to be restored
        self.typing = False
        self.lock = threading.Lock()  # for output: more than one thread writes
        if readline:
            readline.parse_and_bind("set horizontal-scroll-mode on")  # the typed line is one row
        self.farewell = lambda: None  # what Ctrl-C does before it ends the program
        signal.signal(signal.SIGINT, lambda *_: None)
        self.wake, self.interrupt = socket.socketpair()  # Ctrl-C writes into one, a thread waits at the other
        self.wake.setblocking(False)
        signal.set_wakeup_fd(self.wake.fileno())
        threading.Thread(target=self.interrupted, daemon=True).start()

    def show(self, text, color=COLOR, indent=INDENT):
        """Print text above the line that is being typed, which stays as it is."""
        code = sys.stdout.encoding
        text = text.encode(code, "backslashreplace").decode(code)  # the locale may lack its letters
        out = text + "\n"
        if self.rows:
            width = shutil.get_terminal_size().columns
            margin = " " * min(indent, max(0, width - 32))
            color = color if color in COLORS else None
            out = "".join(self.ROW.format(colored(margin + row, color))
                          for row in wrap(text, width - len(margin)))
        with self.lock:
            sys.stdout.write(out)
            sys.stdout.flush()

    def notice(self, text):
        """Print a sentence of the program's own."""
        self.show("* " + text, NOTICE_COLOR, indent=0)

    def read(self):
        """Return the next line that is typed or piped in. Raises EOFError after the last."""
        self.typing = bool(self.prompt)
        text = input(self.prompt)
        self.typing = False
        if self.prompt and len(text.expandtabs().encode()) > shutil.get_terminal_size().columns - 5:
            self.show(self.prompt + safe(text), None, indent=0)  # one row may not have held it
        return text

    def interrupted(self):
        """Wait for Ctrl-C in a thread of its own: input() may miss it (cpython issue 112585)."""
        self.interrupt.recv(1)
        self.farewell()
        self.leave()

    def leave(self):
        """End the program at once, from any thread, with the terminal as it was.

        Nothing milder than os._exit() ends a thread that waits in input() on every system.
        """
        self.lock.acquire(timeout=1)  # not in the middle of a row
        with contextlib.suppress(OSError):
            print(end="\n" if self.typing else "", flush=True)
        if self.modes:
            with contextlib.suppress(OSError, termios.error):  # the terminal is gone
                tty = os.dup(0)
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # or an input() just starting would undo this:
                termios.tcsetattr(tty, termios.TCSANOW, self.modes)
                termios.tcflush(tty, termios.TCIFLUSH)  # the rest of a paste is not for the shell
        os._exit(0)


# ---- The start ------------------------------------------------------------------------------

def route(host):
    """Return host's IPv4 address, and ours on the way there. Raises OSError, TypeError or ValueError."""
    if not any(map(str.isalpha, host)):
        socket.inet_pton(socket.AF_INET, host)  # or 192.168.1 would become 192.168.0.1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))  # on UDP this sends nothing, it only finds the way
        ip, own = probe.getpeername()[0], probe.getsockname()[0]
    if ip.startswith("127.") and ip != host:
        ip = own  # Debian gives a machine's own name 127.0.1.1, but its answers come from 127.0.0.1
    return ip, own


def own_address(host=None):
    """Return the address by which others reach this machine, as host would see it, or None."""
    # 192.0.2.1 stands for the internet. The others are for a room with a network but no router.
    for there in (host, "192.0.2.1", "192.168.1.1", "192.168.0.1", "10.0.0.1", "172.16.0.1"):
        with contextlib.suppress(OSError, TypeError, ValueError):
            own = route(there)[1]
            if not own.startswith("127."):
                return own


def port_number(text):
    """Return text as a port. Raises ArgumentTypeError, which argparse shows."""
    if text.isdecimal() and len(text) < 6 and 0 < int(text) < 65_536:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text:.9} is not a port, choose one from 1 to 65535")


def arguments():
    """Return the command line's arguments; the constants are their defaults."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", metavar="PEER", nargs="?", help="the friend's address or name (default: ask)")
    parser.add_argument("--ip", default=IP, help="our address to listen on (default: %(default)s, all)")
    parser.add_argument("--port", type=port_number, default=PORT, help="our port (default: %(default)s)")
    parser.add_argument("--send-port", type=port_number, default=SEND_PORT,
                        help="the friend's port (default: %(default)s)")
    return parser.parse_args()


def meet(sock, args, terminal):
    """Tell where we listen, and return the peer's address. Exits if PEER cannot be reached."""
    ip, port = sock.getsockname()
    own = own_address(args.peer) if ip == "0.0.0.0" else None if ip.startswith("127.") else ip
    terminal.notice(f"Listening on {ip} port {port}; " + (
        f"tell your friend: {own}" if own else "no other machine can reach it"))
    if not args.peer:
        terminal.notice(QUESTION)
    while True:
        host = args.peer or terminal.read().strip() or "127.0.0.1"
        try:
            peer = route(host)[0], args.send_port
            break
        except (OSError, TypeError, ValueError) as error:
            text = f"No way to {safe(host)} ({error}): check it, or give an address like 192.168.1.5"
            if args.peer:
                sys.exit(text)
            terminal.notice(text)
    terminal.notice("Chatting with {} port {}; {} ends it for both.".format(*peer, BYE))
    return peer


def main():
    """Listen, find the friend, chat."""
    args = arguments()
    try:
        sock = open_socket(args.ip, args.port)
    except (OSError, TypeError, ValueError) as error:
        sys.exit(f"Cannot listen on {safe(args.ip)} port {args.port} ({error}): "
                 "choose another --port, or leave --ip out")
    terminal = Terminal()
    try:
        peer = meet(sock, args, terminal)
    except (EOFError, OSError):  # there is nobody yet to say Bye to
        terminal.leave()
    chat(sock, peer, terminal)


if __name__ == "__main__":
    main()
