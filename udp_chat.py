#!/usr/bin/env python3
# /// script
# requires-python = ">=3.10"
# dependencies = ["termcolor>=2.1", "colorama>=0.4.6"]
# ///
"""A chat for two over UDP: one socket, one thread that receives, one that sends.

on two hosts, each with the other's address:
  python udp_chat.py 192.168.1.5
in two terminals of one machine:
  python udp_chat.py 127.0.0.1 --port 1234 --send-port 1084
  python udp_chat.py 127.0.0.1 --port 1084 --send-port 1234

Nothing is encrypted or confirmed, and anyone can forge a sender's address.
"""
import argparse
import contextlib
import errno
import itertools
import os
import socket
import sys
import threading
import time
import unicodedata

from colorama import just_fix_windows_console
from termcolor import colored

try:
    import termios
    import readline  # gives input() arrow keys and a history
except ImportError:  # Windows has neither
    readline = termios = None

IP = "0.0.0.0"  # where we listen: every interface of this machine
PORT = 1234  # where we listen; below 1024 it takes administrator rights
SEND_PORT = 1234  # where the friend listens: PORT again, so that two hosts run the same file
# (1234 and 1084 need the opposite on the other side, as in the two terminals above)
BUFFER_SIZE = 65_535  # bytes: no datagram is larger, and recvfrom drops what does not fit
MAX_DATAGRAM = 1024  # bytes that we send in one: the article's program reads no more (4 at least)
PAUSE = 0.0003  # seconds after each one: UDP lets nobody ask a fast sender to wait
BYE = "Bye"  # ends the chat on both sides
GRACE = 0.1  # seconds from our Bye to the end, for late news like "nobody listens"
STRANGERS = 8  # addresses that we name: a flood of forged ones must not fill the screen
COLOR, NOTICE_COLOR = "cyan", "yellow"  # of messages and of our own notices, as termcolor names them
INDENT = 48  # columns before a message: the article's six tabs
PROMPT = "> "
QUESTION = "Enter the IP of person you want to chat with : "
ELSEWHERE = "192.0.2.1", "192.168.1.1", "192.168.0.1", "10.0.0.1", "172.16.0.1"  # see own_address
IP_RECVERR = 11 if sys.platform == "linux" else None  # from ip(7); Python has no name for it until 3.14


# ---- The network. Nothing here knows of a terminal. -----------------------------------------

def open_socket(ip, port):
    """Return a UDP socket bound to (ip, port). Raises OSError if the port is taken or ip not ours."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    hear_errors(sock)
    sock.bind((ip, port))  # without SO_REUSEADDR, or a second program could take the port unseen
    return sock


def hear_errors(sock):
    """Have Linux report what could not be delivered, and forget its old reports (ip(7), IP_RECVERR).

    Unread reports fill the receive buffer until no message fits; switching it off drops them.
    """
    for on in (0, 1) if IP_RECVERR else ():
        sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, on)


def recv(sock, peer, show, notice):
    """Hand each message from peer to show as "IP : text", up to and with "Bye".

    peer is (ip, port), ip in numbers; show and notice take a str. Strangers and network errors
    go to notice, once each, and end nothing. Closing sock ends it, too.
    """
    strangers, trouble = set(), None
    while True:
        try:
            data, address = sock.recvfrom(BUFFER_SIZE)
        except OSError as error:  # mostly late news of something we sent
            if sock.fileno() == -1:
                return
            hear_errors(sock)
            if error.errno != trouble:
                trouble = error.errno
                notice("Nobody listens at {} port {} yet: what you send now is lost.".format(*peer)
                       if isinstance(error, ConnectionError)  # the ICMP answer "port unreachable"
                       else f"The network reports: {error.strerror}. Your last words may be lost.")
            continue
        if address == peer:
            trouble = None
            text = data.decode(errors="backslashreplace").rstrip("\r\n")  # nc sends the newline, too
            show(f"{address[0]} : {safe(text)}")
            if text == BYE:
                return
        elif address not in strangers and len(strangers) < STRANGERS:
            strangers.add(address)
            notice("Not shown: a message from {0} port {1}. If that is your friend, start again "
                   "with: {0} --send-port {1}".format(*address))


def send(sock, peer, lines, notice):
    """Send each of lines to peer, up to and with "Bye"; when they end without it, say it.

    notice takes a str: what could not be sent, and why.
    """
    for text in itertools.chain(lines, [BYE]):
        for data in datagrams(text):
            try:
                try:
                    sock.sendto(data, peer)
                except OSError:  # may be late news of an earlier one: then this one has not gone yet
                    sock.sendto(data, peer)
            except OSError as error:
                notice(f"Not sent ({error.strerror}): {safe(data.decode())}")
            time.sleep(PAUSE)
        if text == BYE:
            return


def datagrams(text):
    """Yield text as UTF-8 in pieces of at most MAX_DATAGRAM bytes, never cut inside a character.

    They are about equally long: a short last one might happen to say "Bye".
    """
    data = text.encode(errors="backslashreplace")
    while data:
        count = -(-len(data) // MAX_DATAGRAM)  # rounded up
        piece = data[:-(-len(data) // count)].decode(errors="ignore").encode()
        yield piece
        data = data[len(piece):]


def route(host):
    """Return host's IPv4 address and ours on the way to it. Raises OSError, UnicodeError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))  # sends nothing: on UDP this only picks the way
        ip, own = probe.getpeername()[0], probe.getsockname()[0]
    # Debian gives a machine's own name 127.0.1.1, but what it sends comes from 127.0.0.1.
    return own if ip.startswith("127.") and ip != host else ip, own


def own_address(hosts):
    """Return our address as the first of hosts in reach sees it, other than 127.0.0.1, or None."""
    for host in hosts:
        with contextlib.suppress(OSError, UnicodeError):
            own = route(host)[1]
            if not own.startswith("127."):
                return own


# ---- The terminal. Nothing here knows of a network. -----------------------------------------

def safe(text):
    """Return text with all that could act on a terminal, or hide in it, made visible, like \\x1b."""
    return "".join(
        char.encode("unicode_escape").decode()
        if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")
        and char not in "\u200c\u200d"  # joiners: Persian and emoji families need them
        else char for char in text)


def columns(char):
    """Return how many columns char takes on a screen, rather too many than too few."""
    if unicodedata.category(char) in ("Mn", "Me", "Cf") and char != "\ufe0f":
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" or char >= "\U0001f000" else 1


def wrap(text, width):
    """Return text in rows of at most width columns, broken at a space if one is near."""
    rows, start, space, used = [], 0, 0, 0
    for end, char in enumerate(text):
        used += columns(char)
        if used > width:
            cut = space if space > start and end - space < width / 2 else end
            rows.append(text[start:cut])
            start, used = cut, sum(map(columns, text[cut:end + 1]))
        if char == " ":
            space = end + 1
    return [*rows, text[start:]]


class Terminal:
    """The screen and the keyboard; plain lines in a pipe, a file or a dumb terminal."""

    # A row above the cursor's, wherever that is: make sure of a row below it, save the cursor,
    # insert a row, fill it (cut, not wrapped), restore the cursor, go one down.
    ROW = "\x1bD\x1b[A\x1b7\r\x1b[L\x1b[?7l{}\x1b8\x1b[B\x1b[?7h"

    def __init__(self):
        for stream in (sys.stdin, sys.stdout):
            stream.reconfigure(errors="backslashreplace")  # for what the locale has no letter for
        just_fix_windows_console()
        keyboard = sys.stdin.isatty()
        self.rows = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self.prompt = PROMPT if keyboard and self.rows else ""
        self.saved = termios.tcgetattr(0) if keyboard and termios else None
        self.typing = False
        self.lock = threading.Lock()  # two threads write, or end the program
        if readline:
            readline.parse_and_bind("set horizontal-scroll-mode on")  # the typed line is one row

    def width(self):
        """Return the screen's width in columns, as it is now."""
        return os.get_terminal_size(1).columns or 80

    def show(self, text, color=COLOR, indent=INDENT):
        """Print text above the line that is being typed, which stays as it is."""
        out = text + "\n"
        if self.rows:
            margin = " " * min(indent, max(0, self.width() - 32))
            out = "".join(self.ROW.format(colored(margin + row, color))
                          for row in wrap(text, self.width() - len(margin)))
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
        if self.prompt and len(wrap(self.prompt + text, self.width() - 1)) > 1:
            self.show(self.prompt + text, None, indent=0)  # one row could not hold it
        return text

    def leave(self):
        """End the program at once, from any thread, with the terminal as it was.

        Nothing milder than os._exit() ends a thread that waits in input() on every system.
        """
        self.lock.acquire(timeout=1)  # not in the middle of a row
        if self.typing:
            with contextlib.suppress(OSError):
                print(flush=True)
        if self.saved:
            tty = os.dup(0)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # an input() just starting cannot undo this:
            termios.tcsetattr(tty, termios.TCSANOW, self.saved)
        os._exit(0)


# ---- Both together. -------------------------------------------------------------------------

def chat(sock, peer, terminal):
    """Run recv and send, each in a thread of its own, until somebody says Bye."""
    def receive():
        try:
            recv(sock, peer, terminal.show, terminal.notice)
        except OSError:  # nobody reads our output any more
            send(sock, peer, [], [].append)
        terminal.leave()

    receiver = threading.Thread(target=receive, daemon=True)
    receiver.start()
    lines, notice = iter(terminal.read, None), terminal.notice
    while True:  # send has the main thread: only there does Ctrl-C end input() on every system
        try:
            send(sock, peer, lines, notice)
            receiver.join(GRACE)
            terminal.leave()
        except (EOFError, KeyboardInterrupt, OSError):  # Ctrl-D, Ctrl-C, a terminal that is gone
            lines, notice = [], [].append  # there is only Bye left to say


def port_number(text):
    """Return text as a port. Raises ArgumentTypeError, which argparse shows."""
    if text.isdecimal() and 0 < int(text) < 65_536:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text} is not a port, choose one from 1 to 65535")


def arguments():
    """Return the command line's arguments; the constants are their defaults."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    option = parser.add_argument
    option("peer", metavar="PEER", nargs="?", help="the friend's address or name (default: ask)")
    option("--ip", default=IP, help="listen on this address of ours (default: %(default)s, all)")
    option("--port", type=port_number, default=str(PORT), help="our port (default: %(default)s)")
    option("--send-port", type=port_number, default=str(SEND_PORT),
           help="the friend's port (default: %(default)s)")
    return parser.parse_args()


def main():
    """Listen, find the friend, chat."""
    args = arguments()
    try:
        sock = open_socket(args.ip, args.port)
    except (OSError, UnicodeError) as error:
        taken = getattr(error, "errno", None) in (errno.EADDRINUSE, errno.EACCES)
        sys.exit(f"Cannot listen on {args.ip} port {args.port} ({error}): "
                 + ("choose another --port" if taken else "leave --ip out, or give one of ours"))
    terminal = Terminal()
    ip, port = sock.getsockname()
    own = ip if ip != "0.0.0.0" else own_address(filter(None, [args.peer, *ELSEWHERE]))
    terminal.notice(f"Listening on {ip} port {port}; " + (
        f"tell your friend: {own}" if own else "but this machine is on no network"))
    if not args.peer:
        terminal.notice(QUESTION)
    while True:
        host = args.peer or terminal.read().strip() or "127.0.0.1"
        try:
            peer = route(host)[0], args.send_port
            break
        except (OSError, UnicodeError) as error:
            text = f"No way to {host} ({error}): check it, or type an address like 192.168.1.5"
            if args.peer:
                sys.exit(text)
            terminal.notice(text)
    terminal.notice("Chatting with {} port {}; {} ends it for both.".format(*peer, BYE))
    chat(sock, peer, terminal)


if __name__ == "__main__":
    with contextlib.suppress(EOFError, KeyboardInterrupt):  # at the question: nobody to say Bye to
        main()
